"""`targetdctl capture` and `trace`: read what the workers record and write it as a pcapng file, or as
sentences.

May import base and admin. The server sends a socket for each worker that records over the connection of
the request, and the records come from the workers themselves.
"""

import array
import os
import select
import signal
import socket
import sys
import time

from targetd import pcapng
from targetd.admin.commands import pack
from targetd.admin.protocol import checked_reply, connect, default_socket
from targetd.admin.tracing import Tracer
from targetd.errors import TargetdError

ANSWER_SECONDS = 30


class _Readers(object):
    """The sockets of one capture. server: the connection of the request, over which more arrive."""

    def __init__(self, server):
        self._server = server
        self._buffers = {}  # socket -> bytes that are not a whole record yet
        self.is_open = True  # the server may send more sockets
        self._names = {}
        self._count = 0

    def wait(self, seconds):
        """Return [(name of the source, Record)] that arrived within this time."""
        sources = list(self._buffers) + ([self._server] if self.is_open else [])
        try:
            readable, _, _ = select.select(sources, [], [], max(0.0, seconds))
        except InterruptedError:
            return []
        found = []
        for source in readable:
            if source is self._server:
                self._receive_sockets()
            else:
                found += self._receive(source)
        return found

    @property
    def is_over(self):
        """True if nothing is recorded any more."""
        return not self._buffers

    @property
    def had_any(self):
        """True if anything was recorded, or was to be recorded."""
        return self._count > 0

    def _receive_sockets(self):
        descriptors = array.array('i')
        room = socket.CMSG_LEN(16 * descriptors.itemsize)
        # a plain recv() would drop the descriptors that come with the bytes
        data, ancillary, _, _ = self._server.recvmsg(1 << 16, room)
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                usable = len(content) - len(content) % descriptors.itemsize
                descriptors.frombytes(content[:usable])
        for descriptor in descriptors:
            source = socket.socket(fileno=descriptor)
            self._count += 1
            self._names[source] = self._count
            self._buffers[source] = b''
        if not data:
            self.is_open = False
        return data

    def send(self, line):
        """Send a line to the server."""
        self._server.sendall(line)

    def reply(self, path):
        """The server's reply. Raises TargetdError."""
        self._server.settimeout(ANSWER_SECONDS)
        line = b''
        try:
            while b'\n' not in line and self.is_open:
                line += self._receive_sockets()
        except OSError as e:
            raise TargetdError('the connection to targetd on %s failed: %s' % (path, e))
        return checked_reply(line.partition(b'\n')[0], path)

    def _receive(self, source):
        try:
            data = source.recv(1 << 20)
        except OSError:
            data = b''
        if not data:
            source.close()
            del self._buffers[source]
            return []
        try:
            records, self._buffers[source] = pcapng.unpack(self._buffers[source] + data)
        except ValueError as e:
            raise TargetdError('a worker process sent %s; the capture ends' % e)
        return [(self._names[source], record) for record in records]

    def close(self):
        """Close all sockets: the capture ends."""
        for source in list(self._buffers) + [self._server]:
            source.close()


def _begin(parsed, request):
    """Send the request; returns the _Readers. Raises TargetdError."""
    path = parsed.socket or default_socket()
    readers = _Readers(connect(path))
    try:
        readers.send(pack(request))
        readers.reply(path)
    except BaseException:
        readers.close()
        raise
    return readers


def _run(readers, who, seconds, take):
    """Call take(source, record) until the time is over, the session has ended, or SIGINT or SIGTERM
    arrives."""
    end = time.monotonic() + seconds if seconds else None
    stopped = []
    if not who.isdigit():
        _say('connections from %s are captured from now on' % who)
    former = {
        number: signal.signal(number, lambda *_: stopped.append(True))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        has_begun = False
        while not stopped and (end is None or time.monotonic() < end):
            left = 1.0 if end is None else min(1.0, end - time.monotonic())
            for source, record in readers.wait(left):
                if record.kind == pcapng.CONNECTION and who.isdigit() and not has_begun:
                    _say('session %s is captured from now on' % who)
                take(source, record)
                has_begun = True
            if readers.is_over and (not readers.is_open or readers.had_any and who.isdigit()):
                break
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _say(text):
    sys.stderr.write('targetdctl: %s; Ctrl-C ends it\n' % text)
    sys.stderr.flush()


def run_capture(parsed):
    """Write the file; returns the reply of `capture`. Raises TargetdError."""
    request = {'command': 'capture', 'who': parsed.who, 'file': parsed.file}
    for name in ('seconds', 'data'):
        if getattr(parsed, name) is not None:
            request[name] = getattr(parsed, name)
    readers = _begin(parsed, request)
    try:
        contents = _write_file(readers, parsed)
    finally:
        readers.close()
    message = '%d PDUs are in %s' % (contents.pdus, parsed.file)
    if contents.lost:
        message += '; %d were lost, because they came too quickly: write a smaller --data' % (
            contents.lost
        )
    return {'ok': True, 'message': message}


def _write_file(readers, parsed):
    contents = None
    try:
        descriptor = os.open(parsed.file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, 'wb') as output:
            contents = pcapng.File('as configured', 'targetdctl capture %s' % parsed.who)
            output.write(contents.header)
            output.flush()

            def take(source, record):
                output.write(contents.add(source, record))

            _run(readers, parsed.who, parsed.seconds, take)
    except OSError as e:
        raise TargetdError('%s cannot be written: %s' % (parsed.file, e.strerror))
    return contents


def run_trace(parsed):
    """Print sentences; returns the reply of `trace`. Raises TargetdError."""
    request = {'command': 'trace', 'who': parsed.who}
    readers, tracer = _begin(parsed, request), Tracer()

    def take(source, record):
        for line in tracer.lines(source, record):
            sys.stdout.write(line + '\n')
        sys.stdout.flush()

    try:
        _run(readers, parsed.who, parsed.seconds, take)
    finally:
        readers.close()
    return {'ok': True}


#: Words of a command whose connection goes on after the reply -> function of the parsed arguments.
ANSWERS = {'capture': run_capture, 'trace': run_trace}
