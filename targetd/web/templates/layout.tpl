<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{title}} – targetd on {{host}}</title>
<link rel="icon" href="/static/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="/static/page.css">
<script src="/static/page.js" defer></script>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header class="top">
<div class="bar">
<p class="brand"><a href="/"><svg class="logo" viewBox="0 0 24 24" width="24" height="24" aria-hidden="true"><rect x="2" y="3" width="20" height="7" rx="2"/><rect x="2" y="14" width="20" height="7" rx="2"/><circle cx="6.5" cy="6.5" r="1.4"/><circle cx="6.5" cy="17.5" r="1.4"/></svg><span>targetd</span></a> <span class="host">{{host}}</span></p>
<div class="account">
% if not allows_changes:
<span class="mode">read-only</span>
% elif logged_in:
<form method="post" action="/logout"><input type="hidden" name="form-token" value="{{form_token}}"><button class="quiet">Log out</button></form>
% else:
<a class="button quiet" href="/login">Log in to change</a>
% end
</div>
</div>
<nav aria-label="Sections">
<ul>
% for path, words in sections:
<li><a href="{{path}}"\\
% if path == section:
 aria-current="page"\\
% end
>{{words}}</a></li>
% end
</ul>
</nav>
</header>
<main id="main" tabindex="-1">
<div class="heading"><h1>{{title}}</h1>
% if is_live:
<p class="live" id="clock"><span class="pulse" aria-hidden="true"></span><span id="as-of">as of {{now}}</span> <button class="quiet" id="pause" hidden aria-pressed="false">Pause</button></p>
% end
</div>
% if said:
<p class="said" role="status">{{said}}</p>
% end
<div id="{{'live' if is_live else 'still'}}">
{{!body}}
</div>
</main>
<footer><p>targetd {{version}} · what this page shows is what <code>targetdctl show</code> prints; its manual is targetdctl(8)</p></footer>
</body>
</html>
