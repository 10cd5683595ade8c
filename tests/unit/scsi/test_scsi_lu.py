import errno
import struct

import pytest
from fake_store import (
    BLOCKS,
    NEXUS,
    OTHER,
    PORTS,
    MemoryStore,
    block_cdb,
    cdb_10,
    cdb_16,
    do,
    error_of,
    make_task,
    make_unit,
    pattern,
    sense_of,
    status_of,
)

from targetd.scsi import modes, reservations, sbc
from targetd.scsi.device import Device
from targetd.scsi.facts import UnitFacts
from targetd.scsi.lu import LogicalUnit
from targetd.scsi.opcodes import TABLE
from targetd.scsi.sense import CheckCondition

TEST_UNIT_READY = bytes(6)
INQUIRY = bytes.fromhex('12 00 00 0060 00')


def test_a_new_unit_has_power_on_attention_pending():
    unit = make_unit(attention=True)
    assert sense_of(unit, TEST_UNIT_READY) == (6, 0x29, 0)
    assert status_of(unit, TEST_UNIT_READY) == 0


# -- order of checks -------------------------------------------------------------------------------


def reserved_by_other(kind):
    return dict(
        reservations.initial(),
        type=kind,
        holder=[OTHER.initiator_port, OTHER.target_port],
        registrations=[
            {
                'initiator_port': OTHER.initiator_port,
                'target_port': OTHER.target_port,
                'key': '00000000000000aa',
                'all_tg_pt': False,
            }
        ],
    )


SPC_2 = dict(reservations.initial(), reserved_by=[OTHER.initiator_port, OTHER.target_port])


def test_admission_checks_in_the_order_of_the_standard():
    unit = make_unit(read_only=True)
    unit.replace_shared_state(reservations=reserved_by_other(3), medium='ejected')
    bad = bytes.fromhex('2a 20 ffffffff 00 0001 00')  # protection bits, beyond the end, write
    unit.raise_attention(0x2A, 0x09)
    assert sense_of(unit, bad, bytes(512)) == (6, 0x2A, 0x09)
    assert sense_of(unit, bytes.fromhex('ff')) == (5, 0x20, 0)
    assert sense_of(unit, bad, bytes(512)) == (5, 0x24, 0)
    good_bits = cdb_10(0x2A, 0xFFFFFFFF, 1)
    assert status_of(unit, good_bits, bytes(512)) == 0x18
    unit.replace_shared_state(reservations=reservations.initial())
    assert sense_of(unit, good_bits, bytes(512)) == (2, 0x3A, 0)
    unit.replace_shared_state(medium='ready')
    assert (
        sense_of(unit, good_bits, bytes(512))
        == sense_of(unit, cdb_10(0x28, 0xFFFFFFFF, 1))
        == (5, 0x21, 0)
    )
    assert sense_of(unit, cdb_10(0x2A, 0, 1), bytes(500)) == (7, 0x27, 0)


def test_a_pending_attention_comes_before_an_unknown_opcode():
    unit = make_unit(attention=True)
    assert sense_of(unit, bytes.fromhex('ff')) == (6, 0x29, 0)
    assert sense_of(unit, bytes.fromhex('ff')) == (5, 0x20, 0)
    assert error_of(unit, bytes.fromhex('7f')).field == (0, None, True)


def test_exempt_commands_leave_the_attention_pending():
    unit = make_unit(attention=True)
    assert do(unit, INQUIRY)[0] == 0
    assert do(unit, bytes.fromhex('a0 00 00 000000 00000100 00 00'))
    assert sense_of(unit, TEST_UNIT_READY) == (6, 0x29, 0)


def test_attentions_are_reported_one_by_one_on_the_hot_path_too():
    unit = make_unit()
    unit.raise_attention(0x2A, 0x01)
    unit.raise_attention(0x2A, 0x09)
    assert sense_of(unit, cdb_10(0x28, 0, 1)) == (6, 0x2A, 0x01)
    assert sense_of(unit, cdb_10(0x2A, 0, 1), bytes(512)) == (6, 0x2A, 0x09)
    assert unit.store.calls == []
    assert status_of(unit, cdb_10(0x28, 0, 1)) == 0


