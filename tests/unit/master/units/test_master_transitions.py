"""Transitions of shared state: values in, values out."""

import errno

import pytest
from master_fakes import nexus

from targetd.master.units import shared_state, transitions
from targetd.master.units.shared_state import initial_state
from targetd.master.units.transitions import (
    EJECTED,
    FAILED,
    READY,
    STOPPED,
    Decision,
    Malformed,
    Refusal,
    decide,
    nexus_ports,
)
from targetd.scsi import alua, modes, reservations, sam

FACTS = {'block_size': 512, 'write_cache': True}
ONE, TWO = nexus('one'), nexus('two')
KEY, OTHER_KEY, NO_KEY = '00000000000000aa', '00000000000000bb', '0' * 16


@pytest.fixture
def shared():
    return initial_state(FACTS, {}, 'boot')


def register(key=KEY, old=NO_KEY, action=0, **more):
    message = {
        'ask': 'persistent-reserve-out',
        'service_action': action,
        'scope': 0,
        'type': 0,
        'key': old,
        'service_action_key': key,
        'aptpl': False,
        'all_tg_pt': False,
        'unregister': False,
        'transport_ids': None,
        'target_ports': [],
    }
    message.update(more)
    return message


def test_a_registration_is_saved_and_sent(shared):
    decision = decide(shared, ONE, register(), [])
    assert decision.persist and decision.status == sam.GOOD
    assert list(decision.changed(shared)) == ['reservations']
    assert decision.attentions_of(TWO) == [] and decision.abort_of(TWO, False) is None


def test_a_reservation_conflict_changes_nothing(shared):
    refusal = decide(shared, ONE, register(old=OTHER_KEY), [])
    assert refusal == Refusal(sam.RESERVATION_CONFLICT)


def test_an_invalid_parameter_list_ends_with_sense_data(shared):
    registered = decide(shared, ONE, register(), []).shared
    refusal = decide(registered, ONE, register(action=1, old=KEY, type=2), [])
    assert (
        refusal.status == sam.CHECK_CONDITION
        and refusal.sense[2] == 5
        and refusal.sense[12] == 0x24
    )


def test_preempt_and_abort_concerns_only_the_preempted_nexus(shared):
    state = decide(shared, ONE, register(), []).shared
    state = decide(state, TWO, register(OTHER_KEY), []).shared
    state = decide(state, TWO, register(action=1, old=OTHER_KEY, key=NO_KEY, type=5), []).shared
    decision = decide(state, ONE, register(action=5, old=KEY, key=OTHER_KEY, type=5), [])
    assert decision.attentions_of(TWO) == [[0x2A, 0x05]] and decision.attentions_of(ONE) == []
    assert decision.abort_of(TWO, False) == {'tas': False}
    assert decision.abort_of(ONE, True) is None


def test_a_lost_session_ends_its_reserve(shared):
    reserved = decide(shared, ONE, {'ask': 'reserve'}, []).shared
    assert decide(reserved, TWO, {'ask': 'reserve'}, []).status == sam.RESERVATION_CONFLICT
    assert transitions.session_lost(reserved, TWO) is None
    freed = transitions.session_lost(reserved, ONE)
    assert freed.shared.reservations['reserved_by'] is None
    assert 'reservations' in freed.changed(reserved)


def select(state, offset, value, save=False):
    pages = dict(state.modes['current'])
    data = bytearray(bytes.fromhex(pages['08-00']))
    data[offset] = value
    return {'ask': 'mode-select', 'pages': {'08-00': data.hex()}, 'save': save, 'revert': False}


def test_mode_select_causes_a_unit_attention_and_is_saved_only_with_sp(shared):
    decision = decide(shared, ONE, select(shared, 2, 0), [])
    assert not modes.parameters(decision.shared.modes).wce and not decision.persist
    assert decision.attentions_of(TWO) == [[0x2A, 0x01]] and decision.attentions_of(ONE) == []
    saved = decide(shared, ONE, select(shared, 2, 0, save=True), [])
    assert saved.persist
    assert decide(shared, ONE, select(shared, 2, 4), []) == Refusal(sam.GOOD)


