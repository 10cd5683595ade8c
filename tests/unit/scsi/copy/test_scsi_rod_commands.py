"""ROD tokens and the commands that create and use them, with a fake of the master that creates
numbered tokens."""

import errno
import struct

import pytest
from fake_store import (
    BLOCKS,
    MemoryStore,
    block_cdb,
    do,
    error_of,
    make_task,
    make_unit,
    pattern,
    sense_of,
)

from targetd.scsi.copy import copy_manager, rod_commands, rod_tokens
from targetd.scsi.facts import UnitFacts
from targetd.scsi.sense import CheckCondition

NAA = '6' + '1' * 31
ZERO = struct.pack('>I2xH', 0xFFFF0001, 0x1F8).ljust(512, b'\0')


class Desk(object):
    """A fake of unit.services.rod_tokens. `asked` has the requests; `source` is the store whose
    data the tokens represent."""

    def __init__(self, source):
        self.source = source
        self.asked = []
        self.given = {}
        self.refuse_at_the_end = None

    def populate(self, ranges, seconds):
        self.asked.append(('populate', ranges, seconds))
        token = rod_tokens.make_token(
            UnitFacts.from_message({'naa': NAA}),
            len(self.given),
            rod_tokens.total_length(ranges),
            'iqn.x:y',
            bytes([len(self.given)]) * rod_tokens.SECRET_LENGTH,
        )
        self.given[token] = ranges
        return token

    def use(self, token, is_last):
        self.asked.append(('use', is_last))
        if token not in self.given:
            raise CheckCondition(5, 0x23, 0x04)
        return Use(self, self.given[token])

    def revoke(self, offset, length):
        self.asked.append(('revoke', offset, length))

    def tokens(self):
        return [token[:96] for token in self.given]


class Use(object):
    def __init__(self, desk, ranges):
        self.desk, self.ranges, self.store = desk, ranges, desk.source

    def check(self):
        self.desk.asked.append(('check',))
        if self.desk.refuse_at_the_end:
            raise self.desk.refuse_at_the_end

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.desk.asked.append(('over',))


