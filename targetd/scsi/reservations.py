"""Persistent reservations (SPC-4) and the older RESERVE/RELEASE (SPC-2 5.5) as values. Pure.

One logical unit's reservations are one JSON-able dict, never changed in place. The master applies changes (`apply`,
`session_lost`, `logical_unit_reset`), every worker reads a replica (`refused_classes`, and the PERSISTENT RESERVE IN data).

The state:
  generation      PRGENERATION, 32 bits
  registrations   [{initiator_port, target_port, key: 16 hex digits, all_tg_pt: bool}, …] in the order of registration;
                  the ports are SCSI port names ('iqn.…,i,0x00023d000001', 'iqn.…,t,0x0001')
  holder          [initiator_port, target_port] of the reservation holder; None if nothing is reserved and for the All
                  Registrants types, where every registered nexus holds it
  type            the persistent reservation type, 0 if nothing is reserved
  aptpl           what the last REGISTER said: does it outlive a loss of power
  reserved_by     [initiator_port, target_port] that holds an SPC-2 reservation, or None

Invariants: holder is registered; type 7 or 8 implies at least one registration; reserved_by
excludes registrations.

The reservation class of a command says which reservations refuse it; opcodes.py names one in each
row. A row without a class conflicts whenever anything is reserved against the nexus (fail closed).
"""

import re
from collections import OrderedDict, namedtuple

from targetd.scsi import attention, sam, transport_id
from targetd.scsi.persistent_reserve import (
    ALL_REGISTRANTS,
    CLEAR,
    EXCLUSIVE_ACCESS,
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS,
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY,
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
    WRITE_EXCLUSIVE,
    WRITE_EXCLUSIVE_ALL_REGISTRANTS,
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY,
    WRITE_EXCLUSIVE_TYPES,
    ZERO,
    holds,
    list_error,
    parse_out,
    parse_reserve,
    read_full_status,
    read_keys,
    read_reservation,
    report_capabilities,
)
from targetd.scsi.sense import ILLEGAL_REQUEST, CheckCondition

__all__ = (  # what others use; the types and the wire forms stand in persistent_reserve.py
    'ALWAYS',
    'STATUS',
    'READ',
    'WRITE',
    'RESERVE',
    'PR_IN',
    'PR_REGISTER',
    'PR_REGISTERED',
    'PR_OUT',
    'START_STOP',
    'PREVENT',
    'WRITE_EXCLUSIVE',
    'EXCLUSIVE_ACCESS',
    'WRITE_EXCLUSIVE_REGISTRANTS_ONLY',
    'EXCLUSIVE_ACCESS_REGISTRANTS_ONLY',
    'WRITE_EXCLUSIVE_ALL_REGISTRANTS',
    'EXCLUSIVE_ACCESS_ALL_REGISTRANTS',
    'Outcome',
    'initial',
    'apply',
    'conflicts',
    'refused_classes',
    'session_lost',
    'logical_unit_reset',
    'aptpl_dump',
    'aptpl_load',
    'holds',
    'parse_out',
    'parse_reserve',
    'read_keys',
    'read_reservation',
    'report_capabilities',
    'read_full_status',
)

# Reservation classes: the rows of SPC-4 tables 70 and 71 and SBC-3 table 13 that differ, and SPC-2
# 5.5.1 for RESERVE(6/10). never refused: INQUIRY, REPORT LUNS, REQUEST SENSE, READ CAPACITY, LOG
# SENSE, RTPG, RELEASE …
ALWAYS = 'always'
# refused by an SPC-2 reservation only: TEST UNIT READY, REPORT REFERRALS, REPORT TIMESTAMP …
STATUS = 'status'
# where the medium may not be read: READ, VERIFY, PRE-FETCH, GET LBA STATUS, MODE SENSE, RSOC …
READ = 'read'
# where it may not be written: WRITE, UNMAP, SYNCHRONIZE CACHE, MODE SELECT, LOG SELECT …
WRITE = 'write'
RESERVE = 'reserve'  # RESERVE(6/10)
PR_IN = 'pr-in'  # PERSISTENT RESERVE IN
PR_REGISTER = 'pr-register'  # PERSISTENT RESERVE OUT: REGISTER, REGISTER AND IGNORE EXISTING KEY
PR_REGISTERED = 'pr-registered'  # PERSISTENT RESERVE OUT: every other service action
# Classes that depend on the CDB; `conflicts` turns them into one of the above.
PR_OUT = 'pr-out'  # by the SERVICE ACTION field
# START STOP UNIT: START=1 without power condition is ALWAYS, the rest WRITE
START_STOP = 'start-stop'
PREVENT = 'prevent'  # PREVENT ALLOW MEDIUM REMOVAL: allowing is ALWAYS, preventing WRITE

