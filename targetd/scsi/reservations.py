"""Persistent reservations (SPC-4) and the older RESERVE and RELEASE (SPC-2 5.5): their state, and
what each command and event changes in it. Pure.

The reservations of one logical unit are one JSON-able dict, never changed in place. The master
applies changes (apply_command, session_lost, logical_unit_reset). Every worker reads a replica:
reservation_classes.py decides which commands it refuses, persistent_reserve.py makes the PERSISTENT
RESERVE IN data of it.

The state:
  generation      PRGENERATION, 32 bits
  registrations   [{initiator_port, target_port, key: 16 hex digits, all_tg_pt: bool}, …] in the
                  order of registration; the ports are SCSI port names ('iqn.…,i,0x00023d000001',
                  'iqn.…,t,0x0001')
  holder          [initiator_port, target_port] of the reservation holder; None if nothing is
                  reserved, and for the All Registrants types, where every registered nexus holds
                  the reservation
  type            the persistent reservation type, 0 if nothing is reserved
  aptpl           bool, APTPL of the last REGISTER: does the reservation persist through a loss of power?
  reserved_by     [initiator_port, target_port] that holds an SPC-2 reservation, or None

Invariants: the holder is registered; type 7 or 8 implies at least one registration; reserved_by
excludes registrations.
"""

import re
from collections import OrderedDict, namedtuple
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Tuple

from targetd.scsi import attention, sam, transport_id
from targetd.scsi.persistent_reserve import (
    ALL_REGISTRANTS,
    CLEAR,
    OUT_LENGTH,
    PR_RELEASE,
    PR_RESERVE,
    PREEMPT,
    PREEMPT_AND_ABORT,
    REGISTER,
    REGISTER_AND_IGNORE_EXISTING_KEY,
    REGISTER_AND_MOVE,
    REGISTRANTS,
    TYPES,
    ZERO,
    list_error,
)
from targetd.scsi.reservation_classes import port_names
from targetd.scsi.sense import ILLEGAL_REQUEST, CheckCondition

# Further registrations end with 05/55/04: a state must stay small enough to send to every worker.
MAXIMUM_REGISTRATIONS = 1024

#: (initiator port name, target port name)
PortNames = Tuple[str, str]
State = Dict[str, Any]

Outcome = namedtuple('Outcome', 'state status error attentions aborts persist')
Outcome.__doc__ = """What apply_command decided.

    state:       the new state; the old object itself if nothing changed
    status:      GOOD, RESERVATION_CONFLICT or CHECK_CONDITION
    error:       CheckCondition, or None
    attentions:  [((initiator_port, target_port), asc, ascq) …], unit attentions to raise for these
                 nexuses
    aborts:      [(initiator_port, target_port) …] whose tasks PREEMPT AND ABORT aborts; the nexus
                 that sent the command may be among them, for its other tasks
    persist:     bool, the persistent part has changed and must be on stable storage before the
                 command completes
    """


def initial() -> State:
    """The state of a unit without reservations."""
    return {
        'generation': 0,
        'registrations': [],
        'holder': None,
        'type': 0,
        'aptpl': False,
        'reserved_by': None,
    }


# -- changes by commands ---------------------------------------------------------------------------


class _Conflict(Exception):
    """The command ends with RESERVATION CONFLICT."""


