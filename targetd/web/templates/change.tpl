<p class="intro">{{text}}</p>
% if problem:
<p class="problem" role="alert">{{problem}}</p>
% end
% if preview is not None:
<section class="card" aria-labelledby="preview">
<h2 id="preview" tabindex="-1">What would change</h2>
% if preview:
<ul class="short">
% for step in preview:
<li>{{step}}</li>
% end
</ul>
% else:
<p>Nothing.</p>
% end
</section>
% end
<form class="card form" method="post" action="/change/{{command}}" autocomplete="off">
<input type="hidden" name="form-token" value="{{form_token}}">
% for field in fields:
<div class="field">
% if field.kind == 'flag':
<label class="check"><input type="checkbox" name="{{field.name}}" value="yes"{{' checked' if field.value else ''}}> <span>{{field.words}}</span></label>
<p class="hint" id="hint-{{field.name}}">{{field.help}}</p>
% else:
<label for="field-{{field.name}}">{{field.words}}\\
% if not field.required:
 <span class="optional">optional</span>\\
% end
</label>
% if field.kind == 'options':
<textarea id="field-{{field.name}}" name="{{field.name}}" rows="3" aria-describedby="hint-{{field.name}}">{{field.value}}</textarea>
% else:
<input id="field-{{field.name}}" name="{{field.name}}" type="{{'password' if field.kind == 'secret' else 'text'}}"{{' inputmode=numeric' if field.kind == 'number' else ''}} value="{{field.value}}" aria-describedby="hint-{{field.name}}"{{' required' if field.required else ''}}\\
% if field.kind == 'secret':
 autocomplete="new-password"\\
% end
>
% end
<p class="hint" id="hint-{{field.name}}">{{field.help}}</p>
% end
</div>
% end
<p class="toolbar">
% if has_preview:
<button name="do" value="preview">Show what would change</button>
% end
<button class="primary" name="do" value="apply">{{verb}}</button>
<a class="button quiet" href="{{back}}">Cancel</a>
</p>
</form>
