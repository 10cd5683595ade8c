"""The connections of the iSNS client: a conversation that we lead, and servers that call us.
Non-blocking, in the loop.

Knows of isns.messages and of what a conversation is (isns.entity); what is said, and when, is
isns.py's business.
"""

import errno
import os
import socket

from targetd import log
from targetd.errors import PortalError
from targetd.isns import entity as said
from targetd.isns import messages
from targetd.master.logins.portals import family_of, open_portal, plain, shown
from targetd.master.processes.loop import READ, WRITE

ANSWER_SECONDS = 10.0  # for a connection, and for each response
CALLERS = 16  # connections of servers at once
CALL_SECONDS = 60.0  # a server's connection that is silent for so long is closed
STRANGERS = 100  # others that called, of which the log tells
RECEIVE = 65536


class Talk(object):
    """One conversation over one connection. done(outcome) or failed(why) is called once, and the
    connection is closed."""

    def __init__(self, loop, server, conversation, done, failed):
        self._loop = loop
        self._conversation = conversation
        self._done, self._failed = done, failed
        self._assembler = messages.Assembler()
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
        """Drop it; nobody is told. Harmless afterwards."""
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
        self._fail('no answer within %d seconds' % ANSWER_SECONDS)

    def _connected(self, _events):
        problem = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if problem:
            self._fail(os.strerror(problem))
        else:
            self._say(None)

    def _say(self, answer):
        """Give the conversation what it waited for, and send what it says then."""
        try:
            message = self._conversation.send(answer)
        except StopIteration as stop:
            self.close()
            self._done(stop.value)
            return
        except said.Refused as e:
            self._fail('%s' % e)
            return
        self._transaction += 1
        self._outgoing = messages.encode(message._replace(transaction=self._transaction & 0xFFFF))
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
        except (OSError, messages.BadMessage) as e:
            self._fail(getattr(e, 'strerror', None) or str(e))
        if self._socket is not None:
            self._loop.watch(self._socket, READ | WRITE if self._outgoing else READ, self._ready)

    def _received(self, data):
        if not data:
            raise messages.BadMessage('it closed the connection')
        for message in self._assembler.receive(data):
            if (
                message.is_response
                and message.transaction == self._transaction & 0xFFFF
                and self._socket is not None
            ):
                self._say(message)


class Caller(object):
    """A connection that a server made to us."""

    def __init__(self, sock, peer):
        self.socket = sock
        self.peer = peer
        self.assembler = messages.Assembler()
        self.outgoing = b''
        self.timer = None


class Callers(object):
    """Where servers ask whether we are there (ESI) and say what changed (SCN). `is_known(address)`;
    `heard(address, message)` gives the Message to answer with, or None."""

    def __init__(self, loop, is_known, heard):
        self.loop = loop
        self.is_known = is_known
        self.heard = heard
        self.port = 0  # where we listen; 0: nowhere
        self._wanted = None
        self._listeners = []
        self._callers = []
        self._strangers = set()

    def listen(self, wanted):
        """Listen at this port (0: any) of every address, if not done already. `port` says where, 0
        if it cannot be."""
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
        """Listen no more."""
        for listener in self._listeners:
            self.loop.forget(listener)
            listener.close()
        for caller in list(self._callers):
            self._drop(caller)
        self._listeners, self.port = [], 0

    def _accept(self, listener):
        try:
            sock, peer = listener.accept()
        except OSError:
            return
        address = plain(peer[0])
        if len(self._callers) >= CALLERS or not self.is_known(address):
            if address not in self._strangers and len(self._strangers) < STRANGERS:
                self._strangers.add(address)
                log.warning(
                    '%s called at isns-port and was not heard: %s',
                    shown(address, peer[1]),
                    'there are %d calls already' % CALLERS
                    if self.is_known(address)
                    else 'it is no isns-server',
                )
            sock.close()
            return
        sock.setblocking(False)
        caller = Caller(sock, address)
        self._callers.append(caller)
        self._wait(caller)

    def _wait(self, caller):
        if caller.timer is not None:
            caller.timer.cancel()
        caller.timer = self.loop.call_later(CALL_SECONDS, lambda: self._drop(caller))
        self.loop.watch(
            caller.socket,
            WRITE if caller.outgoing else READ,
            lambda events: self._ready(caller, events),
        )

    def _drop(self, caller):
        if caller in self._callers:
            self._callers.remove(caller)
            caller.timer.cancel()
            self.loop.forget(caller.socket)
            caller.socket.close()

    def _ready(self, caller, events):
        try:
            if events & READ:
                data = caller.socket.recv(RECEIVE)
                if not data:
                    self._drop(caller)
                    return
                for message in caller.assembler.receive(data):
                    answer = self.heard(caller.peer, message)
                    caller.outgoing += b'' if answer is None else messages.encode(answer)
            if caller.outgoing:
                caller.outgoing = caller.outgoing[
                    caller.socket.send(caller.outgoing, socket.MSG_NOSIGNAL) :
                ]
        except BlockingIOError:
            pass
        except (OSError, messages.BadMessage) as e:
            log.debug('iSNS server %s: %s', caller.peer, e)
            self._drop(caller)
            return
        self._wait(caller)
