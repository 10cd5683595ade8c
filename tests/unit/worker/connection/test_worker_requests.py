"""Requests: what a logout asks of the master."""

from types import SimpleNamespace

import pytest

from targetd.worker.connection.requests import Requests

REQUEST = SimpleNamespace(itt=7, immediate=True)
VALUES = {'DefaultTime2Wait': 2, 'DefaultTime2Retain': 0}


class Logout(object):
    """A connection whose tasks have ended after a Logout Request, and its worker, in one."""

    replica = object()
    has_asked = False
    values = VALUES
    keeps_tasks = False

    def __init__(self):
        self.session = SimpleNamespace(values=VALUES)
        self.worker, self.connections = self, [self]
        self.members = SimpleNamespace(drop_lost=lambda connection: None)
        self.sent, self.asked = [], []
        self.outbox = SimpleNamespace(put_pdu=lambda pdu, numbered: self.sent.append(pdu))
        self.executor = SimpleNamespace(submit=lambda work, argument: work(argument))

    def ask_master(self, what, answered):
        self.asked.append((what, answered))

    def end(self, why, quietly):
        pass

    def send_remaining(self):
        pass

    def stop(self, why):
        pass

    def is_quiet(self):
        Requests(self, (0, 0))._when_quiet(REQUEST, [self])


@pytest.mark.parametrize('has_asked', [False, True])
def test_only_a_session_that_asked_the_master_for_something_asks_at_its_logout(has_asked):
    """What a nexus holds, a reservation for example, the master has granted to its session."""
    logout = Logout()
    logout.has_asked = has_asked
    logout.is_quiet()
    assert len(logout.asked) == has_asked and len(logout.sent) == (not has_asked)
    for what, answered in logout.asked:
        assert what == 'leave'
        answered({})
    assert len(logout.sent) == 1


def test_a_session_that_goes_on_with_another_connection_does_not_leave():
    logout = Logout()
    logout.has_asked = True
    logout.connections = [logout, object()]
    logout.is_quiet()
    assert not logout.asked and len(logout.sent) == 1
