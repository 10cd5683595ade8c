"""The IPsec policy of one socket: it takes packets only that arrived through IPsec. Linux applies it to
the connections that the socket accepts, whatever the policy of the host is.

The structures are those of linux/xfrm.h: struct xfrm_userpolicy_info, then one struct xfrm_user_tmpl.
"""

import socket
import struct

IP_XFRM_POLICY, IPV6_XFRM_POLICY = 17, 35
NETLINK_XFRM = 6
INWARD, ALLOW = 0, 0
ESP, TRANSPORT = 50, 0
ANY_ALGORITHM = 0xFFFFFFFF
NO_LIMIT = (1 << 64) - 1

#: A selector that has the family only: it matches all packets of the socket.
SELECTOR = struct.Struct('=40xH14x')
# the limits, and the use so far
LIFETIME = struct.pack('=8Q', *[NO_LIMIT] * 4 + [0] * 4) + bytes(32)
POLICY = struct.Struct('=IIBBBB4x')  # priority, index, direction, action, flags, share
#: address 16, SPI, protocol, family, address 16, reqid, mode, share, optional, algorithms
TEMPLATE = struct.Struct('=20xB3xH18xIBBBxIII')


def require_ipsec(sock):
    """Take nothing on this socket, and on those that it accepts, that did not arrive through IPsec. Raises
    OSError: EPERM without CAP_NET_ADMIN, EINVAL without the kernel's module xfrm_user."""
    _load_module()
    is_6 = sock.family == socket.AF_INET6
    policy = SELECTOR.pack(sock.family) + LIFETIME + POLICY.pack(0, 0, INWARD, ALLOW, 0, 0)
    template = TEMPLATE.pack(
        ESP, sock.family, 0, TRANSPORT, 0, 0, ANY_ALGORITHM, ANY_ALGORITHM, ANY_ALGORITHM
    )
    level, option = (
        (socket.IPPROTO_IPV6, IPV6_XFRM_POLICY) if is_6 else (socket.IPPROTO_IP, IP_XFRM_POLICY)
    )
    sock.setsockopt(level, option, policy + template)


def _load_module():
    """Have the kernel load xfrm_user, in the way of each program that uses its netlink family. strongSwan
    does the same, but it may be started later."""
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_XFRM).close()
    except OSError:
        pass  # setsockopt reports what is missing
