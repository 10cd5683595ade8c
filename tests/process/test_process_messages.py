"""Malformed messages of a worker: they end that worker only, and never cause a traceback in the master."""

import json
import random
import struct

import pytest
from puppets import DISK

from targetd.master.processes import worker_messages
from targetd.master.units import transitions

FUZZED_MESSAGES = 400


def frame(body, length=None):
    return struct.pack('>I', len(body) if length is None else length) + body


def send_raw(client, data):
    client.say(puppet='raw', data=data.hex())


MALFORMED = {
    'no JSON': frame(b'hello'),
    'not UTF-8': frame(b'\xff\xfe{}'),
    'a list': frame(b'[]'),
    'a number': frame(b'7'),
    'null': frame(b'null'),
    'too long a frame': frame(b'', 0x7FFFFFFF),
    'deep lists': frame(b'{"report":"failed","unit":' + b'[' * 200000 + b']' * 200000 + b'}'),
    'deep lists that JSON accepts': frame(
        b'{"report":"idle","why":' + b'[' * 60 + b']' * 60 + b'}'
    ),
    'a number of 900,000 digits': frame(b'{"report":"acknowledge","id":' + b'9' * 900000 + b'}'),
    'a number of 30 digits': frame(b'{"report":"acknowledge","id":' + b'9' * 30 + b'}'),
    'NaN': frame(b'{"report":"acknowledge","id":NaN}'),
    'a fraction': frame(b'{"report":"acknowledge","id":1.5}'),
    'half of a surrogate pair': frame(b'{"report":"idle","why":"\\ud800"}'),
    'descriptors that did not arrive': frame(b'{"report":"idle","_descriptors":3}'),
    'descriptors that are not a number': frame(b'{"report":"idle","_descriptors":"x"}'),
    'no kind': frame(b'{}'),
    'an unknown report': frame(b'{"report":"burn"}'),
    'an unknown request': frame(b'{"ask":"burn","id":1}'),
    'a kind that is a list': frame(b'{"ask":["claim"],"id":1}'),
    'a request without an id': frame(b'{"ask":"leave"}'),
    'an id that is a list': frame(b'{"ask":"leave","id":[]}'),
    'an acknowledgement of a list': frame(b'{"report":"acknowledge","id":[]}'),
    'a unit that is an object': frame(b'{"report":"failed","unit":{}}'),
    'a request for a unit that is a list': frame(b'{"ask":"reserve","id":9,"unit":[[]]}'),
    'a closed connection without a peer': frame(b'{"report":"closed","cid":[]}'),
    'a claim of nothing': frame(b'{"ask":"claim","id":9,"session":[],"peer":["127.0.0.1",1]}'),
    'counters of a unit that is a number': frame(
        b'{"report":"counted","id":0,"more":false,"units":[[7,1,1,1,1,1,1,1,[],[]]]}'
    ),
    'a negative counter': frame(
        b'{"report":"counted","id":0,"more":false,"units":[["x",-1,1,1,1,1,1,1,[],[]]]}'
    ),
    'a note that is a text': frame(b'{"report":"note","unit":"x","kind":"error","note":"x"}'),
}


@pytest.fixture
def calm(served, capfd):
    """The stage; afterwards the log of the master must be free of tracebacks."""
    yield served
    served.settle()
    log = capfd.readouterr().err
    assert 'Traceback' not in log and 'unexpected failure' not in log, log[-4000:]


@pytest.mark.parametrize('what', sorted(MALFORMED))
def test_a_malformed_message_ends_its_worker_and_no_other(calm, what):
    bystander = calm.login(DISK)
    hostile = calm.login(DISK, isid='00023d000002')
    send_raw(hostile, MALFORMED[what])
    hostile.wait_closed()
    calm.until(lambda: len(calm.master.sessions.all()) == 1)
    assert not bystander.is_closed
    calm.login(DISK, isid='00023d000003')


def test_what_a_worker_sends_after_a_malformed_message_is_ignored(calm):
    hostile = calm.login(DISK)
    unit = hostile.answer['units'][0]['unit']
    failed = json.dumps({'report': 'failed', 'unit': unit, 'text': 'forged'}).encode()
    send_raw(hostile, frame(b'{"report":"burn"}') + frame(failed))
    hostile.wait_closed()
    calm.until(lambda: not calm.master.sessions.all())
    assert calm.master.units.by_id[unit].shared.medium == 'ready'


