"""What the page shows: replies of the server, kept for a second, so that many browsers cost the server no
more than one; and the thread that samples the counters for the graphs.
"""

import threading
import time

from targetd.admin.rates import Sample
from targetd.errors import EXIT_NOT_RUNNING, TargetdError
from targetd.host import process_usage
from targetd.web.samples import INTERVAL, History

FRESH_SECONDS = 1.0
#: For how long other replies are kept: `disks` looks at every disk.
SLOW = {'disks': 10.0}
MOST_KEPT = 100


class Source(object):
    """gate: gate.Gate or RelayedGate."""

    def __init__(self, gate, clock=time.monotonic):
        self._gate = gate
        self._clock = clock
        self._kept = {}  # (name, arguments) -> (when, reply)
        self._changes = 0
        self._lock = threading.Lock()

    def ask(self, name, **arguments):
        """The reply of a command that shows something, at most FRESH_SECONDS old. Raises TargetdError."""
        key = name, tuple(sorted(arguments.items()))
        with self._lock:
            kept, changes = self._kept.get(key), self._changes
        if kept and self._clock() - kept[0] < SLOW.get(name, FRESH_SECONDS):
            return kept[1]
        reply = self._gate.execute(dict(arguments, command=name))  # a slow one delays no other
        with self._lock:
            if changes != self._changes:
                return reply  # it may be older than a change that was made meanwhile
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            self._kept[key] = self._clock(), reply
            return reply

    def rows(self, name, **arguments):
        """The rows of the reply."""
        return self.ask(name, **arguments).get('rows', [])

    def change(self, name, arguments):
        """The reply of a command that changes something. Raises TargetdError."""
        try:
            return self._gate.execute(dict(arguments, command=name))
        finally:
            with self._lock:
                self._changes += 1
                self._kept.clear()


class Sampler(object):
    """Takes a sample every few seconds, in a thread of its own; other threads read the series."""

    def __init__(self, source, interval=INTERVAL):
        self._source = source
        self._interval = interval
        self._lock = threading.Lock()
        self._history = History()

    def start(self):
        """Sample in a thread of its own, until the process ends."""
        thread = threading.Thread(target=self._run)
        thread.daemon = True
        thread.start()

    def _run(self):
        while True:
            self.take()
            time.sleep(self._interval)

    def take(self):
        """Take one sample; failures are shown by the pages themselves."""
        try:
            rows = self._source.rows('show-counters')
            usage = {pid: process_usage.usage(pid) for pid in {r['pid'] for r in rows} - {None}}
        except TargetdError:
            with self._lock:
                self._history.failed()
            return
        with self._lock:
            self._history.add(Sample(time.monotonic(), rows, usage), time.time())

    def points(self, kind, name):
        """See samples.History.points."""
        with self._lock:
            return self._history.points(kind, name)

    def latest(self, kind, name):
        """See samples.History.latest."""
        with self._lock:
            return self._history.latest(kind, name, time.time())


def is_not_running(error):
    """True if a TargetdError means that no server runs."""
    return getattr(error, 'exit_code', None) == EXIT_NOT_RUNNING
