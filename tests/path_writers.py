"""Initiators with a path to each of two servers, which write numbered blocks.

Every writer has blocks of its own and writes numbered blocks with a checksum; a write counts when it was
acknowledged as durable (FUA, or SYNCHRONIZE CACHE afterwards). A path that does not answer, or is in
standby, is left for the other one.
"""

import socket
import struct
import threading
import time
import zlib

from daemon import PATIENCE, TARGET
from initiator import LoginFailed, connect
from pdus import Closed

BLOCK = 512
BLOCKS = 512  # of each writer
KEY = 0xABCD0001
#: A path that does not answer for so long is left.
ANSWER_SECONDS = 2.0 * PATIENCE
#: A path that was left because it does not answer is tried again after this time.
REST_SECONDS = 4.0
#: Before a command is repeated.
PAUSE_SECONDS = 0.05 * PATIENCE
LOST = (Closed, OSError, socket.timeout, LoginFailed)


class Wrong(Exception):
    """A server broke a promise."""


def block_of(writer, lba, number):
    """The contents of a block: writer, LBA, number of the write, and a checksum."""
    body = struct.pack('>HIQ', writer, lba, number) * 37
    return body[:508] + struct.pack('>I', zlib.crc32(body[:508]))


def number_in(data, writer, lba):
    """The number of the write that a block is of; 0 for zeroes. Raises Wrong."""
    if data == bytes(BLOCK):
        return 0
    found = struct.unpack_from('>HIQ', data)
    if data != block_of(*found) or found[:2] != (writer, lba):
        raise Wrong('block %d of writer %d is damaged' % (lba, writer))
    return found[2]


def registration():
    """The CDB and the parameter list that register KEY for the paths through both servers (ALL_TG_PT)."""
    parameters = struct.pack('>QQ4xB3x', 0, KEY, 4)
    return struct.pack('>BBB2xIB', 0x5F, 6, 0, len(parameters), 0), parameters


class Multipath(object):
    """An initiator with a session to each server, which uses one of them. current: the number of that
    server; switches: how often it was changed."""

    def __init__(self, addresses, name):
        self._addresses = addresses
        self._name = name
        self._sessions = [None] * len(addresses)
        self._rest = [0.0] * len(addresses)
        self.current = 0
        self.switches = 0

    def _session(self):
        session = self._sessions[self.current]
        if session is None:
            session = connect(
                self._addresses[self.current], TARGET, name=self._name, timeout=ANSWER_SECONDS
            )
            self._sessions[self.current] = session
        return session

    def _fail(self):
        session, self._sessions[self.current] = self._sessions[self.current], None
        if session is not None:
            session.close()
        self._rest[self.current] = time.monotonic() + REST_SECONDS
        self._switch()

    def _switch(self):
        other = (self.current + 1) % len(self._addresses)
        if time.monotonic() >= self._rest[other]:
            self.current, self.switches = other, self.switches + 1
        time.sleep(PAUSE_SECONDS)

    def execute(self, cdb, read=0, out=None, seconds=60):
        """The Result GOOD of a command, on whichever path does it. Raises Wrong."""
        end = time.monotonic() + seconds * PATIENCE
        result = None
        while time.monotonic() < end:
            try:
                result = self._session().run(cdb, 0, read, out)
            except LOST:
                self._fail()
                continue
            if result.status == 0:
                return result
            if result.status in (0x08, 0x28):  # BUSY, TASK SET FULL
                time.sleep(PAUSE_SECONDS)
            elif result.status == 0x02 and result.key[0] in (6, 0xB):
                pass  # UNIT ATTENTION, ABORTED COMMAND
            elif result.status == 0x02 and result.key in ((2, 0x04, 0x0B), (2, 0x04, 0x0A)):
                self._switch()  # in standby, or about to be
            elif result.status == 0x02 and result.key == (5, 0x25, 0):
                self._fail()  # the LUN is coming or going
            else:
                raise Wrong('%s ended with %r' % (cdb.hex(), result))
        raise Wrong('%s is not done after %d seconds: %r' % (cdb.hex(), seconds, result))

    def check(self):
        """What the path checker of multipath software does before the next command."""
        self.execute(bytes(6))

    def close(self):
        for session in self._sessions:
            if session is not None:
                session.close()


