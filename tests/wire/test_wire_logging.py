"""The log never delays the server, whatever happens to its destination, and no initiator can fill
it."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time

import pytest
from daemon import TARGET, eventually
from initiator import LoginFailed, connect
from pdus import FINAL, IMMEDIATE, NO_TAG, REJECT, pack_bhs

pytestmark = pytest.mark.wire

LOGINS = 300  # their lines fill a pipe of 64 KiB
LOGIN_SECONDS = 10.0  # of one login; a server that waits for its log never answers


def log_in(daemon, count=LOGINS):
    for number in range(count):
        begun = time.monotonic()
        with connect(daemon.address, TARGET, name='iqn.2026-11.test:%s' % ('x' * 150)) as session:
            session.logout()
        assert time.monotonic() - begun < LOGIN_SECONDS, 'login %d' % number


def launched(daemon, prefix=(), foreground=True, **outputs):
    """Start targetd with other outputs than those of Daemon.launch()."""
    daemon.write_config()
    arguments = ['-c', daemon.config] + (['-f'] if foreground else [])
    return subprocess.Popen(
        list(prefix) + daemon.command(*arguments),
        cwd=daemon.directory,
        env=daemon.environment(),
        stdin=subprocess.DEVNULL,
        **outputs,
    )


def test_a_standard_error_that_is_not_read(daemon):
    daemon.target()
    daemon.text.server['log'] = 'stderr'
    daemon.process = launched(daemon, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    pipe = daemon.process.stderr
    daemon.wait_listening(daemon.address)
    log_in(daemon)
    os.set_blocking(pipe.fileno(), False)
    received = []

    def has_read_on():
        received.append(pipe.read() or b'')
        return b'logged in' in b''.join(received)

    eventually(has_read_on, 10)  # the lines that were kept
    assert daemon.stop() == 0
    pipe.close()


def test_a_log_file_whose_writes_hang(daemon):
    """A FIFO without reader, as a file of a file system that does not answer."""
    daemon.target()
    path = os.path.join(daemon.directory, 'fifo')
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    daemon.text.server['log'] = path
    daemon.start()
    log_in(daemon)
    code, output = daemon.targetdctl('reopen-logs')
    assert code != 0 and 'the log does not answer' in output
    log_in(daemon, 5)
    assert daemon.stop() == 0
    os.close(reading)


def test_a_log_on_a_full_disk_says_how_many_lines_are_missing(daemon, small_disk):
    folder = small_disk(1)
    daemon.target()
    daemon.text.server['log'] = os.path.join(folder, 'log')
    daemon.start()
    log_in(daemon, 1)
    with open(os.path.join(folder, 'filling'), 'wb', 0) as filling:
        with pytest.raises(OSError):
            while True:
                filling.write(b'x' * 4096)
    log_in(daemon)
    os.unlink(os.path.join(folder, 'filling'))
    log_in(daemon, 1)

    def is_reported():
        with open(os.path.join(folder, 'log')) as file:
            return re.search(
                r'[0-9]+ messages suppressed, because the log could not be written: No space left',
                file.read(),
            )

    eventually(is_reported, 10)
    assert daemon.stop() == 0


def test_a_log_writer_that_is_killed_is_replaced(served):
    pid = next(
        int(pid)
        for pid in os.listdir('/proc')
        if pid.isdigit() and named(pid) == ('targetd-log', served.process.pid)
    )
    os.kill(pid, signal.SIGKILL)

    def logs_again():
        log_in(served, 1)
        return len(re.findall(r'logged in', served.log)) > 1

    eventually(logs_again, 20)


def named(pid):
    """(name, parent) of a process."""
    try:
        with open('/proc/%s/stat' % pid) as file:
            text = file.read()
    except OSError:
        return None
    return text[text.index('(') + 1 : text.rindex(')')], int(text.rsplit(')', 1)[1].split()[1])


# -- syslog ----------------------------------------------------------------------------------------


@pytest.fixture
def private_syslog(tmp_path):
    """(prefix of a command whose /dev/log is this one, its path). Needs root."""
    if os.geteuid() != 0 or not shutil.which('unshare'):
        pytest.skip('a mount namespace needs root')
    folder = tmp_path / 'dev'
    folder.mkdir()
    script = (
        'set -e; for each in null zero urandom random; do touch {0}/$each; '
        'mount --bind /dev/$each {0}/$each; done; mount --rbind {0} /dev; exec "$@"'
    ).format(folder)
    prefix = ['unshare', '-m', '--propagation', 'private', 'sh', '-c', script, 'sh']
    if subprocess.call(prefix + ['true'], stderr=subprocess.DEVNULL, timeout=20):
        pytest.skip('no mount namespaces here')
    yield prefix, str(folder / 'log')


def syslogd(path):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(path)
    sock.setblocking(False)
    return sock


def messages(sock):
    found = []
    try:
        while True:
            found.append(sock.recv(9000))
    except BlockingIOError:
        return b'\n'.join(found)


def test_a_syslogd_that_does_not_read_and_one_that_is_restarted(daemon, private_syslog):
    prefix, path = private_syslog
    server = syslogd(path)
    daemon.target()
    daemon.text.server['log'] = 'syslog'
    with open(daemon.output_file, 'wb') as output:
        ran = launched(daemon, prefix, False, stdout=output, stderr=output)
        assert ran.wait(20) == 0, daemon.log
    with open(os.path.join(daemon.directory, 'targetd.pid')) as file:
        pid = int(file.read())
    try:
        log_in(daemon, 60)  # a socket takes some lines only
        assert b'<30>' in messages(server)
        eventually(lambda: b'logged in' in messages(server), 10)
        server.close()
        os.unlink(path)
        log_in(daemon, 5)
        server = syslogd(path)

        def hears_again():
            log_in(daemon, 1)
            return b'messages suppressed' in messages(server)

        eventually(hears_again, 10)
    finally:
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: not os.path.exists('/proc/%d' % pid), 20)
        server.close()


# -- floods ----------------------------------------------------------------------------------------


def test_refused_logins_do_not_fill_the_log(daemon):
    daemon.target(lines=('initiator-address = 10.99.0.0/24',))
    daemon.start()
    for _ in range(1500):
        with pytest.raises(LoginFailed):
            connect(daemon.address, TARGET)
    daemon.logged('[0-9]+ messages suppressed, the last: login of', 20)
    assert len(re.findall(r'\] warning: login of .* refused', daemon.log)) < 500


def test_rejected_pdus_do_not_fill_the_log(served):
    with connect(served.address, TARGET) as session:
        session.clear_attentions()
        wrong = pack_bhs(0x1C | IMMEDIATE, FINAL, 0, 7, NO_TAG, session.cmd_sn, session.exp_stat_sn)
        for _ in range(3000):
            session.wire.send(wrong)
            while session.step().opcode != REJECT:
                pass
        session.logout()
    served.logged('[0-9]+ messages suppressed, the last: .*rejected a PDU', 20)
    assert len(re.findall('rejected a PDU', served.log)) < 200
