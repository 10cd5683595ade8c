"""Replays what real initiators and targetd exchanged (tests/record.py) against the pure
machines: the login machine, then a Connection without a socket and a unit in memory. What the
initiator sent goes in, in pieces of three kinds; what comes out must be what was recorded, byte for
byte, but for what a unit says of itself, which has tests of its own.

A recording is written as test_transcripts.py and pdu_text.py say, and

  random 1b0077…                  random numbers that the target drew: CHAP_I and CHAP_C of the next answer

The TSIH is always 7.
"""

import glob
import os

import in_memory
import pdu_text
import pytest
from pdus import crc32c
from test_transcripts import TSIH, Replay, at_random, byte_by_byte, whole
from transcript_text import FOLDER, blocks, request_bytes

from targetd.iscsi.login import LoginNegotiation
from targetd.worker.policy import Policies

NAMES = sorted(
    os.path.basename(path)[:-4] for path in glob.glob(os.path.join(FOLDER, 'recorded', '*.txt'))
)
CLIENTS = ['libiscsi-', 'linux-', 'qemu-']

#: The target's settings when the sessions were recorded; the defaults are others now.
SETTINGS = ('InitialR2T = Yes', 'FirstBurstLength = 262144', 'MaxOutstandingR2T = 1')

#: INQUIRY, MODE SENSE, REPORT SUPPORTED OPCODES: how they are answered is compared, not what the
#: unit says of itself.
DESCRIBING = (0x12, 0x1A, 0x5A, 0xA3)


@pytest.fixture(scope='module')
def configuration(tmp_path_factory):
    return in_memory.configuration(tmp_path_factory.mktemp('recorded'), SETTINGS)


class FullFeature(object):
    """One connection after its login. result: of the LoginNegotiation."""

    def __init__(self, configuration, result, chunks):
        self.chunks = chunks
        self.cdbs = {}  # ITT -> opcode of the command
        self.connection, self.socket = in_memory.connection(configuration, result)
        self.digests = [
            result.values.get(key) == 'CRC32C' for key in ('HeaderDigest', 'DataDigest')
        ]

    def request(self, words, lines):
        bhs, data = pdu_text.parse([' '.join(words)] + lines)
        if bhs[0] & 0x3F == 0x01:
            self.cdbs[bhs[16:20]] = bhs[32]
        wire = bhs + self.digest(bhs, 0)
        if data:
            padded = data + bytes(-len(data) % 4)
            wire += padded + self.digest(padded, 1)
        for chunk in self.chunks(wire):
            self.socket.incoming += chunk
            while self.socket.incoming:
                self.connection._receive_and_act()

    def digest(self, data, which):
        return crc32c(data) if self.digests[which] else b''

    def check(self, words, lines):
        recorded, data = pdu_text.parse([' '.join(words)] + lines)
        bhs = self.socket.take(48 + 4 * self.digests[0])
        assert bhs[48:] == self.digest(bhs[:48], 0)
        length = int.from_bytes(bhs[5:8], 'big')
        came = self.socket.take(length + -length % 4 + 4 * (self.digests[1] and length > 0))
        if self.cdbs.get(bhs[16:20]) in DESCRIBING:
            assert bhs[:1] + bhs[2:4] + bhs[8:44] == recorded[:1] + recorded[2:4] + recorded[8:44]
            return
        assert pdu_text.show(bhs[:48], came[:length]) == pdu_text.show(recorded, data)
        assert bhs[:48] == recorded


class RecordedReplay(Replay):
    """The replay of one recording; as Replay until the login is complete."""

    def __init__(self, transcript, chunks, configuration):
        super(RecordedReplay, self).__init__(transcript, chunks)
        self.configuration = configuration
        self.drawn = b''
        self.negotiation = LoginNegotiation(
            Policies(configuration).login(
                in_memory.ADDRESS, 1, in_memory.local_chap(configuration, self.draw)
            ),
            None,
            self.draw,
        )
        self.full_feature = None

    def draw(self, count):
        drawn, self.drawn = self.drawn[:count], self.drawn[count:]
        assert len(drawn) == count, 'the recording has no random numbers here'
        return drawn

    def run(self):
        for mark, words, lines in self.transcript:
            if mark == 'random':
                self.drawn += bytes.fromhex(words[0])
            elif words[0] in pdu_text.OPCODES:
                if self.full_feature is None:
                    assert self.negotiation.result.tsih == TSIH
                    self.full_feature = FullFeature(
                        self.configuration, self.negotiation.result, self.chunks
                    )
                (self.full_feature.request if mark == '>' else self.full_feature.check)(
                    words, lines
                )
            elif mark == '>':
                self.request(request_bytes(words, lines))
            else:
                self.check(self.replies.pop(0), words, lines)
        assert not self.replies and not self.drawn
        assert self.full_feature is None or not self.full_feature.socket.sent


@pytest.mark.parametrize('chunks', [whole, byte_by_byte, at_random])
@pytest.mark.parametrize('name', NAMES)
def test_recording(configuration, name, chunks):
    if (
        chunks is byte_by_byte
        and os.path.getsize(os.path.join(FOLDER, 'recorded', name + '.txt')) > 7000
    ):
        chunks = at_random  # a long one byte by byte says nothing that a short one does not
    RecordedReplay(blocks(os.path.join('recorded', name)), chunks, configuration).run()


@pytest.mark.parametrize('client', CLIENTS)
def test_there_are_recordings(client):
    assert [name for name in NAMES if name.startswith(client)]


def test_pdus_as_text_are_parsed_back_unchanged():
    """Every header and its data are the same after being written as lines and parsed."""
    data = bytes(range(256)) + bytes(5000) + b'\x55' * 33
    for opcode, (name, _) in pdu_text.PDUS.items():
        bhs = bytearray((opcode * 7 + at * 11) % 251 for at in range(48))
        bhs[0], bhs[4:8] = opcode | 0x40, (len(data)).to_bytes(4, 'big')
        assert pdu_text.parse(pdu_text.show(bytes(bhs), data)) == (bytes(bhs), data), name
    text = b'SendTargets=All\0'
    assert (
        pdu_text.parse(pdu_text.show(bytes([4]) + bytes(6) + b'\x10' + bytes(40), text))[1] == text
    )
