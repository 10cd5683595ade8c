"""Records of the undo journal: read back, the end of a segment, damage, and which blocks are covered."""

import os
import random

import pytest

from targetd.store import kept_blocks, undo_records
from targetd.store.undo_records import Stamp

SIZE = 1 << 16


@pytest.fixture
def segment(tmp_path):
    """A segment of zeroes with its description; its descriptor."""
    descriptor = os.open(str(tmp_path / 'segment'), os.O_RDWR | os.O_CREAT)
    os.truncate(descriptor, SIZE)
    kept_blocks.put(descriptor, kept_blocks.description_record({'by': 'me'}))
    yield descriptor
    os.close(descriptor)


def fill(descriptor, *records):
    """Write the records one after the other; returns their positions, and the end."""
    positions = [undo_records.first_position(descriptor)]
    for record in records:
        os.pwrite(descriptor, record, positions[-1])
        positions.append(positions[-1] + len(record))
    return positions


def found(descriptor):
    return [
        (entry.kind, entry.offset, entry.length)
        for _, entry in undo_records.entries(descriptor, SIZE)
    ]


def test_what_is_packed_is_read_back(segment):
    positions = fill(
        segment,
        undo_records.pack_old(4096, b'old' * 1000, Stamp(5, 6, 0)),
        undo_records.pack_zeroes(1 << 40, 1 << 41, Stamp(7, 8, 0)),
        undo_records.pack_gap(Stamp(9, 10, 0)),
    )
    assert kept_blocks.read_description(segment) == {'by': 'me'}
    assert found(segment) == [
        (undo_records.OLD, 4096, 3000),
        (undo_records.ZEROES, 1 << 40, 1 << 41),
        (undo_records.GAP, 0, 0),
    ]
    entry, blocks = undo_records.read_blocks(segment, positions[0])
    assert (blocks, entry.stamp.monotonic, entry.stamp.wall) == (b'old' * 1000, 5, 6)
    assert undo_records.last_stamp(segment, SIZE) == Stamp(9, 10, 0)


def test_an_empty_segment_has_no_records(segment):
    assert found(segment) == [] and undo_records.last_stamp(segment, SIZE) is None


def test_a_record_that_was_not_completed_is_the_end(segment):
    record = undo_records.pack_old(0, os.urandom(2000), Stamp(1, 1, 0))
    first = fill(segment, record)[0]
    os.pwrite(segment, record[:700], first + len(record))
    assert len(found(segment)) == 1
    # a power cut may leave the record behind it, whose write was not done either
    os.pwrite(segment, undo_records.pack_gap(Stamp(2, 2, first)), first + 2 * len(record))
    assert len(found(segment)) == 1


def test_a_damaged_record_that_was_durable_is_not_the_end(segment):
    record = undo_records.pack_old(0, os.urandom(2000), Stamp(1, 1, 0))
    first = fill(segment, record)[0]
    end = first + len(record)
    os.pwrite(segment, undo_records.pack_gap(Stamp(2, 2, end)), end)
    os.pwrite(segment, bytes([record[100] ^ 0xFF]), first + 100)
    with pytest.raises(kept_blocks.DamagedFile):
        found(segment)


def test_the_longest_record_is_known():
    record = undo_records.pack_old(0, os.urandom(undo_records.PIECE), Stamp(1, 1, 1))
    assert len(record) <= undo_records.LONGEST


def test_covered_ranges_are_the_same_as_sets_of_blocks():
    generator = random.Random(4)
    covered, blocks = undo_records.Covered(), set()
    for _ in range(400):
        offset, length = generator.randrange(300), generator.randrange(1, 12)
        wanted = set(range(offset, offset + length))
        fresh = covered.add(offset, length)
        assert {n for start, count in fresh for n in range(start, start + count)} == wanted - blocks
        assert fresh == sorted(fresh) and all(count for _, count in fresh)
        blocks |= wanted


def test_positions_from_a_clock_on():
    positions = undo_records.Positions()
    for clock in (1, 3, 3, 7):
        stamp = Stamp(clock, 100 + clock, 0)
        kind = undo_records.GAP if clock == 7 else undo_records.OLD
        positions.add(undo_records.Entry(kind, clock * 10, 5, stamp, 0), clock * 1000)
    positions.drop_before(3, False)
    assert list(positions) == [(3, 3000), (3, 3000), (7, 7000)]
    assert (positions.end, positions.gap) == (75, 107)
    positions.drop_before(0, True)
    assert list(positions) == []
