"""Tests of third-party copies with the real daemon: between the units of a target, and with tokens
between sessions and targets."""

import struct

import pytest
from copies import information, populate, token_of, write_using
from daemon import eventually
from initiator import pattern
from pdus import R2T

OTHER_TARGET = 'iqn.2026-11.test.targetd:other'
HOST_ONE, HOST_TWO = 'iqn.2026-11.test:one', 'iqn.2026-11.test:two'
BLOCKS = 64


@pytest.fixture
def copying(daemon):
    """A daemon with two units at TARGET and one at OTHER_TARGET, which only HOST_TWO may use."""
    daemon.target(luns={n: ['backing-store = %s' % daemon.image('disk%d' % n)] for n in (0, 1)})
    daemon.target(OTHER_TARGET, lines=('initiator-name = %s' % HOST_TWO,))
    return daemon.start()


def naa_of(session, lun):
    page = session.inquiry(lun, 0x83)
    assert page[4:8] == b'\x01\x03\x00\x10'
    return page[8:24]


def cscd(session, lun):
    return struct.pack('>BBxxBBxB16s4xI', 0xE4, 0, 1, 3, 16, naa_of(session, lun), 512)


def code(result):
    assert result.status == 2, result
    return (result.sense[2] & 15, result.sense[12], result.sense[13])


def test_extended_copy_copies_blocks_between_units(copying, sessions):
    session = sessions(copying)
    for lun in (0, 1):
        session.clear_attentions(lun)
    data = pattern(1, BLOCKS * 512)
    session.write(10, data)
    segment = struct.pack('>BBHHHxxHQQ', 0x02, 0, 0x18, 0, 1, BLOCKS, 10, 100)
    body = (
        struct.pack('>BBH4xII', 1, 0, 64, len(segment), 0)
        + cscd(session, 0)
        + cscd(session, 1)
        + segment
    )
    assert session.run(struct.pack('>BB8xIxx', 0x83, 0, len(body)), out=body).status == 0
    assert session.read(100, BLOCKS, lun=1) == data
    reported = session.run(struct.pack('>BBB7xIxx', 0x84, 0, 1, 12), read=12).data
    assert reported[4] == 1 and struct.unpack_from('>I', reported, 8)[0] == BLOCKS * 512


def test_a_token_is_valid_in_another_session(copying, sessions):
    one, two = (
        sessions(copying, name=HOST_ONE),
        sessions(copying, name=HOST_TWO, isid=b'\x80\0\0\0\0\2'),
    )
    one.clear_attentions(0)
    two.clear_attentions(1)
    data = pattern(2, BLOCKS * 512)
    one.write(0, data)
    assert populate(one, [(32, 32), (0, 32)]).status == 0
    assert write_using(two, token_of(one), [(1000, BLOCKS)], lun=1).status == 0
    assert two.read(1000, BLOCKS, lun=1) == data[32 * 512 :] + data[: 32 * 512]
    reported = information(two, 2, lun=1)
    assert (
        reported[4:6] == b'\x11\x01'
        and reported[15] == 0xF1
        and struct.unpack_from('>Q', reported, 16)[0] == BLOCKS
    )


def test_a_token_copies_data_from_a_target_that_the_session_cannot_access(copying, sessions):
    one = sessions(copying, name=HOST_ONE)
    two = sessions(copying, OTHER_TARGET, name=HOST_TWO)
    one.clear_attentions(0)
    two.clear_attentions(0)
    data = pattern(3, BLOCKS * 512)
    two.write(5, data)
    assert populate(two, [(5, BLOCKS)]).status == 0
    token = token_of(two)
    assert write_using(one, token, [(0, 16)], offset=8).status == 0
    assert one.read(0, 16) == data[8 * 512 : 24 * 512]
    assert write_using(one, token, [(100, BLOCKS)], flags=0x02).status == 0
    assert code(write_using(one, token, [(100, BLOCKS)])) == (5, 0x23, 0x09)


