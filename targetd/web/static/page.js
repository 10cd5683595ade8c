/* Replaces what is on the page by its present state every five seconds. Without this script the page is
   complete, too, and is renewed by loading it again. Old browsers: no more than ECMAScript 5. */
(function () {
  'use strict';
  var SECONDS = 5;
  var live = document.getElementById('live');
  var asOf = document.getElementById('as-of');
  var pause = document.getElementById('pause');
  var clock = document.getElementById('clock');
  var isPaused = false;
  var preview = document.getElementById('preview');
  if (preview) {
    preview.focus();
  }
  if (!live || !window.XMLHttpRequest || !window.DOMParser) {
    return;
  }

  function say(text, isOld) {
    asOf.textContent = text;
    clock.className = isOld ? 'live old' : 'live';
  }

  /* What has the focus is found again by its place among those of the same kind. */
  function placeOfFocus() {
    var active = document.activeElement;
    if (!active || active === document.body || !live.contains(active)) {
      return null;
    }
    var same = live.getElementsByTagName(active.tagName);
    for (var i = 0; i < same.length; i++) {
      if (same[i] === active) {
        return {tag: active.tagName, number: i, href: active.getAttribute('href')};
      }
    }
    return null;
  }

  function focusAgain(place) {
    var same = place ? live.getElementsByTagName(place.tag) : [];
    var found = place ? same[place.number] : null;
    for (var i = 0; place && place.href && i < same.length; i++) {
      if (same[i].getAttribute('href') === place.href && (!found || found.getAttribute('href') !== place.href)) {
        found = same[i];
      }
    }
    if (found) {
      found.focus();
    }
  }

  function isInUse() {
    var selected = window.getSelection ? String(window.getSelection()) : '';
    return isPaused || document.hidden || selected !== '';
  }

  function show(text) {
    var other = new DOMParser().parseFromString(text, 'text/html');
    var fresh = other.getElementById('live');
    if (!fresh) {
      say('not up to date: the page has changed; load it again', true);
      return;
    }
    var place = placeOfFocus();
    var left = [], sheets = live.querySelectorAll('.sheet, .text'), i;
    for (i = 0; i < sheets.length; i++) {
      left.push([sheets[i].scrollLeft, sheets[i].scrollTop]);
    }
    live.innerHTML = fresh.innerHTML;
    sheets = live.querySelectorAll('.sheet, .text');
    for (i = 0; i < sheets.length && i < left.length; i++) {
      sheets[i].scrollLeft = left[i][0];
      sheets[i].scrollTop = left[i][1];
    }
    focusAgain(place);
    say(other.getElementById('as-of').textContent, false);
  }

  function renew() {
    if (isInUse()) {
      window.setTimeout(renew, 1000);
      return;
    }
    var request = new XMLHttpRequest();
    request.onreadystatechange = function () {
      if (request.readyState !== 4) {
        return;
      }
      if (request.responseText && String(request.getResponseHeader('Content-Type')).indexOf('text/html') === 0) {
        if (!isInUse()) {
          show(request.responseText);
        }
      } else {
        say('not up to date: the status page does not answer', true);
      }
      window.setTimeout(renew, SECONDS * 1000);
    };
    request.open('GET', window.location.href, true);
    request.send();
  }

  pause.hidden = false;
  pause.onclick = function () {
    isPaused = !isPaused;
    pause.textContent = isPaused ? 'Continue' : 'Pause';
    pause.setAttribute('aria-pressed', isPaused ? 'true' : 'false');
    clock.className = isPaused ? 'live old' : 'live';
  };
  window.setTimeout(renew, SECONDS * 1000);
}());
