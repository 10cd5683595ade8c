"""`targetdctl capture` and `trace`, and capture-on-error, with a real server; the files are looked at with
tshark in tests/client/test_client_capture_verb.py."""

import json
import os
import re
import signal
import subprocess

import pytest
from daemon import eventually
from initiator import Chap

pytestmark = pytest.mark.wire
SECRET = 'secret12345678'


class Ctl(object):
    """A targetdctl that runs on. It is ended by stop() or by the fixture."""

    def __init__(self, daemon, *words):
        self.output = os.path.join(
            daemon.directory, 'output-%d' % len(os.listdir(daemon.directory))
        )
        with open(self.output, 'wb') as output:
            self.process = subprocess.Popen(
                [daemon.python, '-m', 'targetd.admin.cli']
                + ['-s', os.path.join(daemon.directory, 'targetd.sock')]
                + list(words),
                env=daemon.environment(),
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def text(self):
        with open(self.output) as file:
            return file.read()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@pytest.fixture
def ctl(daemon):
    started = []

    def start(*words):
        started.append(Ctl(daemon, *words))
        eventually(
            lambda: 'from now on' in started[-1].text,
            20,
            lambda: 'the capture to begin: ' + started[-1].text,
        )
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait(10)


def number_of(daemon):
    return str(json.loads(daemon.control('--json', 'show', 'sessions'))[0]['tsih'])


def contents(path):
    with open(path, 'rb') as file:
        return file.read()


def test_a_capture_has_commands_and_answers_and_ends_with_the_session(daemon, ready, ctl, tmp_path):
    daemon.target()
    daemon.start()
    session = ready(daemon)
    path = str(tmp_path / 'x.pcapng')
    capture = ctl('capture', number_of(daemon), path, '--data', '16')
    marked = b'-sixteen-bytes- ' + b'not in the file ' * 31
    session.write(0, marked)
    assert session.read(0, 1) == marked
    session.write(0, bytes(1 << 20))
    session.logout()
    assert capture.process.wait(20) == 0, capture.text
    assert re.search(r'\n[1-9]\d* PDUs are in .*x.pcapng\n', capture.text)
    found = contents(path)
    assert found.count(b'-sixteen-bytes- ') == 2 and b'not in the file' not in found
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert not re.search('still has descriptors', daemon.log)


def test_a_capture_of_an_address_has_the_login_and_no_secret(daemon, sessions, ctl, tmp_path):
    daemon.target(lines=['initiator-address = ALL', 'incominguser = erp %s' % SECRET])
    daemon.start()
    path = str(tmp_path / 'x.pcapng')
    capture = ctl('capture', '127.0.0.1', path)
    sessions(daemon, None).logout()
    session = sessions(daemon, chap=Chap('erp', SECRET))
    session.clear_attentions(0)
    session.close()
    assert capture.stop() == 0, capture.text
    found = contents(path)
    assert b'SendTargets' not in found  # this initiator did not ask
    assert b'SessionType=Discovery' in found and b'CHAP_N=erp\0' in found
    values = re.findall(rb'CHAP_([RC])=([^\0]*)', found)
    assert {key for key, _ in values} == {b'R', b'C'}
    assert all(set(value) == {ord('x')} and len(value) >= 34 for _, value in values)
    assert SECRET.encode() not in found
    capture = ctl('capture', '127.0.0.1', path)  # the end of the first one was noticed
    assert capture.stop() == 0, capture.text


def test_a_running_session_is_captured_twice_and_goes_on_when_both_leave(
    daemon, ready, ctl, tmp_path
):
    daemon.target()
    daemon.start()
    session = ready(daemon)
    paths = [str(tmp_path / name) for name in ('a', 'b')]
    captures = [ctl('capture', number_of(daemon), path) for path in paths]
    for number in range(20):
        session.read(number, 8)
    captures[0].process.kill()
    captures[0].process.wait(10)
    for number in range(50):
        session.read(number, 8)
    assert captures[1].stop() == 0
    for number in range(50):
        session.read(number, 8)
    assert os.path.getsize(paths[1]) > 70 * 2 * 88
    assert daemon.control('show', 'sessions')


def test_a_reader_that_stops_does_not_stop_the_session(daemon, ready, ctl, tmp_path):
    daemon.target()
    daemon.start()
    session = ready(daemon)
    capture = ctl('capture', number_of(daemon), str(tmp_path / 'x'), '--data', '1000000')
    os.kill(capture.process.pid, signal.SIGSTOP)
    try:
        for _ in range(40):
            session.read(0, 2048)  # 40 MB
    finally:
        os.kill(capture.process.pid, signal.SIGCONT)
    session.logout()
    assert capture.process.wait(20) == 0
    assert re.search(r'\d+ were lost', capture.text), capture.text


def test_trace_says_what_happens(daemon, ready, ctl):
    daemon.target()
    daemon.start()
    session = ready(daemon)
    trace = ctl('trace', number_of(daemon))
    session.read(16, 8)
    session.run(bytes([0x28, 0, 0xFF, 0, 0, 0, 0, 0, 1, 0]), read=512)
    session.ping(b'abc')
    session.logout()
    assert trace.process.wait(20) == 0
    text = trace.text
    assert re.search(r'> READ\(16\) of 8 blocks from LBA 16 \(LUN 0, tag', text), text
    assert re.search(r'< 4096 bytes of data for tag \w+, GOOD after \d+\.\d ms', text), text
    assert re.search(r'CHECK CONDITION after .*: ILLEGAL REQUEST: .*\(5/21/00\)', text), text
    assert '> ping' in text and '> logout request' in text


def test_wrong_words_are_refused(daemon, ready, tmp_path):
    daemon.target()
    path = str(tmp_path / 'x')
    assert daemon.targetdctl('capture', '5', path)[0] == 7
    daemon.start()
    code, output = daemon.targetdctl('capture', '5', path)
    assert code == 1 and 'there is no session 5' in output
    ready(daemon)
    code, output = daemon.targetdctl('capture', number_of(daemon), '/none/x', '--seconds', '1')
    assert code == 1 and '/none/x cannot be written' in output
    assert not os.path.exists(path)


def test_capture_ends_after_its_time(daemon, ready, tmp_path):
    daemon.target()
    daemon.start()
    session = ready(daemon)
    code, output = daemon.targetdctl(
        'capture', number_of(daemon), str(tmp_path / 'x'), '--seconds', '1'
    )
    assert code == 0 and 'PDUs are in' in output
    session.read(0, 1)


def test_the_last_pdus_before_an_error_are_written(daemon, ready, tmp_path):
    folder = tmp_path / 'captures'
    folder.mkdir()
    daemon.text.server['capture-on-error'] = str(folder)
    daemon.target(
        luns={0: ['backing-store = %s' % daemon.image(), 'filter = error read offset=1M..2M']}
    )
    daemon.start()
    session = ready(daemon)
    for number in range(5):
        session.read(number, 1)
    session.run(bytes([0xFF] + [0] * 9), read=0)  # a refused command is not an error
    assert session.run(bytes([0x28, 0, 0, 0, 8, 0, 0, 0, 1, 0]), read=512).status == 2
    daemon.logged('the last PDUs before an error are in .*a command ended with an error')
    (name,) = os.listdir(str(folder))
    assert re.match(r'\d{8}-\d{6}-session-\d+\.pcapng$', name)
    found = contents(str(folder / name))
    assert bytes([0x28, 0, 0, 0, 8, 0, 0, 0, 1, 0]) in found and len(found) > 7 * 2 * 88
    session.read(0, 1)
