"""Records of a unit: which changes workers may request and report, what is saved, and what is
restored."""

import pytest

from targetd.scsi import records

BY = ['iqn.x:h,i,0x1', 'iqn.x:d,t,0x0001']
TEST = {
    'code': 2,
    'result': 15,
    'number': 0,
    'hours': 1,
    'address': None,
    'key': 0,
    'asc': 0,
    'ascq': 0,
    'by': BY,
}


ERROR = {'errno': 5, 'offset': 512, 'length': 512, 'is_exact': False, 'by': 'iqn.x:h', 'at': 7}


def changed(kind, message, state=None):
    return records.apply_change(state or records.initial(), kind, message)[0]


def test_new_records_need_no_storage():
    assert records.records_for_storage(records.initial()) == {}
    assert (
        records.records_from_storage(None)
        == records.records_from_storage({})
        == records.records_from_storage(records.initial())
        == records.initial()
    )


def test_changed_records_are_restored():
    state = changed('set-identifying-information', {'type': '2', 'data': '6100'})
    state = changed('set-timestamp', {'offset': -5}, state)
    state = changed('log-select', {'accounting_date': '202601', 'errors': {'read': 7}}, state)
    state = changed('self-test', dict(TEST, result=0), state)
    assert records.records_from_storage(records.records_for_storage(state)) == state
    assert (
        records.records_from_storage(dict(records.records_for_storage(state), of_a_newer_version=1))
        == state
    )


def test_empty_information_removes_it():
    state = changed('set-identifying-information', {'type': '0', 'data': 'aa'})
    assert (
        changed('set-identifying-information', {'type': '0', 'data': ''}, state)
        == records.initial()
    )


@pytest.mark.parametrize(
    'kind, message, expected',
    [
        ('set-identifying-information', {'type': '0', 'data': 'aa'}, (0x3F, 0x05)),
        ('set-timestamp', {'offset': 1}, (0x2A, 0x10)),
        ('log-select', {'accounting_date': '202601'}, (0x2A, 0x02)),
        ('log-select', {'reset': True}, None),
        ('self-test', TEST, None),
        ('error', dict(ERROR, kind='read'), None),
        ('rewritten', {'offset': 0, 'length': 512}, None),
    ],
)
def test_other_nexuses_get_a_unit_attention(kind, message, expected):
    assert records.apply_change(records.initial(), kind, message)[1] == expected


@pytest.mark.parametrize(
    'kind, message',
    [
        ('melt', {}),
        ('set-identifying-information', {'type': '1', 'data': ''}),
        ('set-identifying-information', {'type': '0'}),
        ('set-identifying-information', {'type': '0', 'data': 'AA'}),
        ('set-identifying-information', {'type': '0', 'data': 'aa' * 65}),
        ('set-timestamp', {'offset': 1 << 48}),
        ('set-timestamp', {'offset': 'x'}),
        ('error', {'kind': 'melt'}),
        ('error', dict(ERROR, kind='melt')),
        ('error', dict(ERROR, kind='read', errno='EIO')),
        ('error', dict(ERROR, kind='read', offset=-1)),
        ('error', dict(ERROR, kind='read', length=None)),
        ('error', dict(ERROR, kind='read', by=None)),
        ('error', dict(ERROR, kind='read', by='x' * 224)),
        ('error', dict(ERROR, kind='read', at=True)),
        ('error', dict(ERROR, kind='read', count=-1)),
        ('error', dict(ERROR, kind='read', count='2')),
        ('rewritten', {'offset': 0}),
        ('rewritten', {'offset': 0, 'length': -1}),
        ('log-select', {'accounting_date': '2026'}),
        ('log-select', {'errors': {'melt': 1}}),
        ('log-select', {'errors': {'read': -1}}),
        ('self-test', dict(TEST, result=16)),
        ('self-test', dict(TEST, code='1')),
        ('self-test', dict(TEST, by=[1, 2])),
        ('self-test', dict(TEST, address=-1)),
        ('self-test', {}),
    ],
)
def test_impossible_requests_of_a_worker_are_refused(kind, message):
    with pytest.raises((KeyError, ValueError, TypeError)):
        records.apply_change(records.initial(), kind, message)


