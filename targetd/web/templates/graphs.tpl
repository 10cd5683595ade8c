<div class="graphs">
% for one in each:
{{!graph(one)}}
% end
</div>
