"""Notes of workers about faults, what `on-error` does, and the acknowledgement. Pure."""

import errno

import pytest

from targetd.master.units import fault_transitions, shared_state, transitions
from targetd.scsi import records
from targetd.scsi.reservations import initial as no_reservations
from targetd.scsi.sam import Nexus

ONE = Nexus('iqn.x:one', '00023d000001', 'iqn.x:disk', 1)
TWO = Nexus('iqn.x:two', '00023d000002', 'iqn.x:disk', 1)
SHARED = shared_state.initial_state({}, {}, 'boot')
READ = {'kind': 'read', 'errno': errno.EIO, 'offset': 512, 'length': 512, 'is_exact': True}


def noted(shared, on_error='report', acknowledged_at=0, **words):
    message = {'kind': 'error', 'note': dict(READ, **words)}
    return fault_transitions.noted(shared, ONE, message, on_error, 1000, acknowledged_at)


def test_a_fault_is_recorded_with_the_master_s_clock_and_the_initiator_s_name():
    decision = noted(SHARED, by='iqn.x:forged', at=5)
    assert decision.shared.records['faults']['read EIO'] == {
        'count': 1,
        'offset': 512,
        'by': ONE.initiator_name,
        'at': 1000,
    }
    assert decision.persist and decision.attentions == ()
    assert fault_transitions.is_degraded(decision.shared)


def test_only_the_first_fault_of_a_kind_is_saved_at_once():
    shared = noted(SHARED).shared
    assert not noted(shared, offset=1024).persist
    assert noted(shared, kind='write').persist
    assert noted(shared, errno=errno.ENODEV).persist


@pytest.mark.parametrize(
    'on_error, number, restriction',
    [
        ('report', errno.EIO, ''),
        ('read-only', errno.EIO, 'read-only'),
        ('offline', errno.EIO, 'offline'),
        ('offline', errno.ETIMEDOUT, 'offline'),
        ('offline', errno.ENOSPC, ''),
    ],
)
def test_on_error_restricts_the_unit(on_error, number, restriction):
    decision = noted(SHARED, on_error, errno=number)
    assert decision.shared.restriction == restriction
    assert decision.changed(SHARED).get('restriction', '') == restriction
    expected = [[0x2A, 0x01]] if restriction == 'read-only' else []
    assert decision.attentions_of(ONE) == decision.attentions_of(TWO) == expected


def test_a_restriction_is_kept_until_it_is_acknowledged():
    shared = noted(SHARED, 'offline').shared
    assert noted(shared, 'read-only').shared.restriction == 'offline'
    assert noted(shared, 'report').shared.restriction == 'offline'
    saved = shared_state.saved_state(shared, 'boot')
    again = shared_state.initial_state({}, saved, 'another boot')
    assert again.restriction == 'offline' and again.records == shared.records
    decision = fault_transitions.acknowledged(again)
    assert decision.persist and decision.attentions_of(TWO) == [[0x28, 0x00]]
    assert decision.shared.restriction == '' and decision.shared.records['faults'] == {}
    assert decision.shared.records['bad_blocks'] == [[512, 512]]
    assert not fault_transitions.is_degraded(decision.shared)


def test_faults_that_were_collected_before_the_acknowledgement_degrade_the_unit_no_more():
    before = noted(SHARED, 'offline', acknowledged_at=500, seen=499, count=3)
    assert not fault_transitions.is_degraded(before.shared)
    assert before.shared.records['errors']['read'] == 3  # what LOG SENSE counts
    assert before.shared.records['bad_blocks'] == [[512, 512]]
    for words in ({'seen': 500, 'count': 3}, {}):
        after = noted(SHARED, 'offline', acknowledged_at=500, **words)
        assert after.shared.restriction == 'offline'
        assert sorted(after.shared.records['faults']) == ['read EIO']


@pytest.mark.parametrize('seen', ['5', -1, None, True])
def test_a_time_that_is_no_number_is_refused(seen):
    with pytest.raises(transitions.Malformed):
        noted(SHARED, seen=seen)


def test_a_failure_and_a_restriction_are_acknowledged_together():
    shared = transitions.medium_failed(noted(SHARED, 'read-only').shared, 'flush failed').shared
    decision = fault_transitions.acknowledged(shared, transitions.failure_acknowledged(shared))
    assert (decision.shared.medium, decision.shared.failure) == ('ready', '')
    assert not fault_transitions.is_degraded(decision.shared)
    assert decision.attentions_of(TWO) == [[0x28, 0x00], [0x2A, 0x01]]


def test_rewritten_blocks():
    message = {'kind': 'rewritten', 'note': {'offset': 0, 'length': 4096}}
    decision = fault_transitions.noted(noted(SHARED).shared, ONE, message, 'report', 1)
    assert decision.shared.records['bad_blocks'] == [] and decision.persist


@pytest.mark.parametrize('saved', ['melted', 5, None, ['read-only']])
def test_a_damaged_restriction_is_not_loaded(saved):
    with pytest.raises(ValueError):
        shared_state.initial_state({}, {'restriction': saved}, 'boot')


@pytest.mark.parametrize(
    'message',
    [
        {},
        {'kind': 'melt', 'note': {}},
        {'kind': 'error', 'note': None},
        {'kind': 'error', 'note': dict(READ, kind='melt')},
        {'kind': 'error', 'note': dict(READ, errno='EIO')},
        {'kind': 'error', 'note': dict(READ, offset=-1)},
        {'kind': 'error', 'note': {'kind': 'read'}},
        {'kind': 'rewritten', 'note': {}},
    ],
)
def test_a_malformed_note_is_refused(message):
    with pytest.raises(transitions.Malformed):
        fault_transitions.noted(SHARED, ONE, message, 'report', 1)


def test_the_initial_state_is_healthy():
    assert SHARED.reservations == no_reservations() and SHARED.records == records.initial()
    assert not fault_transitions.is_degraded(SHARED)
