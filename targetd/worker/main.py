"""A worker process: its control thread, which obeys the master, and the state that its connections
share.

The control thread is the process's main thread: it reads the channel and nothing else makes it
wait, but for `working` of a connection (bounded by one batch) when an abort must find no command
half done. A connection has a thread of its own, which asks the master and waits for the answer only
during login. When the channel ends, the process ends.

     spare --serve--> login --claim granted--> full feature phase --over--> report ended, exit
       ^                |                            | (discovery, or a session that ended by a logout)
       +--- report idle +--- refused, failed --------+
"""

import gc
import itertools
import os
import socket
import threading

from targetd import log, store
from targetd.channel import ChannelClosed
from targetd.scsi import sam
from targetd.worker import erasing, greeting
from targetd.worker.connection.replies import MasterAnswer
from targetd.worker.connection.task_ordering import Ordering
from targetd.worker.executor import Executor
from targetd.worker.members import Members
from targetd.worker.policy import Policies
from targetd.worker.replica import Replica
from targetd.worker.tasks import Tasks
from targetd.worker.texts import TextExchange

#: A worker exits after so many sessions, so that whatever a long life leaks is bounded.
SESSIONS_OF_ONE_WORKER = 256

#: How long the end of a session waits for commands that are in executor threads.
QUIET_SECONDS = 30.0


