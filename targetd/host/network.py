"""The addresses of this host's interfaces, and which process listens on a TCP port.

May import base and host. The C library's getifaddrs(3) has the addresses, /proc has the sockets.
"""

import ctypes
import os
import socket

from targetd.host.roots import ROOTS, listing, read_text

LISTENING = '0A'  # TCP_LISTEN in /proc/net/tcp


class _Interface(ctypes.Structure):
    """struct ifaddrs, as far as it is read here."""


_Interface._fields_ = [
    ('next', ctypes.POINTER(_Interface)),
    ('name', ctypes.c_char_p),
    ('flags', ctypes.c_uint),
    ('address', ctypes.c_void_p),
]


def own_addresses(family):
    """The numeric addresses of this host's interfaces, sorted; IPv6 addresses with their scope. family:
    socket.AF_INET or AF_INET6."""
    library = ctypes.CDLL(None, use_errno=True)
    first = ctypes.POINTER(_Interface)()
    if library.getifaddrs(ctypes.byref(first)):
        return []
    found, each = set(), first
    try:
        while each:
            if each.contents.address:
                found.add(_address(each.contents, family))
            each = each.contents.next
    finally:
        library.freeifaddrs(first)
    return sorted(found - {None})


def _address(interface, family):
    """The address as text, or None if it is not of this family. RFC 3493: sockaddr_in6."""
    if ctypes.c_ushort.from_address(interface.address).value != family:
        return None
    if family == socket.AF_INET:
        return socket.inet_ntop(family, ctypes.string_at(interface.address + 4, 4))
    text = socket.inet_ntop(family, ctypes.string_at(interface.address + 8, 16))
    has_scope = ctypes.c_uint32.from_address(interface.address + 24).value
    return '%s%%%s' % (text, os.fsdecode(interface.name)) if has_scope else text


def listeners(port, roots=ROOTS):
    """[(numeric address, process id)] of the processes that listen on this TCP port; only root sees those of
    other users. A socket whose process is not found is left out."""
    sockets = {}  # inode -> address
    for table, family in (('tcp', socket.AF_INET), ('tcp6', socket.AF_INET6)):
        for line in (read_text(roots.proc, 'net', table) or '').splitlines()[1:]:
            words = line.split()
            address, _, local_port = words[1].partition(':')
            if words[3] == LISTENING and int(local_port, 16) == port:
                sockets[words[9]] = _from_hexadecimal(address, family)
    found = []
    for pid in listing(roots.proc) if sockets else ():
        if pid.isdigit():
            found += [
                (sockets[inode], int(pid)) for inode in _sockets_of(pid, roots) & set(sockets)
            ]
    return sorted(found)


def _from_hexadecimal(text, family):
    """An address of /proc/net/tcp: words of 32 bits in the byte order of the host."""
    words = [text[i : i + 8] for i in range(0, len(text), 8)]
    packed = b''.join(bytes(ctypes.c_uint32(int(word, 16))) for word in words)
    return socket.inet_ntop(family, packed)


def _sockets_of(pid, roots):
    """The inodes of the sockets that a process has open."""
    found = set()
    for descriptor in listing(roots.proc, pid, 'fd'):
        try:
            target = os.readlink(os.path.join(roots.proc, pid, 'fd', descriptor))
        except OSError:  # it was closed meanwhile
            continue
        if target.startswith('socket:['):
            found.add(target[8:-1])
    return found


def program_of(pid, roots=ROOTS):
    """The name of a process's program."""
    return read_text(roots.proc, str(pid), 'comm') or 'unknown program'
