% if not rows:
<p class="empty">No login was refused.</p>
% end
<ol class="cards">
% for row in rows:
<li class="card">
<h2>{{row['why']}}</h2>
<dl class="facts">
<div><dt>Time</dt><dd>{{row['time']}}</dd></div>
<div><dt>From</dt><dd>{{row.get('address') or '–'}}</dd></div>
<div><dt>Initiator</dt><dd>{{row.get('initiator_name') or '–'}}</dd></div>
<div><dt>Target</dt><dd>{{row.get('target_name') or '–'}}</dd></div>
<div><dt>Status</dt><dd>{{row.get('status') or '–'}}</dd></div>
% if row.get('windows'):
<div><dt>Windows shows</dt><dd>{{row['windows']}}</dd></div>
% end
</dl>
% if row.get('look_at'):
<p class="remedy"><b>Look at</b> {{row['look_at']}}</p>
% end
</li>
% end
</ol>
