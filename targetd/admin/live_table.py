"""The table of `targetdctl stats` and `top`, and the loop of `top`, which shows it in place.

May import base and admin. The terminal needs the escape sequences of the VT100 only (cursor home, erase
line, erase below, reverse): no curses, which not every Python has.
"""

import os
import select
import shutil
import signal
import sys
import termios
import time
import tty

from targetd.admin.rates import BY
from targetd.errors import TargetdError

#: heading, key, width, function of the value. One blank separates two columns.
COLUMNS = (
    ('IOPS', 'iops', 6, lambda value: _number(value)),
    ('RMB/s', 'read_rate', 6, lambda value: _number(value / 1e6)),
    ('WMB/s', 'write_rate', 6, lambda value: _number(value / 1e6)),
    ('P50', 'p50', 5, lambda value: _time(value)),
    ('P99', 'p99', 5, lambda value: _time(value)),
    ('QUE', 'queue', 4, lambda value: _count(value)),
    ('ERR', 'errors', 4, lambda value: _count(value)),
    ('CPU%', 'cpu', 5, lambda value: _number(value)),
    ('MEM', 'memory', 5, lambda value: _size(value)),
)
_WIDTH_OF_NUMBERS = sum(width + 1 for _, _, width, _ in COLUMNS)
_SHORTEST_NAME = 20

#: The keys of `top` that choose the column to sort by: key -> (what, key of a row).
SORTS = {
    'i': ('IOPS', 'iops'),
    'r': ('read', 'read_rate'),
    'w': ('write', 'write_rate'),
    'l': ('latency', 'p99'),
    'd': ('queue', 'queue'),
    'e': ('errors', 'errors'),
    'c': ('CPU', 'cpu'),
    'm': ('memory', 'memory'),
    'n': ('name', 'name'),
}
#: From the start to the first rates.
FIRST_SECONDS = 0.5
HELP = 'i r w l d e c m n: sort   b: sessions, LUNs, targets, initiators   q: quit'


def _number(value):
    """At most 6 characters: '0', '8.3', '1250', '125k'."""
    if value >= 1e5:
        return '%dk' % (value / 1e3) if value < 1e8 else '%dM' % (value / 1e6)
    if value >= 100 or value == int(value):
        return '%d' % round(value)
    return '%.1f' % value


def _count(value):
    """At most 4 characters: '256', '12k', '3M'."""
    if value < 1000:
        return '%d' % value
    return '%dk' % (value / 1e3) if value < 1e6 else '%dM' % (value / 1e6)


def _time(microseconds):
    """At most 5 characters: '85us', '1.3ms', '12s'."""
    if microseconds < 1000:
        return '%dus' % microseconds
    for unit, size in (('ms', 1e3), ('s', 1e6)):
        if microseconds < 1000 * size:
            value = microseconds / size
            return ('%.1f%s' if value < 10 else '%d%s') % (value, unit)
    return '>999s'


def _size(count):
    """At most 5 characters: '850K', '12M', '1.5G'."""
    value, units = float(count) / 1024, 'KMGT'
    while value >= 1000 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return ('%.1f%s' if value < 10 else '%d%s') % (value, units[0])


def sorted_rows(rows, key):
    """The rows, the largest value first; names in their order."""
    if key == 'name':
        return sorted(rows, key=lambda row: row['name'])
    return sorted(rows, key=lambda row: (-(row[key] or 0), row['name']))


def _shortened(name, width):
    """The beginning and the end of a name: iSCSI names of one site differ at the end."""
    name = ''.join(c if c.isprintable() else '?' for c in name)
    if len(name) <= width:
        return name
    number, blank, rest = name.partition(' ')
    begin = number + blank if blank else ''
    return (begin + '..' + rest[-max(1, width - len(begin) - 2) :] if blank else '')[
        :width
    ] or '..' + name[2 - width :]


def table(rows, by, width=80):
    """The lines of the table; width None: names are not shortened."""
    longest = max([len(row['name']) for row in rows] + [_SHORTEST_NAME])
    room = longest if width is None else min(longest, max(12, width - _WIDTH_OF_NUMBERS))
    lines = [by.upper().ljust(room) + ''.join(' ' + h.rjust(w) for h, _, w, _ in COLUMNS)]
    for row in rows:
        cells = [
            ('-' if row[key] is None else shown(row[key])).rjust(w) for _, key, w, shown in COLUMNS
        ]
        lines.append(_shortened(row['name'], room).ljust(room) + ''.join(' ' + c for c in cells))
    return lines


class Top(object):
    """The loop of `top`. sample(by) -> (rows, message): called once an interval; it may raise
    TargetdError, which is shown until the next one succeeds."""

    def __init__(self, sample, by, seconds, sort='iops'):
        self._sample = sample
        self._by = by
        self._seconds = seconds
        self._sort = sort
        self._rows = []
        self._message = ''

    def run(self):
        """Show the table until 'q' is pressed. Raises TargetdError without a terminal."""
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise TargetdError('top needs a terminal; use targetdctl stats')
        source = sys.stdin.fileno()
        before = termios.tcgetattr(source)
        former = signal.signal(signal.SIGTERM, _interrupt)
        try:
            tty.setcbreak(source)
            self._write('\x1b[2J')
            self._loop(source)
        except KeyboardInterrupt:
            pass
        finally:
            signal.signal(signal.SIGTERM, former)
            termios.tcsetattr(source, termios.TCSADRAIN, before)
            self._write('\n')

    def _loop(self, source):
        self._take_sample()
        due = time.monotonic() + FIRST_SECONDS
        while True:
            if time.monotonic() >= due:
                self._take_sample()
                due = time.monotonic() + self._seconds
            self._draw()
            readable, _, _ = select.select([source], [], [], max(0.0, due - time.monotonic()))
            if readable:
                keys = os.read(source, 64).decode('ascii', 'replace')
                if not keys or 'q' in keys.lower():
                    return
                for key in keys:
                    self._press(key)

    def _press(self, key):
        if key == 'b':
            self._by = BY[(BY.index(self._by) + 1) % len(BY)]
            self._take_sample()
        elif key in SORTS:
            self._sort = SORTS[key][1]

    def _take_sample(self):
        try:
            self._rows, self._message = self._sample(self._by)
        except TargetdError as e:
            self._rows, self._message = [], str(e)

    def _draw(self):
        width, height = shutil.get_terminal_size()
        sort = next(what for what, key in SORTS.values() if key == self._sort)
        lines = table(sorted_rows(self._rows, self._sort), self._by, width)
        first = 'targetd %s   sorted by %s' % (time.strftime('%H:%M:%S'), sort)
        body = [first, self._message or HELP] + lines[: max(1, height - 3)]
        if not self._rows and not self._message:
            body.append('no session has sent a command')
        body[2] = '\x1b[7m' + body[2][:width] + '\x1b[0m'
        text = ''.join(
            '\x1b[2K%s\n' % (line if line.startswith('\x1b') else line[:width]) for line in body
        )
        self._write('\x1b[H' + text + '\x1b[J')

    @staticmethod
    def _write(text):
        sys.stdout.write(text)
        sys.stdout.flush()


def _interrupt(_number, _frame):
    raise KeyboardInterrupt()
