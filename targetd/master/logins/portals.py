"""Portals: the listening sockets and their addresses.

A portal is (address, port) with a numeric address; '0.0.0.0' and '::' mean every address of the host.
"""

import errno
import ipaddress
import socket

from targetd import log
from targetd.errors import PortalError
from targetd.host.network import listeners, own_addresses, program_of
from targetd.master.logins.ipsec import require_ipsec
from targetd.tcp_info import TCP_CONGESTION

BACKLOG = 1024
#: Interval at which a portal is tried whose address or interface this host does not have, and at which
#: interfaces are looked at: the kernel does not report that the one of a socket was made anew.
RETRY_SECONDS = 5.0
SO_BINDTODEVICE = 25
MODULES = '/proc/sys/net/ipv4/tcp_available_congestion_control'
DSCP_SHIFT = 2  # its place in the TOS of IPv4 and the traffic class of IPv6
SCOPE_SEPARATOR = '%'  # fe80::1%eth0


def family_of(address):
    """socket.AF_INET or AF_INET6 for a numeric address."""
    return socket.AF_INET6 if ':' in address else socket.AF_INET


def shown(address, port):
    """'10.0.0.1:3260' or '[fe80::1]:3260'."""
    return ('[%s]:%d' if ':' in address else '%s:%d') % (address, port)


def plain(address):
    """An address as the kernel returns it, without its scope and without the IPv4-mapped prefix."""
    address = address.split(SCOPE_SEPARATOR)[0]
    return address[7:] if address.startswith('::ffff:') and '.' in address else address


def is_wildcard(address):
    """True for '0.0.0.0' and '::' in any spelling."""
    try:
        return ipaddress.ip_address(address.split(SCOPE_SEPARATOR)[0]).is_unspecified
    except ValueError:
        return False


def open_portal(address, port, group=None):
    """A listening, non-blocking socket, for a config.model.PortalGroup. Raises PortalError; its text
    names the process that has the port, or the addresses of this host."""
    try:
        sock = socket.socket(family_of(address), socket.SOCK_STREAM)
    except OSError as e:  # a kernel without IPv6
        raise _portal_error(address, port, e)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if group is not None:
            _set_up(sock, address, port, group)
        sock.bind(_bindable(address, port, sock.family))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except PortalError:
        sock.close()
        raise
    except (OSError, OverflowError) as e:
        sock.close()
        raise _portal_error(address, port, e)
    return sock


def _set_up(sock, address, port, group):
    """Set what the group configures for its listening sockets; the kernel has the accepted ones inherit
    it. Raises PortalError and OSError."""
    if group.interface:
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, group.interface.encode() + b'\0')
        except OSError as e:
            raise _interface_error(address, port, group.interface, e)
    if group.ipsec == 'required':
        try:
            require_ipsec(sock)
        except OSError as e:
            raise _ipsec_error(address, port, e)
    if group.congestion_control:
        try:
            name = group.congestion_control.encode()
            sock.setsockopt(socket.IPPROTO_TCP, TCP_CONGESTION, name)
        except OSError as e:
            raise _congestion_error(address, port, group.congestion_control, e)
    if group.mss is not None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, group.mss)
    if group.dscp and sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, group.dscp << DSCP_SHIFT)
    elif group.dscp:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, group.dscp << DSCP_SHIFT)


def _interface_error(address, port, name, error):
    found = ', '.join(sorted(each for _, each in socket.if_nameindex()))
    if error.errno == errno.EPERM:
        text = 'interface = %s needs root with this kernel; start targetd as root' % name
    else:
        text = 'this host has no interface %s (it has %s)' % (name, found)
    problem = PortalError('portal %s cannot be opened: %s' % (shown(address, port), text))
    problem.is_address_absent = error.errno == errno.ENODEV
    return problem


def _ipsec_error(address, port, error):
    if error.errno == errno.EPERM:
        text = 'ipsec = required needs root (CAP_NET_ADMIN); start targetd as root'
    else:
        text = (
            'the kernel refuses ipsec = required (%s); run "modprobe xfrm_user", or protect the portal '
            'in another way and write ipsec = no' % error.strerror
        )
    return PortalError('portal %s cannot be opened: %s' % (shown(address, port), text))


