"""Pending connections: accepted, but their Login Request has not arrived or waits for its turn.

The master waits, without reading, until the 48 bytes of a Basic Header Segment are in the receive
buffer (SO_RCVLOWAT makes the kernel wake it only then), peeks opcode, ISID and TSIH, and routes the
connection (ARCHITECTURE D2). A silent connection costs a descriptor until the login timeout. A
connection of a proxy begins with a PROXY header, which is read here: from then on the peer is the client
that the header names. When there are too many connections, the oldest one of the origin
(throttle.origin_of) that has the most is closed, so that a flood from one address does not lock out
another.
"""

import collections
import errno
import itertools
import select
import socket
import struct

from targetd import log
from targetd.config import acl
from targetd.host.network import own_addresses
from targetd.iscsi import const
from targetd.master.logins import proxy_protocol
from targetd.master.logins.portals import family_of, plain, shown
from targetd.master.logins.refusals import send_refusal
from targetd.master.logins.throttle import origin_of
from targetd.master.processes.loop import READ

# opcode, flags, isid, tsih, itt, cid, cmd_sn: RFC 7143 11.12
LOGIN_HEADER = struct.Struct('>BB6x6sHIH2xI20x')
# opcode, flags, isid, tsih, itt, exp_cmd_sn, max_cmd_sn, status class, status detail: RFC 7143
# 11.13
RESPONSE_HEADER = struct.Struct('>BBxx4x6sHI8xIIBB10x')
ACCEPTS_PER_PASS = 64
SHORT_PEEK_SECONDS = 0.05  # poll interval where the kernel ignores SO_RCVLOWAT
NO_DESCRIPTORS_SECONDS = 1.0
# pending connections that an origin may have; twice max-connections-per-address if that is more
FEWEST_PER_ORIGIN = 64

Limits = collections.namedtuple('Limits', 'login_timeout pending per_address')
LoginHeader = collections.namedtuple('LoginHeader', 'flags isid tsih itt cid cmd_sn')


def parse_login(data):
    """The LoginHeader in 48 bytes, or None if they are not a Login Request (RFC 7143 11.12)."""
    opcode, flags, isid, tsih, itt, cid, cmd_sn = LOGIN_HEADER.unpack(data)
    if opcode & 0xBF != const.LOGIN_REQUEST:
        return None
    return LoginHeader(flags, isid.hex(), tsih, itt, cid, cmd_sn)


def refusal(header, status):
    """The Login Response (48 bytes) that refuses the login with this (class, detail), RFC 7143
    11.13.5."""
    return RESPONSE_HEADER.pack(
        const.LOGIN_RESPONSE,
        header.flags & 0x0C,
        bytes.fromhex(header.isid),
        header.tsih,
        header.itt,
        header.cmd_sn,
        header.cmd_sn,
        status[0],
        status[1],
    )


class PendingConnection(object):
    """An accepted connection. peer, local: (address, port); group: the portal group tag; header:
    LoginHeader, or None until it has arrived; number: of its arrival; has_waited: True if its login
    waits for a worker; needs_proxy_header: True until the PROXY header of a proxy has arrived; socket:
    None once the connection was closed or handed over."""

    _numbers = itertools.count()

    def __init__(self, sock, peer, local, group, is_proxied=False):
        self.number = next(self._numbers)
        self.socket = sock
        self.peer = peer
        self.local = local
        self.group = group
        self.needs_proxy_header = is_proxied
        self._is_proxied = is_proxied
        self.origin = origin_of(peer[0])
        self.header = None
        self.deadline = None
        self.again = None
        self.has_waited = False

    def proxied_client(self):
        """The peer if a PROXY header has named it, else None."""
        return list(self.peer) if self._is_proxied and not self.needs_proxy_header else None

    def description(self):
        """The `connection` of the orders serve and join (channel.py)."""
        return {'peer': list(self.peer), 'local': list(self.local), 'group': self.group}


