"""All-or-nothing writes: records, incomplete records, and a crash of the process or a loss of power at
every step of a write."""

import errno
import os
import random

import pytest

from targetd.store import journal
from targetd.store.journal import HEAD, LONGEST, SLOT, Record, RecordPending, Slot, sums_of

SECTOR = 512
OLD, NEW = b'o' * 2048, b'n' * 2048
RECORD = Record(4096, OLD, sums_of(NEW))


class Death(BaseException):
    """Raised where the simulated process or power fails."""


class Life(object):
    """Counts the remaining steps of media before the simulated crash."""

    def __init__(self, steps=1 << 30):
        self.steps = steps

    def step(self):
        self.steps -= 1
        if self.steps < 0:
            raise Death


class Disk(object):
    """A store with a write cache. `fails`: {verb: errno}."""

    path, kind, lost, block_size = '/disk', 'file', None, SECTOR

    def __init__(self, size, life):
        self.size, self.life = size, life
        self.cache = {}  # sector -> bytes, what every process sees
        self.platter = {}  # sector -> bytes, what outlasts the power
        self.fails = {}

    def _step(self, verb):
        self.life.step()
        if verb in self.fails:
            raise OSError(self.fails[verb], os.strerror(self.fails[verb]))

    def read(self, offset, length):
        if 'read' in self.fails:
            self._step('read')
        first, last = offset // SECTOR, -(-(offset + length) // SECTOR)
        whole = b''.join(self.cache.get(n, bytes(SECTOR)) for n in range(first, last))
        return whole[offset - first * SECTOR :][:length]

    def write(self, offset, data, durable):
        data = bytes(data)
        while data:
            self._step('write')
            number, start = divmod(offset, SECTOR)
            count = min(len(data), SECTOR - start)
            sector = bytearray(self.cache.get(number, bytes(SECTOR)))
            sector[start : start + count] = data[:count]
            self.cache[number] = bytes(sector)
            offset, data = offset + count, data[count:]
        if durable:
            self.flush(0, self.size)

    def flush(self, offset, length):
        for number in sorted(self.cache):
            if self.platter.get(number) != self.cache[number]:
                self._step('flush')
                self.platter[number] = self.cache[number]
        self._step('flush')

    def lose_power(self, chance):
        """Of what was not flushed any sector may have got there, or not."""
        for number, sector in self.cache.items():
            if chance.random() < 0.5:
                self.platter[number] = sector
        self.cache = dict(self.platter)


class Bench(object):
    """A medium with OLD at 4096 and a journal, which crash at the same step."""

    def __init__(self, steps=1 << 30):
        self.life = Life()
        self.medium, self.journal = Disk(1 << 20, self.life), Disk(2 * SLOT, self.life)
        self.slot = Slot(self.journal, 1)
        self.medium.write(4096, OLD, True)
        self.life.steps = steps

    def content(self):
        return self.medium.read(4096, len(OLD))

    def begin_again(self, power_is_lost, chance):
        """What a server does that starts after a death, on the platters or the caches of before."""
        self.life.steps = 1 << 30
        for disk in (self.medium, self.journal):
            if power_is_lost:
                disk.lose_power(chance)
        return sum(Slot(self.journal, number).recover(self.medium, False) for number in (0, 1))


# -- records ---------------------------------------------------------------------------------------


def test_a_record_is_packed_and_unpacked():
    head, body = journal.pack_record(Record(1 << 40, b'abc', b''))
    assert journal.unpack_head(head) == (1 << 40, 3, 0x352441C2) and body == b'abc'


@pytest.mark.parametrize('at', range(28))
def test_a_damaged_head_is_rejected(at):
    head = bytearray(journal.pack_record(RECORD)[0])
    head[at] ^= 0x10
    assert journal.unpack_head(head) is None
    assert journal.unpack_head(bytes(28)) is None


def test_a_slot_holds_one_record_until_it_is_cleared():
    bench = Bench()
    assert bench.slot.is_empty() and bench.slot.record() is None
    bench.slot.put_record(RECORD)
    assert not bench.slot.is_empty() and bench.slot.record() == RECORD
    assert Slot(bench.journal, 0).is_empty()
    bench.slot.clear_record()
    assert bench.slot.is_empty() and bench.slot.record() is None


