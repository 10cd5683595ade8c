% if actions:
<p class="toolbar">
% for words, href in actions:
<a class="button" href="{{href}}">{{words}}</a>
% end
</p>
% end
% if intro:
<p class="intro">{{intro}}</p>
% end
% for heading, markup in parts:
<section>
% if heading:
<h2>{{heading}}</h2>
% end
{{!markup}}
</section>
% end
