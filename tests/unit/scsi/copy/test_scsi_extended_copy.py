import errno
import struct

import pytest
from fake_store import (
    BLOCKS,
    NEXUS,
    OTHER,
    MemoryStore,
    do,
    error_of,
    make_task,
    make_unit,
    pattern,
    sense_of,
    status_of,
)

from targetd.scsi import reservations
from targetd.scsi.copy import copy_manager, extended_copy
from targetd.scsi.facts import UnitFacts
from targetd.scsi.lu import LogicalUnit
from targetd.scsi.sam import WOULD_BLOCK
from targetd.scsi.sense import CheckCondition

NAA, SECOND_NAA = '6' + '1' * 31, '6' + '2' * 31
LID1, LID4 = 0x00, 0x01


def pair(second_block_size=512, medium='ready', **facts):
    """Two units of one device: LUN 0, which receives the commands and contains a pattern; LUN 1,
    which is empty."""
    first = make_unit(naa=NAA)
    first.store.data[:] = pattern(BLOCKS)
    parsed = UnitFacts.from_message(dict(facts, naa=SECOND_NAA, block_size=second_block_size))
    second = LogicalUnit(
        parsed, MemoryStore(BLOCKS * 512, second_block_size), NEXUS, first.device, medium=medium
    )
    second.take_sense()
    second.drop_attention(0, 0)
    first.device.add(1, second)
    return first, second


def cscd(naa, block_size=512, pad=False, kind=0xE4, device_type=0):
    return struct.pack(
        '>BBxxBBxB16s4xI',
        kind,
        device_type,
        1,
        3,
        16,
        bytes.fromhex(naa),
        (0x04000000 if pad else 0) | block_size,
    )


BOTH = (cscd(NAA), cscd(SECOND_NAA))


def blocks_segment(source, destination, count, source_lba, lba, flags=0):
    return struct.pack(
        '>BBHHHxxHQQ', 0x02, flags, 0x18, source, destination, count, source_lba, lba
    )


def bytes_segment(source, destination, count, source_lba, lba, source_byte=0, byte=0):
    return struct.pack(
        '>BBHHHIQQHH', 0x0A, 0, 0x1C, source, destination, count, source_lba, lba, source_byte, byte
    )


def verify_segment(source, ready):
    return struct.pack('>BBHHxxBxxx', 0x07, 0, 8, source, 1 if ready else 0)


def lid1_list(cscds, segments, name=1, usage=0, inline=0):
    body = b''.join(cscds), b''.join(segments)
    return (
        struct.pack('>BBH4xII', name, usage << 3, len(body[0]), len(body[1]), inline)
        + body[0]
        + body[1]
    )


def lid4_list(cscds, segments, name=1, usage=0, flags=0, kind=0xFF, form=1):
    body = b''.join(cscds), b''.join(segments)
    head = struct.pack(
        '>BBH11xBB3xI18xHHH',
        form,
        usage << 3,
        0x20,
        flags,
        kind,
        name,
        len(body[0]),
        len(body[1]),
        0,
    )
    return head + body[0] + body[1]


def cdb(data, action=LID1, opcode=0x83):
    return struct.pack('>BB8xIxx', opcode, action, len(data))


def copy(unit, cscds, segments, action=LID1, **more):
    data = (lid1_list if action == LID1 else lid4_list)(cscds, segments, **more)
    return do(unit, cdb(data, action), data)


def failure(unit, cscds, segments, action=LID1, **more):
    data = (lid1_list if action == LID1 else lid4_list)(cscds, segments, **more)
    return error_of(unit, cdb(data, action), data)


def code(error):
    return error and (error.key, error.asc, error.ascq)


def reported(unit, action, name=0, room=4096):
    names = struct.pack('>B7x', name) if action < 5 else struct.pack('>I4x', name)
    return bytes(do(unit, struct.pack('>BB', 0x84, action) + names + struct.pack('>Ixx', room)))


# -- what is copied --------------------------------------------------------------------------------


