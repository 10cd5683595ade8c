"""The control socket of targetdctl: one line of JSON in each direction (admin.protocol). The commands
are in admin.commands, their answers in control_answers.

A client that is slow or silent costs a descriptor, nothing else. Only the owner of the socket may
connect (mode 0600), and the members of control-group (mode 0660).
"""

import errno
import grp
import os
import socket
import stat
import struct
from collections import namedtuple

from targetd import log
from targetd.admin import commands
from targetd.errors import TargetdError
from targetd.master.live_changes import user_of
from targetd.master.processes.loop import READ, WRITE

CONVERSATION_SECONDS = 300.0  # longer than any answer takes
MAXIMUM_CLIENTS = 32
SO_PEERGROUPS = 59


class Stream(namedtuple('Stream', 'reply begin')):
    """An answer that goes on: reply (bytes) is sent, then begin(Link) is called."""

    __slots__ = ()


class Link(object):
    """The way to a client that keeps its connection after the reply. on_closed: called when the client
    has left."""

    def __init__(self, client, drop):
        self._client = client
        self._drop = drop
        self.on_closed = lambda: None

    def close(self):
        """There is nothing more to come."""
        self._drop(self._client)

    def send(self, words, descriptor):
        """Send a line with a descriptor. A client that does not take it loses its connection."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack('i', descriptor))]
        line = commands.pack(words)
        try:
            if self._client.socket.sendmsg([line], rights, socket.MSG_NOSIGNAL) == len(line):
                return
        except OSError:
            pass
        self._drop(self._client)


class Client(object):
    """A connection of targetdctl: one request, one reply."""

    def __init__(self, sock, access, who):
        self.socket = sock
        self.access = access  # 'full' or 'read-only'
        self.who = who  # the user, for the history
        self.what = ''  # the command as typed, without secrets
        self.secret = None  # descriptor of a pipe with a secret, which this process does not read
        self.received = bytearray()
        self.outgoing = b''
        self.command = ''
        self.is_adopted = False  # a process of this server, which asks again and again
        self.keep_open = False  # `stop`: the end of file shows that targetd has stopped
        self.timer = None
        self.stream = None  # Stream that begins when the reply is sent
        self.link = None


class Control(object):
    """The control socket of the master.

    answer(words, arguments, client): executes a command, see ControlAnswers.answer; state: ServerState.
    """

    def __init__(self, loop, answer, state):
        self.loop = loop
        self.state = state
        self.group_access = 'read-only'  # of the members of control-group
        self._group = None  # id of control-group
        self.answer = answer
        self.path = None
        self._listener = None
        self._clients = set()

    # -- the socket --------------------------------------------------------------------------------

    def open(self, path):
        """Listen on this path. A socket that no process listens on is replaced. Raises TargetdError."""
        self._group = group_id(self.state.configuration.server.control_group)
        try:
            self._remove_stale(path)
            os.makedirs(os.path.dirname(path) or '.', 0o755, exist_ok=True)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            held = os.umask(0o177)
            try:
                listener.bind(path)
            finally:
                os.umask(held)
            if self._group is not None:
                os.chown(path, -1, self._group)
                os.chmod(path, 0o660)
            listener.listen(8)
        except OSError as e:
            raise TargetdError(
                'the control socket %s cannot be opened: %s; write another control-socket'
                % (path, e.strerror or e)
            )
        listener.setblocking(False)
        self._listener, self.path = listener, path
        self.loop.watch(listener, READ, self._arrived)

    @staticmethod
    def _remove_stale(path):
        try:
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise TargetdError(
                    'the control socket %s cannot be opened: there is a file of that name' % path
                )
        except OSError as e:
            if e.errno == errno.ENOENT:
                return
            raise
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            probe.settimeout(1.0)
            probe.connect(path)
        except OSError:
            os.unlink(path)
            return
        finally:
            probe.close()
        raise TargetdError(
            'the control socket %s cannot be opened: another program serves it' % path
        )

    def handed_over(self, keep):
        """The socket and the clients that wait for the end of an upgrade, for the program that takes over
        (ARCHITECTURE D24)."""
        waiting = [client.socket for client in self._clients if client.command == 'upgrade']
        return {
            'path': self.path,
            'listener': keep(self._listener.fileno()),
            'clients': [keep(sock.fileno()) for sock in waiting],
        }

    def take_over(self, words):
        """Continue with the socket of another program. Returns a function that replies to the clients that
        wait for the end of the upgrade."""
        self._group = group_id(self.state.configuration.server.control_group)
        self._listener, self.path = _adopted(words['listener']), words['path']
        self.loop.watch(self._listener, READ, self._arrived)
        clients = [self._add_client(_adopted(each), 'full', '') for each in words['clients']]

        def reply(data):
            for client in clients:
                self._reply(client, data)

        return reply

    def close(self):
        """Close the listening socket and every client, and remove the socket from the file system."""
        for client in list(self._clients):
            self._drop(client)
        if self._listener is not None:
            self.loop.forget(self._listener)
            self._listener.close()
            self._listener = None
            try:
                os.unlink(self.path)
            except OSError:
                pass

    def _arrived(self, _events):
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        access = None if len(self._clients) >= MAXIMUM_CLIENTS else self._access_of(sock)
        if access is None:
            sock.close()
            return
        sock.setblocking(False)
        self._add_client(sock, access, user_of(*_credentials(sock)[:2]))

    def _add_client(self, sock, access, who):
        client = Client(sock, access, who)
        self._clients.add(client)
        client.timer = self.loop.call_later(CONVERSATION_SECONDS, lambda: self._drop(client))
        self.loop.watch(sock, READ, lambda events: self._ready(client, events))
        return client

    def adopt(self, sock):
        """Answer the requests of a process of this server, which may only read."""
        sock.setblocking(False)
        client = Client(sock, 'read-only', 'targetd')
        client.is_adopted = True
        self._clients.add(client)
        client.timer = self.loop.call_later(0, lambda: None)
        self.loop.watch(sock, READ, lambda events: self._ready(client, events))

    def forget(self, sock):
        """Close the connection of an adopted process."""
        for client in [each for each in self._clients if each.socket is sock]:
            self._drop(client)

    def _drop(self, client):
        if client not in self._clients:
            return
        self._clients.discard(client)
        client.timer.cancel()
        if client.link is not None:
            client.link.on_closed()
        self.loop.forget(client.socket)
        client.socket.close()
        if client.secret is not None:
            os.close(client.secret)
            client.secret = None

    def _ready(self, client, events):
        try:
            if events & WRITE:
                self._send(client)
            elif events & READ:
                self._receive(client)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)

    def _receive(self, client):
        data, descriptors = _received(client.socket)
        for descriptor in descriptors:
            if client.secret is None:
                client.secret = descriptor
            else:
                os.close(descriptor)
        if not data:
            self._drop(client)
            return
        client.received += data
        if b'\n' in client.received or len(client.received) > commands.MAXIMUM_REQUEST:
            line, client.received = bytes(client.received.partition(b'\n')[0]), bytearray()
            self._reply(client, self._execute(client, line))

    def _reply(self, client, reply):
        """Send the reply; None: it comes later. Ignored if the client has disconnected."""
        if reply is not None and client in self._clients:
            client.outgoing = reply
            self._ready(client, WRITE)

    def _send(self, client):
        while client.outgoing:
            try:
                sent = client.socket.send(client.outgoing, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self.loop.watch(client.socket, WRITE, lambda events: self._ready(client, events))
                return
            client.outgoing = client.outgoing[sent:]
        if not client.keep_open and client.stream is None:
            self._drop(client)
            return
        self.loop.watch(client.socket, READ, lambda events: self._ready(client, events))
        stream, client.stream = client.stream, None
        if stream is not None:
            client.keep_open = True
            client.timer.cancel()
            client.link = Link(client, self._drop)
            stream.begin(client.link)

    def _access_of(self, sock):
        """What the client may do: 'full', 'read-only' or None, whatever the mode of the socket is."""
        _, user, group = _credentials(sock)
        if user in (0, os.geteuid()):
            return 'full'
        if self._group is not None and self._group in [group] + _further_groups(sock):
            return self.group_access
        log.warning('user %d may not use the control socket; the connection is closed', user)
        return None

    # -- commands ----------------------------------------------------------------------------------

    def _execute(self, client, line):
        try:
            row, arguments = commands.parse_request(line)
            if client.access != 'full' and not commands.is_read_only(row):
                raise TargetdError(
                    '"%s" is not allowed: the members of control-group have read-only access; run it as '
                    'root, or write control-group-access = full' % row.words
                )
            client.command = row.words
            client.keep_open = client.is_adopted or row.words == 'stop'
            client.what = commands.typed(row, arguments)
            reply = self.answer(row.words, arguments, client)
            if isinstance(reply, Stream):
                client.stream = reply
                return reply.reply
            if callable(reply):  # the reply comes later: pass the function that sends it
                reply(lambda later: self._reply(client, later))
                return None
            return reply
        except commands.BadRequest as e:
            return commands.reply_error(str(e))
        except TargetdError as e:
            return commands.reply_error(str(e), e.exit_code)
        except Exception as e:  # the boundary: an administrator's command must not end the server
            log.exception('a command on the control socket failed')
            return commands.reply_error('an unexpected failure: %s; the log has the details' % e)


__all__ = ('Control',)


def _credentials(sock):
    """(process, user, group) of the client."""
    size = struct.calcsize('3i')
    return struct.unpack('3i', sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))


def _received(sock):
    """(bytes, [descriptor]) that a client has sent."""
    size = struct.calcsize('i')
    data, ancillary, _, _ = sock.recvmsg(1 << 16, socket.CMSG_SPACE(size), socket.MSG_CMSG_CLOEXEC)
    found = []
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found += struct.unpack(
                '%di' % (len(content) // size), content[: len(content) // size * size]
            )
    return data, found


def _adopted(descriptor):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptor)
    sock.setblocking(False)
    return sock


def group_id(name):
    """The id of a group; None for ''. Raises TargetdError if there is no such group."""
    try:
        return grp.getgrnam(name).gr_gid if name else None
    except KeyError:
        raise TargetdError(
            'there is no group %s for control-group; write another group, or create it' % name
        )


def _further_groups(sock):
    """The ids of the supplementary groups of the client (Linux 4.13)."""
    try:
        data = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 1024)  # Python's limit
    except OSError:
        return []
    return list(struct.unpack('%dI' % (len(data) // 4), data))