def test_a_saved_page_is_restored_and_overrides_a_changed_default(shared):
    saved = decide(shared, ONE, select(shared, 2, 0, save=True), []).shared
    kept = shared_state.saved_state(saved, 'boot')
    assert not modes.parameters(initial_state(FACTS, kept, 'other').modes).wce
    assert shared_state.saved_state(shared, 'boot') == {}
    changed = transitions.facts_changed(shared, dict(FACTS, write_cache=False))
    assert not modes.parameters(changed.shared.modes).wce and changed.attentions_of(ONE) == [
        [0x2A, 0x01]
    ]
    again = transitions.facts_changed(saved, dict(FACTS, write_cache=False))
    assert again.attentions_of(ONE) == []  # the saved page had this value already


def with_descriptor_sense(shared):
    pages = dict(shared.modes['current'])
    data = bytearray(bytes.fromhex(pages['0a-00']))
    data[2] |= 0x04
    return shared._replace(modes=dict(shared.modes, current=dict(pages, **{'0a-00': data.hex()})))


def test_a_refusal_has_the_sense_format_that_d_sense_selects(shared):
    descriptor = with_descriptor_sense(decide(shared, ONE, register(), []).shared)
    refused = decide(descriptor, ONE, register(action=1, old=KEY, type=2), [])
    assert refused.sense[:4] == bytes([0x72, 5, 0x24, 0x00])
    assert refused.sense[8:12] == bytes([0x02, 0x06, 0, 0])  # with a field pointer descriptor
    prevented = descriptor._replace(prevented_by=(nexus_ports(TWO),))
    assert decide(prevented, ONE, {'ask': 'start-stop', 'action': 'eject'}, []).sense[:4] == bytes(
        [0x72, 5, 0x53, 0x02]
    )
    assert transitions.cannot_persist(descriptor, {}, errno.EIO).sense[:4] == bytes(
        [0x72, 4, 0x44, 0x00]
    )
    assert transitions.cannot_persist(shared, {}, errno.ENOSPC).sense[0] == 0x70


@pytest.mark.parametrize(
    'aptpl, boot_id, survives',
    [(False, 'boot', True), (False, 'next', False), (True, 'next', True), (True, 'boot', True)],
)
def test_which_registrations_outlast_a_restart_and_a_loss_of_power(
    shared, aptpl, boot_id, survives
):
    registered = decide(shared, ONE, register(aptpl=aptpl), []).shared
    again = initial_state(FACTS, shared_state.saved_state(registered, 'boot'), boot_id)
    assert bool(again.reservations['registrations']) is survives


@pytest.mark.parametrize(
    'medium, action, then',
    [
        (READY, 'stop', STOPPED),
        (STOPPED, 'start', READY),
        (READY, 'eject', EJECTED),
        (EJECTED, 'load', READY),
        (EJECTED, 'start', EJECTED),
        (EJECTED, 'stop', EJECTED),
        (READY, 'start', READY),
        (FAILED, 'start', FAILED),
        (FAILED, 'load', FAILED),
        (FAILED, 'eject', FAILED),
    ],
)
def test_start_stop(shared, medium, action, then):
    before = shared._replace(medium=medium)
    decision = decide(before, ONE, {'ask': 'start-stop', 'action': action}, [])
    assert decision.status == sam.GOOD
    assert (decision.shared.medium if isinstance(decision, Decision) else medium) == then


def test_loading_a_medium_causes_a_unit_attention_for_the_other_nexuses(shared):
    decision = decide(
        shared._replace(medium=EJECTED), ONE, {'ask': 'start-stop', 'action': 'load'}, []
    )
    assert decision.attentions_of(TWO) == [[0x28, 0x00]] and decision.attentions_of(ONE) == []


