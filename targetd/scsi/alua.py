"""Asymmetric logical unit access (SPC-4 5.15): the states of a unit's target port groups, and what
they let pass. Pure.

One logical unit's access is one JSON-able dict, never changed in place; a group is a portal group of the target. The master
applies changes (`changed`, `configured`), every worker reads a replica:
  explicit     bool: SET TARGET PORT GROUPS may change states
  configured   {tag as text: state}, what the configuration says
  states       {tag as text: [state, STATUS CODE]}, what holds now

A group in an active state changes nothing; any other swaps the unit's dispatch table for the
nexuses that come through it, so commands on active paths pay nothing. PREF is never set: it
confuses the multipath software of Windows.
"""

import struct

from targetd.scsi.sense import ILLEGAL_REQUEST, NOT_READY, CheckCondition

# ASYMMETRIC ACCESS STATE, SPC-4 table 272
OPTIMIZED, NON_OPTIMIZED, STANDBY, UNAVAILABLE, OFFLINE, TRANSITIONING = (
    0x0,
    0x1,
    0x2,
    0x3,
    0xE,
    0xF,
)
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

#: What a command that a state does not let pass ends with: 02/04 and this qualifier.
QUALIFIERS = {STANDBY: 0x0B, UNAVAILABLE: 0x0C, OFFLINE: 0x12, TRANSITIONING: 0x0A}

# REQUEST SENSE, INQUIRY, REPORT LUNS, REPORT T P G
_ALWAYS = {(0x03, None), (0x12, None), (0xA0, None), (0xA3, 0x0A)}
# SET T P G, WRITE BUFFER, READ BUFFER
_UNAVAILABLE = _ALWAYS | {(0xA4, 0x0A), (0x3B, None), (0x3C, None)}
_PERSISTENT_RESERVE = {(0x5E, action) for action in range(4)} | {
    (0x5F, action) for action in range(8)
}
#: What each state lets pass, as (opcode, service action): SPC-4 5.15. In standby READ CAPACITY is
#: answered too, and what the unit supports is told: Linux makes no disk of a path without a
#: capacity.
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


# -- the state -----------------------------------------------------------------------------------------------------------


def initial(groups=(), configured=None, explicit=False):
    """The access of a unit through these groups (tags); configured: {tag: state} where it is not
    OPTIMIZED."""
    states = dict((str(tag), (configured or {}).get(tag, OPTIMIZED)) for tag in groups)
    return {
        'explicit': bool(explicit),
        'configured': states,
        'states': dict((tag, [state, NO_STATUS]) for tag, state in states.items()),
    }


def saved(access):
    """What goes to stable storage: {} if every group is as configured."""
    states = dict((tag, state) for tag, (state, _) in access['states'].items())
    return (
        {}
        if states == access['configured']
        else {'configured': access['configured'], 'states': access['states']}
    )


def restore(access, kept):
    """The access after a start, from `initial` and what `saved` gave. What was set by command or
    administrator holds as long as the configuration says what it said then. Raises ValueError if
    `kept` is not what `saved` gives."""
    if not kept:
        return access
    try:
        states = dict(
            (str(tag), [int(state), int(status)]) for tag, (state, status) in kept['states'].items()
        )
        is_of_this = kept['configured'] == access['configured'] and set(states) == set(
            access['states']
        )
    except (KeyError, TypeError, AttributeError):
        raise ValueError('not saved access states: %r' % (kept,))
    if not all(state in WORD_OF_STATE for state, _ in states.values()):
        raise ValueError('not saved access states: %r' % (kept,))
    return dict(access, states=states) if is_of_this else access


def reconfigured(access, fresh):
    """The access after the configuration changed to `fresh` (of `initial`): groups whose configured
    state is the same keep what holds for them now."""
    states = dict(
        (
            tag,
            access['states'][tag]
            if access['configured'].get(tag) == fresh['configured'][tag]
            else [
                fresh['configured'][tag],
                SET_IMPLICITLY if tag in access['states'] else NO_STATUS,
            ],
        )
        for tag in fresh['states']
    )
    return dict(fresh, states=states)


