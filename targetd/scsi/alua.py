"""Asymmetric logical unit access (SPC-4 5.15): the states of a unit's target port groups, and which
commands they allow. Pure.

The access of one logical unit is one JSON-able dict, never changed in place. A target port group is
a portal group of the target. The master applies changes (changed, reconfigured), every worker reads
a replica:
  explicit     bool: SET TARGET PORT GROUPS may change states
  configured   {tag as text: state} of the configuration
  states       {tag as text: [state, STATUS CODE]}, the current states
  elsewhere    True if another server serves the unit: then no path of this server is ever active

Only a state that is not active changes the dispatch table of the nexuses that come through its
group, so commands on active paths cost nothing. PREF is never set: it confuses the multipath
software of Windows.
"""

import struct
from typing import Any, Dict, Iterable, Optional, Sequence

from targetd.scsi.sam import Port
from targetd.scsi.sense import ILLEGAL_REQUEST, NOT_READY, CheckCondition

# ASYMMETRIC ACCESS STATE, SPC-4 table 272
OPTIMIZED, NON_OPTIMIZED, STANDBY, UNAVAILABLE = 0x0, 0x1, 0x2, 0x3
OFFLINE, TRANSITIONING = 0xE, 0xF
#: (name in settings and commands, state)
WORDS = (
    ('optimized', OPTIMIZED),
    ('nonoptimized', NON_OPTIMIZED),
    ('standby', STANDBY),
    ('unavailable', UNAVAILABLE),
    ('offline', OFFLINE),
    ('transitioning', TRANSITIONING),
)
STATE_OF_WORD = dict(WORDS)
WORD_OF_STATE = dict((state, word) for word, state in WORDS)
SETTABLE = frozenset([OPTIMIZED, NON_OPTIMIZED, STANDBY, UNAVAILABLE])  # by SET TARGET PORT GROUPS
SUPPORTED = 0x80 | 0x40 | 0x08 | 0x04 | 0x02 | 0x01  # T_SUP, O_SUP, U_SUP, S_SUP, AN_SUP, AO_SUP

# STATUS CODE, SPC-4 table 274
NO_STATUS, SET_BY_COMMAND, SET_IMPLICITLY = 0, 1, 2

#: {state: ASCQ}: a command that the state does not allow ends with 02/04 and this ASCQ.
QUALIFIERS = {STANDBY: 0x0B, UNAVAILABLE: 0x0C, OFFLINE: 0x12, TRANSITIONING: 0x0A}

# REQUEST SENSE, INQUIRY, REPORT LUNS, REPORT T P G
_ALWAYS = {(0x03, None), (0x12, None), (0xA0, None), (0xA3, 0x0A)}
# SET T P G, WRITE BUFFER, READ BUFFER
_UNAVAILABLE = _ALWAYS | {(0xA4, 0x0A), (0x3B, None), (0x3C, None)}
_PERSISTENT_RESERVE = {(0x5E, action) for action in range(4)} | {
    (0x5F, action) for action in range(8)
}
#: {state: (opcode, service action) of the commands that it allows}, SPC-4 5.15. Standby also allows
#: READ CAPACITY and REPORT SUPPORTED OPERATION CODES: Linux does not create a disk for a path
#: without a capacity.
# fmt: off
ALLOWED = {
    STANDBY: _UNAVAILABLE | _PERSISTENT_RESERVE | {
        (0x15, None), (0x55, None), (0x1A, None), (0x5A, None),            # MODE SELECT, MODE SENSE
        # LOG SELECT, LOG SENSE, diagnostics
        (0x4C, None), (0x4D, None), (0x1C, None), (0x1D, None),
        (0x25, None), (0x9E, 0x10), (0x9E, 0x13), (0xA3, 0x0C), (0xA3, 0x0D)},
    UNAVAILABLE: _UNAVAILABLE,
    OFFLINE: _ALWAYS | {(0xA4, 0x0A)},
    TRANSITIONING: _ALWAYS,
}
# fmt: on


# -- the state -------------------------------------------------------------------------------------


def initial(
    groups: Iterable[int] = (), configured: Optional[Dict[int, int]] = None, explicit: bool = False
) -> Dict[str, Any]:
    """The access of a unit through these groups (tags); configured: {tag: state} of the groups that
    are not OPTIMIZED."""
    states = dict((str(tag), (configured or {}).get(tag, OPTIMIZED)) for tag in groups)
    return {
        'explicit': bool(explicit),
        'configured': states,
        'states': dict((tag, [state, NO_STATUS]) for tag, state in states.items()),
    }


def saved(access: Dict[str, Any]) -> Dict[str, Any]:
    """The dict to keep in stable storage for restore(): {} if every group is as configured."""
    states = dict((tag, state) for tag, (state, _) in access['states'].items())
    return (
        {}
        if states == access['configured']
        else {'configured': access['configured'], 'states': access['states']}
    )


def restore(access: Dict[str, Any], kept: Any) -> Dict[str, Any]:
    """The access after a start. access: of initial(); kept: as returned by saved(). States that a
    command or the administrator has set stay in force unless the configuration has changed since.
    Raises ValueError if `kept` is damaged."""
    if not kept:
        return access
    try:
        states = dict(
            (str(tag), [int(state), int(status)]) for tag, (state, status) in kept['states'].items()
        )
        fits = kept['configured'] == access['configured'] and set(states) == set(access['states'])
    except (KeyError, TypeError, AttributeError):
        raise ValueError('the saved access states are damaged: %r' % (kept,))
    if not all(state in WORD_OF_STATE for state, _ in states.values()):
        raise ValueError('the saved access states are damaged: %r' % (kept,))
    return dict(access, states=states) if fits else access


