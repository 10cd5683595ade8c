% if actions:
<p class="toolbar">
% for words, href in actions:
<a class="button" href="{{href}}">{{words}}</a>
% end
</p>
% end
<section aria-labelledby="history">
<h2 id="history">History</h2>
<ol class="history" reversed>
% for row in history:
<li>
<p class="when"><b>{{'#%d' % row['number'] if row['number'] is not None else ''}}</b> <time>{{row['time']}}</time> {{row['who']}} <code>{{row['what']}}</code></p>
% if row['steps']:
<ul class="short">
% for step in row['steps'][:20]:
<li>{{step}}</li>
% end
% if len(row['steps']) > 20:
<li>and {{len(row['steps']) - 20}} more</li>
% end
</ul>
% end
% if row['number'] is not None:
<p class="links"><a href="/configuration/{{row['number']}}" aria-label="What has changed since #{{row['number']}}">What has changed since</a>\\
% if may_change:
 · <a href="/change/rollback?number={{row['number']}}" aria-label="Return to #{{row['number']}}">Return to this</a>\\
% end
</p>
% end
</li>
% end
</ol>
</section>
<section aria-labelledby="present">
<h2 id="present">In force</h2>
<p class="intro">With all files that it includes and the live changes. Secrets are not shown.</p>
<pre class="text" role="region" aria-label="The configuration in force" tabindex="0">{{text}}</pre>
</section>
