"""Media that fill up and devices that lose data, real ones where this process may make them."""

import errno
import os
import resource

import pytest

from targetd import store

MIB = 1 << 20


def failure(call, *arguments):
    """Returns the errno that a call fails with."""
    with pytest.raises(OSError) as caught:
        call(*arguments)
    return caught.value.errno


@pytest.fixture
def medium_of():
    """medium_of(description) -> Store; closed at the end."""
    made = []

    def make(description):
        master = store.open_store(description)
        made.extend([master, master.store()])
        return made[-1]

    yield make
    for each in reversed(made):
        each.close()


@pytest.fixture
def folder(small_disk):
    """A file system of 1 MiB."""
    return small_disk(1)


def test_a_full_disk_is_enospc_until_space_is_unmapped(folder, medium_of):
    medium = medium_of({'path': folder + '/thin.img', 'size': 8 * MIB})
    medium.write(0, b'k' * 4096, False)
    assert (
        failure(
            lambda: [medium.write(at, b'x' * 65536, False) for at in range(65536, 8 * MIB, 65536)]
        )
        == errno.ENOSPC
    )
    assert failure(medium.write, 4 * MIB, b'y' * MIB, True) == errno.ENOSPC
    assert bytes(medium.read(0, 4096)) == b'k' * 4096
    assert medium.resize_check() == 8 * MIB
    medium.flush(0, 8 * MIB)
    medium.unmap(65536, 8 * MIB - 65536)
    medium.write(7 * MIB, b'z' * 65536, True)
    assert bytes(medium.read(7 * MIB, 65536)) == b'z' * 65536
    assert medium.lost is None


def test_write_zeroes_without_free_space_fails(folder, medium_of):
    medium = medium_of({'path': folder + '/thin.img', 'size': 8 * MIB})
    assert failure(medium.write_zeroes, 0, 8 * MIB, False) == errno.ENOSPC
    medium.write_zeroes(0, 8 * MIB, True)
    assert medium.allocated() == 0


def test_a_copy_without_free_space_fails(folder, medium_of):
    medium = medium_of({'path': folder + '/thin.img', 'size': 8 * MIB})
    medium.write(0, b'x' * (MIB * 3 // 4), False)
    assert failure(medium.copy, medium, 0, 4 * MIB, MIB * 3 // 4) == errno.ENOSPC


def test_a_file_size_limit_is_an_error_and_does_not_kill_the_process(tmp_path, medium_of):
    medium = medium_of({'path': str(tmp_path / 'limited.img'), 'size': 4 * MIB})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
    try:
        assert failure(medium.write, 2 * MIB, b'x' * 4096, False) == errno.EFBIG
        assert failure(medium.write, MIB - 4096, b'x' * 8192, False) == errno.EFBIG
        medium.write(0, b'x' * 4096, True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    medium.write(2 * MIB, b'x' * 4096, True)


def test_lost_data_fails_every_flush_until_the_store_is_opened_again(losing, medium_of):
    medium = medium_of({'path': losing.device})
    for at in range(0, 4 * MIB, 65536):
        medium.write(at, b'x' * 65536, False)
    assert medium.lost is None
    first = failure(medium.flush, 0, 4 * MIB)
    assert first in (errno.EIO, errno.ENOSPC) and medium.lost == first
    # the kernel has reported the error once, and does not repeat it
    os.fdatasync(medium.descriptor)
    assert failure(medium.flush, 0, 4 * MIB) == first
    assert failure(medium.write, 0, b'y' * 4096, True) == first


def test_a_lost_durable_write_is_an_error(losing, medium_of):
    medium = medium_of({'path': losing.device})
    number = failure(
        lambda: [medium.write(at, b'x' * 65536, True) for at in range(0, 4 * MIB, 65536)]
    )
    assert number in (errno.EIO, errno.ENOSPC)


@pytest.mark.parametrize(
    'number, sticks', [(errno.EIO, True), (errno.ENOSPC, True), (errno.EINVAL, False)]
)
def test_a_failing_fdatasync(tmp_path, medium_of, monkeypatch, number, sticks):
    medium = medium_of({'path': str(tmp_path / 'disk.img'), 'size': MIB})

    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, 'fdatasync', fail)
    assert failure(medium.flush, 0, MIB) == number
    monkeypatch.undo()
    if sticks:
        assert failure(medium.flush, 0, MIB) == number
    else:
        medium.flush(0, MIB)
    medium.write(0, bytes(512), False)
    assert bytes(medium.read(0, 512)) == bytes(512)


def test_a_durable_write_that_cannot_be_flushed_marks_the_store_lost(
    tmp_path, medium_of, monkeypatch
):
    def fail(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    medium = medium_of({'path': str(tmp_path / 'disk.img'), 'size': MIB})
    monkeypatch.setattr(os, 'fdatasync', fail)
    assert failure(medium.write, 0, bytes(512), True) == errno.EIO
    monkeypatch.undo()
    assert medium.lost == errno.EIO and failure(medium.flush, 0, MIB) == errno.EIO


def test_eio_of_the_write_itself_does_not_mark_other_data_as_lost(tmp_path, medium_of, monkeypatch):
    from targetd.store import posix

    def fail(descriptor, data, offset):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(posix, '_pwrite', fail)
    medium = medium_of({'path': str(tmp_path / 'disk.img'), 'size': MIB})
    assert failure(medium.write, 0, bytes(512), True) == errno.EIO
    assert medium.lost is None
    medium.flush(0, MIB)


def test_stacked_filters_fail_each_their_own_range(medium_of):
    medium = medium_of(
        {
            'kind': 'ram',
            'size': MIB,
            'filters': 'error read offset=0..4k, error write offset=4k..8k errno=ENOSPC',
        }
    )
    assert failure(medium.read, 0, 512) == errno.EIO
    assert failure(medium.write, 4096, bytes(512), False) == errno.ENOSPC
    medium.write(0, bytes(512), True)
    assert bytes(medium.read(4096, 512)) == bytes(512)