class Worker(object):
    """One process. `configuration`: the config.model.Configuration that was in force when it was
    forked (D11)."""

    def __init__(self, channel, configuration):
        self.channel = channel
        self.configuration = configuration
        self.policies = Policies(configuration)
        self.executor = Executor(configuration.server.executor_threads)
        self.keepalive = (configuration.server.nop_interval, configuration.server.nop_count)
        self.busy_poll_seconds = configuration.server.busy_poll / 1e6
        self.device = None  # scsi.device.Device of the session, once there is one
        self.replica = None
        self.tasks = None
        self.ordering = None  # of the session's task sets
        # of the session: held by the connection that acts on what it received
        self.working = threading.Lock()
        # which connection a task belongs to, where that can change
        self.allegiance = threading.RLock()
        # the command window of a session with several connections
        self.numbering = threading.Lock()
        self.connections = []
        self.members = Members(self)
        self.session = None
        self._numbers = itertools.count(1)
        self._answers = {}  # ask id -> function of the answer message
        self._retiring = False
        self._is_serving = False  # from the serve order until idle or ended is reported
        self._sessions_left = SESSIONS_OF_ONE_WORKER
        self._orders = {
            'serve': self._serve,
            'answer': self._answer,
            'change': self._change,
            'units': self._units,
            'logout': self._logout,
            'end': self._end,
            'retire': self._retire,
            'reopen-logs': self._reopen_logs,
            'join': self._join,
            'operate': self._operate,
        }

    # -- the control thread ------------------------------------------------------------------------------------------

    def run(self):
        """Obey until the channel ends. [control]"""
        try:
            self.channel.send({'report': 'ready'})
            while True:
                message, descriptors = self.channel.read()
                self._orders[message['do']](message, descriptors)
        except ChannelClosed:
            pass
        self._stop_connections('the worker ends')

    def _serve(self, message, descriptors):
        self._is_serving = True
        self._begin_greeting(message, descriptors, self.members, None)

    def _begin_greeting(self, message, descriptors, members, session):
        sock = socket.socket(fileno=descriptors[0])
        thread = threading.Thread(
            target=self._greet,
            args=(sock, message['connection'], members, session),
            name='connection',
        )
        thread.daemon = True
        thread.start()

    def _operate(self, message, descriptors):
        """No session: a medium to format or sanitize."""
        self._is_serving = True
        thread = threading.Thread(
            target=self._erase,
            args=(message, descriptors[0] if descriptors else None),
            name='erasing',
        )
        thread.daemon = True
        thread.start()

    def _join(self, message, descriptors):
        """A further connection for our session: the login machine decides whether it may be one.

        The session may have come to its end while the order was under way, and another one may
        begin beside this login: it is refused as whoever joins what is not there, and nothing of
        the worker's is its own."""
        members = self.members  # first: _become_spare, in another thread, goes the other way round
        session = self.session
        self._begin_greeting(
            message, descriptors, members if session is not None else None, session
        )

    def _answer(self, message, descriptors):
        answered = self._answers.pop(message['id'], None)
        if answered is None:
            for descriptor in descriptors:
                os.close(descriptor)
        else:
            message['descriptors'] = descriptors
            answered(message)

    def _change(self, message, descriptors):
        """State that sessions share has changed: put it in force, end what must end, then say so."""

        def acknowledge():
            self.report('acknowledge', id=message['id'])

        if self.replica is None:
            acknowledge()
            return
        self.replica.change(message)
        unit = self.replica.concerned(message['unit'])
        if message.get('watched'):
            self._heed_tokens(message['unit'], unit)
        abort = message.get('abort')
        if not abort:
            acknowledge()
            return
        status = sam.TASK_ABORTED if abort.get('tas') else None
        self._end_tasks(lambda other: other is unit, acknowledge, status)

    def _end_tasks(self, wanted, on_quiet, status):
        """End the tasks at the units for which wanted(unit) is true, and the copies that use these;
        on_quiet() when nothing of that can touch the medium. [control]"""
        left = [True, False]  # each pops one: only who pops the last does more

        def one_quiet():
            if left.pop():
                on_quiet()

        self.replica.guests.stop(wanted, one_quiet)
        self._abort(lambda task: wanted(task.unit) and not task.asked, one_quiet, status)

    def _heed_tokens(self, unit_id, unit):
        """Tokens were made: commands of the unit that were admitted before must not change what
        they stand for. [control]

        Those that wait for their data will ask; what is being written now is revoked before the
        token is given out."""
        if self.tasks is None or unit is None:
            return
        with self.working:
            ranges = self.tasks.each(
                lambda task: unit.guard_from_new_tokens(task) if task.unit is unit else None
            )
            ranges += unit.copy_writes
        for offset, length in filter(None, ranges):
            self.ask(
                'token-revoke', lambda answer: None, unit=unit_id, offset=offset, length=length
            )

    def _abort(self, wanted, on_quiet, status):
        """Abort tasks of every connection; on_quiet() when none can touch the medium. [control]"""
        if self.tasks is None:
            on_quiet()
            return
        with self.working:
            self.tasks.abort(wanted, on_quiet, status)
        for connection in list(self.connections):
            connection.drain_in_executor()

    def _units(self, message, descriptors):
        def acknowledge():
            self.report('acknowledge', id=message['id'])

        if self.replica is None:
            for descriptor in descriptors:
                os.close(descriptor)
            acknowledge()
            return
        gone = self.replica.units(message, descriptors)
        if not gone:
            acknowledge()
            return

        def close_and_acknowledge():
            for unit in gone:
                unit.store.close()
            acknowledge()

        self._end_tasks(lambda unit: unit in gone, close_and_acknowledge, None)

    def _logout(self, message, descriptors):
        # a connection that is or gets lost cannot be asked: its tasks wait for no other
        self.members.give_up()
        for connection in list(self.connections):
            connection.requests.ask_for_logout(int(message['seconds']))

    def _end(self, message, descriptors):
        self._retiring = True
        self.members.give_up()
        if not self._stop_connections(message['why']):
            self.finish()  # nothing to wait for but a login, which may be cut off

    def _retire(self, message, descriptors):
        self._retiring = True
        if not self._is_serving:
            self.finish()

    def _reopen_logs(self, message, descriptors):
        if descriptors:
            log.adopt(descriptors[0])

    def _stop_connections(self, why):
        """End every connection; gives how many there were. Their threads do the rest. [control]"""
        connections = list(self.connections)
        for connection in connections:
            connection.stop(why)
        return len(connections)

    def finish(self):
        """Let the control thread, and with it the process, come to its end. Any thread."""
        try:
            self.channel.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    # -- asking and telling ------------------------------------------------------------------------------------------

    def report(self, what, **words):
        """Send a report to the master. If the master is gone, nothing happens here: the control
        thread notices it and ends the process. [any]"""
        words['report'] = what
        try:
            self.channel.send(words)
        except (ChannelClosed, OSError):
            pass

    def ask(self, what, answered, **words):
        """Ask the master; answered(message) is called in the control thread. Any thread."""
        number = next(self._numbers)
        self._answers[number] = answered
        words['ask'], words['id'] = what, number
        try:
            self.channel.send(words)
        except (ChannelClosed, OSError):
            self._answers.pop(number, None)

    def claim(self, nexus, seconds, **words):
        """Ask the master for a session and wait; gives the answer, or None if none came in time.
        [connection, during login]

        The units are put up in the control thread as soon as they arrive, so that a change which
        the master sends right behind them finds them."""
        answers = []
        arrived = threading.Event()

        def answered(message):
            if nexus is not None and not message['status_class'] and self.replica is None:
                replica = Replica(self, nexus, self.configuration)
                self.device = replica.begin(message['units'], message['descriptors'])
                self.replica = replica
            answers.append(message)
            arrived.set()

        self.ask('claim', answered, **words)
        arrived.wait(seconds)
        return answers[0] if answers else None

    def ask_change(self, task, change, complete):
        """A command's Change goes to the master; complete(task, MasterAnswer) when it is in force
        everywhere. Any thread."""
        task.asked = True
        words = dict(change.arguments, unit=self.replica.unit_id(task.unit))
        self.ask(change.kind, lambda answer: complete(task, _master_answer(answer)), **words)

    def ask_reset(self, function, lun_field, done):
        """A task management function that concerns other nexuses too; done(MasterAnswer) in the
        control thread."""
        unit_id = self.replica.unit_id(self.device.unit(lun_field)) or self.replica.any_unit_id()
        if unit_id is None:
            done(MasterAnswer(sam.GOOD, b'', None))
            return
        self.ask(
            'reset', lambda answer: done(_master_answer(answer)), function=function, unit=unit_id
        )

    def unit_failed(self, unit_id, text):
        """A unit lost data that it may have acknowledged: the master fences it off. Any thread."""
        log.error('unit %s: %s', unit_id, text)
        self.report('failed', unit=unit_id, text=text)

    # -- a connection's life -----------------------------------------------------------------------------------------

    def _greet(self, sock, where, members, session):
        """Login, full feature phase, end. members: of the session that it begins or joins, None: of
        none. [connection]"""
        try:
            why, in_order = greeting.greet(self, sock, where, members, session)
        except Exception:  # a defect of ours: the session ends, the log has the place
            log.exception('a connection met an unexpected failure')
            why, in_order = 'internal failure', False
            sock.close()
        if members is not None and members.is_over():
            self._session_over(why, in_order)

    def _erase(self, message, descriptor):
        """[erasing]"""
        failed = ''
        try:
            with store.from_descriptor(message['store'], descriptor) as medium:
                erasing.operate(
                    medium,
                    message['operation'],
                    lambda position, lasting: self.report(
                        'progress', position=position, lasting=lasting
                    ),
                )
        except OSError as e:
            failed = e.strerror or str(e)
        except Exception as e:  # a defect of ours: the operation failed, the log has the place
            log.exception('an operation met an unexpected failure')
            failed = 'internal failure: %s' % e
        self.report('operated', failed=failed)
        self._is_serving = False
        if self._retiring:
            self.finish()
        else:
            self.report('idle')

    def begin_session(self, session):
        """The claim was granted. [connection, during login]"""
        self.session = session
        if self.device is None:
            self.tasks = Tasks(session)
            return
        self.ordering = Ordering(self.device, session.tasks, self.connections)
        self.tasks = Tasks(session, self.ordering.gates, self._resume_soon)

    def _resume_soon(self):
        """A task that others waited for is over: let those start whose turn it is. Any thread."""
        self.executor.submit(Worker._resume, self)

    def _resume(self):
        """[executor]"""
        with self.working:
            ordering = self.ordering
            for task in ordering.startable() if ordering else ():
                task.connection.starter.start_parked(task)
        for connection in list(self.connections):
            connection.drain_or_stop()

    def _session_over(self, why, in_order):
        """The last connection's thread is about to end. in_order: by a logout, or before there was
        a session. [connection]"""
        if self.tasks is not None and not self._wait_until_quiet():
            in_order = False
        if in_order and not self._retiring and self._sessions_left > 0:
            self._sessions_left -= 1
            self._become_spare()
            self.report('idle', why=why)
        else:
            self.report('ended', why=why)
            self.finish()

    def _wait_until_quiet(self):
        """True when no command of the session that ended can touch a medium any more."""
        quiet = threading.Event()
        self.tasks.abort(lambda task: True, quiet.set)
        if quiet.wait(QUIET_SECONDS):
            return True
        log.warning(
            'a command was still at its disk %d seconds after its session ended', QUIET_SECONDS
        )
        return False

    def _become_spare(self):
        """Keep nothing of the session: a worker that ended one in order serves the next, which
        saves a fork per login."""
        replica, self.replica = self.replica, None
        self.tasks = self.device = self.ordering = self.session = None
        self.members = Members(self)
        self._is_serving = False
        self._answers.clear()
        if replica is not None:
            replica.close()

    def text_exchange(self, connection):
        """Who answers this connection's Text Requests."""
        return TextExchange(self.policies, connection)


def _master_answer(message):
    sense, data = message.get('sense'), message.get('data')
    return MasterAnswer(
        message.get('status', sam.BUSY),
        bytes.fromhex(sense) if sense else b'',
        bytes.fromhex(data) if data else None,
    )


def run(channel, configuration):
    """The whole life of a worker process, from its fork to its end.

    A command leaves nothing for the collector; each collection would make pages our own that we
    share with the master."""
    gc.set_threshold(100000, 20, 20)
    Worker(channel, configuration).run()
