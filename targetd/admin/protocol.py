"""The client's side of the control socket: sends one line of JSON and receives one line.

May import base and admin. Every failure is a TargetdError whose text is one sentence that names the
socket and the remedy.
"""

import errno
import json
import os
import socket
import struct
import time

from targetd.admin.commands import MAXIMUM_REPLY, MAXIMUM_REQUEST, pack
from targetd.errors import EXIT_FAILURE, EXIT_NOT_RUNNING, TargetdError

SOCKET_PATH = '/var/run/targetd.sock'
CONNECT_SECONDS = 10.0
MAXIMUM_SECRET = 1024  # bytes


class NotRunning(TargetdError):
    """No server is running behind the control socket."""

    exit_code = EXIT_NOT_RUNNING


class Refused(TargetdError):
    """The server refused the command or failed to execute it. exit_code: as sent by the server."""

    def __init__(self, text, exit_code):
        super(Refused, self).__init__(text)
        self.exit_code = exit_code


def connect(path):
    """Returns a connected socket. Raises NotRunning, or TargetdError if the socket exists but cannot
    be used."""
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
        return TargetdError('this user has no permission to use %s; run targetdctl as root' % path)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotRunning(
            'targetd is not running: there is no socket %s; start targetd, or pass its '
            'control-socket with -s' % path
        )
    if error.errno == errno.ECONNREFUSED:
        return NotRunning(
            'targetd is not running: the socket %s was left behind by an earlier process; start '
            'targetd' % path
        )
    if isinstance(error, socket.timeout) or error.errno in (errno.EAGAIN, errno.ETIMEDOUT):
        return TargetdError(
            '%s: targetd did not accept the connection within %d seconds; it is overloaded or hangs'
            % (path, CONNECT_SECONDS)
        )
    if error.errno is None:  # 'AF_UNIX path too long' has no number
        return TargetdError('%s cannot be a control socket: %s' % (path, error))
    return TargetdError('%s is not a control socket of targetd: %s' % (path, error.strerror))


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
                'targetd on %s did not reply within %d seconds; its log may contain the reason'
                % (path, seconds)
            )
        except OSError as e:
            raise TargetdError('the connection to targetd on %s failed: %s' % (path, e.strerror))
        if not data:
            raise TargetdError(
                'targetd on %s closed the connection without a reply; its log may contain the '
                'reason' % path
            )
        received += data
        if len(received) > MAXIMUM_REPLY:
            raise TargetdError(
                '%s: the reply is longer than %d bytes; is the server targetd?'
                % (path, MAXIMUM_REPLY)
            )
    return bytes(received[: received.index(b'\n')])


def checked_reply(line, path):
    """The reply in a line. Raises Refused, or TargetdError if it is not valid."""
    try:
        reply = json.loads(line.decode('utf-8'))
    except (ValueError, RecursionError):
        reply = None
    if not isinstance(reply, dict) or not isinstance(reply.get('ok'), bool):
        raise TargetdError('%s: the reply is not valid; is the server targetd?' % path)
    if not reply['ok']:
        code = reply.get('exit_code')
        raise Refused(
            str(reply.get('error', 'the server sent no reason')),
            code if code in range(1, 126) else EXIT_FAILURE,
        )
    rows = reply.get('rows')
    if rows is not None and not (
        isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    ):
        raise TargetdError('%s: the reply is not valid; is the server targetd?' % path)
    return reply


def send_request(path, request, seconds=30.0, until_gone=False, secret=None):
    """Send one request (a dict) and return the reply (a dict with 'ok': True).

    path: the control socket; seconds: timeout of the reply; until_gone: after the reply, wait
    within the same time until no server accepts connections on the socket any more; secret: text that
    the server must not have in its memory, sent as the descriptor of a pipe. Raises
    NotRunning, Refused or TargetdError.
    """
    line = pack(request)
    if len(line) > MAXIMUM_REQUEST:
        raise TargetdError('the request of %d bytes is too long' % len(line))
    deadline = time.monotonic() + seconds
    connection = connect(path)
    try:
        try:
            if secret is None:
                connection.sendall(line)
            else:
                _send_with_secret(connection, line, secret)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the server may have sent its refusal before it read the request
        reply = checked_reply(_read_line(connection, path, deadline, seconds), path)
        if until_gone:
            _wait_until_gone(connection, path, deadline, seconds)
        return reply
    finally:
        connection.close()


def _send_with_secret(connection, line, secret):
    data = secret.encode('utf-8')
    if len(data) > MAXIMUM_SECRET:
        raise TargetdError('the secret is longer than %d bytes' % MAXIMUM_SECRET)
    reading, writing = os.pipe()
    try:
        os.write(writing, data)
        descriptors = struct.pack('i', reading)
        sent = connection.sendmsg([line], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
        connection.sendall(line[sent:])
    finally:
        os.close(reading)
        os.close(writing)


def _wait_until_gone(connection, path, deadline, seconds):
    """Wait until the server has closed the connection and its socket accepts no other one."""
    try:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        while connection.recv(1 << 16):
            connection.settimeout(max(0.001, deadline - time.monotonic()))
    except OSError:
        pass
    while _is_listening(path):
        if time.monotonic() > deadline:
            raise TargetdError(
                'targetd on %s has not ended within %d seconds; its log shows what it waits for'
                % (path, seconds)
            )
        time.sleep(0.1)


def _is_listening(path):
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
    """The control socket that is used without -s: $TARGETD_SOCKET, or the default of the settings."""
    return os.environ.get('TARGETD_SOCKET') or SOCKET_PATH
