"""The program that publishes the state of the server: metrics over HTTP, or files. Started by the master
(master.exporters), with a connection on which it asks for what it shows.

May import base and admin. One thread; a client that is slow costs a descriptor, nothing else. The program
ends when the master closes the connection.
"""

import argparse
import os
import select
import socket
import sys
import time

from targetd.admin import monitoring
from targetd.admin.commands import MAXIMUM_REPLY, pack
from targetd.admin.protocol import checked_reply
from targetd.errors import TargetdError

FILE_SECONDS = 5.0
FRESH_SECONDS = 1.0  # answers within this time are the same
ANSWER_SECONDS = 8.0
CLIENT_SECONDS = 5.0
MOST_CLIENTS = 32
LONGEST_REQUEST = 8 << 10
CONTENT_TYPE = 'text/plain; version=0.0.4; charset=utf-8'


class MasterGone(Exception):
    """The master has closed the connection."""


class Source(object):
    """Asks the master. link: a connected socket."""

    def __init__(self, link):
        self._link = link
        self._late = 0  # replies that were too late, and are still to come
        self._text = None
        self._taken = 0.0

    def ask(self, name):
        """The rows of a command. Raises TargetdError, MasterGone."""
        self._link.sendall(pack({'command': name}))
        end = time.monotonic() + ANSWER_SECONDS
        while True:
            try:
                line = self._line(end)
            except socket.timeout:
                self._late += 1
                raise TargetdError('the server did not answer in time')
            if self._late:
                self._late -= 1
                continue
            return checked_reply(line, 'the connection to the server')['rows']

    def _line(self, end):
        data = bytearray()
        while not data.endswith(b'\n'):
            self._link.settimeout(max(0.01, end - time.monotonic()))
            piece = self._link.recv(1 << 16)
            if not piece or len(data) > MAXIMUM_REPLY:
                raise MasterGone()
            data += piece
        return bytes(data)

    def snapshot(self):
        """A monitoring.Snapshot, or None if the server does not answer."""
        try:
            return monitoring.take_snapshot(self.ask, True)
        except TargetdError:
            return None

    def metrics(self):
        """The metrics, at most FRESH_SECONDS old."""
        now = time.monotonic()
        if self._text is None or now > self._taken + FRESH_SECONDS:
            self._text = monitoring.metrics(self.snapshot())
            self._taken = time.monotonic()
        return self._text


def write_whole(path, text):
    """Replace the file: a reader finds the old text or the new one. Raises TargetdError."""
    unfinished = '%s.%d' % (path, os.getpid())
    try:
        with open(unfinished, 'w', encoding='utf-8') as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
        os.rename(unfinished, path)
    except OSError as e:
        try:
            os.unlink(unfinished)
        except OSError:
            pass
        raise TargetdError('%s cannot be written: %s' % (path, e.strerror))


# -- HTTP ------------------------------------------------------------------------------------------


def response(request, source):
    """The response (bytes) to the head of a request (bytes)."""
    words = request.split(b'\r\n', 1)[0].split(b' ')
    if len(words) != 3 or not words[2].startswith(b'HTTP/1.'):
        return _response('400 Bad Request', 'not an HTTP request\n')
    if words[0] not in (b'GET', b'HEAD'):
        return _response('405 Method Not Allowed', 'only GET and HEAD\n')
    if words[1].split(b'?')[0] not in (b'/metrics', b'/'):
        return _response('404 Not Found', 'the metrics are at /metrics\n')
    text = source.metrics()
    return _response('200 OK', text, words[0] == b'HEAD')


def _response(status, text, is_head=False):
    body = text.encode('utf-8')
    head = 'HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n' % (
        status,
        CONTENT_TYPE,
        len(body),
    )
    return head.encode('ascii') + (b'' if is_head else body)


class _Client(object):
    def __init__(self, sock, now):
        self.socket = sock
        self.until = now + CLIENT_SECONDS
        self.received = b''
        self.outgoing = b''


class Server(object):
    """An HTTP server for one resource. listeners: listening sockets; source: Source."""

    def __init__(self, listeners, source, link):
        self._listeners = listeners
        self._source = source
        self._link = link
        self._clients = {}

    def run(self):
        """Serve until the master closes the connection. Raises MasterGone."""
        while True:
            self.serve_once(1.0)

    def serve_once(self, seconds):
        """Wait for something to do, and do it. Raises MasterGone."""
        sending = [s for s, client in self._clients.items() if client.outgoing]
        receiving = [s for s in self._clients if s not in sending]
        if len(self._clients) < MOST_CLIENTS:
            receiving += self._listeners
        readable, writable, _ = select.select(receiving + [self._link], sending, [], seconds)
        if self._link in readable and not self._link.recv(1, socket.MSG_PEEK):
            raise MasterGone()
        for sock in readable:
            if sock in self._listeners:
                self._accept(sock)
            elif sock is not self._link:
                self._receive(self._clients[sock])
        for sock in writable:
            self._send(self._clients[sock])
        now = time.monotonic()
        for client in [c for c in self._clients.values() if c.until < now]:
            self._drop(client)

    def _accept(self, listener):
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        self._clients[sock] = _Client(sock, time.monotonic())

    def _drop(self, client):
        self._clients.pop(client.socket, None)
        client.socket.close()

    def _receive(self, client):
        try:
            data = client.socket.recv(LONGEST_REQUEST)
        except OSError:
            data = b''
        client.received += data
        if not data or len(client.received) > LONGEST_REQUEST:
            self._drop(client)
        elif b'\r\n\r\n' in client.received or b'\n\n' in client.received:
            client.outgoing = response(client.received, self._source)
            client.until = time.monotonic() + CLIENT_SECONDS

    def _send(self, client):
        try:
            sent = client.socket.send(client.outgoing)
        except OSError:
            self._drop(client)
            return
        client.outgoing = client.outgoing[sent:]
        if not client.outgoing:
            self._drop(client)


# -- the program -----------------------------------------------------------------------------------


def write_files(source, link, metrics_file, status_file):
    """Write the files again and again, and, when the master has closed the connection, once more."""

    def write(snapshot):
        for path, text in ((metrics_file, monitoring.metrics), (status_file, monitoring.status)):
            if path:
                try:
                    write_whole(path, text(snapshot))
                except TargetdError:
                    pass  # the file is old: its time shows that

    try:
        _write_often(source, link, write)
    except (MasterGone, ConnectionError):
        pass
    write(None)


def _write_often(source, link, write):
    while True:
        write(source.snapshot())
        if select.select([link], [], [], FILE_SECONDS)[0] and not link.recv(1, socket.MSG_PEEK):
            return


def _name_process():
    """Set the name that ps and top show."""
    try:
        with open('/proc/self/comm', 'w') as file:
            file.write('targetd-export')
    except OSError:
        pass


def main(arguments=None):
    """The entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog='targetd-exporter')
    parser.add_argument('--control', type=int, required=True)
    parser.add_argument('--listen', type=int, action='append', default=[])
    parser.add_argument('--user')
    parser.add_argument('--metrics-file', default='')
    parser.add_argument('--status-file', default='')
    parsed = parser.parse_args(arguments)
    _name_process()
    if parsed.user:
        user, group = map(int, parsed.user.split(':'))
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
    link = socket.socket(fileno=parsed.control)
    source = Source(link)
    listeners = [socket.socket(fileno=number) for number in parsed.listen]
    try:
        if listeners:
            Server(listeners, source, link).run()
        else:
            write_files(source, link, parsed.metrics_file, parsed.status_file)
    except (MasterGone, ConnectionError):
        return 0


if __name__ == '__main__':
    sys.exit(main())
