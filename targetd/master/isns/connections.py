"""The connections of the iSNS client: one to a server for a conversation, and those that servers
open to us for notifications. All are non-blocking and run in the loop.

May import isns.isnsp and isns.entity (conversations). isns.client decides what is sent, and when.
"""

import errno
import os
import socket

from targetd import log
from targetd.errors import PortalError
from targetd.isns import entity as isns_entity
from targetd.isns import isnsp
from targetd.master.logins.portals import family_of, open_portal, plain, shown
from targetd.master.processes.loop import READ, WRITE

ANSWER_SECONDS = 10.0  # time limit of connecting, and of each response
MAXIMUM_CONNECTIONS = 16  # simultaneous connections from servers
IDLE_SECONDS = 60.0  # a server's connection is closed after this time without a message
MAXIMUM_LOGGED_ADDRESSES = 100  # refused addresses that are logged
RECEIVE = 65536


class ClientConnection(object):
    """A connection to a server for one conversation. done(outcome) or failed(why) is called once,
    after the connection was closed."""

    def __init__(self, loop, server, conversation, done, failed):
        self._loop = loop
        self._conversation = conversation
        self._done, self._failed = done, failed
        self._assembler = isnsp.Assembler()
        self._outgoing = b''
        self._transaction = 0
        self._socket = socket.socket(
            family_of(server[0]), socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        self._timer = loop.call_later(ANSWER_SECONDS, self._late)
        problem = self._socket.connect_ex(
            socket.getaddrinfo(
                server[0],
                server[1],
                self._socket.family,
                socket.SOCK_STREAM,
                0,
                socket.AI_NUMERICHOST,
            )[0][4]
        )
        if problem in (0, errno.EINPROGRESS):
            loop.watch(self._socket, WRITE, self._connected)
        else:
            loop.call_later(0, lambda: self._fail(os.strerror(problem)))

    def close(self):
        """Closes the connection without a callback; does nothing if it is closed already."""
        if self._socket is not None:
            self._timer.cancel()
            self._loop.forget(self._socket)
            self._socket.close()
            self._socket = None

    def _fail(self, why):
        if self._socket is not None:
            self.close()
            self._failed(why)

    def _late(self):
        self._fail('no response within %d seconds' % ANSWER_SECONDS)

    def _connected(self, _events):
        problem = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if problem:
            self._fail(os.strerror(problem))
        else:
            self._advance(None)

    def _advance(self, response):
        """Passes the response to the conversation and sends its next message."""
        try:
            message = self._conversation.send(response)
        except StopIteration as stop:
            self.close()
            self._done(stop.value)
            return
        except isns_entity.Refused as e:
            self._fail('%s' % e)
            return
        self._transaction += 1
        self._outgoing = isnsp.encode(message._replace(transaction=self._transaction & 0xFFFF))
        self._timer.cancel()
        self._timer = self._loop.call_later(ANSWER_SECONDS, self._late)
        self._ready(WRITE)

    def _ready(self, events):
        try:
            if events & WRITE and self._outgoing:
                self._outgoing = self._outgoing[
                    self._socket.send(self._outgoing, socket.MSG_NOSIGNAL) :
                ]
            if events & READ:
                self._received(self._socket.recv(RECEIVE))
        except BlockingIOError:
            pass
        except (OSError, isnsp.BadMessage) as e:
            self._fail(getattr(e, 'strerror', None) or str(e))
        if self._socket is not None:
            self._loop.watch(self._socket, READ | WRITE if self._outgoing else READ, self._ready)

    def _received(self, data):
        if not data:
            raise isnsp.BadMessage('the server closed the connection')
        for message in self._assembler.receive(data):
            is_expected = message.is_response and message.transaction == self._transaction & 0xFFFF
            if is_expected and self._socket is not None:
                self._advance(message)


class ServerConnection(object):
    """A connection that a server opened to us."""

    def __init__(self, sock, peer):
        self.socket = sock
        self.peer = peer
        self.assembler = isnsp.Assembler()
        self.outgoing = b''
        self.timer = None


class NotificationListener(object):
    """Receives Entity Status Inquiries (ESI) and State Change Notifications (SCN) of servers.
    `is_known(address)`: True for a configured server; `answer(address, message)`: returns the Message
    to respond with, or None."""

    def __init__(self, loop, is_known, answer):
        self.loop = loop
        self.is_known = is_known
        self.answer = answer
        self.port = 0  # the port we listen on; 0: none
        self._wanted = None
        self._listeners = []
        self._connections = []
        self._logged_addresses = set()

    def listen(self, wanted):
        """Listens on this TCP port (0: any) of every address, unless it does already. Sets `port`,
        to 0 on failure."""
        if self._listeners and wanted == self._wanted:
            return
        self.close()
        self._wanted, port = wanted, wanted
        for address in ('0.0.0.0', '::'):
            try:
                listener = open_portal(address, port)
            except PortalError as e:
                if not e.is_family_absent:
                    log.warning('iSNS servers cannot reach us: %s', e)
                continue
            self._listeners.append(listener)
            self.port = port = listener.getsockname()[1]
            self.loop.watch(
                listener, READ, lambda _events, listener=listener: self._accept(listener)
            )

    def close(self):
        """Closes the listening sockets and all connections."""
        for listener in self._listeners:
            self.loop.forget(listener)
            listener.close()
        for connection in list(self._connections):
            self._drop(connection)
        self._listeners, self.port = [], 0

    def _accept(self, listener):
        try:
            sock, peer = listener.accept()
        except OSError:
            return
        address = plain(peer[0])
        if len(self._connections) >= MAXIMUM_CONNECTIONS or not self.is_known(address):
            self._log_refused(address, peer[1])
            sock.close()
            return
        sock.setblocking(False)
        connection = ServerConnection(sock, address)
        self._connections.append(connection)
        self._wait(connection)

    def _log_refused(self, address, port):
        logged = self._logged_addresses
        if address not in logged and len(logged) < MAXIMUM_LOGGED_ADDRESSES:
            logged.add(address)
            log.warning(
                'connection from %s to isns-port refused: %s',
                shown(address, port),
                'there are %d connections already' % MAXIMUM_CONNECTIONS
                if self.is_known(address)
                else 'it is not an isns-server',
            )

    def _wait(self, connection):
        if connection.timer is not None:
            connection.timer.cancel()
        connection.timer = self.loop.call_later(IDLE_SECONDS, lambda: self._drop(connection))
        self.loop.watch(
            connection.socket,
            WRITE if connection.outgoing else READ,
            lambda events: self._ready(connection, events),
        )

    def _drop(self, connection):
        if connection in self._connections:
            self._connections.remove(connection)
            connection.timer.cancel()
            self.loop.forget(connection.socket)
            connection.socket.close()

    def _ready(self, connection, events):
        try:
            if events & READ:
                data = connection.socket.recv(RECEIVE)
                if not data:
                    self._drop(connection)
                    return
                for message in connection.assembler.receive(data):
                    answer = self.answer(connection.peer, message)
                    connection.outgoing += b'' if answer is None else isnsp.encode(answer)
            if connection.outgoing:
                connection.outgoing = connection.outgoing[
                    connection.socket.send(connection.outgoing, socket.MSG_NOSIGNAL) :
                ]
        except BlockingIOError:
            pass
        except (OSError, isnsp.BadMessage) as e:
            log.debug('iSNS server %s: %s', connection.peer, e)
            self._drop(connection)
            return
        self._wait(connection)
