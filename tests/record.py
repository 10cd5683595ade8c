"""Record the PDUs that a real initiator and targetd exchange, as transcripts that
tests/transcripts/test_recorded.py replays.

    unshare -n sh -c 'ip link set lo up
        python3 -m tests.record NAME "what it is" -- iscsi-ls -s iscsi://127.0.0.1:3260'

As root, where nothing else listens on port 3260: an empty network namespace, or a guest. targetd
serves tests/transcripts/recorded.conf while the command runs; each of the command's connections
becomes a file NAME-1.txt, NAME-2.txt, … in tests/transcripts/recorded (or in the folder that
RECORD_TO names). What differs from run to run is either normalised (the TSIH) or written down (the
random numbers of CHAP). tests/transcripts/record.sh makes all of them anew.
"""

import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import pdu_text  # noqa: E402

CONFIGURATION = os.path.join(HERE, 'transcripts', 'recorded.conf')
PORT = 3260
LOGIN, LOGIN_RESPONSE = 0x03, 0x23
TSIH = 7  # the TSIH that the replay assigns


class Direction(object):
    """One direction of a TCP connection: bytes in order, then PDUs."""

    def __init__(self):
        self.next = None
        self.early = {}
        self.data = bytearray()

    def segment(self, sequence, flags, payload):
        if flags & 0x02:
            self.next = sequence + 1 & 0xFFFFFFFF
            return
        if payload and self.next is not None and sequence - self.next & 0xFFFFFFFF < 1 << 31:
            self.early[sequence] = payload
        while self.next in self.early:
            payload = self.early.pop(self.next)
            self.data += payload
            self.next = self.next + len(payload) & 0xFFFFFFFF

    def pdus(self, digests):
        """Removes and returns the complete PDUs. digests: (digest bytes after a header, after
        data), read before each PDU."""
        while len(self.data) >= 48:
            ahs, length = 4 * self.data[4], int.from_bytes(self.data[5:8], 'big')
            assert not ahs, 'additional headers cannot be written down'
            behind_header, behind_data = digests()
            padded = length + -length % 4
            begin = 48 + behind_header
            whole = begin + padded + (behind_data if padded else 0)
            if len(self.data) < whole:
                return
            bhs, data = bytes(self.data[:48]), bytes(self.data[begin : begin + length])
            del self.data[:whole]
            yield bhs, data


class Connection(object):
    """One TCP connection: `lines` is its transcript."""

    def __init__(self):
        self.requests, self.replies = Direction(), Direction()
        self.lines = []
        self.last_login = 0  # where in `lines` the newest Login Request stands
        self.digests = (0, 0)
        self.values = {}

    def segment(self, is_request, sequence, flags, payload):
        direction = self.requests if is_request else self.replies
        direction.segment(sequence, flags, payload)
        for bhs, data in direction.pdus(lambda: self.digests):
            if bhs[0] & 0x3F in (LOGIN, LOGIN_RESPONSE):
                self._login(bhs, data)
            else:
                first, *rest = pdu_text.show(bhs, data)
                self.lines += ['%s %s' % ('>' if is_request else '<', first)] + rest

    def _login(self, bhs, data):
        text = [pair.decode('utf-8') for pair in data.split(b'\0') if pair]
        if bhs[0] & 0x3F == LOGIN:
            self.last_login = len(self.lines) + 1
            tsih, itt, cid, cmd_sn, exp_stat_sn = struct.unpack_from('>HIH2xII', bhs, 14)
            head = '> %02x %02x isid=%s%s itt=%d cid=%d cmdsn=%d expstatsn=%d' % (
                bhs[0],
                bhs[1],
                bhs[8:14].hex(),
                ' tsih=%04x' % tsih if tsih else '',
                itt,
                cid,
                cmd_sn,
                exp_stat_sn,
            )
        else:
            stat_sn, exp_cmd_sn, max_cmd_sn = struct.unpack_from('>III', bhs, 24)
            is_last = bhs[1] & 0x83 == 0x83
            head = '< %02x status=%s%s statsn=%d expcmdsn=%d maxcmdsn=%d' % (
                bhs[1],
                bhs[36:38].hex(),
                ' tsih=%04x' % TSIH if is_last else '',
                stat_sn,
                exp_cmd_sn,
                max_cmd_sn,
            )
            self.values.update(pair.split('=', 1) for pair in text)
            if is_last:
                self.digests = tuple(
                    4 * (self.values.get(key) == 'CRC32C') for key in ('HeaderDigest', 'DataDigest')
                )
            if any(pair.startswith('CHAP_C=') for pair in text):
                self._note_randomness(dict(pair.split('=', 1) for pair in text))
        self.lines += ['', head] if head[0] == '>' else [head]
        self.lines += ['  ' + pair for pair in text]

    def _note_randomness(self, said):
        """Inserts the random challenge of targetd before the login request that made targetd
        generate it."""
        drawn = '%02x%s' % (int(said['CHAP_I']), said['CHAP_C'][2:])
        self.lines.insert(self.last_login, 'random ' + drawn)
        self.last_login += 1