class _Draft(object):
    """A state that a command of the nexus `who` is changing."""

    def __init__(self, state: State, who: PortNames) -> None:
        self.who = who
        self.generation = state['generation']
        self.registrations: Dict[PortNames, Tuple[str, bool]] = OrderedDict(
            ((r['initiator_port'], r['target_port']), (r['key'], r['all_tg_pt']))
            for r in state['registrations']
        )
        self.holder = tuple(state['holder']) if state['holder'] else None
        self.type = state['type']
        self.aptpl = state['aptpl']
        self.reserved_by = tuple(state['reserved_by']) if state['reserved_by'] else None
        self.attentions: List[Tuple[PortNames, int, int]] = []
        self.aborts: List[PortNames] = []

    def state(self) -> State:
        """The changed state."""
        return {
            'generation': self.generation & 0xFFFFFFFF,
            'registrations': [
                {'initiator_port': i, 'target_port': t, 'key': key, 'all_tg_pt': all_tg_pt}
                for (i, t), (key, all_tg_pt) in self.registrations.items()
            ],
            'holder': list(self.holder) if self.holder else None,
            'type': self.type,
            'aptpl': self.aptpl,
            'reserved_by': list(self.reserved_by) if self.reserved_by else None,
        }

    def key(self, who: Optional[PortNames]) -> Optional[str]:
        """The reservation key of this nexus, or None if it is not registered."""
        return self.registrations[who][0] if who in self.registrations else None

    def holds(self, who: PortNames) -> bool:
        """Is this nexus the persistent reservation holder, or one of them?"""
        return (
            bool(self.type)
            and who in self.registrations
            and (self.type in ALL_REGISTRANTS or self.holder == who)
        )

    def register(self, who: PortNames, key: str, all_tg_pt: bool = False) -> None:
        """Register this nexus, or change its key. Raises CheckCondition 05/55/04 if there are too
        many registrations."""
        if who not in self.registrations and len(self.registrations) >= MAXIMUM_REGISTRATIONS:
            raise CheckCondition(ILLEGAL_REQUEST, 0x55, 0x04)
        self.registrations[who] = (key, all_tg_pt)

    def hold(self, kind: int) -> None:
        """The nexus of the command becomes the holder of a reservation of this type."""
        self.type = kind
        self.holder = None if kind in ALL_REGISTRANTS else self.who

    def free(self) -> None:
        """End the reservation."""
        self.type, self.holder = 0, None

    def remove(self, who: PortNames) -> int:
        """Remove a registration, and the reservation if only this nexus held it. Returns the type of
        the reservation that ended so, or 0."""
        kind = self.type
        last_of_all = kind in ALL_REGISTRANTS and len(self.registrations) == 1
        held = kind and (last_of_all or self.holder == who)
        del self.registrations[who]
        if not held:
            return 0
        self.free()
        return kind

    def raise_attention(self, nexuses: Iterable[PortNames], code: Tuple[int, int]) -> None:
        """Raise a unit attention for these nexuses, except for the one that sent the command."""
        self.attentions.extend((other, code[0], code[1]) for other in nexuses if other != self.who)


def apply_command(
    state: State,
    nexus: sam.Nexus,
    kind: str,
    arguments: Dict[str, Any],
    known_ports: Iterable[str] = (),
) -> Outcome:
    """The Outcome of a command that changes reservations.

    kind: 'persistent-reserve-out', 'reserve' or 'release'; arguments: as returned by
    persistent_reserve.parse_out or parse_reserve; known_ports: the names of the initiator ports
    that are logged in: a TransportID without ISID means all of them that belong to its initiator
    (SPC-4 7.6.4.6).

    Raises ValueError if parse_out cannot have returned the arguments: they come from a worker.
    """
    draft = _Draft(state, port_names(nexus))
    try:
        if kind == 'persistent-reserve-out':
            _persistent_reserve_out(draft, _checked(arguments), known_ports)
        else:
            _spc2(draft, kind)
    except _Conflict:
        return Outcome(state, sam.RESERVATION_CONFLICT, None, [], [], False)
    except CheckCondition as error:
        return Outcome(state, sam.CHECK_CONDITION, error, [], [], False)
    new = draft.state()
    if new == state:
        new = state
    persist = any(new[part] != state[part] for part in ('registrations', 'holder', 'type', 'aptpl'))
    return Outcome(new, sam.GOOD, None, draft.attentions, draft.aborts, persist)


KEY = re.compile('[0-9a-f]{16}$')
SHAPES = (
    ('service_action', int),
    ('scope', int),
    ('type', int),
    ('key', str),
    ('service_action_key', str),
    ('aptpl', bool),
    ('all_tg_pt', bool),
    ('unregister', bool),
    ('target_ports', list),
)


