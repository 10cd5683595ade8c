"""What a worker makes of the master's answers about tokens."""

import os
import threading

import pytest

from targetd.scsi.sense import CheckCondition, StatusReturned
from targetd.worker.copy import ask_master, rod_tokens

TOKEN = b't' * 512


class FakeWorker(object):
    """ask() is answered with `answer` from another thread; `asked` is what was asked."""

    def __init__(self, answer=None):
        self.answer = answer
        self.asked = []
        self.answered = None

    def ask(self, what, answered, **words):
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


def desk(answer=None, **units):
    return rod_tokens.UnitRods(FakeWorker(answer), 'here', FakeReplica(**units))


def test_a_token_comes_from_the_master():
    made = desk({'data': TOKEN.hex()})
    assert made.populate([(0, 512)], 30) == TOKEN
    assert made._worker.asked == [
        ('token-populate', {'unit': 'here', 'ranges': [[0, 512]], 'seconds': 30})
    ]


def test_a_refusal_is_an_exception():
    sense = CheckCondition(5, 0x23, 0x06).sense().hex()
    with pytest.raises(CheckCondition) as refused:
        desk({'status': 2, 'sense': sense}).use(TOKEN, False)
    assert (refused.value.key, refused.value.asc, refused.value.ascq) == (5, 0x23, 0x06)
    with pytest.raises(StatusReturned) as refused:
        desk({'status': 8}).revoke(0, 512)
    assert refused.value.status == 8


def test_a_master_that_does_not_answer_ends_the_command_and_its_late_descriptors_are_closed(
    monkeypatch,
):
    monkeypatch.setattr(ask_master, 'ANSWER_SECONDS', 0)
    mute = desk()
    with pytest.raises(CheckCondition):
        mute.use(TOKEN, False)
    late = os.open(os.devnull, os.O_RDONLY)
    mute._worker.answered({'status': 0, 'descriptors': [late]})
    with pytest.raises(OSError):
        os.fstat(late)


def test_a_unit_of_this_session_is_read_by_its_own_store():
    made = desk({'source': 'there', 'ranges': [[0, 512]]}, there=FakeUnit())
    with made.use(TOKEN, True) as rod:
        assert rod.store is FakeUnit.store and rod.ranges == [(0, 512)]
    assert [what for what, _ in made._worker.asked] == ['token-use', 'token-used']


def test_another_unit_comes_as_a_descriptor_which_is_closed(tmp_path):
    path = tmp_path / 'disk'
    path.write_bytes(b'd' * 4096)
    descriptor = os.open(str(path), os.O_RDONLY)
    made = desk(
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
    assert [what for what, _ in made._worker.asked] == ['token-use', 'token-used'], 'told once'


def test_a_use_that_failed_is_over_too():
    made = desk({'source': 'there', 'ranges': []}, there=FakeUnit())
    with pytest.raises(ZeroDivisionError):
        with made.use(TOKEN, False):
            made._worker.answer = {
                'status': 2,
                'sense': CheckCondition(5, 0x23, 0x06).sense().hex(),
            }
            raise ZeroDivisionError
    assert made._worker.asked[-1] == ('token-used', {'unit': 'here', 'token': TOKEN.hex()})


def test_the_list_of_tokens():
    assert desk({'tokens': ['00ff']}).tokens() == [b'\x00\xff']