@pytest.mark.clause('SBC-3 5.10')
def test_a_load_is_accepted_while_removal_is_prevented(shared):
    """libiscsi's test PreventAllow.Eject expects that it is refused, which the standard does not
    say."""
    prevented = decide(
        shared._replace(medium=EJECTED), TWO, {'ask': 'prevent', 'prevent': True}, []
    ).shared
    loaded = decide(prevented, ONE, {'ask': 'start-stop', 'action': 'load'}, []).shared
    assert loaded.medium == READY and loaded.prevented_by == (nexus_ports(TWO),)


@pytest.mark.clause('SBC-3 5.10')
def test_prevented_removal(shared):
    prevented = decide(shared, TWO, {'ask': 'prevent', 'prevent': True}, []).shared
    refusal = decide(prevented, ONE, {'ask': 'start-stop', 'action': 'eject'}, [])
    assert refusal.status == sam.CHECK_CONDITION and refusal.sense[12:14] == b'\x53\x02'
    assert decide(prevented, ONE, {'ask': 'prevent', 'prevent': False}, []).shared.prevented_by == (
        nexus_ports(TWO),
    )
    assert transitions.session_lost(prevented, TWO).shared.prevented_by == ()
    allowed = decide(prevented, TWO, {'ask': 'prevent', 'prevent': False}, []).shared
    assert (
        decide(allowed, ONE, {'ask': 'start-stop', 'action': 'eject'}, []).shared.medium == EJECTED
    )


@pytest.mark.parametrize(
    'function, code',
    [
        ('logical-unit-reset', [0x29, 0x03]),
        ('target-warm-reset', [0x29, 0x02]),
        ('target-cold-reset', [0x29, 0x02]),
    ],
)
def test_resets(shared, function, code):
    state = decide(shared, TWO, {'ask': 'reserve'}, []).shared
    state = decide(state, TWO, select(state, 2, 0), []).shared
    state = decide(state, TWO, {'ask': 'prevent', 'prevent': True}, []).shared
    decision = decide(state, ONE, {'ask': 'reset', 'function': function}, [])
    assert (
        decision.shared.reservations['reserved_by'] is None and decision.shared.prevented_by == ()
    )
    assert modes.parameters(decision.shared.modes).wce  # the saved value is the default
    assert decision.attentions_of(TWO) == [code] == decision.attentions_of(ONE)
    assert decision.abort_of(ONE, True) and decision.abort_of(TWO, False)


def test_a_nexus_reset_affects_only_its_nexus(shared):
    ones = decide(shared, ONE, {'ask': 'reserve'}, []).shared
    for each in (ONE, TWO):
        ones = decide(ones, each, {'ask': 'prevent', 'prevent': True}, []).shared
    decision = decide(ones, ONE, {'ask': 'reset', 'function': 'i-t-nexus-reset'}, [])
    assert decision.shared.reservations['reserved_by'] is None and decision.shared.prevented_by == (
        nexus_ports(TWO),
    )
    assert decision.attentions_of(ONE) == [[0x29, 0x07]] and decision.attentions_of(TWO) == []
    assert decision.abort_of(TWO, False) is None
    mine = decide(ones, TWO, {'ask': 'reset', 'function': 'i-t-nexus-reset'}, [])
    assert mine.shared.reservations == ones.reservations  # the other nexus holds the reservation
    registered = decide(shared, ONE, register(), []).shared
    after = decide(registered, ONE, {'ask': 'reset', 'function': 'i-t-nexus-reset'}, []).shared
    assert after.reservations == registered.reservations  # registrations outlast a nexus


def test_a_reset_keeps_persistent_reservations(shared):
    registered = decide(shared, TWO, register(), []).shared
    decision = decide(registered, ONE, {'ask': 'reset', 'function': 'logical-unit-reset'}, [])
    assert decision.shared.reservations == registered.reservations


