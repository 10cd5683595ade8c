"""The log writer: its destinations, rotation, and what it does when a destination takes no lines."""

import os
import signal
import socket
import time

import pytest
from daemon import eventually

from targetd import log
from targetd.master.processes import log_writer
from targetd.master.processes.log_writer import LogWriter


@pytest.fixture(autouse=True)
def restored():
    kept = vars(log._log).copy()
    yield
    vars(log._log).update(kept)


@pytest.fixture
def writers():
    """writers(where) -> a LogWriter in use; ended afterwards."""
    begun = []

    def begin(where):
        begun.append(LogWriter(where))
        begun[-1].wait_started()
        begun[-1].use()
        return begun[-1]

    yield begin
    for writer in begun:
        writer.kill()


def read(path):
    with open(str(path), encoding='utf-8') as f:
        return f.read()


def test_a_line_has_time_program_process_and_text(writers, tmp_path):
    writers(str(tmp_path / 'log'))
    log.info('%s logged in to %s', 'one', 'two')
    log.warning('odd')
    log.stop()
    (first, second) = read(tmp_path / 'log').splitlines()
    assert first[:2] == '20' and first.endswith('targetd[%d] one logged in to two' % os.getpid())
    assert second.endswith('warning: odd')


def test_rotation(writers, tmp_path):
    writer = writers(str(tmp_path / 'log'))
    log.info('old')
    os.rename(str(tmp_path / 'log'), str(tmp_path / 'log.1'))
    log.info('old too')
    writer.order_reopen()
    eventually(lambda: writer.answer() == '')
    log.info('new')
    log.stop()
    assert read(tmp_path / 'log').count('\n') == 1 and read(tmp_path / 'log.1').count('\n') == 2


def test_a_file_that_cannot_be_opened(tmp_path):
    writer = LogWriter(str(tmp_path / 'none' / 'log'))
    with pytest.raises(OSError) as failure:
        writer.wait_started()
    assert failure.value.strerror == 'No such file or directory'
    with pytest.raises(OSError):
        log_writer.try_destination(str(tmp_path / 'none' / 'log'))
    log_writer.try_destination(str(tmp_path / 'log'))
    assert not os.path.exists(str(tmp_path / 'log'))


def test_a_link_in_a_directory_that_others_can_write(tmp_path):
    folder = tmp_path / 'open'
    folder.mkdir()
    os.symlink(str(tmp_path / 'precious'), str(folder / 'log'))
    folder.chmod(0o777)
    with pytest.raises(OSError) as failure:
        LogWriter(str(folder / 'log')).wait_started()
    assert 'symbolic link' in failure.value.strerror
    assert not (tmp_path / 'precious').exists()
    folder.chmod(0o755)
    LogWriter(str(folder / 'log')).wait_started()
    assert (tmp_path / 'precious').exists()


def test_a_full_disk_loses_lines_only(writers):
    writers('/dev/full')
    log.info('lost')
    log.stop()


def test_a_fifo_that_is_not_read_delays_nobody(writers, tmp_path):
    """The file of a file system that does not answer behaves like that."""
    path = str(tmp_path / 'fifo')
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writers(path)
    begun = time.monotonic()
    for number in range(30000):
        log.info('line %d %s', number, 'x' * 100)
    log.stop()
    assert time.monotonic() - begun < 20
    assert log._log.dropped > 10000
    os.close(reading)


def test_the_end_of_the_master_ends_the_writer(writers, tmp_path):
    """Also without an ordered stop, and after it has written what is in the queue."""
    writer = writers(str(tmp_path / 'log'))
    os.kill(writer.pid, signal.SIGSTOP)
    log.info('the last line')
    os.close(writer.queue)
    writer.control.close()
    os.kill(writer.pid, signal.SIGCONT)
    eventually(writer.has_ended)
    assert 'the last line' in read(tmp_path / 'log')
    writer.queue = None


# -- syslog ----------------------------------------------------------------------------------------


def listen(path, kind):
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(str(path))
    sock.settimeout(10)
    return sock


def test_a_message_to_syslogd(tmp_path):
    server = listen(tmp_path / 'log', socket.SOCK_DGRAM)
    place = log_writer.Syslog(str(tmp_path / 'log'))
    seconds = time.mktime((2026, 3, 5, 14, 7, 9, 0, 0, -1))
    place.write(log.ERROR, 77, seconds, b'error: /dev/sdb is busy')
    assert server.recv(1000) == b'<27>Mar  5 14:07:09 targetd[77]: error: /dev/sdb is busy'
    place.close()
    server.close()


def test_syslogd_with_a_stream_socket(tmp_path):
    server = listen(tmp_path / 'log', socket.SOCK_STREAM)
    server.listen(1)
    place = log_writer.Syslog(str(tmp_path / 'log'))
    place.write(log.INFO, 77, 0, b'one')
    place.write(log.INFO, 77, 0, b'two')
    accepted, _ = server.accept()
    eventually(lambda: accepted.recv(1000, socket.MSG_PEEK).count(b'\0') == 2)
    place.close()
    accepted.close()
    server.close()


def test_syslogd_is_restarted(tmp_path, monkeypatch):
    monkeypatch.setattr(log_writer, 'RECONNECT_SECONDS', 0.0)
    server = listen(tmp_path / 'log', socket.SOCK_DGRAM)
    place = log_writer.Syslog(str(tmp_path / 'log'))
    place.write(log.INFO, 77, 0, b'one')
    server.close()
    os.unlink(str(tmp_path / 'log'))
    with pytest.raises(OSError):
        place.write(log.INFO, 77, 0, b'lost')
    server = listen(tmp_path / 'log', socket.SOCK_DGRAM)
    place.write(log.INFO, 77, 0, b'two')
    assert server.recv(1000).endswith(b'two')
    place.close()
    server.close()


def test_a_syslogd_that_does_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(log_writer, 'PATIENCE_MILLISECONDS', 1)
    server = listen(tmp_path / 'log', socket.SOCK_DGRAM)
    place = log_writer.Syslog(str(tmp_path / 'log'))
    with pytest.raises(BlockingIOError):
        for _ in range(100000):
            place.write(log.INFO, 77, 0, b'line')
    place.close()
    server.close()