def changed(access, states, status):
    """The access with these {tag as text: state}; the old object itself if no state becomes
    another. Raises KeyError for a group that is not there."""
    wanted = dict(
        (tag, state) for tag, state in states.items() if access['states'][tag][0] != state
    )
    if not wanted:
        return access
    return dict(
        access,
        states=dict(
            access['states'], **dict((tag, [state, status]) for tag, state in wanted.items())
        ),
    )


def state_of(access, tag):
    """The state of the group with this tag (an int)."""
    return access['states'].get(str(tag), (OPTIMIZED, NO_STATUS))[0]


def is_same(access, other):
    """Are all groups and their states the same? (What is a change decides on a unit attention.)"""
    return dict((tag, state) for tag, (state, _) in access['states'].items()) == dict(
        (tag, state) for tag, (state, _) in other['states'].items()
    )


# -- what passes ---------------------------------------------------------------------------------------------------------


def refusal(state):
    """The CheckCondition of what a state does not let pass, or None for an active state."""
    qualifier = QUALIFIERS.get(state)
    return CheckCondition(NOT_READY, 0x04, qualifier) if qualifier is not None else None


def passes(state, opcode, service_action):
    """May this command run on a path in this state?"""
    return state not in ALLOWED or (opcode, service_action) in ALLOWED[state]


# -- on the wire ---------------------------------------------------------------------------------------------------------

GROUP = struct.Struct('>BBHxBxB')  # state, what is supported, tag, STATUS CODE, number of ports
PORT = struct.Struct('>2xH')
SET = struct.Struct('>BxH')
SEGMENT = struct.Struct('>3xBQQ')  # number of groups, first and last LBA of the user data segment


def report(access, ports, extended):
    """REPORT TARGET PORT GROUPS data, SPC-4 6.37, all of it. ports: the target's sam.Port rows.
    Transitions take no time that an initiator would have to know: IMPLICIT TRANSITION TIME 0."""
    data = b'\x10\0\0\0' if extended else b''
    for tag, (state, status) in sorted(access['states'].items(), key=lambda item: int(item[0])):
        members = [port for port in ports if str(port.target_port_group_tag) == tag][:255]
        data += GROUP.pack(state, SUPPORTED, int(tag), status, len(members))
        data += b''.join(PORT.pack(port.relative_identifier) for port in members)
    return struct.pack('>I', len(data)) + data


def referrals(access, last_lba):
    """REPORT REFERRALS data, SBC-3 5.23: one user data segment, all of the unit, with the state of
    each group."""
    states = sorted((int(tag), state) for tag, (state, _) in access['states'].items())
    groups = b''.join(SET.pack(state, tag) for tag, state in states)
    descriptor = SEGMENT.pack(len(access['states']), 0, last_lba) + groups
    return struct.pack('>2xH', len(descriptor)) + descriptor


def parse_set(access, data):
    """The arguments (JSON-able) of a SET TARGET PORT GROUPS, SPC-4 6.45. Raises CheckCondition
    05/1A/00, 05/26/00."""
    if len(data) < 4 or len(data) % SET.size:
        raise CheckCondition(ILLEGAL_REQUEST, 0x1A, 0x00)
    states = {}
    for offset in range(4, len(data), SET.size):
        state, tag = SET.unpack_from(data, offset)
        if state & 0x0F not in SETTABLE:
            raise CheckCondition(ILLEGAL_REQUEST, 0x26, 0x00, field=(offset, 3, False))
        if str(tag) not in access['states'] or str(tag) in states:
            raise CheckCondition(ILLEGAL_REQUEST, 0x26, 0x00, field=(offset + 2, None, False))
        states[str(tag)] = state & 0x0F
    return {'states': states}


def checked_set(access, arguments):
    """The {tag: state} of what parse_set gave, which comes from a worker. Raises ValueError,
    KeyError if it cannot have."""
    states = arguments['states']
    if not access['explicit'] or not isinstance(states, dict):
        raise ValueError('a unit whose states are not set by command, or no states: %r' % (states,))
    for tag, state in states.items():
        if tag not in access['states'] or state not in SETTABLE or isinstance(state, bool):
            raise ValueError('state %r of group %r' % (state, tag))
    return states
