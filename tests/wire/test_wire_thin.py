"""Tests of thin provisioning on a file system that becomes full, and of the related mode pages,
also after a restart."""

import struct
import threading

import pytest
from daemon import eventually
from initiator import CHECK_CONDITION, GOOD, pattern

pytestmark = pytest.mark.wire

ONE, TWO = 'iqn.2026-11.test:one', 'iqn.2026-11.test:two'
MIB = 1 << 20
TEST_UNIT_READY = bytes(6)
THRESHOLD_REACHED, NO_SPACE, PARAMETERS_CHANGED = (6, 0x38, 0x07), (7, 0x27, 0x07), (6, 0x2A, 0x01)


@pytest.fixture
def thin(small_disk, daemon):
    """A daemon with a thin disk of 64 MiB on a file system of 16 MiB."""
    daemon.target(
        luns={
            0: [
                'backing-store = %s/thin.img' % small_disk(16),
                'size = 64M',
                'thin = yes',
                'thin-threshold = 50',
            ]
        }
    )
    return daemon.start()


def unmap(session, lba, blocks):
    data = struct.pack('>HH4xQI4x', 22, 16, lba, blocks)
    return session.run(struct.pack('>BB5xHB', 0x42, 0, len(data), 0), out=data)


def mode_page(session, code, subpage=0, control=0):
    """A mode page as MODE SENSE(10) shows it, without block descriptor."""
    cdb = struct.pack('>BBBB3xHB', 0x5A, 8, control << 6 | code, subpage, 255, 0)
    return session.run(cdb, read=255).good().data[8:]


def select(session, page, save=False):
    data = bytes(8) + bytes([page[0] & 0x7F]) + page[1:]
    return session.run(struct.pack('>BB5xHB', 0x55, 0x10 | save, len(data), 0), out=data)


def reported(session):
    """Sends commands until there is a unit attention; returns its sense."""
    return eventually(lambda: session.run(TEST_UNIT_READY).key, 15, 'a unit attention')


def write_until_full(session, start, end):
    """Writes one MiB after another; returns the sense data of the first failure, or None."""
    for lba in range(start * 2048, end * 2048, 2048):
        result = session.run(
            struct.pack('>BBQIBB', 0x8A, 0, lba, 2048, 0, 0), out=pattern(lba, MIB)
        )
        if result.status == CHECK_CONDITION:
            return result.key
    return None


def lba_status(session, lba):
    data = session.run(struct.pack('>BBQIBB', 0x9E, 0x12, lba, 1024, 0, 0), read=1024).good().data
    assert struct.unpack_from('>I', data)[0] == len(data) - 4
    return [struct.unpack_from('>QIB', data, at) for at in range(8, len(data), 16)]


def test_all_sessions_get_the_threshold_unit_attention_before_the_space_is_exhausted(thin, ready):
    one, other = ready(thin, name=ONE), ready(thin, name=TWO)
    exponent = one.inquiry(page=0xB2)[4]
    assert 512 << exponent == MIB
    page = mode_page(one, 0x1C, 2)
    # 50 % of 16 MiB, available, falling
    assert struct.unpack_from('>BBxxI', page, 16) == (0x80, 1, 8)
    assert one.run(TEST_UNIT_READY).status == other.run(TEST_UNIT_READY).status == GOOD
    assert thin.process.poll() is None
    assert write_until_full(one, 0, 10) is None
    assert reported(one) == reported(other) == THRESHOLD_REACHED
    thin.logged('thin provisioning threshold is reached')
    assert one.run(TEST_UNIT_READY).status == GOOD


@pytest.mark.clause('SBC-3 5.28')
def test_exhausted_space_is_reported_and_unmap_ends_the_condition(thin, ready):
    session = ready(thin)
    session.write(0, pattern(3, 65536))
    met = write_until_full(session, 1, 64)
    while met == THRESHOLD_REACHED:  # it came between two of the writes
        met = write_until_full(session, 1, 64)
    assert met == NO_SPACE
    assert session.read(0, 128) == pattern(3, 65536), 'what was there still is'
    assert unmap(session, 2048, 2048 * 40).status in (GOOD, CHECK_CONDITION)
    unmap(session, 2048, 2048 * 40).good()
    session.write(2048 * 50, pattern(5, 65536), fua=True)
    assert session.read(2048 * 50, 128) == pattern(5, 65536)
    assert session.read(2048 * 2, 128) == bytes(65536)


