"""Asks a physical disk about its health with smartctl (smartmontools 7), and reads its answer.

May import base and host. `ask` runs the program and is called in a job only; `parse` is a function of the
JSON that smartctl printed. ATA, SCSI (SAS) and NVMe disks answer in different words; USB bridges pass on
those of ATA or NVMe. A disk that sleeps is not woken: smartctl is told to leave it alone (-n standby).

The answer of a disk is a dict with the keys

  model, serial, transport, firmware   text, '' if unknown; transport: 'ATA', 'NVMe', 'SCSI'
  state          HEALTHY, FAILING, HOT, ASLEEP or UNKNOWN; why: a sentence for all but HEALTHY
  and those of scsi.health that are known (failure, temperature, limit, cycles, …), besides
  hours          power-on hours; wear: percent of the endurance that is used, may exceed 100
  reallocated, pending   blocks: replaced by spare ones; that could not be read and wait to be replaced
"""

import json
import os
import re
import shutil
import subprocess

from targetd.host import smart_tests
from targetd.host.json_values import dict_of, number_of, rows_of, text_of

HEALTHY, FAILING, HOT, ASLEEP, UNKNOWN = 'healthy', 'failing', 'hot', 'asleep', 'unknown'
KNOWN = (HEALTHY, FAILING, HOT)  # the disk has told its health
PROGRAM = 'smartctl'
SECONDS = 20.0  # for one disk
LONGEST_ANSWER = 4 << 20
#: Information, health, attributes, errors, self-tests and (ATA) the limit of the temperature, in stable JSON;
#: nothing is started or changed.
OPTIONS = ('--json=c', '-n', 'standby', '-i', '-H', '-A') + (
    ('-l', 'error') + ('-l', 'selftest') + ('-l', 'scttempsts')
)
_DIRECTORIES = ('/usr/local/sbin', '/usr/sbin', '/sbin', '/usr/local/bin', '/usr/bin', '/bin')

# (ASC, ASCQ), SPC-4 annex D
IMPENDING_FAILURE = [0x5D, 0x10]  # HARDWARE IMPENDING FAILURE GENERAL HARD DRIVE FAILURE
ENDURANCE_REACHED = [0x5D, 0x73]  # MEDIA IMPENDING FAILURE ENDURANCE LIMIT MET

_ATA_REALLOCATED, _ATA_START_STOP, _ATA_UNCORRECTED, _ATA_LOADS, _ATA_PENDING = 5, 4, 187, 193, 197
_NVME_WARNINGS = (
    (0x01, 'its spare blocks are used up', ENDURANCE_REACHED),
    (0x04, 'it is not reliable any more', IMPENDING_FAILURE),
    (0x08, 'it accepts no writes any more', IMPENDING_FAILURE),
    (0x10, 'the backup of its volatile memory has failed', IMPENDING_FAILURE),
    (0x20, 'its persistent memory is not reliable any more', IMPENDING_FAILURE),
)
_NVME_HOT = 0x02
_NVME_UNIT = 512000  # bytes of a data unit
#: What smartctl prints instead of an answer, after -n standby; the mode: STANDBY, SLEEP, LOW POWER, ...
_SLEEPS = re.compile('Device is in .* mode', re.IGNORECASE)
_FIRST_NUMBER = re.compile(r'([0-9]+)(?![0-9A-Za-z])')
#: °C. Early ATA disks have their average temperature in the field of the limit.
_LOWEST_LIMIT = 40


# -- running smartctl ------------------------------------------------------------------------------


def find_program(path=None):
    """Returns the absolute path of smartctl, or None. path: like PATH, to which the directories of system
    programs are added."""
    path = os.environ.get('PATH', '') if path is None else path
    return shutil.which(PROGRAM, path=os.pathsep.join([path] + list(_DIRECTORIES)))


def ask(node, kind='', environment=None, prepare=None, program=None):
    """Returns the answer of the disk at this device node; never raises. kind: the type for smartctl's -d,
    '' to detect it; prepare(): called in the new process before the program. It may block: only in a job."""
    program = program or find_program()
    if program is None:
        return no_answer('smartctl is not installed; install the package smartmontools')
    code, text = _run(program, node, kind, environment, prepare)
    if code is None:
        return no_answer(text)
    answer = parse(text, code)
    if answer['state'] == UNKNOWN and not kind and 'USB bridge' in answer['why']:
        # most bridges pass on SAT commands
        code, text = _run(program, node, 'sat', environment, prepare)
        again = no_answer(text) if code is None else parse(text, code)
        return answer if again['state'] == UNKNOWN else again
    return answer


