"""A line between two network namespaces, with a round trip, a rate, a queue, losses and a limit of the
length of packets: a router in Python between two TUN devices. It needs no module of the kernel but tun.

    with Line(tmp_name, rtt=0.1, rate=1e6 / 8) as line:
        with line.server.entered(): start the daemon on SERVER; line.client likewise
"""

import collections
import fcntl
import os
import random
import select
import struct
import threading
import time

import namespaces

SERVER, CLIENT = '10.77.0.1', '10.77.1.1'
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_QUEUE_BYTES = 4 << 20


def why_not():
    """Why there can be no line here, or ''."""
    return namespaces.why_not() or ('' if os.path.exists('/dev/net/tun') else 'no /dev/net/tun')


class _Direction(object):
    """Packets from one device to the other. They leave in order: at most `rate` bytes in a second, each
    `delay` seconds later."""

    def __init__(self, source, sink):
        self.source, self.sink = source, sink
        self.waiting = collections.deque()  # (time at which it arrives, packet)
        self.is_free_at = 0.0
        self.held = 0  # bytes

    def take(self, packet, line, now):
        if len(packet) > line.longest or line.random.random() < line.loss:
            return
        if self.held + len(packet) > line.queue:
            return
        seconds = len(packet) / line.rate if line.rate else 0.0
        self.is_free_at = max(self.is_free_at, now) + seconds
        self.waiting.append((self.is_free_at + line.rtt / 2, packet))
        self.held += len(packet)

    def deliver(self, now):
        while self.waiting and self.waiting[0][0] <= now:
            packet = self.waiting.popleft()[1]
            self.held -= len(packet)
            try:
                os.write(self.sink, packet)
            except OSError:
                pass  # the device is going away


class Line(object):
    """name: of the namespaces, short; rtt: seconds; rate: bytes in a second in each direction, 0: no
    limit; loss: part of the packets; longest: bytes of an IP packet; queue: bytes. The values may be
    changed while it runs."""

    def __init__(self, name, rtt=0.0, rate=0.0, loss=0.0, longest=1 << 16, queue=_QUEUE_BYTES):
        self.rtt, self.rate, self.loss, self.longest, self.queue = rtt, rate, loss, longest, queue
        self.random = random.Random(7)
        self.name = name
        self.server = self.client = None
        self._devices = []
        self._wake, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self.server = namespaces.Namespace(self.name + 's')
        self.client = namespaces.Namespace(self.name + 'c')
        for place, own, other in ((self.server, SERVER, CLIENT), (self.client, CLIENT, SERVER)):
            with place.entered():
                device = os.open('/dev/net/tun', os.O_RDWR | os.O_NONBLOCK)
                fcntl.ioctl(device, _TUNSETIFF, struct.pack('16sH', b'line', _IFF_TUN | _IFF_NO_PI))
            self._devices.append(device)
            place.within('ip', 'address', 'add', own, 'peer', other, 'dev', 'line')
            place.within('ip', 'link', 'set', 'line', 'up', 'mtu', '1500', 'txqueuelen', '10000')
        self._thread.start()
        return self

    def __exit__(self, *_):
        os.close(self._stop)
        self._thread.join(10)
        assert not self._thread.is_alive()
        for device in self._devices:
            os.close(device)
        os.close(self._wake)
        self.server.remove()
        self.client.remove()

    def _run(self):
        first, second = self._devices
        directions = {first: _Direction(first, second), second: _Direction(second, first)}
        poll = select.poll()
        for descriptor in (first, second, self._wake):
            poll.register(descriptor, select.POLLIN)
        while True:
            now = time.monotonic()
            due = [d.waiting[0][0] for d in directions.values() if d.waiting]
            pause = max(0.0, min(due) - now) * 1000 if due else 1000
            for descriptor, _ in poll.poll(pause):
                if descriptor == self._wake:
                    return
                self._receive(directions[descriptor])
            now = time.monotonic()
            for direction in directions.values():
                direction.deliver(now)

    def _receive(self, direction):
        now = time.monotonic()
        for _ in range(64):
            try:
                packet = os.read(direction.source, 1 << 16)
            except OSError:
                return
            direction.take(packet, self, now)
