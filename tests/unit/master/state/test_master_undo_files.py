"""Undo journals in state-dir: a ring of segments, how far back it goes, and what is not put back."""

import os
import random
import time

import pytest

from targetd.errors import StoreError
from targetd.master.state import guard_files, undo_files, undo_history
from targetd.store import open_store, undoing

SIZE = 2 << 20
CAPACITY = 16 << 20
KEY = 't\0medium'
SECOND = undo_files.SECOND
WORDS = {'by': 'iqn.x', 'unit': 't/0', 'key_check': '', 'reason': 'undo-journal'}


@pytest.fixture
def guards(tmp_path):
    return str(tmp_path / 'state' / 'guards')


@pytest.fixture
def path(guards):
    return undo_files.path_of(guards, KEY)


@pytest.fixture
def opened(tmp_path):
    image = str(tmp_path / 'disk.img')
    with open(image, 'wb') as file:
        file.write(random.Random(1).getrandbits(8 * SIZE).to_bytes(SIZE, 'big'))
    with open_store({'path': image}) as store:
        yield store


@pytest.fixture
def medium(opened):
    return guard_files.Medium(opened.description(), opened.descriptor)


class Clock(object):
    """Both clocks, in seconds that a test sets."""

    def __init__(self, now=1000000000):
        self.now, self.ticks = now, 0

    def __call__(self):
        self.ticks += 1
        return self.ticks, int(self.now * SECOND)


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(undoing, 'clocks', found)
    return found


@pytest.fixture
def writer(path, medium, clock):
    """A store that records, as a worker has it."""
    with undoing.Undoable(
        medium.raw(), undo_files.own_journal(path, CAPACITY, WORDS), clock
    ) as store:
        yield store


def restore(path, when, medium, **words):
    return undo_history.restore(path, int(when * SECOND), medium, CAPACITY, dict(WORDS, **words))[0]


def content(medium):
    with medium.readable() as store:
        return bytes(store.read(0, SIZE))


def names(path):
    return sorted(name for name in os.listdir(path) if name.endswith('.undo'))


def test_a_disk_goes_back_to_each_time(path, medium, writer, clock):
    states, generator = [], random.Random(2)
    for _ in range(4):
        clock.now += 10
        states.append((clock.now, content(medium)))
        for _ in range(30):
            offset, length = 512 * generator.randrange(3000), 512 * generator.randrange(1, 100)
            writer.write(offset, os.urandom(length), False)
    clock.now += 10
    for when, wanted in states[::-1] + states:
        assert 'changed' in restore(path, when, medium)
        assert content(medium) == wanted
        clock.now += 10


def test_a_time_before_the_journal_is_refused_and_after_it_too(path, medium, writer, clock):
    writer.write(0, b'x' * 512, False)
    before = content(medium)
    assert 'begins at' in restore(path, clock.now - 1, medium)['failed']
    assert 'nothing was written since' in restore(path, clock.now + 1, medium)['failed']
    assert content(medium) == before
    assert 'no undo journal' in restore(path + 'x', clock.now, medium)['failed']


def test_the_ring_removes_the_oldest_and_says_up_to_when(path, medium, writer, clock):
    begin = clock.now
    for _ in range(24):
        clock.now += 1
        writer.write(0, os.urandom(1 << 20), False)
    segments = names(path)
    assert sum(os.path.getsize(os.path.join(path, name)) for name in segments) <= CAPACITY
    assert segments[0] > '000001.undo'
    assert 'begins at' in restore(path, begin, medium)['failed']
    before = content(medium)
    clock.now += 1
    when = clock.now
    writer.write(0, b'x' * 512, False)
    assert restore(path, when, medium)['changed'] == 512
    assert content(medium) == before


def test_a_session_that_writes_little_takes_little_of_the_ring(path, medium, clock):
    before, when = content(medium), clock.now
    for n in range(40):
        journal = undo_files.own_journal(path, CAPACITY, WORDS)
        with undoing.Undoable(medium.raw(), journal, clock) as store:
            store.write(n * 512, b'x' * 512, False)
    sizes = [os.path.getsize(os.path.join(path, name)) for name in names(path)]
    assert len(sizes) == 40 and max(sizes[:-2]) < 4096
    assert 'changed' in restore(path, when, medium)
    assert content(medium) == before


