"""What the server publishes while it runs: metrics over HTTP, files, the answers to snmpd, lines for
systemd, and the commands of on-event."""

import http.client
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import time

import psutil
import pytest
from daemon import ROOT, TARGET, eventually, free_port, is_listening
from initiator import LoginFailed

pytestmark = pytest.mark.wire


def get(port, path='/metrics', method='GET'):
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=15)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode('utf-8')
    finally:
        connection.close()


def values(text):
    """{'name{labels}': number} of the metrics."""
    pairs = [line.rsplit(' ', 1) for line in text.splitlines() if not line.startswith('#')]
    return {name: float(number) for name, number in pairs}


def is_exporter(process):
    try:
        return 'targetd.admin.exporter' in process.cmdline()
    except psutil.Error:  # it has ended
        return False


def exporters(daemon):
    return [p for p in psutil.Process(daemon.process.pid).children() if is_exporter(p)]


@pytest.fixture
def measured(daemon):
    port = free_port()
    daemon.text.server['metrics'] = '127.0.0.1:%d' % port
    daemon.target()
    daemon.start()
    eventually(lambda: is_listening(('127.0.0.1', port)), 15, 'the port of the metrics')
    return daemon, port


def test_metrics_over_http_count_and_promtool_is_content(measured, ready):
    daemon, port = measured
    session = ready(daemon)
    for number in range(130):
        session.read(number, 8)
    session.write(0, bytes(8192))
    status, text = get(port)
    assert status == 200
    found, unit = values(text), '{lun="0",target="%s"}' % TARGET
    assert found['targetd_up'] == 1
    assert found['targetd_unit_reads_total' + unit] == 130
    assert found['targetd_unit_read_bytes_total' + unit] == 130 * 4096
    assert found['targetd_unit_written_bytes_total' + unit] == 8192
    count = 'targetd_unit_latency_seconds_count{kind="read",lun="0",target="%s"}' % TARGET
    assert found[count] >= 1
    session.logout()

    def outlives_the_session():
        return values(get(port)[1]).get('targetd_unit_reads_total' + unit) == 130

    eventually(outlives_the_session, 10, 'the counters after the logout')
    promtool = shutil.which('promtool')
    if promtool is None:
        pytest.skip('promtool is not installed')
    ran = subprocess.run(
        [promtool, 'check', 'metrics'],
        input=text.encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
    )
    assert (ran.returncode, ran.stdout) == (0, b'')


def test_promtool_is_content_with_the_alert_rules():
    promtool = shutil.which('promtool')
    if promtool is None:
        pytest.skip('promtool is not installed')
    rules = os.path.join(ROOT, 'etc', 'monitoring', 'targetd-alerts.yml')
    ran = subprocess.run(
        [promtool, 'check', 'rules', rules],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
    )
    text = ran.stdout.decode('utf-8', 'replace')
    assert ran.returncode == 0 and re.search('SUCCESS: [1-9][0-9]* rules found', text), text


def test_the_process_that_answers_http_is_not_root_and_takes_nonsense(measured):
    daemon, port = measured
    (process,) = eventually(lambda: exporters(daemon), 10, 'the exporter')
    if os.geteuid() == 0:
        eventually(lambda: process.uids().real != 0, 10, 'another user than root')
    assert get(port, '/etc/passwd')[0] == 404 and get(port, method='POST')[0] == 405
    assert get(port, method='HEAD') == (200, '')
    for nonsense in (b'\r\n\r\n', b'\x00' * 9000, b'GET /metrics\r\n\r\n', b'GET'):
        with socket.create_connection(('127.0.0.1', port), 5) as raw:
            raw.sendall(nonsense)
    slow = [socket.create_connection(('127.0.0.1', port), 5) for _ in range(20)]
    assert get(port)[0] == 200
    for each in slow:
        each.close()
    process.kill()
    process.wait(10)
    eventually(lambda: is_listening(('127.0.0.1', port)), 30, 'another process')
    assert get(port)[0] == 200


