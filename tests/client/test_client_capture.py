"""Tests a capture of discovery, login, I/O and logout with tshark: no malformed frame, no expert
error, the expected keys."""

import os
import socket
import subprocess
import threading

import clients
import pytest
from daemon import TARGET, eventually, free_port, has_ipv6

pytestmark = pytest.mark.client


class Capture(object):
    """A tshark process that captures the loopback traffic of these ports."""

    def __init__(self, path, ports):
        self.path, self.ports = path, ports
        expression = ' or '.join('tcp port %d' % port for port in ports)
        self.process = clients.start(
            'tshark',
            '-q',
            '-l',
            '-i',
            'lo',
            '-f',
            expression,
            '-w',
            path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self.said = []
        threading.Thread(
            target=lambda: self.said.extend(iter(self.process.stderr.readline, b'')), daemon=True
        ).start()
        eventually(
            lambda: (
                self.process.poll() is not None
                or any(b'Capturing on' in line for line in self.said)
            ),
            30,
            lambda: 'tshark capturing: %r' % self.said,
        )
        self.skip_if_gone()
        eventually(self._sees, 60, 'tshark to see what is sent')

    def _sees(self):
        """tshark reports that it captures before it actually does."""
        self.skip_if_gone()
        socket.create_connection(('127.0.0.1', self.ports[0]), 5).close()
        return lines_of(self.read('-c', '1'))

    def skip_if_gone(self):
        """tshark reports that it captures before it finds out that it lacks the permission."""
        if self.process.poll() is not None:
            pytest.skip(
                'tshark cannot capture here: %s' % b''.join(self.said).decode('utf-8', 'replace')
            )

    def read(self, *options):
        """Returns tshark's decoding of the capture, with the ports decoded as iSCSI."""
        decode = [word for port in self.ports for word in ('-d', 'tcp.port==%d,iscsi' % port)]
        return clients.run('tshark', '-r', self.path, *(decode + list(options)))[1]

    def bad(self):
        """Returns the frames that tshark reports as malformed or erroneous: 'number, tab, TCP
        payload in hex'."""
        return lines_of(
            self.read(
                '-Y',
                '_ws.malformed or (iscsi and _ws.expert.severity >= 0x800000)',
                '-T',
                'fields',
                '-e',
                'frame.number',
                '-e',
                'tcp.payload',
            )
        )

    def stop(self):
        self.process.terminate()
        self.process.wait(20)


def lines_of(text):
    """Removes tshark's warnings about running as root."""
    return [
        line
        for line in text.splitlines()
        if line.strip() and not line.startswith('Running as user')
    ]


def is_page_cut_short(line):
    """A VPD page that the initiator's allocation length cuts (SPC-4), as qemu asks for page 83h
    with 64 bytes first: tshark 4.0 calls that malformed, whatever target it comes from."""
    payload = bytes.fromhex(line.split('\t')[1].replace(':', ''))
    length = int.from_bytes(payload[5:8], 'big')
    page = payload[48:]
    is_one_data_in = payload[0] == 0x25 and len(payload) == 48 + length
    return is_one_data_in and page[1] == 0x83 and int.from_bytes(page[2:4], 'big') + 4 > length


@pytest.mark.skipif(not has_ipv6(), reason='this machine has no IPv6 on its loopback')
def test_nothing_in_a_capture_is_malformed(daemon, tmp_path):
    clients.need('tshark', 'iscsi-ls', 'iscsi-inq', 'qemu-io')
    daemon.target(TARGET, ['alias = "ERP data"', 'initiator-address = ALL'])
    other = free_port('::1')
    daemon.text.portal('[::1]:%d' % other)
    daemon.start()
    capture = Capture(os.path.join(str(tmp_path), 'capture.pcapng'), [daemon.port, other])
    try:
        clients.output('iscsi-ls', '-s', 'iscsi://[::1]:%d' % other)
        for portal in ('127.0.0.1:%d' % daemon.port, '[::1]:%d' % other):
            clients.output(
                'qemu-io',
                '-f',
                'raw',
                '-c',
                'write -P 3 0 2M',
                '-c',
                'flush',
                '-c',
                'read -P 3 0 2M',
                '-c',
                'discard 0 1M',
                '-c',
                'write -f -P 4 3M 4k',
                'iscsi://%s/%s/0' % (portal, TARGET),
            )
            clients.output(
                'iscsi-inq',
                '-e',
                '1',
                '-c',
                '131',
                'iscsi://%s/%s/0?header_digest=crc32c' % (portal, TARGET),
            )
        capture.skip_if_gone()
        eventually(
            lambda: len(lines_of(capture.read('-Y', 'iscsi.opcode == 0x26'))) >= 5,
            30,
            'five Logout responses captured',
        )
    finally:
        capture.stop()
    assert [line for line in capture.bad() if not is_page_cut_short(line)] == []
    everything = capture.read('-Y', 'iscsi', '-V')
    assert 'TargetAddress=[::1]:%d,1' % other in everything
    assert 'TargetAddress=127.0.0.1:%d,1' % daemon.port in everything
    assert 'TargetPortalGroupTag=1' in everything and 'TargetAlias=ERP data' in everything
    opcodes = set(
        lines_of(
            capture.read('-Y', 'iscsi', '-T', 'fields', '-E', 'aggregator=\n', '-e', 'iscsi.opcode')
        )
    )
    for opcode in (0x01, 0x03, 0x04, 0x05, 0x06, 0x21, 0x23, 0x24, 0x25, 0x26, 0x31):
        assert '0x%02x' % opcode in opcodes, 'no PDU with opcode %02x in the capture: %s' % (
            opcode,
            opcodes,
        )
