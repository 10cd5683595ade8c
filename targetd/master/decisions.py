"""What becomes of a unit's shared state when a nexus asks for a change, or when something happens to it. Pure.

May import scsi.sam, scsi.sense, scsi.reservations, scsi.modes, scsi.attention, scsi.operations. A function takes the Shared
state and gives a Decision (a new Shared state and what follows from it) or a Refusal (the status and sense that end the command); it never
changes what it was given. units.py persists, distributes and answers.
"""

from collections import namedtuple

from targetd.scsi import attention, modes, operations, reservations, sam
from targetd.scsi.sense import HARDWARE_ERROR, ILLEGAL_REQUEST, NOT_READY, CheckCondition

READY, STOPPED, EJECTED, FAILED = 'ready', 'stopped', 'ejected', 'failed'
TARGET_RESETS = ('target-warm-reset', 'target-cold-reset')

#: reservations, modes: see scsi; medium: READY …, or a word of scsi.operations; prevented_by: ((initiator_port, target_port) …)
#: that prevent removal; operation: see scsi.operations, or None.
Shared = namedtuple('Shared', 'reservations modes medium prevented_by operation')
Shared.__new__.__defaults__ = (READY, (), None)


class Malformed(ValueError):
    """A worker asked for what no command can ask for: the worker is broken or hostile."""


class Refusal(namedtuple('Refusal', 'status sense data')):
    """The command ends so, and nothing changes."""

    __slots__ = ()

    def __new__(cls, status, sense=None, data=None):
        return super(Refusal, cls).__new__(cls, status, sense, data)

    concerns_others = False


class Decision(namedtuple('Decision', 'shared attentions aborts persist size begins')):
    """shared: the new state; attentions: [((initiator_port, target_port) or Others, asc, ascq) …]; aborts: nexuses whose
    tasks end, as (initiator_port, target_port), or None for everybody's; persist: bool; size: the new one in bytes, or None;
    begins: '' or how shared.operation begins: 'immediate' (the asker is answered), 'awaited' (at the end)."""

    __slots__ = ()

    def __new__(cls, shared, attentions=(), aborts=(), persist=False, size=None, begins=''):
        return super(Decision, cls).__new__(cls, shared, tuple(attentions), aborts, persist, size, begins)

    status, sense, data = sam.GOOD, None, None
    concerns_others = True

    @property
    def is_immediate(self):
        """Is the asker answered before the operation is over?"""
        return self.begins == 'immediate'

    def changed(self, old):
        """The parts of the state that a replica must be told of."""
        parts = ('reservations', 'modes', 'medium')
        return {part: getattr(self.shared, part) for part in parts if getattr(self.shared, part) != getattr(old, part)}

    def attentions_of(self, nexus):
        """[[asc, ascq] …] owed to this nexus."""
        mine = who(nexus)
        return [[asc, ascq] for owed, asc, ascq in self.attentions
                if owed == mine or isinstance(owed, Others) and owed.by != mine]

    def abort_of(self, nexus, is_asker):
        """The `abort` for this nexus's worker, or None. TASK ABORTED status is for those that did not ask (SPC-4 7.5.8)."""
        if self.aborts is not None and who(nexus) not in self.aborts:
            return None
        tas = bool(self.begins) or not is_asker and is_task_aborted_status(self.shared.modes)
        return {'initiator_port': None, 'own_too': True, 'tas': tas}


class Others(namedtuple('Others', 'by')):
    """Every nexus but `by` (which may be None: every nexus)."""

    __slots__ = ()


def initial(facts, saved, boot_id):
    """The Shared state of a unit at its export. saved: what saved_state gave, or {}; boot_id: of this boot of the machine,
    which tells a restart of targetd, that reservations outlast, from a loss of power, that only those with APTPL do.
    Raises ValueError if `saved` is damaged."""
    same_boot = bool(boot_id) and saved.get('boot_id') == boot_id
    operation = operations.restored(saved.get('operation'))
    return Shared(reservations.aptpl_load(saved.get('reservations'), power_lost=not same_boot),
                  modes.restore(facts, saved.get('modes')), operations.medium(operation) or READY, (), operation)


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
    if state:
        state['boot_id'] = boot_id
    return state


#: Of a unit that is no more, nobody knows what D_SENSE was.
UNIT_IS_GONE = (sam.CHECK_CONDITION, CheckCondition(ILLEGAL_REQUEST, 0x25, 0x00).sense())