def test_a_reload_moves_the_metrics_and_ends_them(measured):
    daemon, port = measured
    other = free_port()
    daemon.text.server['metrics'] = '127.0.0.1:%d' % other
    daemon.reload()
    eventually(lambda: is_listening(('127.0.0.1', other)), 15, 'the new port')
    eventually(lambda: not is_listening(('127.0.0.1', port)), 15, 'the end of the old port')
    del daemon.text.server['metrics']
    daemon.reload()
    eventually(lambda: not is_listening(('127.0.0.1', other)), 15, 'the end of the port')


def test_a_port_in_use_does_not_keep_the_server_from_serving(daemon, ready):
    with socket.socket() as holder:
        holder.bind(('127.0.0.1', 0))
        holder.listen(1)
        daemon.text.server['metrics'] = '127.0.0.1:%d' % holder.getsockname()[1]
        daemon.target()
        daemon.start()
        ready(daemon).read(0, 1)
        daemon.logged('the state is not published')


def test_files_are_rewritten_and_say_so_when_the_server_has_stopped(daemon, ready, tmp_path):
    metrics, status = tmp_path / 'targetd.prom', tmp_path / 'status'
    daemon.text.server['metrics-file'] = str(metrics)
    daemon.text.server['status-file'] = str(status)
    daemon.target()
    daemon.start()
    eventually(lambda: metrics.exists() and status.exists(), 15, 'the files')
    ready(daemon)
    eventually(lambda: '\nsessions: 1\n' in status.read_text(), 15, 'the session in the file')
    assert 'severity: OK\n' in status.read_text() and 'targetd_up 1\n' in metrics.read_text()
    assert stat.S_IMODE(os.stat(str(metrics)).st_mode) == 0o644
    daemon.stop()
    eventually(lambda: 'targetd_up 0\n' in metrics.read_text(), 15, 'targetd_up 0')
    eventually(lambda: status.read_text() == 'state: not running\n', 15, 'not running')
    assert not [n for n in os.listdir(str(tmp_path)) if n.startswith(('targetd.prom.', 'status.'))]


def test_snmp_answers_and_walks(daemon, ready):
    daemon.target()
    daemon.start()
    ready(daemon).read(0, 8)
    base = '.1.3.6.1.4.1.8072.9999.9999.3260'
    asked = ['PING', 'get', base + '.1.1.0', 'get', base + '.2.8.1', 'getnext', base]
    asked += ['getnext', base + '.2.10.1', 'set', base + '.1.1.0', 'integer 5', 'get', 'x']
    ran = subprocess.run(
        [daemon.python, '-m', 'targetd.admin.cli', 'snmp']
        + ['-s', os.path.join(daemon.directory, 'targetd.sock')],
        env=daemon.environment(),
        input=('\n'.join(asked) + '\n').encode(),
        stdout=subprocess.PIPE,
        timeout=60,
    )
    assert ran.stdout.decode().splitlines() == [
        'PONG',
        *[base + '.1.1.0', 'integer', '0'],
        *[base + '.2.8.1', 'counter64', '4096'],
        *[base + '.1.1.0', 'integer', '0'],
        *['NONE', 'not-writable', 'NONE'],
    ]


