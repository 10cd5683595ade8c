"""Persistent and SPC-2 reservations: changes, unit attentions, refused commands."""

import copy
import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targetd.scsi import persistent_reserve, reservation_classes, reservations, transport_id
from targetd.scsi.opcodes import TABLE
from targetd.scsi.sam import CHECK_CONDITION, GOOD, RESERVATION_CONFLICT, Nexus, Port

PORTS = [Port(1, 1, 'iqn.t:disk,t,0x0001'), Port(2, 2, 'iqn.t:disk,t,0x0002')]


def nexus(host, group=1, isid='00023d000001'):
    return Nexus('iqn.x:' + host, isid, 'iqn.t:disk', group)


A, B, C = nexus('a'), nexus('b'), nexus('c')
A2 = nexus('a', 2)  # the same initiator port at the other target port
A_AGAIN = nexus('a', 1, '00023d000002')  # another session of the same host
ALL = (A, B, C, A2, A_AGAIN)

REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT, IGNORE, MOVE = range(8)
TYPES = (1, 3, 5, 6, 7, 8)
WE, EA, WERO, EARO, WEAR, EAAR = TYPES
PREEMPTED, RELEASED, REGISTRATION_GONE = (0x2A, 3), (0x2A, 4), (0x2A, 5)


def who(n):
    return (n.initiator_port, n.target_port)


