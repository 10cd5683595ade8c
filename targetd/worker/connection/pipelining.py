"""READs and WRITEs of stores that need no thread for each command (store.Store.pipelines: NBD servers).

     connection's thread: commands of a batch --begin()--> send what was begun, together
                                                               |
     poll of both sockets <------------------------------------+
       | replies of the server --> the commands end, their replies are sent together
       +-- PDUs of the initiator --> the next batch

While nothing is on its way to a server, the thread blocks in recv() as for any other store. What cannot
be begun (a very long command, a server that is away, an error that must be examined) is run by an executor
thread, as without this module; so are the commands of a session with several connections, or with a slow
line.

Task management sees a command that was begun as one that a thread runs: it ends when its reply is here.
The hang watch reports it and gives it up in the same way. May import what Connection may.
"""

import select
import time

from targetd import log
from targetd.scsi.sbc import run_read_blocking, run_write, write_errors
from targetd.scsi.sense import HARDWARE_ERROR, CheckCondition
from targetd.store.base import AGAIN, FULL

#: While another thread receives the replies of a server, it is tried again after so many milliseconds.
ASIDE_MS = 5
#: The same for the thread that receives the last replies after the connection has ended.
_LAST_MS = 100
#: The data of a READ of more has to fit into the budget, as in Connection.run_in_executor.
LONG_READ_BYTES = 64 << 10

_INTERNAL_TARGET_FAILURE = (HARDWARE_ERROR, 0x44, 0x00)


def run_elsewhere(connection, task):
    """Run a retained task without blocking the connection's thread: begin it, or have an executor thread run
    it. [connection, or any with `working` held]"""
    store = getattr(task.unit, 'store', None)
    # only the connection's thread sends what was begun
    may_begin = connection.may_pipeline and connection.blocking.is_in_charge()
    if may_begin and getattr(store, 'pipelines', False):
        if connection.pipelining is None:
            connection.pipelining = Pipelining(connection)
        if connection.pipelining.begin(task, store):
            return
    connection.worker.executor.submit(connection.run_in_executor, task, task.unit)


class Pipelining(object):
    """The begun commands of one connection."""

    def __init__(self, connection):
        self._connection = connection
        self._budget = connection.outbox.read_budget
        self._poll = select.poll()
        self._poll.register(connection.socket.fileno(), select.POLLIN)
        self._links = {}  # descriptor -> NBD connection with requests that have no reply
        self._aside = []  # the descriptors of those whose replies another thread receives
        self._to_send = []
        self._silence_ms = connection.requests.keepalive_seconds * 1000 or None
        connection._receive_and_act = self.receive_and_act

    def begin(self, task, store):
        """Returns False if the task must be run by a thread. [connection]"""
        link, run = None, task.run_blocking
        if task.aborted:  # nothing is sent for it: it may have been given up
            return False
        if run is run_read_blocking:
            is_long = task.edtl > LONG_READ_BYTES
            if is_long and not self._budget.try_take(task.edtl, task.unit):
                return False
            link = store.begin_read(task.offset, task.length, task, self.end_elsewhere)
            if is_long and link is None:
                self._give_back(task)
        elif run is run_write and task.data_out is not None:
            if len(task.data_out) == task.length:
                link = store.begin_write(
                    task.offset, task.data_out, task.durable, task, self.end_elsewhere
                )
        if link is None:
            return False
        task.started = time.monotonic()
        watch = self._connection.worker.watch
        if not watch.is_running:
            watch.start()
        if link not in self._to_send:
            self._to_send.append(link)
        return True

    def receive_and_act(self):
        """Takes the place of Connection._receive_and_act. [connection]"""
        connection = self._connection
        if self._to_send:
            self._send()
        if not self._links:
            type(connection)._receive_and_act(connection)
            return
        events = self._poll.poll(ASIDE_MS if self._aside else self._silence_ms)
        is_silent = not events and not self._aside
        while self._aside:
            self._poll.register(self._aside.pop(), select.POLLIN)
        has_input = False
        for descriptor, _ in events:
            if descriptor in self._links:
                self._receive(descriptor)
            else:
                has_input = True
        if has_input:
            type(connection)._receive_and_act(connection)
            return
        if is_silent:
            connection.requests.on_silence()
        connection.outbox.drain()

    def _send(self):
        """Send what was begun. [connection]"""
        links, self._to_send = self._to_send, []
        for link in links:
            if not link.send_begun():
                self._connection.worker.executor.submit(_send_left, link, object())
            descriptor = link.fileno()
            if link.begun and descriptor >= 0 and self._links.get(descriptor) is not link:
                self._links[descriptor] = link
                self._poll.register(descriptor, select.POLLIN)

    def _receive(self, descriptor):
        """End the commands whose replies are here. [connection]"""
        link = self._links[descriptor]
        ended, goes_on = link.receive_ready() if link.begun else ([], True)
        self._end(ended)
        if not link.begun:
            del self._links[descriptor]
            self._poll.unregister(descriptor)
        elif not goes_on:
            self._poll.unregister(descriptor)
            self._aside.append(descriptor)

    def _end(self, requests):
        """Queue the replies to the commands of these requests. [any]"""
        connection = self._connection
        for request in requests:
            task = request.context
            try:
                outcome = request.outcome()
            except OSError as e:
                outcome = task.unit.write_failure(e, task)
            except Exception:  # a defect in targetd must end this command, but not the thread
                log.exception('command %s failed unexpectedly' % bytes(task.cdb).hex())
                outcome = CheckCondition(*_INTERNAL_TARGET_FAILURE)
            if task is None:  # the store has begun this request itself
                continue
            if outcome is FULL:
                task.run_blocking = _make_room
                outcome = AGAIN
            if outcome is AGAIN:
                connection.worker.executor.submit(connection.run_in_executor, task, task.unit)
            else:
                connection.finish(task, outcome)
            if task.edtl > LONG_READ_BYTES and task.run_blocking is run_read_blocking:
                self._give_back(task)

    def _give_back(self, task):
        """The data of a long READ is queued, or will not be. [any]"""
        self._budget.give_back(task.edtl, task.unit)

    def end_elsewhere(self, requests):
        """Another thread has received the replies to these requests, or their NBD connection is lost.
        [any]"""
        self._connection.worker.executor.submit(self._end_and_send, requests, self)

    def _end_and_send(self, requests):
        """[executor]"""
        self._end(requests)
        self._connection.drain_or_stop()

    def leave(self):
        """The connection has ended: threads wait for the replies that are outstanding. [connection]"""
        links = dict.fromkeys(list(self._links.values()) + self._to_send)
        for link in links:
            self._connection.worker.executor.submit(self._receive_last, link, link)

    def _receive_last(self, link):
        """[executor]"""
        if not link.send_begun():
            link.send_left()
        poll = select.poll()
        while link.begun and not link.is_lost:
            descriptor = link.fileno()
            if descriptor >= 0:  # the store may be closed now: a flush of its own is not waited for
                poll.register(descriptor, select.POLLIN)
                poll.poll(_LAST_MS)
            ended, goes_on = link.receive_ready()
            self._end(ended)
            if not goes_on:
                time.sleep(ASIDE_MS / 1000.0)


@write_errors
def _make_room(task):
    """Executor thread: the WRITE is done; its reply waits, so that the log of the store stays bounded."""
    task.unit.store.make_room()


def _send_left(link):
    """[executor]"""
    link.send_left()