# -- reservations ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'state, inquiry, ready, read, write',
    [
        (reserved_by_other(1), 0, 0, 0, 0x18),
        (reserved_by_other(3), 0, 0, 0x18, 0x18),
        (reserved_by_other(5), 0, 0, 0, 0x18),
        (reserved_by_other(6), 0, 0, 0x18, 0x18),
        (SPC_2, 0, 0x18, 0x18, 0x18),
    ],
)
@pytest.mark.parametrize('opcodes', [(0x08, 0x0A), (0x28, 0x2A), (0x88, 0x8A), (0xA8, 0xAA)])
def test_commands_that_the_reservation_of_another_nexus_refuses(
    state, inquiry, ready, read, write, opcodes
):
    unit = make_unit()
    unit.replace_shared_state(reservations=state)
    assert status_of(unit, INQUIRY) == inquiry
    assert status_of(unit, TEST_UNIT_READY) == ready
    assert status_of(unit, block_cdb(opcodes[0], 0, 1)) == read
    assert status_of(unit, block_cdb(opcodes[1], 0, 1), bytes(512)) == write
    unit.replace_shared_state(reservations=reservations.initial())
    assert status_of(unit, block_cdb(opcodes[1], 0, 1), bytes(512)) == 0


def test_the_holder_is_not_refused():
    unit = make_unit(nexus=OTHER)
    unit.replace_shared_state(reservations=reserved_by_other(3))
    assert status_of(unit, cdb_10(0x2A, 0, 1), bytes(512)) == 0


# -- medium ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'medium, sense',
    [('ejected', (2, 0x3A, 0)), ('stopped', (2, 0x04, 0x02)), ('odd', (2, 0x04, 0x03))],
)
@pytest.mark.parametrize('row', [row for row in TABLE if row.medium], ids=lambda row: row.name)
def test_commands_that_need_the_medium_report_why_it_is_not_ready(medium, sense, row):
    unit = make_unit(
        unmap=True,
        zeroes_after_unmap=True,
        encrypted=True,
        maximum_atomic_length=4096,
        medium=medium,
    )
    cdb = bytearray(len(row.mask))
    cdb[0], cdb[1] = row.opcode, row.service_action or 0
    assert sense_of(unit, bytes(cdb)) == sense


@pytest.mark.parametrize(
    'cdb', ['12 00 00 0024 00', '1a 00 3f 00 ff 00', '5e 00 0000000000 0010 00']
)
def test_other_commands_work_without_a_medium(cdb):
    assert status_of(make_unit(medium='ejected'), bytes.fromhex(cdb)) == 0


def cdb_of(row, lba, blocks):
    """The CDB of this row with LBA and number of blocks, if it has these fields."""
    cdb = bytearray(len(row.mask))
    cdb[0], cdb[1] = row.opcode, row.service_action or 0
    if row.function in sbc.BLOCKS_WRITTEN_AT:
        numbers = {6: slice(4, 5), 10: slice(7, 9), 12: slice(6, 10), 16: slice(10, 14)}
        at = sbc.BLOCKS_WRITTEN_AT[row.function] or numbers[len(cdb)]
        where = {6: slice(2, 4), 10: slice(2, 6), 12: slice(2, 6), 16: slice(2, 10)}[len(cdb)]
        for field, value in ((at, blocks), (where, lba)):
            cdb[field] = value.to_bytes(field.stop - field.start, 'big')
    return bytes(cdb)


EVERYTHING = {
    'unmap': True,
    'zeroes_after_unmap': True,
    'encrypted': True,
    'maximum_atomic_length': 4096,
}
EVERYTHING_READ_ONLY = dict(EVERYTHING, read_only=True)


@pytest.mark.parametrize(
    'row', [row for row in TABLE if row.writes and row.name != 'UNMAP'], ids=lambda row: row.name
)
def test_a_read_only_unit_refuses_every_write_before_it_looks_at_lengths(row):
    unit = make_unit(**EVERYTHING_READ_ONLY)
    assert sense_of(unit, cdb_of(row, 0, 1)) == (7, 0x27, 0)
    assert unit.store.calls == []