def refusal(shared, error):
    """The Refusal that ends a command with this CheckCondition, in the sense format that the unit's D_SENSE asks for."""
    return Refusal(sam.CHECK_CONDITION, error.sense(modes.descriptor_sense(shared.modes)))


def cannot_persist(shared):
    """What the command asked for cannot be kept on stable storage, and so it is not done."""
    return refusal(shared, CheckCondition(HARDWARE_ERROR, 0x44, 0x00))


def who(nexus):
    """(initiator port name, target port name)."""
    return (nexus.initiator_port, nexus.target_port)


def is_task_aborted_status(mode_state):
    """The TAS bit of the control mode page."""
    return modes.parameters(mode_state).tas


def decide(shared, nexus, message, known_ports):
    """A Decision or Refusal on a worker's `ask`. known_ports: initiator ports logged in to the unit. Raises Malformed."""
    try:
        return KINDS[message.get('ask')](shared, nexus, message, known_ports)
    except (KeyError, ValueError, TypeError) as e:
        raise Malformed('%r: %s' % (message.get('ask'), e))


# -- reservations ----------------------------------------------------------------------------------------------------

def _reservations(shared, nexus, message, known_ports):
    outcome = reservations.apply(shared.reservations, nexus, message['ask'], message, known_ports)
    if outcome.error:
        return refusal(shared, outcome.error)
    if outcome.status != sam.GOOD:
        return Refusal(outcome.status)
    return Decision(shared._replace(reservations=outcome.state),
                    [(tuple(owed), asc, ascq) for owed, asc, ascq in outcome.attentions],
                    frozenset(tuple(victim) for victim in outcome.aborts), outcome.persist)


def session_lost(shared, nexus):
    """What goes with a nexus: its SPC-2 reservation, what it prevented. A Decision, or None if nothing changes."""
    new = shared._replace(reservations=reservations.session_lost(shared.reservations, *who(nexus)),
                          prevented_by=tuple(p for p in shared.prevented_by if p != who(nexus)))
    return Decision(new) if new != shared else None


# -- mode parameters -------------------------------------------------------------------------------------------------

def _mode_select(shared, nexus, message, _known_ports):
    """MODE SELECT (SPC-4 6.10): the others are told, if a current value is another one now."""
    new = modes.apply(shared.modes, message)
    if new is shared.modes:
        return Refusal(sam.GOOD)
    attentions = []
    if new['current'] != shared.modes['current']:
        attentions = [(Others(who(nexus)),) + attention.MODE_PARAMETERS_CHANGED]
    return Decision(shared._replace(modes=new), attentions, persist=new['saved'] != shared.modes['saved'])


def facts_changed(shared, facts):
    """The administrator changed what mode parameters are by default; saved ones stand. A Decision: every nexus is told, if a
    current value is another one now."""
    new = modes.restore(facts, modes.saved(shared.modes))
    attentions = []
    if new['current'] != shared.modes['current']:
        attentions = [(Others(None),) + attention.MODE_PARAMETERS_CHANGED]
    return Decision(shared._replace(modes=new), attentions)


# -- medium ----------------------------------------------------------------------------------------------------------

#: START STOP UNIT: (medium now, action) -> medium then; what is not here changes nothing. A failed medium stays failed.
START_STOP = {
    (READY, 'stop'): STOPPED, (READY, 'eject'): EJECTED, (STOPPED, 'start'): READY, (STOPPED, 'load'): READY,
    (STOPPED, 'eject'): EJECTED, (EJECTED, 'load'): READY,
}
ACTIONS = frozenset(action for _, action in START_STOP)


def _start_stop(shared, nexus, message, _known_ports):
    """START STOP UNIT, SBC-3 5.25. While anybody prevents removal, nobody ejects or loads."""
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
        attentions = [(Others(who(nexus)),) + attention.MEDIUM_MAY_HAVE_CHANGED]
    return Decision(shared._replace(medium=medium), attentions)


def _prevent(shared, nexus, message, _known_ports):
    """PREVENT ALLOW MEDIUM REMOVAL (SPC-4 6.17): each nexus prevents and allows for itself."""
    others = tuple(p for p in shared.prevented_by if p != who(nexus))
    prevented_by = others + (who(nexus),) if message.get('prevent') else others
    return Decision(shared._replace(prevented_by=prevented_by))


def medium_changed(shared, medium):
    """The master found the medium to be so. A medium that comes back is announced."""
    attentions = []
    if medium == READY and shared.medium in (EJECTED, FAILED):
        attentions = [(Others(None),) + attention.MEDIUM_MAY_HAVE_CHANGED]
    return Decision(shared._replace(medium=medium), attentions)


