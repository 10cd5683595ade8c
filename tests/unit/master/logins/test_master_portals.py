"""Portals: listening sockets, and the messages when one cannot be opened."""

import os
import socket

import pytest

from targetd.errors import EXIT_PORTAL, PortalError
from targetd.master.logins import portals
from targetd.master.logins.portals import free_port, is_wildcard, open_portal, plain, shown


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(('::1', 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason='this machine has no IPv6')


def test_a_portal_accepts():
    with open_portal('127.0.0.1', 0) as portal:
        port = portal.getsockname()[1]
        with socket.create_connection(('127.0.0.1', port), 5) as client:
            assert portal.accept()[1] == client.getsockname()


@needs_ipv6
def test_both_wildcards_can_use_one_port():
    with open_portal('0.0.0.0', 0) as four:
        port = four.getsockname()[1]
        with open_portal('::', port):
            socket.create_connection(('127.0.0.1', port), 5).close()
            socket.create_connection(('::1', port), 5).close()


def test_a_busy_port_names_address_port_holder_and_remedy():
    with open_portal('127.0.0.1', 0) as portal:
        port = portal.getsockname()[1]
        with pytest.raises(PortalError) as caught:
            open_portal('0.0.0.0', port)
    text = str(caught.value)
    assert '0.0.0.0:%d' % port in text
    assert 'process %d' % os.getpid() in text
    assert 'another port' in text
    assert caught.value.exit_code == EXIT_PORTAL


def test_for_a_foreign_address_the_message_names_the_addresses_of_the_host():
    with pytest.raises(PortalError) as caught:
        open_portal('192.0.2.77', 3260)
    assert '192.0.2.77:3260' in str(caught.value) and '127.0.0.1' in str(caught.value)
    assert not caught.value.is_family_absent


def test_a_host_without_ipv6_is_distinguished_from_a_busy_port(monkeypatch):
    def refuse(*_):
        raise OSError(97, 'Address family not supported by protocol')

    monkeypatch.setattr(portals.socket, 'socket', refuse)
    with pytest.raises(PortalError) as caught:
        open_portal('::', 3260)
    assert caught.value.is_family_absent and '[::]:3260' in str(caught.value)


def test_free_port_takes_the_preferred_one_if_it_can():
    port = free_port('127.0.0.1', 0)
    assert free_port('127.0.0.1', port) == port
    with open_portal('127.0.0.1', port):
        assert free_port('127.0.0.1', port) not in (port, 0)


@pytest.mark.parametrize(
    'address, answer',
    [
        ('0.0.0.0', True),
        ('::', True),
        ('0:0::0', True),
        ('127.0.0.1', False),
        ('::1', False),
        ('nonsense', False),
    ],
)
def test_is_wildcard(address, answer):
    assert is_wildcard(address) is answer


def test_addresses_as_text():
    assert shown('10.0.0.1', 3260) == '10.0.0.1:3260'
    assert shown('fe80::1', 3260) == '[fe80::1]:3260'
    assert plain('::ffff:10.0.0.1') == '10.0.0.1'
    assert plain('fe80::1%eth0') == 'fe80::1'
    assert plain('::1') == '::1'
