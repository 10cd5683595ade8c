"""Reload, ordered stop and control socket, with real worker processes."""

import json
import os
import signal
import socket

import pytest
from puppets import DISK, OPEN, OTHER, RAM, Stage, body

from targetd.errors import TargetdError
from targetd.master.logins.portals import free_port


def image(stage, name, size=1 << 20):
    path = os.path.join(stage.directory, name)
    with open(path, 'wb') as f:
        f.truncate(size)
    return path


def more(luns):
    """RAM's LUN 0 and these."""
    return dict(list(RAM.items()) + list(luns.items()))


def reload(stage, text, server=''):
    stage.write(text, server)
    rows = stage.master.reload.reload_and_wait()
    stage.master.jobs.wait()
    return rows


def test_a_reload_of_an_unchanged_file_does_nothing(served):
    client = served.login(DISK)
    spares = {w.pid for w in served.master.workers.all()}
    assert served.master.reload.reload_and_wait() == []
    served.settle()
    assert {w.pid for w in served.master.workers.all()} == spares and not client.heard[1:]


def test_a_target_is_added_without_effect_on_other_sessions(served):
    client = served.login(DISK)
    (row,) = reload(served, body(served, (DISK, OPEN, RAM), (OTHER, OPEN, RAM)))
    assert OTHER in row['step'] and row['effect']
    served.login(OTHER)
    assert len(client.heard) == 1


def test_a_plan_changes_nothing(served):
    served.write(body(served, (DISK, OPEN, RAM), (OTHER, OPEN, RAM)))
    assert len(served.master.reload.reload_and_wait(plan_only=True)) == 1
    assert served.connect().login(OTHER)[0] == (2, 3)


def test_an_invalid_file_changes_nothing_and_every_complaint_is_logged(served, capfd):
    client = served.login(DISK)
    served.write(body(served, (OTHER, ['initiator-adress = ALL', 'max-sessions = x'], RAM)))
    with pytest.raises(TargetdError):
        served.master.reload.reload_and_wait()
    os.kill(os.getpid(), signal.SIGHUP)
    served.settle()
    text = capfd.readouterr().err
    assert 'nothing was changed' in text and 'initiator-adress' in text and 'max-sessions' in text
    served.login(DISK, isid='00023d000002')
    assert len(client.heard) == 1


def test_a_store_that_cannot_be_opened_changes_nothing(served):
    with pytest.raises(TargetdError) as caught:
        reload(
            served,
            body(
                served,
                (DISK, OPEN, more({1: ['backing-store = %s/none' % served.directory]})),
                (OTHER, OPEN, RAM),
            ),
        )
    assert '/none' in str(caught.value) and DISK in str(caught.value)
    assert served.connect().login(OTHER)[0] == (2, 3)
    assert len(served.master.units.by_id) == 1


def test_a_portal_that_cannot_be_opened_changes_nothing(served):
    with socket.socket() as busy:
        busy.bind(('127.0.0.1', 0))
        busy.listen(1)
        text = body(served, (DISK, OPEN, RAM), (OTHER, OPEN, RAM)).replace(
            'portal = ', 'portal = 127.0.0.1:%d, ' % busy.getsockname()[1]
        )
        with pytest.raises(TargetdError) as caught:
            reload(served, text)
    assert 'portal' in str(caught.value)
    assert list(served.master.portals) == [(1, '127.0.0.1', served.port_number)]
    assert served.connect().login(OTHER)[0] == (2, 3)
    assert len(served.master.units.by_id) == 1


def test_a_portal_moves_and_the_session_stays(served):
    client = served.login(DISK)
    old, served.port_number = served.port_number, free_port('127.0.0.1', 0)
    reload(served, body(served, (DISK, OPEN, RAM)))
    with pytest.raises(OSError):
        socket.create_connection(('127.0.0.1', old), 1)
    served.login(DISK, isid='00023d000002')
    assert len(client.heard) == 1


def test_the_wildcard_can_take_over_the_port_of_an_address(served):
    text = body(served, (DISK, OPEN, RAM))
    reload(served, text.replace('127.0.0.1:', '0.0.0.0:'))
    assert list(served.master.portals) == [(1, '0.0.0.0', served.port_number)]
    reload(served, text)
    served.login(DISK)


