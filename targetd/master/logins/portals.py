"""Portals: the listening sockets and their addresses.

A portal is (address, port) with a numeric address; '0.0.0.0' and '::' mean every address of the host.
"""

import errno
import ipaddress
import socket

from targetd import log
from targetd.errors import PortalError
from targetd.host.network import listeners, own_addresses, program_of

BACKLOG = 1024
RETRY_SECONDS = 5.0  # interval at which a portal is tried whose address this host does not have
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


def open_portal(address, port):
    """A listening, non-blocking socket. Raises PortalError; its text names the process that has the
    port, or the addresses of this host."""
    try:
        sock = socket.socket(family_of(address), socket.SOCK_STREAM)
    except OSError as e:  # a kernel without IPv6
        raise _portal_error(address, port, e)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(_bindable(address, port, sock.family))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except (OSError, OverflowError) as e:
        sock.close()
        raise _portal_error(address, port, e)
    return sock


def _bindable(address, port, family):
    return socket.getaddrinfo(address, port, family, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)[
        0
    ][4]


def _portal_error(address, port, error):
    problem = _described(address, port, error)
    absent = getattr(error, 'errno', None) in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
    problem.is_family_absent = absent and is_wildcard(address)
    problem.is_address_absent = absent and not is_wildcard(address)
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
    {the same: why} of portals whose address this host does not have yet.
    """

    def __init__(self, loop, connections, on_opened):
        self.loop = loop
        self.connections = connections
        self.on_opened = on_opened
        self.sockets = {}
        self.waiting = {}
        self._timer = None

    def open_configured(self, configuration):
        """Listen on every portal of a config.model.Configuration. Raises PortalError; but '[::]' on a
        host without IPv6 only causes a warning if another portal is open or waits."""
        errors, is_required = [], configuration.server.portal_required
        for tag, group in configuration.portal_groups.items():
            for address, port in group.portals:
                try:
                    self.open_or_wait(tag, address, port, is_required)
                except PortalError as e:
                    errors.append(e)
        for error in errors:
            if not ((self.sockets or self.waiting) and error.is_family_absent):
                raise error
            log.warning('%s', error)

    def open_or_wait(self, tag, address, port, is_required):
        """Listen on this portal; if this host does not have the address yet, wait for it unless
        `is_required`. Raises PortalError."""
        try:
            self.listen_on(tag, address, port)
        except PortalError as e:
            if is_required or not e.is_address_absent:
                raise
            self.waiting[tag, address, port] = str(e)
            log.warning('%s; targetd waits for the address and tries again', e)
            self.retry_later()

    def retry_later(self):
        """Try the portals that wait, if there are any, after RETRY_SECONDS."""
        if self._timer is None and self.waiting:
            self._timer = self.loop.call_later(RETRY_SECONDS, self._retry)

    def _retry(self):
        self._timer, has_opened = None, False
        for tag, address, port in sorted(self.waiting):
            try:
                self.listen_on(tag, address, port)
            except PortalError as e:
                if not e.is_address_absent and str(e) != self.waiting[tag, address, port]:
                    log.error('%s', e)
                self.waiting[tag, address, port] = str(e)
            else:
                has_opened = True
                log.info('portal %s is open now', shown(address, port))
        self.retry_later()
        if has_opened:
            self.on_opened()

    def listen_on(self, tag, address, port):
        """Listen on this portal, unless it is open already. Raises PortalError."""
        if (tag, address, port) not in self.sockets:
            self.adopt(tag, address, port, open_portal(address, port))

    def adopt(self, tag, address, port, sock):
        """Accept connections on this listening socket."""
        self.sockets[tag, address, port] = sock
        self.waiting.pop((tag, address, port), None)
        self.connections.listen(sock, tag)

    def try_portal(self, address, port, is_required):
        """Raises PortalError if a reload with this portal would be refused. A port that is open already
        is not tried: the portal that has it may be one that is going to be closed."""
        if all(port != taken for _, _, taken in self.sockets):
            try:
                open_portal(address, port).close()
            except PortalError as e:
                if is_required or not e.is_address_absent:
                    raise

    def close_portal(self, tag, address, port):
        """Stop listening on this portal, or waiting for it; its sessions continue."""
        self.waiting.pop((tag, address, port), None)
        sock = self.sockets.pop((tag, address, port), None)
        if sock is not None:
            self.connections.unlisten(sock)

    def close_all(self):
        """Stop listening, and close the connections that are pending."""
        self.sockets.clear()
        self.waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.connections.close_all()
