"""Transitions of a unit's shared state: at the request of a nexus, or after an event. Pure.

A function takes the Shared state and returns a Decision (the new Shared state and its consequences)
or a Refusal (the status and sense data that end the command). It never changes its arguments.
logical_units and replication save, distribute and answer.
"""

import errno
from collections import namedtuple

from targetd.master.processes.worker_messages import VALUE_ERRORS
from targetd.master.units import shared_state
from targetd.scsi import alua, attention, errno_map, modes, operations, records, reservations, sam
from targetd.scsi.medium_state import EJECTED, FAILED, READY, SHRUNK, STOPPED
from targetd.scsi.sense import (
    HARDWARE_ERROR,
    ILLEGAL_REQUEST,
    NOT_READY,
    CheckCondition,
    invalid_field_in_cdb,
)

#: Task management functions that apply to every unit of the target.
OF_A_TARGET = ('target-warm-reset', 'target-cold-reset', 'i-t-nexus-reset')

#: Decision.persist of a change that takes effect at once and is saved as soon as that is possible.
WHEN_POSSIBLE = 'when-possible'


class Malformed(ValueError):
    """A worker sent a request that no command leads to: the worker is broken or hostile."""


class Refusal(namedtuple('Refusal', 'status sense data')):
    """The status, sense data (bytes or None) and data that end a command; no state changes."""

    __slots__ = ()

    def __new__(cls, status, sense=None, data=None):
        return super(Refusal, cls).__new__(cls, status, sense, data)


class Decision(namedtuple('Decision', 'shared attentions aborts persist size operation_start')):
    """A new state and its consequences.

    shared: the new Shared state; attentions: [((initiator_port, target_port) or Others, asc, ascq)
    …], unit attention conditions to establish; aborts: [(initiator_port, target_port) …] of the
    nexuses whose tasks end, or None for all nexuses; persist: True (a command is refused if the state
    cannot be saved), WHEN_POSSIBLE or False; size: the new one in bytes, or None; operation_start:
    'immediate' (the command is answered now) or 'awaited' (at the end) if shared.operation starts,
    else ''."""

    __slots__ = ()

    def __new__(
        cls, shared, attentions=(), aborts=(), persist=False, size=None, operation_start=''
    ):
        return super(Decision, cls).__new__(
            cls, shared, tuple(attentions), aborts, persist, size, operation_start
        )

    status, sense, data = sam.GOOD, None, None

    @property
    def is_immediate(self):
        """True if the command is answered before its operation has ended."""
        return self.operation_start == 'immediate'

    def changed(self, old):
        """{part: value}: the parts of the state that differ from `old` and that replicas have."""
        parts = ('reservations', 'modes', 'medium', 'access', 'records')
        found = {
            part: getattr(self.shared, part)
            for part in parts
            if getattr(self.shared, part) != getattr(old, part)
        }
        if self.shared.in_force != old.in_force:
            found['restriction'] = self.shared.in_force
        return found

    def attentions_of(self, nexus):
        """[[asc, ascq] …]: the unit attention conditions for this nexus."""
        mine = nexus_ports(nexus)
        return [
            [asc, ascq]
            for for_whom, asc, ascq in self.attentions
            if for_whom == mine or isinstance(for_whom, Others) and for_whom.by != mine
        ]

    def abort_of(self, nexus, is_asker):
        """The `abort` part of the message to this nexus's worker, or None. Tasks of the nexus that
        requested the change never end with TASK ABORTED status because of TAS (SPC-4)."""
        if self.aborts is not None and nexus_ports(nexus) not in self.aborts:
            return None
        tas = (
            bool(self.operation_start) or not is_asker and is_task_aborted_status(self.shared.modes)
        )
        return {'tas': tas}


class Others(namedtuple('Others', 'by')):
    """All nexuses except `by`; by None: all nexuses."""

    __slots__ = ()


#: (status, sense), in fixed format, because the D_SENSE bit of a removed unit is not known.
UNIT_IS_GONE = (sam.CHECK_CONDITION, CheckCondition(ILLEGAL_REQUEST, 0x25, 0x00).sense())


def refusal(shared, error):
    """The Refusal that ends a command with this CheckCondition, in the sense data format that the
    D_SENSE bit of the unit selects."""
    return Refusal(sam.CHECK_CONDITION, error.sense(modes.parameters(shared.modes).d_sense))


