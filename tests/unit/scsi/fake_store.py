"""A store in memory, a unit with it, and functions that process a command as a connection does:
admit, data, run, run_blocking."""

import contextlib
import errno
import os
import struct

from targetd.scsi.device import Device
from targetd.scsi.facts import UnitFacts
from targetd.scsi.lu import LogicalUnit
from targetd.scsi.sam import ORDERED, UNFLUSHED, WOULD_BLOCK, Nexus, Port, Task
from targetd.scsi.sense import CheckCondition, StatusReturned

NEXUS = Nexus('iqn.2026-11.com.example:host', '00023d000001', 'iqn.2026-11.com.example:disk', 1)
OTHER = Nexus('iqn.2026-11.com.example:other', '00023d000002', 'iqn.2026-11.com.example:disk', 1)
PORTS = (Port(1, 1, 'iqn.2026-11.com.example:disk,t,0x0001'),)
BLOCKS = 4096

#: Facts of a unit that offers every command of the table.
EVERY_COMMAND = {
    'unmap': True,
    'zeroes_after_unmap': True,
    'maximum_atomic_length': 65536,
    'implicit_alua': True,
    'explicit_alua': True,
    'encrypted': True,
}


class MemoryStore(object):
    """The verbs of a store. cached: bool, try_read returns data; calls: the calls in order; fail:
    {verb: errno}; bad: offsets that cannot be read."""

    durable_is_free = False
    inline_write_limit = 65536

    def __init__(self, size, block_size=512):
        self.data = bytearray(size)
        self.size = size
        self.block_size = block_size
        self.cached = True
        self.calls = []
        self.fail = {}
        self.bad = ()
        self.lost = None
        self.mapped = [(0, size, True)]

    def _called(self, verb, *arguments):
        self.calls.append((verb,) + arguments)
        number = self.fail.get(verb)
        if number:
            raise OSError(number, os.strerror(number))

    def read(self, offset, length):
        self._called('read', offset, length)
        if any(offset <= b < offset + length for b in self.bad):
            raise OSError(errno.EIO, 'unreadable')
        return bytes(self.data[offset : offset + length])

    def prefetch(self, offset, length):
        self.read(offset, length)

    def try_read(self, offset, length):
        return self.read(offset, length) if self.cached else None

    def write(self, offset, data, durable):
        self._called('write', offset, len(data), durable)
        assert offset + len(data) <= self.size
        self.data[offset : offset + len(data)] = data

    def flush(self, offset, length):
        self._called('flush', offset, length)

    def unmap(self, offset, length):
        self._called('unmap', offset, length)
        self.data[offset : offset + length] = bytes(length)

    def write_zeroes(self, offset, length, may_unmap):
        self._called('write_zeroes', offset, length, may_unmap)
        self.data[offset : offset + length] = bytes(length)

    def extents(self, offset, length, maximum=None):
        found = []
        for start, count, mapped in self.mapped:
            first, end = max(start, offset), min(start + count, offset + length)
            if end > first:
                found.append((first, end - first, mapped))
        return found[:maximum]

    def copy(self, source, source_offset, offset, length):
        self._called('copy', source_offset, offset, length)
        self.write(offset, source.read(source_offset, length), False)

    @contextlib.contextmanager
    def exclusive_range(self, offset, length):
        self.calls.append(('exclusive_range', offset, length))
        yield self
        self.calls.append(('shared', offset, length))

    @contextlib.contextmanager
    def locked_range(self, offset, length, alone):
        yield self

    @contextlib.contextmanager
    def atomic_write(self, offset, length):
        self.calls.append(('atomic_write', offset, length))
        yield Whole(self)
        self.calls.append(('over', offset, length))

    def verbs(self):
        return [call[0] for call in self.calls]


class Whole(object):
    """What atomic_write() yields."""

    def __init__(self, store):
        self.store = store

    def write(self, offset, data):
        self.store.write(offset, data, True)


def make_unit(store=None, blocks=BLOCKS, nexus=NEXUS, medium='ready', attention=False, **facts):
    """A LogicalUnit at LUN 0; no unit attention is pending unless attention is true."""
    parsed = UnitFacts.from_message(facts)
    store = store or MemoryStore(blocks * parsed.block_size, parsed.block_size)
    device = Device(nexus, PORTS)
    unit = LogicalUnit(parsed, store, nexus, device, medium=medium)
    device.add(0, unit)
    if not attention:
        unit.take_sense()
    return unit


def make_task(unit, cdb, data=None, edtl=None, room=1 << 20):
    """A Task as a connection creates it. data: Data-Out; room: EDTL of a task without Data-Out."""
    task = Task()
    task.unit = unit
    task.cdb = cdb.ljust(16, b'\0')
    task.edtl = edtl if edtl is not None else len(data) if data is not None else room
    task.expects_write = data is not None
    task.expects_read = data is None
    if unit.is_sequential:
        task.attribute = ORDERED  # as the worker makes it
    return task


def finish(task, data):
    """Set the data, call run(), and run_blocking() if run() would block."""
    if task.data_out_length:
        task.data_out = memoryview(bytes(data or b''))[: min(task.data_out_length, task.edtl)]
    result = task.run(task)
    if result is UNFLUSHED:  # as the worker does, alone
        try:
            task.unit.flush(task.offset, task.length)
        except OSError as e:
            raise task.unit.write_failure(e, task)
        return None
    return task.run_blocking(task) if result is WOULD_BLOCK else result


def do(unit, cdb, data=None, edtl=None):
    """Execute a command; returns what run() returned. Raises CheckCondition, StatusReturned."""
    task = make_task(unit, cdb, data, edtl)
    unit.admit(task)
    return finish(task, data)


def sense_of(unit, cdb, data=None, edtl=None):
    """(key, asc, ascq) of the CHECK CONDITION with which the command ends, or None."""
    error = error_of(unit, cdb, data, edtl)
    return (error.key, error.asc, error.ascq) if error else None


def error_of(unit, cdb, data=None, edtl=None):
    try:
        do(unit, cdb, data, edtl)
    except CheckCondition as e:
        return e
    return None


def status_of(unit, cdb, data=None):
    """The SCSI status with which the command ends."""
    try:
        do(unit, cdb, data)
    except CheckCondition:
        return 0x02
    except StatusReturned as e:
        return e.status
    return 0x00


# -- CDBs ------------------------------------------------------------------------------------------


def cdb_6(opcode, lba, blocks):
    return struct.pack('>BBHBB', opcode, lba >> 16, lba & 0xFFFF, blocks, 0)


def cdb_10(opcode, lba=0, blocks=0, flags=0, group=0):
    return struct.pack('>BBIBHB', opcode, flags, lba, group, blocks, 0)


def cdb_12(opcode, lba=0, blocks=0, flags=0):
    return struct.pack('>BBIIBB', opcode, flags, lba, blocks, 0, 0)


def cdb_16(opcode, lba=0, blocks=0, flags=0):
    return struct.pack('>BBQIBB', opcode, flags, lba, blocks, 0, 0)


def block_cdb(opcode, lba, blocks, flags=0):
    """The CDB of a block command of any length."""
    if opcode < 0x20:
        return cdb_6(opcode, lba, blocks)
    return {1: cdb_10, 2: cdb_10, 4: cdb_16, 5: cdb_12}[opcode >> 5](opcode, lba, blocks, flags)


def pattern(blocks, block_size=512, seed=0):
    return b''.join(bytes([(n + seed) & 0xFF]) * block_size for n in range(blocks))
