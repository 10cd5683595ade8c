"""The threads that run what would block, so that a connection's thread never waits for a disk.

May import base only. Threads start when there is work and no idle thread, up to the configured number, and then stay.
`submit` may be called by any thread; the work itself says where its result goes.
"""

import queue
import threading

#: A thread of ours needs little stack; the default of 8 MiB of address space each would be charged
#: on old kernels.
STACK_BYTES = 512 << 10


class Executor(object):
    """At most `limit` threads. Work is a callable and one argument; it must not raise."""

    def __init__(self, limit):
        self._limit = limit
        self._queue = getattr(queue, 'SimpleQueue', queue.Queue)()
        self._idle = threading.Semaphore(0)
        self._threads = []
        self._lock = threading.Lock()

    def submit(self, work, argument):
        """Run work(argument) in one of the threads. Any thread."""
        if not self._idle.acquire(False):
            self._start_one()
        self._queue.put((work, argument))

    def _start_one(self):
        with self._lock:
            if len(self._threads) >= self._limit:
                return
            threading.stack_size(STACK_BYTES)
            thread = threading.Thread(target=self._run, name='executor-%d' % len(self._threads))
            thread.daemon = True
            self._threads.append(thread)
            thread.start()

    def _run(self):
        get, idle = self._queue.get, self._idle
        while True:
            work, argument = get()
            work(argument)
            del work, argument
            idle.release()
