"""The master with real worker processes: routing, admission, and what happens to a session when a
process dies."""

import os
import signal
import time

import pytest
from puppets import DISK, OPEN, OTHER, RAM, body

from targetd.errors import EXIT_NOT_DURABLE, TargetdError
from targetd.master.exports import open_medium
from targetd.master.logins.portals import free_port
from targetd.master.master import LOGINS_IN_PROGRESS
from targetd.master.processes import jobs
from targetd.master.units import flushing


def test_a_login_is_claimed_and_gets_its_units_with_descriptors(served):
    client = served.login(DISK)
    (unit,) = client.answer['units']
    assert unit['lun'] == 0 and unit['store']['size'] == 1 << 20 and unit['medium'] == 'ready'
    assert client.answer['_descriptors'] == 1 and client.answer['tsih'] > 0
    assert len(unit['facts']['naa']) == 32 and unit['facts']['serial']


def test_an_identity_outlasts_the_server_and_the_lun_number(served, tmp_path):
    path = served.directory + '/disk.img'
    before = (DISK, OPEN, {0: ['backing-store = %s' % path, 'size = 1M']})
    served.close()
    served.start(body(served, before))
    first = served.login(DISK).answer['units'][0]['facts']
    served.close()
    served.start(body(served, (DISK, OPEN, {5: ['backing-store = %s' % path]}), (OTHER, OPEN, RAM)))
    second = served.login(DISK).answer['units'][0]['facts']
    other = served.login(OTHER).answer['units'][0]['facts']
    assert (first['naa'], first['serial']) == (second['naa'], second['serial'])
    assert other['naa'] != first['naa']


@pytest.mark.parametrize(
    'lines, status',
    [
        (['initiator-address = 10.0.0.0/8'], (2, 2)),
        (['initiator-address = ALL', 'initiator-name = iqn.2026-11.test:two'], (2, 2)),
        ([], (2, 2)),
        (['initiator-address = ALL', 'state = offline'], (3, 1)),
        (['initiator-name = iqn.2026-11.test:*'], (0, 0)),
    ],
)
def test_admission(stage, lines, status, capfd):
    stage.start(body(stage, (DISK, lines, RAM)))
    got, answer = stage.connect().login(DISK)
    assert got == status
    if status != (0, 0):
        assert answer['why'] and answer['why'] in capfd.readouterr().err


def test_a_target_that_is_not_there(served):
    assert served.connect().login('iqn.2026-11.test:nothing')[0] == (2, 3)


def test_a_target_in_another_portal_group(stage):
    second = '[portal-group 2]\nportal = 127.0.0.1:%d\n' % free_port('127.0.0.1', 0)
    stage.start(body(stage, (DISK, OPEN + ['portal-group = 2'], RAM)) + second)
    assert stage.connect(port=stage.port_number).login(DISK)[0] == (2, 3)


def test_max_sessions_of_a_target(stage):
    stage.start(body(stage, (DISK, OPEN + ['max-sessions = 1'], RAM)))
    stage.login(DISK)
    assert stage.connect(isid='00023d000002').login(DISK)[0] == (3, 2)


def test_the_worker_that_owns_a_tsih_gets_its_connections(served):
    client = served.login(DISK)
    tsih = client.answer['tsih']
    record = served.master.sessions.by_tsih[tsih]
    further = served.connect(tsih=tsih, cid=1)
    served.until(lambda: len(served.master.workers.busy()) == 2)
    assert record.worker.handed == {} or len(record.worker.handed) == 1  # its first connection
    assert further.login(DISK, tsih=tsih, cid=1)[0] == (0, 0)
    served.until(lambda: len(served.master.workers.busy()) == 1)
    assert len(record.peers) == len(record.worker.peers) == 2
    client.say(ask='leave', id=9)
    served.until(lambda: (further.listen(), [m for m in further.heard if m.get('id') == 9])[1])