class Draw(object):
    """Random messages of every kind, with fields and values that some kind has."""

    NAMES = (
        'unit', 'why', 'text', 'peer', 'cid', 'session', 'function', 'kind', 'note', 'position',
        'lasting', 'failed', 'service_action', 'scope', 'type', 'key', 'service_action_key',
        'aptpl', 'all_tg_pt', 'unregister', 'target_ports', 'pages', 'transport_ids', 'save',
        'revert', 'method', 'pattern', 'passes', 'states', 'ranges', 'seconds', 'token', 'offset',
        'length', 'code_set', 'designator', 'action', 'prevent', 'data', 'reset', 'errors',
        'accounting_date', 'third_party', 'initiator_name', 'target_name', 'status_class',
        'status_detail', 'isid', 'group', 'tsih', 'keys', 'account', 'by', 'code', 'result',
    )  # fmt: skip
    WORDS = (
        '', 'x', '0', 'ff', '00' * 8, DISK, 'logical-unit-reset', 'target-cold-reset',
        'i-t-nexus-reset', 'eject', 'sanitize', 'format', 'pattern', 'error', 'self-test', 'medium',
        '00023d000001', 'é', '\U0001f600', '2026',
    )  # fmt: skip
    NUMBERS = (0, 1, -1, 2, 3, 5, 6, 7, 8, 255, 65535, 65536, 1 << 32, (1 << 64) - 1, -(1 << 63))

    def __init__(self, seed, unit):
        self.random = random.Random(seed)
        self.unit = unit

    def value(self, depth=0):
        draw = self.random
        kind = draw.randrange(8 if depth < 3 else 5)
        if kind == 0:
            return draw.choice(self.WORDS)
        if kind == 1:
            return draw.choice(self.NUMBERS)
        if kind in (2, 3):
            return draw.choice([self.unit, None, True, False])
        if kind == 4:
            return ['127.0.0.1', draw.choice(self.NUMBERS)]
        if kind in (5, 6):
            return [self.value(depth + 1) for _ in range(draw.randrange(4))]
        return {draw.choice(self.NAMES): self.value(depth + 1) for _ in range(draw.randrange(6))}

    def message(self):
        draw = self.random
        message = {draw.choice(self.NAMES): self.value() for _ in range(draw.randrange(14))}
        if draw.random() < 0.9:
            message['unit'] = self.unit
        reports = sorted(set(worker_messages.REPORTS) - {'idle', 'ended'})
        requests = sorted(set(worker_messages.REQUESTS) | set(transitions.KINDS) - {'operate'}) + [
            'token-populate', 'token-use', 'token-used', 'token-revoke', 'token-list', 'copy-reach',
        ]  # fmt: skip
        if draw.random() < 0.3:
            message['report'] = draw.choice(reports)
        else:
            message['ask'] = draw.choice(requests)
            message['id'] = draw.choice([7, 8, 9, [], 'x', None]) if draw.random() < 0.1 else 7
        return message


def test_random_messages_never_cause_a_traceback_in_the_master(calm):
    """Each message either has an effect that the channel's catalogue allows, or ends its worker."""
    ended, client, number = 0, None, 0
    for seed in range(FUZZED_MESSAGES):
        if client is None or client.is_closed:
            client = calm.login(DISK, isid='0002%08x' % number)
            number += 1
            unit = client.answer['units'][0]['unit']
            asked = 0
        message = Draw(seed, unit).message()
        send_raw(client, frame(json.dumps(message).encode()))
        asked += 1
        client.say(ask='token-list', id=1000 + asked, unit=unit)
        calm.until(
            lambda c=client, n=1000 + asked: (
                c.listen(),
                c.is_closed or any(m.get('id') == n for m in c.of('answer')),
            )[1]
        )
        ended += client.is_closed
        if client.is_closed:
            calm.until(lambda: not calm.master.workers.by_pid or not calm.master.sessions.all())
    assert 0 < ended < FUZZED_MESSAGES
    assert calm.connect(isid='00023dffffff').login(DISK)[0] == (0, 0)
