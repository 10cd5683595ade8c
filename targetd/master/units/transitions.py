"""What becomes of a unit's shared state when a nexus asks for a change, or when something happens
to it. Pure.

May import scsi.sam, scsi.sense, scsi.reservations, scsi.modes, scsi.access, scsi.attention,
scsi.operations, scsi.records. A function takes the Shared state and gives a Decision (a new Shared
state and what follows from it) or a Refusal (the status and sense that end the command); it never
changes what it was given. units.py persists, distributes and answers.
"""

from collections import namedtuple

from targetd.scsi import alua, attention, modes, operations, records, reservations, sam
from targetd.scsi.medium_state import EJECTED, FAILED, READY, STOPPED
from targetd.scsi.sense import (
    HARDWARE_ERROR,
    ILLEGAL_REQUEST,
    NOT_READY,
    CheckCondition,
    invalid_field_in_cdb,
)

#: Functions that concern every unit of the target.
OF_A_TARGET = ('target-warm-reset', 'target-cold-reset', 'i-t-nexus-reset')

#: reservations, modes: see scsi; medium: READY …, or a word of scsi.operations; prevented_by:
#: ((initiator_port, target_port) …) that prevent removal; operation: see scsi.operations, or None;
#: access: see scsi.access; crossed: indices of the thresholds (scsi.modes) that are reached, None
#: before they were looked at; records: see scsi.records; key_check: what tells the key that the
#: medium is encrypted with from others (master.keys), '' where it is not.
Shared = namedtuple(
    'Shared', 'reservations modes medium prevented_by operation access crossed records key_check'
)
Shared.__new__.__defaults__ = (READY, (), None, alua.initial(), None, records.initial(), '')


class Malformed(ValueError):
    """A worker asked for what no command can ask for: the worker is broken or hostile."""


class Refusal(namedtuple('Refusal', 'status sense data')):
    """The command ends so, and nothing changes."""

    __slots__ = ()

    def __new__(cls, status, sense=None, data=None):
        return super(Refusal, cls).__new__(cls, status, sense, data)


class Decision(namedtuple('Decision', 'shared attentions aborts persist size operation_start')):
    """shared: the new state; attentions: [((initiator_port, target_port) or Others, asc, ascq) …];
    aborts: nexuses whose tasks end, as (initiator_port, target_port), or None for everybody's;
    persist: bool; size: the new one in bytes, or None; operation_start: '' or how shared.operation starts:
    'immediate' (the asker is answered), 'awaited' (at the end)."""

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
        """Is the asker answered before the operation is over?"""
        return self.operation_start == 'immediate'

    def changed(self, old):
        """The parts of the state that a replica must be told of."""
        parts = ('reservations', 'modes', 'medium', 'access', 'records')
        return {
            part: getattr(self.shared, part)
            for part in parts
            if getattr(self.shared, part) != getattr(old, part)
        }

    def attentions_of(self, nexus):
        """[[asc, ascq] …] owed to this nexus."""
        mine = nexus_ports(nexus)
        return [
            [asc, ascq]
            for owed, asc, ascq in self.attentions
            if owed == mine or isinstance(owed, Others) and owed.by != mine
        ]

    def abort_of(self, nexus, is_asker):
        """The `abort` for this nexus's worker, or None. TASK ABORTED status is for those that did
        not ask (SPC-4)."""
        if self.aborts is not None and nexus_ports(nexus) not in self.aborts:
            return None
        tas = (
            bool(self.operation_start) or not is_asker and is_task_aborted_status(self.shared.modes)
        )
        return {'tas': tas}


class Others(namedtuple('Others', 'by')):
    """Every nexus but `by` (which may be None: every nexus)."""

    __slots__ = ()


def initial(facts, saved, boot_id, configured=None):
    """The Shared state of a unit at its export. saved: what saved_state gave, or {}; boot_id: of
    this boot of the machine, which tells a restart of targetd, that reservations outlast, from a
    loss of power, that only those with APTPL do. Raises ValueError if `saved` is damaged."""
    same_boot = bool(boot_id) and saved.get('boot_id') == boot_id
    operation = operations.restored(saved.get('operation'))
    return Shared(
        reservations.aptpl_load(saved.get('reservations'), power_lost=not same_boot),
        modes.restore(facts, saved.get('modes')),
        operations.medium(operation) or READY,
        (),
        operation,
        alua.restore(configured or alua.initial(), saved.get('access')),
        records=records.restored(saved.get('records')),
        key_check=saved.get('key_check') or '',
    )


