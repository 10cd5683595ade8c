% severity = problems[0][0] if problems else 0
<section class="health {{('ok', 'warning', 'critical', 'critical')[severity]}}" aria-labelledby="health">
<h2 id="health">{{('All is well', 'Something needs attention', 'Something is wrong', 'Unknown')[severity]}}</h2>
% if problems:
<ul>
% for each, sentence in problems:
<li><span class="badge {{('ok', 'warning', 'critical', 'unknown')[each]}}">{{('ok', 'warning', 'critical', 'unknown')[each]}}</span> {{sentence}}</li>
% end
</ul>
% else:
<p>Every LUN is ready, and every portal is open.</p>
% end
</section>
<dl class="tiles">
% for words, number, href in tiles:
<div class="tile"><dt><a href="{{href}}">{{words}}</a></dt><dd>{{number}}</dd></div>
% end
</dl>
<section aria-labelledby="load">
<h2 id="load">Load</h2>
<div class="graphs">{{!graph(throughput)}}{{!graph(commands)}}</div>
</section>
<section aria-labelledby="busy">
<h2 id="busy">Busiest sessions</h2>
{{!sessions}}
</section>
<section aria-labelledby="refused">
<h2 id="refused">Latest refusals</h2>
% if refusals:
<ul class="short">
% for row in refusals:
<li><time>{{row['time']}}</time> {{row.get('initiator_name') or row.get('address')}}: {{row['why']}}</li>
% end
</ul>
<p><a href="/refusals">All refusals, with remedies</a></p>
% else:
<p class="empty">No login was refused.</p>
% end
</section>
<section aria-labelledby="server">
<h2 id="server">Server</h2>
<dl class="facts">
% for name, value in facts:
<div><dt>{{name}}</dt><dd>{{value}}</dd></div>
% end
</dl>
</section>
<section aria-labelledby="portals">
<h2 id="portals">Portals</h2>
{{!portals}}
</section>