def _congestion_error(address, port, name, error):
    if error.errno == errno.EPERM:
        text = (
            'only root may use the congestion control %s; start targetd as root or add it to '
            'net.ipv4.tcp_allowed_congestion_control' % name
        )
    else:
        text = (
            'the congestion control %s is not loaded (this kernel has %s); run "modprobe tcp_%s" or '
            'change congestion-control' % (name, _available(), name)
        )
    return PortalError('portal %s cannot be opened: %s' % (shown(address, port), text))


def _available():
    try:
        with open(MODULES) as file:
            return ', '.join(file.read().split())
    except OSError:
        return 'an unknown list'


def index_of(interface):
    """The number that the kernel has for the interface of this name, or None."""
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        return None


def _bindable(address, port, family):
    return socket.getaddrinfo(address, port, family, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)[
        0
    ][4]


def _portal_error(address, port, error):
    problem = _described(address, port, error)
    absent = getattr(error, 'errno', None) in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
    problem.is_family_absent = absent and is_wildcard(address)
    problem.is_address_absent = absent and not is_wildcard(address)
    problem.is_port_in_use = getattr(error, 'errno', None) == errno.EADDRINUSE
    return problem


def _described(address, port, error):
    portal = 'portal %s cannot be opened: ' % shown(address, port)
    number = getattr(error, 'errno', None)
    if number == errno.EADDRINUSE:
        holder = holder_of(address, port)
        return PortalError(
            portal
            + 'the port is in use%s; stop that program or write another port in the portal group'
            % (' by %s' % holder if holder else '')
        )
    if number == errno.EADDRNOTAVAIL:
        return PortalError(
            portal
            + 'this host has no such address (it has %s); write one of these, or %s for all of them'
            % (
                ', '.join(own_addresses(family_of(address))) or 'none of this family',
                '[::]' if ':' in address else '0.0.0.0',
            )
        )
    if number == errno.EACCES:
        return PortalError(
            portal
            + 'a port below 1024 needs root; start targetd as root or write a port above 1023'
        )
    return PortalError(
        portal + (error.strerror if isinstance(error, OSError) and error.strerror else str(error))
    )


def holder_of(address, port):
    """'tgtd (process 4711)' for the process that listens there; '' if it cannot be found."""
    for local, pid in listeners(port):
        if is_wildcard(address) or is_wildcard(local) or local == address:
            return '%s (process %d)' % (program_of(pid), pid)
    return ''


def free_port(address, preferred):
    """`preferred` if it can be opened on this address, else a free port that the kernel chooses.
    Raises PortalError."""
    try:
        sock = open_portal(address, preferred)
    except PortalError:
        sock = open_portal(address, 0)
    port = sock.getsockname()[1]
    sock.close()
    return port


