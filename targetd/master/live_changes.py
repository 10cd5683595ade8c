"""Writes the changes of targetdctl into targetdctl.d, in child processes: a reload that has an edit writes
live.conf before it applies anything, and takes it back if it then cannot apply the steps.

     reload: prepared --> put --> apply --> answer
                           |        +-- failed --> take_back --> refused
                           +-- failed: refused, nothing has changed
"""

import os
import pwd
import time
from collections import namedtuple

from targetd import log
from targetd.config import live_files
from targetd.errors import TargetdError

LOGIN_USER = '/proc/%d/loginuid'
NO_LOGIN_USER = 0xFFFFFFFF

#: Why a configuration is loaded. who: the user; what: the command, without secrets; edit: function of
#: sections (config.edits), or None for a reload.
Cause = namedtuple('Cause', 'who what edit')


def comment(cause):
    """The comment of the lines of live.conf that a Cause makes."""
    return '%s %s: %s' % (time.strftime('%Y-%m-%d %H:%M:%S'), cause.who, one_line(cause.what))


def one_line(text):
    """The text without characters that end a line or cannot be printed."""
    return ''.join(c if c.isprintable() else '?' for c in text)


def user_of(process, user_id):
    """'root', or 'anna as root' if the user who logged in on this host is another one."""
    name = _name(user_id)
    try:
        with open(LOGIN_USER % process) as f:
            login = int(f.read())
    except (OSError, ValueError):
        return name
    return name if login in (NO_LOGIN_USER, user_id) else '%s as %s' % (_name(login), name)


def _name(user_id):
    try:
        return one_line(pwd.getpwuid(user_id).pw_name).replace(':', '?')
    except (KeyError, OverflowError):
        return 'user %d' % user_id


class LiveChanges(object):
    """jobs: Jobs; state: ServerState."""

    def __init__(self, jobs, state):
        self.jobs = jobs
        self.state = state

    def put(self, loaded, done):
        """Write live.conf of a vault.Loaded; done(None or TargetdError)."""
        path, text = self.state.path, loaded.live
        self._run(lambda: live_files.put_in_place(path, text.content()), done, [text.descriptor])

    def take_back(self, done):
        """The change was not applied: restore the former live.conf; done(None or TargetdError)."""
        path = self.state.path
        self._run(lambda: live_files.take_back(path), done)

    def forget_former(self):
        """The change is in force."""
        path = self.state.path
        self._run(lambda: live_files.forget_former(path), lambda error: None)

    def _run(self, work, done, kept=()):
        def in_child():
            try:
                work()
            except TargetdError as e:
                return {'failed': str(e)}, ()
            return {}, ()

        def answered(result):
            if result.why:
                log.error('%s', result.why)
            done(TargetdError(result.why) if result.why else None)

        self.jobs.submit_job(('live', os.path.dirname(self.state.path)), in_child, answered, kept)
