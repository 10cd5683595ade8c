"""The MAC address of a peer of the local segment, from the kernel's neighbour table by rtnetlink (IPv4: ARP,
IPv6: neighbour discovery).

     mac_of(address) --RTM_GETNEIGH, dump--> kernel --> parse_dump() --> the MAC address, or why there is none

A dump is a copy of kernel memory, so the master may ask for one: nothing waits for the network. The
messages are those of rtnetlink(7) and netlink(7), in the byte order of the host.
"""

import ipaddress
import os
import socket
import struct
from collections import namedtuple

from targetd.config.network_kinds import MAC, parsed_address

HEADER = struct.Struct('=IHHII')  # nlmsghdr: length, type, flags, sequence number, port
ENTRY = struct.Struct('=BxxxiHBB')  # ndmsg: family, interface, state, flags, type
ATTRIBUTE = struct.Struct('=HH')  # rtattr: length, type

NETLINK_ROUTE = 0
NLM_F_REQUEST, NLM_F_DUMP, NLM_F_DUMP_INTR = 0x1, 0x300, 0x10
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWNEIGH, RTM_GETNEIGH = 28, 30
NDA_DST, NDA_LLADDR = 1, 2
#: REACHABLE, STALE, DELAY, PROBE, PERMANENT: the kernel would send packets to this MAC address. Not:
#: INCOMPLETE and FAILED, which have none, and NOARP, which the neighbour has not told.
USABLE = 0x02 | 0x04 | 0x08 | 0x10 | 0x80
MAC_LENGTH = 6
RECEIVE_BYTES = 1 << 18
MOST_RECEIVES = 4096  # a bound for a kernel that never ends its dump
RECEIVE_SECONDS = 1.0  # a dump is there as soon as it was asked for

Neighbour = namedtuple('Neighbour', 'address mac')

NOT_A_NEIGHBOUR = (
    'the neighbour table of the kernel has no MAC address of it: it is no host of the local segment'
)


class DumpFailed(Exception):
    """The kernel has not sent a whole dump."""


def parse_dump(data):
    """([Neighbour] with usable entries, is it the end?) of netlink messages. Raises DumpFailed."""
    found, position = [], 0
    while position + HEADER.size <= len(data):
        length, kind, flags, _, _ = HEADER.unpack_from(data, position)
        if length < HEADER.size or position + length > len(data):
            raise DumpFailed('a malformed netlink message')
        if flags & NLM_F_DUMP_INTR:
            raise DumpFailed('the table changed meanwhile')
        if kind == NLMSG_ERROR:
            code = -struct.unpack_from('=i', data, position + HEADER.size)[0]
            raise DumpFailed(os.strerror(code))
        if kind == NLMSG_DONE:
            return found, True
        if kind == RTM_NEWNEIGH:
            found += _neighbours(data[position + HEADER.size : position + length])
        position += (length + 3) & ~3
    return found, False


def _neighbours(body):
    """[Neighbour] of one message: it has one entry, or none that is usable."""
    if len(body) < ENTRY.size:
        raise DumpFailed('a short netlink message')
    state, attributes, position = ENTRY.unpack_from(body)[2], {}, ENTRY.size
    while position + ATTRIBUTE.size <= len(body):
        length, kind = ATTRIBUTE.unpack_from(body, position)
        if length < ATTRIBUTE.size:
            raise DumpFailed('a malformed attribute')
        attributes[kind] = body[position + ATTRIBUTE.size : position + length]
        position += (length + 3) & ~3
    address, mac = attributes.get(NDA_DST, b''), attributes.get(NDA_LLADDR, b'')
    if not state & USABLE or len(mac) != MAC_LENGTH or len(address) not in (4, 16):
        return []
    return [Neighbour(ipaddress.ip_address(bytes(address)), ':'.join('%02x' % b for b in mac))]


def dump(family):
    """[Neighbour] of this address family. Raises DumpFailed, OSError."""
    request = ENTRY.pack(family, 0, 0, 0, 0)
    head = HEADER.pack(HEADER.size + len(request), RTM_GETNEIGH, NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
    found, is_over = [], False
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) as sock:
        sock.settimeout(RECEIVE_SECONDS)
        sock.bind((0, 0))
        sock.sendto(head + request, (0, 0))
        for _ in range(MOST_RECEIVES):
            more, is_over = parse_dump(sock.recv(RECEIVE_BYTES))
            found += more
            if is_over:
                return found
    raise DumpFailed('the dump has no end')


def mac_of(address, dump=dump):
    """(MAC address or None, why there is none or '') of a peer. dump: a substitute of a test."""
    try:
        peer = parsed_address(address)
    except ValueError:
        return None, 'it is not an IP address'
    family = socket.AF_INET if peer.version == 4 else socket.AF_INET6
    try:
        found = _dumped(dump, family)
    except (DumpFailed, OSError) as e:
        return None, 'the neighbour table of the kernel cannot be read: %s' % e
    macs = sorted({neighbour.mac for neighbour in found if neighbour.address == peer})
    if len(macs) > 1:
        # two segments have the address: which of them the peer is in is not known here
        return None, 'several hosts of the local segments have this address: %s' % ', '.join(macs)
    return (macs[0], '') if macs else (None, NOT_A_NEIGHBOUR)


def seen(rules, dump=dump):
    """{rule: the addresses that the neighbour table has for it, in words} of the rules mac: that have any."""
    found = {}
    for family in (socket.AF_INET, socket.AF_INET6) if _has_macs(rules) else ():
        try:
            for each in _dumped(dump, family):
                found.setdefault(MAC + each.mac, set()).add(str(each.address))
        except (DumpFailed, OSError):
            continue
    return {rule: ', '.join(sorted(found[rule])) for rule in rules if rule in found}


def _has_macs(rules):
    return any(rule.startswith(MAC) for rule in rules)


def _dumped(dump, family):
    """The dump; a second one if the table has changed during the first."""
    try:
        return dump(family)
    except DumpFailed:
        return dump(family)


__all__ = ('DumpFailed', 'Neighbour', 'dump', 'mac_of', 'parse_dump', 'seen')