def _run(program, node, kind, environment, prepare):
    """(exit code, output) of smartctl, or (None, why there is none)."""
    command = [program] + list(OPTIONS) + (['-d', kind] if kind else []) + [node]
    try:
        process = subprocess.Popen(
            command,
            env=dict(environment or os.environ, LC_ALL='C'),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd='/',
            preexec_fn=prepare,
        )
    except OSError as e:
        return None, '%s cannot be run: %s' % (program, e.strerror)
    try:
        text, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()  # returns when the disk does; the master gives up this job before
        return None, 'the disk did not answer within %d seconds' % SECONDS
    return process.returncode, text[:LONGEST_ANSWER].decode('utf-8', 'replace')


def no_answer(why):
    """Returns the answer of a disk that was not asked, or did not answer."""
    return {
        'model': '',
        'serial': '',
        'transport': '',
        'firmware': '',
        'state': UNKNOWN,
        'why': why,
    }


# -- reading its answer ----------------------------------------------------------------------------


def parse(text, code):
    """Returns the answer of a disk. text: what smartctl --json printed; code: its exit code, whose bits 0
    and 1 say that the disk was not asked (smartctl(8), EXIT STATUS)."""
    try:
        said = json.loads(text)
        if not isinstance(said, dict):
            raise ValueError
    except ValueError:
        return no_answer('smartctl printed no JSON; version 7.0 or later is needed')
    answer = {
        'model': text_of(said, 'model_name') or text_of(said, 'scsi_model_name'),
        'serial': text_of(said, 'serial_number'),
        'transport': text_of(dict_of(said, 'device'), 'protocol'),
        'firmware': text_of(said, 'firmware_version')
        or text_of(said, 'scsi_revision')
        or text_of(said, 'revision'),  # smartctl 7.0 to 7.2
    }
    words = _messages(said)
    if code & 3 and _SLEEPS.search(words):
        return dict(answer, state=ASLEEP, why='the disk sleeps, and is not woken to be asked')
    if code & 3 and 'smart_status' not in said:
        return dict(answer, state=UNKNOWN, why=words or 'smartctl ended with exit code %d' % code)
    answer.update(_common(said))
    for key, reader in (
        ('ata_smart_attributes', _ata),
        ('nvme_smart_health_information_log', _nvme),
    ):
        if key in said:
            answer.update(reader(dict_of(said, key)))
    if answer['transport'] == 'SCSI':
        answer.update(_scsi(said))
    answer['self_tests'] = smart_tests.self_tests(said)
    answer.update(_verdict(said, answer))
    return {key: value for key, value in answer.items() if value is not None}


def _verdict(said, answer):
    """{state, why, failure} of what the disk says about itself."""
    status = dict_of(said, 'smart_status')
    nvme = number_of(dict_of(said, 'nvme_smart_health_information_log'), 'critical_warning') or 0
    why, failure = '', None
    if status.get('passed') is False:
        scsi = dict_of(status, 'scsi')
        asc, ascq = number_of(scsi, 'asc', 255), number_of(scsi, 'ascq', 255)
        why = text_of(scsi, 'ie_string') or 'it predicts its failure'
        failure = [asc, ascq or 0] if asc == IMPENDING_FAILURE[0] else IMPENDING_FAILURE
    bits = [(words, code) for bit, words, code in _NVME_WARNINGS if nvme & bit]
    if bits:
        why, failure = ', '.join(words for words, _ in bits), bits[0][1]
    elif nvme & _NVME_HOT or _is_temperature(status):
        failure = None
    if failure:
        return {'state': FAILING, 'why': why, 'failure': failure}
    hot, limit = answer.get('temperature'), answer.get('limit')
    if nvme & _NVME_HOT or _is_temperature(status) or (hot and limit and hot >= limit):
        where = 'its temperature is %s °C' % ('unknown' if hot is None else hot)
        return {'state': HOT, 'why': where + (', the limit %d °C' % limit if limit else '')}
    if status.get('passed') is not True:
        return {'state': UNKNOWN, 'why': _why_unknown(said)}
    return {'state': HEALTHY, 'why': ''}


def _why_unknown(said):
    if dict_of(said, 'smart_support').get('enabled') is False:
        return 'SMART is disabled on the disk; enable it with: smartctl -s on'
    return _messages(said) or 'it does not tell its health'


def _is_temperature(status):
    """True if a SCSI disk warns of its temperature: 0Bh/01h, WARNING - SPECIFIED TEMPERATURE EXCEEDED."""
    scsi = dict_of(status, 'scsi')
    return number_of(scsi, 'asc') == 0x0B and number_of(scsi, 'ascq') == 0x01


def _common(said):
    temperature = dict_of(said, 'temperature')
    limit = number_of(temperature, 'op_limit_max', 254) or 0
    if limit < _LOWEST_LIMIT:
        limit = number_of(temperature, 'drive_trip', 254)
    return {
        'temperature': number_of(temperature, 'current', 254),
        'limit': limit or None,
        'hours': number_of(dict_of(said, 'power_on_time'), 'hours'),
        'wear': number_of(dict_of(said, 'endurance_used'), 'current_percent'),  # from 7.5 on
    }