def _checked(arguments: Dict[str, Any]) -> Dict[str, Any]:
    for name, shape in SHAPES:
        if type(arguments.get(name)) is not shape:
            raise ValueError(
                '%s of a PERSISTENT RESERVE OUT is not valid: %r' % (name, arguments.get(name))
            )
    if not (KEY.match(arguments['key']) and KEY.match(arguments['service_action_key'])):
        raise ValueError('a reservation key is not 16 hex digits')
    names = arguments['transport_ids'] if arguments.get('transport_ids') is not None else []
    if type(names) is not list or any(
        type(name) is not str for name in names + arguments['target_ports']
    ):
        raise ValueError('the ports of a PERSISTENT RESERVE OUT are not lists of names')
    move = arguments['service_action'] == REGISTER_AND_MOVE
    if arguments['service_action'] not in ACTIONS or (
        move and not (len(names) == 1 and arguments['target_ports'])
    ):
        raise ValueError('not a PERSISTENT RESERVE OUT: %r' % (arguments['service_action'],))
    return arguments


def _spc2(draft: _Draft, kind: str) -> None:
    """RESERVE and RELEASE: SPC-2 5.5.1, with the exceptions of SPC-4 (CRH)."""
    who = draft.who
    if draft.registrations:
        if draft.holds(who) or (draft.type in REGISTRANTS and who in draft.registrations):
            return  # GOOD, and nothing changes
        raise _Conflict()
    if kind == 'reserve':
        if draft.reserved_by not in (None, who):
            raise _Conflict()
        draft.reserved_by = who
    elif kind == 'release':
        if draft.reserved_by == who:  # from another nexus: GOOD, and nothing changes
            draft.reserved_by = None
    else:
        raise ValueError('%r is not a command that changes reservations' % (kind,))


def _persistent_reserve_out(
    draft: _Draft, arguments: Dict[str, Any], known_ports: Iterable[str]
) -> None:
    if draft.reserved_by is not None:  # even by this nexus, SPC-2 5.5.1
        raise _Conflict()
    action = arguments['service_action']
    if action == REGISTER:
        if (draft.key(draft.who) or ZERO) != arguments['key']:
            raise _Conflict()
        _register(draft, arguments, known_ports)
    elif action == REGISTER_AND_IGNORE_EXISTING_KEY:
        _register(draft, arguments, known_ports)
    else:
        if draft.key(draft.who) != arguments['key']:
            raise _Conflict()
        ACTIONS[action](draft, arguments)


def _register(draft: _Draft, arguments: Dict[str, Any], known_ports: Iterable[str]) -> None:
    """REGISTER and REGISTER AND IGNORE EXISTING KEY, SPC-4. The key of the nexus that sent the
    command has been checked."""
    who, new = draft.who, arguments['service_action_key']
    names = arguments['transport_ids']
    if names is not None and who in draft.registrations:
        raise list_error(20, 3)  # SPEC_I_PT is allowed only if this nexus is not registered yet
    target_ports = [who[1]]
    if arguments['all_tg_pt']:
        target_ports += [name for name in arguments['target_ports'] if name != who[1]]
    if new == ZERO and not any(
        (who[0], target_port) in draft.registrations for target_port in target_ports
    ):
        return  # GOOD, and nothing changes
    for target_port in target_ports:
        _register_one(draft, (who[0], target_port), arguments)
    if new != ZERO:
        for initiator_port in _initiator_ports(names or (), known_ports):
            for target_port in target_ports:
                if (initiator_port, target_port) not in draft.registrations:
                    draft.register((initiator_port, target_port), new, arguments['all_tg_pt'])
    draft.aptpl = arguments['aptpl']
    draft.generation += 1


def _register_one(draft: _Draft, nexus: PortNames, arguments: Dict[str, Any]) -> None:
    """Register as if the command had come through the target port of this nexus (ALL_TG_PT). A key
    that is wrong there changes nothing there."""
    ignore = arguments['service_action'] == REGISTER_AND_IGNORE_EXISTING_KEY
    if not ignore and (draft.key(nexus) or ZERO) != arguments['key']:
        return
    if arguments['service_action_key'] != ZERO:
        draft.register(nexus, arguments['service_action_key'], arguments['all_tg_pt'])
    elif nexus in draft.registrations:
        _unregister(draft, nexus)


def _unregister(draft: _Draft, nexus: PortNames) -> None:
    """Remove a registration. If that ends a Registrants Only or All Registrants reservation, the
    other nexuses get unit attention RESERVATIONS RELEASED (SPC-4)."""
    if draft.remove(nexus) in REGISTRANTS:
        draft.raise_attention(draft.registrations, attention.RESERVATIONS_RELEASED)


