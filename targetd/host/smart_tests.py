"""The self-tests that a disk has recorded, from the JSON of smartctl 7. Pure.

Each is {code, result, number, hours, address, key, asc, ascq}, as in scsi.health; newest first. ATA and NVMe
results are translated as SAT-3 and the SCSI translation for NVMe do.
"""

from targetd.host.json_values import dict_of, number_of, rows_of

KEPT = 20
_LARGEST_HOURS = 0xFFFF
_FAILED = (4, 0x3E, 0x03)  # HARDWARE ERROR, LOGICAL UNIT FAILED SELF-TEST
_UNREADABLE = (3, 0x11, 0x00)  # MEDIUM ERROR, UNRECOVERED READ ERROR
#: SELF-TEST CODE (SPC-4) of an ATA subcommand, the low 7 bits; 80h more: foreground
_ATA_CODES = {0x01: 1, 0x02: 2, 0x81: 5, 0x82: 6}
#: SELF-TEST RESULTS (SPC-4) of an NVMe result (NVMe 1.4 figure 200)
_NVME_RESULTS = {0: 0, 1: 1, 2: 2, 3: 2, 4: 2, 5: 3, 6: 5, 7: 6, 8: 2, 9: 2}
_NVME_CODES = {1: 1, 2: 2}


def self_tests(said):
    """Returns the self-tests in an answer of smartctl; [] if it has none."""
    found = _ata(said) or _nvme(said) or _scsi(said)
    return found[:KEPT]


def _ata(said):
    log = dict_of(said, 'ata_smart_self_test_log')
    rows = rows_of(dict_of(log, 'standard'), 'table') or rows_of(dict_of(log, 'extended'), 'table')
    found = []
    for row in rows:
        kind, status = _value(row, 'type'), _value(row, 'status')
        if kind is None or status is None:
            continue
        result = status >> 4 & 0x0F
        result = 7 if result == 8 else result  # handling damage
        sense = _UNREADABLE if result == 7 else _FAILED if 3 <= result <= 6 else (0, 0, 0)
        code = _ATA_CODES.get(kind, 0)
        found.append(_test(code, result, row.get('lifetime_hours'), row.get('lba'), sense))
    return found


def _nvme(said):
    found = []
    for row in rows_of(dict_of(said, 'nvme_self_test_log'), 'table'):
        kind, status = _value(row, 'self_test_code'), _value(row, 'self_test_result')
        if kind is None or status is None or status == 0xF:
            continue
        result = _NVME_RESULTS.get(status, 3)
        sense = _FAILED if result >= 3 else (0, 0, 0)
        found.append(
            _test(
                _NVME_CODES.get(kind, 0), result, row.get('power_on_hours'), row.get('lba'), sense
            )
        )
    return found


def _scsi(said):
    """smartctl has one key for each test: scsi_self_test_0 is the newest."""
    found = []
    for number in range(KEPT):
        row = dict_of(said, 'scsi_self_test_%d' % number)
        code, result = _value(row, 'code'), _value(row, 'result')
        if code is None or result is None or not (code or result or row.get('power_on_time')):
            continue
        sense = tuple(_value(row, key) or 0 for key in ('sense_key', 'asc', 'ascq'))
        hours = dict_of(row, 'power_on_time').get('hours')
        address = dict_of(row, 'lba_first_failure').get('value')
        found.append(_test(code, result, hours, address, sense))
    return found


def _test(code, result, hours, address, sense):
    is_address = isinstance(address, int) and 0 <= address < 1 << 64
    is_hours = isinstance(hours, int) and hours >= 0
    key, asc, ascq = sense
    return {
        'code': code & 7,
        'result': result & 15,
        'number': 0,
        'hours': min(hours, _LARGEST_HOURS) if is_hours else 0,
        'address': address if is_address else None,
        'key': key & 15,
        'asc': asc & 255,
        'ascq': ascq & 255,
    }


def _value(row, key):
    """The number in {'value': n, 'string': …}, or the number itself; None if there is none."""
    if isinstance(row.get(key), dict):
        return number_of(row[key], 'value')
    return number_of(row, key)
