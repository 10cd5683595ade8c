<form class="card form" method="post" action="/login">
% if problem:
<p class="problem" role="alert">{{problem}}</p>
% end
<p>Changes need the token that <code>targetdctl web --allow-changes</code> has printed, or that is in the file of <code>--token-file</code>.</p>
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<input type="hidden" name="next" value="{{next}}">
<p class="toolbar"><button class="primary">Log in</button></p>
</form>
