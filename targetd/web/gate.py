"""What the status page may ask the server, and the relay that asks in its place.

The page parses HTTP, so it runs as an unprivileged user, who may not open the control socket. The process
that was started as root stays as the relay: it executes the commands that are listed here, and no
others, whatever the page sends. It reads lines of JSON, never HTTP.

  page  --- a descriptor of a socket for each request --->  relay  --- control socket --->  server
        <-- one line of JSON on that socket --------------         <----------------------
"""

import json
import os
import socket
import struct
import threading

from targetd.admin import change_commands, commands, disk_answers, protocol
from targetd.errors import TargetdError

MOST_REQUESTS = 16  # at the same time
REQUEST_SECONDS = 10.0
_RIGHTS = struct.calcsize('i')

#: Commands of the page that change something, besides those of admin.change_commands.
FURTHER_CHANGES = (
    'kick', 'drain', 'logout', 'end', 'acknowledge', 'accept', 'alua', 'reload', 'reservation clear',
)  # fmt: skip


def _changes():
    for row in commands.TABLE:
        is_listed = row in change_commands.TABLE or row.words in FURTHER_CHANGES
        if is_listed and not row.local and not commands.is_read_only(row):
            yield commands.name_of(row), row


#: Name of a command -> its row: those that the page may use with --allow-changes.
CHANGES = dict(_changes())
#: Those that it may always use. `disks` is answered by the relay.
READS = {
    commands.name_of(row): row
    for row in commands.TABLE
    if commands.is_read_only(row) or row.words == 'disks'
}


class Gate(object):
    """Executes the requests of the page. path: the control socket; allows_changes: of the server."""

    def __init__(self, path, allows_changes):
        self._path = path
        self._allows_changes = allows_changes

    def execute(self, request):
        """The reply of a request, a dict as in admin.commands; it may have the key 'secret', a text. Raises
        TargetdError."""
        request = dict(request)
        secret = request.pop('secret', None)
        name = request.get('command')
        row = READS.get(name) if isinstance(name, str) else None
        if row is None and self._allows_changes and isinstance(name, str):
            row = CHANGES.get(name)
        if row is None:
            raise TargetdError('%r is not allowed here; use targetdctl' % (name,))
        if row.local:
            return disk_answers.reply_about_host(self._path)
        try:
            commands.parse_request(commands.pack(request))
        except commands.BadRequest as e:
            raise TargetdError(str(e))
        return protocol.send_request(self._path, request, row.seconds, secret=secret)


def reply_line(gate, line):
    """The reply (bytes) to one request (bytes)."""
    try:
        request = json.loads(line.decode('utf-8'))
        if not isinstance(request, dict):
            raise ValueError()
        return commands.pack(gate.execute(request))
    except TargetdError as e:
        return commands.reply_error(str(e), e.exit_code)
    except (ValueError, RecursionError) as e:
        return commands.reply_error(str(e) or 'the request is not valid')


# -- the relay -------------------------------------------------------------------------------------


class Relay(object):
    """Answers the page. link: a socket whose other end the page has; gate: Gate."""

    def __init__(self, link, gate):
        self._link = link
        self._gate = gate
        self._free = threading.BoundedSemaphore(MOST_REQUESTS)

    def run(self):
        """Answer until the page has ended."""
        while True:
            try:
                data, ancillary, _, _ = self._link.recvmsg(1, socket.CMSG_SPACE(_RIGHTS))
            except ConnectionError:
                return
            if not data:
                return
            for _level, _kind, content in ancillary:
                (number,) = struct.unpack('i', content[:_RIGHTS])
                self._free.acquire()
                thread = threading.Thread(
                    target=self._converse, args=(socket.socket(fileno=number),)
                )
                thread.daemon = True
                thread.start()

    def _converse(self, sock):
        try:
            with sock:
                sock.settimeout(REQUEST_SECONDS)
                sock.sendall(reply_line(self._gate, _line(sock, commands.MAXIMUM_REQUEST)))
        except OSError:
            pass  # the page does not wait any more
        finally:
            self._free.release()


def _line(sock, most):
    data = bytearray()
    while not data.endswith(b'\n') and len(data) <= most:
        piece = sock.recv(1 << 16)
        if not piece:
            break
        data += piece
    return bytes(data)


class RelayedGate(object):
    """The page's end of a Relay: execute() as that of Gate. link: a connected socket."""

    def __init__(self, link):
        self._link = link
        self._sending = threading.Lock()

    def execute(self, request):
        """The reply of a request. Raises TargetdError."""
        name = request.get('command')
        row = READS.get(name) or CHANGES.get(name)
        ours, theirs = socket.socketpair()
        try:
            with ours:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack('i', theirs.fileno()))]
                with self._sending:
                    self._link.sendmsg([b'.'], rights)
                theirs.close()
                ours.settimeout((row.seconds if row else 0) + REQUEST_SECONDS)
                ours.sendall(commands.pack(request))
                return protocol.checked_reply(_line(ours, commands.MAXIMUM_REPLY), 'the relay')
        except socket.timeout:
            raise TargetdError('the server did not answer in time')
        except OSError as e:
            raise TargetdError('the relay of the status page failed: %s' % e.strerror)
        finally:
            theirs.close()

    def wait_for_end(self):
        """Wait until the relay has ended."""
        try:
            self._link.recv(1)
        except OSError:
            pass


def drop_privileges(user, group):
    """Become an unprivileged user for good. user, group: numbers."""
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)