class Manager(object):
    """systemd's end of the socket."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.socket.settimeout(0.05)
        self.lines = []

    def until(self, wanted, seconds=20):
        end = time.monotonic() + seconds
        while not any(line.startswith(wanted) for line in self.lines):
            assert time.monotonic() < end, 'no %s in %s' % (wanted, self.lines)
            try:
                self.lines += self.socket.recv(65536).decode('utf-8').split('\n')
            except socket.timeout:
                pass


def test_systemd_hears_of_start_reload_watchdog_and_stop(daemon, tmp_path, monkeypatch):
    manager = Manager(str(tmp_path / 'notify'))
    monkeypatch.setenv('NOTIFY_SOCKET', str(tmp_path / 'notify'))
    monkeypatch.setenv('WATCHDOG_USEC', '1000000')
    daemon.target()
    daemon.start()
    manager.until('READY=1')
    manager.until('STATUS=1 target, 1 LUN, 0 sessions')
    manager.until('WATCHDOG=1')
    manager.lines = []
    daemon.reload()
    manager.until('RELOADING=1')
    manager.until('MONOTONIC_USEC=')
    manager.until('READY=1')
    assert manager.lines.index('RELOADING=1') < manager.lines.index('READY=1')
    daemon.stop()
    manager.until('STOPPING=1')
    manager.socket.close()


def hook(tmp_path, extra=''):
    """(command, function that returns the events so far)."""
    script, found = tmp_path / 'hook', tmp_path / 'events'
    script.write_text('#!/bin/sh\n%s\nenv | grep ^TARGETD_ | tr "\\n" "|" >> %s\necho >> %s\n' % (
        extra, found, found
    ))  # fmt: skip
    script.chmod(0o755)

    def events():
        lines = found.read_text().splitlines() if found.exists() else []
        rows = [dict(p.split('=', 1) for p in line.split('|') if '=' in p) for line in lines]
        return {row['TARGETD_EVENT']: row for row in rows}

    return str(script), events


def test_the_command_gets_each_event_with_its_details(daemon, ready, tmp_path):
    command, events = hook(tmp_path)
    daemon.text.server['on-event'] = command
    daemon.target(
        lines=['initiator-address = ALL', 'initiator-name = *:initiator'],
        luns={0: ['backing-store = %s' % daemon.image(), 'filter = error read offset=1M..2M']},
    )
    daemon.start()
    session = ready(daemon)
    eventually(lambda: 'login' in events(), 20, 'login')
    assert events()['login']['TARGETD_INITIATOR'].endswith(':initiator')
    assert events()['login']['TARGETD_ADDRESS'] == '127.0.0.1'
    with pytest.raises(LoginFailed):
        ready(daemon, name='iqn.2026-11.test:stranger')
    eventually(lambda: 'refusal' in events(), 20, 'refusal')
    assert events()['refusal']['TARGETD_TARGET'] == TARGET
    assert session.run(bytes([0x28, 0, 0, 0, 8, 0, 0, 0, 1, 0]), read=512).status == 2
    eventually(lambda: 'disk_error' in events(), 20, 'disk_error')
    assert events()['disk_error']['TARGETD_UNIT'] == TARGET + '/0'
    daemon.worker_of(session).kill()
    eventually(lambda: 'worker_died' in events(), 20, 'worker_died')


def test_the_command_is_run_for_another_state_of_a_group_and_for_lost_data(daemon, ready, tmp_path):
    command, events = hook(tmp_path)
    daemon.text.server['on-event'] = command
    image = daemon.image()
    daemon.target(
        lines=['initiator-address = ALL', 'alua = both'],
        luns={0: ['backing-store = %s' % image, 'filter = error flush count=1']},
    )
    daemon.start()
    session = ready(daemon)
    daemon.control('alua', TARGET, '1', 'nonoptimized')
    found = eventually(lambda: events().get('access'), 20, 'access')
    assert (found['TARGETD_TARGET'], found['TARGETD_GROUP']) == (TARGET, '1')
    assert found['TARGETD_STATE'] == 'nonoptimized'
    session.clear_attentions(0)
    session.write(0, bytes(512))
    assert 'failed' not in events()
    assert session.run(bytes([0x35] + [0] * 9)).status == 2  # SYNCHRONIZE CACHE(10)
    found = eventually(lambda: events().get('failed'), 20, 'failed')
    assert (found['TARGETD_UNIT'], found['TARGETD_PATH']) == (TARGET + '/0', image)
    assert 'flush' in found['TARGETD_WHY']


def test_the_command_is_run_when_space_is_low(daemon, small_disk, ready, tmp_path):
    command, events = hook(tmp_path)
    daemon.text.server['on-event'] = command
    path = '%s/thin.img' % small_disk(16)
    lines = ['backing-store = ' + path, 'size = 64M', 'thin = yes', 'thin-threshold = 50']
    daemon.target(luns={0: lines})
    daemon.start()
    session = ready(daemon)
    for number in range(10):
        session.write(2048 * number, bytes(range(1, 256)) * 4112 + bytes(16))
    found = eventually(lambda: events().get('space_low'), 30, 'space_low')
    assert (found['TARGETD_UNIT'], found['TARGETD_PATH']) == (TARGET + '/0', path)
    assert 0 < int(found['TARGETD_AVAILABLE']) <= 8 << 20


def test_the_check_warns_of_paths_that_would_fail(daemon):
    missing = os.path.join(daemon.directory, 'missing')
    daemon.target()
    daemon.text.server['on-event'] = '/none/such'
    daemon.text.server['capture-on-error'] = missing
    daemon.text.server['metrics-file'] = missing + '/targetd.prom'
    code, output = daemon.check()
    assert code == 0, output
    for words in ('on-event: /none/such', 'capture-on-error: the', 'metrics-file: the'):
        assert 'warning' in [line for line in output.splitlines() if words in line][0]


def test_an_event_of_the_start_is_not_lost(daemon, tmp_path):
    command, events = hook(tmp_path)
    daemon.text.server['on-event'] = command
    # less of the file system than the threshold is available
    lines = ['backing-store = %s' % daemon.image(), 'thin = yes', 'thin-threshold = 99']
    daemon.target(luns={0: lines})
    daemon.start()
    eventually(lambda: 'space_low' in events(), 30, 'space_low')
    assert events()['space_low']['TARGETD_UNIT'] == TARGET + '/0'


def test_rules_and_dashboard_ask_for_metrics_that_there_are(measured, ready):
    daemon, port = measured
    ready(daemon).read(0, 8)
    published = set(re.findall('^# TYPE (targetd_[a-z0-9_]+)', get(port)[1], re.MULTILINE))
    folder = os.path.join(os.path.dirname(__file__), '..', '..', 'etc', 'monitoring')
    for name in ('targetd-alerts.yml', 'targetd-grafana.json'):
        with open(os.path.join(folder, name)) as file:
            asked = set(re.findall(r'\b(targetd_[a-z0-9_]+)\b', file.read()))
        names = {re.sub('_(bucket|sum|count)$', '', each) for each in asked - published}
        assert asked and names <= published, (name, names - published)


def test_a_command_that_hangs_or_fails_delays_nobody(daemon, sessions, tmp_path):
    command, _ = hook(tmp_path, 'sleep 600')
    daemon.text.server['on-event'] = command
    daemon.target()
    daemon.start()
    for _ in range(8):
        session = sessions(daemon)
        session.clear_attentions(0)
        session.read(0, 1)
        session.logout()
    assert json.loads(daemon.control('--json', 'status'))
    daemon.text.server['on-event'] = '/none/such'
    daemon.reload()
    children = psutil.Process(daemon.process.pid).children(recursive=True)
    waiting = [p for p in children if p.is_running() and p.name() == 'hook']
    assert len(waiting) <= 4
    for each in waiting:
        each.kill()
    daemon.logged('on-event for login: /none/such cannot be run')


def test_an_upgrade_goes_on_publishing(measured, ready, tmp_path, monkeypatch):
    daemon, port = measured
    session = ready(daemon)
    session.read(0, 8)
    before = [p.pid for p in eventually(lambda: exporters(daemon), 10, 'the exporter')]
    daemon.control('upgrade')
    eventually(lambda: is_listening(('127.0.0.1', port)), 20, 'the port of the metrics')
    status, text = get(port)
    assert status == 200 and values(text)['targetd_up'] == 1
    assert not [pid for pid in before if psutil.pid_exists(pid)]
    session.read(0, 8)