def saved_state(shared, boot_id):
    """What goes to stable storage: {} if there is nothing to remember."""
    state = {}
    if shared.reservations['registrations']:
        state['reservations'] = reservations.aptpl_dump(shared.reservations)
    kept = modes.saved(shared.modes)
    if kept:
        state['modes'] = kept
    if shared.operation is not None:
        state['operation'] = shared.operation
    remembered = records.saved(shared.records)
    if remembered:
        state['records'] = remembered
    paths = alua.saved(shared.access)
    if paths:
        state['access'] = paths
    if shared.key_check:
        state['key_check'] = shared.key_check
    if state:
        state['boot_id'] = boot_id
    return state


#: Of a unit that is no more, nobody knows what D_SENSE was.
UNIT_IS_GONE = (sam.CHECK_CONDITION, CheckCondition(ILLEGAL_REQUEST, 0x25, 0x00).sense())


def refusal(shared, error):
    """The Refusal that ends a command with this CheckCondition, in the sense format that the unit's
    D_SENSE asks for."""
    return Refusal(sam.CHECK_CONDITION, error.sense(modes.descriptor_sense(shared.modes)))


def cannot_persist(shared):
    """What the command asked for cannot be kept on stable storage, and so it is not done."""
    return refusal(shared, CheckCondition(HARDWARE_ERROR, 0x44, 0x00))


def nexus_ports(nexus):
    """(initiator port name, target port name)."""
    return (nexus.initiator_port, nexus.target_port)


def is_task_aborted_status(mode_state):
    """The TAS bit of the control mode page."""
    return modes.parameters(mode_state).tas


def decide(shared, nexus, message, known_ports):
    """A Decision or Refusal on a worker's `ask`. known_ports: initiator ports logged in to the
    unit. Raises Malformed."""
    try:
        return KINDS[message.get('ask')](shared, nexus, message, known_ports)
    except (KeyError, ValueError, TypeError) as e:
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
        [(tuple(owed), asc, ascq) for owed, asc, ascq in outcome.attentions],
        frozenset(tuple(victim) for victim in outcome.aborts),
        outcome.persist,
    )


def session_lost(shared, nexus):
    """What goes with a nexus: its SPC-2 reservation, what it prevented. A Decision, or None if
    nothing changes."""
    new = shared._replace(
        reservations=reservations.session_lost(shared.reservations, *nexus_ports(nexus)),
        prevented_by=tuple(p for p in shared.prevented_by if p != nexus_ports(nexus)),
        records=records.nexus_lost(shared.records, nexus_ports(nexus)),
    )
    return Decision(new) if new != shared else None


# -- mode parameters -------------------------------------------------------------------------------


def _mode_select(shared, nexus, message, _known_ports):
    """MODE SELECT (SPC-4 6.11, 6.12): the others are told, if a current value is another one now."""
    new = modes.apply(shared.modes, message)
    if new is shared.modes:
        return Refusal(sam.GOOD)
    attentions = []
    if new['current'] != shared.modes['current']:
        attentions = [(Others(nexus_ports(nexus)),) + attention.MODE_PARAMETERS_CHANGED]
    return Decision(
        shared._replace(modes=new), attentions, persist=new['saved'] != shared.modes['saved']
    )


def facts_changed(shared, facts):
    """The administrator changed what mode parameters are by default; saved ones stand. A Decision:
    every nexus is told, if a current value is another one now."""
    new = modes.restore(facts, modes.saved(shared.modes))
    attentions = []
    if new['current'] != shared.modes['current']:
        attentions = [(Others(None),) + attention.MODE_PARAMETERS_CHANGED]
    return Decision(shared._replace(modes=new), attentions)


# -- target port groups ----------------------------------------------------------------------------


def _set_target_port_groups(shared, nexus, message, _known_ports):
    """SET TARGET PORT GROUPS (SPC-4 6.45): the others are told."""
    new = alua.changed(shared.access, alua.checked_set(shared.access, message), alua.SET_BY_COMMAND)
    if new is shared.access:
        return Refusal(sam.GOOD)
    return Decision(
        shared._replace(access=new),
        [(Others(nexus_ports(nexus)),) + attention.ASYMMETRIC_ACCESS_STATE_CHANGED],
        persist=True,
    )


