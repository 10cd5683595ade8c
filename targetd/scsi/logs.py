"""LOG SENSE and LOG SELECT (SPC-4 6.8, 6.7): counters and events of the unit. Pure.

TABLE has one row per page. The numbers of commands in page 19h (General Statistics and Performance) are
those that scsi.counters has for each nexus: the master collects and adds them when the page is requested.
The error counter pages count errors of the slow path only. SP saves nothing (DS is 1): persistent
values are always kept, see records.py. Windows requests page 0Ch with PC 0 and expects an answer;
list parameters have no thresholds, so PC is ignored there.
"""

import struct
from collections import namedtuple
from typing import TYPE_CHECKING, Any, Tuple

from targetd.scsi import counters, health, sense, ssc_logs
from targetd.scsi.cdb import u16
from targetd.scsi.medium_state import FAILED
from targetd.scsi.sam import WOULD_BLOCK, Change
from targetd.scsi.sbc import read_errors
from targetd.scsi.spc import answer, parameter_list

if TYPE_CHECKING:
    from targetd.scsi.lu import LogicalUnit
    from targetd.scsi.sam import Task

THRESHOLD, CUMULATIVE, DEFAULT_THRESHOLD, DEFAULT_CUMULATIVE = range(4)  # PAGE CONTROL
ALL_SUBPAGES = 0xFF
PARAMETER = struct.Struct('>HBB')
COUNTER, ASCII_LIST, BINARY_LIST = 0x02, 0x01, 0x03  # FORMAT AND LINKING
# SCOPE of a resource count; shared: with other data on the same file system
DEDICATED, SHARED = 1, 2
# parameters of the error counter pages
CORRECTED, BYTES_PROCESSED, UNCORRECTED = 0x0003, 0x0005, 0x0006
ACCOUNTING_DATE = 0x0002
COUNTED = {0x02: 'write', 0x03: 'read', 0x05: 'verify'}  # page -> key of records['errors']
START_STOP_CYCLES = 0x0E


class Page(namedtuple('Page', 'code subpage name parameters blocks needs')):
    """One log page. parameters(unit, page_control) -> [(code, control byte, value bytes)], or None if the
    master makes the page; blocks:
    True if it may wait for the store; needs: name of the fact without which the unit does not have
    the page, or ''."""

    __slots__ = ()


def _parameter(code, control, value):
    return PARAMETER.pack(code, control, len(value)) + value


# -- pages -----------------------------------------------------------------------------------------


def _error_counter(page):
    def parameters(unit, control):
        """SPC-4. Errors that the medium corrected by itself are known only from the disk; its own
        counts, which LOG SELECT cannot reset, include what it has told this server."""
        records, access = unit.records, COUNTED[page]
        counts = {
            CORRECTED: health.count(records, access, 'corrected'),
            BYTES_PROCESSED: health.count(records, access, 'bytes'),
            UNCORRECTED: max(
                records['errors'][access], health.count(records, access, 'uncorrected') or 0
            ),
        }
        most = (1 << 64) - 1  # there is no threshold, so it is never reached
        other = most if control in (THRESHOLD, DEFAULT_THRESHOLD) else 0
        return [
            (code, COUNTER, struct.pack('>Q', count if control == CUMULATIVE else other))
            for code, count in sorted(counts.items())
            if count is not None
        ]

    return parameters


