"""The policy that a socket gets, and what the kernel says of it."""

import errno
import os
import socket
import struct

import pytest

from targetd.config import model
from targetd.errors import PortalError
from targetd.master.logins import portals
from targetd.master.logins.ipsec import (
    IP_XFRM_POLICY,
    IPV6_XFRM_POLICY,
    NETLINK_XFRM,
    require_ipsec,
)


class FakeSocket(object):
    def __init__(self, family):
        self.family = family
        self.options = []

    def setsockopt(self, *option):
        self.options.append(option)


@pytest.mark.parametrize(
    'family, level, option',
    [
        (socket.AF_INET, socket.IPPROTO_IP, IP_XFRM_POLICY),
        (socket.AF_INET6, socket.IPPROTO_IPV6, IPV6_XFRM_POLICY),
    ],
)
def test_the_policy_is_one_template_of_esp_in_transport_mode(family, level, option):
    sock = FakeSocket(family)
    require_ipsec(sock)
    ((its_level, its_option, data),) = sock.options
    assert (its_level, its_option, len(data)) == (level, option, 168 + 64)
    assert data[40:42] == data[168 + 24 : 168 + 26] == struct.pack('=H', family)
    assert data[168 + 20] == 50


@pytest.mark.parametrize('has_family', [True, False])
def test_the_kernel_loads_its_module_before_it_gets_the_policy(monkeypatch, has_family):
    opened, sock = [], FakeSocket(socket.AF_INET)

    class Netlink(object):
        def __init__(self, *arguments):
            opened.append((arguments, len(sock.options)))
            if not has_family:
                raise OSError(errno.EPROTONOSUPPORT, os.strerror(errno.EPROTONOSUPPORT))

        def close(self):
            pass

    monkeypatch.setattr(socket, 'socket', Netlink)
    require_ipsec(sock)
    assert opened == [((socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_XFRM), 0)]
    assert len(sock.options) == 1


@pytest.mark.parametrize('number, word', [(errno.EPERM, 'root'), (errno.ENOPROTOOPT, 'modprobe')])
def test_a_kernel_that_refuses_the_policy_opens_no_portal(monkeypatch, number, word):
    def refuse(sock):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(portals, 'require_ipsec', refuse)
    group = model.PortalGroup(1, (), ipsec='required')
    with pytest.raises(PortalError) as caught:
        portals.open_portal('127.0.0.1', 0, group)
    assert word in str(caught.value) and not caught.value.is_address_absent
