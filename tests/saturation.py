"""A session on a slow line that long reads saturate, and the round trips of its pings."""

import time

from pdus import IMMEDIATE, NO_TAG, NOP_IN, NOP_OUT, pack_bhs

MEBIBYTE = 2048  # blocks
#: The longest acceptable round trip of a ping on a line of 1 Mbit/s that reads of 1 MiB saturate, in seconds.
LONGEST_PING = 2.0


def read(blocks):
    """Returns begin(session, number), which submits a READ(10) of so many blocks."""

    def begin(session, number):
        lba = number * blocks % (32 * MEBIBYTE)
        cdb = bytes([0x28, 0]) + lba.to_bytes(4, 'big') + b'\0' + blocks.to_bytes(2, 'big') + b'\0'
        return session.submit(cdb, read=blocks * 512)

    return begin


class Saturated(object):
    """A session on a slow line with reads of 1 MiB in progress. Answers are received here, not by the
    methods of Session that wait for one command."""

    def __init__(self, session, depth):
        self.session = session
        self.session.timeout = 90.0
        self.commands = []
        for _ in range(depth):
            self.begin()

    def begin(self):
        """One more read."""
        self.commands.append(read(MEBIBYTE)(self.session, len(self.commands)))

    def ping(self):
        """Seconds until a NOP-Out is answered."""
        session, tag = self.session, self.session.next_tag()
        began = time.monotonic()
        session.wire.send(
            pack_bhs(NOP_OUT | IMMEDIATE, 0x80, 0, tag, NO_TAG, session.cmd_sn, session.exp_stat_sn)
        )
        session.until(NOP_IN, tag)
        return time.monotonic() - began

    def pass_data(self, count):
        """Receives until so many bytes of data have come."""
        end = self.received() + count
        while self.received() < end:
            self.session.step()

    def received(self):
        return sum(len(command.received) for command in self.commands)
