"""Stores that lock what they read and write, as several processes use them: each with a separate open
file description."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from targetd import compat, store
from targetd.store import Atomic, journal, linux, range_locks

MIB = 1 << 20
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(store.__file__)))


class House(object):
    """What the master owns: a medium, a journal, and a descriptor for the slot of each worker."""

    def __init__(self, opened, **wanted):
        self.made = opened(dict({'kind': 'ram', 'size': 8 * MIB}, **wanted))
        self.journal = compat.memory_file('journal', 4 * journal.SLOT)
        self.descriptors, self.stores = [], []

    def worker(self):
        """Another worker's store, and the descriptor of its slot that the master keeps."""
        number = len(self.stores)
        self.descriptors.append(linux.reopen(self.journal))
        self.stores.append(Atomic(self.made.store(), os.dup(self.descriptors[-1]), number))
        return self.stores[-1]

    def close(self):
        for each in self.stores:
            each.close()
        for descriptor in self.descriptors + [self.journal]:
            os.close(descriptor)


@pytest.fixture
def house(opened):
    made = []

    def make(**wanted):
        made.append(House(opened, **wanted))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def impatient(monkeypatch):
    """Waits for locks end soon."""
    monkeypatch.setattr(range_locks, 'LOCK_SECONDS', 0.1)


def number_of(call, *arguments):
    """Returns the errno that the call fails with, or None."""
    try:
        call(*arguments)
    except OSError as e:
        return e.errno


def in_thread(call, *arguments):
    thread = threading.Thread(target=call, args=arguments, daemon=True)
    thread.start()
    return thread


# -- locks -----------------------------------------------------------------------------------------


def test_readers_share_a_range_and_a_writer_has_it_exclusively(house, impatient):
    made = house()
    one, two = made.worker(), made.worker()
    with one.locked_range(4096, 8192, False):
        assert bytes(two.read(8192, 4096)) == bytes(4096) and two.try_read(8192, 4096) is not None
        assert number_of(two.write, 8192, b'x' * 512, False) == errno.ETIMEDOUT
        two.write(0, b'x' * 4096, False)
        two.write(12288, b'x' * 512, False)
    with one.locked_range(4096, 8192, True):
        assert two.try_read(8192, 4096) is None
        assert number_of(two.read, 12287, 1) == errno.ETIMEDOUT
        assert bytes(two.read(12288, 512)) == b'x' * 512 and two.try_read(12288, 512) is not None
    two.write(8192, b'y' * 512, False)
    assert bytes(one.read(8192, 512)) == b'y' * 512


@pytest.mark.parametrize(
    'verb, arguments',
    [
        ('read', (0, 512)),
        ('write', (0, bytes(512), False)),
        ('unmap', (0, 512)),
        ('write_zeroes', (0, 512, False)),
        ('copy', (None, 0, MIB, 512)),
        ('copy', (None, MIB, 0, 512)),
    ],
)
def test_every_verb_waits_for_a_writer_of_another_process_or_thread(
    house, impatient, verb, arguments
):
    made = house()
    one, two = made.worker(), made.worker()
    for writer in (one, two):
        given = tuple(two if each is None else each for each in arguments)
        with writer.exclusive_range(0, 4096):
            assert number_of(getattr(two, verb), *given) == errno.ETIMEDOUT
        assert number_of(getattr(two, verb), *given) is None
    for other in (one, two):
        with other.locked_range(0, MIB, True):
            with pytest.raises(OSError):
                two.atomic_write(0, 512).__enter__()


def test_a_stream_of_readers_does_not_block_a_waiting_writer(house):
    made = house()
    one, two, three = made.worker(), made.worker(), made.worker()
    written = threading.Event()
    with one.locked_range(0, 4096, False):
        thread = in_thread(lambda: (two.write(0, b'w' * 512, False), written.set()))
        probe = linux.reopen(made.journal)
        while not compat.is_locked(probe, range_locks.GATE, 4096):
            assert thread.is_alive()
        os.close(probe)
        assert three.try_read(0, 512) is None  # though it could be beside the one who reads
        assert not written.is_set()
    assert written.wait(20) and bytes(three.read(0, 512)) == b'w' * 512


def test_locks_are_released_after_errors(house, impatient):
    made = house(filters='error read offset=0..4k')
    one, two = made.worker(), made.worker()
    assert number_of(one.read, 0, 512) == errno.EIO
    with pytest.raises(ZeroDivisionError):
        with one.exclusive_range(0, 512):
            raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError):
        with one.atomic_write(0, 512):
            raise ZeroDivisionError
    two.write(0, bytes(512), False)


@pytest.mark.parametrize('source, target', [(0, 4096), (4096, 0), (0, 65536), (65536, 0), (0, 0)])
def test_copies_within_a_medium(house, source, target):
    one = house().worker()
    data = os.urandom(8192)
    one.write(source, data, False)
    one.copy(one, source, target, 8192)
    assert bytes(one.read(target, 8192)) == data


def test_copies_in_both_directions_at_once_do_not_deadlock(house):
    first, second = house(), house()
    stores = [first.worker(), second.worker()], [second.worker(), first.worker()]
    plain = first.made.store()
    done = []

    def copy(source, target):
        for _ in range(100):
            target.copy(source, 0, 0, 65536)
        done.append(None)

    threads = [in_thread(copy, source, target) for source, target in stores]
    for thread in threads:
        thread.join(60)
    assert len(done) == 2
    plain.copy(stores[0][1], 0, MIB, 4096)  # into a medium without locks, out of one with locks
    plain.close()