def test_luns_are_added_and_removed_with_unit_attentions(served):
    client = served.login(DISK)
    path = image(served, 'one.img')
    reload(served, body(served, (DISK, OPEN, more({1: ['backing-store = %s' % path]}))))
    order = client.wait('units')
    assert (
        [u['lun'] for u in order['add']] == [1]
        and order['attentions'] == [[0x3F, 0x0E]]
        and order['_descriptors'] == 2
    )
    unit = next(u for u in served.master.units.by_id.values() if u.lun.number == 1)
    reload(served, body(served, (DISK, OPEN, RAM)))
    order = client.wait('units', 2)
    assert order['remove'] == [1] and order['attentions'] == [[0x3F, 0x0E]]
    served.until(lambda: unit.store.descriptor is None)
    assert [u['lun'] for u in served.login(DISK, isid='00023d000002').answer['units']] == [0]


def test_a_lun_changes_its_number_and_keeps_its_file(served):
    path = image(served, 'one.img')
    reload(served, body(served, (DISK, OPEN, more({1: ['backing-store = %s' % path]}))))
    client = served.login(DISK)
    reload(served, body(served, (DISK, OPEN, more({2: ['backing-store = %s' % path]}))))
    served.until(lambda: (client.listen(), len(client.of('units')) == 2)[1])
    assert sorted(served.master.units.of_target(DISK)) == [0, 2]


def test_a_file_grows_at_once(served):
    path = image(served, 'one.img')
    rows = ['backing-store = %s' % path, 'size = 1M']
    reload(served, body(served, (DISK, OPEN, {0: rows})))
    client = served.login(DISK)
    reload(served, body(served, (DISK, OPEN, {0: [rows[0], 'size = 3M']})))
    change = client.wait('change')
    assert change['size'] == 3 << 20 and change['attentions'] == [[0x2A, 0x09]]
    assert os.path.getsize(path) == 3 << 20
    assert served.login(DISK, isid='00023d000002').answer['units'][0]['store']['size'] == 3 << 20


def test_a_file_that_grew_outside_is_noticed_at_the_reload(served):
    path = image(served, 'one.img')
    text = body(served, (DISK, OPEN, {0: ['backing-store = %s' % path]}))
    reload(served, text)
    client = served.login(DISK)
    os.truncate(path, 5 << 20)
    reload(served, text)
    assert client.wait('change')['size'] == 5 << 20


def test_the_write_cache_is_switched_in_every_session(served):
    client = served.login(DISK)
    reload(served, body(served, (DISK, OPEN, {0: RAM[0] + ['write-cache = off']})))
    change = client.wait('change')
    assert bytes.fromhex(change['modes']['current']['08-00'])[2] & 4 == 0 and change[
        'attentions'
    ] == [[0x2A, 0x01]]


def test_another_store_waits_for_the_logout(served):
    first, second = image(served, 'first.img'), image(served, 'second.img', 2 << 20)
    reload(served, body(served, (DISK, OPEN, {0: ['backing-store = %s' % first]})))
    client = served.login(DISK)
    served.write(body(served, (DISK, OPEN, {0: ['backing-store = %s' % second]})))
    served.master.reload.reload_and_wait(now=True)
    assert client.wait('logout')['seconds'] == 10
    status, answer = served.connect(isid='00023d000002').login(DISK)
    assert status == (3, 1) and 'being changed' in answer['why']
    with pytest.raises(TargetdError):
        served.master.reload.reload_and_wait()
    client.close()
    served.until(lambda: not served.master.state.changing)
    unit = served.login(DISK, isid='00023d000003').answer['units'][0]
    assert unit['store']['size'] == 2 << 20 and unit['unit'] != client.answer['units'][0]['unit']


def stores(served, first, *second):
    """A configuration with two LUNs: LUN 1 has this file and further settings."""
    one = ['backing-store = %s' % image(served, first)] + list(second)
    return body(served, (DISK, OPEN, {0: RAM[0], 1: one}))


def settings_of(client):
    return {u['lun']: u['facts']['read_only'] for u in client.answer['units']}


def test_a_change_that_needs_a_logout_is_pending_and_ends_no_session(served):
    """A new session uses the old unit too; the last logout puts the change in force."""
    reload(served, stores(served, 'a.img'))
    one = served.login(DISK)
    reload(served, stores(served, 'a.img', 'readonly = yes'))
    two = served.login(DISK, isid='00023d000002')
    assert settings_of(two) == {0: False, 1: False}
    (row,) = [r for r in ask(served, 'show-units')['rows'] if r['lun'] == 1]
    assert row['state'] == 'ready; pending: readonly'
    one.close()
    served.settle()
    assert served.master.exports.pending
    two.close()
    served.until(lambda: not served.master.exports.pending and not served.master.state.changing)
    assert settings_of(served.login(DISK)) == {0: False, 1: True}


