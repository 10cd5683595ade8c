"""Formatting and sanitizing: the contents of the medium afterwards, the progress reports, and
continuing an interrupted operation."""

import errno
import os

import pytest

from targetd import store
from targetd.scsi import operations
from targetd.worker import erasing

BY = ('i', 't')
SIZE = 3 * erasing.STEP + 4096


@pytest.fixture
def medium(tmp_path):
    path = tmp_path / 'disk'
    path.write_bytes(b'old data' * (SIZE // 8))
    with store.open_store({'path': str(path)}) as opened, opened.store() as found:
        yield found


def operation(**words):
    base = {'kind': 'sanitize', 'method': 'pattern', 'pattern': 'a1b2c3', 'passes': 1}
    return operations.for_medium_size(operations.new_operation(dict(base, **words), BY), SIZE)


class Reports(list):
    def __call__(self, position, lasting):
        self.append((position, lasting))


def frozen_clock():
    return 0.0


def test_an_overwrite_writes_its_pattern_to_every_block(medium):
    reports = Reports()
    erasing.run_operation(medium, operation(), reports, frozen_clock)
    assert medium.read(0, SIZE) == (b'\xa1\xb2\xc3' * 171)[:512] * (SIZE // 512)
    assert reports == [(SIZE, True)]


def test_inverted_passes_end_with_the_pattern_of_the_last_pass(medium):
    reports = Reports()
    erasing.run_operation(
        medium, operation(pattern='0f', passes=2, invert=True), reports, frozen_clock
    )
    assert medium.read(0, SIZE) == b'\xf0' * SIZE
    assert reports == [(SIZE, True), (2 * SIZE, True)]


def test_an_interrupted_operation_continues_at_its_position(medium):
    erasing.run_operation(
        medium, dict(operation(pattern='77'), position=2 * erasing.STEP), Reports(), frozen_clock
    )
    assert medium.read(0, 8) == b'old data'
    assert medium.read(2 * erasing.STEP, SIZE - 2 * erasing.STEP) == b'\x77' * (
        SIZE - 2 * erasing.STEP
    )


def test_a_completed_operation_writes_nothing(medium):
    reports = Reports()
    erasing.run_operation(medium, dict(operation(), position=SIZE), reports, frozen_clock)
    assert medium.read(0, 8) == b'old data' and reports == []


@pytest.mark.parametrize(
    'words',
    [{'method': 'erase', 'pattern': ''}, {'kind': 'format', 'method': 'zeroes', 'pattern': ''}],
)
def test_erasing_and_formatting_leave_zeroes(medium, words):
    erasing.run_operation(medium, operation(**words), Reports(), frozen_clock)
    assert medium.read(0, SIZE) == bytes(SIZE)


def test_a_block_erase_unmaps_the_medium(medium):
    if not medium.capabilities.unmap:
        pytest.skip('this file system cannot punch holes')
    erasing.run_operation(medium, operation(method='erase', pattern=''), Reports(), frozen_clock)
    assert all(not mapped for _, _, mapped in medium.extents(0, SIZE))


def test_progress_is_reported_often_and_sometimes_flushed(medium):
    times = iter(range(0, 1000, 4))
    reports = Reports()
    erasing.run_operation(medium, operation(), reports, lambda: float(next(times)))
    assert reports[0] == (erasing.STEP, False)
    assert [lasting for _, lasting in reports].count(True) >= 2 and reports[-1] == (SIZE, True)


def test_the_medium_is_flushed_before_progress_is_reported_as_lasting(medium):
    flushed = []
    flush = medium.flush
    medium.flush = lambda offset, length: (flushed.append((offset, length)), flush(offset, length))
    erasing.run_operation(medium, operation(passes=3), Reports(), frozen_clock)
    assert flushed == [(0, SIZE)] * 3


def test_a_failed_write_ends_the_operation(medium):
    def broken(offset, data, durable):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    medium.write = broken
    with pytest.raises(OSError):
        erasing.run_operation(medium, operation(), Reports(), frozen_clock)


def test_a_read_only_medium_is_not_written(tmp_path):
    path = tmp_path / 'disk'
    path.write_bytes(b'x' * 4096)
    with store.open_store(
        {'path': str(path), 'read_only': True}
    ) as opened, opened.store() as medium:
        with pytest.raises(OSError):
            erasing.run_operation(medium, operation(), Reports(), frozen_clock)
    assert path.read_bytes() == b'x' * 4096
