"""Who may use the status page: the names by which it may be called, the headers of its answers, logins and
the tokens of its forms.

Pure but for the clock and the random numbers, which are arguments of the constructor for tests.
"""

import hashlib
import hmac
import os
import re
import time

SESSION_SECONDS = 12 * 3600.0
MOST_SESSIONS = 32
FAILURES = (
    10  # failed logins within FAILURE_SECONDS, of all clients together, end the logins for a while
)
FAILURE_SECONDS = 60.0
SHORTEST_TOKEN = 16  # characters
COOKIE = 'targetd-session'

#: Of every answer. The page loads nothing but its own style sheet and script.
HEADERS = (
    (
        'Content-Security-Policy',
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    ('X-Content-Type-Options', 'nosniff'),
    ('X-Frame-Options', 'DENY'),
    ('Referrer-Policy', 'same-origin'),
    ('Cross-Origin-Resource-Policy', 'same-origin'),
)

LOOPBACK_NAMES = ('localhost', '127.0.0.1', '::1')


def host_of(header):
    """The name in a Host header, in lower case, without the port and the brackets of IPv6; '' if it is
    malformed."""
    match = re.match(r'^(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9_.-]+))(?::[0-9]{1,5})?$', header or '')
    return (match.group(1) or match.group(2)).lower().rstrip('.') if match else ''


def allowed_hosts(address, names):
    """The names by which a browser may call a page that listens on this address.

    A page of another site whose name resolves to this host (DNS rebinding) uses its own name, which is
    refused. names: further ones, which the administrator has allowed.
    """
    found = {name.lower().rstrip('.') for name in names}
    return found | set(LOOPBACK_NAMES) | {address.lower()}


def is_same_origin(origin, host):
    """True if the Origin header of a request, if there is one, is that of the page with this Host."""
    return not origin or origin.lower() in ('http://' + host.lower(), 'https://' + host.lower())


def digest(token):
    """What is kept of a token."""
    return hashlib.sha256(token.encode('utf-8')).hexdigest()


class Logins(object):
    """The browsers that have logged in with the token. token_digest: digest() of the token, or None if the
    page is read-only."""

    def __init__(self, token_digest, clock=time.monotonic, random=os.urandom):
        self._digest = token_digest
        self._clock = clock
        self._random = random
        self._sessions = {}  # digest of the cookie -> when it ends
        self._said = {}  # digest of the cookie -> text
        self._failures = []
        self._key = random(32)

    @property
    def allows_changes(self):
        return self._digest is not None

    def is_blocked(self):
        """True if there were too many failed logins lately."""
        now = self._clock()
        self._failures = [when for when in self._failures if now - when < FAILURE_SECONDS]
        return len(self._failures) >= FAILURES

    def log_in(self, token):
        """The value of the cookie, or None if the token is not the right one."""
        if self._digest is None or self.is_blocked():
            return None
        if not hmac.compare_digest(digest(token), self._digest):
            self._failures.append(self._clock())
            return None
        self._forget_old()
        cookie = self._random(24).hex()
        self._sessions[digest(cookie)] = self._clock() + SESSION_SECONDS
        return cookie

    def _forget_old(self):
        now = self._clock()
        self._sessions = {key: end for key, end in self._sessions.items() if end > now}
        self._said = {key: text for key, text in self._said.items() if key in self._sessions}
        while len(self._sessions) >= MOST_SESSIONS:
            del self._sessions[min(self._sessions, key=self._sessions.get)]

    def is_logged_in(self, cookie):
        """True if the cookie is that of a login."""
        end = self._sessions.get(digest(cookie)) if cookie else None
        return self._digest is not None and end is not None and end > self._clock()

    def log_out(self, cookie):
        """End a login; its cookie is worth nothing any more."""
        self._sessions.pop(digest(cookie), None)
        self._said.pop(digest(cookie), None)

    def say(self, cookie, text):
        """Show a text on the next page of this login; it may contain a generated secret."""
        self._said[digest(cookie)] = text

    def take_said(self, cookie):
        """The text to show, once; '' if there is none."""
        return self._said.pop(digest(cookie), '') if cookie else ''

    def form_token(self, cookie):
        """What each form of this login carries, and a page of another site cannot know."""
        return hmac.new(self._key, cookie.encode('utf-8'), hashlib.sha256).hexdigest()

    def is_form_token(self, cookie, token):
        """True if a form came from a page of this login."""
        expected = self.form_token(cookie or '').encode('ascii')
        return self.is_logged_in(cookie) and hmac.compare_digest(
            expected, token.encode('utf-8', 'replace')
        )
