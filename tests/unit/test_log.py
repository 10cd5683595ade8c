"""The log: where lines are written, text from peers, and what is done against floods."""

import os

import pytest

from targetd import log


@pytest.fixture(autouse=True)
def restored():
    kept = vars(log._log).copy()
    vars(log._log).update(vars(log._Log()))  # lines that other tests have caused are not counted
    yield
    vars(log._log).update(kept)


@pytest.fixture
def queue():
    """queue() -> [(level, process, text) …] of the records since the last call."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    log.start_queue(writing, lambda: None)

    def records():
        data = b''
        try:
            while True:
                data += os.read(reading, 1 << 20)
        except BlockingIOError:
            pass
        rows = [line.split(b' ', 3) for line in data.splitlines()]
        return [(int(r[0]), int(r[1]), r[3].decode()) for r in rows]

    yield records
    os.close(reading)
    os.close(writing)


def test_a_record_has_level_process_and_text(queue):
    log.info('%s logged in to %s', 'one', 'two')
    log.warning('odd')
    log.write_line(log.ERROR, 'of a worker', 4711)
    assert queue() == [
        (log.INFO, os.getpid(), 'one logged in to two'),
        (log.WARNING, os.getpid(), 'warning: odd'),
        (log.ERROR, 4711, 'error: of a worker'),
    ]


def test_levels(queue):
    log.set_level('warning')
    log.info('no')
    log.debug('no')
    log.error('yes')
    assert not log.is_debug()
    log.set_level('debug')
    log.debug('yes too')
    assert log.is_debug()
    assert [text for _, _, text in queue()] == ['error: yes', 'debug: yes too']


def test_stderr_before_start_and_after_stop(capfd):
    finished = []
    log.info('early')
    log.start_queue(os.open(os.devnull, os.O_WRONLY), lambda: finished.append(True))
    log.info('in the queue')
    assert log.descriptor() is not None
    log.stop()
    log.info('late')
    assert capfd.readouterr().err == 'targetd: early\ntargetd: late\n'
    assert finished == [True] and log.descriptor() is None


def test_a_peer_cannot_add_lines_to_the_log(queue):
    log.info('%s refused', 'iqn.x\n2026-01-01 targetd[1] root logged in\x1b[2J\udc80')
    log.info('%s', 'x' * 100000)
    log.info('%s', '\U0001f600' * 4000)
    (_, _, first), (_, _, second), (_, _, third) = queue()
    assert '\\n2026' in first and '\x1b' not in first and '\\udc80' in first
    assert len(second) < 5000 and len(third) < log.MAXIMUM_RECORD


def test_a_percent_sign_in_plain_text_is_unchanged(queue):
    log.info('100% full')
    assert queue()[0][2] == '100% full'


def test_an_exception_is_logged_with_its_traceback(queue):
    try:
        {}['x']
    except KeyError:
        log.exception('it failed')
    text = '\n'.join(text for _, _, text in queue())
    assert 'error: it failed' in text and 'test_log.py' in text and 'KeyError' in text


def test_a_full_queue_drops_lines_and_reports_their_number(queue):
    lost = []
    log.on_loss(lambda: lost.append(True))
    count = 0
    while not lost:
        log.info('line %d', count)
        count += 1
        assert count < 100000
    log.info('another')
    kept = queue()
    assert len(kept) == count - 1
    assert not log.report_suppressed()
    log.info('a last one')
    assert [text for _, _, text in queue()] == [
        'warning: 2 messages suppressed, because the log did not take them in time',
        'a last one',
    ]


def test_a_queue_without_reader_does_not_stop_the_server(queue):
    reading, writing = os.pipe()
    os.close(reading)
    log.start_queue(writing, lambda: None)
    log.info('lost')
    assert log._log.dropped == 1
    os.close(writing)


def test_a_closed_standard_error_does_not_stop_the_server(monkeypatch):
    def fails(descriptor, data):
        raise OSError('closed')

    monkeypatch.setattr(os, 'write', fails)
    log.info('lost')


# -- floods ----------------------------------------------------------------------------------------


def test_the_lines_of_one_kind_and_origin_are_limited(queue):
    for number in range(1000):
        log.info('login %d refused', number, origin='10.0.0.1')
    log.info('login %d refused', 1, origin='10.0.0.2')
    log.warning('another kind', origin='10.0.0.1')
    for _ in range(1000):
        log.info('not limited')
    lines = [text for _, _, text in queue()]
    refused = sum('refused' in line for line in lines)
    assert 300 < refused < 310 and lines[-1001] == 'warning: another kind'
    assert lines.count('not limited') == 1000
    assert log.report_suppressed() and queue() == []  # it is reported when it is older
    assert not log.report_suppressed(0)
    (line,) = [text for _, _, text in queue()]
    assert line == '%d messages suppressed, the last: login 999 refused' % (1001 - refused)


def test_a_budget_grows_with_time():
    budget = log.Budget(2, 10, 100.0)
    assert [budget.take(100.0) for _ in range(3)] == [True, True, False]
    assert budget.take(100.2) and budget.left < 2
    assert [budget.take(200.0) for _ in range(3)] == [True, True, False]
    assert not log.Budget(2, 10, 100.0).take(100.0, 3.0)


def test_a_limiter_remembers_a_bounded_number_of_keys():
    limiter = log.Limiter(1, 1, 100, 1)
    for number in range(10 * log.MAXIMUM_KEYS):
        limiter.allows(number, log.INFO, 'line %d' % number, 0.0)
    assert len(limiter._budgets) <= log.MAXIMUM_KEYS
    found = limiter.collect(1.0, 0.5)
    assert len(found) <= log.MAXIMUM_KEYS + 1
    assert sum(count for count, _, _ in found) == 10 * log.MAXIMUM_KEYS - 100
    assert not limiter.has_suppressed


def test_a_worker_sends_lines_with_their_kind_and_limits_them():
    sent = []
    log.start_remote(lambda *line: sent.append(line))
    for number in range(100):
        log.info('%s: rejected a PDU: %d', 'iqn.x', number)
    assert len(sent) == 20
    assert sent[0] == (log.INFO, 'iqn.x: rejected a PDU: 0', '%s: rejected a PDU: %d')
    log.report_suppressed(0)
    assert sent[-1][1] == '80 messages suppressed, the last: iqn.x: rejected a PDU: 99'
