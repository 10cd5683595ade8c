"""The log: lines to syslog, to stderr or to a file. Base: any module may import it except those of the
pure iscsi/, isns/ and scsi/.

Each line is one write, so the lines of the master and of its jobs, which share the open file, never
mix. A worker has no descriptor of the log: `start_remote()` makes it send its lines to the master.
After a rotation the master opens the file again with `reopen()`. Before `start()` all lines go to
stderr. Any thread may write.
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
MAXIMUM_LINE = 4000  # characters; bounds what a peer can write into the log


class _Log(object):
    """The destination of the lines. `kind`: 'syslog', 'stderr' or 'file'; `descriptor`: of the file,
    the same number for the life of the process."""

    def __init__(self):
        self.kind = 'stderr'
        self.path = None
        self.descriptor = None
        self.level = INFO
        self.name = 'targetd'
        self.facility = syslog.LOG_DAEMON
        self.send = None


_log = _Log()
# Loads the codec now, because a worker may run as a user that cannot read the Python library.
'\0'.encode('unicode_escape')


def start(where='stderr', level='info', name='targetd', facility='daemon'):
    """Log to 'syslog', 'stderr' or the file with this path from now on. level: one of LEVELS;
    facility: of syslog, in lower case. Raises OSError if the file cannot be opened; then the log is
    unchanged.
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


def try_place(where):
    """Raise OSError if the log cannot be written to this place. Changes nothing."""
    if where not in ('syslog', 'stderr'):
        is_new = not os.path.exists(where)
        os.close(_open(where))
        if is_new:
            os.unlink(where)


def start_remote(send):
    """Pass each line to send(level, text) from now on: a worker has no log of its own."""
    _log.kind, _log.path, _log.descriptor, _log.send = 'remote', None, None, send


def stop():
    """Close the file or syslog and log to stderr from now on."""
    if _log.descriptor is not None:
        os.close(_log.descriptor)
    elif _log.kind == 'syslog':
        syslog.closelog()
    _log.kind, _log.path, _log.descriptor = 'stderr', None, None


def descriptor():
    """Return the log file's descriptor; None if the log is not a file."""
    return _log.descriptor


def reopen():
    """Open the log file again by its path after a rotation. The descriptor keeps its number. Raises
    OSError."""
    if _log.kind == 'file':
        adopt(_open(_log.path))
    elif _log.kind == 'syslog':
        syslog.closelog()
        syslog.openlog(_log.name, syslog.LOG_PID, _log.facility)


def adopt(new):
    """Write to this new descriptor of the log file from now on. The descriptor is duplicated and
    closed."""
    if _log.descriptor is None:
        os.close(new)
        return
    os.dup2(new, _log.descriptor, inheritable=False)
    os.close(new)


def set_level(level):
    """Write lines of this level ('debug', 'info', 'warning', 'error') and above from now on."""
    _log.level = LEVELS[level]


def is_debug():
    """Return True if debug lines are written. Check it before an expensive line is built."""
    return _log.level <= DEBUG


def debug(text, *values):
    """Log details that help to find a fault."""
    _write(DEBUG, text, values)


def info(text, *values):
    """Log an event: a login, a logout, a reload."""
    _write(INFO, text, values)


def warning(text, *values):
    """Log a problem that does not stop the operation."""
    _write(WARNING, text, values)


def error(text, *values):
    """Log a failure of an operation."""
    _write(ERROR, text, values)


def exception(text, *values):
    """Log an error with the traceback of the exception that is being handled."""
    _write(ERROR, text, values)
    for line in traceback.format_exc().rstrip().split('\n'):
        _write(ERROR, '    %s', (line,))


def _open(path):
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)


def printable(text):
    """Return the text with escapes for the characters that could forge or break a line (control
    characters, lone surrogates)."""
    shown = ''.join(
        c if c.isprintable() else c.encode('unicode_escape').decode('ascii') for c in text
    )
    return shown if len(shown) <= MAXIMUM_LINE else shown[:MAXIMUM_LINE] + ' …'


def _write(level, text, values):
    if level < _log.level:
        return
    text = text % values if values else text
    if _log.kind == 'remote':
        _log.send(level, text[:MAXIMUM_LINE].encode('utf-8', 'backslashreplace').decode('utf-8'))
    else:
        write_line(level, text, os.getpid())


def write_line(level, text, pid):
    """Write a line of this level that the process `pid` logs."""
    line = printable(WORDS[level] + text)
    if _log.kind == 'syslog':
        syslog.syslog(PRIORITIES[level], line)
        return
    if _log.kind == 'file':
        line = '%s %s[%d] %s' % (time.strftime('%Y-%m-%d %H:%M:%S'), _log.name, pid, line)
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
