<p class="lead"><span class="badge {{severity}}">{{row['state']}}</span> {{row['path']}}</p>
% if row.get('pending'):
<p class="said">Pending: {{row['pending']}}</p>
% end
% if actions:
<p class="toolbar">
% for words, href in actions:
<a class="button" href="{{href}}">{{words}}</a>
% end
</p>
% end
<section aria-labelledby="load">
<h2 id="load">Load</h2>
<div class="graphs">{{!graph(throughput)}}{{!graph(latency)}}</div>
</section>
<section aria-labelledby="names">
<h2 id="names">Names and properties</h2>
<dl class="facts">
% for name, value in facts:
<div><dt>{{name}}</dt><dd>{{value}}</dd></div>
% end
</dl>
</section>
<section aria-labelledby="errors">
<h2 id="errors">Errors of the medium</h2>
{{!errors}}
</section>
<section aria-labelledby="reservations">
<h2 id="reservations">Reservations</h2>
{{!reservations}}
</section>