def test_clear_task_set_ends_only_the_task_set_of_the_nexus(shared):
    decision = decide(shared, ONE, {'ask': 'reset', 'function': 'clear-task-set'}, [])
    assert decision.abort_of(ONE, True) == {'tas': False}
    assert decision.abort_of(TWO, False) is None and decision.attentions_of(TWO) == []


def test_clear_task_set_of_one_task_set_for_all_with_and_without_tas(shared):
    pages = dict(shared.modes['current'])
    pages['0a-00'] = '0a0a0210000000000032' + '0000'  # TST 000b, by mode-page in the configuration
    shared = shared._replace(modes=dict(shared.modes, current=pages))
    plain = decide(shared, ONE, {'ask': 'reset', 'function': 'clear-task-set'}, [])
    assert plain.attentions_of(TWO) == [[0x2F, 0x00]] and plain.abort_of(TWO, False)['tas'] is False
    pages = dict(shared.modes['current'])
    control = bytearray(bytes.fromhex(pages['0a-00']))
    control[5] |= modes.TAS
    tas = decide(
        shared,
        ONE,
        {'ask': 'mode-select', 'pages': {'0a-00': control.hex()}, 'save': False, 'revert': False},
        [],
    )
    cleared = decide(tas.shared, ONE, {'ask': 'reset', 'function': 'clear-task-set'}, [])
    assert cleared.attentions_of(TWO) == [] and cleared.abort_of(TWO, False)['tas'] is True
    assert cleared.abort_of(ONE, True)['tas'] is False  # not for the requesting nexus


@pytest.mark.parametrize(
    'message',
    [
        {'ask': 'nothing'},
        {},
        {'ask': 'reset', 'function': 'burn'},
        {'ask': 'start-stop'},
        {'ask': 'start-stop', 'action': 'jump'},
        {'ask': 'mode-select', 'pages': {'99-00': '00'}},
        {'ask': 'persistent-reserve-out', 'service_action': 'x'},
    ],
)
def test_an_invalid_request_is_malformed(shared, message):
    with pytest.raises(Malformed):
        decide(shared, ONE, message, [])


def test_unit_attentions_for_the_medium_and_its_size(shared):
    failed = transitions.medium_failed(shared, 'EIO')
    assert failed.changed(shared) == {'medium': FAILED} and failed.attentions_of(ONE) == []
    ready = transitions.failure_acknowledged(failed.shared)
    assert ready.changed(failed.shared) == {'medium': READY} and ready.shared.failure == ''
    assert ready.attentions_of(ONE) == [[0x28, 0x00]]
    resized = transitions.resized(shared, 1 << 20)
    assert resized.size == 1 << 20 and resized.attentions_of(ONE) == [[0x2A, 0x09]]


def test_a_failure_is_saved_until_it_is_acknowledged(shared):
    failed = transitions.medium_failed(shared, 'flush failed: EIO')
    assert failed.persist is True
    again = initial_state(FACTS, shared_state.saved_state(failed.shared, 'boot'), 'another boot')
    assert (again.medium, again.failure) == (FAILED, 'flush failed: EIO')
    acknowledged = transitions.failure_acknowledged(again)
    assert acknowledged.persist is True
    assert shared_state.saved_state(acknowledged.shared, 'boot') == {}


def test_a_damaged_saved_state_is_an_error():
    with pytest.raises(ValueError):
        initial_state(FACTS, {'reservations': {'version': 1}}, 'boot')
    assert reservations.initial() == initial_state(FACTS, {}, 'boot').reservations


# -- target port groups and space ------------------------------------------------------------------

CHANGED = [[0x2A, 0x06]]


@pytest.fixture
def two_groups(shared):
    return shared._replace(access=alua.initial((1, 2), {2: alua.STANDBY}, explicit=True))