@pytest.mark.parametrize(
    'kept',
    [
        [],
        {'cycles': -1},
        {'cycles': True},
        {'identifying': 7},
        {'identifying': {'0': 1}},
        {'self_tests': [{}]},
        {'self_tests': [TEST] * 21},
        {'errors': {}},
        {'accounting_date': 'x'},
        {'timestamp_offset': 'x'},
    ],
)
def test_damaged_records_are_refused(kept):
    with pytest.raises(ValueError):
        records.records_from_storage(kept)


def test_the_result_replaces_the_entry_of_a_running_test():
    state = changed('self-test', TEST)
    assert [
        t['result'] for t in changed('self-test', dict(TEST, result=0), state)['self_tests']
    ] == [0]
    other = dict(TEST, result=0, by=['other', BY[1]])
    assert [t['result'] for t in changed('self-test', other, state)['self_tests']] == [0, 15]


def test_a_running_test_is_aborted_with_its_nexus_or_targetd():
    state = changed('self-test', TEST)
    assert records.nexus_lost(state, ('other', BY[1])) is state
    assert [t['result'] for t in records.nexus_lost(state, tuple(BY))['self_tests']] == [2]
    assert [
        t['result']
        for t in records.records_from_storage(records.records_for_storage(state))['self_tests']
    ] == [2]


def test_counters_count_and_are_reset():
    write = dict(ERROR, kind='write')
    state = changed('error', write, changed('error', write))
    assert state['errors'] == {'read': 0, 'write': 2, 'verify': 0}
    reset = changed('log-select', {'reset': True}, state)
    assert reset == dict(records.initial(), faults=state['faults'])  # LOG SELECT hides no fault


def test_faults_are_counted_by_access_and_errno():
    state = records.initial()
    for n, (kind, number) in enumerate([('read', 5), ('read', 5), ('flush', 5), ('write', 28)]):
        state = changed('error', dict(ERROR, kind=kind, errno=number, at=n, offset=n), state)
    assert state['faults'] == {
        'read EIO': {'count': 2, 'offset': 1, 'by': 'iqn.x:h', 'at': 1},
        'flush EIO': {'count': 1, 'offset': 2, 'by': 'iqn.x:h', 'at': 2},
        'write ENOSPC': {'count': 1, 'offset': 3, 'by': 'iqn.x:h', 'at': 3},
    }
    # ENOSPC is not an error of the medium, a failed flush counts as a write
    assert state['errors'] == {'read': 2, 'write': 1, 'verify': 0}
    assert records.records_from_storage(records.records_for_storage(state)) == state


def test_a_note_about_several_errors_counts_as_many():
    once = changed('error', dict(ERROR, kind='read'))
    state = changed('error', dict(ERROR, kind='read', count=41), once)
    assert state['errors']['read'] == state['faults']['read EIO']['count'] == 42


def test_bad_blocks_are_merged_and_removed():
    state = records.initial()
    for offset in (512, 2048, 1024, 512):
        state = changed('error', dict(ERROR, kind='read', offset=offset, is_exact=True), state)
    assert state['bad_blocks'] == [[512, 1024], [2048, 512]]
    assert records.records_from_storage(records.records_for_storage(state)) == state
    state = changed('rewritten', {'offset': 1024, 'length': 4096}, state)
    assert state['bad_blocks'] == [[512, 512]]
    assert changed('rewritten', {'offset': 0, 'length': 4096}, state)['bad_blocks'] == []


@pytest.mark.parametrize(
    'kept',
    [
        {'faults': {'melt EIO': {'count': 1, 'offset': 0, 'by': '', 'at': 0}}},
        {'faults': {'read EIO': {'count': 1}}},
        {'faults': {'read EIO': {'count': -1, 'offset': 0, 'by': '', 'at': 0}}},
        {'faults': []},
        {'bad_blocks': [[0, 0]]},
        {'bad_blocks': [[512, 512], [0, 512]]},
        {'bad_blocks': [[0, 512, 1]]},
        {'bad_blocks': 5},
    ],
)
def test_damaged_faults_are_not_loaded(kept):
    with pytest.raises(ValueError):
        records.records_from_storage(kept)