# beyond it 05/55/04: a state must stay small enough to send to every worker
MAXIMUM_REGISTRATIONS = 1024

NOTHING = frozenset()
SPC2_HOLDER = frozenset([PR_IN, PR_REGISTER, PR_REGISTERED])
SPC2_OTHERS = SPC2_HOLDER | frozenset([STATUS, READ, WRITE, RESERVE])

Outcome = namedtuple('Outcome', 'state status error attentions aborts persist')
Outcome.__doc__ = """What `apply` decided.

    state: the new state (the old object itself if nothing changed); status: GOOD, RESERVATION_CONFLICT or CHECK_CONDITION;
    error: CheckCondition or None; attentions: [((initiator_port, target_port), asc, ascq) …] owed to those nexuses;
    aborts: [(initiator_port, target_port) …] whose tasks PREEMPT AND ABORT ends (may hold the nexus that asks: its other
    tasks); persist: what persists has changed and must be on stable storage before the command completes.
    """


def initial():
    """The state of a unit that nobody has reserved."""
    return {
        'generation': 0,
        'registrations': [],
        'holder': None,
        'type': 0,
        'aptpl': False,
        'reserved_by': None,
    }


# -- what is refused, worker side --------------------------------------------------------------------------------------


def refused_classes(state, nexus):
    """The reservation classes that `state` refuses to this nexus: a frozenset, empty where nothing
    needs to be checked.

    PERSISTENT RESERVE OUT from a registered nexus is never in it: the master refuses what it must,
    so a registrant of a Registrants Only reservation (a node of a Windows cluster) pays nothing for
    commands that it may send.
    """
    who = _who(nexus)
    if state['reserved_by'] is not None:
        return SPC2_HOLDER if tuple(state['reserved_by']) == who else SPC2_OTHERS
    kind = state['type']
    if not kind:
        return NOTHING
    registered = any((r['initiator_port'], r['target_port']) == who for r in state['registrations'])
    if registered and (kind in REGISTRANTS or tuple(state['holder']) == who):
        return NOTHING
    refused = [WRITE, RESERVE]
    if kind not in WRITE_EXCLUSIVE_TYPES:
        refused.append(READ)
    if not registered:
        refused.append(PR_REGISTERED)
    return frozenset(refused)


def conflicts(refused, reservation_class, cdb):
    """Does the set `refused` (from refused_classes) refuse this command? A class of None: yes,
    unless the set is empty."""
    if not refused:
        return False
    if reservation_class == PR_OUT:
        reservation_class = (
            PR_REGISTER
            if cdb[1] & 0x1F in (REGISTER, REGISTER_AND_IGNORE_EXISTING_KEY)
            else PR_REGISTERED
        )
    elif reservation_class == START_STOP:
        reservation_class = ALWAYS if cdb[4] & 0xF1 == 0x01 else WRITE
    elif reservation_class == PREVENT:
        reservation_class = WRITE if cdb[4] & 0x03 else ALWAYS
    return reservation_class is None or reservation_class in refused


# -- changes, master side ----------------------------------------------------------------------------------------------


class _Conflict(Exception):
    """The command ends with RESERVATION CONFLICT."""


class _Draft(object):
    """A state being changed on behalf of the nexus `who`."""

    def __init__(self, state, who):
        self.who = who
        self.generation = state['generation']
        self.registrations = OrderedDict(
            ((r['initiator_port'], r['target_port']), (r['key'], r['all_tg_pt']))
            for r in state['registrations']
        )
        self.holder = tuple(state['holder']) if state['holder'] else None
        self.type = state['type']
        self.aptpl = state['aptpl']
        self.reserved_by = tuple(state['reserved_by']) if state['reserved_by'] else None
        self.attentions = []
        self.aborts = []

    def state(self):
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

    def key(self, who):
        return self.registrations[who][0] if who in self.registrations else None

    def holds(self, who):
        """Is this nexus the persistent reservation holder, or one of them?"""
        return (
            bool(self.type)
            and who in self.registrations
            and (self.type in ALL_REGISTRANTS or self.holder == who)
        )

    def register(self, who, key, all_tg_pt=False):
        if who not in self.registrations and len(self.registrations) >= MAXIMUM_REGISTRATIONS:
            raise CheckCondition(ILLEGAL_REQUEST, 0x55, 0x04)
        self.registrations[who] = (key, all_tg_pt)

    def hold(self, kind):
        self.type = kind
        self.holder = None if kind in ALL_REGISTRANTS else self.who

    def free(self):
        self.type, self.holder = 0, None

    def remove(self, who):
        """Remove a registration; what it alone held is reserved no more. Returns the type of a
        reservation that went so."""
        kind = self.type
        last_of_all = kind in ALL_REGISTRANTS and len(self.registrations) == 1
        held = kind and (last_of_all or self.holder == who)
        del self.registrations[who]
        if not held:
            return 0
        self.free()
        return kind

    def tell(self, nexuses, code):
        """Owe a unit attention to these nexuses, all but the one that asks."""
        self.attentions.extend((other, code[0], code[1]) for other in nexuses if other != self.who)


