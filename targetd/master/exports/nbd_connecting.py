"""Connects to an NBD server: name, TCP or Unix socket, handshake. It may wait, so only jobs and
keepers call it.

May import nbd.
"""

import socket
import time

from targetd.nbd import handshake, numbers

#: A server that does not answer for so long is not available.
SECONDS = 8.0
#: TCP asks a silent server after this time whether its host still lives, and how often.
KEEPALIVE_SECONDS, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES = 30, 10, 3
#: What was sent and is not acknowledged by the host of the server for so long breaks the connection.
USER_TIMEOUT_MILLISECONDS = 60000
_TCP_USER_TIMEOUT = getattr(socket, 'TCP_USER_TIMEOUT', 18)
#: A Unix socket takes so many bytes that the server has not received yet, so that the writes of a session
#: need not wait for each other. TCP finds out by itself.
SEND_BUFFER_BYTES = 2 << 20
_SO_SNDBUFFORCE = 32  # beyond the limit of the system; not in the module socket


class Unavailable(Exception):
    """The export cannot be used now; the message is a sentence without a subject, with the remedy.
    is_final: nor later, so that commands need not wait."""

    def __init__(self, why, is_final=False):
        super(Unavailable, self).__init__(why)
        self.is_final = is_final


#: Interval at which a local server is looked at while it does not answer.
LOOK_SECONDS = 0.1


def connect(address, seconds=SECONDS, is_alive=lambda: True):
    """Returns (blocking socket, handshake.Export) for an uri.Address. is_alive(): False if it is known
    that the server will not answer. Raises Unavailable."""
    end = time.monotonic() + seconds
    try:
        sock = _connected(address, end)
    except OSError as e:
        raise Unavailable(_why_unreachable(address, e))
    try:
        export = _negotiated(sock, address.export, end, is_alive)
        sock.settimeout(None)
    except BaseException as e:
        sock.close()
        if isinstance(e, handshake.Refused):
            raise Unavailable(str(e))
        if isinstance(e, OSError):
            raise Unavailable(_why_silent(e))
        raise
    return sock, export


def disconnect(sock):
    """End a connection in order: the server finishes what it has received."""
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass
    sock.close()


def _left(end):
    return max(0.01, end - time.monotonic())


def _connected(address, end):
    if address.path:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _enlarge_send_buffer(sock)
            sock.settimeout(_left(end))
            sock.connect(address.path)
        except BaseException:
            sock.close()
            raise
        return sock
    sock = socket.create_connection((address.host, address.port), _left(end))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, USER_TIMEOUT_MILLISECONDS)
    return sock


def _enlarge_send_buffer(sock):
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, SEND_BUFFER_BYTES)
    except OSError:  # not permitted: as many as the system lets a socket have
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)


def _negotiated(sock, name, end, is_alive):
    steps = handshake.negotiate(name)
    wanted = next(steps)
    try:
        while True:
            if isinstance(wanted, bytes):
                sock.settimeout(_left(end))
                sock.sendall(wanted)
                wanted = steps.send(None)
            else:
                wanted = steps.send(_received(sock, wanted, end, is_alive))
    except StopIteration as e:
        return e.value


def _received(sock, count, end, is_alive):
    """Returns so many bytes; `end` limits the whole handshake."""
    parts = bytearray()
    while len(parts) < count:
        if time.monotonic() >= end:
            raise socket.timeout()
        sock.settimeout(min(_left(end), LOOK_SECONDS))
        try:
            part = sock.recv(count - len(parts))
        except socket.timeout:
            if is_alive():
                continue
            raise ConnectionResetError()
        if not part:
            raise ConnectionResetError()
        parts += part
    return bytes(parts)


def _why_unreachable(address, error):
    if isinstance(error, socket.gaierror):
        return 'cannot be reached: the host name %s is not known (%s); correct it' % (
            address.host,
            error.strerror,
        )
    if isinstance(error, socket.timeout):
        return 'cannot be reached: its host does not answer; check the network and the firewalls'
    where = address.path or '%s port %d' % (address.host, address.port)
    return 'cannot be reached: %s: %s; start the server, or correct the address' % (
        where,
        error.strerror or error,
    )


def _why_silent(error):
    if isinstance(error, socket.timeout):
        return (
            'accepts the connection and does not answer: it hangs, is not an NBD server, or has no '
            'place for another '
            'client (qemu-nbd: start it with -e 0)'
        )
    return 'closes the connection during the handshake (%s); see its log' % (
        error.strerror or 'end of file'
    )


def require_usable(export, read_only, block_size=None):
    """Raises Unavailable unless this handshake.Export can be served. read_only: the LUN is
    read-only; block_size: of the LUN, or None."""
    flags = export.flags
    if not read_only and flags & numbers.READ_ONLY:
        raise Unavailable('is read-only; write readonly = yes, or have the server make it writable')
    if not read_only and not flags & numbers.SEND_FLUSH:
        raise Unavailable(
            'offers no FLUSH, so nothing that is written to it is certainly durable; use a server '
            'that does, or write '
            'readonly = yes'
        )
    if block_size is not None and block_size % export.minimum:
        raise Unavailable(
            'takes whole blocks of %d bytes only; write block-size = %d'
            % (export.minimum, export.minimum)
        )


def require_same(before, now, read_only):
    """Raises Unavailable unless an export can take the place of the same one before: initiators
    know what it could. before: (size, flags, minimum block size)."""
    size, flags, minimum = before
    require_usable(now, read_only)
    if now.size < size:
        raise Unavailable(
            'has %d bytes, and had %d: it has become shorter; restore it, or remove the LUN'
            % (now.size, size)
        )
    missing = flags & ~now.flags
    if missing & ~numbers.SEND_DF or now.minimum > minimum:
        raise Unavailable(
            'offers less than before (flags %04Xh and blocks of %d bytes, before %04Xh and %d); '
            'start the server as '
            'before, or restart targetd' % (now.flags, now.minimum, flags, minimum)
        )
