"""TABLE: every text key, one row (RFC 7143 12, 13; RFC 7144 for the protocol levels), and the
negotiation that follows from it.

Pure; imports text. Public: KEYS, one TextKey for each key; SETTABLE, the keys that the configuration
may set; `negotiate_keys`, the target's answers to an initiator's offers; `effective_values`, all values
that are in force after a login. The answer to a key that is not in the table is NotUnderstood (RFC
7143 6.2), the answer to a value out of range is Reject. This module answers offers only.

Typed values: NUMBER int, BOOLEAN bool, LIST the chosen word as str (the target's values and offers:
tuple of words), TEXT str.
"""

import re
from collections import OrderedDict, namedtuple
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Tuple

from targetd.iscsi.text import (
    IRRELEVANT,
    MAXIMUM_VALUE,
    NOT_UNDERSTOOD,
    REJECT,
    RESERVED_VALUES,
    TextError,
)

# Kinds
NUMBER = 'number'
BOOLEAN = 'boolean'
LIST = 'list'
TEXT = 'text'

# Result functions, RFC 7143 6.2
MINIMUM = 'minimum'
MAXIMUM = 'maximum'
AND = 'and'
OR = 'or'
FIRST_MATCH = 'first match'  # the first word of the offer that the target supports
DECLARED = 'declared'  # no answer
AUTHENTICATION = 'authentication'  # handled by login and chap
OBSOLETE_NO = 'No'  # RFC 7143 13.25: always answered No
OBSOLETE_REJECT = 'Reject'  # RFC 7143 13.25: always answered Reject

# Stages, as letters of TextKey.stages
SECURITY = 'S'
OPERATIONAL = 'O'
FULL_FEATURE = 'F'

# Session types, the values of SessionType
NORMAL = 'Normal'
DISCOVERY = 'Discovery'

SESSION = 'session'
CONNECTION = 'connection'

MEGABYTES_16 = (1 << 24) - 1

_NUMBER = re.compile(r'0[xX][0-9a-fA-F]{1,16}\Z|[0-9]{1,20}\Z')


class TextKey(
    namedtuple(
        'TextKey',
        'name clause kind senders stages scope result default minimum maximum values '
        'leading_only irrelevant_in_discovery ours settable help',
    )
):
    """One text key: a row of the table.

    clause: of RFC 7143; senders: 'I', 'T' or 'IT'; stages: letters of the stages in which the key may
    be sent; scope: SESSION or CONNECTION; default: the typed value that applies if the key is not
    sent, or None; minimum, maximum: of a NUMBER (bytes, seconds or a count) or None; values: words of
    a LIST or None; leading_only: True if the key may be negotiated only on the first connection of a
    session; ours: the typed value that targetd offers or answers with unless configured; settable:
    (minimum, maximum) or True if the configuration may set the key, else None; help: text for the
    manual page.
    """

    __slots__ = ()

    def parse(self, value: str) -> Any:
        """Return the typed value. Raises ValueError with a plain reason if it is not a valid value of
        this key."""
        return _PARSERS[self.kind](self, value)

    def render(self, value: Any) -> str:
        """Return the text of a typed value."""
        if self.kind == BOOLEAN:
            return 'Yes' if value else 'No'
        if self.kind == LIST and not isinstance(value, str):
            return ','.join(value)
        return str(value)


def _parse_number(key, value):
    if not _NUMBER.match(value):
        raise ValueError('"%s" is not a number' % value)
    number = int(value, 16 if value[:2] in ('0x', '0X') else 10)
    if not key.minimum <= number <= key.maximum:
        raise ValueError('%d is not within %d..%d' % (number, key.minimum, key.maximum))
    return number


def _parse_boolean(key, value):
    if value not in ('Yes', 'No'):
        raise ValueError('"%s" is neither Yes nor No' % value)
    return value == 'Yes'


def _parse_list(key, value):
    words = tuple(value.split(','))
    if '' in words:
        raise ValueError('"%s" is not a list of words' % value)
    return words


def _parse_text(key, value):
    if key.values is not None and value not in key.values:
        raise ValueError('"%s" is not one of %s' % (value, ', '.join(key.values)))
    if len(value.encode('utf-8')) > MAXIMUM_VALUE:
        raise ValueError('it is longer than %d bytes' % MAXIMUM_VALUE)
    return value


_PARSERS = {NUMBER: _parse_number, BOOLEAN: _parse_boolean, LIST: _parse_list, TEXT: _parse_text}


# -- the table -------------------------------------------------------------------------------------


def _number(
    name,
    clause,
    result,
    minimum,
    maximum,
    default,
    ours,
    settable,
    help,
    senders='IT',
    stages='O',
    scope=SESSION,
    leading_only=True,
    irrelevant_in_discovery=False,
):
    return TextKey(
        name,
        clause,
        NUMBER,
        senders,
        stages,
        scope,
        result,
        default,
        minimum,
        maximum,
        None,
        leading_only,
        irrelevant_in_discovery,
        ours,
        settable,
        help,
    )


