"""What the tests of the master's parts use instead of workers and time."""

import os

from targetd.master.processes.loop import Loop
from targetd.scsi.sam import Nexus

TARGET = 'iqn.2026-11.test:disk'


class Clock(object):
    """A monotonic clock that only the test moves."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class StillLoop(Loop):
    """A real loop on a Clock: `pass_time` moves the clock and runs what is due, descriptors too."""

    def __init__(self):
        self.time = Clock()
        super(StillLoop, self).__init__(self.time)

    def settle(self, passes=20):
        """Let everything happen that can happen now."""
        for _ in range(passes):
            self.run_once(0)

    def pass_time(self, seconds):
        self.time.now += seconds
        self.settle()


class FakeWorker(object):
    """A worker as units and sessions see it: what it was sent is in `sent`."""

    def __init__(self, name='one', pid=1000):
        self.name = name
        self.pid = pid
        self.session = None
        self.peers = []
        self.sent = []
        self.killed = None

    def __repr__(self):
        return '<fake %s>' % self.name

    def of(self, word):
        """The messages with this `do`."""
        return [message for message in self.sent if message['do'] == word]


def send(worker, message, descriptors=()):
    worker.sent.append(message)


def kill(worker, why):
    worker.killed = why


def nexus(name='one', isid='00023d000001', group=1, target=TARGET):
    return Nexus('iqn.2026-11.test:%s' % name, isid, target, group)


class FakeStore(object):
    """What the master needs of an opened store; a real descriptor."""

    kind, path, size, block_size, read_only = 'file', '/disk.img', 1 << 20, 512, False

    def __init__(self, path):
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT)

    def description(self):
        return {'kind': self.kind, 'path': self.path, 'size': self.size}

    def close(self):
        os.close(self.descriptor)