REGISTERING = (0x00, 0x06, 0x07)  # service actions of PERSISTENT RESERVE OUT


def cannot_persist(shared, message, number):
    """The Refusal of a command whose effect cannot be saved on stable storage. number: the errno. No
    space for a registration is INSUFFICIENT REGISTRATION RESOURCES (SPC-4 5.12.7)."""
    is_registering = message.get('service_action') in REGISTERING
    if is_registering and number in (errno.ENOSPC, errno.EDQUOT):
        return refusal(shared, CheckCondition(ILLEGAL_REQUEST, 0x55, 0x04))
    return refusal(shared, CheckCondition(HARDWARE_ERROR, 0x44, 0x00))


def cannot_flush(shared, error):
    """The Refusal of a command after which initiators may stop flushing, if the medium cannot be
    flushed. error: OSError."""
    return refusal(shared, errno_map.write_failure(error))


def unit_has_failed(shared):
    """The Refusal of a command that a failed unit does not execute, as for writes and flushes."""
    return refusal(shared, CheckCondition(HARDWARE_ERROR, 0x44, 0x00))


def nexus_ports(nexus):
    """(initiator port name, target port name), which identify a nexus."""
    return (nexus.initiator_port, nexus.target_port)


def is_task_aborted_status(mode_state):
    """True if the TAS bit of the control mode page is set."""
    return modes.parameters(mode_state).tas


def decide(shared, nexus, message, known_ports):
    """The Decision or Refusal for an `ask` of a worker. known_ports: the initiator ports that are
    logged in to the unit. Raises Malformed."""
    try:
        return KINDS[message.get('ask')](shared, nexus, message, known_ports)
    except VALUE_ERRORS as e:
        raise Malformed('%r: %s' % (message.get('ask'), e))


# -- reservations ----------------------------------------------------------------------------------


def _reservations(shared, nexus, message, known_ports):
    outcome = reservations.apply_command(
        shared.reservations, nexus, message['ask'], message, known_ports
    )
    if outcome.error:
        return refusal(shared, outcome.error)
    if outcome.status != sam.GOOD:
        return Refusal(outcome.status)
    return Decision(
        shared._replace(reservations=outcome.state),
        [(tuple(ports), asc, ascq) for ports, asc, ascq in outcome.attentions],
        frozenset(tuple(victim) for victim in outcome.aborts),
        outcome.persist,
    )


def session_lost(shared, nexus):
    """The nexus is lost: its RESERVE and its prevention of medium removal end, its self-test is
    aborted. A Decision, or None if nothing changes."""
    new = shared._replace(
        reservations=reservations.session_lost(shared.reservations, *nexus_ports(nexus)),
        prevented_by=tuple(p for p in shared.prevented_by if p != nexus_ports(nexus)),
        records=records.nexus_lost(shared.records, nexus_ports(nexus)),
    )
    return Decision(new) if new != shared else None


# -- mode parameters -------------------------------------------------------------------------------


def _mode_select(shared, nexus, message, _known_ports):
    """MODE SELECT (SPC-4 6.11, 6.12): a unit attention for the other nexuses if a current value
    changes."""
    new = modes.apply_mode_select(shared.modes, message)
    if new is shared.modes:
        return Refusal(sam.GOOD)
    attentions = []
    if new['current'] != shared.modes['current']:
        attentions = [(Others(nexus_ports(nexus)),) + attention.MODE_PARAMETERS_CHANGED]
    return Decision(
        shared._replace(modes=new), attentions, persist=new['saved'] != shared.modes['saved']
    )


def facts_changed(shared, facts):
    """The administrator changed default mode parameters; saved values stay in force. A Decision, with
    a unit attention for all nexuses if a current value changes."""
    new = modes.restore(facts, modes.saved(shared.modes))
    attentions = []
    if new['current'] != shared.modes['current']:
        attentions = [(Others(None),) + attention.MODE_PARAMETERS_CHANGED]
    return Decision(shared._replace(modes=new), attentions)


def reservations_cleared(shared):
    """The administrator removes the reservations and registrations. A Decision, with a unit attention for
    those that had one; None if there is nothing to remove."""
    state = shared.reservations
    owners = [(each['initiator_port'], each['target_port']) for each in state['registrations']]
    if state['reserved_by']:
        owners.append(tuple(state['reserved_by']))
    if not owners:
        return None
    new = dict(reservations.initial(), generation=(state['generation'] + 1) & 0xFFFFFFFF)
    return Decision(
        shared._replace(reservations=new),
        [(owner,) + attention.RESERVATIONS_PREEMPTED for owner in owners],
        persist=True,
    )