class Ear(threading.Thread):
    """Captures the traffic on the loopback interface. `connections`: in the order of their
    start."""

    def __init__(self):
        super(Ear, self).__init__(daemon=True)
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        self.socket.bind(('lo', 0))
        self.socket.settimeout(0.2)
        self.connections = {}
        self.is_over = threading.Event()

    def run(self):
        while True:
            try:
                packet, address = self.socket.recvfrom(1 << 18)
            except socket.timeout:
                if self.is_over.is_set():
                    return
                continue
            if address[2] != socket.PACKET_OUTGOING:  # on the loopback each is seen twice
                self._packet(packet[14:])

    def _packet(self, packet):
        if packet[9] != socket.IPPROTO_TCP:
            return
        packet = packet[: struct.unpack_from('>H', packet, 2)[0] or len(packet)]
        tcp = packet[(packet[0] & 15) * 4 :]
        source, destination, sequence = struct.unpack_from('>HHI', tcp)
        if PORT not in (source, destination):
            return
        port = source if destination == PORT else destination
        if port not in self.connections:
            self.connections[port] = Connection()
        self.connections[port].segment(
            destination == PORT, sequence, tcp[13], tcp[(tcp[12] >> 4) * 4 :]
        )


def server_section(directory):
    """Returns the [server] section that recorded.conf lacks."""
    names = {'pid-file': 'pid', 'control-socket': 'sock', 'state-dir': 'state', 'log': 'log'}
    rows = ['%s = %s' % (key, os.path.join(directory, name)) for key, name in sorted(names.items())]
    return '\n'.join(['[server]', 'nop-interval = 0'] + rows) + '\n\n'


def start(directory):
    """Starts targetd and waits until it listens."""
    os.mkdir(os.path.join(directory, 'state'))
    path = os.path.join(directory, 'targetd.conf')
    with open(path, 'w') as file, open(CONFIGURATION) as rest:
        os.chmod(path, 0o600)
        file.write(server_section(directory) + rest.read())
    process = subprocess.Popen(
        [sys.executable, '-m', 'targetd', '-f', '-c', path],
        cwd=directory,
        env=dict(os.environ, PYTHONPATH=os.path.dirname(HERE)),
    )
    for _ in range(600):
        try:
            socket.create_connection(('127.0.0.1', PORT), 1).close()
            return process
        except OSError:
            assert process.poll() is None, 'targetd ended'
            time.sleep(0.1)
    raise AssertionError('targetd does not listen')


def write(name, what, command, connections):
    folder = os.environ.get('RECORD_TO') or os.path.join(HERE, 'transcripts', 'recorded')
    said = [each for each in connections if each.lines]
    for old in os.listdir(folder):
        if re.match(re.escape(name) + r'-[0-9]+\.txt\Z', old):
            os.unlink(os.path.join(folder, old))
    for number, connection in enumerate(said, 1):
        path = os.path.join(folder, '%s-%d.txt' % (name, number))
        with open(path, 'w') as file:
            file.write('# %s: connection %d of %d.\n# %s\n' % (what, number, len(said), command))
            file.write('\n'.join(connection.lines) + '\n')
        print('%s: %d lines' % (path, len(connection.lines)))


def main(arguments):
    name, what, dashes = arguments[:3]
    command = arguments[3:]
    assert dashes == '--' and command, __doc__
    directory = tempfile.mkdtemp()
    process = start(directory)
    ear = Ear()
    ear.start()
    try:
        code = subprocess.call(command)
    finally:
        process.terminate()
        process.wait(30)
        ear.is_over.set()
        ear.join(10)
        shutil.rmtree(directory)
    print('%s: exit code %d' % (' '.join(command), code))
    write(name, what, ' '.join(command).replace('\n', '; '), ear.connections.values())


if __name__ == '__main__':
    main(sys.argv[1:])