def _boolean(name, clause, result, default, ours, settable, help, irrelevant_in_discovery=True):
    return TextKey(
        name,
        clause,
        BOOLEAN,
        'IT',
        'O',
        SESSION,
        result,
        default,
        None,
        None,
        None,
        True,
        irrelevant_in_discovery,
        ours,
        settable,
        help,
    )


def _list(
    name,
    clause,
    values,
    default,
    ours,
    settable,
    help,
    stages='O',
    scope=CONNECTION,
    result=FIRST_MATCH,
    leading_only=False,
    irrelevant_in_discovery=False,
):
    return TextKey(
        name,
        clause,
        LIST,
        'IT',
        stages,
        scope,
        result,
        default,
        None,
        None,
        values,
        leading_only,
        irrelevant_in_discovery,
        ours,
        settable,
        help,
    )


def _declared(name, clause, senders, stages, help, values=None, default=None, leading_only=False):
    return TextKey(
        name,
        clause,
        TEXT,
        senders,
        stages,
        SESSION,
        DECLARED,
        default,
        None,
        None,
        values,
        leading_only,
        False,
        None,
        None,
        help,
    )


def _authentication(name, clause, help):
    return _word(name, clause, 'S', AUTHENTICATION, help)


def _obsolete(name, result):
    return _word(name, '13.25', 'O', result, 'Obsolete.')


def _word(name, clause, stages, result, help):
    return TextKey(
        name,
        clause,
        TEXT,
        'IT',
        stages,
        CONNECTION,
        result,
        None,
        None,
        None,
        None,
        False,
        False,
        None,
        None,
        help,
    )


# fmt: off
_ROWS = (
    # Authentication, RFC 7143 12
    _list('AuthMethod', '12.1', ('CHAP', 'SRP', 'KRB5', 'SPKM1', 'SPKM2', 'None'), 'None', ('None',), None,
          'Method by which the initiator authenticates.', stages='S', result=AUTHENTICATION),
    _authentication('CHAP_A', '12.1.3', 'CHAP algorithms, by number.'),
    _authentication('CHAP_I', '12.1.3', 'CHAP identifier.'),
    _authentication('CHAP_C', '12.1.3', 'CHAP challenge.'),
    _authentication('CHAP_N', '12.1.3', 'CHAP name.'),
    _authentication('CHAP_R', '12.1.3', 'CHAP response.'),
    # Names
    _declared('InitiatorName', '13.5', 'I', 'SO', 'The initiator\'s iSCSI name.'),
    _declared('InitiatorAlias', '13.7', 'I', 'SOF', 'A descriptive name of the initiator.'),
    _declared('TargetName', '13.4', 'IT', 'SOF', 'The target\'s iSCSI name.'),
    _declared('TargetAlias', '13.6', 'T', 'SOF', 'A descriptive name of the target.'),
    _declared('TargetAddress', '13.8', 'T', 'SOF', 'Address, port and portal group tag of a portal.'),
    _declared('TargetPortalGroupTag', '13.9', 'T', 'SO', 'The portal group that the session is in.'),
    _declared('SessionType', '13.21', 'I', 'SO', 'Purpose of the session.',
              (DISCOVERY, NORMAL), NORMAL, True),
    _declared('SendTargets', '13.3', 'I', 'F', 'Requests the list of targets.'),
    _declared('NodeArchitecture', 'RFC 4850 2', 'IT', 'SOF', 'Hardware and software of the node.'),
    # Digests
    _list('HeaderDigest', '13.1', ('None', 'CRC32C'), 'None', ('CRC32C', 'None'), True,
          'Accepted header digests; the initiator chooses. CRC32C alone requires a digest.'),
    _list('DataDigest', '13.1', ('None', 'CRC32C'), 'None', ('CRC32C', 'None'), True,
          'Accepted data digests; the initiator chooses. CRC32C alone requires a digest.'),
    # Sessions
    _number('MaxConnections', '13.2', MINIMUM, 1, 65535, 1, 1, (1, 8),
            'Maximum number of connections of a session.', irrelevant_in_discovery=True),
    _number('ErrorRecoveryLevel', '13.20', MINIMUM, 0, 2, 0, 0, (0, 2),
            'Error recovery: 0 by a new session, 1 of lost PDUs too, 2 of connections too.'),
    _number('DefaultTime2Wait', '13.15', MAXIMUM, 0, 3600, 2, 2, (0, 3600),
            'Seconds that an initiator waits before it reconnects.'),
    _number('DefaultTime2Retain', '13.16', MINIMUM, 0, 3600, 20, 20, (0, 3600),
            'Seconds after DefaultTime2Wait for which the tasks of a lost connection are kept.'),
    # Data
    # The defaults of this, of FirstBurstLength and of MaxOutstandingR2T save round trips on a long line, if
    # the initiator offers as much. Measured at 100 ms and on loopback.
    _boolean('InitialR2T', '13.10', OR, True, False, True,
             'Yes: the initiator sends write data after the immediate data only on an R2T. No saves a '
             'round trip, if it offers No too.'),
    _boolean('ImmediateData', '13.11', AND, True, True, True,
             'Yes: write data may be sent with the command.'),
    _number('MaxRecvDataSegmentLength', '13.12', DECLARED, 512, MEGABYTES_16, 8192, 262144,
            (512, MEGABYTES_16), 'Maximum bytes of data in one PDU that targetd receives.',
            stages='SOF', scope=CONNECTION, leading_only=False),
    _number('MaxBurstLength', '13.13', MINIMUM, 512, MEGABYTES_16, 262144, 1048576, (512, MEGABYTES_16),
            'Maximum bytes of data in one Data-In sequence or for one R2T.', irrelevant_in_discovery=True),
    # According to RFC 7143 13.14 this key is also irrelevant with InitialR2T=Yes and ImmediateData=No. The
    # answer is a number even then, because some initiators read 'Irrelevant' as the number 0.
    _number('FirstBurstLength', '13.14', MINIMUM, 512, MEGABYTES_16, 65536, 1048576, (512, MEGABYTES_16),
            'Maximum bytes of unsolicited write data of a command; at most MaxBurstLength.',
            irrelevant_in_discovery=True),
    _number('MaxOutstandingR2T', '13.17', MINIMUM, 1, 65535, 1, 4, (1, 16),
            'Maximum number of unanswered R2Ts of a command.', irrelevant_in_discovery=True),
    _boolean('DataPDUInOrder', '13.18', OR, True, True, None, 'The data PDUs of a sequence are in order.'),
    _boolean('DataSequenceInOrder', '13.19', OR, True, True, None, 'The sequences are in order.'),
    # Task management and levels
    _list('TaskReporting', '13.23', ('RFC3720', 'ResponseFence', 'FastAbort'), 'RFC3720', ('RFC3720',), None,
          'Meaning of task management responses.', scope=SESSION, leading_only=True,
          irrelevant_in_discovery=True),
    _number('iSCSIProtocolLevel', '13.24', MINIMUM, 0, 31, 1, 2, None,
            '1: RFC 7143; 2: also RFC 7144.', irrelevant_in_discovery=True),
    # Obsolete, RFC 7143 13.25
    _obsolete('IFMarker', OBSOLETE_NO),
    _obsolete('OFMarker', OBSOLETE_NO),
    _obsolete('IFMarkInt', OBSOLETE_REJECT),
    _obsolete('OFMarkInt', OBSOLETE_REJECT),
)
# fmt: on