def test_an_unknown_tsih_is_a_login_that_a_spare_refuses(served):
    assert served.connect(tsih=4711).login(DISK, tsih=4711)[0] == (2, 10)


def test_kill_9_of_a_worker_loses_its_session_only(served, capfd):
    one, two = served.login(DISK), served.login(DISK, isid='00023d000002')
    victim = served.master.sessions.by_tsih[one.answer['tsih']].worker
    os.kill(victim.pid, signal.SIGKILL)
    one.wait_closed()
    served.until(lambda: len(served.master.sessions.all()) == 1)
    assert not two.is_closed
    served.login(DISK)
    assert 'worker %d was killed by signal 9' % victim.pid in capfd.readouterr().err


def test_reinstatement_by_isid(served):
    one = served.login(DISK)
    again = served.login(DISK)
    assert one.of('end') or one.wait('end')
    assert one.of('end')[0]['reason'] == 'reinstated' and one.is_closed or one.wait_closed() is None
    assert again.answer['tsih'] != one.answer['tsih'] and len(served.master.sessions.all()) == 1


def test_reinstatement_of_a_worker_that_does_not_end(served):
    one = served.login(DISK)
    one.say(puppet='deaf')
    again = served.connect()
    again.claim(DISK)
    one.wait('end')
    assert not again.of('answer')
    served.leap(5)
    assert again.wait('answer')['status_class'] == 0
    one.wait_closed()


def test_a_worker_that_was_ordered_to_end_gets_no_connection(served):
    """Its report that it is idle crosses the order, after which it exits: a connection that it was
    sent meanwhile would be reset."""
    one = served.login(DISK)
    worker = served.master.sessions.all()[0].worker
    one.say(puppet='deaf')
    again = served.connect()
    again.claim(DISK)
    one.wait('end')
    one.say(puppet='idle')
    again.wait('answer')
    assert worker.pid in served.master.workers.by_pid
    for number in range(6):
        served.login(DISK, isid='00023d0001%02x' % number)
    assert worker.pid not in [each.worker.pid for each in served.master.sessions.all()]


def test_a_change_is_in_force_in_every_worker_before_its_answer(served):
    one, two = served.login(DISK), served.login(DISK, isid='00023d000002')
    unit = one.answer['units'][0]['unit']
    one.say(ask='reserve', id=2, unit=unit)
    assert one.wait('answer', 2)['status'] == 0
    assert (
        one.of('change')[0]['reservations']['reserved_by']
        == two.wait('change')['reservations']['reserved_by']
    )
    one.close()
    assert two.wait('change', 2)['reservations']['reserved_by'] is None


def test_a_worker_that_does_not_acknowledge_is_fenced(served):
    one, two = served.login(DISK), served.login(DISK, isid='00023d000002')
    two.say(puppet='deaf')
    two.wait('deaf')
    one.say(ask='reset', id=2, unit=one.answer['units'][0]['unit'], function='logical-unit-reset')
    assert two.wait('change')['abort'] and two.of('change')[0]['attentions'] == [[0x29, 3]]
    pending = served.master.replication.acknowledgements._pending
    served.until(lambda: [len(each.workers) for each in pending.values()] == [1])
    assert len(one.of('answer')) == 1
    served.leap(10)
    two.wait_closed()
    assert one.wait('answer', 2)['status'] == 0


def test_kill_9_of_the_worker_that_requested_a_change_during_it(served):
    one, two = served.login(DISK), served.login(DISK, isid='00023d000002')
    unit = one.answer['units'][0]['unit']
    one.say(ask='reserve', id=2, unit=unit)
    one.say(puppet='die')
    served.until(lambda: len(served.master.sessions.all()) == 1)
    two.say(ask='reserve', id=2, unit=unit)
    assert two.wait('answer', 2)['status'] == 0