class Disk(object):
    """The reservations of a unit, changed by commands in wire format: CDB and parameter list."""

    def __init__(self, known=()):
        self.state = reservations.initial()
        self.known = [n.initiator_port for n in known]
        self.outcome = None

    def do(self, n, kind, arguments):
        before = copy.deepcopy(self.state)
        arguments = json.loads(json.dumps(arguments))
        self.outcome = reservations.apply_command(self.state, n, kind, arguments, self.known)
        assert self.state == before, 'the old state was changed in place'
        assert json.loads(json.dumps(self.outcome.state)) == self.outcome.state
        if self.outcome.status != GOOD:
            assert (
                self.outcome.state is self.state
                and not self.outcome.attentions
                and not self.outcome.aborts
            )
            assert not self.outcome.persist
        assert (self.outcome.error is not None) == (self.outcome.status == CHECK_CONDITION)
        self.state = self.outcome.state
        return self.outcome.status

    def send(self, n, action, data, kind=0, scope=0):
        cdb = struct.pack('>BBBxxIx', 0x5F, action, scope << 4 | kind, len(data))
        return self.do(n, 'persistent-reserve-out', persistent_reserve.parse_out(cdb, data, PORTS))

    def out(self, n, action, key=0, new=0, kind=0, scope=0, flags=0, ids=None):
        data = struct.pack('>QQ4xBxxx', key, new, flags | (0x08 if ids is not None else 0))
        if ids is not None:
            encoded = b''.join(transport_id.encode(name) for name in ids)
            data += struct.pack('>I', len(encoded)) + encoded
        return self.send(n, action, data, kind, scope)

    def move(self, n, key, new, heir, relative=1, flags=0):
        identifier = transport_id.encode(heir)
        return self.send(
            n, MOVE, struct.pack('>QQxBHI', key, new, flags, relative, len(identifier)) + identifier
        )

    def reserve(self, n):
        return self.do(n, 'reserve', {})

    def release(self, n):
        return self.do(n, 'release', {})

    @property
    def sense(self):
        error = self.outcome.error
        return (error.key, error.asc, error.ascq)

    @property
    def reported(self):
        """[(nexus, (asc, ascq)) …] of the last command."""
        return [(nexus, (asc, ascq)) for nexus, asc, ascq in self.outcome.attentions]

    @property
    def keys(self):
        data = persistent_reserve.read_keys(self.state)
        return list(struct.unpack('>%dQ' % ((len(data) - 8) // 8), data[8:]))

    @property
    def held(self):
        """(key, type) of READ RESERVATION, or None."""
        data = persistent_reserve.read_reservation(self.state)
        return (struct.unpack_from('>Q', data, 8)[0], data[21]) if len(data) > 8 else None

    def refused(self, n):
        return reservation_classes.refused_classes(self.state, n)

    def reads(self, n):
        return not reservation_classes.conflicts(
            self.refused(n), reservation_classes.READ, bytes(16)
        )

    def writes(self, n):
        return not reservation_classes.conflicts(
            self.refused(n), reservation_classes.WRITE, bytes(16)
        )


def registered(*pairs):
    """A Disk where these (nexus, key) are registered."""
    disk = Disk()
    for n, key in pairs:
        assert disk.out(n, IGNORE, new=key) == GOOD
    return disk


def held(kind, *pairs):
    """A Disk where these are registered and the first one holds a reservation."""
    disk = registered(*pairs)
    n, key = pairs[0]
    assert disk.out(n, RESERVE, key, kind=kind) == GOOD
    return disk


# -- registration -----------------------------------------------------------------------------------


def test_a_registration_belongs_to_one_nexus():
    disk = registered((A, 1))
    assert disk.keys == [1]
    for other in (B, A2, A_AGAIN):
        assert disk.out(other, RESERVE, 1, kind=WE) == RESERVATION_CONFLICT
    assert disk.out(A, RESERVE, 1, kind=WE) == GOOD


@pytest.mark.clause('SPC-4 6.16')
def test_register_needs_the_registered_key():
    disk = Disk()
    assert disk.out(A, REGISTER, 5, 1) == RESERVATION_CONFLICT
    assert disk.out(A, REGISTER, 0, 1) == GOOD
    assert disk.out(A, REGISTER, 0, 2) == RESERVATION_CONFLICT
    assert disk.out(A, REGISTER, 2, 3) == RESERVATION_CONFLICT
    assert disk.out(A, REGISTER, 1, 2) == GOOD
    assert disk.keys == [2]
    assert disk.out(A, REGISTER, 2, 0) == GOOD
    assert disk.keys == []


def test_register_and_ignore_needs_no_key():
    disk = registered((A, 1))
    assert disk.out(A, IGNORE, 99, 2) == GOOD and disk.keys == [2]
    assert disk.out(A, IGNORE, 99, 0) == GOOD and disk.keys == []


@pytest.mark.parametrize('action', [REGISTER, IGNORE])
def test_unregistering_an_unregistered_nexus_changes_nothing(action):
    disk = registered((B, 7))
    old = disk.state
    assert disk.out(A, action, 0, 0, flags=0x01) == GOOD
    assert disk.state is old and not disk.outcome.persist


def test_a_new_key_keeps_the_reservation():
    disk = held(WERO, (A, 1), (B, 2))
    assert disk.out(A, REGISTER, 1, 9) == GOOD
    assert disk.held == (9, WERO) and disk.reported == []


def test_the_generation_counts_as_in_the_standard():
    disk = Disk()

    def generation():
        return struct.unpack_from('>I', persistent_reserve.read_keys(disk.state))[0]

    steps = [
        (lambda: disk.out(A, REGISTER, 0, 1), 1),
        (lambda: disk.out(B, IGNORE, 0, 2), 1),
        (lambda: disk.out(A, RESERVE, 1, kind=WE), 0),
        (lambda: disk.out(A, RELEASE, 1, kind=WE), 0),
        (lambda: disk.out(A, RESERVE, 1, kind=WE), 0),
        (lambda: disk.move(A, 1, 5, C.initiator_port), 1),
        (lambda: disk.out(A, PREEMPT, 1, 5, kind=WE), 1),
        (lambda: disk.out(A, PREEMPT_AND_ABORT, 1, 2, kind=WE), 1),
        (lambda: disk.out(A, CLEAR, 1), 1),
    ]
    for step, more in steps:
        before = generation()
        assert step() == GOOD
        assert generation() == before + more
    before = generation()
    assert disk.out(A, CLEAR, 1) == RESERVATION_CONFLICT and generation() == before


def test_the_generation_wraps():
    disk = Disk()
    disk.state = dict(disk.state, generation=0xFFFFFFFF)
    disk.out(A, REGISTER, 0, 1)
    assert disk.state['generation'] == 0


def test_all_target_ports_registers_and_unregisters_at_each():
    disk = Disk()
    assert disk.out(A, REGISTER, 0, 1, flags=0x04) == GOOD
    assert disk.keys == [1, 1]
    assert disk.out(A2, RESERVE, 1, kind=EA) == GOOD
    assert disk.out(A, REGISTER, 1, 0) == GOOD and disk.keys == [1]
    assert disk.held == (1, EA)
    assert (
        disk.out(A2, REGISTER, 1, 0, flags=0x04) == GOOD and disk.keys == [] and disk.held is None
    )


def test_all_target_ports_unregisters_at_registered_ports():
    disk = registered((A2, 8), (B, 2))
    assert disk.out(A, IGNORE, 0, 0, flags=0x04) == GOOD
    assert disk.keys == [2]


def test_all_target_ports_does_not_change_a_different_key():
    disk = registered((A2, 8))
    assert disk.out(A, REGISTER, 0, 1, flags=0x04) == GOOD
    assert sorted(disk.keys) == [1, 8]
    assert disk.out(A, IGNORE, 0, 2, flags=0x04) == GOOD
    assert disk.keys == [2, 2]


def test_specified_initiator_ports_are_registered_too():
    disk = Disk()
    assert disk.out(A, REGISTER, 0, 1, ids=[B.initiator_port, C.initiator_port]) == GOOD
    assert disk.keys == [1, 1, 1]
    assert disk.out(C, RESERVE, 1, kind=WERO) == GOOD
    assert disk.out(A2, RESERVE, 1, kind=WERO) == RESERVATION_CONFLICT


def test_specified_initiator_ports_at_all_target_ports():
    disk = Disk()
    assert disk.out(A, REGISTER, 0, 1, flags=0x04, ids=[B.initiator_port]) == GOOD
    assert disk.keys == [1] * 4
    assert disk.out(nexus('b', 2), RESERVE, 1, kind=WE) == GOOD


def test_an_initiator_device_name_means_all_its_known_ports():
    disk = Disk(known=(A, B, A_AGAIN, nexus('a-longer-name')))
    assert disk.out(C, REGISTER, 0, 1, ids=['iqn.x:a']) == GOOD
    assert [r['initiator_port'] for r in disk.state['registrations']] == [
        C.initiator_port,
        A.initiator_port,
        A_AGAIN.initiator_port,
    ]


def test_a_registered_port_keeps_its_key_if_another_specifies_it():
    disk = registered((B, 2))
    assert disk.out(A, REGISTER, 0, 1, ids=[B.initiator_port, A.initiator_port]) == GOOD
    assert disk.keys == [2, 1]


def test_specifying_ports_needs_a_new_registration():
    disk = registered((A, 1))
    assert disk.out(A, REGISTER, 1, 2, ids=[B.initiator_port]) == CHECK_CONDITION
    assert disk.sense == (5, 0x26, 0) and disk.outcome.error.field == (20, 3, False)
    assert disk.out(B, REGISTER, 0, 0, ids=[C.initiator_port]) == GOOD and disk.keys == [1]


def test_the_number_of_registrations_is_limited():
    disk = registered((A, 1))
    disk.state['registrations'] = [
        dict(disk.state['registrations'][0], initiator_port='iqn.x:a,i,0x%012x' % i)
        for i in range(1024)
    ]
    assert disk.out(B, REGISTER, 0, 1) == CHECK_CONDITION
    assert disk.sense == (5, 0x55, 0x04)


# -- reserve and release -----------------------------------------------------------------------------


@pytest.mark.parametrize('kind', TYPES)
def test_reserve_read_back_and_release(kind):
    disk = registered((A, 1))
    assert disk.out(A, RESERVE, 1, kind=kind) == GOOD
    assert disk.held == (0 if kind in (WEAR, EAAR) else 1, kind)
    assert disk.out(A, RELEASE, 1, kind=kind) == GOOD
    assert disk.held is None and disk.reported == [] and disk.keys == [1]


@pytest.mark.parametrize('kind', TYPES)
def test_the_holder_may_repeat_reserve_and_everything_else_conflicts(kind):
    disk = held(kind, (A, 1), (B, 2))
    old = disk.state
    assert disk.out(A, RESERVE, 1, kind=kind) == GOOD and disk.state is old
    for other in TYPES:
        if other != kind:
            assert disk.out(A, RESERVE, 1, kind=other) == RESERVATION_CONFLICT
    assert disk.out(B, RESERVE, 2, kind=kind) == (
        GOOD if kind in (WEAR, EAAR) else RESERVATION_CONFLICT
    )
    assert disk.held == (0 if kind in (WEAR, EAAR) else 1, kind)


@pytest.mark.parametrize('action', [RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT])
def test_every_action_but_register_needs_the_key(action):
    disk = held(WE, (A, 1), (B, 2))
    assert disk.out(A, action, 2, 2, kind=WE) == RESERVATION_CONFLICT
    assert disk.out(C, action, 0, 1, kind=WE) == RESERVATION_CONFLICT
    assert disk.keys == [1, 2] and disk.held == (1, WE)


def test_move_needs_the_key():
    disk = held(WE, (A, 1), (B, 2))
    assert disk.move(A, 2, 3, C.initiator_port) == RESERVATION_CONFLICT
    assert disk.move(C, 0, 3, C.initiator_port) == RESERVATION_CONFLICT


@pytest.mark.parametrize('kind', [0, 2, 4, 9, 15])
def test_unknown_types_are_refused(kind):
    disk = registered((A, 1))
    assert disk.out(A, RESERVE, 1, kind=kind) == CHECK_CONDITION
    assert disk.sense == (5, 0x24, 0) and disk.outcome.error.field == (2, 3, True)


@pytest.mark.parametrize('scope', [1, 2, 15])
def test_obsolete_scopes_are_refused(scope):
    disk = registered((A, 1))
    assert disk.out(A, RESERVE, 1, kind=WE, scope=scope) == CHECK_CONDITION
    assert disk.sense == (5, 0x24, 0) and disk.outcome.error.field == (2, 7, True)


def test_releasing_with_a_wrong_type_or_scope_is_refused():
    disk = held(WE, (A, 1))
    for kind, scope in ((EA, 0), (0, 0), (WE, 1)):
        assert disk.out(A, RELEASE, 1, kind=kind, scope=scope) == CHECK_CONDITION
        assert disk.sense == (5, 0x26, 0x04)
    assert disk.held == (1, WE)


@pytest.mark.parametrize('kind', TYPES)
def test_release_by_a_registrant_that_is_not_the_holder(kind):
    disk = held(kind, (A, 1), (B, 2))
    assert disk.out(B, RELEASE, 2, kind=kind) == GOOD
    assert (disk.held is None) == (kind in (WEAR, EAAR))
    assert registered((A, 1)).out(A, RELEASE, 1, kind=kind) == GOOD


@pytest.mark.parametrize('kind', TYPES)
def test_a_release_raises_attentions_for_registrants(kind):
    disk = held(kind, (A, 1), (B, 2), (A2, 3))
    assert disk.out(A, RELEASE, 1, kind=kind) == GOOD
    assert disk.reported == (
        [(who(B), RELEASED), (who(A2), RELEASED)] if kind not in (WE, EA) else []
    )


@pytest.mark.parametrize('kind', TYPES)
def test_unregistering_the_holder(kind):
    disk = held(kind, (A, 1), (B, 2))
    assert disk.out(A, REGISTER, 1, 0) == GOOD
    if kind in (WEAR, EAAR):
        assert disk.held == (0, kind) and disk.reported == []
        assert disk.out(B, REGISTER, 2, 0) == GOOD
        assert disk.held is None and disk.reported == []
    else:
        assert disk.held is None
        assert disk.reported == ([(who(B), RELEASED)] if kind in (WERO, EARO) else [])


@pytest.mark.parametrize('kind', TYPES)
def test_unregistering_a_nexus_that_is_not_the_holder(kind):
    disk = held(kind, (A, 1), (B, 2))
    assert disk.out(B, IGNORE, 0, 0) == GOOD
    assert disk.held is not None and disk.reported == [] and disk.keys == [1]


# -- clearing, preempting, moving ------------------------------------------------------------------


@pytest.mark.parametrize('kind', (0,) + TYPES)
@pytest.mark.clause('SPC-4 6.16')
def test_clear_removes_everything_and_raises_attentions(kind):
    disk = held(kind, (A, 1), (B, 2), (C, 3)) if kind else registered((A, 1), (B, 2), (C, 3))
    assert disk.out(B, CLEAR, 2) == GOOD
    assert disk.keys == [] and disk.held is None
    assert disk.reported == [(who(A), PREEMPTED), (who(C), PREEMPTED)]


@pytest.mark.parametrize('action', [PREEMPT, PREEMPT_AND_ABORT])
@pytest.mark.parametrize('kind', [WE, EA, WERO, EARO])
@pytest.mark.clause('SPC-4 6.16')
def test_preempting_the_holder_takes_the_reservation_over(kind, action):
    disk = held(kind, (A, 1), (B, 2), (C, 3))
    assert disk.out(B, action, 2, 1, kind=kind) == GOOD
    assert disk.keys == [2, 3] and disk.held == (2, kind)
    assert disk.reported == [(who(A), REGISTRATION_GONE)]
    assert disk.outcome.aborts == ([who(A)] if action == PREEMPT_AND_ABORT else [])


@pytest.mark.parametrize('old', [WE, EA, WERO, EARO])
@pytest.mark.parametrize('new', TYPES)
def test_preempting_with_another_type_raises_attentions_for_remaining_registrants(old, new):
    disk = held(old, (A, 1), (B, 2), (C, 3))
    assert disk.out(B, PREEMPT, 2, 1, kind=new) == GOOD
    assert disk.held == (0 if new in (WEAR, EAAR) else 2, new)
    stays = [(who(C), RELEASED)] if new != old else []
    assert sorted(disk.reported) == sorted([(who(A), REGISTRATION_GONE)] + stays)


@pytest.mark.parametrize('kind', [WE, EA, WERO, EARO])
def test_preempting_a_key_of_several_nexuses(kind):
    disk = held(kind, (A, 1), (B, 2), (C, 1), (A2, 1))
    assert disk.out(B, PREEMPT_AND_ABORT, 2, 1, kind=kind) == GOOD
    assert disk.keys == [2]
    assert disk.reported == [(n, REGISTRATION_GONE) for n in (who(A), who(C), who(A2))]
    assert disk.outcome.aborts == [who(A), who(C), who(A2)]


@pytest.mark.parametrize('kind', [WE, EA, WERO, EARO])
def test_preempting_the_own_key_keeps_the_registration_and_may_change_the_type(kind):
    disk = held(kind, (A, 1), (B, 2), (C, 1))
    assert disk.out(A, PREEMPT_AND_ABORT, 1, 1, kind=WEAR) == GOOD
    assert disk.keys == [1, 2] and disk.held == (0, WEAR)
    assert sorted(disk.reported) == [(who(B), RELEASED), (who(C), REGISTRATION_GONE)]
    assert disk.outcome.aborts == [who(C)]


@pytest.mark.parametrize('kind', (0,) + TYPES)
def test_preempting_another_removes_its_registration_only(kind):
    disk = held(kind, (A, 1), (B, 2), (C, 3)) if kind else registered((A, 1), (B, 2), (C, 3))
    before = disk.held
    # scope and type are ignored
    assert disk.out(C, PREEMPT_AND_ABORT, 3, 2, kind=15, scope=15) == GOOD
    assert disk.keys == [1, 3] and disk.held == before
    assert disk.reported == [(who(B), REGISTRATION_GONE)] and disk.outcome.aborts == [who(B)]


@pytest.mark.parametrize('kind', (0,) + TYPES)
def test_preempting_an_unknown_key_conflicts(kind):
    disk = held(kind, (A, 1), (B, 2)) if kind else registered((A, 1), (B, 2))
    assert disk.out(B, PREEMPT, 2, 77, kind=WE) == RESERVATION_CONFLICT
    assert disk.keys == [1, 2]


@pytest.mark.parametrize('kind', (0,) + TYPES)
def test_preempting_key_zero_is_for_all_registrants(kind):
    disk = held(kind, (A, 1), (B, 2), (C, 3)) if kind else registered((A, 1), (B, 2), (C, 3))
    status = disk.out(B, PREEMPT_AND_ABORT, 2, 0, kind=EA)
    if kind not in (WEAR, EAAR):
        assert status == CHECK_CONDITION and disk.sense == (5, 0x26, 0)
        assert disk.outcome.error.field == (8, None, False)
    else:
        assert status == GOOD and disk.keys == [2] and disk.held == (2, EA)
        assert disk.reported == [(who(A), REGISTRATION_GONE), (who(C), REGISTRATION_GONE)]
        assert disk.outcome.aborts == [who(A), who(C)]


@pytest.mark.parametrize('kind', [WEAR, EAAR])
def test_all_registrants_reservations_end_with_the_last_registrant(kind):
    disk = held(kind, (A, 1), (B, 1))
    assert disk.out(B, PREEMPT, 1, 1, kind=kind) == GOOD
    assert disk.keys == [] and disk.held is None and disk.reported == [(who(A), REGISTRATION_GONE)]


def test_a_nexus_may_preempt_its_own_registration():
    disk = held(WE, (A, 1), (B, 2))
    assert disk.out(B, PREEMPT_AND_ABORT, 2, 2) == GOOD
    assert (
        disk.keys == [1]
        and disk.held == (1, WE)
        and disk.reported == []
        and disk.outcome.aborts == [who(B)]
    )


@pytest.mark.parametrize('kind, scope, field', [(2, 0, (2, 3, True)), (WE, 3, (2, 7, True))])
def test_a_takeover_needs_a_valid_scope_and_type(kind, scope, field):
    disk = held(WE, (A, 1), (B, 2))
    assert disk.out(B, PREEMPT, 2, 1, kind=kind, scope=scope) == CHECK_CONDITION
    assert disk.sense == (5, 0x24, 0) and disk.outcome.error.field == field
    assert disk.keys == [1, 2]


@pytest.mark.parametrize('kind', [WE, EA, WERO, EARO])
@pytest.mark.parametrize('unregister', [False, True])
@pytest.mark.clause('SPC-4 6.16')
def test_moving_a_reservation(kind, unregister):
    disk = held(kind, (A, 1), (B, 2))
    assert disk.move(A, 1, 9, C.initiator_port, relative=2, flags=0x02 if unregister else 0) == GOOD
    assert disk.held == (9, kind) and disk.reported == []
    assert disk.keys == ([2, 9] if unregister else [1, 2, 9])
    heir = nexus('c', 2)
    assert disk.out(heir, RELEASE, 9, kind=kind) == GOOD and disk.held is None


def test_moving_to_a_registered_nexus_sets_its_key():
    disk = held(EA, (A, 1), (B, 2))
    assert disk.move(A, 1, 9, B.initiator_port) == GOOD
    assert disk.keys == [1, 9] and disk.held == (9, EA)


def test_moving_by_a_nexus_that_is_not_the_only_holder_conflicts():
    assert registered((A, 1)).move(A, 1, 9, B.initiator_port) == RESERVATION_CONFLICT
    assert held(WE, (A, 1), (B, 2)).move(B, 2, 9, C.initiator_port) == RESERVATION_CONFLICT
    for kind in (WEAR, EAAR):
        assert held(kind, (A, 1)).move(A, 1, 9, B.initiator_port) == RESERVATION_CONFLICT


def test_moving_without_a_key_or_to_the_same_nexus_is_refused():
    disk = held(WE, (A, 1))
    assert disk.move(A, 1, 0, B.initiator_port) == CHECK_CONDITION
    assert disk.sense == (5, 0x26, 0) and disk.outcome.error.field == (8, None, False)
    assert disk.move(A, 1, 9, A.initiator_port) == CHECK_CONDITION
    assert disk.sense == (5, 0x26, 0) and disk.outcome.error.field == (24, None, False)
    assert disk.move(A, 1, 9, A.initiator_port, relative=2) == GOOD and disk.held == (9, WE)


# -- SPC-2 -----------------------------------------------------------------------------------------


def test_reserve_and_release_of_spc_2():
    disk = Disk()
    assert disk.reserve(A) == GOOD and disk.reserve(A) == GOOD
    for other in (B, A2, A_AGAIN):
        assert disk.reserve(other) == RESERVATION_CONFLICT
        assert disk.release(other) == GOOD
    assert disk.reserve(B) == RESERVATION_CONFLICT
    assert disk.release(A) == GOOD
    assert disk.reserve(B) == GOOD and not disk.outcome.persist


def test_persistent_commands_conflict_with_an_spc_2_reservation():
    disk = Disk()
    disk.reserve(A)
    for n in (A, B):
        for action in range(7):
            assert disk.out(n, action, 0, 1, kind=WE) == RESERVATION_CONFLICT
        assert reservation_classes.conflicts(disk.refused(n), reservation_classes.PR_IN, bytes(10))
        assert all(
            reservation_classes.conflicts(
                disk.refused(n), reservation_classes.PR_OUT, bytes([0x5F, action])
            )
            for action in range(8)
        )


def test_spc_2_commands_conflict_with_registrations():
    disk = registered((A, 1))
    for n in (A, B):
        assert disk.reserve(n) == RESERVATION_CONFLICT and disk.release(n) == RESERVATION_CONFLICT
    disk.out(A, REGISTER, 1, 0)
    assert disk.reserve(B) == GOOD


@pytest.mark.parametrize('kind', TYPES)
def test_spc_2_commands_of_holders_and_registrants_change_nothing(kind):
    disk = held(kind, (A, 1), (B, 2))
    old = disk.state
    for n, good in ((A, True), (B, kind not in (WE, EA)), (C, False)):
        for command in (disk.reserve, disk.release):
            assert command(n) == (GOOD if good else RESERVATION_CONFLICT)
        assert (
            reservation_classes.conflicts(disk.refused(n), reservation_classes.RESERVE, bytes(6))
            is not good
        )
    assert disk.state is old


def test_spc_2_reservations_end_with_the_session_and_with_a_reset():
    for lose in (
        lambda s: reservations.session_lost(s, A.initiator_port),
        lambda s: reservations.session_lost(s, *who(A)),
        reservations.logical_unit_reset,
    ):
        disk = Disk()
        disk.reserve(A)
        disk.state = lose(disk.state)
        assert disk.reserve(B) == GOOD


def test_spc_2_reservations_stay_when_another_session_ends():
    disk = Disk()
    disk.reserve(A)
    for other in (B, A2, A_AGAIN):
        assert reservations.session_lost(disk.state, *who(other)) is disk.state
    assert reservations.session_lost(disk.state, B.initiator_port) is disk.state


@pytest.mark.parametrize('kind', TYPES)
def test_persistent_reservations_persist_through_session_loss_and_resets(kind):
    disk = held(kind, (A, 1), (B, 2))
    assert reservations.session_lost(disk.state, *who(A)) is disk.state
    assert reservations.logical_unit_reset(disk.state) is disk.state


# -- refused commands --------------------------------------------------------------------------------
# From SPC-4 tables 70 and 71, SBC-3 table 13 and SPC-2 table 11, written independently of the classes.
# Columns: Write Exclusive and Exclusive Access for any other nexus; registrant under Registrants Only or
# All Registrants; not registered under Write Exclusive and Exclusive Access of these; SPC-2 reservation
# of another nexus. A: allowed, C: conflict.

COMMANDS = [
    (line[:46].strip(), line[46:].split())
    for line in '''
INQUIRY                                       A A A A A A
REPORT LUNS                                   A A A A A A
REQUEST SENSE                                 A A A A A A
TEST UNIT READY                               A A A A A C
READ CAPACITY(10)                             A A A A A A
READ CAPACITY(16)                             A A A A A A
LOG SENSE                                     A A A A A A
REPORT TARGET PORT GROUPS                     A A A A A A
MODE SENSE(6)                                 A C A A C C
MODE SENSE(10)                                A C A A C C
MODE SELECT(6)                                C C A C C C
MODE SELECT(10)                               C C A C C C
LOG SELECT                                    C C A C C C
READ(6)                                       A C A A C C
READ(10)                                      A C A A C C
READ(12)                                      A C A A C C
READ(16)                                      A C A A C C
READ BUFFER                                   A C A A C C
READ DEFECT DATA(10)                          A C A A C C
READ DEFECT DATA(12)                          A C A A C C
PRE-FETCH(10)                                 A C A A C C
PRE-FETCH(16)                                 A C A A C C
VERIFY(10)                                    A C A A C C
VERIFY(12)                                    A C A A C C
VERIFY(16)                                    A C A A C C
GET LBA STATUS                                A C A A C C
RECEIVE DIAGNOSTIC RESULTS                    A C A A C C
REPORT SUPPORTED OPERATION CODES              A C A A C C
REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS    A C A A C C
WRITE(6)                                      C C A C C C
WRITE(10)                                     C C A C C C
WRITE(12)                                     C C A C C C
WRITE(16)                                     C C A C C C
WRITE AND VERIFY(10)                          C C A C C C
WRITE AND VERIFY(12)                          C C A C C C
WRITE AND VERIFY(16)                          C C A C C C
WRITE SAME(10)                                C C A C C C
WRITE SAME(16)                                C C A C C C
WRITE ATOMIC(16)                              C C A C C C
WRITE BUFFER                                  C C A C C C
COMPARE AND WRITE                             C C A C C C
ORWRITE(16)                                   C C A C C C
UNMAP                                         C C A C C C
FORMAT UNIT                                   C C A C C C
SANITIZE                                      C C A C C C
REASSIGN BLOCKS                               C C A C C C
SYNCHRONIZE CACHE(10)                         C C A C C C
SYNCHRONIZE CACHE(16)                         C C A C C C
SEND DIAGNOSTIC                               C C A C C C
PERSISTENT RESERVE IN, READ KEYS              A A A A A C
PERSISTENT RESERVE IN, READ RESERVATION       A A A A A C
PERSISTENT RESERVE IN, REPORT CAPABILITIES    A A A A A C
PERSISTENT RESERVE IN, READ FULL STATUS       A A A A A C
START STOP UNIT, start                        A A A A A A
START STOP UNIT, stop                         C C A C C C
START STOP UNIT, power condition              C C A C C C
PREVENT ALLOW MEDIUM REMOVAL, allow           A A A A A A
PREVENT ALLOW MEDIUM REMOVAL, prevent         C C A C C C
RELEASE(6)                                    A A A A A A
RELEASE(10)                                   A A A A A A
'''.strip().split('\n')
]

VARIANTS = {
    'start': b'\x1b\0\0\0\x01\0',
    'stop': b'\x1b\0\0\0\0\0',
    'power condition': b'\x1b\0\0\0\x11\0',
    'allow': b'\x1e\0\0\0\0\0',
    'prevent': b'\x1e\0\0\0\x01\0',
}
ROWS = dict((row.name, row) for row in TABLE)


def situations():
    """(state, nexus, column): every type, for a registered and an unregistered nexus; SPC-2."""
    for kind in TYPES:
        state = held(kind, (A, 1), (B, 2)).state
        exclusive = kind in (EA, EARO, EAAR)
        if kind in (WE, EA):
            yield state, B, int(exclusive)
            yield state, C, int(exclusive)
        else:
            yield state, B, 2
            yield state, C, 3 + int(exclusive)
        for other in (A2, A_AGAIN):
            yield state, other, int(exclusive) + (0 if kind in (WE, EA) else 3)
    disk = Disk()
    disk.reserve(A)
    for other in (B, A2, A_AGAIN):
        yield disk.state, other, 5


SITUATIONS = list(situations())


@pytest.mark.parametrize('name, allowed', COMMANDS, ids=[name for name, _ in COMMANDS])
def test_commands_conflict_as_in_the_tables(name, allowed):
    row = ROWS.get(name) or ROWS.get(name.split(',')[0])
    if row is None:
        return  # the unit does not offer it
    cdb = VARIANTS.get(name.split(', ')[-1], bytes([row.opcode]) + bytes(31))
    for state, n, column in SITUATIONS:
        refused = reservation_classes.refused_classes(state, n)
        assert reservation_classes.conflicts(refused, row.reservation, cdb) == (
            allowed[column] == 'C'
        ), (name, column)


def test_the_holder_is_refused_nothing():
    for kind in TYPES:
        assert held(kind, (A, 1), (B, 2)).refused(A) == frozenset()
    disk = Disk()
    assert disk.refused(A) == frozenset()
    assert registered((A, 1)).refused(B) == frozenset()
    disk.reserve(A)
    assert disk.reads(A) and disk.writes(A)
    assert not reservation_classes.conflicts(disk.refused(A), reservation_classes.STATUS, bytes(6))


@pytest.mark.parametrize('row', TABLE, ids=[row.name for row in TABLE])
def test_every_command_that_writes_conflicts_with_a_reservation_of_another_nexus(row):
    if row.writes:
        for state, n, column in SITUATIONS:
            refused = reservation_classes.refused_classes(state, n)
            assert reservation_classes.conflicts(
                refused, row.reservation, bytes([row.opcode]) + bytes(31)
            ) == (column != 2)


def test_a_command_without_a_class_conflicts():
    for state, n, column in SITUATIONS:
        refused = reservation_classes.refused_classes(state, n)
        assert reservation_classes.conflicts(refused, None, bytes(16)) == (column != 2)


# SPC-4 table 71: PERSISTENT RESERVE OUT of a registrant that does not hold, and of one that is not
# registered
OUT_TABLE = {
    REGISTER: 'AA',
    RESERVE: 'CC',
    RELEASE: 'AC',
    CLEAR: 'AC',
    PREEMPT: 'AC',
    PREEMPT_AND_ABORT: 'AC',
    IGNORE: 'AA',
}


@pytest.mark.parametrize('kind', [WE, EA, WERO, EARO])
@pytest.mark.parametrize('action', sorted(OUT_TABLE))
def test_persistent_reserve_out_conflicts_as_in_the_table(kind, action):
    for n, key, allowed in ((B, 2, OUT_TABLE[action][0]), (C, 0, OUT_TABLE[action][1])):
        disk = held(kind, (A, 1), (B, 2))
        refused = reservation_classes.conflicts(
            disk.refused(n), reservation_classes.PR_OUT, bytes([0x5F, action])
        )
        status = disk.out(n, action, key, 1, kind=kind)
        assert status == (GOOD if allowed == 'A' else RESERVATION_CONFLICT)
        assert not refused or status == RESERVATION_CONFLICT, (
            'the worker refuses what the master would not'
        )


@pytest.mark.parametrize('kind', TYPES)
def test_access_of_holder_registrant_and_unregistered_nexus(kind):
    disk = held(kind, (A, 1), (B, 2))
    shared = kind not in (WE, EA)
    write_exclusive = kind in (WE, WERO, WEAR)
    assert disk.reads(A) and disk.writes(A)
    assert disk.reads(B) is (shared or write_exclusive) and disk.writes(B) is shared
    disk.out(B, REGISTER, 2, 0)
    assert disk.reads(B) is write_exclusive and not disk.writes(B)
    disk.out(A, RELEASE, 1, kind=kind)
    assert disk.reads(B) and disk.writes(B)


# -- scenarios -------------------------------------------------------------------------------------


def test_windows_cluster_validation():
    """Per node: unregister, register with REGISTER AND IGNORE; then reserve type 5, preempt,
    release, clear."""
    disk = Disk()
    for n, key in ((A, 0x66734D6900000001), (B, 0x66734D6900000002)):
        assert disk.out(n, IGNORE, 0, 0) == GOOD
        assert disk.out(n, IGNORE, 0, key) == GOOD
    one, two = disk.keys
    assert disk.held is None
    assert disk.out(A, RESERVE, one, kind=WERO) == GOOD
    assert disk.out(A, RESERVE, one, kind=WERO) == GOOD
    assert disk.out(B, RESERVE, two, kind=WERO) == RESERVATION_CONFLICT
    assert disk.held == (one, WERO)
    assert disk.writes(B) and not disk.writes(C) and disk.reads(C)
    assert not reservation_classes.conflicts(disk.refused(C), reservation_classes.PR_IN, bytes(10))
    assert disk.out(B, PREEMPT, two, 0x1234, kind=WERO) == RESERVATION_CONFLICT
    assert disk.out(B, PREEMPT, two, one, kind=WERO) == GOOD
    assert disk.reported == [(who(A), REGISTRATION_GONE)]
    assert disk.held == (two, WERO) and not disk.writes(A)
    assert disk.out(A, RELEASE, one, kind=WERO) == RESERVATION_CONFLICT
    assert disk.out(B, RELEASE, two, kind=WERO) == GOOD
    assert disk.out(B, CLEAR, two) == GOOD
    assert disk.keys == []


def test_fence_scsi_removes_the_access_of_a_node():
    """Each node registers a key on every path, one node reserves type 5; the others preempt and
    abort the key of a lost node."""
    disk = held(WERO, (A, 0xA), (A2, 0xA), (B, 0xB), (C, 0xC))
    assert all(disk.writes(n) for n in (A, A2, B, C))
    assert disk.out(B, PREEMPT_AND_ABORT, 0xB, 0xA, kind=WERO) == GOOD
    assert not disk.writes(A) and not disk.writes(A2) and disk.writes(B) and disk.writes(C)
    assert disk.outcome.aborts == [who(A), who(A2)]
    assert disk.held == (0xB, WERO)
    assert disk.out(A, REGISTER, 0xA, 0xA) == RESERVATION_CONFLICT
    assert disk.out(A, REGISTER, 0, 0xA) == GOOD and disk.writes(A)


def test_multipath_with_all_registrants_on_both_paths():
    """dm-multipath registers one key on each path; a path that returns registers again and has
    access immediately."""
    disk = held(EAAR, (A, 1), (A2, 1))
    assert disk.reads(A2) and not disk.reads(B)
    disk.out(A2, REGISTER, 1, 0)
    assert not disk.reads(A2) and disk.held == (0, EAAR)
    disk.out(A2, REGISTER, 0, 1)
    assert disk.reads(A2)


def test_preempting_with_one_registration_left_counts_one_generation():
    """libiscsi ProutPreempt.RemoveRegistration."""
    disk = registered((A, 1))
    disk.out(A, CLEAR, 1)
    disk.out(A, IGNORE, 0, 1)
    disk.out(B, IGNORE, 0, 2)
    before = disk.state['generation']
    assert disk.out(B, PREEMPT, 2, 1, kind=EA) == GOOD
    assert disk.keys == [2] and disk.state['generation'] == before + 1 and disk.held is None


# -- saved state -----------------------------------------------------------------------------------------


def test_persistent_changes_are_marked_to_be_saved():
    disk = Disk()
    assert disk.out(A, REGISTER, 0, 1, flags=0x01) == GOOD and disk.outcome.persist
    assert disk.out(A, REGISTER, 1, 1, flags=0x01) == GOOD and not disk.outcome.persist
    assert disk.out(A, RESERVE, 1, kind=WE) == GOOD and disk.outcome.persist
    assert disk.out(A, RESERVE, 1, kind=WE) == GOOD and not disk.outcome.persist
    # APTPL 0 must be saved, too
    assert disk.out(A, REGISTER, 1, 1) == GOOD and disk.outcome.persist
    assert not disk.state['aptpl']


def test_the_last_registration_sets_aptpl():
    disk = Disk()
    disk.out(A, REGISTER, 0, 1, flags=0x01)
    disk.out(B, REGISTER, 0, 2)
    assert not disk.state['aptpl']
    disk.out(B, IGNORE, 0, 2, flags=0x01)
    assert disk.state['aptpl'] and persistent_reserve.report_capabilities(disk.state)[3] & 1
    disk.out(B, RESERVE, 2, kind=EA)
    disk.move(B, 2, 2, A2.initiator_port, relative=2)
    assert not disk.state['aptpl']


@pytest.mark.parametrize('kind', TYPES)
def test_reservations_persist_through_a_loss_of_power(kind):
    disk = held(kind, (A, 1), (B, 2))
    disk.out(B, REGISTER, 2, 2, flags=0x01)
    kept = json.loads(json.dumps(reservations.aptpl_dump(disk.state)))
    state = reservations.aptpl_load(kept)
    assert state == dict(disk.state, generation=0)
    assert (
        reservation_classes.refused_classes(state, C)
        == reservation_classes.refused_classes(disk.state, C)
        != frozenset()
    )


def test_without_aptpl_they_persist_through_a_restart_of_the_server_only():
    disk = held(WE, (A, 1))
    kept = reservations.aptpl_dump(disk.state)
    assert reservations.aptpl_load(kept) == reservations.initial()
    assert reservations.aptpl_load(kept, power_lost=False) == dict(disk.state, generation=0)


def test_without_saved_state_nothing_is_reserved():
    assert reservations.aptpl_load(None) == reservations.initial()
    assert (
        reservations.aptpl_load(reservations.aptpl_dump(reservations.initial()))
        == reservations.initial()
    )


@pytest.mark.parametrize(
    'change',
    [
        {'version': 2},
        {'type': 2},
        {'type': 'x'},
        {'holder': None},
        {'holder': ['a', 'b']},
        {'holder': [1, 2]},
        {'type': 0},
        {'type': 7},
        {'registrations': []},
        {'registrations': None},
        {'registrations': [{}]},
        {
            'registrations': [
                {'initiator_port': 'a', 'target_port': 'b', 'key': '12', 'all_tg_pt': False}
            ]
        },
        {'type': 7, 'holder': None, 'registrations': []},
        {'type': []},
    ],
    ids=str,
)
def test_damaged_saved_state_is_an_error(change):
    kept = reservations.aptpl_dump(held(WE, (A, 1)).state)
    with pytest.raises(ValueError):
        reservations.aptpl_load(dict(kept, **change))
    with pytest.raises(ValueError):
        reservations.aptpl_load('text')


# -- arguments from a worker that cannot be trusted ------------------------------------------------


@pytest.mark.parametrize(
    'change',
    [
        {'service_action': 8},
        {'service_action': '0'},
        {'service_action': None},
        {'key': 'x' * 16},
        {'key': 1},
        {'service_action_key': '00'},
        {'type': None},
        {'aptpl': 1},
        {'target_ports': None},
        {'target_ports': [1]},
        {'transport_ids': 'iqn.b'},
        {'transport_ids': [1]},
        {'service_action': 7},
        {'key': '0' * 17},
        {'service_action': 7, 'transport_ids': ['iqn.b,i,0x000000000000']},
    ],
    ids=str,
)
def test_invalid_arguments_of_a_worker_are_refused(change):
    arguments = dict(
        persistent_reserve.parse_out(bytes([0x5F, 0, 0, 0, 0, 0, 0, 0, 24, 0]), bytes(24)), **change
    )
    with pytest.raises(ValueError):
        reservations.apply_command(reservations.initial(), A, 'persistent-reserve-out', arguments)


def test_an_unknown_kind_of_change_is_refused():
    with pytest.raises(ValueError):
        reservations.apply_command(reservations.initial(), A, 'start-stop', {})


# -- invariants ---------------------------------------------------------------------------------------

COMMAND = st.tuples(
    st.sampled_from(ALL),
    st.sampled_from(list(range(8)) + ['reserve', 'release']),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from(TYPES),
    st.sampled_from([0, 1, 4, 5]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(COMMAND, max_size=15))
def test_the_invariants_hold_for_any_commands(commands):
    disk = Disk(known=ALL)
    for n, action, key, new, kind, flags in commands:
        before = disk.state
        refused = disk.refused(n)
        if action == 'reserve':
            status = disk.reserve(n)
        elif action == 'release':
            status = disk.release(n)
        elif action == MOVE:
            status = disk.move(n, key, new, B.initiator_port, flags=flags & 3)
        else:
            status = disk.out(n, action, key, new, kind=kind, flags=flags)
        if isinstance(action, int) and reservation_classes.conflicts(
            refused, reservation_classes.PR_OUT, bytes([0x5F, action])
        ):
            assert status == RESERVATION_CONFLICT
        if action == 'reserve' and reservation_classes.conflicts(
            refused, reservation_classes.RESERVE, bytes(6)
        ):
            assert status == RESERVATION_CONFLICT
        state = disk.state
        nexuses = [(r['initiator_port'], r['target_port']) for r in state['registrations']]
        assert len(set(nexuses)) == len(nexuses)
        assert all(r['key'] != '0' * 16 for r in state['registrations'])
        single = state['type'] in (WE, EA, WERO, EARO)
        assert (state['holder'] is not None) is single and (
            not single or tuple(state['holder']) in nexuses
        )
        assert state['type'] == 0 or nexuses
        assert state['reserved_by'] is None or not nexuses
        assert who(n) not in [nexus for nexus, _, _ in disk.outcome.attentions]
        gone = set((r['initiator_port'], r['target_port']) for r in before['registrations']) - set(
            nexuses
        )
        if action in (CLEAR, PREEMPT, PREEMPT_AND_ABORT) and status == GOOD:
            assert gone - {who(n)} == set(
                nexus for nexus, asc, ascq in disk.outcome.attentions if ascq != 4
            )
        assert (
            reservations.aptpl_load(reservations.aptpl_dump(state), False)['registrations']
            == state['registrations']
        )
