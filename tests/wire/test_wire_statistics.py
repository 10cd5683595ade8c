"""Log page 19h, General Statistics and Performance: what all sessions of a unit have read and written."""

import struct

import pytest

pytestmark = [pytest.mark.wire, pytest.mark.clause('SPC-4 7.3.6')]

CUMULATIVE, DEFAULT_THRESHOLD = 1, 2


def page(session, control=CUMULATIVE, pointer=0, length=255):
    cdb = struct.pack('>BBBBBHHB', 0x4D, 0, control << 6 | 0x19, 0, 0, pointer, length, 0)
    return session.run(cdb, read=length)


def counts(session, control=CUMULATIVE):
    """(READs, WRITEs, blocks received, blocks transmitted) of parameter 0001h."""
    data = page(session, control).good().data
    assert data[:4] == bytes((0x99, 0)) + struct.pack('>H', len(data) - 4)
    assert data[4:8] == bytes((0, 1, 2, 64))
    return struct.unpack_from('>4Q', data, 8)


def reset(session, code=0x19):
    session.run(struct.pack('>BBB7x', 0x4C, 2, CUMULATIVE << 6 | code)).good()


def test_the_page_adds_the_sessions_and_those_that_have_ended(served, ready):
    one, two = ready(served), ready(served, isid=bytes.fromhex('80abcdef0002'))
    before = counts(one)
    one.write(0, bytes(3 * 512))
    two.read(0, 8)
    two.read(8, 2)
    two.write(16, bytes(512))
    assert [a - b for a, b in zip(counts(one), before)] == [2, 2, 4, 10]
    assert counts(two) == counts(one)
    two.logout()
    assert [a - b for a, b in zip(counts(one), before)] == [2, 2, 4, 10]


def test_the_times_are_not_measured_and_the_interval_is_told(served, ready):
    """A disk without these clocks reports 0. Parameter 0003h: 1 * 10 ** -3 seconds."""
    session = ready(served)
    data = page(session).good().data
    assert data[40:72] == bytes(32)
    assert data[72:84] == bytes((0, 2, 2, 8)) + bytes(8)
    assert data[84:] == bytes((0, 3, 3, 8)) + struct.pack('>II', 3, 1)


def test_the_page_is_listed_and_obeys_pointer_and_allocation_length(served, ready):
    session = ready(served)
    listed = session.run(struct.pack('>B6xHB', 0x4D, 255, 0), read=255).good().data
    assert 0x19 in listed[4:]
    assert page(session, pointer=3).good().data[4:6] == bytes((0, 3))
    assert page(session, pointer=4).key == (5, 0x24, 0)
    assert len(page(session, length=10).good().data) == 10
    assert page(session, length=0).good().data == b''


def test_thresholds_are_never_reached(served, ready):
    assert counts(ready(served), DEFAULT_THRESHOLD) == ((1 << 64) - 1,) * 4


@pytest.mark.parametrize('code', [0x19, 0])
@pytest.mark.clause('SPC-4 6.7')
def test_log_select_sets_the_counts_to_zero(served, ready, code):
    one, two = ready(served), ready(served, isid=bytes.fromhex('80abcdef0002'))
    two.read(0, 8)
    assert counts(one)[0]
    reset(one, code)
    one.clear_attentions()
    two.clear_attentions()
    assert counts(one) == (0, 0, 0, 0)
    two.read(0, 5)
    assert counts(one) == (1, 0, 0, 5)