def test_a_pending_change_is_replaced_taken_back_or_removed_with_its_lun(served):
    served.write(stores(served, 'a.img'))
    served.master.reload.reload_and_wait()
    client = served.login(DISK)
    pending = served.master.exports.pending
    for text, expected in (
        (stores(served, 'a.img', 'readonly = yes'), [('a.img', True)]),
        (stores(served, 'b.img'), [('b.img', False)]),
        (stores(served, 'b.img', 'write-cache = off'), [('b.img', False)]),
        (stores(served, 'a.img'), []),
        (stores(served, 'a.img', 'thin = yes'), [('a.img', False)]),
        (body(served, (DISK, OPEN, RAM)), []),
    ):
        reload(served, text)
        found = [(os.path.basename(u.store.path), u.store.read_only) for u in pending.values()]
        assert found == expected
    assert list(served.master.sessions.all())[0].ended_why is None
    client.close()


def test_now_asks_the_sessions_that_an_earlier_reload_waits_for(served):
    reload(served, stores(served, 'a.img'))
    client = served.login(DISK)
    reload(served, stores(served, 'a.img', 'readonly = yes'))
    served.master.reload.reload_and_wait(now=True)
    assert client.wait('logout')['seconds'] == 10
    client.close()
    served.until(lambda: not served.master.state.changing)
    assert settings_of(served.login(DISK)) == {0: False, 1: True}


def test_the_medium_of_a_pending_change_cannot_become_another_lun(served):
    reload(served, stores(served, 'a.img'))
    client = served.login(DISK)
    reload(served, stores(served, 'b.img'))
    os.link(served.directory + '/b.img', served.directory + '/c.img')
    more = [(OTHER, OPEN, {0: ['backing-store = %s/c.img' % served.directory]})]
    two = {0: RAM[0], 1: ['backing-store = %s/b.img' % served.directory]}
    served.write(body(served, (DISK, OPEN, two), *more))
    with pytest.raises(TargetdError) as caught:
        served.master.reload.reload_and_wait()
    assert 'under another name' in str(caught.value)
    client.close()


def test_a_session_that_does_not_log_out_is_ended(served):
    client = served.login(DISK)
    reload(served, body(served, (OTHER, OPEN, RAM)))
    client.wait('logout')
    assert served.connect().login(DISK)[0] == (2, 3)
    served.leap(10)
    client.wait('end')
    client.wait_closed()
    served.until(lambda: [u.target_name for u in served.master.units.by_id.values()] == [OTHER])


def test_a_second_hangup_waits_for_the_first_to_be_done(served):
    client = served.login(DISK)
    reload(served, body(served, (OTHER, OPEN, RAM)))
    served.write(body(served, (DISK, OPEN, RAM)))
    os.kill(os.getpid(), signal.SIGHUP)
    served.settle()
    assert list(served.master.state.configuration.targets) == [OTHER]
    client.close()
    served.until(lambda: list(served.master.state.configuration.targets) == [DISK])


def test_a_session_that_is_not_admitted_any_more_is_ended_and_others_continue(served):
    one, two = (
        served.login(DISK),
        served.login(DISK, isid='00023d000002', name='iqn.2026-11.test:two'),
    )
    reload(served, body(served, (DISK, ['initiator-name = iqn.2026-11.test:two'], RAM)))
    assert 'initiator-name' in one.wait('end')['why']
    one.wait_closed()
    assert not two.of('end')


def test_a_changed_limit_applies_at_once(served):
    served.login(DISK)
    reload(served, body(served, (DISK, OPEN, RAM)), 'max-sessions = 1')
    assert served.connect(isid='00023d000002').login(DISK)[0] == (3, 2)


def test_a_setting_that_needs_a_restart_keeps_its_value(served):
    (row,) = reload(served, body(served, (DISK, OPEN, RAM)), 'user = daemon')
    assert 'restart' in row['effect']
    assert served.master.state.configuration.server.user == 'targetd'
    assert len(served.master.reload.reload_and_wait(plan_only=True)) == 1


def test_spares_are_replaced_by_spares_with_the_new_configuration(served):
    served.until(lambda: [w for w in served.master.workers.all() if w.state == 'spare'])
    old = {w.pid for w in served.master.workers.all()}
    reload(served, body(served, (DISK, OPEN, RAM), (OTHER, OPEN, RAM)))
    served.until(lambda: not old & {w.pid for w in served.master.workers.all()})
    served.login(OTHER)