def test_a_locked_range_is_not_locked_again_inside(house):
    one = house().worker()
    for context in (
        one.exclusive_range(0, 4096),
        one.locked_range(0, 4096, True),
        one.locked_range(0, 4096, False),
    ):
        with context as medium:
            medium.write(0, b'x' * 512, False)
            assert bytes(medium.read(0, 512)) == b'x' * 512


def test_plain_stores_lock_nothing(house):
    medium = house().made.store()
    with medium.locked_range(0, 4096, True) as one, medium.locked_range(0, 4096, True) as two:
        assert one is two is medium
    medium.close()


# -- all or nothing --------------------------------------------------------------------------------


def write_in_one(medium, offset, data):
    with medium.atomic_write(offset, len(data)) as whole:
        whole.write(offset, data)


def test_an_atomic_write_is_visible_to_all_workers(house):
    made = house()
    one, two = made.worker(), made.worker()
    write_in_one(one, 4096, b'n' * MIB)
    assert bytes(two.read(4096, MIB)) == b'n' * MIB
    slot = journal.open_slot(linux.reopen(made.journal), 0)
    assert slot.is_empty()
    slot.close()


HOLDER = '''
import json, os, sys, time
from targetd import store
medium = store.from_descriptor(json.loads(sys.argv[1]), int(sys.argv[2]))
medium = store.Atomic(medium, int(sys.argv[3]), 0)
def stop(offset, data, durable):
    os.pwrite(medium.descriptor, bytes(data)[:512], offset)
    print("inside", flush=True)
    time.sleep(600)
medium.store.write = stop
with medium.atomic_write(4096, 8192) as whole:
    whole.write(4096, b"n" * 8192)
'''


def test_the_range_of_a_killed_process_stays_locked_until_recovery(house, impatient):
    made = house()
    medium, other = made.worker(), made.worker()
    medium.close()
    made.stores.remove(medium)
    other.write(4096, b'o' * 8192, False)
    words = [
        json.dumps(made.made.description()),
        str(made.made.descriptor),
        str(made.descriptors[0]),
    ]
    process = subprocess.Popen(
        [sys.executable, '-c', HOLDER] + words,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        pass_fds=[made.made.descriptor, made.descriptors[0]],
    )
    try:
        assert process.stdout.readline() == b'inside\n'
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    finally:
        process.kill()
        process.communicate()
    assert number_of(other.read, 8192, 512) == errno.ETIMEDOUT and other.try_read(4096, 512) is None
    slot = journal.open_slot(os.dup(made.descriptors[0]), 0)
    with made.made.store() as raw:
        assert slot.recover(raw)
    compat.unlock(slot.descriptor)
    slot.close()
    assert bytes(other.read(4096, 8192)) == b'o' * 8192


def test_a_failed_write_is_undone_and_the_next_one_works(house):
    one = house(filters='error write count=1 errno=ENOSPC').worker()
    assert number_of(write_in_one, one, 0, b'n' * 4096) == errno.ENOSPC
    assert bytes(one.read(0, 4096)) == bytes(4096) and one.lost is None
    write_in_one(one, 0, b'n' * 4096)
    assert bytes(one.read(0, 4096)) == b'n' * 4096


def test_a_range_in_doubt_stays_locked_and_is_reported_as_lost(house, impatient, capfd):
    made = house(filters='error flush after=1')
    one, two = made.worker(), made.worker()
    assert number_of(write_in_one, one, 0, b'n' * 4096) == errno.EIO
    assert one.lost == errno.EIO and 'in doubt' in capfd.readouterr().err
    assert number_of(two.read, 0, 512) == errno.ETIMEDOUT
    assert number_of(write_in_one, one, MIB, b'n' * 512) == errno.EREMOTEIO
    assert number_of(two.write, MIB, b'n' * 512, False) is None


def test_a_full_journal_is_explained_in_the_log(house, monkeypatch, capfd):
    made = house()
    one = made.worker()
    monkeypatch.setattr(
        one.slot,
        'put_record',
        lambda *words: (_ for _ in ()).throw(OSError(errno.ENOSPC, 'No space left on device')),
    )
    assert number_of(write_in_one, one, 0, b'n' * 4096) == errno.EREMOTEIO
    assert (
        'nothing was changed: the journal cannot be written: No space left on device'
        in capfd.readouterr().err
    )
    monkeypatch.undo()
    write_in_one(one, 0, b'n' * 4096)


def test_atomic_writes_of_one_worker_are_serialized(house):
    one = house(filters='tear piece=512 pause=1ms').worker()
    threads = [in_thread(write_in_one, one, n * 2048, bytes([n]) * 4096) for n in range(1, 6)]
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    edges = [bytes(one.read(n * 2048, 2048)) for n in range(1, 7)]
    assert all(len(set(edge)) == 1 for edge in edges)


# -- kernels that cannot ---------------------------------------------------------------------------


def test_a_kernel_without_these_locks_is_reported(house, monkeypatch):
    assert range_locks.unsupported_reason(house().journal) == ''

    def old(*words):
        raise OSError(errno.EINVAL, 'Invalid argument')

    monkeypatch.setattr(compat, 'try_lock', old)
    assert '3.15' in range_locks.unsupported_reason(house().journal)
    monkeypatch.setattr(compat, 'try_lock', lambda *words: True)
    assert 'file system' in range_locks.unsupported_reason(house().journal)