def make(**facts):
    unit = make_unit(naa=NAA, **facts)
    unit.store.data[:] = pattern(len(unit.store.data) // unit.block_size, unit.block_size)
    unit.services.rod_tokens = Desk(unit.store)
    return unit


def ranges_of(pairs):
    return b''.join(struct.pack('>QI4x', lba, blocks) for lba, blocks in pairs)


def populate_list(pairs, timeout=0, flags=0, kind=0):
    body = ranges_of(pairs)
    return struct.pack('>HBxII2xH', 14 + len(body), flags, timeout, kind, len(body)) + body


def write_list(token, pairs, offset=0, flags=0):
    body = ranges_of(pairs)
    return (
        struct.pack('>HB5xQ', 534 + len(body), flags, offset)
        + token
        + struct.pack('>6xH', len(body))
        + body
    )


def cdb(action, data, name=1):
    return struct.pack('>BB4xIIBB', 0x83, action, name, len(data), 0, 0)


def populate(unit, pairs, name=1, **more):
    data = populate_list(pairs, **more)
    return do(unit, cdb(0x10, data, name), data)


def populate_error(unit, pairs, **more):
    data = populate_list(pairs, **more)
    return error_of(unit, cdb(0x10, data), data)


def write(unit, token, pairs, name=2, **more):
    data = write_list(token, pairs, **more)
    return do(unit, cdb(0x11, data, name), data)


def write_error(unit, token, pairs, **more):
    data = write_list(token, pairs, **more)
    return error_of(unit, cdb(0x11, data), data)


def information(unit, name):
    return bytes(do(unit, struct.pack('>BBI4xIxx', 0x84, 0x07, name, 1024)))


def token_of(unit, name=1):
    reported = information(unit, name)
    return reported[32 + reported[13] + 6 :]


def code(error):
    return error and (error.key, error.asc, error.ascq)


# -- POPULATE TOKEN --------------------------------------------------------------------------------


def test_a_token_is_created_and_reported():
    unit = make()
    assert populate(unit, [(8, 4), (0, 2)], timeout=30) is None
    assert unit.services.rod_tokens.asked == [('populate', [(8 * 512, 4 * 512), (0, 2 * 512)], 30)]
    reported = information(unit, 1)
    assert (
        reported[4:6] == b'\x10\x01'
        and reported[15] == 0xF1
        and struct.unpack_from('>Q', reported, 16)[0] == 6
    )
    assert struct.unpack_from('>I', reported)[0] == len(reported) - 4
    assert (
        struct.unpack_from('>IH', reported, 32) == (514, 0)
        and reported[38:] in unit.services.rod_tokens.given
    )


def test_a_token_contains_its_creator_and_its_size():
    token = rod_tokens.make_token(
        UnitFacts.from_message({'naa': NAA, 'block_size': 4096}), 77, 1 << 20, 'iqn.x:y', b's' * 64
    )
    assert len(token) == 512 and token[:8] == b'\x00\x80\x00\x01\x00\x00\x01\xf8'
    assert token[8:16] == (77).to_bytes(8, 'big')
    assert (
        token[16] == 0xE4
        and token[20:24] == b'\x01\x03\x00\x10'
        and token[24:40] == bytes.fromhex(NAA)
    )
    assert token[48:64] == (1 << 20).to_bytes(16, 'big') and token[96:100] == (4096).to_bytes(
        4, 'big'
    )
    assert token[-64:] == b's' * 64 and b'iqn.x:y' in token[128:-64]


def test_the_longest_target_name_does_not_cut_the_secret():
    token = rod_tokens.make_token(
        UnitFacts.from_message({'naa': NAA}), 1, 512, 'iqn.2026-11.x:' + 'y' * 209, b's' * 64
    )
    assert len(token) == 512 and token[-64:] == b's' * 64


@pytest.mark.parametrize('kind', [0x00800000, 0x00800001, 0x0080FFFF])
def test_point_in_time_tokens_are_supported(kind):
    assert populate(make(), [(0, 1)], flags=0x02, kind=kind) is None


@pytest.mark.parametrize(
    'pairs, more, expected, field',
    [
        # access upon reference: ours is none
        ([(0, 1)], {'flags': 0x02, 'kind': 0x00010000}, (5, 0x26, 0x00), 8),
        ([(0, 1)], {'timeout': copy_manager.MAXIMUM_TIMEOUT + 1}, (5, 0x26, 0x00), 4),
        ([], {}, (5, 0x26, 0x00), 14),
        ([(0, 0)], {}, (5, 0x26, 0x00), 14),
        ([(0, 2), (1, 1)], {}, (5, 0x26, 0x00), 16),
        ([(0, 1), (BLOCKS, 1)], {}, (5, 0x21, 0x00), 32),
    ],
)
def test_invalid_requests_create_no_token(pairs, more, expected, field):
    unit = make()
    error = populate_error(unit, pairs, **more)
    assert code(error) == expected and error.field == (field, None, False)
    assert not unit.services.rod_tokens.asked


def test_limits_are_those_of_page_8f():
    unit = make()
    page = unit.vpd_page(0x8F)
    assert page[4:8] == b'\x00\x00\x00\x20', (
        'Windows wants the block device ROD limits in the first place'
    )
    ranges, longest, default, most, optimal = struct.unpack_from('>HIIQQ', page, 14)
    assert populate(unit, [(n, 1) for n in range(ranges)], timeout=longest) is None
    assert populate(unit, [(0, 1)]) is None
    assert unit.services.rod_tokens.asked[-1][2] == default and optimal <= most
    assert code(populate_error(unit, [(n, 1) for n in range(ranges + 1)])) == (5, 0x26, 0x08)
    large = make_unit(store=Endless(), naa=NAA)
    large.services.rod_tokens = Desk(large.store)
    assert populate(large, [(0, most)]) is None
    assert code(populate_error(large, [(0, most + 1)])) == (5, 0x26, 0x00)


class Endless(MemoryStore):
    def __init__(self):
        super(Endless, self).__init__(512)
        self.size = 1 << 40


@pytest.mark.parametrize('cut', [1, 15, 31])
def test_a_truncated_list_is_refused(cut):
    data = populate_list([(0, 1)])[:cut]
    assert sense_of(make(), cdb(0x10, data), data) == (5, 0x1A, 0)


def test_an_inconsistent_list_is_refused():
    data = bytearray(populate_list([(0, 1), (4, 1)]))
    data[1] -= 16
    assert sense_of(make(), cdb(0x10, data), bytes(data)) == (5, 0x26, 0)
    data = bytearray(populate_list([(0, 1)]))
    data[1] = 13
    assert sense_of(make(), cdb(0x10, data), bytes(data)) == (5, 0x26, 0)
    data[:2], data[15] = b'\0\x1e', 15
    assert sense_of(make(), cdb(0x10, data), bytes(data)) == (5, 0x26, 0)


@pytest.mark.parametrize('action', [0x10, 0x11])
def test_an_empty_list_is_not_an_error(action):
    assert do(make(), cdb(action, b'')) is None


# -- WRITE USING TOKEN -----------------------------------------------------------------------------


def test_the_data_of_a_token_is_written():
    unit = make()
    populate(unit, [(8, 4), (100, 4)])
    write(unit, token_of(unit), [(1000, 1), (1010, 5)])
    data = unit.store.data
    assert [data[lba * 512] for lba in (1000, 1010, 1011, 1012, 1013, 1014)] == [
        8,
        9,
        10,
        11,
        100,
        101,
    ]
    assert unit.services.rod_tokens.asked[1:] == [('use', False), ('check',), ('over',)]
    reported = information(unit, 2)
    assert (
        reported[4:6] == b'\x11\x01'
        and struct.unpack_from('>Q', reported, 16)[0] == 6
        and reported[32:36] == bytes(4)
    )


def test_an_offset_counts_in_blocks_of_the_unit_that_is_written():
    unit = make()
    populate(unit, [(8, 4)])
    write(unit, token_of(unit), [(1000, 2)], offset=2, flags=0x02)
    assert unit.store.data[1000 * 512] == 10 and unit.store.data[1001 * 512] == 11
    assert unit.services.rod_tokens.asked[1] == ('use', True)


def test_a_token_shorter_than_the_ranges_is_not_an_error_and_is_reported():
    unit = make()
    populate(unit, [(8, 4)])
    before = bytes(unit.store.data[1004 * 512 : 1008 * 512])
    assert write(unit, token_of(unit), [(1000, 8)]) is None
    assert unit.store.data[1004 * 512 : 1008 * 512] == before
    reported = information(unit, 2)
    assert reported[5] == 0x03 and struct.unpack_from('>Q', reported, 16)[0] == 4


def test_an_offset_beyond_the_token_is_refused():
    unit = make()
    populate(unit, [(8, 4)])
    error = write_error(unit, token_of(unit), [(1000, 1)], offset=5)
    assert code(error) == (5, 0x26, 0x00) and error.field == (8, None, False)


def test_part_of_a_large_block_is_not_written():
    small, large = make(), make_unit(blocks=512, block_size=4096)
    large.services.rod_tokens = small.services.rod_tokens
    populate(small, [(0, 9)])
    assert code(write_error(large, token_of(small), [(0, 2)])) == (0x0A, 0x26, 0x0A)
    assert not any(large.store.data)


def test_a_token_revoked_meanwhile_fails_the_command():
    unit = make()
    populate(unit, [(8, 4)])
    unit.services.rod_tokens.refuse_at_the_end = CheckCondition(5, 0x23, 0x06)
    assert code(write_error(unit, token_of(unit), [(1000, 4)])) == (5, 0x23, 0x06)
    assert information(unit, 1)[5] == 0x02, 'the failed command took the name 1'


@pytest.mark.parametrize(
    'token, expected',
    [
        (bytes(512), (5, 0x23, 0x0A)),
        (b'\0\1\0\0\0\0\1\xf8' + bytes(504), (5, 0x23, 0x01)),
        (b'\0\x80\0\1\0\0\1\xf8' + bytes(504), (5, 0x23, 0x04)),
    ],
)
def test_invalid_tokens_are_refused(token, expected):
    assert code(write_error(make(), token, [(0, 1)])) == expected


@pytest.mark.parametrize('source', [True, False])
def test_the_sense_data_tells_an_error_of_the_source_from_one_of_the_destination(source):
    unit = make()
    populate(unit, [(8, 4)])
    unit.services.rod_tokens.source = MemoryStore(1 << 20)
    if source:
        unit.services.rod_tokens.source.fail['read'] = errno.EIO
    else:
        unit.store.fail['write'] = errno.ENOSPC
    error = write_error(unit, token_of(unit), [(1000, 4)])
    assert code(error) == (0x0A, 0x0D, 0x01) and error.copy.is_source == source
    assert error.copy.sense[2] == (3 if source else 7)


def test_writing_by_token_is_durable_if_the_write_cache_is_disabled():
    unit = make(write_cache=False)
    populate(unit, [(8, 4)])
    write(unit, token_of(unit), [(1000, 4)])
    assert unit.store.verbs()[-1] == 'flush'
    unit.store.fail['flush'] = errno.EIO
    assert write_error(unit, ZERO, [(0, 1)]).key == 3


def test_the_zero_token():
    unit = make()
    write(unit, ZERO, [(3, 2), (9, 1)])
    assert not any(unit.store.data[3 * 512 : 5 * 512]) and not any(
        unit.store.data[9 * 512 : 10 * 512]
    )
    assert unit.store.data[5 * 512] == 5 and not unit.services.rod_tokens.asked
    unit.store.fail['write_zeroes'] = errno.ENOSPC
    assert code(write_error(unit, ZERO, [(0, 1)])) == (7, 0x27, 0x07)


def test_a_read_only_unit_creates_tokens_and_refuses_writes_by_token():
    unit = make(read_only=True)
    populate(unit, [(8, 4)])
    assert code(write_error(unit, token_of(unit), [(1000, 4)])) == (7, 0x27, 0x00)


def begun(unit, data, action=0x11):
    task = make_task(unit, cdb(action, data, 9), data)
    unit.admit(task)
    task.data_out = data
    task.run(task)
    return task


@pytest.mark.parametrize('zero', [True, False])
def test_copy_operation_abort_ends_it_between_two_steps(zero, monkeypatch):
    unit = make()
    populate(unit, [(0, 1), (2, 1), (4, 1)])
    monkeypatch.setattr(rod_commands, 'ZERO_STEP', 512)
    verb = 'write_zeroes' if zero else 'copy'
    task = begun(unit, write_list(ZERO if zero else token_of(unit), [(1000, 3)]))
    original = getattr(unit.store, verb)

    def stop(*arguments):
        original(*arguments)
        do(unit, struct.pack('>BBI9xx', 0x83, 0x1C, 9))

    setattr(unit.store, verb, stop)
    with pytest.raises(CheckCondition) as stopped:
        task.run_blocking(task)
    assert code(stopped.value) == (0x0A, 0, 0) and unit.store.verbs().count(verb) == 1
    assert information(unit, 9)[5] == 0x60


def test_an_aborted_task_stops_and_releases_the_token():
    unit = make()
    populate(unit, [(0, 1), (2, 1)])
    task = begun(unit, write_list(token_of(unit), [(1000, 2)]))
    task.aborted = True
    assert task.run_blocking(task) is None
    assert 'copy' not in unit.store.verbs() and unit.services.rod_tokens.asked[-1] == ('over',)
    assert information(unit, 9)[5] == 0x60


def test_report_all_rod_tokens_does_not_report_the_secrets():
    unit = make()
    populate(unit, [(8, 4)])
    reported = do(unit, struct.pack('>BB8xIxx', 0x84, 0x08, 4096))
    assert reported == struct.pack('>I4x', 100) + token_of(unit)[:96]


# -- what revokes ----------------------------------------------------------------------------------


def watched(**facts):
    unit = make(**facts)
    unit.replace_shared_state(watched=[[8 * 512, 12 * 512]])
    return unit


@pytest.mark.parametrize('opcode', [0x0A, 0x2A, 0xAA, 0x8A, 0x2E, 0x8E])
@pytest.mark.parametrize(
    'lba, blocks, touches', [(7, 1, False), (7, 2, True), (11, 5, True), (12, 1, False)]
)
def test_a_write_revokes_the_tokens_of_its_range(opcode, lba, blocks, touches):
    unit = watched()
    data = bytes([0xEE]) * (blocks * 512)
    order = []
    unit.services.rod_tokens.revoke = lambda *arguments: order.append(
        (arguments, bytes(unit.store.data[lba * 512 : lba * 512 + 1]))
    )
    do(unit, block_cdb(opcode, lba, blocks), data)
    assert unit.store.data[lba * 512 : (lba + blocks) * 512] == data
    assert order == ([((lba * 512, blocks * 512), bytes([lba]))] if touches else []), (
        'revoked once, before anything is written'
    )


def test_a_write_that_cannot_revoke_writes_nothing():
    unit = watched()

    def refuse(*arguments):
        raise CheckCondition(4, 0x44, 0)

    unit.services.rod_tokens.revoke = refuse
    assert sense_of(unit, block_cdb(0x2A, 8, 1), bytes([0xEE]) * 512) == (4, 0x44, 0)
    assert unit.store.data[8 * 512] == 8


def test_a_command_with_an_unknown_range_revokes_all_tokens():
    unit = watched(unmap=True)
    data = struct.pack('>HH4xQI4x', 22, 16, 100, 1)
    do(unit, bytes.fromhex('42 00 00000000 00') + struct.pack('>Hx', len(data)), data)
    assert unit.services.rod_tokens.asked == [('revoke', 0, BLOCKS * 512)]


def test_reads_and_units_without_tokens_revoke_nothing():
    unit = watched()
    do(unit, block_cdb(0x28, 8, 1))
    assert not unit.services.rod_tokens.asked
    unit.replace_shared_state(watched=[])
    plain = make()
    for opcode in (0x0A, 0x2A, 0x8A, 0xAA):
        assert unit.dispatch[opcode].__code__ is plain.dispatch[opcode].__code__, (
            'the hot admission is back'
        )
    do(unit, block_cdb(0x2A, 8, 1), bytes(512))
    assert not unit.services.rod_tokens.asked


def test_writing_by_token_revokes_only_its_own_ranges():
    unit = watched()
    populate(unit, [(100, 4)])
    write(unit, token_of(unit), [(20, 2), (11, 2)])
    assert [asked for asked in unit.services.rod_tokens.asked if asked[0] == 'revoke'] == [
        ('revoke', 11 * 512, 2 * 512)
    ]
    assert not unit.copy_writes
    write(unit, ZERO, [(8, 1), (30, 1)])
    assert unit.services.rod_tokens.asked[-1] == ('revoke', 8 * 512, 512)


def test_extended_copy_revokes_tokens():
    unit = watched()
    segment = struct.pack('>BBHHHxxHQQ', 0x02, 0, 0x18, 0xFFFF, 0xFFFF, 2, 100, 7)
    data = struct.pack('>BBH4xII', 1, 0, 0, len(segment), 0) + segment
    do(unit, struct.pack('>BB8xIxx', 0x83, 0, len(data)), data)
    assert unit.services.rod_tokens.asked == [('revoke', 7 * 512, 2 * 512)]


def test_an_admitted_task_revokes_tokens_that_are_created_later():
    unit = make()
    task = make_task(unit, block_cdb(0x2A, 8, 1), bytes(512))
    unit.admit(task)
    task.transfer = object()
    unit.replace_shared_state(watched=[[0, 1 << 20]])
    assert unit.guard_from_new_tokens(task) is None
    task.data_out = bytes(512)
    task.run(task)
    task.run_blocking(task)
    assert unit.services.rod_tokens.asked == [('revoke', 8 * 512, 512)]


@pytest.mark.parametrize(
    'cdb, data, expected',
    [
        (block_cdb(0x2A, 8, 2), bytes(1024), (8 * 512, 1024)),
        (block_cdb(0x28, 8, 2), None, None),
        (bytes.fromhex('42 00 00000000 00 0008 00'), bytes(8), (0, BLOCKS * 512)),
    ],
)
def test_running_writes_are_known_when_tokens_are_created(cdb, data, expected):
    unit = make(unmap=True)
    task = make_task(unit, cdb, data)
    unit.admit(task)
    assert unit.guard_from_new_tokens(task) == expected


def test_a_task_that_is_not_admitted_yet_is_not_a_running_write():
    unit = make()
    assert unit.guard_from_new_tokens(make_task(unit, block_cdb(0x2A, 8, 1), bytes(512))) is None


def test_the_current_range_of_a_copy_is_a_running_write():
    unit = make()
    populate(unit, [(0, 1)])
    seen = []
    original = unit.store.copy
    unit.store.copy = lambda *arguments: (seen.append(list(unit.copy_writes)), original(*arguments))
    write(unit, token_of(unit), [(1000, 1)])
    assert seen == [[[1000 * 512, 512]]] and unit.copy_writes == []


# -- ranges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'source, skip, destination, expected',
    [
        ([(0, 10)], 0, [(100, 10)], [(0, 100, 10)]),
        ([(0, 10), (50, 5)], 8, [(100, 3), (200, 9)], [(8, 100, 2), (50, 102, 1), (51, 200, 4)]),
        ([(0, 4)], 4, [(100, 4)], []),
        ([(0, 4)], 0, [], []),
    ],
)
def test_ranges_are_divided_into_pieces(source, skip, destination, expected):
    assert rod_tokens.match_ranges(source, skip, destination) == expected


def test_union_and_touches():
    merged = rod_tokens.merge_ranges([(10, 5), (0, 5), (5, 2), (12, 10)])
    assert merged == [[0, 7], [10, 22]]
    assert [rod_tokens.overlaps(merged, offset, 1) for offset in (6, 7, 9, 10, 21, 22)] == [
        True,
        False,
        False,
        True,
        True,
        False,
    ]
