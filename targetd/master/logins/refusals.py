"""Login Responses that the master sends itself: refusals, at once or after a delay.

A connection whose refusal is sent is closed when the initiator has closed it, or LINGER_SECONDS later:
close() with unread bytes would send a reset, and the initiator could lose the answer.
"""

import socket
from collections import OrderedDict

from targetd.master.processes.loop import READ

LINGER_SECONDS = 2.0
DELAYED_ANSWERS = 128  # at once; beyond that the oldest connection is closed


def send_refusal(loop, sock, response):
    """Send the Login Response, and close the socket as described above."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        sock.send(response, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        sock.close()
        return
    _linger(loop, sock)


def _linger(loop, sock):
    def close():
        timer.cancel()
        loop.forget(sock)
        sock.close()

    def readable(_events):
        try:
            if sock.recv(65536, socket.MSG_DONTWAIT):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass
        close()

    timer = loop.call_later(LINGER_SECONDS, close)
    loop.watch(sock, READ, readable)


class DelayedAnswers(object):
    """Answers to failed authentications that are sent later. No worker waits for them."""

    def __init__(self, loop):
        self.loop = loop
        self.waiting = OrderedDict()  # socket -> timer

    def send_later(self, sock, response, seconds):
        """Send the Login Response after so many seconds. The socket belongs to this object."""
        if len(self.waiting) >= DELAYED_ANSWERS:
            oldest, timer = self.waiting.popitem(last=False)
            timer.cancel()
            oldest.close()

        def send_now():
            del self.waiting[sock]
            send_refusal(self.loop, sock, response)

        self.waiting[sock] = self.loop.call_later(seconds, send_now)

    def close_all(self):
        """Close the connections without an answer."""
        for sock, timer in self.waiting.items():
            timer.cancel()
            sock.close()
        self.waiting.clear()