@pytest.mark.parametrize('at', [0, 511, 1024, 2047, 2048, 2063])
def test_an_incomplete_record_is_ignored(at):
    """Its head is on the medium and part of its data is not: the write itself has not begun."""
    bench = Bench()
    bench.slot.put_record(RECORD)
    bench.journal.write(SLOT + HEAD + at, b'?', True)
    bench.medium.write(4096, NEW, True)
    assert bench.slot.record() is None and not bench.slot.recover(bench.medium)
    assert bench.content() == NEW and bench.slot.is_empty()


# -- writing ---------------------------------------------------------------------------------------


def test_a_write_is_complete_and_durable_and_leaves_no_record():
    bench = Bench()
    journal.write(bench.medium, bench.slot, 4096, memoryview(NEW))
    bench.begin_again(True, random.Random(1))
    assert bench.content() == NEW and bench.slot.is_empty()


def steps_of_a_write():
    bench = Bench()
    before = bench.life.steps
    journal.write(bench.medium, bench.slot, 4096, NEW)
    return before - bench.life.steps


@pytest.mark.parametrize('power_is_lost', [False, True])
def test_a_crash_at_any_step_leaves_the_old_or_the_new_data(power_is_lost):
    seen = set()
    for steps in range(steps_of_a_write()):
        for seed in range(8 if power_is_lost else 1):
            bench = Bench(steps)
            with pytest.raises(Death):
                journal.write(bench.medium, bench.slot, 4096, NEW)
            bench.begin_again(power_is_lost, random.Random(seed))
            assert bench.content() in (OLD, NEW), (steps, seed)
            seen.add(bench.content())
            assert bench.slot.is_empty()
    assert seen == {OLD, NEW}


def test_a_crash_during_recovery_can_be_recovered():
    for steps in range(steps_of_a_write()):
        for again in range(12):
            bench = Bench(steps)
            with pytest.raises(Death):
                journal.write(bench.medium, bench.slot, 4096, NEW)
            chance = random.Random(steps)
            for disk in (bench.medium, bench.journal):
                disk.lose_power(chance)
            bench.life.steps = again
            try:
                bench.slot.recover(bench.medium)
            except Death:
                pass
            bench.begin_again(True, chance)
            assert bench.content() in (OLD, NEW)


@pytest.mark.parametrize('durable', [True, False])
def test_later_writes_of_others_are_never_undone(durable):
    """A record that was cleared does not come back, however the power went; and the next write does
    not trip over what plain writes left in the cache."""
    later = b'l' * 2048
    for steps in range(3 * steps_of_a_write()):
        for seed in range(4):
            bench = Bench(steps)
            done = [OLD]
            try:
                journal.write(bench.medium, bench.slot, 4096, NEW)
                done.append(NEW)
                bench.medium.write(4096, later, durable)
                if durable:
                    done.append(later)
                journal.write(bench.medium, bench.slot, 4096, OLD)
                done = [OLD, NEW, later, OLD]
            except Death:
                pass
            bench.begin_again(True, random.Random(seed))
            content = bench.content()
            if len(done) == 2:  # a plain write was under way: any of its blocks may be there
                assert content == OLD or all(
                    content[n : n + 512] in (NEW[:512], later[:512]) for n in range(0, 2048, 512)
                )
            else:
                assert content in (done[-1], (OLD, NEW, later, OLD, OLD)[len(done)])


# -- failures --------------------------------------------------------------------------------------


def failure(bench, data=NEW):
    with pytest.raises(OSError) as caught:
        journal.write(bench.medium, bench.slot, 4096, data)
    return caught.value


def test_a_journal_that_cannot_be_written_refuses_the_write():
    bench = Bench()
    bench.journal.fails = {'write': errno.ENOSPC}
    error = failure(bench)
    assert (error.errno, isinstance(error, RecordPending)) == (
        errno.EREMOTEIO,
        False,
    ) and 'No space' in error.strerror
    assert bench.content() == OLD and bench.slot.is_empty()


def test_a_journal_that_cannot_be_flushed_leaves_the_medium_alone_and_is_in_doubt():
    bench = Bench()
    bench.journal.fails = {'flush': errno.EIO}
    assert isinstance(failure(bench), RecordPending) and bench.content() == OLD