class Writer(threading.Thread):
    """acknowledged: {LBA: number of the write}; done: [(time, path)] of acknowledged writes; complaint: why
    it ended too early. rest: seconds between two writes."""

    def __init__(self, number, addresses, rest=0.0):
        super(Writer, self).__init__(daemon=True)
        self.number = number
        self.rest = rest
        self.path = Multipath(addresses, 'iqn.2026-11.test:writer-%d' % number)
        self.acknowledged = {}
        self.done = []
        self.count = 0
        self.complaint = None
        self.may_go = threading.Event()
        self.is_waiting = threading.Event()
        self.is_over = threading.Event()

    def lba(self, index):
        return self.number * BLOCKS + index

    def register(self):
        """Register a key for the paths through both servers (ALL_TG_PT)."""
        cdb, parameters = registration()
        self.path.execute(cdb, out=parameters)

    def reserve(self):
        """WRITE EXCLUSIVE, REGISTRANTS ONLY."""
        parameters = struct.pack('>QQ8x', KEY, 0)
        self.path.execute(struct.pack('>BBB2xIB', 0x5F, 1, 5, len(parameters), 0), out=parameters)

    def keys(self):
        data = self.path.execute(struct.pack('>BB5xHB', 0x5E, 0, 1024, 0), read=1024).data[8:]
        return list(struct.unpack('>%dQ' % (len(data) // 8), data))

    def pause(self):
        self.may_go.clear()
        if not self.is_waiting.wait(60 * PATIENCE) and self.is_alive():
            raise Wrong('writer %d does not pause' % self.number)

    def run(self):
        try:
            while not self.is_over.is_set():
                if not self.may_go.is_set():
                    self.is_waiting.set()
                    self.may_go.wait(0.2)
                    continue
                if self.is_waiting.is_set():
                    self.is_waiting.clear()
                    self.path.check()
                self._write_one()
                if self.rest:
                    self.is_over.wait(self.rest)
        except Exception as e:
            self.complaint = 'writer %d: %r' % (self.number, e)
            self.is_waiting.set()
        finally:
            self.path.close()

    def _write_one(self):
        self.count += 1
        index = self.count * 7 % BLOCKS
        lba, is_forced = self.lba(index), self.count % 4 != 0
        data = block_of(self.number, lba, self.count)
        cdb = struct.pack('>BBIBHB', 0x2A, 8 if is_forced else 0, lba, 0, 1, 0)
        path = self.path.current
        while True:
            self.path.execute(cdb, out=data)
            path = self.path.current
            if is_forced:
                break
            self.path.execute(b'\x35' + bytes(9))  # SYNCHRONIZE CACHE
            # else the write may have been lost with the cache of the other one
            if self.path.current == path:
                break
        self.acknowledged[lba] = self.count
        self.done.append((time.monotonic(), path))

    def verify(self):
        """Read all blocks on the path. Raises Wrong."""
        for start in range(0, BLOCKS, 64):
            cdb = struct.pack('>BBIBHB', 0x28, 0, self.lba(start), 0, 64, 0)
            data = self.path.execute(cdb, read=64 * BLOCK).data
            for index in range(64):
                self.compare(self.lba(start + index), data[index * BLOCK : (index + 1) * BLOCK])

    def compare(self, lba, data):
        found, wanted = number_in(bytes(data), self.number, lba), self.acknowledged.get(lba, 0)
        if found != wanted:
            raise Wrong(
                'block %d of writer %d has write %d; write %d was acknowledged last'
                % (lba, self.number, found, wanted)
            )
