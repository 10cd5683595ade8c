% if not lines:
<p class="empty">{{empty[0].upper() + empty[1:]}}.</p>
% else:
<div class="sheet" role="region" aria-label="{{caption}}" tabindex="0">
<table role="table">
<caption class="unseen">{{caption}}</caption>
<thead role="rowgroup"><tr role="row">
% for words, form in zip(headings, forms):
<th role="columnheader" scope="col" class="is-{{form}}">{{words}}</th>
% end
% if has_actions:
<th role="columnheader" scope="col">Change</th>
% end
</tr></thead>
<tbody role="rowgroup">
% for cells, links in lines:
<tr role="row">
% for cell in cells:
<td role="cell" data-label="{{cell.label}}" class="is-{{cell.form}}">\\
% if cell.form == 'spark':
% if cell.spark:
<svg class="spark" viewBox="0 0 120 28" width="120" height="28" aria-hidden="true"><path d="{{cell.spark}}"/></svg>\\
% else:
<span class="none">–</span>\\
% end
% elif cell.severity:
<span class="badge {{cell.severity}}">{{cell.text}}</span>\\
% elif cell.href:
<a href="{{cell.href}}"{{!' class="name"' if len(cell.text) > 12 else ''}}>{{cell.text}}</a>\\
% elif cell.text == '-':
<span class="none">–</span>\\
% else:
<span{{!' class="name"' if len(cell.text) > 16 else ''}}>{{cell.text}}</span>\\
% end
</td>
% end
% if has_actions:
<td role="cell" data-label="Change" class="actions">
% for words, href in links:
<a class="button quiet" href="{{href}}">{{words}}</a>
% end
</td>
% end
</tr>
% end
</tbody>
</table>
</div>
% end