def test_a_write_that_fails_half_way_is_undone():
    bench = Bench()
    write, calls = bench.medium.write, []

    def fails_once(offset, data, durable):
        calls.append(offset)
        if len(calls) == 1:
            write(offset, bytes(data)[:1024], False)
            raise OSError(errno.ENOSPC, 'full')
        assert offset < 4096 + 1024  # only what differs is written again: it has its space
        write(offset, data, durable)

    bench.medium.write = fails_once
    error = failure(bench)
    assert (error.errno, isinstance(error, RecordPending)) == (errno.ENOSPC, False)
    assert bench.content() == OLD and bench.slot.is_empty()


def test_a_write_that_cannot_be_undone_is_in_doubt_until_recovery():
    bench = Bench()
    bench.medium.fails = {'write': errno.EIO}
    bench.medium.cache[9] = b'?' * 512
    calls = []
    bench.medium.read, read = (
        (lambda *a: calls.append(a) or (OLD if len(calls) == 1 else read(*a))),
        bench.medium.read,
    )
    assert isinstance(failure(bench), RecordPending) and not bench.slot.is_empty()
    bench.medium.fails, bench.medium.read = {}, read
    assert bench.slot.recover(bench.medium) and bench.content() == OLD


def test_unreadable_blocks_are_restored():
    bench = Bench()
    bench.slot.put_record(RECORD)
    bench.medium.write(4096, NEW[:1024], True)
    bench.medium.fails = {'read': errno.EIO}
    bench.slot.recover(bench.medium)
    bench.medium.fails = {}
    assert bench.content() == OLD


def test_the_length_of_an_atomic_write_is_limited():
    bench = Bench()
    assert failure(bench, bytes(LONGEST + 512)).errno == errno.EINVAL and bench.slot.is_empty()


# -- another medium --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'content, is_ours',
    [
        (OLD, True),
        (NEW, True),
        (NEW[:512] + OLD[:1536], True),
        (OLD[:1536] + NEW[:512], True),
        (b'x' * 2048, False),
        (NEW[:2047] + b'x', False),
        (OLD[:512] + bytes(512) + NEW[:1024], False),
    ],
)
def test_a_record_is_not_restored_over_unknown_data(content, is_ours):
    """Another disk that has the same name now, or a backup that was restored."""
    bench = Bench()
    bench.slot.put_record(RECORD)
    bench.medium.write(4096, content, True)
    if is_ours:
        assert bench.slot.recover(bench.medium, False) and bench.content() == OLD
        return
    with pytest.raises(OSError) as caught:
        bench.slot.recover(bench.medium, False)
    assert 'bytes 4096..6144' in caught.value.strerror
    assert bench.content() == content and not bench.slot.is_empty()
    assert bench.slot.recover(bench.medium) and bench.content() == OLD  # who wrote there is known


def test_a_record_is_not_restored_on_a_medium_that_is_too_short():
    bench = Bench()
    bench.slot.put_record(RECORD)
    bench.medium.size = 4096
    with pytest.raises(OSError):
        bench.slot.recover(bench.medium, False)


# -- a journal that was left behind ----------------------------------------------------------------


def test_a_truncated_journal_is_read_to_its_end(tmp_path, opened):
    """A file's length is not durable before its data are."""
    made = opened({'path': str(tmp_path / 'disk.img'), 'size': 1 << 20}).store()
    made.write(4096, OLD, False)
    path = str(tmp_path / 'journal')
    slot = journal.open_slot(os.open(path, os.O_RDWR | os.O_CREAT), 1, path)
    slot.put_record(RECORD)
    slot.close()
    for length, count in [(SLOT + HEAD + 2064, 1), (SLOT + HEAD + 100, 0), (SLOT + 100, 0), (0, 0)]:
        slot = journal.open_slot(os.open(path, os.O_RDWR), 1, path)
        slot.put_record(RECORD)
        slot.close()
        os.truncate(path, length)
        assert journal.recover_all_slots(os.open(path, os.O_RDWR), made, path) == count
        assert not count or made.read(4096, 2048) == OLD
    made.close()