@pytest.mark.clause('SBC-3 5.4')
def test_lba_status_follows_what_is_written_and_unmapped(thin, ready):
    session = ready(thin)
    assert lba_status(session, 0) == [(0, 64 * 2048, 1)]
    session.write(2048, pattern(1, MIB))
    assert lba_status(session, 0) == [(0, 2048, 1), (2048, 2048, 0), (4096, 62 * 2048, 1)]
    assert lba_status(session, 3000)[0] == (3000, 1096, 0)
    unmap(session, 2048, 1024).good()
    assert lba_status(session, 0)[:2] == [(0, 3072, 1), (3072, 1024, 0)]
    capacity = session.run(struct.pack('>BBQIBB', 0x9E, 0x10, 0, 32, 0, 0), read=32).good().data
    # LBPME, LBPRZ
    assert capacity[14] & 0xC0 == 0xC0 and session.inquiry(page=0xB2)[5] & 0x04 == 0x04
    assert capacity[13] & 0x0F == 0, 'a file has physical blocks like its logical ones'
    assert session.run(struct.pack('>BBQIBB', 0x9E, 0x12, 64 * 2048, 24, 0, 0), read=24).key == (
        5,
        0x21,
        0,
    )


@pytest.mark.clause('SBC-3 5.43', 'SBC-3 5.44')
@pytest.mark.parametrize('opcode', [0x41, 0x93], ids=['write-same-10', 'write-same-16'])
def test_write_same_with_unmap_reads_back_as_the_block_that_was_sent(thin, ready, opcode):
    """An initiator may set UNMAP with any block: later reads behave as if it had been written."""
    session = ready(thin)
    session.write(0, pattern(1, 65536))

    def write_same(lba, blocks, block):
        if opcode == 0x41:
            cdb = struct.pack('>BBIxHB', opcode, 0x08, lba, blocks, 0)
        else:
            cdb = struct.pack('>BBQIBB', opcode, 0x08, lba, blocks, 0, 0)
        return session.run(cdb, out=block)

    ones = b'\xff' * 512
    write_same(8, 16, ones).good()
    assert session.read(8, 16) == ones * 16
    assert lba_status(session, 8)[0][2] == 0, 'the blocks are mapped'
    write_same(0, 128, bytes(512)).good()
    assert session.read(0, 128) == bytes(65536)
    assert lba_status(session, 0)[0][:2] == (0, 64 * 2048), 'the blocks are unmapped'


def test_a_thin_file_that_is_served_read_only_stays_thin(daemon, ready):
    """A read-only unit reports the same provisioning as a writable one, and all blocks are write-
    protected."""
    path = daemon.image(size=8 * MIB)
    with open(path, 'r+b') as file:
        file.write(pattern(1, MIB))
    daemon.target(luns={0: ['backing-store = %s' % path, 'thin = yes', 'readonly = yes']})
    session = ready(daemon.start())
    capacity = session.run(struct.pack('>BBQIBB', 0x9E, 0x10, 0, 32, 0, 0), read=32).good().data
    # LBPME, LBPRZ, LBPU, LBPWS, LBPWS10
    assert capacity[14] & 0xC0 == 0xC0 and session.inquiry(page=0xB2)[5] & 0xE4 == 0xE4
    assert unmap(session, 0, 2048).key == (7, 0x27, 0)
    assert session.read(0, 2048) == pattern(1, MIB)
    assert lba_status(session, 0) == [(0, 2048, 0), (2048, 14336, 1)]


def test_a_thick_file_has_no_threshold(served, ready):
    session = ready(served)
    assert session.inquiry(page=0xB2)[4] == 0
    cdb = struct.pack('>BBBB3xHB', 0x5A, 8, 0x1C, 2, 255, 0)
    assert session.run(cdb, read=255).key == (5, 0x24, 0)


# -- mode pages ------------------------------------------------------------------------------------


def with_cache(page, on):
    return page[:2] + bytes([page[2] & ~4 | (4 if on else 0)]) + page[3:]


