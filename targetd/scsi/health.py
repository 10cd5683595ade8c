"""The health of the disk behind a logical unit, as initiators see it: log pages 02h, 03h, 05h, 0Dh, 0Eh, 10h
and 2Fh, and informational exceptions by the MRIE field of mode page 1Ch (SPC-4). Pure.

The health is one value of the unit's records (`health`, see records), {} while nothing is known. The master
makes it from what the disk says about itself (host.smart); no nexus can change it. Its keys:

  at           when it was asked, milliseconds since 1970
  failure      [asc, ascq] of a failure that the disk predicts, 5Dh/xxh; None: none
  temperature  of the disk, degrees Celsius; limit: the highest that its vendor allows
  cycles, most_cycles, loads, most_loads   start-stop and load-unload cycles, and how many it was built for
  read, write, verify     {'corrected', 'uncorrected', 'bytes'}: errors and bytes since it was made
  self_tests   the disk's own, newest first: {code, result, number, hours, address, key, asc, ascq}

Every value but `at` may be None or missing: unknown. The functions take the mode parameters (modes) and
records of a unit, which may come from an earlier release without `health`.
"""

from typing import Any, Dict, Optional, Tuple

# INFORMATIONAL EXCEPTIONS CONTROL mode page, SPC-4: byte 2, and METHOD OF REPORTING in byte 3
DEXCPT, MRIE_AT, MRIE = 0x08, 3, 0x0F
NOT_REPORTED, UNIT_ATTENTION, ON_REQUEST = METHODS = (0x0, 0x2, 0x6)  # those that units have
CHANGEABLE = {2: DEXCPT, MRIE_AT: 0x06}

FAILURE_PREDICTED = 0x5D  # ADDITIONAL SENSE CODE
UNKNOWN_TEMPERATURE = 0xFF
KEPT_SELF_TESTS = 20

_BOUNDS = {
    'temperature': 254,
    'limit': 254,
    'cycles': 0xFFFFFFFF,
    'most_cycles': 0xFFFFFFFF,
    'loads': 0xFFFFFFFF,
    'most_loads': 0xFFFFFFFF,
}
_COUNTS = ('read', 'write', 'verify')
_COUNTED = ('corrected', 'uncorrected', 'bytes')
#: {key of a self-test: its largest value}
SELF_TEST_BOUNDS = {
    'code': 7,
    'result': 15,
    'number': 255,
    'hours': 0xFFFF,
    'key': 15,
    'asc': 255,
    'ascq': 255,
}


def of(records: Dict[str, Any]) -> Dict[str, Any]:
    """The health in the records of a unit; {} if nothing is known."""
    return records.get('health') or {}


# -- checks ----------------------------------------------------------------------------------------


def _number(value: Any, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError('not a number up to %d: %r' % (most, value))


def check(value: Any) -> None:
    """Raises ValueError, TypeError, KeyError or AttributeError if the value is not a health."""
    if not value:
        return
    _number(value['at'], (1 << 64) - 1)
    failure = value.get('failure')
    if failure is not None:
        if len(failure) != 2:
            raise ValueError('failure %r' % (failure,))
        for byte in failure:
            _number(byte, 255)
    for key, most in _BOUNDS.items():
        if value.get(key) is not None:
            _number(value[key], most)
    for key in _COUNTS:
        for count in (value.get(key) or {}).values():
            if count is not None:
                _number(count, (1 << 64) - 1)
    tests = value.get('self_tests') or []
    if len(tests) > KEPT_SELF_TESTS:
        raise ValueError('%d self-tests' % len(tests))
    for test in tests:
        for key, most in SELF_TEST_BOUNDS.items():
            _number(test[key], most)
        if test['address'] is not None:
            _number(test['address'], (1 << 64) - 1)


# -- informational exceptions ----------------------------------------------------------------------


def default_bytes(is_watched: bool) -> Dict[int, int]:
    """The bytes of mode page 1Ch that are not 0 by default. is_watched: the health will be known."""
    return {MRIE_AT: UNIT_ATTENTION} if is_watched else {2: DEXCPT}


def has_unknown_method(page: bytes) -> bool:
    """True if this mode page 1Ch selects a MRIE that no unit has: the other methods would end commands
    that succeed with CHECK CONDITION status, which initiators take for errors."""
    return page[MRIE_AT] & MRIE not in METHODS


def method(state: Dict[str, Any]) -> int:
    """How informational exceptions are reported: MRIE, NOT_REPORTED if DEXCPT is 1. state: of modes."""
    page = bytes.fromhex(state['current'].get('1c-00', ''))
    return NOT_REPORTED if not page or page[2] & DEXCPT else page[MRIE_AT] & MRIE


def failure(records: Dict[str, Any]) -> Optional[Tuple[int, int]]:
    """The (ASC, ASCQ) of the failure that the disk predicts, or None."""
    found = of(records).get('failure')
    return (found[0], found[1]) if found else None


def attention(state: Dict[str, Any], records: Dict[str, Any]) -> Optional[Tuple[int, int]]:
    """The (ASC, ASCQ) of the unit attention condition that each nexus gets once for a predicted
    failure, if the mode parameters select that (DEXCPT 0, MRIE 2h); else None."""
    if method(state) != UNIT_ATTENTION:
        return None
    return failure(records)


def on_request(state: Dict[str, Any], records: Dict[str, Any]) -> Optional[Tuple[int, int]]:
    """The (ASC, ASCQ) that REQUEST SENSE reports with NO SENSE for a predicted failure, if the mode
    parameters select that (DEXCPT 0, MRIE 6h); else None."""
    if method(state) != ON_REQUEST:
        return None
    return failure(records)


# -- values of log parameters ----------------------------------------------------------------------


def temperature(records: Dict[str, Any], key: str = 'temperature') -> int:
    """The byte of a log page: degrees Celsius, 0 for less than 0, FFh if unknown. key: 'temperature' or
    'limit'."""
    found = of(records).get(key)
    return UNKNOWN_TEMPERATURE if found is None else found


def count(records: Dict[str, Any], access: str, counted: str) -> Optional[int]:
    """A count of the disk; access: 'read', 'write' or 'verify'; counted: see the module. None if it is
    unknown."""
    return (of(records).get(access) or {}).get(counted)