def test_the_number_of_segments_is_bounded(path, medium, clock, monkeypatch):
    monkeypatch.setattr(undo_files, 'MOST_SEGMENTS', 5)
    when = clock.now
    for n in range(8):
        clock.now += 1
        journal = undo_files.own_journal(path, CAPACITY, WORDS)
        with undoing.Undoable(medium.raw(), journal, clock) as store:
            store.write(n * 512, b'x' * 512, False)
    assert len(names(path)) == 5
    assert 'begins at' in restore(path, when, medium)['failed']


def test_a_segment_in_use_is_not_removed(path, clock):
    first = undo_files.make_segment(path, CAPACITY, WORDS)
    held = [undo_files.make_segment(path, CAPACITY, WORDS) for _ in range(20)]
    assert len(names(path)) == 21  # each is in use
    for descriptors in held:
        for descriptor in descriptors:
            os.close(descriptor)
    for descriptor in undo_files.make_segment(path, CAPACITY, WORDS):
        os.close(descriptor)
    # those without a record are removed as soon as they are not in use
    assert names(path) == ['000001.undo', '000022.undo']
    for descriptor in first:
        os.close(descriptor)


def test_two_processes_are_put_back_in_the_order_of_their_writes(path, medium, writer, clock):
    before = content(medium)
    clock.now += 1
    when = clock.now
    with undoing.Undoable(
        medium.raw(), undo_files.own_journal(path, CAPACITY, WORDS), clock
    ) as other:
        for n in range(10):
            (writer, other)[n % 2].write(512 * (n % 3), bytes([n]) * 1024, False)
    assert restore(path, when, medium)['changed'] == 2048
    assert content(medium) == before


def test_the_erased_journal_does_not_reach_back(path, medium, writer, clock):
    writer.write(0, b'x' * 512, False)
    clock.now += 5.5
    assert undo_files.erase(path)[0] == {'removed': 1} and names(path) == []
    writer.write(0, b'y' * 512, False)
    assert 'begins at' in restore(path, int(clock.now), medium)['failed']
    assert undo_files.erase(path + 'x')[0] == {'removed': 0}


def test_a_time_without_the_journal_is_an_end(guards, path, medium, writer, clock):
    undo_files.interrupt(guards, KEY)  # there is none
    assert not os.path.exists(path)
    writer.write(0, b'x' * 512, False)
    undo_files.interrupt(guards, KEY)
    assert 'without its undo journal' in restore(path, clock.now, medium)['failed']
    assert undo_history.rows(guards, {KEY: 't/0'})[0]['state'].startswith('interrupted')
    undo_files.resume(guards, KEY)
    assert names(path) == [] and not os.path.exists(os.path.join(path, 'interrupted'))
    undo_files.resume(guards, KEY)


def test_the_reason_of_an_end_is_shown(guards, path, medium, writer, clock):
    writer.write(0, b'x' * 512, False)
    undo_files.interrupt(guards, KEY, 'a snapshot was restored')
    undo_files.interrupt(guards, KEY, 'another reason')  # the first one counts
    assert restore(path, clock.now, medium)['failed'] == 'a snapshot was restored'
    assert (
        undo_history.rows(guards, {KEY: 't/0'})[0]['state']
        == 'interrupted: a snapshot was restored'
    )
    undo_files.resume(guards, KEY)
    assert restore(path, clock.now, medium)['failed'].endswith(': a snapshot was restored')
    writer.write(0, b'y' * 512, False)
    assert restore(path, clock.now, medium)['failed'].endswith(': a snapshot was restored')
    undo_files.erase(path)
    assert 'snapshot' not in restore(path, clock.now, medium)['failed']


def test_an_end_counts_also_if_the_journal_was_empty(guards, path, medium, writer, clock):
    writer.write(0, b'x' * 512, False)
    undo_files.erase(path)
    when = clock.now = time.time() + 1  # the journal reaches back to it
    undo_files.interrupt(guards, KEY)
    undo_files.resume(guards, KEY)
    lock = os.path.join(path, 'lock')
    os.utime(lock, ns=(0, int((when + 1) * 1e9)))
    writer.write(0, b'y' * 512, False)
    assert 'begins at' in restore(path, when, medium)['failed']


