"""What formatting and sanitizing leave on the medium, how they tell of it, and that they go on
where they were."""

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
    return operations.sized(operations.begun(dict(base, **words), BY), SIZE)


class Told(list):
    def __call__(self, position, lasting):
        self.append((position, lasting))


def still():
    return 0.0


def test_an_overwrite_leaves_its_pattern_in_every_block(medium):
    told = Told()
    erasing.operate(medium, operation(), told, still)
    assert medium.read(0, SIZE) == (b'\xa1\xb2\xc3' * 171)[:512] * (SIZE // 512)
    assert told == [(SIZE, True)]


def test_inverted_passes_end_with_what_the_last_one_writes(medium):
    told = Told()
    erasing.operate(medium, operation(pattern='0f', passes=2, invert=True), told, still)
    assert medium.read(0, SIZE) == b'\xf0' * SIZE
    assert told == [(SIZE, True), (2 * SIZE, True)]


def test_it_goes_on_where_it_was(medium):
    erasing.operate(medium, dict(operation(pattern='77'), position=2 * erasing.STEP), Told(), still)
    assert medium.read(0, 8) == b'old data'
    assert medium.read(2 * erasing.STEP, SIZE - 2 * erasing.STEP) == b'\x77' * (
        SIZE - 2 * erasing.STEP
    )


def test_what_is_done_already_is_not_done_again(medium):
    told = Told()
    erasing.operate(medium, dict(operation(), position=SIZE), told, still)
    assert medium.read(0, 8) == b'old data' and told == []


@pytest.mark.parametrize(
    'words',
    [{'method': 'erase', 'pattern': ''}, {'kind': 'format', 'method': 'zeroes', 'pattern': ''}],
)
def test_erasing_and_formatting_leave_zeroes(medium, words):
    erasing.operate(medium, operation(**words), Told(), still)
    assert medium.read(0, SIZE) == bytes(SIZE)


def test_a_block_erase_gives_the_space_back(medium):
    if not medium.capabilities.unmap:
        pytest.skip('this file system cannot punch holes')
    erasing.operate(medium, operation(method='erase', pattern=''), Told(), still)
    assert all(not mapped for _, _, mapped in medium.extents(0, SIZE))


def test_progress_is_told_often_and_made_lasting_now_and_then(medium):
    times = iter(range(0, 1000, 4))
    told = Told()
    erasing.operate(medium, operation(), told, lambda: float(next(times)))
    assert told[0] == (erasing.STEP, False)
    assert [lasting for _, lasting in told].count(True) >= 2 and told[-1] == (SIZE, True)


def test_lasting_means_flushed(medium):
    flushed = []
    flush = medium.flush
    medium.flush = lambda offset, length: (flushed.append((offset, length)), flush(offset, length))
    erasing.operate(medium, operation(passes=3), Told(), still)
    assert flushed == [(0, SIZE)] * 3


def test_a_medium_that_fails_ends_it(medium):
    def broken(offset, data, durable):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    medium.write = broken
    with pytest.raises(OSError):
        erasing.operate(medium, operation(), Told(), still)


def test_a_read_only_medium_is_not_touched(tmp_path):
    path = tmp_path / 'disk'
    path.write_bytes(b'x' * 4096)
    with store.open_store(
        {'path': str(path), 'read_only': True}
    ) as opened, opened.store() as medium:
        with pytest.raises(OSError):
            erasing.operate(medium, operation(), Told(), still)
    assert path.read_bytes() == b'x' * 4096