def _ata(attributes):
    """Of the attributes of an ATA disk, by number: their raw values."""
    rows = rows_of(attributes, 'table')
    raw = {number_of(row, 'id'): _raw_value(dict_of(row, 'raw')) for row in rows}
    return {
        'cycles': _bounded(raw.get(_ATA_START_STOP)),
        'loads': _bounded(raw.get(_ATA_LOADS)),
        'reallocated': raw.get(_ATA_REALLOCATED),
        'pending': raw.get(_ATA_PENDING),
        'read': _counts(uncorrected=raw.get(_ATA_UNCORRECTED)),
    }


def _raw_value(raw):
    """The count in a raw value of 48 bits, which may have other counts behind it: smartctl knows which bits
    they are, and writes "2 (1 1)"."""
    first = _FIRST_NUMBER.match(text_of(raw, 'string'))
    if not first:
        return number_of(raw, 'value')
    return min(int(first.group(1)), (1 << 64) - 1)


def _nvme(log):
    read, written = number_of(log, 'data_units_read'), number_of(log, 'data_units_written')
    return {
        'cycles': _bounded(number_of(log, 'power_cycles')),
        'wear': number_of(log, 'percentage_used'),
        'read': _counts(
            uncorrected=number_of(log, 'media_errors'),
            processed=None if read is None else read * _NVME_UNIT,
        ),
        'write': _counts(processed=None if written is None else written * _NVME_UNIT),
    }


def _scsi(said):
    cycles = dict_of(said, 'scsi_start_stop_cycle_counter')
    errors = dict_of(said, 'scsi_error_counter_log')
    without_page = dict_of(said, 'scsi_temperature')  # of a disk without log page 0Dh
    found = {
        'cycles': _bounded(number_of(cycles, 'accumulated_start_stop_cycles')),
        'most_cycles': _bounded(number_of(cycles, 'specified_cycle_count_over_device_lifetime')),
        'loads': _bounded(number_of(cycles, 'accumulated_load_unload_cycles')),
        'most_loads': _bounded(
            number_of(cycles, 'specified_load_unload_count_over_device_lifetime')
        ),
        'reallocated': number_of(said, 'scsi_grown_defect_list'),
        'wear': number_of(said, 'scsi_percentage_used_endurance_indicator'),
    }
    if number_of(without_page, 'drive_trip', 254):
        found['limit'] = without_page['drive_trip']
    for access in ('read', 'write', 'verify'):
        row = dict_of(errors, access)
        found[access] = _counts(
            number_of(row, 'total_errors_corrected'),
            number_of(row, 'total_uncorrected_errors'),
            _gigabytes(row.get('gigabytes_processed')),
        )
    return found


def _counts(corrected=None, uncorrected=None, processed=None):
    counts = {'corrected': corrected, 'uncorrected': uncorrected, 'bytes': processed}
    known = {key: value for key, value in counts.items() if value is not None}
    return known or None


def _gigabytes(text):
    """smartctl writes 10^9 bytes with three decimals, as text."""
    try:
        return min(int(float(text) * 1000) * 10**6, (1 << 64) - 1)
    except (TypeError, ValueError, OverflowError):
        return None


# -- several disks ---------------------------------------------------------------------------------


def combined(answers, at, before):
    """Returns the health (scsi.health) of a unit on disks with these answers: the worst of each; `before`
    itself if no disk has told anything yet. at: milliseconds since 1970; before: the health until now. A
    failure that was predicted is not forgotten while a disk does not answer."""
    known = [answer for answer in answers if answer['state'] in KNOWN]
    if not known:
        return before
    hottest = max(known, key=lambda answer: answer.get('temperature') or -1)
    failures = [answer['failure'] for answer in known if answer.get('failure')]
    if not failures and len(known) < len(answers) and before.get('failure'):
        failures = [before['failure']]
    health = {
        'at': at,
        'failure': failures[0] if failures else None,
        'temperature': hottest.get('temperature'),
        'limit': hottest.get('limit'),
    }
    for key in ('cycles', 'most_cycles', 'loads', 'most_loads'):
        health[key] = max((a[key] for a in known if a.get(key) is not None), default=None)
    for access in ('read', 'write', 'verify'):
        health[access] = _summed([answer.get(access) or {} for answer in known])
    if len(answers) == 1:
        health['self_tests'] = known[0].get('self_tests') or []
    return {key: value for key, value in health.items() if value is not None}


def _summed(rows):
    keys = sorted({key for row in rows for key in row})
    return {key: min(sum(r.get(key, 0) for r in rows), (1 << 64) - 1) for key in keys} or None


def _bounded(value):
    """A count for a field of 32 bits."""
    return None if value is None else min(value, 0xFFFFFFFF)


def _messages(said):
    texts = [text_of(row, 'string') for row in rows_of(dict_of(said, 'smartctl'), 'messages')]
    return '; '.join(texts[:4])
