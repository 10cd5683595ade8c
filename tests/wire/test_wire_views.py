"""The commands that look at sessions, workers, reservations and the configuration, with the real server."""

import json
import struct

import pytest
from daemon import TARGET, eventually
from initiator import ASYNC, INITIATOR, LoginFailed, connect

pytestmark = pytest.mark.wire
UNIT = TARGET + '/0'
SECRET = 'secret-of-anna-1'


def rows(daemon, *words):
    return json.loads(daemon.control(*(words + ('--json',))))


def refused(daemon, *words):
    code, output = daemon.targetdctl(*words)
    assert code == 1 and 'Traceback' not in output, output
    return output


def register(session, key=b'\0' * 7 + b'\7', kind=1):
    """REGISTER and RESERVE (write exclusive)."""
    session.run(struct.pack('>BBBHIB', 0x5F, 0, 0, 0, 24, 0), out=bytes(8) + key + bytes(8)).good()
    session.run(struct.pack('>BBBHIB', 0x5F, 1, kind, 0, 24, 0), out=key + bytes(16)).good()


@pytest.fixture
def used(daemon):
    daemon.target()
    return daemon.start()


def test_connections_settings_and_workers(used, ready):
    session = ready(used)
    (row,) = rows(used, 'show', 'sessions')
    (connection,) = rows(used, 'show', 'connections')
    port = session.wire.socket.getsockname()[1]
    assert connection['tsih'] == row['tsih'] and connection['address'] == '127.0.0.1:%d' % port
    keys = {each['key']: each['value'] for each in rows(used, 'show', 'settings', str(row['tsih']))}
    assert keys['ErrorRecoveryLevel'] == '0' and keys['ImmediateData'] in ('Yes', 'No')
    assert 'no session' in refused(used, 'show', 'settings', '1000000')
    workers = {each['pid']: each for each in rows(used, 'show', 'workers')}
    mine = workers[row['pid']]
    assert mine['tsih'] == row['tsih'] and mine['initiator_name'] == INITIATOR
    assert mine['memory'] > 1 << 20 and mine['age'] >= 0


def test_the_configuration_is_shown_without_secrets(daemon):
    daemon.target(lines=('initiator-address = ALL', 'incominguser = anna %s' % SECRET))
    daemon.start()
    text = eventually(lambda: daemon.targetdctl('show', 'config')[1].startswith('[server]')) and (
        daemon.control('show', 'config')
    )
    assert '[target %s]' % TARGET in text and 'incominguser = anna ***' in text
    assert SECRET not in text


def test_a_reservation_is_shown_and_cleared_and_its_holder_is_notified(used, ready):
    session = ready(used)
    register(session)
    (row,) = rows(used, 'reservation', 'show')
    assert row['key'] == '0x0000000000000007' and row['holds'] is True
    assert row['type'] == 'write exclusive'
    used.control('reservation', 'clear', UNIT)
    assert (6, 0x2A, 0x03) in session.clear_attentions()
    assert rows(used, 'reservation', 'show', UNIT) == []
    assert 'no reservation' in refused(used, 'reservation', 'clear', UNIT)
    assert 'no unit' in refused(used, 'reservation', 'clear', TARGET + '/7')
    session.close()
    used.stop()
    used.start()
    assert rows(used, 'reservation', 'show') == []


def test_drain_waits_until_no_session_is_left(used, ready):
    polite, silent = ready(used), ready(used, name='iqn.2026-11.test:silent')
    assert 'state from ready to offline' in used.control('drain', TARGET, '--dry-run')
    from threading import Thread

    output = []
    waiting = Thread(target=lambda: output.append(used.control('drain', TARGET, '--seconds', '3')))
    waiting.start()
    assert polite.until(ASYNC).bhs[36] == 1
    assert polite.logout() == 0
    waiting.join(30)
    silent.wait_closed()
    assert 'is drained' in output[0], output
    with pytest.raises(LoginFailed):
        connect(used.address, TARGET)
    used.control('target', 'online', TARGET)
    connect(used.address, TARGET).close()
    assert 'no target' in refused(used, 'drain', 'iqn.2026-11.test:none')


def test_a_unit_is_identified_by_the_names_that_initiators_show(used, ready):
    ready(used)
    found = {row['what']: row['value'] for row in rows(used, 'identify', UNIT)}
    unit = used.units()[0]
    assert found['serial number'] == unit['serial'] and found['NAA'] == unit['naa']
    assert found['Windows'].endswith(unit['naa'].upper()) and found['logged in'] == INITIATOR
    assert found['store'] == unit['path']
    assert 'no unit' in refused(used, 'identify', TARGET + '/7')


def test_why_finds_refusals_by_initiator_and_by_target(used):
    for name, target in (('one', 'x'), ('two', 'y')):
        with pytest.raises(LoginFailed):
            connect(used.address, 'iqn.2026-11.test:' + target, name='iqn.2026-11.test:' + name)
    assert [row['initiator_name'] for row in rows(used, 'why', 'iqn.2026-11.test:ONE')] == [
        'iqn.2026-11.test:one'
    ]
    assert [row['target_name'] for row in rows(used, 'why', 'iqn.2026-11.test:y')] == [
        'iqn.2026-11.test:y'
    ]
    assert len(rows(used, 'why', '127.0.0.1')) == 2
    assert len(rows(used, 'why', '127.0.0.1', 'iqn.2026-11.test:x')) == 1
    assert 'admits every initiator' in used.control('why', TARGET)


def test_errors_of_all_units_are_listed(used):
    assert 'no error is recorded' in used.control('show', 'errors')
