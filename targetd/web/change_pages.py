"""The pages of a login, and the forms that change something. A form counts only with the cookie of a login
and the token that its page carried (guard).
"""

import bottle

from targetd.errors import TargetdError
from targetd.web import forms, views, visitors


def _redirect(path):
    bottle.response.status = 303
    bottle.response.set_header('Location', path)
    return ''


def _local(path):
    """The path if it is one of this page, else that of the overview."""
    is_ours = path.startswith('/') and not path.startswith('//') and '\\' not in path
    return path if is_ours and path.isprintable() and len(path) < 2000 else '/'


def _set_cookie(value, seconds):
    # bottle.set_cookie knows SameSite only with newer versions of it and of Python
    bottle.response.add_header('Set-Cookie', '%s=%s; Path=/; Max-Age=%d; HttpOnly; SameSite=Strict' % (
        visitors.COOKIE, value, seconds))  # fmt: skip


class ChangePages(object):
    """pages: pages.Pages."""

    def __init__(self, pages):
        self._pages = pages
        self._logins = pages.logins

    def _require_changes(self):
        if not self._logins.allows_changes:
            raise views.refusal(
                403, 'This page is read-only; start targetdctl web with --allow-changes.'
            )

    def login(self):
        self._require_changes()
        path = _local(bottle.request.query.getunicode('next') or '/')
        return self._show_login('', path)

    def _show_login(self, problem, path):
        return self._pages.show('Log in', 'login', '', is_live=False, problem=problem, next=path)

    def post_login(self):
        self._require_changes()
        token = (bottle.request.forms.getunicode('token') or '').strip()
        path = _local(bottle.request.forms.getunicode('next') or '/')
        if self._logins.is_blocked():
            bottle.response.status = 429
            return self._show_login(
                'There were too many wrong tokens; try again in a minute.', path
            )
        cookie = self._logins.log_in(token)
        if cookie is None:
            bottle.response.status = 403
            return self._show_login('That is not the token.', path)
        _set_cookie(cookie, visitors.SESSION_SECONDS)
        return _redirect(path)

    def post_logout(self):
        cookie = self._checked_cookie()
        self._logins.log_out(cookie)
        _set_cookie('', 0)
        return _redirect('/')

    def _checked_cookie(self):
        """The cookie of a form that may be executed."""
        self._require_changes()
        cookie = bottle.request.get_cookie(visitors.COOKIE)
        token = bottle.request.forms.getunicode('form-token') or ''
        if not self._logins.is_form_token(cookie, token):
            raise views.refusal(
                403,
                'The login has ended, or the form came from another page; log in and send it again.',
            )
        return cookie

    def _row(self, name):
        row = forms.row_of(name)
        if row is None:
            raise views.refusal(404, 'There is no such command here; use targetdctl.')
        return row

    def change(self, name):
        self._require_changes()
        row = self._row(name)
        if self._pages.cookie is None:
            path = bottle.request.path + (
                '?' + bottle.request.query_string if bottle.request.query_string else ''
            )
            return _redirect('/login?next=' + bottle.urlquote(path, safe=''))
        values = {a.name: bottle.request.query.getunicode(a.name) or '' for a in row.arguments}
        return self._show(name, row, values)

    def _show(self, name, row, values, problem='', preview=None):
        return self._pages.show(
            forms.title_of(row), 'change', forms.back_of(name), is_live=False, command=name,
            text=forms.text_of(row), fields=forms.fields(row, values), problem=problem, preview=preview,
            verb=forms.verb_of(row), has_preview=forms.has_preview(row), back=forms.back_of(name),
        )  # fmt: skip

    def post_change(self, name):
        row = self._row(name)
        cookie = self._checked_cookie()
        sent = bottle.request.forms
        values = {a.name: sent.getunicode(a.name) or '' for a in row.arguments}
        is_preview = sent.get('do') == 'preview' and forms.has_preview(row)
        try:
            arguments, made = forms.request_of(row, values, is_preview)
            reply = self._pages.source.change(name, arguments)
        except TargetdError as e:
            bottle.response.status = 409
            return self._show(name, row, values, problem=str(e))
        if is_preview:
            return self._show(name, row, values, preview=forms.steps_of(reply))
        self._logins.say(cookie, forms.outcome(row, reply, made))
        return _redirect(forms.back_of(name))


def add_to(app, pages):
    """Add the pages to a Bottle application."""
    ours = ChangePages(pages)
    app.route('/login', 'GET', ours.login)
    app.route('/login', 'POST', ours.post_login)
    app.route('/logout', 'POST', ours.post_logout)
    app.route('/change/<name>', 'GET', ours.change)
    app.route('/change/<name>', 'POST', ours.post_change)
