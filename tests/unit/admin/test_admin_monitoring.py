"""Tests of what monitoring systems are told."""

import re

import pytest

from targetd.admin import monitoring
from targetd.admin.monitoring import CRITICAL, OK, UNKNOWN, WARNING, Snapshot

NAME = 'iqn.2026-11.com.example:disk'


def unit(lun=0, state='ready', size=1 << 30, errors=0):
    return {
        'target_name': NAME,
        'lun': lun,
        'state': state,
        'size': size,
        'errors': errors,
        'sessions': 2,
    }


def snapshot(units=None, target_state='ready', portals=('open',), state='running', counters=()):
    return Snapshot(
        {'version': '0.1.0', 'sessions': '2', 'spare workers': '1', 'state': state},
        [{'target_name': NAME, 'state': target_state, 'sessions': 2}],
        units if units is not None else [unit()],
        [
            {
                'group': 1,
                'address': '10.0.0.%d' % number,
                'port': 3260,
                'state': each,
                'connections': 2,
            }
            for number, each in enumerate(portals, 1)
        ],
        list(counters),
    )


def test_all_is_well():
    code, text = monitoring.nagios(snapshot())
    assert code == OK
    assert text == (
        'TARGETD OK - 2 sessions, 1 logical units | sessions=2;;;0 targets=1;;;0 units=1;;;0 '
        'units_warning=0;;;0 units_critical=0;;;0 medium_errors=0c;;;0\n'
    )


@pytest.mark.parametrize(
    'state, severity',
    [
        ('ready', OK),
        ('degraded: 3 errors, the latest: read EIO at LBA 8', WARNING),
        ('failed: a flush failed', CRITICAL),
        ('missing: /dev/sdz: No such file or directory', CRITICAL),
        ('shrunk: it had 10 MB', CRITICAL),
        ('ready; hanging since 2026-11-28 10:00:00 (30 s): read, 4 commands', CRITICAL),
        ('ready; /srv/a.img was deleted', WARNING),
        ('something new', WARNING),
    ],
)
def test_the_state_of_a_unit(state, severity):
    code, text = monitoring.nagios(snapshot([unit(), unit(1, state)]))
    assert code == severity
    if severity:
        assert text.splitlines()[0].startswith(
            'TARGETD %s - %s/1 is %s' % (monitoring.WORDS[severity], NAME, state)
        )


def test_the_worst_comes_first_and_all_are_listed():
    code, text = monitoring.nagios(
        snapshot(
            [unit(0, 'degraded: 1 error'), unit(1, 'failed: x'), unit(2)],
            portals=('open', 'waiting'),
        )
    )
    lines = text.splitlines()
    assert code == CRITICAL
    assert lines[0].startswith('TARGETD CRITICAL - %s/1 is failed: x (and 2 more)' % NAME)
    assert lines[1:] == [
        'CRITICAL: %s/1 is failed: x' % NAME,
        'WARNING: %s/0 is degraded: 1 error' % NAME,
        'WARNING: portal 10.0.0.2:3260 is waiting',
    ]


def test_no_open_portal_is_critical():
    assert monitoring.nagios(snapshot(portals=('waiting', 'closed')))[0] == CRITICAL


def test_a_target_that_is_not_ready_is_critical():
    assert monitoring.nagios(snapshot([], 'not ready: no LUN'))[0] == CRITICAL


def test_a_stop_is_a_warning():
    assert monitoring.nagios(snapshot(state='stopping'))[0] == WARNING


def test_text_of_a_peer_cannot_forge_performance_data():
    text = monitoring.nagios(snapshot([unit(0, 'failed: a|b=1\nOK')]))[1]
    assert text.count('|') == 1 and len(text.splitlines()) == 2


def test_no_server():
    assert monitoring.nagios_failure('targetd is not running', False) == (
        CRITICAL,
        'TARGETD CRITICAL - targetd is not running\n',
    )
    assert monitoring.nagios_failure('no permission', True)[0] == UNKNOWN


LINE = re.compile(
    r'^[a-z_]+(\{[a-z]+="([^"\\\n]|\\["\\n])*"(,[a-z]+="([^"\\\n]|\\["\\n])*")*\})? \d+$'
)


def test_metrics():
    lines = monitoring.metrics(
        snapshot([unit(), unit(1, 'missing: gone', None, None)])
    ).splitlines()
    assert 'targetd_up 1' in lines
    assert 'targetd_unit_size_bytes{lun="0",target="%s"} 1073741824' % NAME in lines
    assert 'targetd_unit_severity{lun="1",target="%s"} 2' % NAME in lines
    assert not [line for line in lines if 'size_bytes{lun="1"' in line]
    assert 'targetd_portal_open{address="10.0.0.1",group="1",port="3260"} 1' in lines
    assert [line for line in lines if not line.startswith('# ') and not LINE.match(line)] == []


def test_metrics_escape_labels():
    special = snapshot()._replace(
        targets=[{'target_name': 'a"b\\c\nd', 'state': 'ready', 'sessions': 0}]
    )
    assert 'targetd_target_ready{target="a\\"b\\\\c\\nd"} 1' in monitoring.metrics(special)


def test_metrics_of_no_server():
    assert monitoring.metrics(None).splitlines()[-1] == 'targetd_up 0'


def counted(lun, reads, read_latencies=()):
    row = dict.fromkeys(('writes', 'bytes_written', 'others', 'errors', 'unfinished'), 0)
    row.update(target_name=NAME, lun=lun, reads=reads, bytes_read=reads * 512)
    row.update(read_latencies=[list(p) for p in read_latencies], other_latencies=[])
    return row


def test_counters_of_a_unit_are_summed_over_sessions():
    text = monitoring.metrics(snapshot(counters=[counted(0, 3), counted(0, 4), counted(1, 5)]))
    assert 'targetd_unit_reads_total{lun="0",target="%s"} 7\n' % NAME in text
    assert 'targetd_unit_read_bytes_total{lun="1",target="%s"} 2560\n' % NAME in text


def test_the_histogram_is_cumulative_and_complete():
    text = monitoring.metrics(snapshot(counters=[counted(0, 9, [(10, 5), (60, 3), (120, 1)])]))
    found = re.findall(r'_bucket\{kind="read",.*le="([^"]*)"\} (\d+)', text)
    counts = [int(count) for _, count in found]
    assert counts == sorted(counts) and found[-1] == ('+Inf', '9') and counts[0] > 0
    assert '_count{kind="read",lun="0",target="%s"} 9\n' % NAME in text


def test_the_status_file_ends_with_the_problems():
    text = monitoring.status(snapshot([unit(state='degraded: 3 errors')]))
    assert 'sessions: 2\n' in text and 'severity: WARNING\n' in text
    assert text.endswith('problem: %s/0 is degraded: 3 errors\n' % NAME)
    assert monitoring.status(None) == 'state: not running\n'