def _provisioning(unit, control):
    """Logical Block Provisioning, SBC-3, in threshold sets: the space that is still available to
    the store and the space that it occupies."""
    one = unit.block_size << unit.facts.threshold_exponent
    counts = [
        (0x0001, unit.store.available() // one, SHARED),
        (0x0002, -(-unit.store.allocated() // one), DEDICATED),
    ]
    return [
        (code, BINARY_LIST, struct.pack('>IB3x', min(count, 0xFFFFFFFF), scope))
        for code, count, scope in counts
    ]


def _temperature(unit, control):
    """SPC-4: the temperature of the disk, and the highest that its vendor allows."""
    return [
        (code, BINARY_LIST, bytes((0, health.temperature(unit.records, key))))
        for code, key in ((0x0000, 'temperature'), (0x0001, 'limit'))
    ]


def _start_stop(unit, control):
    """SPC-4. A date is four digits of the year and two of the week. The cycles are those of the disk, if
    it tells them."""
    records = unit.records
    disk = health.of(records)
    date = records['accounting_date'] or ' ' * 6
    return [(0x0001, ASCII_LIST, b' ' * 6), (ACCOUNTING_DATE, ASCII_LIST, date.encode('ascii'))] + [
        (code, BINARY_LIST, struct.pack('>I', count & 0xFFFFFFFF))
        for code, count in (
            (0x0003, disk.get('most_cycles')),
            (0x0004, _first_known(disk.get('cycles'), records['cycles'])),
            (0x0005, disk.get('most_loads')),
            (0x0006, _first_known(disk.get('loads'), records['loads'])),
        )
        if count is not None
    ]


def _first_known(value, other):
    return other if value is None else value


def _self_tests(unit, control):
    """SPC-4: twenty parameters, newest first; zeroes for tests that did not take place. The tests of the
    unit come first, then those that the disk has recorded: their hours are those of another clock."""
    tests = unit.records['self_tests'] + (health.of(unit.records).get('self_tests') or [])
    parameters = []
    for n in range(20):
        value = bytes(16)
        if n < len(tests):
            test = tests[n]
            address = 0xFFFFFFFFFFFFFFFF if test['address'] is None else test['address']
            value = struct.pack(
                '>BBHQBBBx',
                test['code'] << 5 | test['result'],
                test['number'],
                test['hours'],
                address,
                test['key'],
                test['asc'],
                test['ascq'],
            )
        parameters.append((n + 1, BINARY_LIST, value))
    return parameters


def _exceptions(unit, control):
    """SPC-4: FAILURE PREDICTION THRESHOLD EXCEEDED after acknowledged data was lost, after `on-error`
    has restricted the unit, and while there are blocks that cannot be read; else what the disk predicts."""
    is_failing = unit.medium == FAILED or unit.restriction or unit.records['bad_blocks']
    predicted = health.failure(unit.records)
    code = predicted or ((health.FAILURE_PREDICTED, 0x00) if is_failing else (0, 0))
    temperatures = tuple(health.temperature(unit.records, key) for key in ('temperature', 'limit'))
    return [(0x0000, BINARY_LIST, bytes(code + temperatures))]


def _page(code, name, parameters, blocks=False, needs='', subpage=0x00):
    return Page(code, subpage, name, parameters, blocks, needs)


# fmt: off
TABLE = (
    _page(0x02, 'Write Error Counter', _error_counter(0x02)),
    _page(0x03, 'Read Error Counter', _error_counter(0x03)),
    _page(0x05, 'Verify Error Counter', _error_counter(0x05)),
    _page(0x0C, 'Logical Block Provisioning', _provisioning, blocks=True, needs='thin'),
    _page(0x0D, 'Temperature', _temperature),
    _page(0x0E, 'Start-Stop Cycle Counter', _start_stop),
    _page(0x10, 'Self-Test Results', _self_tests),
    _page(counters.STATISTICS_PAGE, 'General Statistics and Performance', None),
    _page(0x2F, 'Informational Exceptions', _exceptions),
)
# fmt: on


def _of_tape(function, is_count):
    control = COUNTER if is_count else BINARY_LIST
    return lambda unit, _: [(code, control, value) for code, value in function(unit)]


#: The pages of a tape drive.
TAPE_TABLE = tuple(
    sorted(
        [page for page in TABLE if page.code in ssc_logs.SHARED]
        + [
            _page(code, name, _of_tape(function, is_count), blocks=True)
            for code, name, function, is_count in ssc_logs.PAGES
        ],
        key=lambda page: page.code,
    )
)


def offered_pages(facts: Any) -> Tuple[Page, ...]:
    """Returns the Page rows that a unit with these facts has."""
    if facts.tape:
        return TAPE_TABLE
    return tuple(page for page in TABLE if not page.needs or getattr(facts, page.needs))


# -- LOG SENSE -------------------------------------------------------------------------------------


def log_sense(unit: 'LogicalUnit', task: 'Task') -> None:
    """LOG SENSE, SPC-4 6.8."""
    cdb = task.cdb
    code, subpage, pointer = cdb[2] & 0x3F, cdb[3], u16(cdb, 5)
    rows = offered_pages(unit.facts)
    if code == 0x00 or subpage == ALL_SUBPAGES:
        data = _list(rows, code, subpage)
        if pointer:
            raise sense.invalid_field_in_cdb(5)
        answer(task, data, u16(cdb, 7))
        return
    found = [row for row in rows if row.code == code]
    if not found:
        raise sense.invalid_field_in_cdb(2, 5)
    row = next((row for row in found if row.subpage == subpage), None)
    if row is None:
        raise sense.invalid_field_in_cdb(3)
    task.offset = task.length = 0
    task.private = row
    if row.parameters is None:
        if pointer > counters.LAST_PARAMETER:
            raise sense.invalid_field_in_cdb(5)
        task.run = _ask_for_statistics
        return
    task.run, task.run_blocking = (_would_block, _run_page) if row.blocks else (_run_page, None)


def _would_block(task):
    return WOULD_BLOCK


def _ask_for_statistics(task):
    cdb = task.cdb
    return Change(
        'statistics', {'control': cdb[2] >> 6, 'pointer': u16(cdb, 5), 'length': u16(cdb, 7)}
    )


@read_errors
def _run_page(task):
    row, cdb = task.private, task.cdb
    pointer = u16(cdb, 5)
    parameters = row.parameters(task.unit, cdb[2] >> 6)
    wanted = [parameter for parameter in parameters if parameter[0] >= pointer]
    if not wanted:
        raise sense.invalid_field_in_cdb(5)
    return page_bytes(row.code, row.subpage, b''.join(_parameter(*p) for p in wanted))[
        : u16(cdb, 7)
    ]


def page_bytes(code: int, subpage: int, body: bytes) -> bytes:
    """Returns the page with its header: DS 1, SPF for a subpage."""
    return struct.pack('>BBH', 0x80 | (0x40 if subpage else 0) | code, subpage, len(body)) + body


def _list(rows, code, subpage):
    """Returns a list page, SPC-4: 00/00 page codes, 00/FF all pages and subpages, xx/FF the
    subpages of one page."""
    if code == 0x00 and subpage == 0x00:
        body = bytes([0x00] + sorted({row.code for row in rows if not row.subpage}))
        return struct.pack('>BBH', 0x00, 0x00, len(body)) + body
    if subpage != ALL_SUBPAGES:
        raise sense.invalid_field_in_cdb(3)
    pairs = sorted(
        {(row.code, row.subpage) for row in rows}
        | {(row.code, ALL_SUBPAGES) for row in rows}
        | {(0x00, 0x00), (0x00, ALL_SUBPAGES)}
    )
    if code:
        pairs = [pair for pair in pairs if pair[0] == code]
        if not pairs:
            raise sense.invalid_field_in_cdb(2, 5)
    body = b''.join(bytes(pair) for pair in pairs)
    return struct.pack('>BBH', 0x40 | code, ALL_SUBPAGES, len(body)) + body


# -- LOG SELECT ------------------------------------------------------------------------------------


def log_select(unit: 'LogicalUnit', task: 'Task') -> None:
    """LOG SELECT, SPC-4 6.7: checked here; the master changes the records."""
    cdb = task.cdb
    reset, code, subpage = bool(cdb[1] & 0x02), cdb[2] & 0x3F, cdb[3]
    task.length = u16(cdb, 7)
    if task.length and (reset or code or subpage):
        raise sense.invalid_field_in_cdb(1, 1) if reset else sense.invalid_field_in_cdb(2, 5)
    if code or subpage:
        if subpage not in (0x00, ALL_SUBPAGES) or not any(
            row.code == code for row in offered_pages(unit.facts)
        ):
            raise sense.invalid_field_in_cdb(2, 5)
    task.data_out_length = task.length
    defaults = not task.length and cdb[2] >> 6 == DEFAULT_CUMULATIVE
    task.private = None
    if reset or defaults:
        task.private = (
            {'reset': True}
            if not code
            else {'errors': {COUNTED[code]: 0}}
            if code in COUNTED
            else {'statistics': True}
            if code == counters.STATISTICS_PAGE
            else None
        )
    task.run = _run_select


def _run_select(task):
    if not task.length:
        return Change('log-select', task.private) if task.private else None
    changes = _parse_select(task.unit, parameter_list(task, task.length), task.cdb[2] >> 6)
    return Change('log-select', changes) if changes else None


def _parse_select(unit, data, control):
    """Returns {'accounting_date': …, 'errors': …} of the pages in a parameter list."""
    changes, offset = {}, 0
    codes = {row.code for row in offered_pages(unit.facts)}
    while offset < len(data):
        if len(data) < offset + 4:
            raise sense.parameter_list_length_error()
        code, subpage, length = data[offset] & 0x3F, data[offset + 1], u16(data, offset + 2)
        if code not in codes:
            raise sense.invalid_field_in_parameter_list(offset, 5)
        if subpage or data[offset] & 0x40:
            raise sense.invalid_field_in_parameter_list(offset + 1)
        end = offset + 4 + length
        if end > len(data):
            raise sense.parameter_list_length_error()
        offset += 4
        while offset < end:
            offset = _parse_parameter(data, offset, end, code, control, changes)
    return changes


def _parse_parameter(data, offset, end, page, control, changes):
    """Store one parameter in `changes`; returns the offset of the next one."""
    if end < offset + PARAMETER.size:
        raise sense.parameter_list_length_error()
    code, _, length = PARAMETER.unpack_from(data, offset)
    value = data[offset + PARAMETER.size : offset + PARAMETER.size + length]
    if offset + PARAMETER.size + length > end:
        raise sense.parameter_list_length_error()
    if page == START_STOP_CYCLES and code == ACCOUNTING_DATE:
        if length != 6 or not all(c in b' 0123456789' for c in value):
            raise sense.invalid_field_in_parameter_list(offset + (4 if length == 6 else 3))
        changes['accounting_date'] = value.decode('ascii')
    elif page in COUNTED and code == UNCORRECTED:
        if length != 8:
            raise sense.invalid_field_in_parameter_list(offset + 3)
        if control == CUMULATIVE:  # there are no thresholds to change
            changes.setdefault('errors', {})[COUNTED[page]] = int.from_bytes(value, 'big')
    else:
        raise sense.invalid_field_in_parameter_list(offset)
    return offset + PARAMETER.size + length