@pytest.mark.parametrize('action', [LID1, LID4])
def test_blocks_are_copied_from_one_unit_to_another(action):
    first, second = pair()
    assert (
        copy(first, BOTH, [blocks_segment(0, 1, 8, 16, 100), blocks_segment(0, 1, 1, 5, 0)], action)
        is None
    )
    assert second.store.data[100 * 512 : 108 * 512] == first.store.data[16 * 512 : 24 * 512]
    assert second.store.data[:512] == bytes([5]) * 512
    assert not any(second.store.data[108 * 512 :])


def test_descriptor_index_ffff_is_the_unit_that_received_the_command():
    first, second = pair()
    copy(first, BOTH, [blocks_segment(0xFFFF, 1, 1, 7, 0), blocks_segment(0xFFFF, 0xFFFF, 1, 7, 9)])
    assert second.store.data[:512] == first.store.data[9 * 512 : 10 * 512] == bytes([7]) * 512


def test_a_unit_is_found_by_each_of_its_designators():
    first = make_unit(naa=NAA, eui='0011223344556677', vendor='V', product='', serial='')
    for code_set, kind, content in [
        (1, 2, bytes.fromhex('0011223344556677')),
        (1, 3, bytes.fromhex(NAA)),
    ]:
        assert extended_copy.find_unit(first.device, code_set, kind, content) is first
    assert extended_copy.find_unit(first.device, 2, 3, bytes.fromhex(NAA)) is None
    assert extended_copy.find_unit(first.device, 1, 0x13, bytes.fromhex(NAA)) is None


@pytest.mark.parametrize('shift', [-3, 3])
def test_ranges_that_overlap_are_copied_as_if_they_did_not(shift, monkeypatch):
    monkeypatch.setattr(extended_copy, 'STEP', 1024)
    first, _ = pair()
    before = bytes(first.store.data)
    copy(first, BOTH, [blocks_segment(0, 0, 20, 50, 50 + shift)])
    assert first.store.data[(50 + shift) * 512 : (70 + shift) * 512] == before[50 * 512 : 70 * 512]


def test_byte_offsets_may_be_within_blocks():
    first, second = pair()
    copy(first, BOTH, [bytes_segment(0, 1, 700, 3, 10, 100, 50)])
    assert (
        second.store.data[10 * 512 + 50 : 10 * 512 + 750]
        == first.store.data[3 * 512 + 100 : 3 * 512 + 800]
    )
    assert not any(second.store.data[: 10 * 512 + 50]) and not any(
        second.store.data[10 * 512 + 750 :]
    )


@pytest.mark.parametrize(
    'segment, field',
    [(bytes_segment(0, 1, 1, 0, 0, 512, 0), 28), (bytes_segment(0, 1, 1, 0, 0, 0, 512), 30)],
)
def test_a_byte_offset_beyond_its_block_is_refused(segment, field):
    error = failure(pair()[0], BOTH, [segment])
    assert code(error) == (0x0A, 0x26, 0x00) and error.field == (field, None, True)


def test_a_copy_is_durable_if_the_write_cache_is_disabled():
    first, second = pair(write_cache=False)
    copy(first, BOTH, [blocks_segment(0, 1, 1, 0, 0)])
    assert second.store.verbs()[-1] == 'flush'
    first, second = pair(write_cache=True)
    copy(first, BOTH, [blocks_segment(0, 1, 1, 0, 0)])
    assert 'flush' not in second.store.verbs()


# -- block sizes that differ -----------------------------------------------------------------------


def large(pad=False, source_pad=False):
    return cscd(NAA, pad=source_pad), cscd(SECOND_NAA, 4096, pad)


def test_complete_blocks_of_different_sizes_are_copied():
    first, second = pair(4096)
    copy(first, large(), [blocks_segment(0, 1, 8, 0, 2), blocks_segment(0, 1, 1, 8, 3, flags=0x02)])
    assert second.store.data[2 * 4096 : 4 * 4096] == first.store.data[: 2 * 4096]


def test_a_segment_that_ends_within_a_block_needs_pad():
    first, second = pair(4096)
    assert code(failure(first, large(), [blocks_segment(0, 1, 9, 0, 0)])) == (0x0A, 0x26, 0x0A)
    assert not any(second.store.data)