def _initiator_ports(names: Iterable[str], known_ports: Iterable[str]) -> Iterator[str]:
    """The initiator ports that TransportIDs name; a TransportID without ISID names the known ports
    of that initiator."""
    for name in names:
        if transport_id.is_port(name):
            yield name
        else:
            for port in sorted(known_ports):
                if port.startswith(name + transport_id.SEPARATOR):
                    yield port


def _requested_type(arguments: Dict[str, Any]) -> int:
    """The TYPE field. Raises CheckCondition 05/24/00 if it is not a type, or if SCOPE is not
    LU_SCOPE, the only scope of SPC-4 6.15."""
    if arguments['scope']:
        raise CheckCondition(ILLEGAL_REQUEST, 0x24, 0x00, field=(2, 7, True))
    if arguments['type'] not in TYPES:
        raise CheckCondition(ILLEGAL_REQUEST, 0x24, 0x00, field=(2, 3, True))
    return arguments['type']


def _reserve(draft: _Draft, arguments: Dict[str, Any]) -> None:
    """RESERVE (SPC-4). While a reservation exists, only its holder may repeat the same command;
    everything else conflicts."""
    kind = _requested_type(arguments)
    if not draft.type:
        draft.hold(kind)
    elif not (draft.holds(draft.who) and draft.type == kind):
        raise _Conflict()


def _release(draft: _Draft, arguments: Dict[str, Any]) -> None:
    """RELEASE (SPC-4): GOOD for a registered nexus that is not a holder; scope and type must be
    those of the reservation."""
    if not draft.holds(draft.who):
        return
    if arguments['scope'] or arguments['type'] != draft.type:
        # INVALID RELEASE OF PERSISTENT RESERVATION; scope and type are fields of the CDB
        raise CheckCondition(
            ILLEGAL_REQUEST, 0x26, 0x04, field=(2, 7 if arguments['scope'] else 3, True)
        )
    if draft.type in REGISTRANTS:
        draft.raise_attention(draft.registrations, attention.RESERVATIONS_RELEASED)
    draft.free()


def _clear(draft: _Draft, arguments: Dict[str, Any]) -> None:
    """CLEAR, SPC-4."""
    draft.raise_attention(draft.registrations, attention.RESERVATIONS_PREEMPTED)
    draft.registrations.clear()
    draft.free()
    draft.generation += 1


def _preempt(draft: _Draft, arguments: Dict[str, Any]) -> None:
    """PREEMPT and PREEMPT AND ABORT, SPC-4.

    If SERVICE ACTION RESERVATION KEY is the key of the holder (or 0 for an All Registrants
    reservation), the command takes the reservation over. Otherwise it only removes registrations,
    and scope and type are ignored. For other reservations a key of 0 is refused with 05/26/00.
    """
    victim_key = arguments['service_action_key']
    shared = draft.type in ALL_REGISTRANTS
    if victim_key == ZERO and not shared:
        raise list_error(8)
    if victim_key == ZERO:
        takes_over, victims = True, [who for who in draft.registrations if who != draft.who]
    else:
        victims = [who for who in draft.registrations if draft.key(who) == victim_key]
        takes_over = bool(draft.type) and not shared and draft.key(draft.holder) == victim_key
    if takes_over:
        victims = _take_over(draft, _requested_type(arguments), victims)
    elif not victims:
        raise _Conflict()
    else:
        for who in victims:
            draft.remove(who)
    draft.raise_attention(victims, attention.REGISTRATIONS_PREEMPTED)
    if arguments['service_action'] == PREEMPT_AND_ABORT:
        draft.aborts.extend(victims)
    draft.generation += 1


def _take_over(draft: _Draft, kind: int, victims: List[PortNames]) -> List[PortNames]:
    """The nexus of the command becomes the holder of a reservation of type `kind`, and the victims
    lose their registrations. If the type changes, the nexuses that stay registered get unit
    attention RESERVATIONS RELEASED. Returns the nexuses that were removed."""
    victims = [who for who in victims if who != draft.who]
    old = draft.type
    draft.free()
    for who in victims:
        draft.remove(who)
    draft.hold(kind)
    if kind != old:
        draft.raise_attention(draft.registrations, attention.RESERVATIONS_RELEASED)
    return victims