def test_an_interruption_that_cannot_be_noted_is_an_error(guards, path, writer, monkeypatch):
    writer.write(0, b'x' * 512, False)

    def full(self):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(undo_files._Folder, 'sync', full)
    with pytest.raises(StoreError) as caught:
        undo_files.interrupt(guards, KEY)
    assert 'remove the journal' in str(caught.value)


def test_another_key_a_shorter_disk_and_a_gap_are_refused(path, medium, writer, clock, tmp_path):
    writer.write(SIZE - 512, b'x' * 512, False)
    before = content(medium)
    assert 'another key' in restore(path, clock.now, medium, key_check='new')['failed']
    with open(str(tmp_path / 'short.img'), 'wb') as file:
        file.truncate(1 << 20)
    with open_store({'path': str(tmp_path / 'short.img')}) as short:
        refused = restore(
            path, clock.now, guard_files.Medium(short.description(), short.descriptor)
        )
    assert 'had at least %d bytes' % SIZE in refused['failed']
    clock.now += 1
    writer._segment.capacity = 1 << 20
    writer.write_zeroes(0, SIZE, False)
    assert 'more than the journal holds' in restore(path, clock.now - 1, medium)['failed']
    assert content(medium) == bytes(SIZE) != before


def test_a_damaged_segment_is_not_put_back(guards, path, medium, writer, clock):
    for _ in range(3):
        writer.write(0, os.urandom(4096), False)
    with open(os.path.join(path, '000001.undo'), 'r+b') as file:
        file.seek(400)
        file.write(b'\xff' * 8)
    before = content(medium)
    assert 'damaged' in restore(path, clock.now, medium)['failed']
    assert 'damaged' in undo_history.rows(guards, {KEY: 't/0'})[0]['state']
    assert content(medium) == before


def test_a_restore_that_was_killed_is_repeated(path, medium, writer, clock, monkeypatch):
    before = content(medium)
    clock.now += 1
    when = clock.now
    for n in range(3):
        writer.write(n << 16, os.urandom(1 << 16), False)
    clock.now += 1
    monkeypatch.setattr(undo_history, 'BATCH', 1)
    overwrite, calls = undoing.Undoable.overwrite, []

    def killed(self, pieces):
        calls.append(pieces)
        if len(calls) == 2:
            raise OSError(5, 'killed')
        overwrite(self, pieces)

    monkeypatch.setattr(undoing.Undoable, 'overwrite', killed)
    assert 'killed' in restore(path, when, medium)['failed']
    assert content(medium) != before
    monkeypatch.setattr(undoing.Undoable, 'overwrite', overwrite)
    clock.now += 1
    restore(path, when, medium)
    assert content(medium) == before


def test_the_list_has_one_row_for_each_time_of_writing(guards, path, writer, clock):
    for pause in (1, 1, 100, 1):
        clock.now += pause
        writer.write(0, b'x' * 1024, False)
    rows = undo_history.rows(guards, {KEY: 't/0'})
    assert [(row['unit'], row['size'], row['initiator_name']) for row in rows] == [
        ('t/0', 2048, 'iqn.x')
    ] * 2
    assert [row['when'] for row in rows] == [1000000102, 1000000001]
    end = time.strftime('%H:%M:%S', time.localtime(1000000103))
    assert rows[0]['reason'] == 'writes until ' + end and rows[0]['number'] is None


def test_all_units_of_a_medium_have_one_journal(guards):
    assert undo_files.path_of(guards, 'a\0m') == undo_files.path_of(guards, 'b\0m')
    assert undo_files.path_of(guards, 'a\0m') != undo_files.path_of(guards, 'a\0n')


def test_keep_all_records_the_medium(path, medium, clock):
    assert undo_history.keep_all(path, medium, CAPACITY, WORDS) == ({}, ())
    before = content(medium)
    with medium.raw() as raw:
        raw.write_zeroes(0, SIZE, False)
    restore(path, clock.now, medium)
    assert content(medium) == before
    assert 'failed' in undo_history.keep_all('/dev/null/x', medium, CAPACITY, WORDS)[0]
