"""The dispatch of workers' messages by kind."""

import pytest
from master_fakes import FakeWorker

from targetd.master.processes.worker_messages import MessageHandlers


@pytest.fixture
def handled():
    return []


@pytest.fixture
def messages(handled):
    messages = MessageHandlers()
    messages.register_requests({'claim': lambda worker, message: handled.append('request')})
    messages.register_reports({'claim': lambda worker, message: handled.append('report')})
    return messages


def test_a_message_goes_to_the_handler_of_its_kind(messages, handled):
    assert messages.dispatch_message(FakeWorker(), {'ask': 'claim', 'id': 1})
    assert messages.dispatch_message(FakeWorker(), {'report': 'claim'})
    assert handled == ['request', 'report']


@pytest.mark.parametrize(
    'message', [{'report': 'burn'}, {'ask': 'burn'}, {'ask': ['claim']}, {'ask': None}, {}]
)
def test_a_message_of_an_unknown_kind_is_logged(messages, handled, message, capfd):
    assert not messages.dispatch_message(FakeWorker(), message)
    assert not handled and 'worker 1000 sent a re' in capfd.readouterr().err


def test_a_kind_has_one_handler(messages):
    with pytest.raises(ValueError):
        messages.register_reports({'claim': print})
