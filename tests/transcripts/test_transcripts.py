"""Replays the logins in this folder against the login negotiation, through the Framer. The bytes
arrive at once, byte by byte, or in random pieces.

A transcript consists of lines of text:

  # a comment
  policy alias=ERP tag=1 window=32 account=user#secret outgoing=user#secret
      The target's policy. Every word is optional.
  own MaxBurstLength=262144
      The target's value of a text key.
  > 43 87 isid=400001370001 itt=1 cid=1 cmdsn=1 expstatsn=2
    HeaderDigest=None,CRC32C
      The initiator sends a PDU: byte 0, byte 1, fields; then its text, one key=value pair per line.
      A pair that continues in the next PDU ends with a backslash.
  < 87 status=0000 tsih=0007 statsn=2 expcmdsn=1 maxcmdsn=32
    HeaderDigest=None
      The target answers: byte 1, the fields to be compared; then exactly this text.
  = claim initiator_name=... tsih=0
      The negotiation sends a session claim to the master, which assigns TSIH 7.
  = result account=erp MaxBurstLength=262144
      The values with which the session starts.

Every random byte is 07 here, so that CHAP has one outcome.
"""

import glob
import os
import random
import struct

import pytest
from transcript_text import FOLDER, TARGET, account, blocks, fields, request_bytes, text_of

from targetd.iscsi import keys
from targetd.iscsi.errors import LoginFailure
from targetd.iscsi.framing import BHS, Framer
from targetd.iscsi.login import LOGIN_DATA_SEGMENT, LoginNegotiation
from targetd.iscsi.login_policy import LoginPolicy, TargetPolicy, refuse_no_initiator
from targetd.iscsi.login_result import SessionClaim
from targetd.iscsi.pdu import LoginRequest

NAMES = sorted(os.path.basename(path)[:-4] for path in glob.glob(os.path.join(FOLDER, '*.txt')))
TSIH = 7


def with_secret(value):
    user, secret = account(value)
    return user, secret.encode()


def policy_of(transcript):
    said, own = {}, {}
    for mark, words, _ in transcript:
        if mark == 'policy':
            said.update(fields(words))
        if mark == 'own':
            own.update((key, keys.KEYS[key].parse(value)) for key, value in fields(words).items())
    accounts = [with_secret(said['account'])] if 'account' in said else []
    outgoing = with_secret(said['outgoing']) if 'outgoing' in said else None
    common = dict(refuse=refuse_no_initiator, accounts=accounts, outgoing=outgoing, keys=own)
    target = TargetPolicy(TARGET, said.get('alias', ''), int(said.get('tag', 1)), **common)
    return LoginPolicy({TARGET: target}, TargetPolicy(**common), int(said.get('window', 32)))


def whole(data):
    yield data


def byte_by_byte(data):
    for position in range(len(data)):
        yield data[position : position + 1]


def at_random(data):
    dice = random.Random(len(data))
    while data:
        size = dice.randint(1, 70)
        yield data[:size]
        data = data[size:]


class Replay(object):
    """The replay of one transcript."""

    def __init__(self, transcript, chunks):
        self.transcript = transcript
        self.chunks = chunks
        self.framer = Framer(LOGIN_DATA_SEGMENT)
        self.negotiation = LoginNegotiation(
            policy_of(transcript), None, lambda count: b'\x07' * count
        )
        self.replies = []
        self.claim = None

    def run(self):
        for mark, words, pairs in self.transcript:
            if mark == '>':
                assert not self.replies, 'an answer that the transcript does not have'
                self.request(request_bytes(words, pairs))
            elif mark == '<':
                self.check(self.replies.pop(0), words, pairs)
            elif mark == '=':
                self.compare(words)
        assert not self.replies

    def request(self, data):
        arrived = []
        for chunk in self.chunks(data):
            self.framer.receive_buffer()[: len(chunk)] = chunk
            for bhs, ahs, segment in self.framer.parse_received(len(chunk)):
                arrived.append(LoginRequest.decode(BHS.pack(*bhs), ahs, segment))
                self.answer(arrived[-1])
        assert len(arrived) == 1

    def answer(self, request):
        try:
            step = self.negotiation.receive_request(request)
        except LoginFailure as refusal:
            self.replies.append(self.negotiation.failure_response(refusal))
            return
        if isinstance(step, SessionClaim):
            self.claim = step.claim
            step = self.negotiation.claim_granted(TSIH)
        self.replies.extend(step.pdus)

    @staticmethod
    def check(response, words, pairs):
        bhs = response.encode()
        said = fields(words)
        names = ('statsn', 'expcmdsn', 'maxcmdsn')
        got = dict(
            zip(names, map(str, struct.unpack_from('>III', bhs, 24))),
            tsih=bhs[14:16].hex(),
            status=bhs[36:38].hex(),
        )
        assert bhs[:2].hex() == '23' + words[0]
        assert {name: got[name] for name in said} == said
        assert bhs[40:] == bytes(8) and int.from_bytes(bhs[4:8], 'big') == len(response.data)
        assert response.data == text_of(pairs)

    def compare(self, words):
        """words: claim or result, then fields of it or text keys."""
        outcome = {'claim': self.claim, 'result': self.negotiation.result}[words[0]]
        for name, value in fields(words).items():
            got = outcome.values[name] if name in outcome.values else getattr(outcome, name)
            assert str(got) == value, name


@pytest.mark.parametrize('chunks', [whole, byte_by_byte, at_random])
@pytest.mark.parametrize('name', NAMES)
def test_transcript(name, chunks):
    Replay(blocks(name), chunks).run()


def test_there_are_transcripts():
    assert len(NAMES) >= 8