def access_set(shared, states):
    """The administrator gives groups other states, {tag as text: state}. A Decision: every nexus is
    told; None if nothing changes. Raises KeyError."""
    new = alua.changed(shared.access, states, alua.SET_IMPLICITLY)
    if new is shared.access:
        return None
    return Decision(
        shared._replace(access=new),
        [(Others(None),) + attention.ASYMMETRIC_ACCESS_STATE_CHANGED],
        persist=True,
    )


def access_configured(shared, configured):
    """The configuration says something else of the groups now. A Decision, or None if nothing
    changes."""
    new = alua.reconfigured(shared.access, configured)
    if new == shared.access:
        return None
    attentions = []
    if not alua.is_same(new, shared.access):
        attentions = [(Others(None),) + attention.ASYMMETRIC_ACCESS_STATE_CHANGED]
    return Decision(shared._replace(access=new), attentions, persist=True)


# -- space -----------------------------------------------------------------------------------------


def space_counted(shared, available, used):
    """So many threshold sets are available to the medium, and so many it uses. A Decision, None if
    no threshold was crossed: every nexus is told once when one is reached (SBC-3), and again after
    it was left."""
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
    """SET IDENTIFYING INFORMATION, SET TIMESTAMP, LOG SELECT (SPC-4 6.43, 6.46, 6.7): the others
    are told."""
    new, owed = records.apply(shared.records, message['ask'], message)
    if new == shared.records:
        return Refusal(sam.GOOD)
    return Decision(
        shared._replace(records=new),
        [(Others(nexus_ports(nexus)),) + owed] if owed else (),
        persist=True,
    )


def noted(shared, nexus, message):
    """A worker tells what happened to its nexus. A Decision; errors of the medium are kept only
    when something else is. Raises Malformed."""
    try:
        kind, note = message['kind'], message['note']
        if (
            kind not in records.TOLD
            or kind == 'self-test'
            and tuple(note['by']) != nexus_ports(nexus)
        ):
            raise ValueError('not its own to tell')
        new, _ = records.apply(shared.records, kind, note)
    except (KeyError, ValueError, TypeError, AttributeError) as e:
        raise Malformed('note: %s' % e)
    return Decision(shared._replace(records=new), persist=kind == 'self-test')


# -- medium ----------------------------------------------------------------------------------------

#: START STOP UNIT: (medium now, action) -> medium then; what is not here changes nothing. A failed
#: medium stays failed.
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
    """START STOP UNIT, SBC-3 5.25. While anybody prevents removal, nobody ejects or loads:
    libiscsi's PreventAllow.Eject wants both. (Linux prevents removal when it opens a removable
    /dev/sdX, so it loads through /dev/sgX.)"""
    action = message['action']
    if action not in ACTIONS:
        raise ValueError('action %r' % (action,))
    if action in ('eject', 'load') and shared.prevented_by:
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
    return Decision(new, attentions, persist=medium == READY)


def _prevent(shared, nexus, message, _known_ports):
    """PREVENT ALLOW MEDIUM REMOVAL (SBC-3 5.10): each nexus prevents and allows for itself."""
    others = tuple(p for p in shared.prevented_by if p != nexus_ports(nexus))
    prevented_by = others + (nexus_ports(nexus),) if message.get('prevent') else others
    return Decision(shared._replace(prevented_by=prevented_by))


def medium_changed(shared, medium):
    """The master found the medium to be so. A medium that comes back is announced; but not while an
    operation is at it."""
    attentions = []
    if medium == READY and shared.operation is not None:
        medium = operations.medium(shared.operation)
    if medium == READY and shared.medium in (EJECTED, FAILED):
        attentions = [(Others(None),) + attention.MEDIUM_MAY_HAVE_CHANGED]
    return Decision(shared._replace(medium=medium), attentions)


def resized(shared, size):
    """The medium has this many bytes now: every nexus is told."""
    return Decision(shared, [(Others(None),) + attention.CAPACITY_CHANGED], size=size)


# -- formatting and sanitizing ---------------------------------------------------------------------