def set_groups(**states):
    return {
        'ask': 'set-target-port-groups',
        'states': {tag[1:]: state for tag, state in states.items()},
    }


def test_set_target_port_groups_causes_a_unit_attention_and_is_saved(two_groups):
    decision = decide(two_groups, ONE, set_groups(_1=alua.STANDBY, _2=alua.OPTIMIZED), [])
    assert list(decision.changed(two_groups)) == ['access'] and decision.persist
    assert decision.attentions_of(TWO) == CHANGED and decision.attentions_of(ONE) == []
    kept = shared_state.saved_state(decision.shared, 'boot')
    assert initial_state(FACTS, kept, 'next', two_groups.access).access == decision.shared.access
    assert decide(two_groups, ONE, set_groups(_2=alua.STANDBY), []) == Refusal(sam.GOOD)


def test_invalid_set_target_port_groups_requests_are_malformed(shared, two_groups):
    for state, message in (
        (two_groups, set_groups(_9=0)),
        (two_groups, set_groups(_1=0xE)),
        (two_groups._replace(access=alua.initial((1,))), set_groups(_1=0)),
    ):
        with pytest.raises(Malformed):
            decide(state, ONE, message, [])


def test_states_set_by_the_administrator_cause_a_unit_attention_for_all(two_groups):
    decision = transitions.access_set(two_groups, {'1': alua.OFFLINE})
    assert (
        decision.attentions_of(ONE) == decision.attentions_of(TWO) == CHANGED and decision.persist
    )
    assert transitions.access_set(two_groups, {'2': alua.STANDBY}) is None


def test_a_reload_that_changes_states_causes_a_unit_attention(two_groups):
    same = alua.initial((1, 2), {2: alua.STANDBY}, explicit=True)
    assert transitions.access_configured(two_groups, same) is None
    assert (
        transitions.access_configured(two_groups, dict(same, explicit=False)).attentions_of(ONE)
        == []
    )
    other = alua.initial((1, 2), {}, explicit=True)
    assert transitions.access_configured(two_groups, other).attentions_of(ONE) == CHANGED


THIN = {
    'block_size': 512,
    'thin': True,
    'unmap': True,
    'threshold_exponent': 11,
    'threshold_count': 100,
}
REACHED = [[0x38, 0x07]]


def test_a_threshold_causes_one_unit_attention_each_time_it_is_reached():
    thin = initial_state(THIN, {}, 'boot')
    first = transitions.space_counted(thin, 500, 7)
    assert first.attentions_of(ONE) == [] and first.changed(thin) == {}
    assert transitions.space_counted(first.shared, 101, 7) is None
    reached = transitions.space_counted(first.shared, 100, 7)
    assert reached.attentions_of(ONE) == reached.attentions_of(TWO) == REACHED
    assert transitions.space_counted(reached.shared, 50, 7) is None
    left = transitions.space_counted(reached.shared, 101, 7)
    assert left.attentions_of(ONE) == []
    assert transitions.space_counted(left.shared, 99, 7).attentions_of(ONE) == REACHED


def test_a_start_beyond_the_threshold_causes_no_unit_attention():
    assert transitions.space_counted(initial_state(THIN, {}, 'boot'), 3, 7).attentions_of(ONE) == []


def test_a_threshold_set_by_an_initiator_is_used():
    thin = transitions.space_counted(initial_state(THIN, {}, 'boot'), 500, 7).shared
    page = bytearray(bytes.fromhex(thin.modes['current']['1c-02']))
    page[24:32] = bytes.fromhex('8102 0000 00000064')  # used space grows to 100
    message = {'ask': 'mode-select', 'pages': {'1c-02': page.hex()}, 'save': False, 'revert': False}
    own = decide(thin, ONE, message, []).shared
    assert transitions.space_counted(own, 500, 99) is None
    assert transitions.space_counted(own, 500, 100).attentions_of(ONE) == REACHED
