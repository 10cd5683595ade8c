"""Persistent records of a logical unit: identifying information, timestamp offset, logs. Pure.

The records of one logical unit are one JSON-able dict that is never changed in place and is shared
by all nexuses: the master applies changes (`apply_change`) and keeps them in stable storage; every
worker has a replica.

  identifying       {'0' | '2': hex digits}: IDENTIFYING INFORMATION by type, SPC-4 6.32
  timestamp_offset  offset of the unit's clock in milliseconds, SPC-4; None: never set
  self_tests        the last 20, newest first: {code, result, number, hours, address (int or None), key, asc,
                    ascq, by: [initiator_port, target_port]}, Self-Test Results of SPC-4
  accounting_date   'YYYYWW', or '', Start-Stop Cycle Counter of SPC-4
  cycles            starts of the unit after a stop; loads: media loaded after an eject
  errors            {'read' | 'write' | 'verify': number of commands that met an error of the medium},
                    what LOG SENSE reports and LOG SELECT resets
  faults            what failed since the administrator last acknowledged, see faults.py
  bad_blocks        ranges that cannot be read, see faults.py
  health            what the disk behind the unit says about itself, see health.py
"""

import re
from typing import Any, Dict, Tuple

from targetd.scsi import attention, errno_map, health
from targetd.scsi import faults as unit_faults

KEPT_SELF_TESTS = health.KEPT_SELF_TESTS
IN_PROGRESS, ABORTED_BY_RESET = 0xF, 0x2  # SELF-TEST RESULTS, SPC-4 table 343
ERRORS = ('read', 'write', 'verify')
MAXIMUM_LENGTH = {'0': 64, '2': 256}  # bytes of identifying information
MAXIMUM_TIMESTAMP = (1 << 48) - 1

_HEX = re.compile('(?:[0-9a-f]{2})*$')
_DATE = re.compile('[0-9 ]{6}$')


def initial() -> Dict[str, Any]:
    """Returns the records of a new unit."""
    return {
        'identifying': {},
        'timestamp_offset': None,
        'self_tests': [],
        'accounting_date': '',
        'cycles': 0,
        'loads': 0,
        'errors': dict.fromkeys(ERRORS, 0),
        'faults': {},
        'bad_blocks': [],
        'health': {},
    }


def records_for_storage(records: Dict[str, Any]) -> Dict[str, Any]:
    """Returns the part of the records that differs from the initial one and goes to stable storage;
    may be {}."""
    first = initial()
    return {key: value for key, value in records.items() if value != first.get(key)}


def records_from_storage(kept: Any) -> Dict[str, Any]:
    """Returns the records after a start, which aborts a self-test that was running. Raises
    ValueError if `kept` is damaged."""
    records = initial()
    if kept is None:
        return records
    if not isinstance(kept, dict):
        raise ValueError('not records: %r' % (kept,))
    try:
        for key, value in kept.items():
            if key in CHECKS:
                CHECKS[key](value)
                records[key] = value
    except (KeyError, TypeError, AttributeError) as e:
        raise ValueError('not records: %s' % e)
    return nexus_lost(records, None)


def apply_change(
    records: Dict[str, Any], kind: str, message: Dict[str, Any]
) -> Tuple[Dict[str, Any], Any]:
    """Returns (new records, unit attention for the other nexuses or None) for a change or a note
    from a worker. Raises KeyError, ValueError, TypeError if it is not valid."""
    return KINDS[kind](records, message)


def nexus_lost(records: Dict[str, Any], by: Any) -> Dict[str, Any]:
    """Returns the records after the loss of this nexus (None: of all), which aborts its background
    self-tests."""
    tests = [
        dict(test, result=ABORTED_BY_RESET)
        if test['result'] == IN_PROGRESS and (by is None or tuple(test['by']) == tuple(by))
        else test
        for test in records['self_tests']
    ]
    return records if tests == records['self_tests'] else dict(records, self_tests=tests)


# -- checks: everything comes from a worker or from a file -----------------------------------------


def _number(value, most=(1 << 64) - 1):
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError('not a number up to %d: %r' % (most, value))
    return value


def _check_identifying(value):
    for kind, data in value.items():
        if (
            kind not in MAXIMUM_LENGTH
            or not _HEX.match(data)
            or len(data) > 2 * MAXIMUM_LENGTH[kind]
        ):
            raise ValueError('identifying information %r' % (kind,))


def _check_offset(value):
    if value is not None:
        _number(abs(value), MAXIMUM_TIMESTAMP)


def _check_date(value):
    if value and not _DATE.match(value):
        raise ValueError('accounting date %r' % (value,))