@pytest.mark.parametrize(
    'lba, blocks, sense', [(0, 1, (7, 0x27, 0)), (0, 0, None), (BLOCKS, 1, (5, 0x21, 0))]
)
def test_a_read_only_unit_accepts_an_unmap_of_no_blocks(lba, blocks, sense):
    unit = make_unit(**EVERYTHING_READ_ONLY)
    cdb, data = (
        bytes.fromhex('42 00 00000000 00 0018 00'),
        struct.pack('>HH4xQI4x', 22, 16, lba, blocks),
    )
    assert sense_of(unit, cdb, data) == sense if sense else status_of(unit, cdb, data) == 0
    assert unit.store.calls == []


@pytest.mark.parametrize(
    'row', [row for row in TABLE if row.function in sbc.BLOCKS_WRITTEN_AT], ids=lambda row: row.name
)
def test_a_read_only_unit_refuses_writes_only_to_existing_blocks(row):
    """A command with 0 blocks, or with blocks beyond the medium, writes nothing and is not refused
    with DATA PROTECT."""
    unit = make_unit(**EVERYTHING_READ_ONLY)
    assert sense_of(unit, cdb_of(row, unit.blocks, 1)) == (5, 0x21, 0)
    if row.opcode == 0x0A or row.function == 'provisioning.write_same':
        assert sense_of(unit, cdb_of(row, 0, 0)) == (7, 0x27, 0)  # 256 blocks, or up to the end
    else:
        assert status_of(unit, cdb_of(row, unit.blocks, 0)) == 0
    assert unit.store.calls == []


def test_software_write_protect_follows_the_mode_page():
    unit = make_unit()
    state = modes.initial(unit.facts)
    page = bytearray.fromhex(state['current']['0a-00'])
    page[4] |= 0x08
    unit.replace_shared_state(
        modes=modes.apply_mode_select(state, {'pages': {'0a-00': page.hex()}})
    )
    assert sense_of(unit, cdb_10(0x2A, 0, 1), bytes(512)) == (7, 0x27, 0x02)
    assert status_of(unit, cdb_10(0x28, 0, 1)) == 0
    unit.replace_shared_state(modes=state)
    assert status_of(unit, cdb_10(0x2A, 0, 1), bytes(512)) == 0


def test_the_size_follows_the_store():
    unit = make_unit()
    unit.store.data += bytes(512 * 10)
    unit.store.size += 512 * 10
    assert sense_of(unit, cdb_10(0x28, BLOCKS, 1)) == (5, 0x21, 0)
    unit.resized(unit.store.size)
    assert unit.blocks == BLOCKS + 10
    assert status_of(unit, cdb_10(0x28, BLOCKS + 9, 1)) == 0
    assert do(unit, cdb_10(0x25))[:4] == struct.pack('>I', BLOCKS + 9)


def test_only_parts_of_the_shared_state_are_replaced():
    with pytest.raises(TypeError):
        make_unit().replace_shared_state(nonsense=1)


# -- failures of the store -------------------------------------------------------------------------


def watched(**facts):
    unit = make_unit(**facts)
    reported = []
    unit.services.data_lost = reported.append
    return unit, reported


def test_a_failed_flush_is_reported_once_until_the_medium_is_ready_again():
    unit, reported = watched(write_cache=True)
    unit.store.fail = {'flush': errno.EIO}
    assert sense_of(unit, cdb_10(0x35)) == (3, 0x0C, 0)
    assert sense_of(unit, cdb_10(0x35)) == (3, 0x0C, 0)
    assert len(reported) == 1 and 'flush' in reported[0]
    unit.replace_shared_state(medium='failed')
    unit.replace_shared_state(medium='ready')
    assert sense_of(unit, cdb_10(0x35)) == (3, 0x0C, 0)
    assert len(reported) == 2


def test_a_durable_write_whose_flush_failed_is_reported():
    unit, reported = watched()
    unit.store.fail = {'write': errno.EIO}
    unit.store.lost = errno.EIO
    assert sense_of(unit, cdb_10(0x2A, 7, 1), bytes(512)) == (3, 0x0C, 0)
    assert len(reported) == 1


def test_a_failed_write_that_lost_no_acknowledged_data_is_not_reported():
    unit, reported = watched()
    unit.store.fail = {'write': errno.EIO}
    assert error_of(unit, cdb_10(0x2A, 7, 1), bytes(512)).information == 7
    assert reported == []