@pytest.mark.clause('SPC-4 6.11')
def test_a_saved_mode_page_is_kept_after_a_kill_of_the_server(served, ready):
    session, other = ready(served, name=ONE), ready(served, name=TWO)
    page = mode_page(session, 0x08)
    assert page[2] & 4
    assert select(session, with_cache(page, False), save=True).status == GOOD
    assert session.run(TEST_UNIT_READY).status == GOOD
    assert other.run(TEST_UNIT_READY).key == PARAMETERS_CHANGED
    assert select(session, with_cache(page, False), save=True).status == GOOD
    assert other.run(TEST_UNIT_READY).status == GOOD, (
        'nothing changed, so no unit attention is pending'
    )
    served.workers()
    served.kill()
    served.start()
    again = ready(served, name=ONE)
    assert [mode_page(again, 0x08, control=control)[2] & 4 for control in (0, 2, 3)] == [0, 4, 0]
    assert select(again, with_cache(mode_page(again, 0x08), True)).status == GOOD
    assert [mode_page(again, 0x08, control=control)[2] & 4 for control in (0, 2, 3)] == [4, 4, 0]


def test_mode_pages_set_by_the_configuration(daemon, ready):
    daemon.target(
        luns={
            0: [
                'backing-store = %s' % daemon.image(),
                'management-url = https://storage.test/',
                'mode-page = 2:0:14:0x80:0x80:0:0xa:0:0:0:0:0:0:0:0:0:0, 0x20:1:2:7:8',
            ]
        }
    )
    session = ready(daemon.start())
    assert mode_page(session, 0x02) == bytes.fromhex('020e8080000a') + bytes(10)
    assert mode_page(session, 0x20, 1) == bytes.fromhex('600100020708')
    assert session.inquiry(page=0x85)[8:] == b'https://storage.test/\0\0\0'
    assert session.inquiry(page=0x92)[4:] == bytes.fromhex('00000000 0001')
    listed = session.inquiry(page=0x00)[4:]
    assert list(listed) == sorted(listed) and {0x85, 0x92} <= set(listed) and 0xB3 not in listed
    for code in listed:
        assert session.inquiry(page=code)[1] == code


def test_sense_data_from_the_master_has_the_selected_format(served, ready):
    """PERSISTENT RESERVE OUT is refused by the master; D_SENSE also applies to this sense data."""
    session = ready(served)
    page = mode_page(session, 0x0A)
    assert select(session, page[:2] + bytes([page[2] | 4]) + page[3:]).status == GOOD
    parameters = struct.pack('>QQ4xBxH', 0, 7, 0, 0)
    assert session.run(struct.pack('>BBB2xIB', 0x5F, 6, 0, 24, 0), out=parameters).status == GOOD
    parameters = struct.pack('>QQ4xBxH', 7, 0, 0, 0)
    refused = session.run(struct.pack('>BBB2xIB', 0x5F, 1, 2, 24, 0), out=parameters)
    assert refused.sense[0] == 0x72 and refused.key == (5, 0x24, 0)


# -- a counter -------------------------------------------------------------------------------------

ROUNDS = 300


def compare_and_write(session, lba, old, new):
    cdb = struct.pack('>BBQ3xBBB', 0x89, 0, lba, 1, 0, 0)
    return session.run(cdb, out=old + new)


def count_up(session, successes):
    """Tries ROUNDS times to increment the counter in block 7; a miscompare must report its offset,
    and the next attempt reads the block again."""
    for _ in range(ROUNDS):
        old = session.read(7, 1)
        new = struct.pack('<Q', struct.unpack_from('<Q', old)[0] + 1) + old[8:]
        result = compare_and_write(session, 7, old, new)
        if result.status == GOOD:
            successes.append(1)
        else:
            assert (
                result.key == (0x0E, 0x1D, 0) and struct.unpack_from('>I', result.sense, 3)[0] < 8
            )


@pytest.mark.clause('SBC-3 5.2')
def test_two_workers_count_with_compare_and_write(served, ready):
    """The final counter equals the number of successes: no increment is lost or executed twice."""
    one, other = ready(served, name=ONE), ready(served, name=TWO)
    assert served.worker_of(one).pid != served.worker_of(other).pid
    results, failures = ([], []), []

    def work(session, successes):
        try:
            count_up(session, successes)
        except BaseException as e:  # shown by the test, not lost in a thread
            failures.append(e)

    threads = [threading.Thread(target=work, args=pair) for pair in zip((one, other), results)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures and not any(thread.is_alive() for thread in threads)
    assert (
        struct.unpack_from('<Q', one.read(7, 1))[0]
        == len(results[0]) + len(results[1])
        > ROUNDS // 2
    )
