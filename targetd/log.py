"""The log: lines that go to stderr, to the log writer or to the master. Base: any module may import it
except those of the pure iscsi/, isns/ and scsi/.

     master, jobs --lines--> queue (a pipe) --> log writer (master.processes.log_writer) --> file, syslog
     worker --reports--> master

No caller waits for the log. The queue is a pipe whose descriptor does not block: a record is written
whole or, while the pipe is full, counted and dropped. A worker has no descriptor of the log:
`start_remote()` makes it send its lines to the master. Before `start_queue()` all lines go to stderr.
Any thread may write; the functions that change the destination are for the master's only thread.

Lines that a peer can cause have a budget for each kind (the text before its values are inserted) and
origin; what is beyond it is counted and reported by report_suppressed().
"""

import os
import sys
import time
import traceback

DEBUG, INFO, WARNING, ERROR = range(4)
LEVELS = {'debug': DEBUG, 'info': INFO, 'warning': WARNING, 'error': ERROR}
WORDS = ('debug: ', '', 'warning: ', 'error: ')
MAXIMUM_LINE = 4000  # characters; bounds what a peer can write into the log
MAXIMUM_RECORD = 4096  # bytes; a pipe takes so many as a whole or not at all (PIPE_BUF)
MAXIMUM_KIND = 200  # characters

SUPPRESSED_SECONDS = 10.0  # a count of suppressed lines is reported when it is so old
MAXIMUM_KEYS = 1000


class Budget(object):
    """How many lines may be written now: `at_once`, and per_second more each second."""

    __slots__ = ('at_once', 'per_second', 'left', 'since')

    def __init__(self, at_once, per_second, now):
        self.at_once, self.per_second = at_once, per_second
        self.left, self.since = float(at_once), now

    def take(self, now, cost=1.0):
        """Use up one line. Returns False if none is left."""
        earned = (now - self.since) * self.per_second
        self.left, self.since = min(float(self.at_once), self.left + earned), now
        if self.left < cost:
            return False
        self.left -= cost
        return True


class Limiter(object):
    """A Budget for each key, and one for all keys. Counts the lines that it does not allow."""

    def __init__(self, at_once, per_second, all_at_once, all_per_second):
        self.at_once, self.per_second = at_once, per_second
        self._all = Budget(all_at_once, all_per_second, 0.0)
        self._budgets = {}  # key -> Budget
        self._suppressed = {}  # key -> [count, since, level, last line]

    def allows(self, key, level, line, now):
        """True if this line may be written; otherwise it is counted."""
        budget = self._budgets.get(key)
        if budget is None:
            if len(self._budgets) >= MAXIMUM_KEYS:
                self._forget_full(now)
            budget = self._budgets[key] = Budget(self.at_once, self.per_second, now)
        if budget.take(now) and self._all.take(now):
            return True
        if key not in self._suppressed and len(self._suppressed) >= MAXIMUM_KEYS:
            key = None  # the kinds are too many: the rest is counted together
        counted = self._suppressed.setdefault(key, [0, now, level, line])
        counted[0] += 1
        counted[2:] = [level, line]
        return False

    def _forget_full(self, now):
        """Forget the keys whose budget is whole again, or all if there are none."""
        full = [k for k, b in self._budgets.items() if (now - b.since) * b.per_second >= b.at_once]
        for key in full or list(self._budgets):
            del self._budgets[key]

    def collect(self, now, age):
        """[(count, level, last line)] of what was suppressed since at least `age` seconds; it is
        counted anew from now on."""
        old = [k for k, counted in list(self._suppressed.items()) if now - counted[1] >= age]
        found = [self._suppressed.pop(key, None) for key in old]
        return [(c[0], c[2], c[3]) for c in found if c is not None]

    @property
    def has_suppressed(self):
        """True if lines are counted that were not reported yet."""
        return bool(self._suppressed)


class _Log(object):
    """The destination of the lines. `kind`: 'stderr', 'queue' or 'remote'; `descriptor`: of the
    queue."""

    def __init__(self):
        self.kind = 'stderr'
        self.descriptor = None
        self.level = INFO
        self.name = 'targetd'
        self.send = None
        self.finish = None
        self.dropped = 0  # lines that the full queue did not take
        self.on_loss = None  # called after a line was dropped or suppressed
        self.limiter = Limiter(300, 2, 5000, 100)


_log = _Log()
# Loads the codec now, because a worker may run as a user that cannot read the Python library.
'\0'.encode('unicode_escape')


def start_queue(descriptor, finish):
    """Write records to this pipe from now on. finish(): closes it, and waits until the lines in it
    are written, or for a limited time."""
    _log.kind, _log.descriptor, _log.finish = 'queue', descriptor, finish


def start_remote(send):
    """Pass each line to send(level, text, kind) from now on: a worker has no log of its own."""
    _log.kind, _log.descriptor, _log.send, _log.on_loss = 'remote', None, send, None
    _log.limiter = Limiter(20, 1, 200, 20)