KEYS = OrderedDict((row.name, row) for row in _ROWS)

#: Names of the keys that the configuration may set; KEYS[name].settable has the range of a NUMBER.
SETTABLE = tuple(row.name for row in _ROWS if row.settable)

#: The values that targetd answers with unless configured: {name: typed value}.
OURS = {
    row.name: row.ours for row in _ROWS if row.ours is not None and row.result != AUTHENTICATION
}

#: The values that apply to keys that were not sent: {name: typed value}, operational keys only.
DEFAULTS = {row.name: row.default for row in _ROWS if row.name in OURS}


# -- negotiation -----------------------------------------------------------------------------------


class KeyMisused(TextError):
    """A key was sent twice, in a stage in which it is not allowed, or by the wrong side (RFC 7143 6.2,
    6.3)."""


class Negotiated(namedtuple('Negotiated', 'answers values')):
    """The outcome of a negotiation. answers: [(key, text)] in the order of the offers; values: {key:
    typed value} that these offers determined."""

    __slots__ = ()


_STAGE_NAMES = {
    SECURITY: 'security negotiation',
    OPERATIONAL: 'operational negotiation',
    FULL_FEATURE: 'the full feature phase',
}


def check_key_use(name: str, value: str, stage: str) -> Optional[TextKey]:
    """Return the TextKey of an initiator's offer, or None if the answer is NotUnderstood. Raises
    KeyMisused. stage: SECURITY, OPERATIONAL or FULL_FEATURE."""
    key = KEYS.get(name)
    if key is None:
        return None
    if value in RESERVED_VALUES:
        if key.result == DECLARED and 'T' in key.senders:
            return key  # the initiator's reaction to a value that the target declared
        raise KeyMisused('%s=%s does not answer an offer of the target' % (name, value))
    if 'I' not in key.senders:
        raise KeyMisused('an initiator may not send %s' % name)
    if stage not in key.stages:
        raise KeyMisused('%s may not be sent in %s' % (name, _STAGE_NAMES[stage]))
    return key


