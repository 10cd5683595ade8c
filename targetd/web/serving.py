"""An HTTP server for the page: a thread for each request, bounded in number, size and time.

The server of the standard library (wsgiref) does the parsing; what it does not bound is bounded here.
"""

import socket
import socketserver
import sys
import threading
import time
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler, WSGIServer

from targetd import __version__

MOST_THREADS = 32
RECEIVE_SECONDS = 10.0  # for the head of a request, and for each piece of its body
LARGEST_HEAD = 64 << 10
LARGEST_BODY = 64 << 10

ServerHandler.server_software = 'targetd/' + __version__


class TooLarge(Exception):
    """The head of a request is too large."""


class _BoundedFile(object):
    """A file that raises TooLarge after LARGEST_HEAD bytes of readline()."""

    def __init__(self, file):
        self._file = file
        self._left = LARGEST_HEAD
        self.read = file.read
        self.close = file.close
        self.flush = file.flush

    @property
    def closed(self):
        return self._file.closed

    def readline(self, most=-1):
        line = self._file.readline(self._left + 1 if most < 0 else min(most, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise TooLarge()
        return line


class Handler(WSGIRequestHandler):
    """One connection with one request."""

    timeout = RECEIVE_SECONDS
    server_version = 'targetd'
    sys_version = ''

    def setup(self):
        WSGIRequestHandler.setup(self)
        self.rfile = _BoundedFile(self.rfile)

    def parse_request(self):
        """The head has arrived: from now on the answer may take its time."""
        is_valid = WSGIRequestHandler.parse_request(self)
        self.server.head_arrived(self.connection)
        return is_valid

    def log_message(self, format, *args):
        """Requests are not logged: initiators' and targets' names are in the addresses of pages."""


class Server(socketserver.ThreadingMixIn, WSGIServer):
    """listener: a socket that listens; application: the WSGI application."""

    daemon_threads = True

    def __init__(self, listener, application):
        self.address_family = listener.family
        address = listener.getsockname()[:2]
        WSGIServer.__init__(self, address, Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_name, self.server_port = address
        self.setup_environ()
        self.set_app(application)
        self._waiting = {}  # connection -> until when the head of its request must have arrived
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(MOST_THREADS)

    def process_request(self, request, client_address):
        """Serve a connection in a thread, or close it at once if there are too many."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        with self._lock:
            self._waiting[request] = time.monotonic() + RECEIVE_SECONDS
        try:
            socketserver.ThreadingMixIn.process_request(self, request, client_address)
        except BaseException:
            self._done(request)
            raise

    def process_request_thread(self, request, client_address):
        try:
            socketserver.ThreadingMixIn.process_request_thread(self, request, client_address)
        finally:
            self._done(request)

    def _done(self, request):
        self.head_arrived(request)
        self._free.release()

    def head_arrived(self, request):
        """The client has sent the head of its request, or has left."""
        with self._lock:
            self._waiting.pop(request, None)

    def service_actions(self):
        """Called twice a second: end the connections whose head is late."""
        now = time.monotonic()
        with self._lock:
            late = [request for request, until in self._waiting.items() if until < now]
            for request in late:
                del self._waiting[request]
        for request in late:
            try:
                request.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def handle_error(self, request, client_address):
        """A client that leaves or sends too much is no event; other errors are for the journal."""
        error = sys.exc_info()[1]
        if not isinstance(error, (OSError, TooLarge)):
            WSGIServer.handle_error(self, request, client_address)