def apply(state, nexus, kind, arguments, known_ports=()):
    """The Outcome of a command that changes reservations. kind: 'persistent-reserve-out', 'reserve'
    or 'release'; arguments: of parse_out or parse_reserve; known_ports: names of the initiator
    ports that are logged in, which a TransportID without ISID stands for (SPC-4 7.6.4.6).

    Raises ValueError if the arguments are not what parse_out makes: they come from a worker.
    """
    draft = _Draft(state, _who(nexus))
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


def _checked(arguments):
    for name, shape in SHAPES:
        if type(arguments.get(name)) is not shape:
            raise ValueError(
                '%s of a PERSISTENT RESERVE OUT cannot be %r' % (name, arguments.get(name))
            )
    if not (KEY.match(arguments['key']) and KEY.match(arguments['service_action_key'])):
        raise ValueError('reservation keys are 16 hex digits')
    names = arguments['transport_ids'] if arguments.get('transport_ids') is not None else []
    if type(names) is not list or any(
        type(name) is not str for name in names + arguments['target_ports']
    ):
        raise ValueError('ports of a PERSISTENT RESERVE OUT are lists of names')
    move = arguments['service_action'] == REGISTER_AND_MOVE
    if arguments['service_action'] not in ACTIONS or (
        move and not (len(names) == 1 and arguments['target_ports'])
    ):
        raise ValueError('not a PERSISTENT RESERVE OUT: %r' % (arguments['service_action'],))
    return arguments


def _who(nexus):
    return (nexus.initiator_port, nexus.target_port)


def _spc2(draft, kind):
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
        if draft.reserved_by == who:  # from others: GOOD, and nothing changes
            draft.reserved_by = None
    else:
        raise ValueError('%r changes no reservation' % (kind,))


def _persistent_reserve_out(draft, arguments, known_ports):
    if draft.reserved_by is not None:  # whoever holds it, SPC-2 5.5.1
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


def _register(draft, arguments, known_ports):
    """REGISTER and REGISTER AND IGNORE EXISTING KEY, SPC-4: the key has been checked for the nexus
    that asks."""
    who, new = draft.who, arguments['service_action_key']
    names = arguments['transport_ids']
    if names is not None and who in draft.registrations:
        raise list_error(20, 3)  # SPEC_I_PT is for a nexus that registers anew
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
        for initiator_port in _expanded(names or (), known_ports):
            for target_port in target_ports:
                if (initiator_port, target_port) not in draft.registrations:
                    draft.register((initiator_port, target_port), new, arguments['all_tg_pt'])
    draft.aptpl = arguments['aptpl']
    draft.generation += 1


def _register_one(draft, nexus, arguments):
    """As if the request had come through this target port too (ALL_TG_PT); a key that is wrong
    there changes nothing there."""
    ignore = arguments['service_action'] == REGISTER_AND_IGNORE_EXISTING_KEY
    if not ignore and (draft.key(nexus) or ZERO) != arguments['key']:
        return
    if arguments['service_action_key'] != ZERO:
        draft.register(nexus, arguments['service_action_key'], arguments['all_tg_pt'])
    elif nexus in draft.registrations:
        _unregister(draft, nexus)


def _unregister(draft, nexus):
    """SPC-4: if the holder of a Registrants Only reservation goes, the others are told that it is
    released."""
    if draft.remove(nexus) in REGISTRANTS:
        draft.tell(draft.registrations, attention.RESERVATIONS_RELEASED)


def _expanded(names, known_ports):
    """The initiator ports that TransportIDs name; one without ISID names the known ports of that
    initiator."""
    for name in names:
        if transport_id.is_port(name):
            yield name
        else:
            for port in sorted(known_ports):
                if port.startswith(name + transport_id.SEPARATOR):
                    yield port


def _scope_and_type(arguments):
    """The type asked for. Raises CheckCondition 05/24/00: LU_SCOPE is the only scope left (SPC-4
    6.15)."""
    if arguments['scope']:
        raise CheckCondition(ILLEGAL_REQUEST, 0x24, 0x00, field=(2, 7, True))
    if arguments['type'] not in TYPES:
        raise CheckCondition(ILLEGAL_REQUEST, 0x24, 0x00, field=(2, 3, True))
    return arguments['type']


def _reserve(draft, arguments):
    """RESERVE (SPC-4). The holder may ask again for what it has; whoever asks for anything else
    conflicts."""
    kind = _scope_and_type(arguments)
    if not draft.type:
        draft.hold(kind)
    elif not (draft.holds(draft.who) and draft.type == kind):
        raise _Conflict()