def _check_errors(value):
    if sorted(value) != sorted(ERRORS):
        raise ValueError('errors %r' % (value,))
    for count in value.values():
        _number(count)


def _checked_test(value):
    address = value.get('address')
    if not all(isinstance(name, str) for name in value['by']) or len(value['by']) != 2:
        raise ValueError('the nexus of a self-test is not valid')
    test = {key: _number(value[key], most) for key, most in health.SELF_TEST_BOUNDS.items()}
    return dict(test, address=None if address is None else _number(address), by=list(value['by']))


def _check_tests(value):
    if len(value) > KEPT_SELF_TESTS:
        raise ValueError('%d self-tests' % len(value))
    for test in value:
        _checked_test(test)


CHECKS = {
    'identifying': _check_identifying,
    'timestamp_offset': _check_offset,
    'self_tests': _check_tests,
    'accounting_date': _check_date,
    'cycles': _number,
    'loads': _number,
    'errors': _check_errors,
    'faults': unit_faults.check_faults,
    'bad_blocks': unit_faults.check_ranges,
    'health': health.check,
}


# -- changes ---------------------------------------------------------------------------------------


def _set_identifying(records, message):
    kind, data = message['type'], message['data']
    _check_identifying({kind: data})
    identifying = {k: v for k, v in records['identifying'].items() if k != kind}
    if data:
        identifying[kind] = data
    return dict(records, identifying=identifying), attention.DEVICE_IDENTIFIER_CHANGED


def _set_timestamp(records, message):
    _check_offset(message['offset'])
    return dict(records, timestamp_offset=message['offset']), attention.TIMESTAMP_CHANGED


def _self_test(records, message):
    """The result of a self-test replaces its entry 'in progress'."""
    test = _checked_test(message)
    earlier = list(records['self_tests'])
    if earlier and earlier[0]['result'] == IN_PROGRESS and earlier[0]['by'] == test['by']:
        del earlier[0]
    return dict(records, self_tests=([test] + earlier)[:KEPT_SELF_TESTS]), None


def _error(records, message):
    """The store has failed a command: kind; errno: its number; offset, length: the bytes that could
    not be accessed; is_exact: True if each of their blocks is known to be bad; by: the initiator's
    name; at: milliseconds since 1970; count: how many such errors there were, 1 by default; seen: of
    errors that were collected after an earlier one, when the latest was met, microseconds of
    CLOCK_MONOTONIC, which only the master uses."""
    kind, number = message['kind'], message['errno']
    if kind not in unit_faults.KINDS:
        raise ValueError('error %r' % (kind,))
    count = message.get('count', 1)
    for value in (number, message['offset'], message['length'], message['at'], count):
        unit_faults.check_number(value)
    faults = unit_faults.with_fault(
        records['faults'], kind, number, message['offset'], message['by'], message['at'], count
    )
    unit_faults.check_faults(faults)
    new = dict(records, faults=faults)
    if number in errno_map.LOCALIZED:
        counted = 'write' if kind == unit_faults.FLUSH else kind
        total = min(records['errors'][counted] + count, (1 << 64) - 1)
        new['errors'] = dict(records['errors'], **{counted: total})
    if message['is_exact'] and message['length']:
        new['bad_blocks'] = unit_faults.with_range(
            records['bad_blocks'], message['offset'], message['length']
        )
    return new, None


def _rewritten(records, message):
    """offset, length: bytes that were written and are durable, so their blocks are good again."""
    offset = unit_faults.check_number(message['offset'])
    length = unit_faults.check_number(message['length'])
    return dict(
        records, bad_blocks=unit_faults.without_range(records['bad_blocks'], offset, length)
    ), None


def _log_select(records, message):
    """Apply LOG SELECT; reset: set every resettable counter to 0."""
    new = dict(records)
    if message.get('reset'):
        new['errors'] = dict.fromkeys(ERRORS, 0)
    if 'accounting_date' in message:
        _check_date(message['accounting_date'])
        new['accounting_date'] = message['accounting_date']
    if 'errors' in message:
        new['errors'] = dict(new['errors'], **message['errors'])
        _check_errors(new['errors'])
    return new, attention.LOG_PARAMETERS_CHANGED if new != records else None


KINDS = {
    'set-identifying-information': _set_identifying,
    'set-timestamp': _set_timestamp,
    'self-test': _self_test,
    'error': _error,
    'rewritten': _rewritten,
    'log-select': _log_select,
}

#: changes that a worker asks the master for, and notes that it sends
CHANGE_KINDS = frozenset(('set-identifying-information', 'set-timestamp', 'log-select'))
NOTE_KINDS = frozenset(('self-test', 'error', 'rewritten'))