def _move(draft: _Draft, arguments: Dict[str, Any]) -> None:
    """REGISTER AND MOVE, SPC-4."""
    if draft.holder != draft.who:  # not reserved, another nexus holds it, or all registrants do
        raise _Conflict()
    new = arguments['service_action_key']
    if new == ZERO:
        raise list_error(8)
    new_holder = (arguments['transport_ids'][0], arguments['target_ports'][0])
    if new_holder == draft.who:
        raise list_error(OUT_LENGTH)
    draft.register(new_holder, new)
    draft.holder = new_holder
    if arguments['unregister']:
        draft.remove(draft.who)
    draft.aptpl = arguments['aptpl']
    draft.generation += 1


ACTIONS: Dict[int, Callable[..., None]] = {
    REGISTER: _register,
    PR_RESERVE: _reserve,
    PR_RELEASE: _release,
    CLEAR: _clear,
    PREEMPT: _preempt,
    PREEMPT_AND_ABORT: _preempt,
    REGISTER_AND_IGNORE_EXISTING_KEY: _register,
    REGISTER_AND_MOVE: _move,
}


# -- other events ----------------------------------------------------------------------------------


def session_lost(state: State, initiator_port: str, target_port: Optional[str] = None) -> State:
    """The state after an I_T nexus loss: the SPC-2 reservation of the nexus ends, persistent
    reservations and registrations stay (SPC-4). target_port None: all nexuses of the initiator
    port. Returns the old object itself if nothing changes."""
    held = state['reserved_by']
    if held is None or held[0] != initiator_port or target_port not in (None, held[1]):
        return state
    return dict(state, reserved_by=None)


def logical_unit_reset(state: State) -> State:
    """The state after LOGICAL UNIT RESET or a target reset: an SPC-2 reservation ends, persistent
    reservations stay. Returns the old object itself if nothing changes."""
    return state if state['reserved_by'] is None else dict(state, reserved_by=None)


def aptpl_dump(state: State) -> Dict[str, Any]:
    """The JSON-able dict to keep in stable storage for aptpl_load."""
    return {
        'version': 1,
        'aptpl': state['aptpl'],
        'type': state['type'],
        'holder': state['holder'],
        'registrations': state['registrations'],
    }


def aptpl_load(saved: Any, power_lost: bool = True) -> State:
    """The state after a start. saved: as returned by aptpl_dump, or None if nothing was saved.

    power_lost: the machine was restarted, so only what was registered with APTPL=1 persists;
    False if only targetd was restarted, which clients see as a lost session.
    PRGENERATION starts at 0 again (SPC-4 6.15). Raises ValueError if `saved` is damaged.
    """
    if saved is None:
        return initial()
    try:
        state = initial()
        state['registrations'] = [
            {
                'initiator_port': _text(r['initiator_port']),
                'target_port': _text(r['target_port']),
                'key': _text(r['key'], KEY),
                'all_tg_pt': bool(r['all_tg_pt']),
            }
            for r in saved['registrations']
        ]
        state['aptpl'] = bool(saved['aptpl'])
        state['type'] = saved['type']
        state['holder'] = [_text(name) for name in saved['holder']] if saved['holder'] else None
        _check_saved(state, saved['version'])
    except (KeyError, TypeError) as e:
        raise ValueError('the saved reservations are damaged: %r' % e)
    return initial() if power_lost and not state['aptpl'] else state


def _text(value: Any, pattern: Any = None) -> str:
    if type(value) is not str or (pattern and not pattern.match(value)):
        raise ValueError('the saved reservations are damaged: %r' % (value,))
    return value


def _check_saved(state: State, version: Any) -> None:
    nexuses = [[r['initiator_port'], r['target_port']] for r in state['registrations']]
    kind = state['type']
    single = kind in TYPES and kind not in ALL_REGISTRANTS
    if (
        version != 1
        or kind not in TYPES | {0}
        or (kind and not nexuses)
        or single != (state['holder'] is not None)
        or (single and state['holder'] not in nexuses)
    ):
        raise ValueError('the saved reservations contradict each other')
