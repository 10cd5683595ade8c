"""What limits a session, from samples that were recorded on Linux 6.18 while tests/wire/test_wire_lines.py
ran: line_samples.json has the reports of the worker, of each run some."""

import copy
import itertools
import json
import os
import struct

import pytest

from targetd.master.control import line_samples, slowness

with open(os.path.join(os.path.dirname(__file__), 'line_samples.json')) as _file:
    RECORDED = json.load(_file)
for _report in itertools.chain(*RECORDED.values()):
    _report['waiting'].setdefault('limit', 0)  # they were recorded without limits
KEYS = {
    'InitialR2T': True,
    'ImmediateData': True,
    'FirstBurstLength': 65536,
    'MaxBurstLength': 1048576,
    'MaxOutstandingR2T': 1,
}


def observed(name, processor=None, **keys):
    return slowness.Observed(samples_of(name), dict(KEYS, **keys), processor)


def samples_of(name, change=dict):
    """The Samples of a recording. change(waiting): of the commands that wait."""
    reports = copy.deepcopy(RECORDED[name])
    for report in reports:
        report['waiting'] = change(report['waiting'])
    return [line_samples._checked(report) for report in reports]


def limits(*arguments, **more):
    return [found.limit for found in slowness.findings(observed(*arguments, **more))]


@pytest.mark.parametrize(
    'name, limit',
    [
        ('receive_window', 'receive window'),
        ('losses', 'loss'),
        ('full_line', 'line'),
        ('round_trips', 'R2T'),
        ('single_commands', 'round trips'),
        ('slow_disk', 'disk'),
        ('loses_full', 'path MTU'),
    ],
)
def test_what_was_recorded_is_named(name, limit):
    (found,) = slowness.findings(observed(name))
    assert found.limit == limit
    assert found.why.endswith('.') and found.remedy.endswith('.')
    assert found.share is None or 0 < found.share <= 1


def test_the_summary_has_the_figures():
    text = slowness.summary(observed('single_commands'))
    assert 'Mbit/s' in text and '0 writes' in text and 'round trip 5' in text


def test_the_sentences_have_figures():
    (window,) = slowness.findings(observed('receive_window'))
    assert '79 KiB' in window.why and 'round trip of 39 ms' in window.why
    (hole,) = slowness.findings(observed('loses_full'))
    assert hole.why.startswith('Full packets do not reach the initiator: a segment of 1448 bytes')


def test_writes_that_need_no_r2t_are_limited_by_something_else():
    """The same samples, if InitialR2T=No and a long first burst had been negotiated."""
    assert limits('round_trips', InitialR2T=False, FirstBurstLength=1 << 20) == ['send window']


@pytest.mark.parametrize(
    'size, keys, trips',
    [
        (65536, {}, 0),
        (65537, {}, 1),
        (2 << 20, {}, 2),
        (2 << 20, {'MaxOutstandingR2T': 4}, 1),
        (65536, {'ImmediateData': False}, 1),
        (1 << 20, {'InitialR2T': False, 'FirstBurstLength': 1 << 20}, 0),
        (1 << 20, {'FirstBurstLength': 1 << 20}, 1),  # immediate data is one PDU
    ],
)
def test_round_trips_for_r2ts(size, keys, trips):
    assert slowness.r2t_round_trips(size, dict(KEYS, **keys)) == trips


def test_a_busy_worker_process_is_named_too():
    assert limits('slow_disk', processor=0.97) == ['disk', 'processor'] or limits(
        'slow_disk', processor=0.97
    ) == ['processor', 'disk']
    assert limits('slow_disk', processor=0.5) == ['disk']


def test_lost_packets_of_the_initiator():
    """Segments out of order while the target waits for data."""
    one = observed('round_trips', InitialR2T=False, FirstBurstLength=1 << 20)
    (cid,) = one.cids
    one.samples[-1].lines[cid].tcp['rcv_ooopack'] += 50
    (found,) = slowness.findings(one)
    assert found.limit == 'loss' and 'On the initiator' in found.remedy


def test_long_packets_of_the_initiator_that_do_not_arrive():
    one = observed('round_trips')
    (cid,) = one.cids
    first, last = one.samples[0].lines[cid].tcp, one.samples[-1].lines[cid].tcp
    last['bytes_received'] = first['bytes_received']
    last['rcv_ooopack'] += 2
    (found,) = slowness.findings(one)
    assert found.limit == 'path MTU'


def test_a_kernel_without_the_newer_fields():
    """Linux 2.6.32 reports 104 bytes: nothing fails, and what is known is said."""
    for name in RECORDED:
        reports = copy.deepcopy(RECORDED[name])
        for report in reports:
            for row in report['connections']:
                row[1] = row[1][: 2 * 104]
        samples = [line_samples._checked(report) for report in reports]
        found = slowness.findings(slowness.Observed(samples, KEYS))
        assert found and slowness.summary(slowness.Observed(samples, KEYS))


def test_an_idle_session():
    reports = [dict(RECORDED['single_commands'][0], at=at) for at in (0, 1000000)]
    samples = [line_samples._checked(report) for report in reports]
    (found,) = slowness.findings(slowness.Observed(samples, KEYS))
    assert found.limit == 'no commands' and found.share is None


def test_a_session_without_a_connection():
    reports = [dict(RECORDED['single_commands'][0], at=at, connections=[]) for at in (0, 1000000)]
    samples = [line_samples._checked(report) for report in reports]
    assert slowness.findings(slowness.Observed(samples, KEYS))
    assert 'unknown' in slowness.summary(slowness.Observed(samples, KEYS))


def test_the_recorded_bytes_are_those_of_the_kernel():
    """The size of struct tcp_info of the kernel that was recorded, and its first byte."""
    data = bytes.fromhex(RECORDED['slow_disk'][0]['connections'][0][1])
    assert len(data) >= 232 and struct.unpack_from('B', data) == (1,)


def limit_row(what, delayed, iops=50, slowed_for=''):
    return {
        'what': what,
        'iops': iops,
        'bandwidth': None,
        'delayed': delayed,
        'slowed_for': slowed_for,
    }


def waiting_for_limits(waiting):
    return dict(waiting, limit=waiting['disk'], disk=0)


def test_commands_that_a_limit_delays_are_no_slow_disk_and_the_limit_is_named():
    rows = (
        [limit_row('lun 0', 10), limit_row('target', 7)],
        [limit_row('lun 0', 40), limit_row('target', 7)],
    )
    seen = slowness.Observed(samples_of('slow_disk', waiting_for_limits), KEYS, limits=rows)
    (found,) = slowness.findings(seen)
    assert found.limit == 'limit' and found.share > 0.3
    assert 'lun 0 (50 commands per second) has delayed 30 commands' in found.why
    assert 'target' not in found.why and 'targetdctl lun limit' in found.remedy


def test_a_lun_that_is_slowed_down_for_another_is_told_for_whom():
    row = limit_row('lun 1 slowed down', 90, 20, 'lun 0 of iqn.2026-11.test:disk (20ms)')
    seen = slowness.Observed(samples_of('slow_disk', waiting_for_limits), KEYS, limits=([], [row]))
    (found,) = slowness.findings(seen)
    assert 'for the latency-target of lun 0 of iqn.2026-11.test:disk (20ms)' in found.why
    assert found.remedy.startswith('It ends when')