def _operate(shared, nexus, message, _known_ports):
    """FORMAT UNIT, SANITIZE (SBC-3 5.3, 5.24): everybody's tasks end, and the medium is nobody's
    until it is over."""
    operation = operations.begun(message, nexus_ports(nexus))
    if shared.medium not in (READY, FAILED) and not operations.is_failed(shared.medium):
        return refusal(
            shared, CheckCondition(*operations.SENSE.get(shared.medium, (NOT_READY, 0x3A, 0x00)))
        )
    if shared.medium == FAILED:
        return refusal(shared, CheckCondition(HARDWARE_ERROR, 0x44, 0x00))
    if is_restricted(shared.operation) and (operation['kind'] == 'format' or operation['ause']):
        # SBC-3: only a sanitize as strict as the failed one
        return refusal(shared, invalid_field_in_cdb(1))
    return Decision(
        shared._replace(medium=operations.medium(operation), operation=operation),
        aborts=None,
        persist=True,
        operation_start='immediate' if message.get('immediate') else 'awaited',
    )


def is_restricted(operation):
    """Did a SANITIZE without AUSE fail? Then nothing but another such SANITIZE ends it."""
    return (
        operation is not None
        and operation['kind'] == 'sanitize'
        and bool(operation['failed'])
        and not operation['ause']
    )


def _exit_failure_mode(shared, nexus, message, _known_ports):
    """SANITIZE, EXIT FAILURE MODE (SBC-3 5.24): GOOD where nothing has failed."""
    if shared.medium != operations.FAILED['sanitize']:
        return Refusal(sam.GOOD)
    if is_restricted(shared.operation):
        return refusal(shared, invalid_field_in_cdb(1))
    return Decision(shared._replace(medium=READY, operation=None), persist=True)


def operation_over(shared, failed):
    """A Decision: the operation has ended; failed: why, or ''. Of a format those who did not ask
    are told that the data are others now. SBC-3 names no unit attention for a sanitize, and
    libiscsi's tests take one on a second session for a mistake; whoever asked meanwhile got
    02/04/1B."""
    operation = dict(shared.operation, failed=failed) if failed else None
    by = tuple(shared.operation['by'])
    # not, say, a medium that failed for good meanwhile
    is_its = operations.is_running(shared.medium)
    attentions = []
    if not failed and shared.operation['kind'] == 'format':
        attentions = [(Others(by),) + attention.MEDIUM_MAY_HAVE_CHANGED]
    return Decision(
        shared._replace(
            medium=(operations.medium(operation) or READY) if is_its else shared.medium,
            operation=operation,
        ),
        attentions,
        persist=True,
    )


def operation_result(shared, operation, failed):
    """How the command ends that asked for it, as a Refusal."""
    return (
        refusal(shared, CheckCondition(*operations.COMMAND_FAILED[operation['kind']]))
        if failed
        else Refusal(sam.GOOD)
    )


# -- task management -------------------------------------------------------------------------------


def _reset(shared, nexus, message, _known_ports):
    return RESETS[message['function']](shared, nexus)


def _clear_task_set(shared, nexus):
    """CLEAR TASK SET (RFC 7143 11.5.1, SAM-5): the tasks of the task set end. That is the nexus's
    own; where TST says that all have one, everybody's, and who is not told by TASK ABORTED gets a
    unit attention."""
    if modes.has_separate_task_sets(shared.modes):
        return Decision(shared, aborts=(nexus_ports(nexus),))
    attentions = []
    if not is_task_aborted_status(shared.modes):
        attentions = [
            (Others(nexus_ports(nexus)),) + attention.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR
        ]
    return Decision(shared, attentions, None)


def _logical_unit_reset(shared, nexus, code=attention.DEVICE_RESET):
    """LOGICAL UNIT RESET (SAM-5): everybody's tasks end, SPC-2 reservations and prevented removals
    go, mode parameters are the saved ones. Every nexus is told, the one that asked too."""
    new = shared._replace(
        reservations=reservations.logical_unit_reset(shared.reservations),
        prevented_by=(),
        modes=modes.reset(shared.modes),
    )
    return Decision(new, [(Others(None),) + code], None)


def _target_reset(shared, nexus):
    return _logical_unit_reset(shared, nexus, attention.BUS_RESET)


def _nexus_reset(shared, nexus):
    """I_T NEXUS RESET (SAM-5): what the loss of this nexus would do, but that it goes on and is
    told so."""
    return Decision(
        (session_lost(shared, nexus) or Decision(shared)).shared,
        [(nexus_ports(nexus),) + attention.NEXUS_LOSS],
    )


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
