"""A tape in a file: objects at a position, what overwrites what, and what a crash leaves."""

import random

import pytest

from targetd.store import tape as tapes
from targetd.store import tape_format
from targetd.store.base import NO_CAPABILITIES
from targetd.store.tape import Tape
from targetd.store.tape_format import BLOCK, FILEMARK

SIZE = 4 << 20
SECTOR = 512


class Disk(object):
    """A disk with a cache: power_cut() keeps any of the sectors that were written since the flush."""

    kind, path, block_size, read_only, direct, thin = 'file', '/tape', 512, False, False, False
    inline_write_limit, durable_is_free, lost, descriptor = 0, False, None, -1
    capabilities = NO_CAPABILITIES._replace(unmap=True)

    def __init__(self, size=SIZE):
        self.size = size
        self.data = bytearray(size)
        self.durable = bytearray(size)
        self.dirty = set()
        self.flushes = 0
        self.full_at = size

    def read(self, offset, length):
        assert offset + length <= self.size
        return bytes(self.data[offset : offset + length])

    def write(self, offset, data, durable):
        assert offset + len(data) <= self.size and not self.read_only
        if offset + len(data) > self.full_at:
            raise OSError(28, 'full')
        self.data[offset : offset + len(data)] = data
        self.dirty.update(range(offset // SECTOR, -(-(offset + len(data)) // SECTOR)))

    def unmap(self, offset, length):
        self.write(offset, bytes(length), False)

    def flush(self, offset, length):
        self.flushes += 1
        self._keep(self.dirty)

    def _keep(self, sectors):
        for n in sectors:
            part = slice(n * SECTOR, (n + 1) * SECTOR)
            self.durable[part] = self.data[part]
        self.dirty = set()

    def power_cut(self, draw):
        share = draw.random()
        self._keep([n for n in sorted(self.dirty) if draw.random() < share])
        self.data = bytearray(self.durable)

    def __getattr__(self, name):
        if name in ('extents', 'write_zeroes', 'try_read', 'copy', 'rekey', 'resize_check'):
            return None
        if name in ('allocated', 'available', 'leave', 'lock_file', 'close'):
            return None
        raise AttributeError(name)


def loaded(disk, loading=(1, 1)):
    tape = Tape(disk)
    tape.load(loading)
    return tape


def contents(tape):
    """All objects: bytes of blocks, None for filemarks."""
    found, before = [], tape.position
    tape.rewind()
    while True:
        kind, length, data = tape.read_object(1 << 20)
        if kind == tapes.END:
            break
        found.append(bytes(data) if kind == BLOCK else None)
        assert kind in (BLOCK, FILEMARK) and (kind == FILEMARK or length == len(data))
    tape.position = before
    return found


def put(tape, objects):
    for each in objects:
        if each is None:
            tape.write_filemarks(1)
        else:
            tape.write_blocks([each])


OBJECTS = [b'a' * 100, b'b' * 5000, None, b'c', None, None, b'd' * 70000]


def test_a_blank_tape_has_no_data():
    tape = loaded(Disk())
    assert tape.read_object(100)[0] == tapes.END
    assert tape.position == tape.end == tape_format.BEGINNING
    assert tape.space_blocks(1) == (0, tapes.END) and tape.space_blocks(-1) == (0, tapes.START)
    assert tape.space_filemarks(2) == (0, tapes.END)
    assert tape.locate(0) and not tape.locate(1)


def test_what_was_written_is_read_after_another_load():
    disk = Disk()
    tape = loaded(disk)
    put(tape, OBJECTS)
    assert contents(tape) == OBJECTS
    assert contents(loaded(disk)) == OBJECTS  # killed without a flush: nothing is lost
    tape.flush(0, SIZE)
    again = loaded(disk, (2, 1))
    assert contents(again) == OBJECTS and again.position == tape_format.BEGINNING


def test_a_write_ends_the_tape():
    disk = Disk()
    tape = loaded(disk)
    put(tape, OBJECTS)
    tape.locate(1)
    put(tape, [b'new'])
    assert contents(tape) == [OBJECTS[0], b'new'] == contents(loaded(disk))
    assert tape.read_object(9)[0] == tapes.END
    tape.rewind()
    tape.erase()
    assert contents(tape) == [] == contents(loaded(disk))


def test_objects_of_an_older_recording_do_not_return():
    """The same lengths, so that old headers lie exactly behind the new end."""
    disk = Disk()
    tape = loaded(disk)
    put(tape, [b'old%d' % n for n in range(20)])
    tape.flush(0, SIZE)
    disk.capabilities = NO_CAPABILITIES  # nothing is unmapped
    for count in (7, 3, 5):
        tape.rewind()
        put(tape, [b'new%d' % n for n in range(count)])
        assert contents(loaded(disk)) == [b'new%d' % n for n in range(count)]


def test_the_position_is_kept_for_the_same_loading_only():
    disk = Disk()
    tape = loaded(disk)
    put(tape, OBJECTS)
    tape.locate(4)
    tape.save_position()
    assert loaded(disk).position == tape.position
    assert loaded(disk, (1, 2)).position == tape_format.BEGINNING
    tape.load((1, 2))
    assert tape.position == tape_format.BEGINNING
    assert contents(tape) == OBJECTS


def test_a_saved_position_that_does_not_fit_is_not_used():
    disk = Disk()
    tape = loaded(disk)
    put(tape, OBJECTS)
    tape.save_position()
    other = loaded(disk, (2, 2))
    other.locate(1)
    put(other, [b'shorter'])
    assert loaded(disk).position == tape_format.BEGINNING


def test_space_and_locate_agree_with_a_list():
    draw = random.Random(5)
    objects = [None if draw.random() < 0.1 else b'%d' % n for n in range(1500)]
    tape = loaded(Disk())
    put(tape, objects)
    marks = [n for n, each in enumerate(objects) if each is None]
    for _ in range(300):
        number = draw.randrange(len(objects) + 1)
        assert tape.locate(number)
        assert tape.position.number == number
        assert tape.position.files == len([m for m in marks if m < number])
        count = draw.choice((1, 2, 5, 40, 2000))
        found = tape.space_blocks(count)
        ahead = [m for m in marks if m >= number][:1]
        limit = ahead[0] if ahead else len(objects)
        if number + count <= limit:
            assert found == (count, None) and tape.position.number == number + count
        else:
            assert found == (limit - number, FILEMARK if ahead else tapes.END)
            assert tape.position.number == limit + len(ahead)
        tape.locate(number)
        found = tape.space_blocks(-count)
        behind = [m for m in marks if m < number][-1:]
        limit = behind[0] + 1 if behind else 0
        if number - count >= limit:
            assert found == (count, None) and tape.position.number == number - count
        else:
            assert found == (number - limit, FILEMARK if behind else tapes.START)
            assert tape.position.number == limit - len(behind)
        tape.locate(number)
        found = tape.space_filemarks(count)
        ahead = [m for m in marks if m >= number]
        if len(ahead) >= count:
            assert found == (count, None) and tape.position.number == ahead[count - 1] + 1
        else:
            assert found == (len(ahead), tapes.END) and tape.position == tape.end
        tape.locate(number)
        found = tape.space_filemarks(-count)
        behind = [m for m in marks if m < number]
        if len(behind) >= count:
            assert found == (count, None) and tape.position.number == behind[-count]
        else:
            assert found == (len(behind), tapes.START) and tape.position.number == 0
        wanted = draw.randrange(len(marks) + 3)
        assert tape.locate_file(wanted) == (wanted <= len(marks))
        assert tape.position.files == min(wanted, len(marks))
    assert all(header_hops_are_right(tape, n) for n in (0, 1, 256, 257, 1499))


def header_hops_are_right(tape, number):
    tape.locate(number)
    header = tape._header_at(tape.position.offset)
    before = [n for n in range(number) if n % 256 == 0]
    if not before:
        return header.small_hop == 0
    return tape._header_at(header.small_hop).number == before[-1]


def test_locate_reads_few_headers_on_a_long_tape():
    disk = Disk(64 << 20)
    tape = loaded(disk)
    for _ in range(200):
        tape.write_blocks([b'x'] * 700)
    reads = []
    real = disk.read
    disk.read = lambda offset, length: reads.append(offset) or real(offset, length)
    for number in (3, 139999, 65536, 70001):
        assert tape.locate(number) and tape.position.number == number
    assert len(reads) < 4 * (3 + 256 + 256)


def test_the_end_of_the_tape_and_of_the_file_system():
    disk = Disk(1 << 20)
    tape = loaded(disk)
    put(tape, [bytes(400000)] * 2)
    with pytest.raises(OSError) as caught:
        put(tape, [bytes(400000)])
    assert caught.value.errno == 28
    assert contents(tape) == [bytes(400000)] * 2
    tape.write_filemarks(2)
    assert tape.position.files == 2
    disk.full_at = tape.end.offset + 100
    with pytest.raises(OSError):
        put(tape, [bytes(4000)])
    disk.full_at = disk.size
    assert contents(tape)[2:] == [None, None] == contents(loaded(disk))[2:]


def test_a_write_that_failed_in_part_leaves_nothing():
    disk = Disk()
    tape = loaded(disk)
    put(tape, [b'a' * 100])
    real = disk.write

    def write_in_part(offset, data, durable):
        real(offset, data[:-1], durable)
        raise OSError(5, 'error')

    disk.write = write_in_part
    with pytest.raises(OSError):
        tape.write_blocks([bytes([n]) * 100 for n in range(5)])
    disk.write = real
    assert contents(tape) == [b'a' * 100]
    put(tape, [b'b' * 100])  # the parts behind it would fit
    assert contents(tape) == [b'a' * 100, b'b' * 100] == contents(loaded(disk))


def test_damage_is_reported_and_a_damaged_block_is_passed():
    disk = Disk()
    tape = loaded(disk)
    put(tape, [b'a' * 1000, b'b' * 1000, b'c'])
    tape.flush(0, SIZE)
    tape.rewind()
    at = tape_format.FIRST + 500
    disk.data[at] ^= 1
    for maximum in (1000, 10, 1 << 20):
        tape.rewind()
        with pytest.raises(OSError) as caught:
            tape.read_object(maximum)
        assert caught.value.errno == 74
        assert bytes(tape.read_object(1000)[2]) == b'b' * 1000
    disk.data[tape_format.FIRST + 1072 + 20] ^= 1  # a header
    tape.rewind()
    with pytest.raises(OSError):
        tape.read_object(9)
    with pytest.raises(OSError) as caught:
        tape.read_object(9)  # the length is not known
    assert caught.value.errno == 74
    assert tape.locate(2) and bytes(tape.read_object(9)[2]) == b'c'


@pytest.mark.parametrize('seed', range(40))
def test_a_power_failure_costs_what_was_not_flushed_and_nothing_else(seed):
    draw = random.Random(seed)
    disk = Disk()
    if seed % 2:
        disk.capabilities = NO_CAPABILITIES
    model = []  # (number of the object, when it was written)
    for round_ in range(12):
        tape = loaded(disk, (round_, 0))
        found = contents(tape)
        least = len(found)  # what was found is not lost by another power failure, if it was flushed
        model, safe = found, 0
        for _ in range(draw.randrange(1, 12)):
            action = draw.random()
            if action < 0.25:
                tape.locate(draw.randrange(len(model) + 1))
            elif action < 0.4:
                tape.flush(0, disk.size)
                safe = len(model)
            elif action < 0.45:
                del model[tape.position.number :]
                tape.erase()
            else:
                length = draw.choice((1, 440, 512, 3000))
                new = [
                    None if draw.random() < 0.2 else bytes([draw.randrange(256)]) * length
                    for _ in range(draw.randrange(1, 5))
                ]
                if tape.position.number < safe:
                    safe = tape.position.number
                del model[tape.position.number :]
                put(tape, new)
                model += new
            safe = min(safe, len(model))
            assert contents(tape) == model
        if draw.random() < 0.3:
            assert contents(loaded(disk, (99, round_))) == model  # a killed worker
        disk.power_cut(draw)
        left = contents(loaded(disk, (98, round_)))
        assert left == model[: len(left)] and len(left) >= safe, (least, safe)


def test_what_is_not_a_tape_is_refused():
    disk = Disk()
    assert tapes.why_not_a_tape(disk.read, SIZE) == ''
    tape = loaded(disk)
    put(tape, OBJECTS)
    tape.flush(0, SIZE)
    assert tapes.why_not_a_tape(disk.read, SIZE) == ''
    assert 'shorter' in tapes.why_not_a_tape(disk.read, 20000)
    assert 'shortest' in tapes.why_not_a_tape(disk.read, 1000)
    disk.data[4096:12288] = b'x' * 8192
    assert 'damaged' in tapes.why_not_a_tape(disk.read, SIZE)
    for at in (0, 1024, 510, 5000, 65536):
        other = Disk()
        other.data[at : at + 4] = b'EXT4'
        assert 'other content' in tapes.why_not_a_tape(other.read, SIZE), at
    with pytest.raises(OSError) as caught:
        loaded(disk)
    assert caught.value.errno == 117


def test_one_damaged_checkpoint_is_no_loss():
    disk = Disk()
    tape = loaded(disk)
    put(tape, OBJECTS[:3])
    tape.flush(0, SIZE)
    disk.data[tape._checkpoint.place + 20] ^= 1
    assert contents(loaded(disk)) == OBJECTS[:3]


def test_a_tape_has_no_blocks_at_offsets():
    tape = loaded(Disk())
    for verb in (
        lambda: tape.write(0, b'x', False),
        lambda: tape.unmap(0, 512),
        lambda: tape.write_zeroes(0, 512, True),
        lambda: tape.copy(tape, 0, 512, 512),
    ):
        with pytest.raises(OSError):
            verb()
