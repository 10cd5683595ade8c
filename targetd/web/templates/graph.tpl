<figure class="graph">
<figcaption><span class="title">{{of['title']}}</span>
% for line in of['lines']:
<span class="key"><svg viewBox="0 0 14 8" width="14" height="8" aria-hidden="true"><path class="line {{line['style']}}" d="M0 4H14"/></svg> {{line['name']}} <b>{{line['latest']}}</b> <span class="most">max {{line['most']}}</span></span>
% end
</figcaption>
<svg class="plot" viewBox="{{box}}" role="img" aria-label="{{of['label']}}">
% for y, words in of['scale']:
<line class="grid" x1="{{left}}" x2="{{right}}" y1="{{y}}" y2="{{y}}"/>
<text class="scale" x="{{left - 6}}" y="{{y + 4}}" text-anchor="end">{{words}}</text>
% end
% for share, words in ((0, '1 h ago'), (0.25, '45 min'), (0.5, '30 min'), (0.75, '15 min')):
<line class="grid upright" x1="{{left + share * (right - left)}}" x2="{{left + share * (right - left)}}" y1="10" y2="{{floor - 22}}"/>
<text class="scale" x="{{left + share * (right - left)}}" y="{{floor - 6}}" text-anchor="{{'middle' if share else 'start'}}">{{words}}</text>
% end
<text class="scale" x="{{right}}" y="{{floor - 6}}" text-anchor="end">now</text>
% for line in of['lines']:
<path class="area {{line['style']}}" d="{{line['area']}}"/>
% end
% for line in of['lines']:
<path class="line {{line['style']}}" d="{{line['path']}}"/>
% end
% if of['is_empty']:
<text class="scale" x="{{(left + right) / 2}}" y="70" text-anchor="middle">nothing measured yet</text>
% end
</svg>
</figure>
