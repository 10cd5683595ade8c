import errno
import os

import pytest

from targetd.scsi import errno_map, sense


def sense_of(condition):
    return condition.key, condition.asc, condition.ascq


def failure(number):
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    'number, read, write',
    [
        (errno.EIO, (3, 0x11, 0x00), (3, 0x0C, 0x00)),
        (errno.ENODATA, (3, 0x11, 0x00), (3, 0x0C, 0x00)),
        (errno.EILSEQ, (3, 0x10, 0x00), (3, 0x10, 0x00)),
        (errno.EREMOTEIO, (4, 0x44, 0x00), (4, 0x44, 0x00)),
        (errno.ENXIO, (4, 0x3E, 0x01), (4, 0x3E, 0x01)),
        (errno.ENODEV, (4, 0x3E, 0x01), (4, 0x3E, 0x01)),
        (errno.ETIMEDOUT, (0xB, 0x3E, 0x02), (0xB, 0x3E, 0x02)),
        (errno.ENOMEDIUM, (2, 0x3A, 0x00), (2, 0x3A, 0x00)),
    ],
)
def test_sense_of_each_errno(number, read, write):
    assert sense_of(errno_map.read_failure(failure(number))) == read
    assert sense_of(errno_map.write_failure(failure(number))) == write


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_space_allocation_failed(number):
    assert sense_of(errno_map.write_failure(failure(number))) == (sense.DATA_PROTECT, 0x27, 0x07)


@pytest.mark.parametrize('number', [errno.EROFS, errno.EPERM, errno.EACCES])
def test_a_write_that_is_not_allowed_is_write_protected(number):
    assert sense_of(errno_map.write_failure(failure(number))) == (sense.DATA_PROTECT, 0x27, 0x00)


@pytest.mark.parametrize('number', [errno.EAGAIN, errno.ENOMEM, errno.ETIMEDOUT])
def test_temporary_failures_are_retried(number):
    """Windows and Linux retry after ABORTED COMMAND, but not after MEDIUM or HARDWARE ERROR."""
    assert errno_map.write_failure(failure(number)).key == sense.ABORTED_COMMAND


def test_an_unknown_errno_is_an_internal_target_failure():
    assert sense_of(errno_map.read_failure(OSError(9999, 'odd'))) == (4, 0x44, 0x00)
    assert sense_of(errno_map.write_failure(OSError('no number'))) == (4, 0x44, 0x00)


def test_sense_data_has_the_lba_if_it_is_known():
    assert errno_map.read_failure(failure(errno.EIO), 77).information == 77
    assert errno_map.read_failure(failure(errno.EIO)).information is None


def test_every_row_has_a_text_for_the_log():
    for row in errno_map.ROWS.values():
        for _, asc, ascq in row:
            assert (asc, ascq) in sense.CODES
