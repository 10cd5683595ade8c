"""ROD tokens in a worker: the questions to the master, and how its answers are handled."""

import os
import threading

import pytest

from targetd.scsi.sense import CheckCondition, StatusReturned
from targetd.worker.copy import ask_master, rod_tokens

TOKEN = b't' * 512


class FakeWorker(object):
    """Answers questions with `answer` from another thread; `asked`: the questions."""

    def __init__(self, answer=None):
        self.answer = answer
        self.asked = []
        self.answered = None

    def ask_master(self, what, answered, **words):
        self.asked.append((what, words))
        self.answered = answered
        if self.answer is not None:
            message = dict({'status': 0, 'sense': None, 'descriptors': []}, **self.answer)
            threading.Thread(target=answered, args=(message,)).start()


class FakeReplica(object):
    def __init__(self, **units):
        self.units = units

    def unit(self, unit_id):
        return self.units.get(unit_id)


class FakeUnit(object):
    store = object()


def unit_tokens(answer=None, **units):
    return rod_tokens.UnitRodTokens(FakeWorker(answer), 'here', FakeReplica(**units))


def test_a_token_is_created_by_the_master():
    made = unit_tokens({'data': TOKEN.hex()})
    assert made.populate([(0, 512)], 30) == TOKEN
    assert made._worker.asked == [
        ('token-populate', {'unit': 'here', 'ranges': [[0, 512]], 'seconds': 30})
    ]


def test_a_refusal_raises_an_exception():
    sense = CheckCondition(5, 0x23, 0x06).sense().hex()
    with pytest.raises(CheckCondition) as refused:
        unit_tokens({'status': 2, 'sense': sense}).use(TOKEN, False)
    assert (refused.value.key, refused.value.asc, refused.value.ascq) == (5, 0x23, 0x06)
    with pytest.raises(StatusReturned) as refused:
        unit_tokens({'status': 8}).revoke(0, 512)
    assert refused.value.status == 8


def test_a_late_answer_fails_the_command_and_its_descriptors_are_closed(monkeypatch):
    monkeypatch.setattr(ask_master, 'ANSWER_SECONDS', 0)
    waiting = unit_tokens()
    with pytest.raises(CheckCondition):
        waiting.use(TOKEN, False)
    late = os.open(os.devnull, os.O_RDONLY)
    waiting._worker.answered({'status': 0, 'descriptors': [late]})
    with pytest.raises(OSError):
        os.fstat(late)


def test_a_unit_of_this_session_is_read_through_its_store():
    made = unit_tokens({'source': 'there', 'ranges': [[0, 512]]}, there=FakeUnit())
    with made.use(TOKEN, True) as rod:
        assert rod.store is FakeUnit.store and rod.ranges == [(0, 512)]
    assert [what for what, _ in made._worker.asked] == ['token-use', 'token-used']


def test_the_descriptor_of_another_unit_is_read_only_and_closed_afterwards(tmp_path):
    path = tmp_path / 'disk'
    path.write_bytes(b'd' * 4096)
    descriptor = os.open(str(path), os.O_RDONLY)
    made = unit_tokens(
        {
            'source': 'far',
            'ranges': [[512, 512]],
            'descriptors': [descriptor],
            'store': {'kind': 'file', 'path': str(path), 'size': 4096},
        }
    )
    with made.use(TOKEN, False) as rod:
        assert bytes(rod.store.read(512, 512)) == b'd' * 512
        with pytest.raises(OSError):
            rod.store.write(0, b'x' * 512, False)
        rod.check()
    with pytest.raises(OSError):
        os.fstat(descriptor)
    assert [what for what, _ in made._worker.asked] == ['token-use', 'token-used'], 'reported once'


def test_a_failed_use_is_reported_as_ended():
    made = unit_tokens({'source': 'there', 'ranges': []}, there=FakeUnit())
    with pytest.raises(ZeroDivisionError):
        with made.use(TOKEN, False):
            made._worker.answer = {
                'status': 2,
                'sense': CheckCondition(5, 0x23, 0x06).sense().hex(),
            }
            raise ZeroDivisionError
    assert made._worker.asked[-1] == ('token-used', {'unit': 'here', 'token': TOKEN.hex()})


def test_the_list_of_tokens():
    assert unit_tokens({'tokens': ['00ff']}).tokens() == [b'\x00\xff']