# -- target port groups ----------------------------------------------------------------------------


def _set_target_port_groups(shared, nexus, message, _known_ports):
    """SET TARGET PORT GROUPS (SPC-4 6.45): a unit attention for the other nexuses."""
    new = alua.changed(shared.access, alua.checked_set(shared.access, message), alua.SET_BY_COMMAND)
    if new is shared.access:
        return Refusal(sam.GOOD)
    return Decision(
        shared._replace(access=new),
        [(Others(nexus_ports(nexus)),) + attention.ASYMMETRIC_ACCESS_STATE_CHANGED],
        persist=True,
    )


def access_set(shared, states):
    """The administrator sets states of target port groups: {tag as text: state}. A Decision, with a
    unit attention for all nexuses, or None if nothing changes. Raises KeyError for an unknown tag."""
    new = alua.changed(shared.access, states, alua.SET_IMPLICITLY)
    if new is shared.access:
        return None
    return Decision(
        shared._replace(access=new),
        [(Others(None),) + attention.ASYMMETRIC_ACCESS_STATE_CHANGED],
        persist=True,
    )


def access_configured(shared, configured):
    """The configuration of the target port groups was reloaded. A Decision, with a unit attention
    for all nexuses if a state changes, or None if nothing changes."""
    new = alua.reconfigured(shared.access, configured)
    if new == shared.access:
        return None
    attentions = []
    if not alua.is_same(new, shared.access):
        attentions = [(Others(None),) + attention.ASYMMETRIC_ACCESS_STATE_CHANGED]
    return Decision(shared._replace(access=new), attentions, persist=True)


# -- space -----------------------------------------------------------------------------------------


def space_counted(shared, available, used):
    """Compare the counts of available and used threshold sets with the thresholds. A Decision, or
    None if none was crossed. All nexuses get one unit attention when a threshold is reached (SBC-3),
    and another one only after the count has left it."""
    counts = {modes.AVAILABLE: available, modes.USED: used}
    crossed = tuple(
        t.index
        for t in modes.thresholds(shared.modes)
        if t.resource in counts
        and (counts[t.resource] >= t.count if t.increasing else counts[t.resource] <= t.count)
    )
    if crossed == shared.crossed:
        return None
    attentions = []
    if shared.crossed is not None and set(crossed) - set(shared.crossed):
        attentions = [(Others(None),) + attention.THRESHOLD]
    return Decision(shared._replace(crossed=crossed), attentions)


# -- records ---------------------------------------------------------------------------------------


def _records(shared, nexus, message, _known_ports):
    """SET IDENTIFYING INFORMATION, SET TIMESTAMP, LOG SELECT (SPC-4 6.43, 6.46, 6.7): a unit
    attention for the other nexuses."""
    new, code = records.apply_change(shared.records, message['ask'], message)
    if new == shared.records:
        return Refusal(sam.GOOD)
    return Decision(
        shared._replace(records=new),
        [(Others(nexus_ports(nexus)),) + code] if code else (),
        persist=True,
    )


# -- medium ----------------------------------------------------------------------------------------

#: START STOP UNIT: (state of the medium, action) -> new state. Other pairs change nothing: a failed
#: medium, for example, stays failed.
START_STOP = {
    (READY, 'stop'): STOPPED,
    (READY, 'eject'): EJECTED,
    (STOPPED, 'start'): READY,
    (STOPPED, 'load'): READY,
    (STOPPED, 'eject'): EJECTED,
    (EJECTED, 'load'): READY,
}
ACTIONS = frozenset(action for _, action in START_STOP)


def _start_stop(shared, nexus, message, _known_ports):
    """START STOP UNIT (SBC-3 5.25). While a nexus prevents medium removal (SBC-3 5.10), an eject is
    refused. A load removes nothing and is accepted: Linux prevents removal when it opens a removable
    disk, so a disk that is ejected could otherwise not be loaded through /dev/sdX. libiscsi's test
    PreventAllow.Eject expects that the load is refused; it is wrong."""
    action = message['action']
    if action not in ACTIONS:
        raise ValueError('action %r' % (action,))
    if action == 'eject' and shared.prevented_by:
        return refusal(shared, CheckCondition(ILLEGAL_REQUEST, 0x53, 0x02))
    medium = START_STOP.get((shared.medium, action), shared.medium)
    if medium == shared.medium:
        return Refusal(sam.GOOD)
    attentions = []
    if shared.medium == EJECTED:
        attentions = [(Others(nexus_ports(nexus)),) + attention.MEDIUM_MAY_HAVE_CHANGED]
    new = shared._replace(medium=medium)
    if medium == READY:
        counted = 'loads' if shared.medium == EJECTED else 'cycles'
        new = new._replace(records=dict(shared.records, **{counted: shared.records[counted] + 1}))
    return Decision(new, attentions, persist=WHEN_POSSIBLE if medium == READY else False)