def stop():
    """Finish the queue and log to stderr from now on."""
    finish = _log.finish
    _log.kind, _log.descriptor, _log.finish, _log.on_loss = 'stderr', None, None, None
    if finish is not None:
        finish()


def descriptor():
    """Return the descriptor of the queue, or None."""
    return _log.descriptor


def set_level(level):
    """Write lines of this level ('debug', 'info', 'warning', 'error') and above from now on."""
    _log.level = LEVELS[level]


def on_loss(callback):
    """Call this after a line was dropped or suppressed, so that report_suppressed() is called later."""
    _log.on_loss = callback


def is_debug():
    """Return True if debug lines are written. Check it before an expensive line is built."""
    return _log.level <= DEBUG


def debug(text, *values):
    """Log details that help to find a fault."""
    _write(DEBUG, text, values)


def info(text, *values, origin=None):
    """Log an event: a login, a logout, a reload. origin: the address that caused it, if it is to be
    limited."""
    _write(INFO, text, values, origin)


def warning(text, *values, origin=None):
    """Log a problem that does not stop the operation. origin: as in info()."""
    _write(WARNING, text, values, origin)


def error(text, *values, origin=None):
    """Log a failure of an operation. origin: as in info()."""
    _write(ERROR, text, values, origin)


def exception(text, *values):
    """Log an error with the traceback of the exception that is being handled."""
    if not _write(ERROR, text, values):
        return
    for line in traceback.format_exc().rstrip().split('\n'):
        _emit(ERROR, '    ' + line, 'a traceback')


def printable(text):
    """Return the text with escapes for the characters that could forge or break a line (control
    characters, lone surrogates)."""
    shown = text
    if not text.isprintable():
        shown = ''.join(
            c if c.isprintable() else c.encode('unicode_escape').decode('ascii') for c in text
        )
    return shown if len(shown) <= MAXIMUM_LINE else shown[:MAXIMUM_LINE] + ' …'


def report_suppressed(age=SUPPRESSED_SECONDS):
    """Log how many lines were dropped, and how many were suppressed since at least `age` seconds.
    Returns True if there is more to report later."""
    if _log.kind == 'queue':
        _has_reported_dropped()
    for count, level, line in _log.limiter.collect(time.monotonic(), age):
        _emit(max(level, INFO), suppressed_text(count, line), 'suppressed')
    return bool(_log.dropped) or _log.limiter.has_suppressed


def suppressed_text(count, line):
    """The line that stands for `count` lines that were suppressed, the last of which was `line`."""
    return '%d messages suppressed, the last: %s' % (count, line)


def _write(level, text, values, origin=None):
    """Returns False if the line is not wanted or not allowed."""
    if level < _log.level:
        return False
    line = text % values if values else text
    is_limited = origin is not None or _log.kind == 'remote' and level > DEBUG
    if is_limited:
        now = time.monotonic()
        if _log.kind == 'remote' and _log.limiter.has_suppressed:
            report_suppressed()
        if not _log.limiter.allows((text, origin), level, line, now):
            _lost()
            return False
    _emit(level, line, text)
    return True


def _emit(level, line, kind):
    if _log.kind == 'remote':
        clean = line[:MAXIMUM_LINE].encode('utf-8', 'backslashreplace').decode('utf-8')
        _log.send(level, clean, kind[:MAXIMUM_KIND])
    else:
        write_line(level, line, os.getpid())


def write_line(level, text, pid):
    """Write a line of this level that the process `pid` logs."""
    if _log.kind == 'queue':
        if not _has_reported_dropped() or not _put(level, text, pid):
            _log.dropped += 1
            _lost()
        return
    line = '%s: %s\n' % (_log.name, printable(WORDS[level] + text))
    try:
        os.write(2, line.encode('utf-8', 'backslashreplace'))
    except OSError:  # a full disk or a closed terminal must not stop the service
        pass
    if sys.stderr is not None:
        sys.stderr.flush()


def _has_reported_dropped():
    """Report the lines that the queue did not take. Returns False if it does not take this either."""
    if _log.dropped:
        text = '%d messages suppressed, because the log did not take them in time' % _log.dropped
        if not _put(WARNING, text, os.getpid()):
            return False
        _log.dropped = 0
    return True


def _put(level, text, pid):
    """Write one record: level, process, seconds, text. Returns False if the queue is full or has no
    reader."""
    line = printable(WORDS[level] + text).encode('utf-8', 'backslashreplace')
    head = b'%d %d %d ' % (level, pid, time.time())
    line = line[: MAXIMUM_RECORD - len(head) - 1].decode('utf-8', 'ignore').encode('utf-8')
    try:
        os.write(_log.descriptor, head + line + b'\n')
    except OSError:
        return False
    return True


def _lost():
    if _log.on_loss is not None:
        _log.on_loss()