def test_a_write_to_its_data_revokes_the_token(copying, sessions):
    one, two = (
        sessions(copying, name=HOST_ONE),
        sessions(copying, name=HOST_TWO, isid=b'\x80\0\0\0\0\2'),
    )
    one.clear_attentions(0)
    two.clear_attentions(0)
    assert populate(one, [(0, 8), (100, 8)]).status == 0
    token = token_of(one)
    two.write(8, pattern(4, 512))
    assert write_using(one, token, [(2000, 16)]).status == 0
    two.write(107, pattern(4, 512))
    assert two.read(107, 1) == pattern(4, 512)
    assert code(write_using(one, token, [(2000, 16)])) == (5, 0x23, 0x06)


def test_a_write_that_was_waiting_for_its_data_also_revokes_the_token(copying, sessions):
    """The write was accepted before the token was created, and its data arrived afterwards."""
    one = sessions(copying, name=HOST_ONE, keys={'InitialR2T': 'Yes', 'ImmediateData': 'No'})
    two = sessions(copying, name=HOST_TWO, isid=b'\x80\0\0\0\0\2')
    one.clear_attentions(0)
    two.clear_attentions(0)
    one.hold_r2t = True
    held = one.submit(struct.pack('>BBIBHB', 0x2A, 0, 3, 0, 1, 0), out=pattern(5, 512))
    one.until(R2T, held.itt)
    assert populate(two, [(0, 8)]).status == 0
    token = token_of(two)
    one.answer_r2t(held)
    assert one.wait(held).status == 0
    assert code(write_using(two, token, [(2000, 8)])) == (5, 0x23, 0x06)


def test_zeroes_need_no_token(copying, sessions):
    session = sessions(copying)
    session.clear_attentions(0)
    session.write(0, pattern(6, 8 * 512))
    zero = struct.pack('>I2xH', 0xFFFF0001, 0x1F8).ljust(512, b'\0')
    assert write_using(session, zero, [(1, 2), (5, 1)]).status == 0
    expected = bytearray(pattern(6, 8 * 512))
    expected[512 : 3 * 512] = bytes(1024)
    expected[5 * 512 : 6 * 512] = bytes(512)
    assert session.read(0, 8) == bytes(expected)


def test_a_guessed_token_is_refused(copying, sessions):
    session = sessions(copying)
    session.clear_attentions(0)
    assert (
        populate(session, [(0, 8)], name=1).status
        == populate(session, [(0, 8)], name=3).status
        == 0
    )
    first, second = token_of(session), token_of(session, 3)
    assert first != second
    forged = first[:-1] + bytes([first[-1] ^ 1])
    assert code(write_using(session, forged, [(100, 8)])) == (5, 0x23, 0x04)
    listed = session.run(struct.pack('>BB8xIxx', 0x84, 0x08, 4096), read=4096).data
    assert listed[8:] == first[:96] + second[:96]


def test_an_unused_token_expires(copying, sessions):
    session = sessions(copying)
    session.clear_attentions(0)
    assert populate(session, [(0, 8)], timeout=1).status == 0
    token = token_of(session)
    eventually(
        lambda: not session.run(struct.pack('>BB8xIxx', 0x84, 0x08, 4096), read=4096).data[8:],
        10,
        lambda: 'the token to expire',
    )
    assert code(write_using(session, token, [(100, 8)])) == (5, 0x23, 0x07)


def test_copies_can_be_disabled_by_the_configuration(daemon, sessions):
    daemon.target(
        luns={
            n: ['backing-store = %s' % daemon.image('disk%d' % n)]
            + ['third-party-copy = no'] * (n == 0)
            for n in (0, 1)
        }
    )
    session = sessions(daemon.start())
    for lun in (0, 1):
        session.clear_attentions(lun)
    assert not session.inquiry(0)[5] & 0x08 and session.inquiry(1)[5] & 0x08
    assert 0x8F not in session.inquiry(0, 0x00)[4:] and 0x8F in session.inquiry(1, 0x00)[4:]
    assert code(populate(session, [(0, 8)])) == (5, 0x20, 0x00)
    assert populate(session, [(0, 8)], lun=1).status == 0
    assert code(write_using(session, token_of(session, lun=1), [(8, 8)])) == (5, 0x20, 0x00)
