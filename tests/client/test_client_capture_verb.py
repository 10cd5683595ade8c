"""What `targetdctl capture` writes is dissected by tshark as iSCSI."""

import json
import os
import signal
import subprocess
import tempfile

import clients
import pytest
from daemon import TARGET, eventually, free_port, has_ipv6
from initiator import Chap

pytestmark = pytest.mark.client
SECRET = 'secret12345678'
BAD = '_ws.malformed or _ws.expert.severity >= 0x800000 or tcp.analysis.lost_segment'


def tshark(path, *options):
    return clients.run('tshark', '-r', path, *options)[1]


def lines(text):
    return [x for x in text.splitlines() if x.strip() and not x.startswith('Running as user')]


class Capture(object):
    def __init__(self, daemon, who, path, *options):
        self.path = path
        self.output = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [daemon.python, '-m', 'targetd.admin.cli']
            + ['-s', os.path.join(daemon.directory, 'targetd.sock'), 'capture', who, path]
            + list(options),
            env=daemon.environment(),
            stderr=self.output,
        )
        eventually(lambda: b'from now on' in self.said(), 20, self.said)

    def said(self):
        self.output.seek(0)
        return self.output.read()

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0
        self.output.close()


@pytest.mark.skipif(not has_ipv6(), reason='this machine has no IPv6 on its loopback')
def test_discovery_and_login_over_ipv6_show_every_key(daemon, sessions, tmp_path):
    clients.need('tshark')
    account = 'incominguser = erp %s' % SECRET
    daemon.target(TARGET, ['alias = "ERP data"', 'initiator-address = ALL', account])
    port = free_port('::1')
    daemon.text.portal('[::1]:%d' % port)
    daemon.start()
    path = str(tmp_path / 'x.pcapng')
    capture = Capture(daemon, '::1', path)
    try:
        discovery = sessions(
            daemon, None, address=('::1', port), keys={'InitiatorAlias': 'the mail server'}
        )
        discovery.send_targets()
        discovery.logout()
        session = sessions(daemon, address=('::1', port), chap=Chap('erp', SECRET))
        session.clear_attentions(0)
        session.write(8, bytes(200000))
        session.read(8, 400)
        session.logout()
        eventually(
            lambda: not json.loads(daemon.control('--json', 'show', 'sessions')),
            10,
            'the end of the sessions',
        )
    finally:
        capture.stop()
    text = tshark(path, '-V', '-Y', 'iscsi')
    for wanted in (
        'InitiatorAlias=the mail server',
        'SessionType=Discovery',
        'SendTargets=All',
        'TargetAddress=[::1]:%d,1' % port,
        'TargetPortalGroupTag=1',
        'TargetAlias=ERP data',
        'CHAP_N=erp',
        'Opcode: Write(16)',
    ):
        assert wanted in text, wanted
    assert SECRET not in text
    assert lines(tshark(path, '-Y', BAD)) == []
    assert not lines(tshark(path, '-Y', 'iscsi and not (iscsi.opcode)'))


@pytest.mark.parametrize('data', ['0', '256', '16777216'])
def test_a_session_with_digests_is_dissected_from_its_middle_on(daemon, ready, tmp_path, data):
    clients.need('tshark')
    daemon.target()
    daemon.start()
    session = ready(daemon, keys={'HeaderDigest': 'CRC32C', 'DataDigest': 'CRC32C'})
    session.read(0, 8)
    number = json.loads(daemon.control('--json', 'show', 'sessions'))[0]['tsih']
    path = str(tmp_path / 'x.pcapng')
    capture = Capture(daemon, str(number), path, '--data', data)
    try:
        for lba in range(5):
            session.write(lba, os.urandom(4096))
            session.read(lba, 8)
        session.write(0, bytes(1 << 20))
        session.logout()
        assert capture.process.wait(20) == 0
    finally:
        capture.stop()
    text = tshark(path)
    assert text.count('SCSI: Read(16) LUN: 0x00') == 5
    assert text.count('SCSI: Write(16) LUN: 0x00') == 6
    assert text.count('(Read(16)) (Good)') == 5 and text.count('(Write(16)) (Good)') == 6
    assert 'Unknown' not in text
    if data == '16777216':
        assert lines(tshark(path, '-Y', BAD)) == []