def test_a_failed_medium_allows_reads_and_refuses_writes_and_flushes():
    unit = make_unit(medium='failed', removable=True)
    assert status_of(unit, TEST_UNIT_READY) == 0
    assert status_of(unit, cdb_10(0x28, 0, 1)) == 0
    for opcode in (0x0A, 0x2A, 0x8A, 0xAA):
        assert sense_of(unit, block_cdb(opcode, 0, 1), bytes(512)) == (4, 0x44, 0)
    assert sense_of(unit, cdb_10(0x35)) == (4, 0x44, 0)
    assert sense_of(unit, cdb_16(0x93, 0, 1), bytes(512)) == (4, 0x44, 0)
    unit.replace_shared_state(medium='ready')
    assert status_of(unit, cdb_10(0x2A, 0, 1), bytes(512)) == 0


def test_a_unit_without_services_ignores_failures():
    unit = make_unit()
    unit.store.fail = {'flush': errno.EIO}
    assert sense_of(unit, cdb_10(0x35)) == (3, 0x0C, 0)


# -- hot and general admission ----------------------------------------------------------------------


def outcome(admit, unit, cdb, data):
    task = make_task(unit, cdb, data)
    try:
        admit(task)
    except CheckCondition as e:
        return e.sense()
    fast = task.run
    task.data_out = data
    result = task.run(task)
    inline = result is None or isinstance(result, bytes)
    if not inline:
        result = task.run_blocking(task)
    assert fast is not None
    return (result, inline, task.offset, task.length, task.data_out_length, bytes(unit.store.data))


@pytest.mark.parametrize('write_cache', [False, True])
@pytest.mark.parametrize('opcode', [0x08, 0x28, 0x88, 0xA8, 0x0A, 0x2A, 0x8A, 0xAA])
@pytest.mark.parametrize('lba', [0, 5, BLOCKS - 8, BLOCKS - 7, BLOCKS])
@pytest.mark.parametrize('flags', [0x00, 0x08, 0x10, 0x01, 0x04, 0x20])
def test_hot_and_general_admission_agree(write_cache, opcode, lba, flags):
    cdb = block_cdb(opcode, lba, 8, flags)
    data = pattern(8, seed=3) if opcode & 0x0F == 0x0A else None
    hot, general = (make_unit(write_cache=write_cache) for _ in range(2))
    for unit in (hot, general):
        unit.store.data[:] = pattern(BLOCKS)
    assert outcome(hot.admit, hot, cdb, data) == outcome(general._admit, general, cdb, data)


def test_the_normal_table_is_in_force_after_the_last_attention():
    unit = make_unit()
    clean = unit.dispatch[0x28]
    unit.raise_attention(0x2A, 0x09)
    assert unit.dispatch[0x28] is not clean
    sense_of(unit, TEST_UNIT_READY)
    assert unit.dispatch[0x28] is clean


def test_a_command_runs_if_another_connection_has_taken_the_attention():
    unit = make_unit()
    unit.raise_attention(0x2A, 0x09)
    task = make_task(unit, cdb_10(0x28, 0, 1))
    unit.attention.take()
    unit.admit(task)
    assert task.run(task) == bytes(512)


def test_an_attention_that_comes_while_the_last_one_is_taken_is_not_lost():
    """The control thread may add to the queue after the connection thread has checked it and before
    it has changed the table."""
    unit = make_unit()
    unit.raise_attention(0x2A, 0x09)
    queue = unit.attention

    class Interleaved(object):
        def __init__(self):
            self.raced = False

        def __len__(self):
            count = len(queue)
            if not count and not self.raced:
                self.raced = True
                queue.add(0x2A, 0x01)  # after the check, before the change
            return count

        def __getattr__(self, name):
            return getattr(queue, name)

    unit.attention = Interleaved()
    assert sense_of(unit, TEST_UNIT_READY) == (6, 0x2A, 0x09)
    assert sense_of(unit, TEST_UNIT_READY) == (6, 0x2A, 0x01)


def test_units_of_two_nexuses_have_separate_attentions():
    store = MemoryStore(4096)
    facts = UnitFacts.from_message({})
    one, two = (LogicalUnit(facts, store, nexus, Device(nexus, PORTS)) for nexus in (NEXUS, OTHER))
    assert sense_of(one, TEST_UNIT_READY) == (6, 0x29, 0)
    assert sense_of(two, TEST_UNIT_READY) == (6, 0x29, 0)
