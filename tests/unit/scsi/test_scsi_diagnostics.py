"""Self-tests and their results in log page 10h, and power conditions, as seen by an initiator."""

import struct

import pytest
from fake_store import BLOCKS, cdb_10, do, make_unit, sense_of

from targetd.scsi import records

HOUR = 3600000
RESULTS = bytes.fromhex('4d 00 50 00 00 0000 ffff 00')


def send_diagnostic(code=0, self_test=False):
    return bytes((0x1D, code << 5 | (4 if self_test else 0), 0, 0, 0, 0))


def results(unit):
    """[(code, result, number, hours, address, key, asc, ascq)] of the entries in log page 10h."""
    data = do(unit, RESULTS)
    found = []
    for n in range(20):
        number, _, length, first, segment, hours, address, key, asc, ascq = struct.unpack_from(
            '>HBBBBHQBBB', data, 4 + 20 * n
        )
        assert number == n + 1 and length == 16
        if any(data[8 + 20 * n : 24 + 20 * n]):
            found.append((first >> 5, first & 15, segment, hours, address, key, asc, ascq))
    return found


NOWHERE = 0xFFFFFFFFFFFFFFFF


@pytest.mark.parametrize(
    'cdb, code',
    [
        (send_diagnostic(self_test=True), 0),
        (send_diagnostic(5), 5),
        (send_diagnostic(6), 6),
        (send_diagnostic(1), 1),
        (send_diagnostic(2), 2),
    ],
)
def test_a_self_test_that_passes_is_in_the_log(cdb, code):
    unit = make_unit()
    unit.services.started_at, unit.services.milliseconds = 0, lambda: 5 * HOUR + 17
    assert do(unit, cdb) is None
    assert results(unit) == [(code, 0, 0, 5, NOWHERE, 0, 0, 0)]


def test_an_extended_self_test_reads_every_block():
    unit = make_unit(blocks=BLOCKS + 3)
    do(unit, send_diagnostic(6))
    assert sum(call[2] for call in unit.store.calls) == (BLOCKS + 3) * 512


def test_a_failed_self_test_reports_the_address():
    unit = make_unit()
    unit.store.bad = (BLOCKS // 2 * 512,)
    assert sense_of(unit, send_diagnostic(5)) == (4, 0x3E, 3)
    assert results(unit) == [(5, 7, 1, 0, BLOCKS // 2, 3, 0x11, 0)]


def test_a_background_test_continues_after_its_command():
    unit = make_unit()
    started = []
    unit.services.run_in_thread = lambda work, argument: started.append((work, argument))
    unit.store.bad = (0,)
    assert do(unit, send_diagnostic(2)) is None
    assert [test[:2] for test in results(unit)] == [(2, 15)]
    assert sense_of(unit, send_diagnostic(1)) == (2, 0x04, 0x09)
    work, argument = started[0]
    work(argument)
    assert results(unit) == [(2, 7, 1, 0, 0, 3, 0x11, 0)]
    assert do(unit, send_diagnostic(1)) is None


def test_a_background_test_can_be_aborted():
    unit = make_unit()
    started = []
    unit.services.run_in_thread = lambda work, argument: started.append((work, argument))
    assert sense_of(unit, send_diagnostic(4)) == (5, 0x24, 0)
    do(unit, send_diagnostic(2))
    assert do(unit, send_diagnostic(4)) is None
    started[0][0](started[0][1])
    assert [test[:2] for test in results(unit)] == [(2, 1)]
    assert unit.store.calls == []


def test_the_log_has_twenty_results_and_the_newest_is_first():
    unit = make_unit()
    for n in range(25):
        do(unit, send_diagnostic(5 if n % 2 else 6))
    found = results(unit)
    assert len(found) == 20 and found[0][0] == 6 and found[1][0] == 5


@pytest.mark.parametrize('medium', ['ejected', 'stopped'])
def test_a_unit_without_a_medium_passes_the_other_tests(medium):
    unit = make_unit(medium=medium)
    assert do(unit, send_diagnostic(6)) is None
    assert unit.store.calls == [] and results(unit)[0][1] == 0


def test_results_are_sent_to_the_master():
    unit = make_unit()
    reported = []
    unit.services.note = lambda kind, message: reported.append(
        (kind, message['result'], message['by'])
    )
    do(unit, send_diagnostic(1))
    by = [unit.nexus.initiator_port, unit.nexus.target_port]
    assert reported == [('self-test', records.IN_PROGRESS, by), ('self-test', 0, by)]


# -- power conditions ------------------------------------------------------------------------------


def start_stop(condition, start=0):
    return bytes((0x1B, 0, 0, 0, condition << 4 | start, 0))


def power(unit):
    data = do(unit, bytes.fromhex('03 00 0000 fc 00'))
    return data[2] & 0xF, data[12], data[13]


@pytest.mark.parametrize(
    'condition, code',
    [
        (2, (0, 0x5E, 3)),
        (0xA, (0, 0x5E, 3)),
        (3, (0, 0x5E, 4)),
        (0xB, (0, 0x5E, 4)),
        (1, (0, 0, 0)),
        (7, (0, 0, 0)),
    ],
)
def test_request_sense_reports_the_requested_power_condition(condition, code):
    unit = make_unit()
    do(unit, start_stop(condition))
    assert power(unit) == code


def test_a_unit_in_standby_executes_commands_and_becomes_active():
    unit = make_unit()
    do(unit, start_stop(3))
    assert do(unit, bytes(6)) is None and power(unit) == (0, 0x5E, 4)
    assert do(unit, cdb_10(0x28, 0, 1)) == bytes(512)
    assert power(unit) == (0, 0, 0)
    assert unit.dispatch[0x28] != unit._admit


@pytest.mark.parametrize('cdb', [start_stop(1), start_stop(0, 1), start_stop(7)])
def test_a_unit_can_be_made_active(cdb):
    unit = make_unit()
    do(unit, start_stop(2))
    do(unit, cdb)
    assert power(unit) == (0, 0, 0)