def test_an_unavailable_lun_is_retried_with_its_changed_settings(stage):
    stage.start(body(stage, (DISK, OPEN, {0: ['backing-store = %s/a' % stage.directory]})))
    reload(
        stage,
        body(stage, (DISK, OPEN, {0: ['backing-store = %s/a' % stage.directory, 'size = 1M']})),
    )
    stage.leap(10)
    assert stage.login(DISK).answer['units'][0]['store']['size'] == 1 << 20


# -- the ordered stop ------------------------------------------------------------------------------


def stopped(stage):
    stage.until(lambda: stage.master.stop.stage == 'done')
    return '\n'.join(stage.master.stop.report)


def test_a_stop_asks_for_logout_waits_and_flushes(served):
    client = served.login(DISK)
    os.kill(os.getpid(), signal.SIGTERM)
    assert client.wait('logout')['seconds'] == 10
    assert served.master.stop.stage == 'asking'
    with pytest.raises(OSError):
        socket.create_connection(('127.0.0.1', served.port_number), 1)
    client.close()
    report = stopped(served)
    assert 'unit %s/0 is flushed' % DISK in report and 'did not log out' not in report
    assert served.master.workers.all() == []


def test_a_stop_ends_and_names_a_session_that_does_not_log_out(served):
    client = served.login(DISK)
    os.kill(os.getpid(), signal.SIGTERM)
    client.wait('logout')
    served.leap(10)
    assert client.wait('end')['reason'] == 'stopped'
    report = stopped(served)
    words = 'session %d of iqn.2026-11.test:one with %s did not log out'
    assert words % (client.answer['tsih'], DISK) in report


def test_a_worker_that_does_not_end_is_killed(served):
    client = served.login(DISK)
    client.say(puppet='deaf')
    os.kill(os.getpid(), signal.SIGTERM)
    client.wait('logout')
    served.leap(10)
    client.wait('end')
    served.leap(5)
    client.wait_closed()
    stopped(served)


def test_a_second_signal_ends_the_wait(served):
    client = served.login(DISK)
    os.kill(os.getpid(), signal.SIGTERM)
    client.wait('logout')
    os.kill(os.getpid(), signal.SIGINT)
    client.wait('end')
    stopped(served)


def test_a_stop_without_sessions_is_immediate(served):
    os.kill(os.getpid(), signal.SIGTERM)
    stopped(served)
    assert served.master.workers.all() == []


def test_a_stop_during_a_login_does_not_wait_for_it(served):
    client = served.connect()
    served.until(lambda: served.master.workers.busy())
    os.kill(os.getpid(), signal.SIGTERM)
    client.wait('end')
    stopped(served)


# -- the control socket ----------------------------------------------------------------------------


class Caller(object):
    def __init__(self, stage):
        self.stage = stage
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(5)
        self.socket.connect(os.path.join(stage.directory, 'control-socket'))
        self.socket.setblocking(False)
        self.received = b''

    def receive(self):
        try:
            data = self.socket.recv(1 << 20)
        except BlockingIOError:
            return False
        self.received += data
        return data == b'' or self.received.endswith(b'\n')

    def ask(self, **request):
        self.socket.sendall(json.dumps(request).encode() + b'\n')
        self.stage.until(self.receive)
        return json.loads(self.received.decode())


def ask(stage, command, **arguments):
    caller = Caller(stage)
    reply = caller.ask(command=command, **arguments)
    caller.socket.close()
    return reply


def test_only_the_owner_may_use_the_control_socket(served):
    path = os.path.join(served.directory, 'control-socket')
    assert os.stat(path).st_mode & 0o777 == 0o600
    served.close()
    assert not os.path.exists(path)
    served.master = None


def test_status_and_lists(served):
    client = served.login(DISK)
    facts = {row['name']: row['value'] for row in ask(served, 'status')['rows']}
    assert (
        facts['sessions'] == '1'
        and facts['process'] == str(os.getpid())
        and facts['state'] == 'running'
    )
    (session,) = ask(served, 'show-sessions')['rows']
    assert (
        session['tsih'] == client.answer['tsih']
        and session['target_name'] == DISK
        and session['connections'] == 1
    )
    (target,) = ask(served, 'show-targets')['rows']
    assert (target['target_name'], target['units'], target['sessions'], target['state']) == (
        DISK,
        1,
        1,
        'ready',
    )
    (unit,) = ask(served, 'show-units')['rows']
    assert (
        unit['unit'] == DISK + '/0'
        and unit['size'] == 1 << 20
        and unit['state'] == 'ready'
        and unit['sessions'] == 1
    )
    (portal,) = ask(served, 'show-portals')['rows']
    assert (
        portal['port'] == served.port_number
        and portal['state'] == 'open'
        and portal['connections'] == 1
    )