def _release(draft, arguments):
    """RELEASE (SPC-4): GOOD for a registrant that holds nothing; scope and type must be those of
    the reservation."""
    if not draft.holds(draft.who):
        return
    if arguments['scope'] or arguments['type'] != draft.type:
        # INVALID RELEASE OF PERSISTENT RESERVATION: scope and type stand in the CDB
        raise CheckCondition(
            ILLEGAL_REQUEST, 0x26, 0x04, field=(2, 7 if arguments['scope'] else 3, True)
        )
    if draft.type in REGISTRANTS:
        draft.tell(draft.registrations, attention.RESERVATIONS_RELEASED)
    draft.free()


def _clear(draft, arguments):
    """CLEAR, SPC-4."""
    draft.tell(draft.registrations, attention.RESERVATIONS_PREEMPTED)
    draft.registrations.clear()
    draft.free()
    draft.generation += 1


def _preempt(draft, arguments):
    """PREEMPT and PREEMPT AND ABORT, SPC-4.

    Takes the reservation over if SERVICE ACTION RESERVATION KEY is the holder's (or 0 where all
    registrants hold it), else it only removes registrations, scope and type being ignored. A key of
    0 names nothing elsewhere.
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
        victims = _take_over(draft, _scope_and_type(arguments), victims)
    elif not victims:
        raise _Conflict()
    else:
        for who in victims:
            draft.remove(who)
    draft.tell(victims, attention.REGISTRATIONS_PREEMPTED)
    if arguments['service_action'] == PREEMPT_AND_ABORT:
        draft.aborts.extend(victims)
    draft.generation += 1


def _take_over(draft, kind, victims):
    """The reservation changes hands; who keeps a registration learns if it is another type now.
    Returns who was removed."""
    victims = [who for who in victims if who != draft.who]
    old = draft.type
    draft.free()
    for who in victims:
        draft.remove(who)
    draft.hold(kind)
    if kind != old:
        draft.tell(draft.registrations, attention.RESERVATIONS_RELEASED)
    return victims


def _move(draft, arguments):
    """REGISTER AND MOVE, SPC-4."""
    if draft.holder != draft.who:  # nothing reserved, another holds it, or all registrants do
        raise _Conflict()
    new = arguments['service_action_key']
    if new == ZERO:
        raise list_error(8)
    heir = (arguments['transport_ids'][0], arguments['target_ports'][0])
    if heir == draft.who:
        raise list_error(OUT_LENGTH)
    draft.register(heir, new)
    draft.holder = heir
    if arguments['unregister']:
        draft.remove(draft.who)
    draft.aptpl = arguments['aptpl']
    draft.generation += 1


ACTIONS = {
    REGISTER: _register,
    PR_RESERVE: _reserve,
    PR_RELEASE: _release,
    CLEAR: _clear,
    PREEMPT: _preempt,
    PREEMPT_AND_ABORT: _preempt,
    REGISTER_AND_IGNORE_EXISTING_KEY: _register,
    REGISTER_AND_MOVE: _move,
}


# -- what happens to a unit --------------------------------------------------------------------------------------------


def session_lost(state, initiator_port, target_port=None):
    """The state after an I_T nexus is lost: its SPC-2 reservation goes, persistent ones and
    registrations stay (SPC-4). Without target_port: the initiator port's nexuses with any target
    port."""
    held = state['reserved_by']
    if held is None or held[0] != initiator_port or target_port not in (None, held[1]):
        return state
    return dict(state, reserved_by=None)


def logical_unit_reset(state):
    """The state after LOGICAL UNIT RESET or a target reset: an SPC-2 reservation goes, persistent
    ones stay."""
    return state if state['reserved_by'] is None else dict(state, reserved_by=None)


def aptpl_dump(state):
    """What goes to stable storage, JSON-able: enough for aptpl_load."""
    return {
        'version': 1,
        'aptpl': state['aptpl'],
        'type': state['type'],
        'holder': state['holder'],
        'registrations': state['registrations'],
    }


def aptpl_load(saved, power_lost=True):
    """The state after a start from what aptpl_dump gave (None: nothing was saved).

    power_lost: the machine has lost its memory, so only what was registered with APTPL=1 survives;
    False for a restart of targetd alone, which clients need not notice more than a lost session.
    PRGENERATION begins at 0 again (SPC-4 6.15). Raises ValueError if `saved` is not what aptpl_dump
    gives.
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
        raise ValueError('not saved reservations: %r' % e)
    return initial() if power_lost and not state['aptpl'] else state


def _text(value, pattern=None):
    if type(value) is not str or (pattern and not pattern.match(value)):
        raise ValueError('not saved reservations: %r' % (value,))
    return value


def _check_saved(state, version):
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
        raise ValueError('saved reservations contradict themselves')
