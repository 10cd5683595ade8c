"""The log: where lines are written, text from peers, and rotation."""

import os

import pytest

from targetd import log


@pytest.fixture(autouse=True)
def restored():
    yield
    log.stop()
    log.set_level('info')


def read(path):
    with open(str(path), encoding='utf-8') as f:
        return f.read()


def test_a_line_has_time_program_process_and_text(tmp_path):
    log.start(str(tmp_path / 'log'))
    log.info('%s logged in to %s', 'one', 'two')
    log.warning('odd')
    (first, second) = read(tmp_path / 'log').splitlines()
    assert first[:2] == '20' and first.endswith('targetd[%d] one logged in to two' % os.getpid())
    assert second.endswith('warning: odd')


def test_levels(tmp_path):
    log.start(str(tmp_path / 'log'), 'warning')
    log.info('no')
    log.debug('no')
    log.error('yes')
    assert not log.is_debug()
    log.set_level('debug')
    log.debug('yes too')
    assert log.is_debug()
    assert [line.split('] ')[1] for line in read(tmp_path / 'log').splitlines()] == [
        'error: yes',
        'debug: yes too',
    ]


def test_stderr_before_start_and_after_stop(tmp_path, capfd):
    log.info('early')
    log.start(str(tmp_path / 'log'))
    log.info('in the file')
    log.stop()
    log.info('late')
    assert capfd.readouterr().err == 'targetd: early\ntargetd: late\n'


def test_a_peer_cannot_add_lines_to_the_log(tmp_path):
    log.start(str(tmp_path / 'log'))
    log.info('%s refused', 'iqn.x\n2026-01-01 targetd[1] root logged in\x1b[2J\udc80')
    log.info('%s', 'x' * 100000)
    lines = read(tmp_path / 'log').splitlines()
    assert (
        len(lines) == 2
        and '\\n2026' in lines[0]
        and '\x1b' not in lines[0]
        and '\\udc80' in lines[0]
    )
    assert len(lines[1]) < 5000


def test_a_percent_sign_in_plain_text_is_unchanged(tmp_path):
    log.start(str(tmp_path / 'log'))
    log.info('100% full')
    assert read(tmp_path / 'log').endswith('100% full\n')


def test_rotation_keeps_the_number_of_the_descriptor(tmp_path):
    log.start(str(tmp_path / 'log'))
    log.info('old')
    number = log.descriptor()
    os.rename(str(tmp_path / 'log'), str(tmp_path / 'log.1'))
    log.info('old too')
    log.reopen()
    log.info('new')
    assert log.descriptor() == number
    assert read(tmp_path / 'log').count('\n') == 1 and read(tmp_path / 'log.1').count('\n') == 2


def test_a_worker_adopts_the_new_file(tmp_path):
    log.start(str(tmp_path / 'log'))
    new = os.open(str(tmp_path / 'other'), os.O_WRONLY | os.O_CREAT)
    log.adopt(new)
    log.info('here')
    assert 'here' in read(tmp_path / 'other') and read(tmp_path / 'log') == ''
    with pytest.raises(OSError):
        os.fstat(new)


def test_adopt_without_a_file_only_closes(tmp_path):
    log.start('stderr')
    assert log.descriptor() is None
    new = os.open(os.devnull, os.O_WRONLY)
    log.adopt(new)
    with pytest.raises(OSError):
        os.fstat(new)
    log.reopen()


def test_a_file_that_cannot_be_opened_leaves_the_old_log(tmp_path):
    log.start(str(tmp_path / 'log'))
    with pytest.raises(OSError):
        log.start(str(tmp_path / 'none' / 'log'))
    log.info('still here')
    assert 'still here' in read(tmp_path / 'log')


def test_syslog_gets_priority_and_text(monkeypatch):
    lines = []
    monkeypatch.setattr(log.syslog, 'syslog', lambda *line: lines.append(line))
    log.start('syslog')
    log.error('%s is busy', '/dev/sdb')
    log.reopen()
    log.info('fine')
    assert lines == [(log.syslog.LOG_ERR, 'error: /dev/sdb is busy'), (log.syslog.LOG_INFO, 'fine')]


def test_an_exception_is_logged_with_its_traceback(tmp_path):
    log.start(str(tmp_path / 'log'))
    try:
        {}['x']
    except KeyError:
        log.exception('it failed')
    text = read(tmp_path / 'log')
    assert 'error: it failed' in text and 'test_log.py' in text and 'KeyError' in text


def test_a_full_disk_does_not_stop_the_server():
    log.start('/dev/full')
    log.info('lost')
