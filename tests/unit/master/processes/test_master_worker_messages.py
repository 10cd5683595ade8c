"""The dispatch of workers' messages by kind, and what makes a message invalid."""

import pytest
from master_fakes import FakeWorker

from targetd.master.processes.worker_messages import (
    MAXIMUM_DEPTH,
    BadMessage,
    MessageHandlers,
    check_values,
)


@pytest.fixture
def handled():
    return []


@pytest.fixture
def messages(handled):
    messages = MessageHandlers()
    messages.register_requests({'leave': lambda worker, message: handled.append('request')})
    messages.register_reports({'ready': lambda worker, message: handled.append('report')})
    messages.register_requests({'reserve': lambda worker, message: handled.append('reserve')})
    messages.register_reports({'closed': lambda worker, message: handled.append('closed')})
    return messages


def test_a_message_goes_to_the_handler_of_its_kind(messages, handled):
    messages.dispatch_message(FakeWorker(), {'ask': 'leave', 'id': 1})
    messages.dispatch_message(FakeWorker(), {'report': 'ready'})
    messages.dispatch_message(FakeWorker(), {'ask': 'reserve', 'id': 0, 'unit': 'u'})
    assert handled == ['request', 'report', 'reserve']


@pytest.mark.parametrize(
    'message',
    [
        {'report': 'burn'},
        {'report': 'leave'},
        {'ask': 'burn', 'id': 1},
        {'ask': ['leave'], 'id': 1},
        {'ask': None, 'id': 1},
        {'ask': 'leave'},
        {'ask': 'leave', 'id': True},
        {'ask': 'leave', 'id': -1},
        {'ask': 'leave', 'id': 1 << 60},
        {'ask': 'reserve', 'id': 1},
        {'ask': 'reserve', 'id': 1, 'unit': []},
        {'report': 'closed', 'cid': 0},
        {'report': 'closed', 'cid': 0, 'peer': ['127.0.0.1']},
        {'report': 'closed', 'cid': 0, 'peer': [[], 1]},
        {'report': 'closed', 'cid': [], 'peer': ['127.0.0.1', 1]},
        {'report': 'ready', 'more': 1.5},
        {},
    ],
)
def test_a_message_that_no_worker_sends_is_a_bad_message(messages, handled, message):
    with pytest.raises(BadMessage):
        messages.dispatch_message(FakeWorker(), message)
    assert not handled


def nested(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


def test_values():
    check_values({'a': [None, True, 'é', -(1 << 63), {'b': nested(MAXIMUM_DEPTH - 3)}]})
    for wrong in (
        0.5,
        1 << 64,
        '\ud800',
        {'\ud800': 1},
        'x' * (1 << 19),
        nested(MAXIMUM_DEPTH + 1),
    ):
        with pytest.raises(BadMessage):
            check_values(wrong)


def test_a_kind_has_one_handler(messages):
    with pytest.raises(ValueError):
        messages.register_reports({'ready': print})