def reconfigured(access: Dict[str, Any], fresh: Dict[str, Any]) -> Dict[str, Any]:
    """The access after the configuration has changed to `fresh` (of initial()): groups whose
    configured state is the same keep their current state."""
    states = {}
    for tag in fresh['states']:
        if access['configured'].get(tag) == fresh['configured'][tag]:
            states[tag] = access['states'][tag]
        else:
            status = SET_IMPLICITLY if tag in access['states'] else NO_STATUS
            states[tag] = [fresh['configured'][tag], status]
    return dict(fresh, states=states)


def changed(access: Dict[str, Any], states: Dict[str, int], status: int) -> Dict[str, Any]:
    """The access with these {tag as text: state}; the old object itself if no state changes.
    status: STATUS CODE. Raises KeyError for a group that does not exist."""
    wanted = dict(
        (tag, state) for tag, state in states.items() if access['states'][tag][0] != state
    )
    if not wanted:
        return access
    new = dict(access['states'])
    new.update((tag, [state, status]) for tag, state in wanted.items())
    return dict(access, states=new)


def state_of(access: Dict[str, Any], tag: int) -> int:
    """The state of the group with this tag (an int)."""
    state: int = access['states'].get(str(tag), (OPTIMIZED, NO_STATUS))[0]
    return STANDBY if is_elsewhere(access) and state not in ALLOWED else state


def is_elsewhere(access: Dict[str, Any]) -> bool:
    """Does another server serve the unit?"""
    return bool(access.get('elsewhere'))


def is_same(access: Dict[str, Any], other: Dict[str, Any]) -> bool:
    """Do both have the same groups in the same states? (Otherwise unit attention 2A/06 is due.)"""
    return dict((tag, state) for tag, (state, _) in access['states'].items()) == dict(
        (tag, state) for tag, (state, _) in other['states'].items()
    )


# -- which commands a state allows -----------------------------------------------------------------


def refusal(state: int) -> Optional[CheckCondition]:
    """The CheckCondition of commands that this state does not allow, or None for an active state."""
    qualifier = QUALIFIERS.get(state)
    return CheckCondition(NOT_READY, 0x04, qualifier) if qualifier is not None else None


def allows(state: int, opcode: int, service_action: Optional[int]) -> bool:
    """May this command run on a path in this state?"""
    return state not in ALLOWED or (opcode, service_action) in ALLOWED[state]


# -- wire formats ----------------------------------------------------------------------------------

GROUP = struct.Struct('>BBHxBxB')  # state, what is supported, tag, STATUS CODE, number of ports
PORT = struct.Struct('>2xH')
SET = struct.Struct('>BxH')
SEGMENT = struct.Struct('>3xBQQ')  # number of groups, first and last LBA of the user data segment


def report_data(access: Dict[str, Any], ports: Sequence[Port], extended: bool) -> bytes:
    """REPORT TARGET PORT GROUPS data, SPC-4 6.37, all of it. ports: the ports of the target.
    IMPLICIT TRANSITION TIME is 0: transitions take no time."""
    data = b'\x10\0\0\0' if extended else b''
    for tag, (state, status) in sorted(access['states'].items(), key=lambda item: int(item[0])):
        members = [port for port in ports if str(port.target_port_group_tag) == tag][:255]
        data += GROUP.pack(state, SUPPORTED, int(tag), status, len(members))
        data += b''.join(PORT.pack(port.relative_identifier) for port in members)
    return struct.pack('>I', len(data)) + data


def referrals_data(access: Dict[str, Any], last_lba: int) -> bytes:
    """REPORT REFERRALS data, SBC-3 5.23: one user data segment, the whole unit, with the state of
    each group."""
    states = sorted((int(tag), state) for tag, (state, _) in access['states'].items())
    groups = b''.join(SET.pack(state, tag) for tag, state in states)
    descriptor = SEGMENT.pack(len(access['states']), 0, last_lba) + groups
    return struct.pack('>2xH', len(descriptor)) + descriptor


def parse_set(access: Dict[str, Any], data: bytes) -> Dict[str, Any]:
    """The arguments (JSON-able) of a SET TARGET PORT GROUPS, SPC-4 6.45. Raises CheckCondition
    05/1A/00, 05/26/00."""
    if len(data) < 4 or len(data) % SET.size:
        raise CheckCondition(ILLEGAL_REQUEST, 0x1A, 0x00)
    states: Dict[str, int] = {}
    for offset in range(4, len(data), SET.size):
        state, tag = SET.unpack_from(data, offset)
        if state & 0x0F not in SETTABLE:
            raise CheckCondition(ILLEGAL_REQUEST, 0x26, 0x00, field=(offset, 3, False))
        if str(tag) not in access['states'] or str(tag) in states:
            raise CheckCondition(ILLEGAL_REQUEST, 0x26, 0x00, field=(offset + 2, None, False))
        states[str(tag)] = state & 0x0F
    return {'states': states}


def checked_set(access: Dict[str, Any], arguments: Dict[str, Any]) -> Dict[str, int]:
    """The {tag as text: state} in the arguments of a SET TARGET PORT GROUPS. Raises ValueError or
    KeyError if parse_set cannot have returned them: they come from a worker."""
    states = arguments['states']
    if not access['explicit'] or not isinstance(states, dict):
        raise ValueError(
            'the states of this unit cannot be set by command, or these are not states: %r'
            % (states,)
        )
    for tag, state in states.items():
        if tag not in access['states'] or state not in SETTABLE or isinstance(state, bool):
            raise ValueError('state %r of group %r is not valid' % (state, tag))
    return states
