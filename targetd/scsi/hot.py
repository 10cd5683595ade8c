"""The hot path: admission of ordinary READ and WRITE commands. Pure.

Budget: 1 µs of Python for admit and run of a READ(10), without the call of the store. bind() makes
the admission functions of one unit in one state; everything they need is a local of the closure, so
a change of the state makes new functions (ARCHITECTURE D10). They only recognize the ordinary
command. Every other command (a refused bit, a range beyond the medium, 0 blocks, a short EDTL, …)
goes to `general`, which knows all rules and raises the error.
"""

from typing import TYPE_CHECKING, Any, Callable, Dict, Tuple

from targetd.scsi.cdb import BLOCKS_6, BLOCKS_10, BLOCKS_12, BLOCKS_16
from targetd.scsi.sam import WOULD_BLOCK, Task
from targetd.scsi.sbc import inline_durable_write, run_read_blocking, run_write, would_block

if TYPE_CHECKING:
    from targetd.scsi.lu import LogicalUnit

#: An admission function, and what bind() falls back to.
Admit = Callable[[Task], None]

READS = (0x08, 0x28, 0x88, 0xA8)
LONG = {0x88: BLOCKS_16, 0x8A: BLOCKS_16, 0xA8: BLOCKS_12, 0xAA: BLOCKS_12}


def bind(unit: 'LogicalUnit', general: Admit) -> Dict[int, Admit]:
    """{opcode: admission function} of the eight READ and WRITE opcodes. general(task): the admission
    that knows all rules."""
    bound = {
        0x08: _read_6(unit, general),
        0x28: _read_10(unit, general),
        0x0A: _write_6(unit, general),
        0x2A: _write_10(unit, general),
    }
    for opcode, layout in LONG.items():
        bound[opcode] = (_read_long if opcode in READS else _write_long)(
            unit, general, layout.unpack_from
        )
    return bound


def _run_read(unit: 'LogicalUnit') -> Callable[[Task], Any]:
    try_read = unit.store.try_read

    def run(task):
        try:
            data = try_read(task.offset, task.length)
        except OSError:
            return WOULD_BLOCK  # the executor thread gets the error again and locates the block
        return WOULD_BLOCK if data is None else data

    return run


def _read_10(unit: 'LogicalUnit', general: Admit) -> Admit:
    unpack, block_size = BLOCKS_10.unpack_from, unit.block_size
    size, limit = unit.blocks, unit.maximum_blocks
    run, counted = _run_read(unit), unit.counters.reads

    def admit(task):
        flags, lba, group, blocks, control = unpack(task.cdb, 1)
        if flags & 0xE1 | group & 0xE0 | control or not 0 < blocks <= limit or lba + blocks > size:
            return general(task)
        counted[0] += 1
        counted[1] += blocks
        task.offset = lba * block_size
        task.length = blocks * block_size
        task.run = run
        task.run_blocking = run_read_blocking

    return admit


def _read_long(
    unit: 'LogicalUnit', general: Admit, unpack: Callable[..., Tuple[Any, ...]]
) -> Admit:
    block_size, size, limit = unit.block_size, unit.blocks, unit.maximum_blocks
    run, counted = _run_read(unit), unit.counters.reads

    def admit(task):
        flags, lba, blocks, group, control = unpack(task.cdb, 1)
        if flags & 0xE1 | group & 0xE0 | control or not 0 < blocks <= limit or lba + blocks > size:
            return general(task)
        counted[0] += 1
        counted[1] += blocks
        task.offset = lba * block_size
        task.length = blocks * block_size
        task.run = run
        task.run_blocking = run_read_blocking

    return admit


def _read_6(unit: 'LogicalUnit', general: Admit) -> Admit:
    unpack, block_size = BLOCKS_6.unpack_from, unit.block_size
    size, limit = unit.blocks, unit.maximum_blocks
    run, counted = _run_read(unit), unit.counters.reads

    def admit(task):
        high, low, blocks, control = unpack(task.cdb, 1)
        lba = high << 16 | low
        blocks = blocks or 256
        if high & 0xE0 | control or blocks > limit or lba + blocks > size:
            return general(task)
        counted[0] += 1
        counted[1] += blocks
        task.offset = lba * block_size
        task.length = blocks * block_size
        task.run = run
        task.run_blocking = run_read_blocking

    return admit


def _write_limits(unit: 'LogicalUnit') -> Tuple[int, Callable[[Task], Any], bool]:
    """(bytes up to which a write does not block, run() of a durable write of this length, are all
    writes durable?)"""
    plain = 0 if unit.hanging else unit.store.inline_write_limit
    return plain, inline_durable_write(unit), unit.write_through


def _write_10(unit: 'LogicalUnit', general: Admit) -> Admit:
    unpack, block_size = BLOCKS_10.unpack_from, unit.block_size
    size, limit = unit.blocks, unit.maximum_blocks
    plain, run_durable, write_through = _write_limits(unit)
    counted = unit.counters.writes

    def admit(task):
        flags, lba, group, blocks, control = unpack(task.cdb, 1)
        if flags & 0xE5 | group & 0xE0 | control or not 0 < blocks <= limit or lba + blocks > size:
            return general(task)
        length = blocks * block_size
        if task.edtl < length or not task.expects_write:
            return general(task)
        counted[0] += 1
        counted[1] += blocks
        task.offset = lba * block_size
        task.length = task.data_out_length = length
        if write_through or flags & 8:
            task.durable = True
            task.run = run_durable if length <= plain else would_block
        else:
            task.durable = False
            task.run = run_write if length <= plain else would_block
        task.run_blocking = run_write

    return admit


def _write_long(
    unit: 'LogicalUnit', general: Admit, unpack: Callable[..., Tuple[Any, ...]]
) -> Admit:
    block_size, size, limit = unit.block_size, unit.blocks, unit.maximum_blocks
    plain, run_durable, write_through = _write_limits(unit)
    counted = unit.counters.writes

    def admit(task):
        flags, lba, blocks, group, control = unpack(task.cdb, 1)
        if flags & 0xE5 | group & 0xE0 | control or not 0 < blocks <= limit or lba + blocks > size:
            return general(task)
        length = blocks * block_size
        if task.edtl < length or not task.expects_write:
            return general(task)
        counted[0] += 1
        counted[1] += blocks
        task.offset = lba * block_size
        task.length = task.data_out_length = length
        if write_through or flags & 8:
            task.durable = True
            task.run = run_durable if length <= plain else would_block
        else:
            task.durable = False
            task.run = run_write if length <= plain else would_block
        task.run_blocking = run_write

    return admit


def _write_6(unit: 'LogicalUnit', general: Admit) -> Admit:
    unpack, block_size = BLOCKS_6.unpack_from, unit.block_size
    size, limit = unit.blocks, unit.maximum_blocks
    plain, run_durable, write_through = _write_limits(unit)
    counted = unit.counters.writes
    run = run_durable if write_through else run_write

    def admit(task):
        high, low, blocks, control = unpack(task.cdb, 1)
        lba = high << 16 | low
        blocks = blocks or 256
        length = blocks * block_size
        if (
            high & 0xE0 | control
            or blocks > limit
            or lba + blocks > size
            or task.edtl < length
            or not task.expects_write
        ):
            return general(task)
        counted[0] += 1
        counted[1] += blocks
        task.offset = lba * block_size
        task.length = task.data_out_length = length
        task.durable = write_through
        task.run = run if length <= plain else would_block
        task.run_blocking = run_write

    return admit
