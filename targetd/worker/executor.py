"""The threads that run work which would block, so that a connection's thread never waits for a disk.

May import base only. Work belongs to a *share*, which is the logical unit of a command. At most
`limit` threads run the work of one share at the same time, so a disk that hangs uses up only the
threads of its own unit. A thread is started when there is work that may run and no idle thread;
threads do not end. Any thread may call submit().
"""

import queue
import threading
from collections import deque

#: The threads need little stack. Old kernels count the default of 8 MiB of address space for each
#: thread as used memory.
STACK_BYTES = 512 << 10

#: Beyond this number, a thread is started only for a share that has no thread yet.
MOST_THREADS = 1024


class _Share(object):
    """running: number of threads that run its work, or will; waiting: the work beyond the limit."""

    __slots__ = ('running', 'waiting')

    def __init__(self):
        self.running = 0
        self.waiting = deque()


class Executor(object):
    """A pool of threads, at most `limit` for each share. Work is a callable and one argument; it must
    not raise."""

    def __init__(self, limit):
        self._limit = limit
        self._queue = getattr(queue, 'SimpleQueue', queue.Queue)()
        self._lock = threading.Lock()  # guards everything below
        self._shares = {}  # share -> _Share, while it has work
        self._threads = 0
        self._idle = 0  # threads that wait for the queue and that no entry is meant for
        self._without_thread = 0  # queued entries that no idle or new thread is meant for

    def submit(self, work, argument, share=None):
        """Run work(argument) in one of the threads. share: any hashable object. [any]"""
        with self._lock:
            mine = self._shares.get(share)
            if mine is None:
                mine = self._shares[share] = _Share()
            elif mine.running >= self._limit:
                mine.waiting.append((work, argument))
                return
            if self._idle:
                self._idle -= 1
            elif self._threads >= MOST_THREADS and mine.running or not self._has_started():
                self._without_thread += 1
            mine.running += 1
        self._queue.put((work, argument, share))

    def _has_started(self):
        """Start a thread. Returns False if the system has no more threads and others run, which take
        the work when they have finished theirs. Called with the lock held."""
        threading.stack_size(STACK_BYTES)
        thread = threading.Thread(target=self._run, name='executor-%d' % self._threads)
        thread.daemon = True
        try:
            thread.start()
        except RuntimeError:
            if not self._threads:
                raise
            return False
        self._threads += 1
        return True

    def _run(self):
        get = self._queue.get
        while True:
            work, argument, share = get()
            while work is not None:
                work(argument)
                work, argument = self._next(share)
            del work, argument, share

    def _next(self, share):
        """The work of a share was run. Returns more work of it for the same thread, or (None, None)."""
        with self._lock:
            mine = self._shares[share]
            if mine.waiting and not self._without_thread:
                return mine.waiting.popleft()
            if mine.waiting:  # work of another share was queued before
                self._queue.put(mine.waiting.popleft() + (share,))
                return None, None
            mine.running -= 1
            if not mine.running:
                del self._shares[share]
            if self._without_thread:
                self._without_thread -= 1
            else:
                self._idle += 1
            return None, None
