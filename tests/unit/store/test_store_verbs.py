"""The verbs, on every kind of store: written data is read back, zeroes are zeroes, no verb does
only part of its work."""

import ctypes
import errno
import mmap
import os
import random

import pytest

from targetd import compat, store
from targetd.store import linux, posix

BLOCK = 4096
SIZE = 8 << 20


def pattern(length, seed=1):
    return random.Random(seed).getrandbits(8 * 8191).to_bytes(8191, 'big') * (length // 8191 + 1)


def block(seed, length=BLOCK):
    return pattern(length, seed)[:length]


def test_a_new_store_reads_as_zeroes(any_store):
    assert any_store.size == SIZE
    assert bytes(any_store.read(0, SIZE)) == bytes(SIZE)


@pytest.mark.parametrize('durable', [False, True])
@pytest.mark.parametrize('length', [BLOCK, 3 * BLOCK, 1 << 20])
def test_written_data_is_read_back(any_store, durable, length):
    data = block(2, length)
    any_store.write(BLOCK, data, durable)
    any_store.flush(BLOCK, length)
    assert bytes(any_store.read(BLOCK, length)) == data
    assert bytes(any_store.read(0, BLOCK)) == bytes(BLOCK)
    assert bytes(any_store.read(BLOCK + length, BLOCK)) == bytes(BLOCK)


@pytest.mark.parametrize(
    'kind', [bytes, bytearray, memoryview, lambda data: memoryview(bytearray(data))]
)
def test_any_buffer_can_be_written(any_store, kind):
    for durable in (False, True):
        any_store.write(BLOCK, kind(block(3)), durable)
        assert bytes(any_store.read(BLOCK, BLOCK)) == block(3)


def test_try_read_returns_the_right_bytes_or_none(any_store):
    any_store.write(BLOCK, block(4), False)
    data = any_store.try_read(BLOCK, BLOCK)
    assert data is None or bytes(data) == block(4)


def test_the_last_block_can_be_written_and_nothing_beyond_it(any_store):
    any_store.write(SIZE - BLOCK, block(5), False)
    assert bytes(any_store.read(SIZE - BLOCK, BLOCK)) == block(5)
    for change in (
        lambda: any_store.write(SIZE, block(5), False),
        lambda: any_store.write(SIZE - BLOCK, 2 * block(5), True),
        lambda: any_store.write_zeroes(SIZE, BLOCK, False),
        lambda: any_store.unmap(SIZE - BLOCK, 2 * BLOCK),
        lambda: any_store.copy(any_store, 0, SIZE - BLOCK, 2 * BLOCK),
    ):
        with pytest.raises(OSError):
            change()
    assert any_store.resize_check() == SIZE
    assert bytes(any_store.read(SIZE - BLOCK, BLOCK)) == block(5)


def test_reading_beyond_the_end_is_an_error_and_not_a_short_answer(any_store):
    with pytest.raises(OSError):
        any_store.read(SIZE - BLOCK, 2 * BLOCK)
    assert any_store.try_read(SIZE - BLOCK, 2 * BLOCK) is None


@pytest.mark.parametrize('may_unmap', [False, True])
def test_write_zeroes_zeroes_exactly_the_range(any_store, may_unmap):
    any_store.write(0, block(6, 64 * BLOCK), False)
    any_store.write_zeroes(3 * BLOCK, 40 * BLOCK, may_unmap)
    expected = bytearray(block(6, 64 * BLOCK))
    expected[3 * BLOCK : 43 * BLOCK] = bytes(40 * BLOCK)
    assert bytes(any_store.read(0, 64 * BLOCK)) == expected


def test_unmapped_bytes_are_zeroes_if_guaranteed(any_store):
    any_store.write(0, block(7, 64 * BLOCK), True)
    any_store.unmap(8 * BLOCK, 16 * BLOCK)
    around = bytes(any_store.read(0, 8 * BLOCK)) + bytes(any_store.read(24 * BLOCK, 40 * BLOCK))
    assert around == block(7, 64 * BLOCK)[: 8 * BLOCK] + block(7, 64 * BLOCK)[24 * BLOCK :]
    assert any_store.capabilities.zeroes_after_unmap
    assert bytes(any_store.read(8 * BLOCK, 16 * BLOCK)) == bytes(16 * BLOCK)


def test_a_length_of_zero_is_allowed(any_store):
    any_store.write(0, block(8), False)
    any_store.write(0, b'', False)
    any_store.unmap(0, 0)
    any_store.write_zeroes(0, 0, True)
    any_store.copy(any_store, BLOCK, 0, 0)
    assert bytes(any_store.read(0, 0)) == b''
    assert any_store.extents(0, 0) == []
    assert bytes(any_store.read(0, BLOCK)) == block(8)


def test_extents_cover_the_range_and_what_is_unmapped_reads_as_zeroes(any_store):
    any_store.write(1 << 20, block(9, 1 << 20), True)
    any_store.write(5 << 20, block(9, 1 << 16), True)
    found = any_store.extents(BLOCK, SIZE - 2 * BLOCK)
    assert found[0][0] == BLOCK and sum(length for _, length, _ in found) == SIZE - 2 * BLOCK
    for (offset, length, _), (following, _, _) in zip(found, found[1:]):
        assert offset + length == following
    for offset, length, mapped in found:
        if not mapped:
            assert not any(any_store.read(offset, length))


def test_extents_stop_at_the_maximum(make_store):
    medium = make_store('file')
    for at in range(0, SIZE, 1 << 20):
        medium.write(at, block(1, 1 << 16), True)
    whole = medium.extents(0, SIZE)
    assert len(whole) == 16 and [mapped for _, _, mapped in whole] == [True, False] * 8
    assert medium.extents(0, SIZE, 3) == whole[:3]


@pytest.mark.parametrize(
    'source, destination',
    [
        (0, 2 << 20),
        (2 << 20, 0),
        (1 << 20, (1 << 20) + BLOCK),
        ((1 << 20) + BLOCK, 1 << 20),
        (BLOCK, BLOCK),
    ],
)
def test_copies_within_a_store_may_overlap(any_store, source, destination):
    model = bytearray(SIZE)
    length = (2 << 20) + BLOCK
    model[source : source + length] = block(10, length)
    any_store.write(source, block(10, length), False)
    any_store.copy(any_store, source, destination, length)
    model[destination : destination + length] = model[source : source + length]
    assert bytes(any_store.read(0, SIZE)) == model


@pytest.mark.parametrize('variant', ['file', 'ram', 'loop 512', 'traced file'])
def test_copies_between_stores(any_store, make_store, variant):
    source = make_store(variant)
    source.write(BLOCK, block(11, 1 << 20), False)
    any_store.copy(source, BLOCK, 4 * BLOCK, 1 << 20)
    assert bytes(any_store.read(4 * BLOCK, 1 << 20)) == block(11, 1 << 20)


def test_many_random_operations_agree_with_a_model(any_store):
    chance, model = random.Random(42), bytearray(SIZE)
    for step in range(150):
        start = chance.randrange(0, SIZE // BLOCK)
        length = chance.randrange(1, min(64, SIZE // BLOCK - start) + 1) * BLOCK
        start *= BLOCK
        verb = chance.choice(['write', 'write', 'durable', 'zero', 'zero unmap', 'unmap', 'read'])
        if verb in ('write', 'durable'):
            data = block(step, length)
            any_store.write(start, data, verb == 'durable')
            model[start : start + length] = data
        elif verb == 'read':
            assert bytes(any_store.read(start, length)) == model[start : start + length]
        else:
            if verb == 'unmap':
                any_store.unmap(start, length)
            else:
                any_store.write_zeroes(start, length, verb == 'zero unmap')
            model[start : start + length] = bytes(length)
    assert bytes(any_store.read(0, SIZE)) == model


def test_verbs_of_a_closed_store_fail(any_store):
    try_read, write = any_store.try_read, any_store.write
    any_store.close()
    any_store.close()
    with pytest.raises(OSError) as caught:
        any_store.read(0, BLOCK)
    assert caught.value.errno == errno.EBADF
    with pytest.raises(OSError):
        write(0, block(1), False)
    try:
        assert try_read(0, BLOCK) is None
    except OSError as e:
        assert e.errno == errno.EBADF


# -- what holds for some kinds only ----------------------------------------------------------------


@pytest.mark.parametrize('variant', ['file', 'ram'])
def test_unmap_frees_space(make_store, variant):
    medium = make_store(variant)
    medium.write(0, block(12, 4 << 20), True)
    before = medium.allocated()
    assert before >= 4 << 20
    medium.unmap(0, 4 << 20)
    assert medium.allocated() <= before - (3 << 20)


def test_holes_of_a_file_are_unmapped_extents(make_store):
    medium = make_store('file')
    medium.write(1 << 20, block(13, 1 << 20), True)
    assert medium.extents(0, SIZE) == [
        (0, 1 << 20, False),
        (1 << 20, 1 << 20, True),
        (2 << 20, 6 << 20, False),
    ]
    medium.unmap(1 << 20, 1 << 19)
    assert medium.extents(0, SIZE)[0] == (0, 3 << 19, False)


def test_write_zeroes_without_unmap_keeps_the_space(make_store):
    medium = make_store('file')
    medium.write_zeroes(0, 1 << 20, False)
    medium.flush(0, 1 << 20)
    assert medium.allocated() >= 1 << 20
    medium.write_zeroes(0, 1 << 20, True)
    assert medium.allocated() < 1 << 20


def resident(descriptor, offset, length):
    """How many pages of this part of a file are in the page cache, according to mincore(2)."""
    with mmap.mmap(
        descriptor, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=offset
    ) as view:
        pages = ctypes.create_string_buffer(length // mmap.PAGESIZE)
        start = ctypes.c_char.from_buffer(view)
        try:
            assert (
                ctypes.CDLL(None).mincore(
                    ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(length), pages
                )
                == 0
            )
        finally:
            del start
        return sum(page & 1 for page in pages.raw)


def evicted(descriptor, offset, length):
    """Ask the kernel to drop its cached pages until it has. Returns False if it does not."""
    for _ in range(50):
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        if not resident(descriptor, offset, length):
            return True
    return False


def test_cached_reads_do_not_wait_and_uncached_ones_are_refused(make_store):
    medium = make_store('file')
    if compat.preadv is None or not posix.supports_nowait(medium.descriptor):
        pytest.skip('no RWF_NOWAIT here')
    medium.write(0, block(14, SIZE), True)
    assert bytes(medium.try_read(BLOCK, BLOCK)) == block(14, SIZE)[BLOCK : 2 * BLOCK]
    answers = []
    for _ in range(50):  # a disk that is quick enough has read ahead before it can be found waiting
        answers.append(
            evicted(medium.descriptor, 4 << 20, 1 << 20) and medium.try_read(4 << 20, 1 << 20)
        )
        if answers[-1] is None:
            break
    else:
        pytest.skip(
            'the kernel does not release the cached file'
            if not any(answers)
            else 'this disk is never waited for'
        )
    assert bytes(medium.read(4 << 20, BLOCK)) == block(14, SIZE)[4 << 20 : (4 << 20) + BLOCK]
    assert bytes(medium.try_read(4 << 20, BLOCK)) == block(14, SIZE)[4 << 20 : (4 << 20) + BLOCK]


def test_an_old_kernel_never_reads_inline(make_store, monkeypatch):
    def refuse(descriptor, buffers, offset, flags=0):
        raise OSError(errno.EOPNOTSUPP, 'no such flag')

    monkeypatch.setattr(compat, 'preadv', refuse)
    medium = make_store('file')
    medium.write(0, block(15), False)
    assert medium.try_read(0, BLOCK) is None
    monkeypatch.setattr(compat, 'preadv', None)
    assert make_store('file').try_read(0, BLOCK) is None


def test_memory_is_read_inline_and_shared_through_the_descriptor(make_store, opened):
    master = opened({'kind': 'ram', 'size': SIZE})
    first, second = master.store(), master.store()
    first.write(BLOCK, block(16), True)
    assert bytes(second.try_read(BLOCK, BLOCK)) == block(16)
    assert first.durable_is_free and first.inline_write_limit > 0
    first.close()
    second.close()


def test_direct_stores_never_run_inline(make_store):
    medium = make_store('direct file')
    medium.write(0, block(17), False)
    assert medium.inline_write_limit == 0 and medium.try_read(0, BLOCK) is None
    with pytest.raises(OSError) as caught:
        medium.write(100, b'x' * 100, False)
    assert caught.value.errno == errno.EINVAL


def test_a_durable_write_is_flushed_and_another_write_is_not(make_store, monkeypatch):
    synced = []
    monkeypatch.setattr(os, 'fdatasync', synced.append)
    medium = make_store('file')
    medium.write(0, block(18), True)
    medium.write(BLOCK, block(19), True)
    medium.write(2 * BLOCK, block(20), False)
    assert synced == [medium.descriptor] * 2
    assert bytes(medium.read(0, 3 * BLOCK)) == block(18) + block(19) + block(20)


def test_short_writes_are_finished(make_store, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(
        posix,
        '_pwrite',
        lambda descriptor, data, offset: real(descriptor, memoryview(data)[:1000], offset),
    )
    medium = make_store('file')
    medium.write(BLOCK, block(21, 10000), False)
    assert bytes(medium.read(BLOCK, 10000)) == block(21, 10000)


def test_short_reads_are_finished(make_store, monkeypatch):
    medium = make_store('file')
    medium.write(0, block(22, 10000), False)
    real = os.pread
    monkeypatch.setattr(
        os, 'pread', lambda descriptor, length, offset: real(descriptor, min(length, 1000), offset)
    )
    assert bytes(medium.read(0, 10000)) == block(22, 10000)


def test_reads_of_a_truncated_file_fail_and_are_not_short(make_store):
    medium = make_store('file')
    os.truncate(medium.path, 4 << 20)
    assert medium.resize_check() == 4 << 20 and medium.size == SIZE
    assert medium.try_read(4 << 20, BLOCK) is None
    with pytest.raises(OSError) as caught:
        medium.read((4 << 20) - BLOCK, 2 * BLOCK)
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize('unsupported', [errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_fallocate_zeroes_are_written(make_store, monkeypatch, unsupported):
    def refuse(*arguments):
        raise OSError(unsupported, os.strerror(unsupported))

    for variant in ('file', 'loop 512', 'loop 4096'):
        medium = make_store(variant)
        medium.write(0, block(23, 3 << 20), False)
        monkeypatch.setattr(linux, 'fallocate', refuse)
        for may_unmap, at in ((True, 0), (False, 1 << 20)):
            medium.write_zeroes(at, 1 << 20, may_unmap)
        medium.unmap(2 << 20, BLOCK)
        assert bytes(medium.read(0, (2 << 20) + BLOCK)) == bytes((2 << 20) + BLOCK)
        monkeypatch.setattr(linux, 'zero_out', refuse)
        medium.write(0, block(23), False)
        medium.write_zeroes(0, BLOCK, False)
        assert bytes(medium.read(0, BLOCK)) == bytes(BLOCK)
        monkeypatch.undo()


def test_other_errors_of_fallocate_are_raised(make_store, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    medium = make_store('file')
    monkeypatch.setattr(linux, 'fallocate', full)
    with pytest.raises(OSError) as caught:
        medium.write_zeroes(0, BLOCK, False)
    assert caught.value.errno == errno.ENOSPC


def test_a_512_byte_unit_on_4096_byte_sectors(opened, loop_device):
    medium = opened({'path': loop_device(4096), 'block_size': 512}).store()
    with medium:
        medium.write(0, block(24, 4 * BLOCK), False)
        medium.write_zeroes(512, 3 * BLOCK - 1024, False)
        medium.write_zeroes(3 * BLOCK + 512, 512, True)
        expected = bytearray(block(24, 4 * BLOCK))
        expected[512 : 3 * BLOCK - 512] = bytes(3 * BLOCK - 1024)
        expected[3 * BLOCK + 512 : 3 * BLOCK + 1024] = bytes(512)
        assert bytes(medium.read(0, 4 * BLOCK)) == expected
        assert medium.capabilities.physical_block_size == 4096


def test_a_discard_leaves_parts_of_granules_unchanged(opened, loop_device, monkeypatch):
    """A device that only discards: whole granules are discarded with BLKDISCARD, without guarantee."""
    monkeypatch.setattr(linux.DeviceQueue, 'zeroes_by_unmapping', lambda self: False)
    master = opened({'path': loop_device(512)})
    if not master.capabilities.unmap:
        pytest.skip('this loop device cannot discard')
    granule = master.capabilities.unmap_granularity
    assert not master.capabilities.zeroes_after_unmap
    asked = []
    real = linux.discard
    monkeypatch.setattr(
        linux,
        'discard',
        lambda fd, offset, length: (asked.append((offset, length)), real(fd, offset, length)),
    )
    with master.store() as medium:
        medium.write(0, block(25, 8 * granule), True)
        medium.unmap(granule + 512, 4 * granule)
        medium.unmap(512, 512)
        assert asked == [(2 * granule, 3 * granule)]
        kept = bytes(medium.read(0, 2 * granule)) + bytes(medium.read(5 * granule, 3 * granule))
        whole = block(25, 8 * granule)
        assert kept == whole[: 2 * granule] + whole[5 * granule :]


def test_null_reads_zeroes_and_discards_writes(opened):
    medium = opened({'kind': 'null', 'size': SIZE}).store()
    medium.write(0, block(26), True)
    medium.flush(0, SIZE)
    assert bytes(medium.read(0, BLOCK)) == bytes(medium.try_read(0, BLOCK)) == bytes(BLOCK)
    assert len(medium.read(0, SIZE)) == SIZE
    assert medium.extents(0, SIZE) == [(0, SIZE, False)] and medium.allocated() == 0
    with pytest.raises(OSError):
        medium.write(SIZE, b'x', False)
    with pytest.raises(OSError):
        medium.read(SIZE, 1)
    with medium.exclusive_range(0, BLOCK):
        pass


def test_a_growing_medium_is_detected(opened, tmp_path):
    master = opened({'path': str(tmp_path / 'grows.img'), 'size': SIZE})
    with master.store() as medium:
        os.truncate(medium.path, 2 * SIZE)
        assert medium.resize_check() == master.resize_check() == 2 * SIZE
        with pytest.raises(OSError):
            medium.write(SIZE, block(1), False)
        medium.size = 2 * SIZE
        medium.write(SIZE, block(1), False)
        master.set_size(2 * SIZE)
        assert master.size == master.description()['size'] == 2 * SIZE


def test_an_unknown_description_is_refused_and_the_descriptor_is_closed(tmp_path):
    descriptor = os.open(str(tmp_path), os.O_RDONLY)
    with pytest.raises((KeyError, ValueError)):
        store.from_descriptor({'kind': 'tape', 'size': 1}, descriptor)
    with pytest.raises(OSError):
        os.fstat(descriptor)
