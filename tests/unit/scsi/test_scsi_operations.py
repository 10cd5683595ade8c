"""Long operations as values: which requests of a worker are valid, what is restored from stable
storage, progress and patterns."""

import pytest

from targetd.scsi import operations

BY = ('iqn.x:h,i,0x1', 'iqn.x:d,t,0x0001')
OVERWRITE = {
    'kind': 'sanitize',
    'method': 'pattern',
    'pattern': 'aa55',
    'passes': 2,
    'invert': True,
    'ause': False,
}


def test_a_new_operation_has_position_0():
    operation = operations.new_operation(OVERWRITE, BY)
    assert operation['position'] == 0 and operation['failed'] == '' and operation['by'] == list(BY)
    assert operations.medium_state_of(operation) == 'sanitizing'
    assert operations.medium_state_of(None) is None


@pytest.mark.parametrize(
    'change',
    [
        {'kind': 'melt'},
        {'method': 'zeroes'},
        {'pattern': ''},
        {'pattern': 'xx'},
        {'pattern': 7},
        {'pattern': 'aa' * 70000},
        {'passes': 0},
        {'passes': 32},
        {'passes': '1'},
        {'method': 'erase'},
    ],
)
def test_impossible_requests_of_a_worker_are_refused(change):
    with pytest.raises(ValueError):
        operations.new_operation(dict(OVERWRITE, **change), BY)


def test_a_saved_operation_is_restored():
    operation = dict(operations.new_operation(OVERWRITE, BY), position=4096, size=8192)
    assert operations.operation_from_storage(operation) == operation
    failed = dict(operation, failed='the disk said no')
    assert (
        operations.medium_state_of(operations.operation_from_storage(failed)) == 'sanitize-failed'
    )
    assert operations.operation_from_storage(None) is None


@pytest.mark.parametrize(
    'kept',
    [
        {},
        [],
        'x',
        dict(OVERWRITE, by=list(BY)),
        dict(OVERWRITE, by=list(BY), position=-1, size=1, failed=''),
        dict(OVERWRITE, by=list(BY), position=0, size=0, failed=None),
        dict(OVERWRITE, by=list(BY), position=0, size='x', failed=''),
    ],
)
def test_damaged_saved_state_is_refused(kept):
    with pytest.raises(ValueError):
        operations.operation_from_storage(kept)


def test_an_operation_starts_again_on_a_medium_of_another_size():
    operation = dict(
        operations.for_medium_size(operations.new_operation(OVERWRITE, BY), 8192), position=4096
    )
    assert operations.for_medium_size(operation, 8192)['position'] == 4096
    assert operations.for_medium_size(operation, 16384) == dict(operation, size=16384, position=0)


@pytest.mark.parametrize(
    'position, progress',
    [(0, 0), (512, 0x2000), (2048, 0x8000), (4095, 0xFFF0), (4096, 0xFFFF), (9999, 0xFFFF)],
)
def test_progress_counts_all_passes(position, progress):
    assert (
        operations.progress(dict(operations.new_operation(OVERWRITE, BY), position=position), 2048)
        == progress
    )


def test_no_operation_has_no_progress():
    assert operations.progress(None, 2048) == 0
    assert operations.progress(operations.new_operation(OVERWRITE, BY), 0) == 0


def test_the_pattern_starts_in_each_block_and_alternate_passes_invert_it():
    operation = operations.new_operation(dict(OVERWRITE, pattern='010203'), BY)
    block = (b'\x01\x02\x03' * 171)[:512]
    assert operations.block_content(operation, 512, 0) == block
    assert operations.block_content(operation, 512, 1) == bytes(255 - b for b in block)
    assert operations.block_content(operation, 512, 2) == block
    assert operations.block_content(dict(operation, invert=False), 512, 1) == block