def _prevent(shared, nexus, message, _known_ports):
    """PREVENT ALLOW MEDIUM REMOVAL (SBC-3 5.10): each nexus has a prevention of its own."""
    others = tuple(p for p in shared.prevented_by if p != nexus_ports(nexus))
    prevented_by = others + (nexus_ports(nexus),) if message.get('prevent') else others
    return Decision(shared._replace(prevented_by=prevented_by))


def removal_requested(shared):
    """The administrator asks the hosts to let the medium go (the button of the drive)."""
    return Decision(shared, [(Others(None),) + attention.MEDIUM_REMOVAL_REQUESTED])


def medium_ejected(shared):
    """The administrator has taken the medium out of an optical drive."""
    return Decision(shared._replace(medium=EJECTED, prevented_by=()))


def medium_loaded(shared):
    """The administrator has put another medium into an optical drive: it is ready, for all nexuses."""
    records = dict(shared.records, loads=shared.records['loads'] + 1)
    return Decision(
        shared._replace(medium=READY, records=records, prevented_by=()),
        [(Others(None),) + attention.MEDIUM_MAY_HAVE_CHANGED],
        persist=WHEN_POSSIBLE,
    )


def medium_failed(shared, why):
    """Acknowledged data may be lost. The state lasts, also across restarts, until the administrator
    acknowledges it."""
    return Decision(shared._replace(medium=FAILED, failure=why), persist=True)


def failure_acknowledged(shared):
    """The administrator acknowledged the failure: all nexuses get a unit attention, unless an
    operation is in progress or has failed."""
    medium = shared_state.medium_of(shared.operation, '')
    attentions = []
    if medium == READY:
        attentions = [(Others(None),) + attention.MEDIUM_MAY_HAVE_CHANGED]
    return Decision(shared._replace(medium=medium, failure=''), attentions, persist=True)


def medium_shrunk(shared):
    """The medium has become smaller. It is not saved: the record of the medium's size lasts."""
    return Decision(shared._replace(medium=SHRUNK))


def shrinking_acknowledged(shared):
    """The administrator accepts the present size: all nexuses get a unit attention, unless an
    operation is in progress or has failed."""
    medium = shared_state.medium_of(shared.operation, shared.failure)
    attentions = []
    if medium == READY:
        attentions = [(Others(None),) + attention.MEDIUM_MAY_HAVE_CHANGED]
    return Decision(shared._replace(medium=medium), attentions)


def resized(shared, size):
    """The medium has this many bytes now: a unit attention for all nexuses."""
    return Decision(shared, [(Others(None),) + attention.CAPACITY_CHANGED], size=size)


# -- formatting and sanitizing ---------------------------------------------------------------------


def _operate(shared, nexus, message, _known_ports):
    """FORMAT UNIT, SANITIZE (SBC-3 5.3, 5.24): the tasks of all nexuses end, and no command accesses
    the medium until the operation has ended."""
    operation = operations.new_operation(message, nexus_ports(nexus))
    if shared.medium not in (READY, FAILED) and not operations.is_failed(shared.medium):
        return refusal(
            shared, CheckCondition(*operations.SENSE.get(shared.medium, (NOT_READY, 0x3A, 0x00)))
        )
    if shared.medium == FAILED:
        return unit_has_failed(shared)
    if is_restricted(shared.operation) and (operation['kind'] == 'format' or operation['ause']):
        # SBC-3 5.24: only a SANITIZE that is as strict as the failed one
        return refusal(shared, invalid_field_in_cdb(1))
    return Decision(
        shared._replace(medium=operations.medium_state_of(operation), operation=operation),
        aborts=None,
        persist=True,
        operation_start='immediate' if message.get('immediate') else 'awaited',
    )