def negotiate_keys(
    offers: Sequence[Tuple[str, str]],
    ours: Optional[Mapping[str, Any]] = None,
    stage: str = OPERATIONAL,
    session_type: str = NORMAL,
    in_force: Optional[Mapping[str, Any]] = None,
    settled: Optional[Mapping[str, Any]] = None,
) -> Negotiated:
    """Return Negotiated for an initiator's offers [(key, value), …]. Raises KeyMisused.

    ours: {key: typed value of the target}; OURS has the others; stage: SECURITY, OPERATIONAL or
    FULL_FEATURE; in_force: on a further connection of a session, {key: typed value} of that session;
    settled: {key: typed value} that this login has determined so far. Keys of AUTHENTICATION must not
    be passed.

    Keys without a meaning in a discovery session, and keys of the whole session on a further
    connection, are answered with a value and settle nothing: initiators exist that refuse Irrelevant
    (RFC 7143 6.2 allows both answers).
    """
    known = dict(settled or {})
    without_effect: Dict[str, Any] = {}
    answered = {}
    names = [name for name, _ in offers]
    if len(set(names)) < len(names):
        raise KeyMisused(
            '%s was sent twice' % next(name for name in names if names.count(name) > 1)
        )
    for name, value in offers:
        if name in known and not _may_be_repeated(KEYS[name], value, known[name]):
            raise KeyMisused('%s was sent twice' % name)
    # FirstBurstLength depends on MaxBurstLength, so it is evaluated last.
    for name, value in sorted(offers, key=lambda offer: offer[0] == 'FirstBurstLength'):
        key = check_key_use(name, value, stage)
        if key is None:
            answered[name] = None if value in RESERVED_VALUES else NOT_UNDERSTOOD
        elif value in RESERVED_VALUES:
            answered[name] = None
        elif in_force is not None and key.leading_only:
            answered[name] = _repeated_answer(key, value, in_force)
        elif session_type == DISCOVERY and key.irrelevant_in_discovery:
            answered[name] = _answer(key, value, ours or {}, without_effect)
        else:
            answered[name] = _answer(key, value, ours or {}, known)
    values = {name: known[name] for name in names if name in known}
    return Negotiated(
        [(name, answered[name]) for name in names if answered[name] is not None], values
    )


def _repeated_answer(key, value, in_force):
    """Return the answer to a key of the whole session on a further connection: the value in force,
    or Irrelevant if this value cannot result from the offer."""
    if key.result == DECLARED:
        return None
    try:
        offered = key.parse(value)
    except ValueError:
        return REJECT
    current = in_force.get(key.name, key.default)
    ours = (current,) if key.kind == LIST else current
    return key.render(current) if _RESULTS[key.result](offered, ours) == current else IRRELEVANT


def _answer(key, value, ours, known):
    """Return the text of the answer or None; add the determined value to `known`."""
    if key.result in (OBSOLETE_NO, OBSOLETE_REJECT):
        return key.result
    try:
        offered = key.parse(value)
    except ValueError as e:
        if key.result == DECLARED and key.kind == TEXT:
            raise KeyMisused('%s: %s' % (key.name, e))
        return REJECT
    if key.result == DECLARED:
        known[key.name] = offered
        return None
    result = _RESULTS[key.result](offered, ours.get(key.name, key.ours))
    if result is None:
        return REJECT
    if key.name == 'FirstBurstLength':
        result = min(result, known.get('MaxBurstLength', DEFAULTS['MaxBurstLength']))
    known[key.name] = result
    return key.render(result)


def _may_be_repeated(key, value, before):
    """Return True if the key may be sent again: some initiators send their name in every stage, and a
    data segment length may be declared again."""
    return key.result == DECLARED and (key.kind == NUMBER or value == before)


def _first_match(offered, ours):
    for word in offered:
        if word in ours:
            return word
    return None


# fmt: off
_RESULTS: Dict[str, Callable[[Any, Any], Any]] = {
    MINIMUM: min,
    MAXIMUM: max,
    AND: lambda offered, ours: offered and ours,
    OR: lambda offered, ours: offered or ours,
    FIRST_MATCH: _first_match,
}
# fmt: on


def effective_values(settled: Mapping[str, Any]) -> Dict[str, Any]:
    """Return every operational value that is in force after a login: {key: typed value}. settled: the
    values that the login determined.

    MaxRecvDataSegmentLength is the initiator's. FirstBurstLength is never above MaxBurstLength (RFC
    7143 13.14), even if MaxBurstLength was negotiated later.
    """
    values = dict(DEFAULTS)
    values.update((name, value) for name, value in settled.items() if name in DEFAULTS)
    values['FirstBurstLength'] = min(values['FirstBurstLength'], values['MaxBurstLength'])
    return values