class PendingConnections(object):
    """The pending connections, and the listening sockets that accept them.

    on_login(pending): a Login Request has arrived; it calls hand_over() or refuse(), or keeps it;
    limits: Limits; proxies_of(portal group tag) -> networks whose connections begin with a PROXY header.
    """

    def __init__(self, loop, on_login, limits, proxies_of=lambda tag: ()):
        self.proxies_of = proxies_of
        self.loop = loop
        self.on_login = on_login
        self.limits = limits
        self.by_age = collections.OrderedDict()  # PendingConnection -> None, oldest first
        self._by_origin = collections.Counter()  # how many pending connections
        self._listeners = []
        self._silent_warned = False

    # -- accept ------------------------------------------------------------------------------------

    def listen(self, sock, group):
        """Accept connections on this listening socket, for the portal group with this tag. They inherit
        its options. Raises OSError."""
        tune(sock)
        self._listeners.append(sock)
        self.loop.watch(sock, READ, lambda _events: self._accept(sock, group))

    def unlisten(self, sock):
        """Stop accepting on this socket, and close it. It is shut down first, because a child that was
        just forked may still have a copy: the port must be free now, and must not accept."""
        if sock in self._listeners:
            self._listeners.remove(sock)
        self.loop.forget(sock)
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        sock.close()

    def _accept(self, listener, group):
        for _ in range(ACCEPTS_PER_PASS):
            try:
                sock, peer = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as e:
                if e.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._pause(listener, group, e)
                    return
                continue  # this connection was reset (ECONNABORTED); the next one may be accepted
            self._arrived(sock, peer, group)

    def _pause(self, listener, group, error):
        log.error('no connection can be accepted (%s); trying again in a second', error.strerror)
        self.loop.forget(listener)

        def again():
            if listener in self._listeners:
                self.loop.watch(listener, READ, lambda _events: self._accept(listener, group))

        self.loop.call_later(NO_DESCRIPTORS_SECONDS, again)

    def _arrived(self, sock, peer, group, client=None):
        try:
            local = sock.getsockname()
        except OSError:  # the peer has reset it already
            sock.close()
            return
        peer = tuple(client) if client else (plain(peer[0]), peer[1])
        is_proxied = not client and acl.address_matches(self.proxies_of(group), peer[0])
        pending = PendingConnection(sock, peer, (plain(local[0]), local[1]), group, is_proxied)
        self.by_age[pending] = None
        self._count(pending, 1)
        self._set_deadline(pending)
        self._limit_number(pending)
        if pending.socket is not None:
            self._wait_for_header(pending)

    def _limit_number(self, pending):
        if self._by_origin[pending.origin] > max(FEWEST_PER_ORIGIN, 2 * self.limits.per_address):
            self._make_room(pending.origin)
        elif len(self.by_age) > self.limits.pending:
            self._make_room(max(self._by_origin, key=self._by_origin.get))

    def adopt(self, sock, group, client=None):
        """A connection that another program has accepted (ARCHITECTURE D24). client: (address, port) if
        that program has received a PROXY header."""
        try:
            peer = sock.getpeername()
        except OSError:  # the peer has reset it meanwhile
            sock.close()
        else:
            self._arrived(sock, peer, group, client)

    def _count(self, pending, change):
        self._by_origin[pending.origin] += change
        if not self._by_origin[pending.origin]:
            del self._by_origin[pending.origin]

    def _set_deadline(self, pending):
        pending.deadline = self.loop.call_later(
            self.limits.login_timeout, lambda: self._login_timed_out(pending)
        )

    def _make_room(self, origin):
        """Close the connections of this origin whose peers have closed them. If there are none, close
        the oldest one: the oldest silent one if there is any, else the oldest whose login waits."""
        of_origin = [p for p in self.by_age if p.origin == origin]
        ended = ended_of({p.socket.fileno(): p for p in of_origin})
        for pending in ended:
            self.close(pending)
        if ended:
            return
        if not self._silent_warned:
            log.warning(
                '%d connections wait for their login, %d of them from %s; the oldest of these are closed',
                len(self.by_age),
                self._by_origin[origin],
                origin,
            )
            self._silent_warned = True
        self.close(next((p for p in of_origin if p.header is None), of_origin[0]))

    def _login_timed_out(self, pending):
        if pending.header is not None:
            self.refuse(
                pending,
                const.OUT_OF_RESOURCES,
                'no worker was free for it within %d seconds' % self.limits.login_timeout,
            )
            return
        log.info(
            '%s: no login within %d seconds; the connection is closed',
            shown(*pending.peer),
            self.limits.login_timeout,
            origin=pending.peer[0],
        )
        self.close(pending)

    # -- peek --------------------------------------------------------------------------------------

    def _wait_for_header(self, pending):
        pending.again = None
        if pending.socket is not None:
            self.loop.watch(pending.socket, READ, lambda _events: self._readable(pending))

    def _readable(self, pending):
        wanted = proxy_protocol.LONGEST if pending.needs_proxy_header else const.BHS_LENGTH
        try:
            data = pending.socket.recv(wanted, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b''
        if data and pending.needs_proxy_header:
            is_complete = self._take_proxy_header(pending, data)
        else:
            is_complete = len(data) == const.BHS_LENGTH
            if is_complete:
                self._header_arrived(pending, data)
        if is_complete:
            return
        if not data or has_ended(pending.socket):
            log.debug('%s: closed before its login', shown(*pending.peer))
            self.close(pending)
        else:
            self.loop.forget(pending.socket)
            pending.again = self.loop.call_later(
                SHORT_PEEK_SECONDS, lambda: self._wait_for_header(pending)
            )

    def _take_proxy_header(self, pending, data):
        """Receive the PROXY header and take its client for the peer. Returns False if it is not complete
        yet."""
        try:
            found = proxy_protocol.parse(data)
            if found is None:
                return False
            length, client = found
            if client is not None and client[0] in own_addresses(family_of(client[0])):
                raise proxy_protocol.NotProxied(
                    'the PROXY header claims %s, an address of this host' % client[0]
                )
        except proxy_protocol.NotProxied as e:
            self._refuse(
                pending,
                '%s (proxy-protocol-from of portal group %d has this address)' % (e, pending.group),
            )
            return True
        pending.socket.recv(length)
        pending.needs_proxy_header = False
        if client is not None:
            self._count(pending, -1)
            pending.peer, pending.origin = (plain(client[0]), client[1]), origin_of(client[0])
            self._count(pending, 1)
            self._limit_number(pending)
        return True

    def _header_arrived(self, pending, data):
        self.loop.forget(pending.socket)
        pending.header = parse_login(data)
        if pending.header is None and proxy_protocol.is_header(data):
            self._refuse(
                pending,
                'it sent a PROXY header, but proxy-protocol-from of portal group %d does not have its '
                'address' % pending.group,
            )
        elif pending.header is None:
            text = 'the first bytes are not an iSCSI login (they begin with %s)'
            self._refuse(pending, text % data[:8].hex())
        else:
            self.on_login(pending)

    def _refuse(self, pending, why):
        log.info(
            '%s: %s; the connection is closed', shown(*pending.peer), why, origin=pending.peer[0]
        )
        self.close(pending)

    # -- leave -------------------------------------------------------------------------------------

    def hand_over(self, pending):
        """The socket, to be sent to a worker, which reads the bytes that were only peeked. The caller
        closes it."""
        sock = self._take_out(pending)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        except OSError:
            pass
        return sock

    def _take_out(self, pending):
        if pending in self.by_age:
            del self.by_age[pending]
            self._count(pending, -1)
        for timer in (pending.deadline, pending.again):
            if timer is not None:
                timer.cancel()
        sock, pending.socket = pending.socket, None
        if sock is not None:
            self.loop.forget(sock)
        return sock

    def close(self, pending):
        """Close the connection without an answer."""
        sock = self._take_out(pending)
        if sock is not None:
            sock.close()

    def refuse(self, pending, status, why):
        """Answer the Login Request with this (class, detail), and close the connection when the
        initiator has closed it or LINGER_SECONDS are over."""
        log.info(
            '%s: login refused with status %02X%02X: %s',
            shown(*pending.peer),
            status[0],
            status[1],
            why,
            origin=pending.peer[0],
        )
        sock = self._take_out(pending)
        send_refusal(self.loop, sock, refusal(pending.header, status))

    def close_all(self):
        """Close every listening socket and every pending connection."""
        for sock in list(self._listeners):
            self.unlisten(sock)
        for pending in list(self.by_age):
            self.close(pending)


def tune(sock):
    """Set the options that the connections of a listening socket inherit: no Nagle algorithm, and
    keepalive that detects a lost peer in two minutes. Raises OSError."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (('TCP_KEEPIDLE', 60), ('TCP_KEEPINTVL', 10), ('TCP_KEEPCNT', 6)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, const.BHS_LENGTH)


def has_ended(sock):
    """True if the peer has closed its side: the rest of a header will not arrive."""
    return bool(ended_of({sock.fileno(): sock}))


def ended_of(by_descriptor):
    """The values of {descriptor: value} whose peers have closed their side."""
    poll = select.poll()
    for descriptor in by_descriptor:
        poll.register(descriptor, getattr(select, 'POLLRDHUP', 0x2000))
    return [by_descriptor[descriptor] for descriptor, _ in poll.poll(0)]