def is_restricted(operation):
    """True if a SANITIZE without AUSE has failed; only another such SANITIZE ends that state."""
    return (
        operation is not None
        and operation['kind'] == 'sanitize'
        and bool(operation['failed'])
        and not operation['ause']
    )


def _exit_failure_mode(shared, nexus, message, _known_ports):
    """SANITIZE, EXIT FAILURE MODE (SBC-3 5.24): GOOD if no SANITIZE has failed."""
    if shared.medium != operations.FAILED['sanitize']:
        return Refusal(sam.GOOD)
    if is_restricted(shared.operation):
        return refusal(shared, invalid_field_in_cdb(1))
    return Decision(shared._replace(medium=READY, operation=None), persist=True)


def operation_over(shared, failed):
    """The operation has ended; failed: why it failed, or ''. A Decision. After a format, the other
    nexuses get MEDIUM MAY HAVE CHANGED. SBC-3 specifies no unit attention after a sanitize, and
    libiscsi's tests fail on one; commands that other nexuses sent meanwhile ended with 02/04/1B."""
    operation = dict(shared.operation, failed=failed) if failed else None
    by = tuple(shared.operation['by'])
    # false, for example, if the medium has failed meanwhile
    is_medium_of_operation = operations.is_running(shared.medium)
    attentions = []
    if not failed and shared.operation['kind'] == 'format':
        attentions = [(Others(by),) + attention.MEDIUM_MAY_HAVE_CHANGED]
    return Decision(
        shared._replace(
            medium=(operations.medium_state_of(operation) or READY)
            if is_medium_of_operation
            else shared.medium,
            operation=operation,
        ),
        attentions,
        persist=True,
    )


def operation_result(shared, operation, failed):
    """The Refusal (it may be GOOD) that ends the command that requested the operation."""
    if failed:
        return refusal(shared, CheckCondition(*operations.COMMAND_FAILED[operation['kind']]))
    return Refusal(sam.GOOD)


# -- task management -------------------------------------------------------------------------------


def _reset(shared, nexus, message, _known_ports):
    return RESETS[message['function']](shared, nexus)


def _clear_task_set(shared, nexus):
    """CLEAR TASK SET (RFC 7143 11.5.1, SAM-5): the tasks of the task set end. If TST selects one task
    set per nexus, that is the task set of this nexus. If TST selects one task set for all, the tasks
    of the other nexuses end too, with TASK ABORTED status or a unit attention, as TAS selects."""
    if modes.has_separate_task_sets(shared.modes):
        return Decision(shared, aborts=(nexus_ports(nexus),))
    attentions = []
    if not is_task_aborted_status(shared.modes):
        attentions = [
            (Others(nexus_ports(nexus)),) + attention.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR
        ]
    return Decision(shared, attentions, None)


def _logical_unit_reset(shared, nexus, code=attention.DEVICE_RESET):
    """LOGICAL UNIT RESET (SAM-5): all tasks, the RESERVE and preventions of removal end, and the saved
    mode parameters become current. All nexuses get a unit attention, the requesting one too."""
    new = shared._replace(
        reservations=reservations.logical_unit_reset(shared.reservations),
        prevented_by=(),
        modes=modes.reset(shared.modes),
    )
    return Decision(new, [(Others(None),) + code], None)


def _target_reset(shared, nexus):
    return _logical_unit_reset(shared, nexus, attention.BUS_RESET)


def _nexus_reset(shared, nexus):
    """I_T NEXUS RESET (SAM-5): the effects of the loss of this nexus; the session continues and gets a
    unit attention."""
    decision = session_lost(shared, nexus) or Decision(shared)
    return Decision(decision.shared, [(nexus_ports(nexus),) + attention.NEXUS_LOSS])


RESETS = {
    'clear-task-set': _clear_task_set,
    'logical-unit-reset': _logical_unit_reset,
    'target-warm-reset': _target_reset,
    'target-cold-reset': _target_reset,
    'i-t-nexus-reset': _nexus_reset,
}

KINDS = {
    'set-identifying-information': _records,
    'set-timestamp': _records,
    'log-select': _records,
    'persistent-reserve-out': _reservations,
    'reserve': _reservations,
    'release': _reservations,
    'mode-select': _mode_select,
    'set-target-port-groups': _set_target_port_groups,
    'operate': _operate,
    'exit-failure-mode': _exit_failure_mode,
    'start-stop': _start_stop,
    'prevent': _prevent,
    'reset': _reset,
}
