"""The log: plain words to syslog, to stderr or to a file. Base: may be imported by anyone but the
pure iscsi/ and scsi/.

One line is one write, so lines of the master and of all workers, who share the open file, never
mix. A file that is rotated away is opened again by `reopen()` in the master; a worker, who may not
open it any more, is handed the new descriptor and calls `adopt()`. Before `start()` everything goes
to stderr. Any thread may write.
"""

import os
import sys
import syslog
import time
import traceback

DEBUG, INFO, WARNING, ERROR = range(4)
LEVELS = {'debug': DEBUG, 'info': INFO, 'warning': WARNING, 'error': ERROR}
PRIORITIES = (syslog.LOG_DEBUG, syslog.LOG_INFO, syslog.LOG_WARNING, syslog.LOG_ERR)
WORDS = ('debug: ', '', 'warning: ', 'error: ')
MAXIMUM_LINE = 4000  # what a peer can make us say is bounded


class _Log(object):
    """Where lines go. `kind`: 'syslog', 'stderr' or 'file'; `descriptor`: of the file, kept for the
    life of the process."""

    def __init__(self):
        self.kind = 'stderr'
        self.path = None
        self.descriptor = None
        self.level = INFO
        self.name = 'targetd'
        self.facility = syslog.LOG_DAEMON


_log = _Log()
# loads the codec now: a worker may be a user that can read no library
'\0'.encode('unicode_escape')


def start(where='stderr', level='info', name='targetd', facility='daemon'):
    """Log to 'syslog', 'stderr' or the file with this path from now on. level: of LEVELS; facility:
    of syslog, in lower case. Raises OSError if the file cannot be opened; then nothing has changed.
    """
    descriptor = None
    if where not in ('syslog', 'stderr'):
        descriptor = _open(where)
    stop()
    _log.level = LEVELS[level]
    _log.name = name
    _log.facility = getattr(syslog, 'LOG_' + facility.upper(), syslog.LOG_DAEMON)
    if descriptor is not None:
        _log.kind, _log.path, _log.descriptor = 'file', where, descriptor
    elif where == 'syslog':
        syslog.openlog(name, syslog.LOG_PID, _log.facility)
        _log.kind = 'syslog'
    else:
        _log.kind = 'stderr'


def stop():
    """Back to stderr; the file is closed."""
    if _log.descriptor is not None:
        os.close(_log.descriptor)
    elif _log.kind == 'syslog':
        syslog.closelog()
    _log.kind, _log.path, _log.descriptor = 'stderr', None, None


def descriptor():
    """The log file's descriptor, for a worker's adopt(); None when the log is no file."""
    return _log.descriptor


def reopen():
    """Open the log file again under its name (it was rotated). The descriptor's number stays.
    Raises OSError."""
    if _log.kind == 'file':
        adopt(_open(_log.path))
    elif _log.kind == 'syslog':
        syslog.closelog()
        syslog.openlog(_log.name, syslog.LOG_PID, _log.facility)


def adopt(new):
    """Write to this descriptor, of the same log, from now on; it is closed under its own number."""
    if _log.descriptor is None:
        os.close(new)
        return
    os.dup2(new, _log.descriptor, inheritable=False)
    os.close(new)


def set_level(level):
    """From now on, say what is of this level ('debug', 'info', 'warning', 'error') and above."""
    _log.level = LEVELS[level]


def is_debug():
    """True when debug lines are written: ask before you build an expensive one."""
    return _log.level <= DEBUG


def debug(text, *values):
    """What only somebody who looks for a fault wants to read."""
    _write(DEBUG, text, values)


def info(text, *values):
    """What happens: logins, logouts, reloads."""
    _write(INFO, text, values)


def warning(text, *values):
    """What goes on, but should not be so."""
    _write(WARNING, text, values)


def error(text, *values):
    """What does not go on."""
    _write(ERROR, text, values)


def exception(text, *values):
    """An error with the traceback of the exception that is being handled."""
    _write(ERROR, text, values)
    for line in traceback.format_exc().rstrip().split('\n'):
        _write(ERROR, '    %s', (line,))


def _open(path):
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)


def printable(text):
    """The text with what could forge or break a line (control characters, lone surrogates) shown as
    escapes."""
    shown = ''.join(
        c if c.isprintable() else c.encode('unicode_escape').decode('ascii') for c in text
    )
    return shown if len(shown) <= MAXIMUM_LINE else shown[:MAXIMUM_LINE] + ' …'


def _write(level, text, values):
    if level < _log.level:
        return
    line = printable(WORDS[level] + (text % values if values else text))
    if _log.kind == 'syslog':
        syslog.syslog(PRIORITIES[level], line)
        return
    if _log.kind == 'file':
        line = '%s %s[%d] %s' % (time.strftime('%Y-%m-%d %H:%M:%S'), _log.name, os.getpid(), line)
        output = _log.descriptor
    else:
        line = '%s: %s' % (_log.name, line)
        output = 2
    try:
        os.write(output, (line + '\n').encode('utf-8', 'backslashreplace'))
    except OSError:  # a full disk or a closed terminal must not stop the service
        pass
    if sys.stderr is not None and output == 2:
        sys.stderr.flush()