def resized(shared, size):
    """The medium has this many bytes now: every nexus is told."""
    return Decision(shared, [(Others(None),) + attention.CAPACITY_CHANGED], size=size)


# -- formatting and sanitizing ---------------------------------------------------------------------------------------

def _operate(shared, nexus, message, _known_ports):
    """FORMAT UNIT, SANITIZE (SBC-3 5.3, 5.24): everybody's tasks end, and the medium is nobody's until it is over."""
    operation = operations.begun(message, who(nexus))
    if shared.medium not in (READY, FAILED) and not operations.is_failed(shared.medium):
        return _check(*operations.SENSE.get(shared.medium, (NOT_READY, 0x3A, 0x00)))
    if shared.medium == FAILED:
        return _check(HARDWARE_ERROR, 0x44, 0x00)
    if is_restricted(shared.operation) and (operation['kind'] == 'format' or operation['ause']):
        return _check(ILLEGAL_REQUEST, 0x24, 0x00)               # SBC-3 4.11.4: only a sanitize as strict as the failed one
    return Decision(shared._replace(medium=operations.medium(operation), operation=operation), aborts=None, persist=True,
                    begins='immediate' if message.get('immediate') else 'awaited')


def _check(key, asc, ascq):
    return Refusal(sam.CHECK_CONDITION, CheckCondition(key, asc, ascq).sense())


def is_restricted(operation):
    """Did a SANITIZE without AUSE fail? Then nothing but another such SANITIZE ends it."""
    return operation is not None and operation['kind'] == 'sanitize' and bool(operation['failed']) and not operation['ause']


def _exit_failure_mode(shared, nexus, message, _known_ports):
    """SANITIZE, EXIT FAILURE MODE (SBC-3 5.24.2.5): GOOD where nothing has failed."""
    if shared.medium != operations.FAILED['sanitize']:
        return Refusal(sam.GOOD)
    if is_restricted(shared.operation):
        return _check(ILLEGAL_REQUEST, 0x24, 0x00)
    return Decision(shared._replace(medium=READY, operation=None), persist=True)


def operation_over(shared, failed):
    """A Decision: the operation has ended; failed: why, or ''. Whoever did not ask is told that the data are others now."""
    operation = dict(shared.operation, failed=failed) if failed else None
    by = tuple(shared.operation['by'])
    is_its = operations.is_running(shared.medium)                # not, say, a medium that failed for good meanwhile
    attentions = [] if failed else [(Others(by),) + attention.MEDIUM_MAY_HAVE_CHANGED]
    return Decision(shared._replace(medium=(operations.medium(operation) or READY) if is_its else shared.medium,
                                    operation=operation), attentions, persist=True)


def operation_result(operation, failed):
    """How the command ends that asked for it, as a Refusal."""
    return _check(*operations.COMMAND_FAILED[operation['kind']]) if failed else Refusal(sam.GOOD)


# -- task management -------------------------------------------------------------------------------------------------

def _reset(shared, nexus, message, _known_ports):
    return RESETS[message['function']](shared, nexus)


def _clear_task_set(shared, nexus):
    """CLEAR TASK SET (SAM-5 7.6): everybody's tasks end; who is not told by TASK ABORTED gets a unit attention."""
    attentions = []
    if not is_task_aborted_status(shared.modes):
        attentions = [(Others(who(nexus)),) + attention.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR]
    return Decision(shared, attentions, None)


def _logical_unit_reset(shared, nexus, code=attention.DEVICE_RESET):
    """SAM-5 6.3.3: everybody's tasks end, SPC-2 reservations and prevented removals go, mode parameters are the saved ones."""
    new = shared._replace(reservations=reservations.logical_unit_reset(shared.reservations), prevented_by=(),
                          modes=modes.reset(shared.modes))
    return Decision(new, [(Others(who(nexus)),) + code], None)


def _target_reset(shared, nexus):
    return _logical_unit_reset(shared, nexus, attention.BUS_RESET)


RESETS = {'clear-task-set': _clear_task_set, 'logical-unit-reset': _logical_unit_reset,
          'target-warm-reset': _target_reset, 'target-cold-reset': _target_reset}

KINDS = {'persistent-reserve-out': _reservations, 'reserve': _reservations, 'release': _reservations,
         'mode-select': _mode_select, 'operate': _operate, 'exit-failure-mode': _exit_failure_mode,
         'start-stop': _start_stop, 'prevent': _prevent, 'reset': _reset}
