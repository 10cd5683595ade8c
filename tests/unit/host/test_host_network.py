"""host.network: the addresses of this host, and who listens on a port; with and without psutil."""

import os
import socket

import psutil
import pytest
from fake_host import FakeHost

from targetd.host import network


def test_the_loopback_address_is_one_of_this_host():
    assert '127.0.0.1' in network.own_addresses(socket.AF_INET)
    assert '127.0.0.1' not in network.own_addresses(socket.AF_INET6)


def test_a_process_that_listens_is_found_by_its_port():
    with socket.socket() as listening:
        listening.bind(('127.0.0.1', 0))
        port = listening.getsockname()[1]
        assert network.listeners(port) == []  # bound, but it does not listen
        listening.listen(1)
        assert network.listeners(port) == [('127.0.0.1', os.getpid())]
    assert network.listeners(port) == []


def test_a_program_has_its_name(tmp_path):
    assert network.program_of(os.getpid()) == psutil.Process().name()
    host = FakeHost(tmp_path)
    host.write('proc/17/comm', 'tgtd\n')
    assert network.program_of(17, host) == 'tgtd'
    assert network.program_of(18, host) == 'unknown program'


@pytest.mark.parametrize('error', [psutil.AccessDenied(1), OSError(13, 'no'), RuntimeError('no')])
def test_connections_that_cannot_be_listed_are_not_known(monkeypatch, error):
    def refuse(_):
        raise error

    monkeypatch.setattr(network.psutil, 'net_connections', refuse)
    assert network.listeners(3260) == []


def test_without_psutil_nothing_is_known_but_the_program(monkeypatch):
    monkeypatch.setattr(network, 'psutil', None)
    assert network.own_addresses(socket.AF_INET) == []
    assert network.listeners(3260) == []
    with open('/proc/self/comm') as file:
        assert network.program_of(os.getpid()) == file.read().strip()
