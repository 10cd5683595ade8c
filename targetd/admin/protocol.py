"""The client's end of the control socket: one line of JSON to the server, one line back.

May import base and admin. Every way in which it can fail ends in one sentence that names the socket
and what to do.
"""

import errno
import json
import os
import socket
import time

from targetd.admin.commands import MAXIMUM_REPLY, MAXIMUM_REQUEST, pack
from targetd.errors import EXIT_FAILURE, EXIT_NOT_RUNNING, TargetdError

SOCKET_PATH = '/var/run/targetd.sock'
CONNECT_SECONDS = 10.0


class NotRunning(TargetdError):
    """No server answers on the control socket."""

    exit_code = EXIT_NOT_RUNNING


class Refused(TargetdError):
    """The server answered that it will not or cannot; `exit_code` is the server's word."""

    def __init__(self, text, exit_code):
        super(Refused, self).__init__(text)
        self.exit_code = exit_code


def connect(path):
    """A connected socket. Raises NotRunning, or TargetdError if the socket is there but may not be
    used."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(CONNECT_SECONDS)
    try:
        connection.connect(path)
        return connection
    except OSError as e:
        connection.close()
        raise _unreachable(path, e)


def _unreachable(path, error):
    if isinstance(error, PermissionError):
        return TargetdError(
            '%s may not be used by this user; be root, or a member of its group' % path
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotRunning(
            'no targetd answers: there is no %s; start targetd, or name its control-socket with -s'
            % path
        )
    if error.errno == errno.ECONNREFUSED:
        return NotRunning(
            'no targetd answers on %s: the socket was left behind by one that is gone; start targetd'
            % path
        )
    if isinstance(error, socket.timeout) or error.errno in (errno.EAGAIN, errno.ETIMEDOUT):
        return TargetdError(
            '%s: targetd does not take the connection within %d seconds; it is overloaded or stuck'
            % (path, CONNECT_SECONDS)
        )
    if error.errno is None:  # 'AF_UNIX path too long' has no number
        return TargetdError('%s cannot be a control socket: %s' % (path, error))
    return TargetdError('%s is no control socket of targetd: %s' % (path, error.strerror))


def _read_line(connection, path, deadline, seconds):
    received = bytearray()
    while b'\n' not in received[-(1 << 16) :]:
        left = deadline - time.monotonic()
        try:
            if left <= 0:
                raise socket.timeout()
            connection.settimeout(left)
            data = connection.recv(1 << 16)
        except socket.timeout:
            raise TargetdError(
                'targetd on %s did not answer within %d seconds; its log may say why'
                % (path, seconds)
            )
        except OSError as e:
            raise TargetdError('targetd on %s broke off the conversation: %s' % (path, e.strerror))
        if not data:
            raise TargetdError(
                'targetd on %s ended the conversation without an answer; its log may say why' % path
            )
        received += data
        if len(received) > MAXIMUM_REPLY:
            raise TargetdError(
                '%s: an answer of more than %d bytes; is it targetd that answers?'
                % (path, MAXIMUM_REPLY)
            )
    return bytes(received[: received.index(b'\n')])


def _checked_reply(line, path):
    try:
        reply = json.loads(line.decode('utf-8'))
    except (ValueError, RecursionError):
        reply = None
    if not isinstance(reply, dict) or not isinstance(reply.get('ok'), bool):
        raise TargetdError('%s: what answers does not speak targetd\'s language' % path)
    if not reply['ok']:
        code = reply.get('exit_code')
        raise Refused(
            str(reply.get('error', 'no reason given')),
            code if code in range(1, 126) else EXIT_FAILURE,
        )
    rows = reply.get('rows')
    if rows is not None and not (
        isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    ):
        raise TargetdError('%s: what answers does not speak targetd\'s language' % path)
    return reply


def ask(path, request, seconds=30.0, until_gone=False):
    """Send one request (a dict) and return the reply (a dict with 'ok': True).

    path: the control socket; seconds: the longest that the answer may take; until_gone: wait after
    the answer, within the same time, until no server answers on the socket any more. Raises
    NotRunning, Refused or TargetdError.
    """
    line = pack(request)
    if len(line) > MAXIMUM_REQUEST:
        raise TargetdError('a request of %d bytes is too long' % len(line))
    deadline = time.monotonic() + seconds
    connection = connect(path)
    try:
        try:
            connection.sendall(line)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before it was read; the reason may be there to be read
        reply = _checked_reply(_read_line(connection, path, deadline, seconds), path)
        if until_gone:
            _wait_until_gone(connection, path, deadline, seconds)
        return reply
    finally:
        connection.close()


def _wait_until_gone(connection, path, deadline, seconds):
    """Until the server closed the connection and its socket takes no other."""
    try:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        while connection.recv(1 << 16):
            connection.settimeout(max(0.001, deadline - time.monotonic()))
    except OSError:
        pass
    while _answers(path):
        if time.monotonic() > deadline:
            raise TargetdError(
                'targetd on %s has not ended within %d seconds; its log says what it waits for'
                % (path, seconds)
            )
        time.sleep(0.1)


def _answers(path):
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.settimeout(1.0)
        probe.connect(path)
        return True
    except socket.timeout:
        return True
    except OSError:
        return False
    finally:
        probe.close()


def default_socket():
    """Where the control socket is unless -s says otherwise: $TARGETD_SOCKET or the shipped place."""
    return os.environ.get('TARGETD_SOCKET') or SOCKET_PATH
