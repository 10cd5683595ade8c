"""The threads that run work which would block, so that a connection's thread never waits for a disk.

May import base only. A thread is started when there is work and no idle thread, up to the
configured number; threads do not end. Any thread may call submit().
"""

import queue
import threading

#: The threads need little stack. Old kernels count the default of 8 MiB of address space for each
#: thread as used memory.
STACK_BYTES = 512 << 10


class Executor(object):
    """A pool of at most `limit` threads. Work is a callable and one argument; it must not raise."""

    def __init__(self, limit):
        self._limit = limit
        self._queue = getattr(queue, 'SimpleQueue', queue.Queue)()
        self._idle = threading.Semaphore(0)
        self._threads = []
        self._lock = threading.Lock()

    def submit(self, work, argument):
        """Run work(argument) in one of the threads. [any]"""
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