def test_missing_stores_and_reservations_are_shown(stage):
    stage.start(
        body(
            stage,
            (DISK, OPEN, more({1: ['backing-store = %s/none' % stage.directory]})),
            (OTHER, OPEN, RAM),
        )
    )
    client = stage.login(OTHER)
    client.say(ask='reserve', id=2, unit=OTHER + '/0')
    client.wait('answer', 2)
    rows = {(r['target_name'], r['lun']): r for r in ask(stage, 'show-units')['rows']}
    assert rows[DISK, 1]['state'].startswith('missing: ') and rows[DISK, 0]['state'] == 'ready'
    assert 'iqn.2026-11.test:one' in rows[OTHER, 0]['reserved_by']
    assert ask(stage, 'show-targets')['rows'][0]['state'].startswith('not complete')


def test_why_names_the_rule(served):
    reload(served, body(served, (DISK, ['initiator-address = 10.0.0.0/8'], RAM)))
    served.connect().login(DISK)
    (row,) = ask(served, 'why')['rows']
    assert row['status'] == '0202' and 'initiator-address' in row['why']
    assert ask(served, 'why', who='10.9.9.9')['rows'] == []
    assert len(ask(served, 'why', who='127.0.0.1')['rows']) == 1


def test_reload_by_command(served):
    served.write(body(served, (DISK, OPEN, RAM), (OTHER, OPEN, RAM)))
    assert len(ask(served, 'reload', plan=True)['rows']) == 1
    assert len(ask(served, 'reload')['rows']) == 1
    assert ask(served, 'reload')['rows'] == []
    served.write('[server')
    reply = ask(served, 'reload')
    assert not reply['ok'] and reply['exit_code'] == 3


def test_logout_and_end_by_command(served):
    client = served.login(DISK)
    assert ask(served, 'logout', session=client.answer['tsih'], seconds=3)['ok']
    assert client.wait('logout')['seconds'] == 3
    assert ask(served, 'end', session=client.answer['tsih'])['ok']
    assert client.wait('end')['reason'] == 'administrator'
    client.wait_closed()
    served.until(lambda: not served.master.sessions.all())
    reply = ask(served, 'end', session=client.answer['tsih'])
    assert not reply['ok'] and 'show sessions' in reply['error']


def test_acknowledge_by_command(served):
    client = served.login(DISK)
    assert not ask(served, 'acknowledge', unit=DISK + '/0')['ok']
    client.say(report='failed', unit=DISK + '/0', text='Input/output error')
    client.wait('change')
    assert 'Input/output error' in ask(served, 'show-units')['rows'][0]['state']
    assert ask(served, 'acknowledge', unit=DISK + '/0')['ok']
    assert client.wait('change', 2)['medium'] == 'ready'
    assert not ask(served, 'acknowledge', unit='nothing')['ok']


def test_stop_by_command_keeps_the_connection_open_until_the_end(served):
    caller = Caller(served)
    assert caller.ask(command='stop')['ok']
    stopped(served)
    served.master.close()
    served.master = None
    caller.socket.setblocking(True)
    assert caller.socket.recv(10) == b''


@pytest.mark.parametrize(
    'line',
    [
        b'\n',
        b'{}\n',
        b'nonsense\n',
        b'{"command": "burn"}\n',
        b'{"command": "end"}\n',
        b'{"command": ["status"]}\n',
        b'x' * 70000,
    ],
)
def test_a_malformed_request_is_answered_with_an_error(served, line):
    caller = Caller(served)
    caller.socket.setblocking(True)
    caller.socket.sendall(line)
    caller.socket.setblocking(False)
    served.until(caller.receive)
    assert json.loads(caller.received.decode())['ok'] is False
    assert ask(served, 'status')['ok']


def test_a_silent_client_is_disconnected(served):
    caller = Caller(served)
    served.until(lambda: served.master.control._clients)
    served.leap(301)
    assert not served.master.control._clients
    caller.socket.setblocking(True)
    assert caller.socket.recv(1) == b''


def test_a_stale_socket_is_replaced_and_one_in_use_is_not(served):
    other = Stage(served.directory)
    other.port_number = free_port('127.0.0.1', 0)
    with pytest.raises(TargetdError) as caught:
        other.start(body(other, (OTHER, OPEN, RAM)))
    assert 'another program serves it' in str(caught.value)
    served.settle()
    path = os.path.join(served.directory, 'control-socket')
    served.close()
    served.master = None
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    other.start(body(other, (OTHER, OPEN, RAM)))
    assert ask(other, 'status')['ok']
    other.close()