def test_the_destination_pads_with_zeroes():
    first, second = pair(4096)
    second.store.data[:] = b'x' * len(second.store.data)
    copy(first, large(pad=True), [blocks_segment(0, 1, 9, 1, 0)])
    assert second.store.data[: 9 * 512] == first.store.data[512 : 10 * 512]
    assert second.store.data[9 * 512 : 2 * 4096] == bytes(7 * 512) and second.store.data[
        2 * 4096
    ] == ord('x')


def test_the_source_drops_an_incomplete_block():
    first, second = pair(4096)
    copy(first, large(source_pad=True), [blocks_segment(0, 1, 9, 1, 0)])
    assert second.store.data[:4096] == first.store.data[512 : 9 * 512] and not any(
        second.store.data[4096:]
    )


# -- what is wrong with the list -------------------------------------------------------------------

ONE = [blocks_segment(0, 1, 1, 0, 0)]


def test_an_empty_list_is_not_an_error():
    first, _ = pair()
    assert do(first, cdb(b'')) is None
    assert copy(first, (), ()) is None


@pytest.mark.parametrize('length', [1, 15, 16, 47, 48 + 31, 16 + 64 + 27])
def test_a_list_that_is_cut_is_refused(length):
    first, second = pair()
    data = lid1_list(BOTH, ONE)[:length]
    assert sense_of(first, cdb(data), data) == (5, 0x1A, 0)
    assert not any(second.store.data)


def test_a_list_shorter_than_announced_is_refused():
    first, _ = pair()
    data = lid1_list(BOTH, ONE)
    assert sense_of(first, cdb(data), data[:-1]) == (5, 0x1A, 0)


