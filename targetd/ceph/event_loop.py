"""The event loop of the store process: one thread that waits for its clients (nbd_client) and for the ends of
operations (poll_operations, or callback_operations where librbd cannot be polled).

     what has ended --> replies --> sent --> what has been received --> operations

A client is closed when it has left, and all that it has sent is finished and answered; one that does not take
its replies is given up after LAST_SECONDS.
"""

import collections
import select
import threading
import time

from targetd.ceph.nbd_client import Client

LAST_SECONDS = 5.0
_LOOK_SECONDS = 1.0


class Loop(object):
    """served: rbd_server.Server; operations: Operations of one of these modules."""

    def __init__(self, served, operations):
        self._served = served
        self._operations = operations
        self._poll = select.epoll()
        self._clients = {}  # descriptor -> Client
        self._masks = {}  # descriptor -> what is waited for
        self._ends = {}  # descriptor -> when the client is given up
        self._calls = collections.deque()  # functions that other threads want to be called
        self._stop_at = None
        self._is_over = threading.Event()

    def run(self, listener):
        """Serve until stop()."""
        listener.setblocking(False)
        accepts = listener.fileno()
        for descriptor in (self._operations.descriptor, accepts):
            self._poll.register(descriptor, select.EPOLLIN)
        while not self._must_stop():
            touched = set()
            ready = self._poll.poll(_LOOK_SECONDS if self._ends or self._stop_at else -1)
            self._finish(touched)  # also where a client has woken it: that saves a wake-up later
            for descriptor, events in ready:
                if descriptor == accepts:
                    self._accept(listener)
                elif descriptor in self._clients:
                    client = self._clients[descriptor]
                    touched.add(client)
                    if events & ~select.EPOLLOUT:
                        client.receive()
            for client in touched:
                client.send()
                self._look(client)
            if self._ends:
                self._give_up()
        self._is_over.set()

    def stop(self, seconds):
        """[any] Wait until the clients have gone, but not longer. The image is not used any more then."""
        self._stop_at = time.monotonic() + seconds
        self._operations.wake()
        self._is_over.wait()

    def _must_stop(self):
        return self._stop_at is not None and (
            not self._clients or time.monotonic() >= self._stop_at
        )

    def _finish(self, touched):
        """Handle the ends of operations, and what other threads want."""
        for request, number in self._operations.ended():
            touched.add(request.client)
            request.client.ended(request, number)
        for client in touched:
            client.send()
        while self._calls:
            client, function = self._calls.popleft()
            function()
            touched.add(client)

    def _accept(self, listener):
        try:
            sock = listener.accept()[0]
        except OSError:
            return
        sock.setblocking(False)

        def later(function, call):
            self._served.later(lambda: self._call(client, call, function()))

        client = Client(sock, self._served, self._operations, later)
        self._clients[client.descriptor] = client
        client.send()
        self._look(client)

    def _call(self, client, function, result):
        """[the thread for what blocks]"""
        self._calls.append((client, lambda: function(result)))
        self._operations.wake()

    def _look(self, client):
        """Wait for what this client can do next, or close it."""
        mask = client.mask
        if mask is None:
            self._close(client)
            return
        descriptor = client.descriptor
        before = self._masks.get(descriptor, 0)
        if mask != before:
            if not before:
                self._poll.register(descriptor, mask)
            elif not mask:  # its end would be reported again and again
                self._poll.unregister(descriptor)
            else:
                self._poll.modify(descriptor, mask)
            self._masks[descriptor] = mask
        if client.only_sends:
            self._ends.setdefault(descriptor, time.monotonic() + LAST_SECONDS)

    def _close(self, client):
        descriptor = client.descriptor
        if self._masks.pop(descriptor, 0):
            self._poll.unregister(descriptor)
        del self._clients[descriptor]
        self._ends.pop(descriptor, None)
        client.socket.close()

    def _give_up(self):
        now = time.monotonic()
        for descriptor in [each for each, end in self._ends.items() if now >= end]:
            self._close(self._clients[descriptor])