def test_cold_reset_ends_the_other_sessions(served):
    one, two = served.login(DISK), served.login(DISK, isid='00023d000002')
    one.say(ask='reset', id=2, unit=one.answer['units'][0]['unit'], function='target-cold-reset')
    assert two.wait('end')['reason'] == 'target-cold-reset'
    two.wait_closed()
    assert not one.of('end')


def test_a_burst_of_logins_waits_for_workers_and_is_served(stage):
    stage.start(body(stage, (DISK, OPEN, RAM)))
    clients = [stage.connect(isid='00023d0001%02d' % n) for n in range(10)]
    for client in clients:
        client.claim(DISK)
    assert [c.wait('answer')['status_class'] for c in clients] == [0] * 10


def test_logins_beyond_the_limit_of_a_full_server_wait_and_are_refused_at_last(stage):
    stage.start(body(stage, (DISK, OPEN, RAM)), 'max-sessions = 1')
    clients = [
        stage.connect(isid='00023d0001%02d' % n, source='127.0.0.%d' % (n // 4 + 1))
        for n in range(20)
    ]
    stage.until(lambda: len(stage.master.workers.busy()) == 1 + LOGINS_IN_PROGRESS)
    stage.until(lambda: len(stage.master.pending_connections.by_age) == 3)
    assert not any(c.received for c in clients)
    stage.leap(15)  # the login timeout
    stage.until(
        lambda: ([c.listen() for c in clients], any(c.received[:1] == b'\x23' for c in clients))[1]
    )
    refused = [c for c in clients if c.received]
    assert all(c.received[36:38] == b'\x03\x02' for c in refused) and len(refused) < 20


def test_the_worker_of_a_discovery_session_becomes_a_spare(served):
    client = served.connect()
    assert client.login(None)[0] == (0, 0)
    (session,) = served.master.sessions.all()
    worker = session.worker
    client.say(puppet='idle')
    served.until(lambda: worker.state == 'spare')
    assert served.master.sessions.all() == []


def test_a_missing_file_makes_only_its_target_unavailable(stage, capfd):
    path = stage.directory + '/late.img'
    stage.start(body(stage, (DISK, OPEN, {0: ['backing-store = %s' % path]}), (OTHER, OPEN, RAM)))
    status, answer = stage.connect().login(DISK)
    assert status == (3, 1) and path in answer['why']
    stage.login(OTHER)
    with open(path, 'wb') as f:
        f.truncate(1 << 20)
    stage.leap(10)
    assert stage.login(DISK).answer['units'][0]['store']['size'] == 1 << 20
    assert 'is available now' in capfd.readouterr().err


def test_a_server_without_any_usable_store_still_runs(stage):
    stage.start(body(stage, (DISK, OPEN, {0: ['backing-store = %s/none' % stage.directory]})))
    assert stage.connect().login(DISK)[0] == (3, 1)


def test_a_failed_unit_is_failed_in_every_session(served):
    one, two = served.login(DISK), served.login(DISK, isid='00023d000002')
    one.say(report='failed', unit=one.answer['units'][0]['unit'], text='Input/output error')
    assert two.wait('change')['medium'] == 'failed'
    assert served.login(DISK, isid='00023d000003').answer['units'][0]['medium'] == 'failed'


def test_an_aptpl_registration_is_on_disk_before_its_answer(stage):
    path = stage.directory + '/disk.img'
    stage.start(body(stage, (DISK, OPEN, {0: ['backing-store = %s' % path, 'size = 1M']})))
    one = stage.login(DISK)
    one.say(
        ask='persistent-reserve-out',
        id=2,
        unit=one.answer['units'][0]['unit'],
        service_action=6,
        scope=0,
        type=0,
        key='0' * 16,
        service_action_key='00000000000000aa',
        aptpl=True,
        all_tg_pt=False,
        unregister=False,
        transport_ids=None,
        target_ports=[],
    )
    assert one.wait('answer', 2)['status'] == 0
    for worker in stage.master.workers.all():  # as after kill -9 of every process
        os.kill(worker.pid, signal.SIGKILL)
    stage.close()
    stage.start(body(stage, (DISK, OPEN, {0: ['backing-store = %s' % path]})))
    (registration,) = stage.login(DISK).answer['units'][0]['reservations']['registrations']
    assert registration['key'] == '00000000000000aa'


def open_text(path):
    with open(path) as f:
        return f.read()


def test_the_log_is_opened_again_and_workers_log_through_the_master(stage, tmp_path):
    from targetd import log
    from targetd.master.processes.log_writer import LogWriter

    log_file, rotated = str(tmp_path / 'log'), str(tmp_path / 'log.1')
    writer = LogWriter(log_file)
    writer.wait_started()
    writer.use()
    try:
        stage.start(body(stage, (DISK, OPEN, RAM)))
        stage.master.log_files.adopt_writer(writer)
        client = stage.login(DISK)
        os.rename(log_file, rotated)
        os.kill(os.getpid(), signal.SIGUSR1)
        stage.until(lambda: os.path.exists(log_file))
        client.say(puppet='log', count=1)
        pid = stage.master.sessions.all()[0].worker.pid
        stage.until(lambda: 'targetd[%d] line 0 of a puppet' % pid in open_text(log_file))
        with open(rotated) as f:
            assert 'logged in' in f.read()
    finally:
        log.stop()


# -- disks that do not answer ----------------------------------------------------------------------


@pytest.fixture
def dead(stage, monkeypatch):
    """The path of a medium: a process that opens or flushes it blocks as long as the file `dead`
    exists."""
    path = os.path.join(stage.directory, 'disk.img')
    stays = os.path.join(stage.directory, 'dead')
    with open(path, 'wb') as f, open(stays, 'wb'):
        f.truncate(1 << 20)

    def block():
        while os.path.exists(stays):
            time.sleep(0.01)

    real_open, real_flush = open_medium.open_store, flushing.flush_medium
    monkeypatch.setattr(
        open_medium,
        'open_store',
        lambda wanted, held: (wanted['path'] == path and block(), real_open(wanted, held))[1],
    )
    monkeypatch.setattr(
        flushing,
        'flush_medium',
        lambda description, descriptor: (
            os.readlink('/proc/self/fd/%d' % descriptor) == path and block(),
            real_flush(description, descriptor),
        )[1],
    )
    monkeypatch.setattr(jobs, 'SECONDS', 0.5)
    return path


def test_a_disk_that_does_not_answer_does_not_delay_other_targets(stage, dead, capfd):
    stage.start(body(stage, (DISK, OPEN, {0: ['backing-store = %s' % dead]}), (OTHER, OPEN, RAM)))
    assert (
        'disk.img cannot be opened: there was no answer within 0.5 seconds'
        in capfd.readouterr().err
    )
    assert stage.connect().login(DISK)[0] == (3, 1)
    stage.login(OTHER)
    stage.master.loop.call_later(0, stage.master.exports.retry_now)
    stage.until(lambda: not stage.master.jobs.is_idle)
    stage.login(OTHER, isid='00023d000002')  # while it is being looked for
    assert not stage.master.jobs.is_idle
    os.unlink(os.path.join(stage.directory, 'dead'))
    stage.until(lambda: not stage.master.exports.unavailable or (stage.leap(10), False)[1])
    stage.login(DISK)


def test_a_reload_with_such_a_disk_changes_nothing_and_delays_no_login(served, dead):
    served.write(body(served, (DISK, OPEN, {0: RAM[0], 1: ['backing-store = %s' % dead]})))
    outcome = []
    served.master.reload.start_reload(lambda rows, error: outcome.append(error))
    served.login(DISK)
    assert not outcome
    with pytest.raises(TargetdError) as caught:
        served.master.reload.reload_and_wait()
    assert 'still waits for a disk to answer' in str(caught.value)
    served.until(lambda: outcome)
    assert 'does not respond' in str(outcome[0]) and len(served.master.units.by_id) == 1


def test_a_stop_reports_the_disk_that_does_not_answer_and_ends(stage, dead, monkeypatch, capfd):
    monkeypatch.setattr(flushing, 'FLUSH_SECONDS', 0.5)
    os.rename(os.path.join(stage.directory, 'dead'), os.path.join(stage.directory, 'dying'))
    stage.start(body(stage, (DISK, OPEN, {0: ['backing-store = %s' % dead]}), (OTHER, OPEN, RAM)))
    os.rename(os.path.join(stage.directory, 'dying'), os.path.join(stage.directory, 'dead'))
    stage.master.stop.start_stop('the test')
    stage.until(lambda: stage.master.stop.stage == 'done')
    report = '\n'.join(stage.master.stop.report)
    assert (
        '%s/0 could NOT be flushed: there was no answer' % DISK in report
        and '%s/0 is flushed' % OTHER in report
    )
    assert stage.master.stop.exit_code == EXIT_NOT_DURABLE


# -- disks that were exchanged -------------------------------------------------------------


def test_a_file_that_is_gone_is_not_created_again_until_accepted(stage, capfd):
    path = os.path.join(stage.directory, 'disk.img')
    lun = {0: ['backing-store = %s' % path, 'size = 1M']}
    stage.start(body(stage, (DISK, OPEN, lun)))
    stage.close()
    os.rename(path, path + '.elsewhere')
    stage.start(body(stage, (DISK, OPEN, lun)))
    assert 'is its file system mounted?' in capfd.readouterr().err
    assert stage.connect().login(DISK)[0] == (3, 1) and not os.path.exists(path)
    os.rename(path + '.elsewhere', path)  # it was not
    stage.leap(10)
    stage.login(DISK)
    stage.close()
    os.unlink(path)
    stage.start(body(stage, (DISK, OPEN, lun)))
    stage.master.answers.answer('accept', {'unit': DISK + '/0'})
    stage.master.jobs.wait()
    stage.login(DISK)


@pytest.mark.parametrize(
    'unit, complaint',
    [(DISK, 'is not TARGET/LUN'), (DISK + '/7', 'no medium is recorded for lun 7')],
)
def test_accept_for_an_unknown_lun(served, unit, complaint):
    with pytest.raises(TargetdError) as caught:
        served.master.answers.answer('accept', {'unit': unit})
    assert complaint in str(caught.value)


def test_a_lun_that_was_taken_out_of_the_configuration_is_forgotten(stage):
    path = os.path.join(stage.directory, 'disk.img')
    both = {0: RAM[0], 1: ['backing-store = %s' % path, 'size = 1M']}
    stage.start(body(stage, (DISK, OPEN, both)))
    for luns in (RAM, both):
        stage.write(body(stage, (DISK, OPEN, luns)))
        stage.master.reload.reload_and_wait()
        if luns is RAM:
            os.unlink(path)
    assert os.path.exists(path)


def test_a_disk_that_this_host_counts_on_is_refused_with_the_reason(stage, monkeypatch, capfd):
    one, two = os.path.join(stage.directory, 'one'), os.path.join(stage.directory, 'two')
    for device in (one, two):
        with open(device, 'wb') as f:
            f.truncate(1 << 20)
    monkeypatch.setattr(open_medium, '_is_disk', lambda path: True)
    monkeypatch.setattr(
        open_medium.claims,
        'find_claims',
        lambda path, found, descriptor: ['%s is listed in /etc/fstab' % path],
    )
    stage.start(
        body(
            stage,
            (DISK, OPEN, {0: ['backing-store = %s' % one]}),
            (OTHER, OPEN, {0: ['backing-store = %s' % two, 'allow-in-use = yes']}),
        )
    )
    assert (
        'is listed in /etc/fstab. To export it nevertheless, write allow-in-use = yes'
        in capfd.readouterr().err
    )
    assert stage.connect().login(DISK)[0] == (3, 1)
    stage.login(OTHER)