def test_limits_are_those_that_are_reported():
    first, _ = pair()
    parameters = reported(first, 0x03)
    targets, segments, listed = struct.unpack_from('>HHI', parameters, 8)
    copy(first, [BOTH[0]] * targets, [blocks_segment(0, 0, 0, 0, 0)] * segments, usage=3, name=0)
    assert code(failure(first, [BOTH[0]] * (targets + 1), ONE)) == (5, 0x26, 0x06)
    assert code(failure(first, BOTH, ONE * (segments + 1))) == (5, 0x26, 0x08)
    assert code(failure(first, [BOTH[0]] * (listed // 32 + 1), ONE)) == (5, 0x1A, 0x00)


def test_a_segment_longer_than_reported_is_refused():
    first, _ = pair()
    (longest,) = struct.unpack_from('>I', reported(first, 0x03), 16)
    assert code(failure(first, BOTH, [bytes_segment(0, 1, longest + 1, 0, 0)])) == (
        0x0A,
        0x26,
        0x00,
    )


@pytest.mark.parametrize(
    'cscds, segments, expected',
    [
        ([cscd(NAA, kind=0xE0)], ONE, (5, 0x26, 0x07)),
        (BOTH, [struct.pack('>BBHHH12x', 0x03, 0, 0x10, 0, 1)], (5, 0x26, 0x09)),
        (BOTH, [ONE[0][:3] + b'\x17' + ONE[0][4:]], (5, 0x26, 0x00)),
        (BOTH, [ONE[0][:-1]], (5, 0x1A, 0x00)),
        ([BOTH[0][:-1]], ONE, (5, 0x26, 0x00)),
    ],
)
@pytest.mark.clause('SPC-4 6.4', 'SPC-4 6.5')
def test_invalid_descriptors_are_refused(cscds, segments, expected):
    first, second = pair()
    assert code(failure(first, cscds, segments)) == expected
    assert not any(second.store.data)


@pytest.mark.parametrize('bits', [0x40, 0x80, 0xC0, 0x20])
@pytest.mark.clause('SPC-4 6.4', 'SPC-4 6.5')
def test_the_lu_id_type_and_the_obsolete_nul_bit_of_an_identification_descriptor_are_ignored(bits):
    """The designator names the unit. ExtendedCopy.ValidTgtDescr of libiscsi's suite expects this of a
    device that claims SPC-4."""
    first, second = pair()
    assert copy(first, (BOTH[0], cscd(SECOND_NAA, device_type=bits)), ONE) is None
    assert second.store.data[:512] == first.store.data[:512]


def test_inline_data_is_refused():
    assert code(failure(pair()[0], BOTH, ONE, inline=1)) == (5, 0x26, 0x0B)


@pytest.mark.parametrize(
    'more, field', [({'form': 0}, 0), ({'kind': 0xE4}, 16), ({'flags': 0x02}, 15)]
)
def test_the_lid4_header_is_checked(more, field):
    error = failure(pair()[0], BOTH, ONE, LID4, **more)
    assert code(error) == (5, 0x26, 0x00) and error.field[0] == field


@pytest.mark.parametrize('action, field', [(LID1, 0), (LID4, 20)])
def test_a_copy_without_a_list_identifier_has_no_status(action, field):
    first, _ = pair()
    error = failure(first, BOTH, ONE, action, usage=3, name=4)
    assert code(error) == (5, 0x26, 0x00) and error.field[0] == field
    copy(first, BOTH, ONE, action, usage=3, name=0)
    assert sense_of(first, struct.pack('>BBB7xIxx', 0x84, 0, 0, 100)) == (5, 0x24, 0)


def test_list_id_usage_01_is_reserved():
    assert code(failure(pair()[0], BOTH, ONE, usage=1)) == (5, 0x26, 0x00)


# -- what is wrong with an end ---------------------------------------------------------------------


@pytest.mark.parametrize(
    'cscds, segment, expected, field',
    [
        (BOTH, blocks_segment(0, 2, 1, 0, 0), (0x0A, 0x08, 0x04), 6),
        (BOTH, blocks_segment(9, 1, 1, 0, 0), (0x0A, 0x08, 0x04), 4),
        ((BOTH[0], cscd('6' + '9' * 31)), blocks_segment(0, 1, 1, 0, 0), (0x0A, 0x0D, 0x02), 6),
        (
            (BOTH[0], cscd(SECOND_NAA, device_type=1)),
            blocks_segment(0, 1, 1, 0, 0),
            (0x0A, 0x0D, 0x03),
            6,
        ),
        (BOTH, blocks_segment(0, 1, 2, BLOCKS - 1, 0), (0x0A, 0x00, 0x00), 12),
        (BOTH, blocks_segment(0, 1, 2, 0, BLOCKS - 1), (0x0A, 0x00, 0x00), 20),
    ],
)
def test_a_segment_with_an_invalid_source_or_destination_is_refused(
    cscds, segment, expected, field
):
    first, second = pair()
    error = failure(first, cscds, [blocks_segment(0, 0, 0, 0, 0), segment])
    assert code(error) == expected
    assert error.field == (field, None, True) and error.copy.segment == 1
    assert not any(second.store.data)


def test_a_block_length_that_differs_from_the_unit_is_refused():
    error = failure(pair()[0], (BOTH[0], cscd(SECOND_NAA, 4096)), ONE)
    assert code(error) == (0x0A, 0x26, 0x00) and error.field == (16 + 32 + 29, None, False)


def reserved(kind):
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


@pytest.mark.parametrize(
    'kind, source, is_refused', [(1, True, False), (3, True, True), (1, False, True)]
)
def test_reservations_of_others_refuse_a_copy_at_either_end(kind, source, is_refused):
    first, second = pair()
    second.replace_shared_state(reservations=reserved(kind))
    segment = blocks_segment(1, 0, 1, 0, 0) if source else blocks_segment(0, 1, 1, 0, 0)
    error = failure(first, BOTH, [segment])
    assert code(error) == ((0x0A, 0x0D, 0x01) if is_refused else None)
    if is_refused:
        assert error.copy.status == 0x18 and error.copy.is_source == source


def test_a_reservation_of_the_receiving_unit_refuses_the_command():
    first, _ = pair()
    first.replace_shared_state(reservations=reserved(1))
    data = lid1_list(BOTH, ONE)
    assert status_of(first, cdb(data), data) == 0x18


@pytest.mark.parametrize(
    'facts, medium, said',
    [
        ({'read_only': True}, 'ready', (7, 0x27, 0x00)),
        ({}, 'ejected', (2, 0x3A, 0x00)),
        ({}, 'failed', (4, 0x44, 0x00)),
    ],
)
def test_a_destination_that_cannot_be_written_is_refused(facts, medium, said):
    first, second = pair(medium=medium, **facts)
    error = failure(first, BOTH, ONE)
    assert code(error) == (0x0A, 0x0D, 0x01) and not error.copy.is_source
    assert (error.copy.sense[2], error.copy.sense[12], error.copy.sense[13]) == said


def test_a_read_only_unit_can_be_the_source_and_receive_the_command():
    first, second = pair(read_only=True)
    second.store.data[:512] = b'r' * 512
    copy(second, BOTH, [blocks_segment(1, 0, 1, 0, 0)])
    assert first.store.data[:512] == b'r' * 512


def test_an_unreadable_block_is_an_error_of_the_source():
    first, second = pair()
    first.store.bad = (3 * 512,)
    error = failure(first, BOTH, [blocks_segment(0, 1, 8, 0, 0)])
    assert code(error) == (0x0A, 0x0D, 0x01) and error.copy.is_source
    assert error.copy.sense[2] == 3 and error.copy.sense[3:7] == bytes([0, 0, 0, 3])


def test_a_full_destination_is_an_error_of_the_destination():
    first, second = pair()
    second.store.fail['copy'] = errno.ENOSPC
    error = failure(first, BOTH, ONE)
    assert not error.copy.is_source and (
        error.copy.sense[2],
        error.copy.sense[12],
        error.copy.sense[13],
    ) == (7, 0x27, 0x07)


@pytest.mark.parametrize(
    'medium, ready, expected',
    [('ready', True, None), ('ejected', False, None), ('ejected', True, (0x0A, 0x0D, 0x01))],
)
def test_verify_checks_that_the_unit_is_ready(medium, ready, expected):
    first, _ = pair(medium=medium)
    assert code(failure(first, BOTH, [verify_segment(1, ready)])) == expected


# -- how it went -----------------------------------------------------------------------------------


def test_the_status_of_a_copy_is_reported_once():
    first, _ = pair()
    copy(first, BOTH, [blocks_segment(0, 1, 4, 0, 0)] * 2, name=9)
    assert reported(first, 0x00, 9) == struct.pack('>IBHBI', 8, 1, 2, 0, 8 * 512)
    assert sense_of(first, struct.pack('>BBB7xIxx', 0x84, 0, 9, 100)) == (5, 0x24, 0)


def test_the_details_of_a_failure():
    first, _ = pair()
    error = failure(first, BOTH, ONE + [blocks_segment(0, 5, 1, 0, 0)], name=9)
    assert reported(first, 0x00, 9)[4:12] == struct.pack('>BHBI', 2, 1, 0, 512)
    details = reported(first, 0x04, 9)
    assert details[56] == 2 and details[60:] == error.sense()
    assert struct.unpack_from('>I', details)[0] == len(details) - 4
    assert struct.unpack_from('>H', details, 58)[0] == len(error.sense())


def test_no_details_of_a_success_and_no_held_data():
    first, _ = pair()
    copy(first, BOTH, ONE, name=9)
    assert reported(first, 0x04, 9) == reported(first, 0x01, 9) == bytes(4)


def test_the_status_of_a_lid4_copy_and_of_one_that_failed():
    first, _ = pair()
    copy(first, BOTH, ONE, LID4, name=0x01020304)
    status = reported(first, 0x05, 0x01020304)
    assert status[4:6] == bytes([LID4, 1]) and status[15:24] == bytes(1) + (512).to_bytes(8, 'big')
    assert struct.unpack_from('>H', status, 24)[0] == 1 and len(status) == 32
    error = failure(first, BOTH, [blocks_segment(0, 5, 1, 0, 0)], LID4, name=0x01020304)
    status = reported(first, 0x05, 0x01020304)
    assert status[5] == 2 and status[32:] == error.sense() and status[14] == len(error.sense())
    assert reported(first, 0x06, 0x01020304)[32 + status[13] :] == bytes(4)


def test_list_identifiers_of_8_and_of_32_bits_are_independent():
    first, _ = pair()
    copy(first, BOTH, ONE, LID4, name=5)
    assert sense_of(first, struct.pack('>BBB7xIxx', 0x84, 0, 5, 100)) == (5, 0x24, 0)


def begun(unit, cscds, segments, action=LID4, **more):
    data = (lid1_list if action == LID1 else lid4_list)(cscds, segments, **more)
    task = make_task(unit, cdb(data, action), data)
    unit.admit(task)
    task.data_out = data
    assert task.run(task) is WOULD_BLOCK
    return task


def test_a_list_identifier_in_use_is_refused_until_its_copy_ends():
    first, _ = pair()
    task = begun(first, BOTH, ONE, name=7)
    assert reported(first, 0x05, 7)[5] == 0x11
    assert code(failure(first, BOTH, ONE, LID4, name=7)) == (5, 0x00, 0x16)
    task.run_blocking(task)
    copy(first, BOTH, ONE, LID4, name=7)


def test_a_running_lid1_copy_is_reported_as_running():
    first, _ = pair()
    begun(first, BOTH, ONE, LID1, name=7)
    assert reported(first, 0x00, 7)[4] == 0
    for action in (0x01, 0x04):
        assert sense_of(first, struct.pack('>BBB7xIxx', 0x84, action, 7, 100)) == (5, 0x24, 0)


def test_records_are_bounded_and_those_of_running_copies_are_kept():
    first, _ = pair()
    kept = begun(first, BOTH, ONE, name=0xFFFF)
    for name in range(copy_manager.MAXIMUM_COPIES + 10):
        copy(first, BOTH, ONE, LID4, name=name)
    assert reported(first, 0x05, 0xFFFF)[5] == 0x11
    assert sense_of(first, struct.pack('>BBI4xIxx', 0x84, 5, 0, 100)) == (5, 0x24, 0)
    kept.run_blocking(kept)


def test_too_many_concurrent_copies_are_refused():
    first, _ = pair()
    for name in range(copy_manager.MAXIMUM_COPIES):
        begun(first, BOTH, ONE, name=name)
    assert code(failure(first, BOTH, ONE, LID4, name=1000)) == (5, 0x55, 0x03)


def test_a_task_that_is_aborted_stops_between_two_steps(monkeypatch):
    monkeypatch.setattr(extended_copy, 'STEP', 512)
    first, second = pair()
    task = begun(first, BOTH, [blocks_segment(0, 1, 8, 0, 0)] * 2, name=7)
    original = second.store.copy

    def copy_and_abort(*arguments):
        original(*arguments)
        task.aborted = True

    second.store.copy = copy_and_abort
    task.run_blocking(task)
    assert second.store.verbs().count('copy') == 1
    assert reported(first, 0x05, 7)[5] == 0x60


def test_copy_operation_abort(monkeypatch):
    monkeypatch.setattr(extended_copy, 'STEP', 512)
    first, second = pair()
    task = begun(first, BOTH, [blocks_segment(0, 1, 8, 0, 0)], name=7)
    original = second.store.copy

    def copy_and_stop(*arguments):
        original(*arguments)
        do(first, struct.pack('>BBI9xx', 0x83, 0x1C, 7))

    second.store.copy = copy_and_stop
    with pytest.raises(CheckCondition) as stopped:
        task.run_blocking(task)
    assert code(stopped.value) == (0x0A, 0, 0)
    assert second.store.verbs().count('copy') == 1
    assert reported(first, 0x05, 7)[5] == 0x60 and reported(first, 0x05, 7)[16:24] == (
        512
    ).to_bytes(8, 'big')


def test_an_abort_of_an_unknown_copy_is_refused():
    assert sense_of(pair()[0], struct.pack('>BBI9xx', 0x83, 0x1C, 7)) == (5, 0x24, 0)


@pytest.mark.parametrize(
    'length, units, count',
    [(0, 0, 0), (0xFFFFFFFF, 0, 0xFFFFFFFF), (1 << 32, 1, 1 << 22), (1 << 45, 2, 1 << 25)],
)
def test_counts_fit_their_field(length, units, count):
    assert copy_manager.count_in_units(length) == (units, count)


# -- what is reported ------------------------------------------------------------------------------


def third_party_page(unit):
    page = unit.vpd_page(0x8F)
    assert struct.unpack_from('>H', page, 2)[0] == len(page) - 4
    found, at = {}, 4
    while at < len(page):
        kind, length = struct.unpack_from('>HH', page, at)
        assert length % 4 == 0 and list(found) == sorted(found)
        found[kind] = page[at + 4 : at + 4 + length]
        at += 4 + length
    assert at == len(page)
    return found


def test_page_8f_lists_exactly_the_supported_service_actions():
    first, _ = pair()
    commands = third_party_page(first)[0x0001]
    listed, at = {}, 1
    while at < 1 + commands[0]:
        listed[commands[at]] = set(commands[at + 2 : at + 2 + commands[at + 1]])
        at += 2 + commands[at + 1]
    assert listed == {opcode: set(first.commands[opcode]) for opcode in (0x83, 0x84)}


def test_page_8f_and_the_operating_parameters_agree():
    first, _ = pair()
    page, parameters = third_party_page(first), reported(first, 0x03)
    assert struct.unpack_from('>HHI', page[0x0004], 4) == struct.unpack_from('>HHI', parameters, 8)
    assert page[0x0008][1 : 1 + page[0x0008][0]] == parameters[44 : 44 + parameters[43]]
    assert struct.unpack_from('>I', page[0x8001], 8) == struct.unpack_from('>I', parameters, 16)
    assert struct.unpack_from('>I', parameters)[0] == len(parameters) - 4


def test_a_unit_with_copies_disabled_does_not_report_them():
    unit = make_unit(third_party_copy=False)
    assert sense_of(unit, cdb(b'')) == (5, 0x20, 0)
    assert 0x8F not in unit.vpd_page(0x00)[4:]
    assert sense_of(unit, bytes.fromhex('12 01 8F 00FF 00')) == (5, 0x24, 0)
    assert not do(unit, bytes.fromhex('12 00 00 00FF 00'))[5] & 0x08
    assert (
        do(make_unit(), bytes.fromhex('12 00 00 00FF 00'))[5] & 0x08
        and 0x8F in make_unit().vpd_page(0x00)[4:]
    )


def test_a_unit_with_copies_disabled_is_neither_source_nor_destination():
    first, second = pair()
    second.facts = second.facts._replace(third_party_copy=False)
    assert code(failure(first, BOTH, ONE)) == (0x0A, 0x0D, 0x02)


# -- what goes wrong late --------------------------------------------------------------------------


def test_errors_of_padding_and_flushing_are_errors_of_the_destination():
    first, second = pair(4096)
    second.store.fail['write'] = errno.ENOSPC
    second.store.copy = lambda *arguments: None
    error = failure(first, large(pad=True), [blocks_segment(0, 1, 9, 0, 0)])
    assert (
        code(error) == (0x0A, 0x0D, 0x01) and not error.copy.is_source and error.copy.sense[2] == 7
    )
    first, second = pair(write_cache=False)
    second.store.fail['flush'] = errno.EIO
    error = failure(first, BOTH, ONE)
    assert (
        code(error) == (0x0A, 0x0D, 0x01) and not error.copy.is_source and error.copy.sense[2] == 3
    )


def test_an_unexpected_exception_is_recorded_as_a_failed_copy():
    first, second = pair()
    task = begun(first, BOTH, ONE, name=7)
    second.store.copy = None
    with pytest.raises(TypeError):
        task.run_blocking(task)
    status = reported(first, 0x05, 7)
    assert status[5] == 2 and status[34] == 4


def test_a_list_longer_than_the_maximum_is_refused_before_its_data():
    assert sense_of(pair()[0], struct.pack('>BB8xIxx', 0x83, 0, 1 << 20), b'') == (5, 0x1A, 0)
