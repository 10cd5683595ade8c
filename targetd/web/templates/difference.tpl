<p class="intro">From #{{number}} to the configuration in force. Secrets are not shown.</p>
% if steps:
<pre class="text" role="region" aria-label="The differences" tabindex="0">\\
% for step in steps:
{{step}}
% end
</pre>
% else:
<p class="empty">Nothing differs.</p>
% end
<p><a href="/configuration">Back to the history</a></p>
