"""The master's event loop: it calls back for ready descriptors, due timers and received signals.
Single-threaded.

It has no knowledge of iSCSI. Invariants: a callback never blocks; an exception that leaves a callback
is logged and does not end the loop; a descriptor that is forgotten, or a timer that is cancelled,
during a pass is not called any more in that pass.
"""

import heapq
import os
import selectors
import signal
import time

from targetd import log

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE


class Timer(object):
    """A callback that is due at `when` (the loop's clock, seconds)."""

    __slots__ = ('when', 'number', 'callback')

    def __init__(self, when, number, callback):
        self.when = when
        self.number = number
        self.callback = callback

    def __lt__(self, other):
        return (self.when, self.number) < (other.when, other.number)

    def cancel(self):
        """Do not call the callback. Has no effect on a timer that has expired."""
        self.callback = None


class Loop(object):
    """An event loop. clock(): monotonic seconds; tests inject theirs."""

    def __init__(self, clock=time.monotonic):
        self.clock = clock
        self._selector = selectors.DefaultSelector()
        self._watched = set()  # numbers of the descriptors that the selector has
        self._timers = []
        self._number = 0
        self._running = False
        self._signals = {}
        self._previous = {}
        self._wakeup = None

    # -- descriptors -------------------------------------------------------------------------------

    def watch(self, fileobj, events, callback):
        """Call callback(events) whenever the object is ready for READ or WRITE. Replaces an earlier
        watch of the object."""
        number = _number(fileobj)
        if number in self._watched:
            self._selector.modify(fileobj, events, callback)
        else:
            self._selector.register(fileobj, events, callback)
            self._watched.add(number)

    def forget(self, fileobj):
        """Stop watching the object; call it before the object is closed. An object that is not watched
        is ignored."""
        number = _number(fileobj)
        if number >= 0 and number not in self._watched:
            return
        try:
            self._watched.discard(self._selector.unregister(fileobj).fd)
        except (KeyError, ValueError):
            pass

    # -- timers ------------------------------------------------------------------------------------

    def call_later(self, seconds, callback):
        """Call callback() once, after so many seconds. Returns a Timer."""
        self._number += 1
        timer = Timer(self.clock() + seconds, self._number, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def _seconds_to_next_timer(self):
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return None
        return max(0.0, self._timers[0].when - self.clock())

    def _run_timers(self):
        now = self.clock()
        while self._timers and self._timers[0].when <= now:
            callback = heapq.heappop(self._timers).callback
            if callback is not None:
                self._call(callback)

    # -- signals -----------------------------------------------------------------------------------

    def on_signal(self, number, callback):
        """Call callback() from the loop after this signal arrived."""
        if self._wakeup is None:
            self._wakeup = os.pipe()
            for end in self._wakeup:
                os.set_blocking(end, False)
            signal.set_wakeup_fd(self._wakeup[1])
            self.watch(self._wakeup[0], READ, self._signalled)
        self._signals[number] = callback
        self._previous.setdefault(number, signal.signal(number, _ignore))
        signal.siginterrupt(number, False)

    def _signalled(self, _events):
        try:
            arrived = os.read(self._wakeup[0], 4096)
        except BlockingIOError:
            return
        for number in sorted(set(arrived)):
            callback = self._signals.get(number)
            if callback is not None:
                self._call(callback)

    def raise_again(self):
        """Send this process the signals that have arrived and were not handled yet. They must be blocked:
        the program that replaces this one handles them (ARCHITECTURE D24)."""
        try:
            arrived = os.read(self._wakeup[0], 4096)
        except BlockingIOError:
            return
        for number in sorted(set(arrived)):
            os.kill(os.getpid(), number)

    # -- running -----------------------------------------------------------------------------------

    @staticmethod
    def _call(callback, *values):
        try:
            callback(*values)
        except Exception:  # the boundary: one failed callback must not end every session
            log.exception('an unexpected failure in the master, which continues')

    def run_once(self, timeout=None):
        """One pass: wait, at most `timeout` seconds, and call the callbacks that are ready or due."""
        wait = self._seconds_to_next_timer()
        if timeout is not None:
            wait = timeout if wait is None else min(wait, timeout)
        for key, events in self._selector.select(wait):
            if self._selector.get_map().get(key.fd) is key:
                self._call(key.data, events)
        self._run_timers()

    def run(self):
        """Run passes until stop() is called."""
        self._running = True
        while self._running:
            self.run_once()

    def stop(self):
        """Make run() return after this pass."""
        self._running = False

    def close(self):
        """Restore the signal handlers and close the descriptors of the loop."""
        # Blocked meanwhile: the interpreter writes a traceback about a signal that arrived for the
        # former handler and finds the default instead of it.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, self._previous)
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        self._previous.clear()
        if self._wakeup is not None:
            signal.set_wakeup_fd(-1)
            self.forget(self._wakeup[0])
            os.close(self._wakeup[0])
            os.close(self._wakeup[1])
            self._wakeup = None
        self._selector.close()


def _number(fileobj):
    """The number of a descriptor, or of an object that has one; -1 if the object is closed."""
    return fileobj if isinstance(fileobj, int) else fileobj.fileno()


def _ignore(_number_of_signal, _frame):
    """The interpreter has written the signal's number to the pipe of signal.set_wakeup_fd, and the
    loop reads it there. SIG_IGN would suppress the signal."""