class PortalListeners(object):
    """The listening sockets of the configured portals.

    loop: Loop; connections: pending.PendingConnections, which accepts on them; on_opened(): a portal
    that waited is open; sockets: {(portal group tag, address, port) as configured: socket}; waiting:
    {the same: why} of portals whose address or interface this host does not have yet.
    """

    def __init__(self, loop, connections, on_opened):
        self.loop = loop
        self.connections = connections
        self.on_opened = on_opened
        self.sockets = {}
        self.waiting = {}
        self._groups = {}  # the keys of both: PortalGroup
        self._indexes = {}  # key of a socket that is bound to an interface: the interface's number
        self._timer = None

    def open_configured(self, configuration):
        """Listen on every portal of a config.model.Configuration. Raises PortalError; but '[::]' on a
        host without IPv6 only causes a warning if another portal is open or waits."""
        errors, is_required = [], configuration.server.portal_required
        for group in configuration.portal_groups.values():
            for address, port in group.portals:
                try:
                    self.open_or_wait(group, address, port, is_required)
                except PortalError as e:
                    errors.append(e)
        for error in errors:
            if not ((self.sockets or self.waiting) and error.is_family_absent):
                raise error
            log.warning('%s', error)

    def open_or_wait(self, group, address, port, is_required):
        """Listen on this portal; if this host does not have the address or interface yet, wait for it
        unless `is_required`. Raises PortalError."""
        try:
            self.listen_on(group, address, port)
        except PortalError as e:
            if is_required or not e.is_address_absent:
                raise
            log.warning('%s; targetd waits for it and tries again', e)
            self._wait(group, address, port, str(e))

    def _wait(self, group, address, port, why):
        self.waiting[group.tag, address, port] = why
        self._groups[group.tag, address, port] = group
        self.look_later()

    def look_later(self):
        """Look again after RETRY_SECONDS at the portals that wait, and at interfaces."""
        if self._timer is None and (self.waiting or self._indexes):
            self._timer = self.loop.call_later(RETRY_SECONDS, self._look)

    def _look(self):
        """Open the portals that wait, also those whose interface has been made anew."""
        self._timer = None
        for key, index in sorted(self._indexes.items()):
            name = self._groups[key].interface
            if index_of(name) != index:
                group = self._groups[key]
                self.close_portal(*key)
                self._wait(group, key[1], key[2], 'interface %s was removed' % name)
                log.warning('portal %s: interface %s was removed', shown(*key[1:]), name)
        has_opened = False
        for tag, address, port in sorted(self.waiting):
            try:
                self.listen_on(self._groups[tag, address, port], address, port)
            except PortalError as e:
                if not e.is_address_absent and str(e) != self.waiting[tag, address, port]:
                    log.error('%s', e)
                self.waiting[tag, address, port] = str(e)
            else:
                has_opened = True
                log.info('portal %s is open now', shown(address, port))
        self.look_later()
        if has_opened:
            self.on_opened()

    def listen_on(self, group, address, port):
        """Listen on this portal, unless it is open already. Raises PortalError."""
        if (group.tag, address, port) not in self.sockets:
            index = index_of(group.interface) if group.interface else None
            self._adopt(group, address, port, open_portal(address, port, group), index)

    def _adopt(self, group, address, port, sock, index):
        """Accept connections on this listening socket. index: the number that its interface had."""
        key = (group.tag, address, port)
        self.sockets[key], self._groups[key] = sock, group
        self.waiting.pop(key, None)
        self.connections.listen(sock, group.tag)
        if group.interface:
            self._indexes[key] = index
            self.look_later()

    def handed_over(self, keep):
        """What another program needs to take over (ARCHITECTURE D24). keep(descriptor): returns it."""
        return {
            'open': [
                key + (keep(sock.fileno()), self._indexes.get(key))
                for key, sock in self.sockets.items()
            ],
            'waiting': list(self.waiting.items()),
        }

    def take_over(self, words, portal_groups):
        """Take over what handed_over() of another program has returned."""
        for tag, address, port, descriptor, index in words['open']:
            sock = socket.socket(family_of(address), socket.SOCK_STREAM, 0, descriptor)
            sock.setblocking(False)
            self._adopt(portal_groups[tag], address, port, sock, index)
        for (tag, address, port), why in words['waiting']:
            self.waiting[tag, address, port] = why
            self._groups[tag, address, port] = portal_groups[tag]

    def try_portal(self, group, address, port, is_required):
        """Raises PortalError if a reload with this portal would be refused. A port that is open already
        is tried with another one: the portal that has it may be one that is going to be closed."""
        if any(port == taken for _, _, taken in self.sockets):
            port = 0
        try:
            open_portal(address, port, group).close()
        except PortalError as e:
            if is_required or not e.is_address_absent:
                raise

    def close_portal(self, tag, address, port):
        """Stop listening on this portal, or waiting for it; its sessions continue."""
        key = (tag, address, port)
        self.waiting.pop(key, None)
        self._groups.pop(key, None)
        self._indexes.pop(key, None)
        sock = self.sockets.pop(key, None)
        if sock is not None:
            self.connections.unlisten(sock)

    def close_all(self):
        """Stop listening, and close the connections that are pending."""
        for attribute in (self.sockets, self.waiting, self._groups, self._indexes):
            attribute.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.connections.close_all()
