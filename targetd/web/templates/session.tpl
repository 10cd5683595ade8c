<p class="lead">{{row['initiator_name']}} from {{row['address']}} at <a href="/target/{{target_part}}">{{row['target_name']}}</a>, since {{row['since']}}</p>
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
<section aria-labelledby="counters">
<h2 id="counters">Since the login</h2>
{{!counters}}
</section>
<section aria-labelledby="connections">
<h2 id="connections">Connections</h2>
{{!connections}}
</section>
<section aria-labelledby="settings">
<h2 id="settings">Negotiated settings</h2>
{{!settings}}
</section>
