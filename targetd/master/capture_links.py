"""Captures for `targetdctl capture` and `trace`: the master connects a worker that records with the client
that reads, and sees nothing of what is recorded; and the files of capture-on-error.

     capture --socket pair for each worker--> one end: order `capture`, or with `serve` and `join`
                                              other end: to the client, over the control socket
"""

import os
import socket
import time

from targetd import log, pcapng
from targetd.errors import TargetdError
from targetd.master.logins.portals import plain

DEFAULT_DATA = 256  # bytes of user data of each PDU
MOST_DATA = 16 << 20
MOST_FILES = 50  # of capture-on-error; the oldest are removed
RING_SECONDS = 1.0  # between two files
SUFFIX = '.pcapng'


class Captures(object):
    """workers: Workers; sessions: Sessions; jobs: Jobs; state: ServerState."""

    def __init__(self, workers, sessions, jobs, state):
        self._workers = workers
        self._sessions = sessions
        self._jobs = jobs
        self._state = state
        self._by_address = {}  # address -> (Link, bytes of user data), captures of an address
        self._is_writing = False

    def check(self, who):
        """Raise TargetdError if there is no such session, or the address is captured already."""
        if not who.isdigit():
            if plain(who) in self._by_address:
                raise TargetdError('%s is being captured already' % plain(who))
        elif not self._found(who):
            raise TargetdError('there is no session %s; targetdctl show sessions lists them' % who)

    def begin(self, link, who, data):
        """Send a socket to the client for each worker that records. who: the number of a session, or an
        address, whose sessions and future connections are captured; data: bytes of user data to keep
        of each PDU."""
        data = DEFAULT_DATA if data is None else min(data, MOST_DATA)
        if not who.isdigit():
            address = plain(who)
            self._by_address[address] = link, data
            link.on_closed = lambda: self._by_address.pop(address, None)
        found = self._found(who)
        for session in found:
            order = {'do': 'capture', 'tsih': session.tsih, 'data': data}
            self._send(session.worker, order, (), link)
        if who.isdigit() and not found:
            link.close()  # it has ended just now

    def _found(self, who):
        """The sessions with this number, or of this address."""
        if who.isdigit():
            return [s for s in self._sessions.all() if s.tsih == int(who)]
        return [
            s for s in self._sessions.all() if any(p[0] == plain(who) for p in s.peers.values())
        ]

    def hand_over(self, worker, order, descriptors, address):
        """Send an order that hands a connection of this address to a worker, `serve` or `join`; with a
        socket to record into if the address is captured."""
        link, data = self._by_address.get(address, (None, None))
        if link is None:
            self._workers.send(worker, order, descriptors)
        else:
            self._send(worker, dict(order, capture=data), descriptors, link)

    def _send(self, worker, order, descriptors, link):
        ours, theirs = socket.socketpair()
        try:
            self._workers.send(worker, order, list(descriptors) + [ours.fileno()])
            link.send({'worker': worker.pid}, theirs.fileno())
        finally:
            ours.close()
            theirs.close()

    # -- capture-on-error --------------------------------------------------------------------------

    def on_ring(self, worker, message):
        """`report ring`: the last PDUs of a session before an error."""
        directory = self._state.configuration.server.capture_on_error
        if not directory or self._is_writing or worker.session is None:
            return
        session = worker.session
        name = '%s-session-%d%s' % (time.strftime('%Y%m%d-%H%M%S'), session.tsih, SUFFIX)
        path = os.path.join(directory, name)
        what = '%s: %.200s' % (session.initiator_name, message['why'])
        self._is_writing = True

        def done(result):
            self._is_writing = False
            why = result.why or result.values.get('failed')
            if why:
                log.warning('the capture %s cannot be written: %s', path, why)
            else:
                log.info('the last PDUs before an error are in %s (%s)', path, what)

        self._jobs.submit_job(
            ('capture', directory), lambda: (write_ring(path, what, message['data']), ()), done
        )


def write_ring(path, what, data):
    """Write the records (hex digits) of a worker as a file, and remove the oldest files. Returns {}, or
    {'failed': why}. In a job."""
    try:
        records, _ = pcapng.unpack(bytes.fromhex(data))
        file = pcapng.File('unknown', what)
        parts = [file.header] + [file.add(None, record) for record in records]
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, 'wb') as output:
            output.write(b''.join(parts))
        directory = os.path.dirname(path)
        ours = sorted(n for n in os.listdir(directory) if '-session-' in n and n.endswith(SUFFIX))
        for name in ours[:-MOST_FILES]:
            os.unlink(os.path.join(directory, name))
    except OSError as e:
        return {'failed': e.strerror}
    except (ValueError, KeyError, TypeError) as e:
        return {'failed': 'the worker sent invalid records: %s' % e}
    return {}
