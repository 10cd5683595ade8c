"""Rates and latencies from two samples of the counters, and their table."""

import pytest

from targetd.admin import live_table
from targetd.admin.rates import FEW_SAMPLES, Sample, statistics
from targetd.host.process_usage import Usage


def row(tsih=1, lun=0, reads=0, writes=0, samples=(), **more):
    found = {
        'tsih': tsih,
        'initiator_name': 'iqn.x:%s' % tsih,
        'target_name': 'iqn.t:disk',
        'lun': lun,
        'unit': 'iqn.t:disk/%d' % lun,
        'pid': tsih and 100 + tsih,
        'reads': reads,
        'bytes_read': reads * 4096,
        'writes': writes,
        'bytes_written': writes * 512,
        'others': 0,
        'errors': 0,
        'unfinished': 0,
        'read_latencies': [list(pair) for pair in samples],
        'other_latencies': [],
    }
    found.update(more)
    return found


def sample(when, *rows, **usage):
    return Sample(when, list(rows), {int(pid[1:]): value for pid, value in usage.items()})


def test_rates_are_those_of_the_interval():
    before = sample(10.0, row(reads=100), p101=Usage(1.0, 5 << 20, 7))
    after = sample(
        12.0, row(reads=300, writes=10, errors=3, unfinished=2), p101=Usage(2.0, 6 << 20, 9)
    )
    (found,) = statistics(before, after, 'session')
    assert (found['reads'], found['writes'], found['iops']) == (100, 5, 105)
    assert found['read_rate'] == 100 * 4096 and found['write_rate'] == 5 * 512
    assert (found['queue'], found['errors'], found['name']) == (2, 3, '1 iqn.x:1')
    assert (found['cpu'], found['memory']) == (50.0, 6 << 20)


def test_groups_are_summed():
    before = sample(0.0)
    after = sample(1.0, row(1, 0, reads=1), row(1, 1, reads=2), row(2, 1, reads=4))
    for by, names, reads in (
        ('session', ['1 iqn.x:1', '2 iqn.x:2'], [3, 4]),
        ('lun', ['iqn.t:disk/0', 'iqn.t:disk/1'], [1, 6]),
        ('target', ['iqn.t:disk'], [7]),
        ('initiator', ['iqn.x:1', 'iqn.x:2'], [3, 4]),
    ):
        rows = statistics(before, after, by)
        assert [r['name'] for r in rows] == names and [r['reads'] for r in rows] == reads
    assert statistics(before, after, 'target')[0]['sessions'] == 2


def test_sessions_that_have_ended_or_began_are_no_negative_rates():
    before = sample(0.0, row(1, reads=500), row(2, reads=1))
    after = sample(1.0, row(2, reads=3), row(1, reads=7), row(None, reads=500))
    rows = {r['name']: r['reads'] for r in statistics(before, after, 'session')}
    assert rows == {'1 iqn.x:1': 7, '2 iqn.x:2': 2}


def test_few_samples_are_completed_by_those_since_the_login():
    old, new = [[10, 1000]], [[10, 1000], [40, FEW_SAMPLES - 1]]
    before = sample(0.0, row(samples=old))
    (found,) = statistics(before, sample(1.0, row(samples=new)), 'lun')
    assert found['measured'] == 1000 + FEW_SAMPLES - 1 and found['p50'] < 100
    (found,) = statistics(before, sample(1.0, row(samples=[[10, 1000], [40, 50]])), 'lun')
    assert found['measured'] == 50 and found['p50'] > 1000
    (found,) = statistics(before, sample(1.0, row()), 'lun')
    assert found['p50'] is None


@pytest.mark.parametrize('by', ['session', 'lun'])
def test_the_table_has_80_columns_whatever_the_values_are(by):
    huge = row(65535, reads=10**9, writes=10**9, errors=99999, unfinished=256)
    huge['initiator_name'] = 'iqn.2026-11.' + 'x' * 200 + ':last'
    huge['target_name'] = 'iqn.2026-11.' + 'y' * 200 + ':disk\x1b'
    huge['other_latencies'] = [[120, 5]]
    rows = statistics(sample(0.0), sample(1.0, huge), by)
    lines = live_table.table(rows, by)
    assert [len(line) for line in lines] == [80, 80]
    assert ':last' in lines[1] or ':disk?/0' in lines[1]
    assert 'x' * 200 in live_table.table(rows, by, None)[1] or by == 'lun'


def test_rows_are_sorted_by_the_column_of_the_key():
    rows = [
        dict(name='a', iops=1, cpu=None),
        dict(name='c', iops=9, cpu=1.0),
        dict(name='b', iops=9, cpu=5.0),
    ]
    assert [r['name'] for r in live_table.sorted_rows(rows, 'iops')] == ['b', 'c', 'a']
    assert [r['name'] for r in live_table.sorted_rows(rows, 'cpu')] == ['b', 'c', 'a']
    assert [r['name'] for r in live_table.sorted_rows(rows, 'name')] == ['a', 'b', 'c']
