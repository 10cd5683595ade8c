"""How much a connection hands to the kernel at a time while its line is slow. Pure.

What the kernel has accepted cannot be overtaken: the answer to a ping waits until it has left. So on a
slow line the kernel gets no more than the line carries in a fraction of a second.
"""

#: Bytes in a second. A line on which a send did not return at once, and that carries less, is slow: what a
#: fast line has in its queues (up to 8 MiB here and in the kernel) would take seconds on it.
SLOW = 4 << 20
#: A slow line that carries more is fast again.
FAST = 8 << 20
#: Seconds without a send that had to wait, after which a line is not slow any more.
QUIET = 30.0
#: Seconds between two measurements of the rate.
INTERVAL = 0.5

_UNSENT_SECONDS, _PIECE_SECONDS, _QUEUE_SECONDS = 0.25, 0.1, 1.0


def _between(least, value, most):
    return int(max(least, min(value, most)))


class Pace(object):
    """rate: first estimate, in bytes per second; now: a monotonic clock."""

    def __init__(self, rate, now):
        self.rate = max(rate, 1.0)
        self._mark = None  # (time, bytes that had left by then)
        self._waited = now  # when a send last had to wait

    def note(self, now, left):
        """More data was handed to the kernel, which had to wait for the line. left: bytes that have left
        the kernel since some moment."""
        self._waited = now
        if self._mark is None:
            self._mark = now, left
        elif now - self._mark[0] >= INTERVAL:
            measured = (left - self._mark[1]) / (now - self._mark[0])
            self.rate = max((self.rate + measured) / 2, 1.0)
            self._mark = now, left

    def note_idle(self):
        """There was nothing to send: the time until the next data says nothing about the line."""
        self._mark = None

    def is_over(self, now):
        """True if the line is not slow any more."""
        return self.rate > FAST or now - self._waited > QUIET

    @property
    def unsent_bytes(self):
        """What the kernel may hold and has not sent."""
        return _between(16 << 10, self.rate * _UNSENT_SECONDS, 1 << 20)

    @property
    def piece_bytes(self):
        """What is sent at a time; a multiple of 512."""
        return _between(8 << 10, self.rate * _PIECE_SECONDS, 256 << 10) & ~511

    @property
    def queue_bytes(self):
        """Data of replies that may wait in the worker; reads that would exceed it wait."""
        return _between(256 << 10, self.rate * _QUEUE_SECONDS, 8 << 20)
