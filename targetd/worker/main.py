"""A worker process: its control thread, which executes the master's orders, and the state that its
connections share.

The control thread is the main thread of the process. It reads the channel and does the logins: while
one waits for its initiator, the orders of the master are executed. It blocks on nothing else, except
on `working` of the session (for at most one batch) when an abort must find no command half done. Each
connection in full feature phase has its own thread. When the channel ends, the process ends.

     spare --serve--> login --claim granted--> full feature phase --over--> report ended, exit
       ^                |                            | (discovery, or a session that ended by a logout)
       +--- report idle +--- refused, failed --------+
"""

import gc
import itertools
import os
import select
import socket
import threading
import time

from targetd import log, store
from targetd.channel import ChannelClosed
from targetd.scsi import sam
from targetd.scsi.sense import ABORTED_COMMAND, CheckCondition, StatusReturned, unit_not_supported
from targetd.worker import connection_login, erasing, joining, sleeping_disks
from targetd.worker.capturing import Captures
from targetd.worker.connection.blocking import TakenOver
from targetd.worker.connection.replies import MasterAnswer, answer_to
from targetd.worker.connection.task_ordering import Ordering
from targetd.worker.connection.write_buffers import WriteBuffers
from targetd.worker.executor import Executor
from targetd.worker.group_commit import GroupCommit
from targetd.worker.hang_watch import QUIET_SECONDS, Watch
from targetd.worker.latency import FINAL, Latency, report_counters
from targetd.worker.line import report_line
from targetd.worker.members import LEAVE_SECONDS, Members
from targetd.worker.orders import BadOrder, check_order
from targetd.worker.policy import Policies
from targetd.worker.replica import Replica, leave_media
from targetd.worker.tasks import Tasks
from targetd.worker.text_exchange import TextExchange
from targetd.worker.throttling import Limits

#: A worker exits after so many sessions. This bounds memory leaks.
SESSIONS_OF_ONE_WORKER = 256

#: COMMANDS CLEARED BY DEVICE SERVER: ends the tasks of a unit whose store is replaced. Initiators
#: send such a command again.
_COMMANDS_CLEARED = (ABORTED_COMMAND, 0x2F, 0x02)

#: Interval at which the writes that started before the write cache was disabled are checked.
CACHED_WRITE_SECONDS = 0.01


class Worker(object):
    """The state of one worker process. configuration: the config.model.Configuration that was in
    force when the process was forked (ARCHITECTURE D11)."""

    def __init__(self, channel, configuration):
        self.channel = channel
        self.configuration = configuration
        self.policies = Policies(configuration)
        self.executor = Executor(configuration.server.executor_threads)
        self.group_commit = GroupCommit(self)
        self.busy_poll_seconds = configuration.server.busy_poll / 1e6
        self.device = None  # scsi.device.Device of the session
        self.replica = None
        self.tasks = None
        self.ordering = None  # Ordering of the session's task sets
        # held by the connection of the session that acts on received PDUs
        self.working = threading.Lock()
        # guards Task.connection where it can change (ErrorRecoveryLevel 2)
        self.allegiance = threading.RLock()
        # guards the command window of a session with several connections
        self.numbering = threading.Lock()
        self.connections = []
        self.write_buffers = WriteBuffers()
        self.latency, self.captures, self.limits = Latency(), Captures(self), Limits(self)
        self.members = Members(self)
        self.watch = Watch(self)
        self.session = None
        self.has_asked = False  # the session has asked the master for anything but its login
        self._numbers = itertools.count(1)
        self._answers = {}  # ask id -> function of the answer message
        self._are_units_complete = True  # all units of the session that logs in are here
        self._retiring = False
        self._is_serving = False  # from the serve order until idle or ended is reported
        self._sessions_left = SESSIONS_OF_ONE_WORKER
        self._orders = {
            'serve': self._serve,
            'answer': self._answer,
            'change': self._change,
            'units': self._units,
            'logout': self._logout,
            'check-connections': self._check_connections,
            'end': self._end,
            'retire': self._retire,
            'join': self._join,
            'operate': self._operate,
            'capture': self.captures.order,
            'limits': self.limits.order,
            'count': lambda message, _: report_counters(self, message['id']),
            'line': lambda message, _: report_line(self, message['id']),
        }

    # -- the control thread -------------------------------------------------------------------

    def run(self):
        """Execute orders until the channel ends. [control]"""
        try:
            self.channel.send({'report': 'ready'})
            while True:
                message, descriptors = self.channel.read()
                check_order(message, descriptors)
                self._orders[message['do']](message, descriptors)
        except BadOrder as e:
            log.error('the master sent %s; this worker ends', e)
        except ChannelClosed:
            pass
        self._stop_connections('the worker process ends')

    def _serve(self, message, descriptors):
        self._is_serving = True
        message['tap'] = self.captures.new_tap(message, descriptors)
        sock, serve = socket.socket(fileno=descriptors[0]), connection_login.serve_connection
        self._serve_connection((sock, self.members, serve, (message, self.members)))

    def start_connection(self, sock, members, serve, *arguments):
        """Run serve(worker, socket, *arguments) in a thread of its own: one that served an earlier
        connection, or is started now. [any]"""
        self.executor.submit(self._serve_connection, (sock, members, serve, arguments), object())

    def _operate(self, message, descriptors):
        """Format or sanitize a medium, without a session."""
        self._is_serving = True
        arguments = (message, descriptors)
        threading.Thread(target=self._run_operation, args=arguments, daemon=True).start()

    def _join(self, message, descriptors):
        """A further connection of the session: its login is over, except for the last response.

        The session may have ended while the order was sent, and the worker may already serve the
        next one, whose state the connection must not touch."""
        message['tap'] = self.captures.new_tap(message, descriptors)
        members = self.members  # read first: _become_spare, in another thread, resets it last
        session = self.session
        if session is None or session.tsih != message['tsih']:
            members = session = None
        sock = socket.socket(fileno=descriptors[0])
        self.start_connection(
            sock, members, joining.serve_joined_connection, message, members, session
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
        """Apply a change of state that sessions share, abort the tasks that must end, then
        acknowledge."""

        def acknowledge():
            self.report('acknowledge', id=message['id'])

        if self.replica is None:
            acknowledge()
            return
        unit = self.replica.unit_or_guest(message['unit'])
        had_cache = unit is not None and not unit.write_through
        self.replica.apply_change(message)
        if message.get('watched'):
            self._revoke_overwritten_tokens(message['unit'], unit)
        abort = message.get('abort')
        if not abort and had_cache and unit.write_through:
            self._end_cached_writes(unit, acknowledge)
            return
        if not abort:
            sleeping_disks.apply(unit, message.get('sleep'), acknowledge)
            return
        reply = StatusReturned(sam.TASK_ABORTED) if abort.get('tas') else None
        self._end_tasks({unit: reply}, acknowledge)

    def _end_cached_writes(self, unit, on_quiet):
        """The write cache was disabled: call on_quiet() when every write that ends from now on is
        durable. The control thread does not wait for the medium. [control]"""
        arguments = (self.tasks, unit, on_quiet)
        threading.Thread(target=self._wait_for_cached_writes, args=arguments, daemon=True).start()

    def _wait_for_cached_writes(self, tasks, unit, on_quiet):
        running = []
        if tasks is not None:
            with self.working:
                cached = [task for task in tasks.each(lambda task: task) if task.unit is unit]
                running = [task for task in cached if unit.make_durable(task)]
            while tasks.retains_any(running):
                time.sleep(CACHED_WRITE_SECONDS)
        on_quiet()

    def _end_tasks(self, replies, on_quiet):
        """Abort the tasks of these units, and stop the copies that use them; call on_quiet() when none
        of them can touch the medium. replies: {unit: reply to its tasks, as in Tasks.abort}.
        [control]"""
        left = [True, False]  # each call pops one; only the second call continues

        def one_quiet():
            if left.pop():
                on_quiet()

        self.replica.guests.stop(lambda unit: unit in replies, one_quiet)
        self._abort(
            lambda task: task.unit in replies and not task.sent_to_master,
            one_quiet,
            lambda task: replies[task.unit],
            replies,
        )

    def _revoke_overwritten_tokens(self, unit_id, unit):
        """ROD tokens were created for the unit: commands that were admitted before must not change
        the data that the tokens represent. [control]

        Commands that wait for their Data-Out revoke the tokens when they run. Tokens for ranges
        that are being written now are revoked here, before the token is returned."""
        if self.tasks is None or unit is None:
            return
        if self.working.acquire(timeout=QUIET_SECONDS):
            try:
                ranges = self.tasks.each(
                    lambda task: unit.guard_from_new_tokens(task) if task.unit is unit else None
                )
                ranges += unit.copy_writes
            finally:
                self.working.release()
        else:  # the connection's thread is in a write that does not return: of an unknown range
            ranges = [(0, unit.blocks * unit.block_size)]
        for offset, length in filter(None, ranges):
            self.ask_master(
                'token-revoke', lambda answer: None, unit=unit_id, offset=offset, length=length
            )

    def _abort(self, wanted, on_quiet, reply_to, units):
        """Abort tasks of every connection; call on_quiet() when none can touch the medium. units:
        those that the tasks may touch. [control]"""
        if self.tasks is None:
            on_quiet()
        elif self.working.acquire(timeout=QUIET_SECONDS):
            self._abort_and_release(wanted, on_quiet, reply_to)
        else:  # the connection's thread waits for an initiator, or for a medium
            arguments = (wanted, on_quiet, reply_to, units)
            threading.Thread(target=self._abort_later, args=arguments, daemon=True).start()

    def _abort_later(self, wanted, on_quiet, reply_to, units):
        on_quiet = self.watch.take_working(self.working, units, on_quiet)
        self._abort_and_release(wanted, on_quiet, reply_to)

    def _abort_and_release(self, wanted, on_quiet, reply_to):
        """Called with `working` held."""
        tasks = self.tasks
        try:
            if tasks is not None:
                tasks.abort(wanted, on_quiet, reply_to)
        finally:
            self.working.release()
        if tasks is None:
            on_quiet()
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
        removed, replaced = self.replica.apply_units(message, descriptors)
        self._are_units_complete = bool(message.get('last')) or self._are_units_complete
        replies = dict.fromkeys(removed, unit_not_supported())
        replies.update(dict.fromkeys(replaced, CheckCondition(*_COMMANDS_CLEARED)))
        if not replies:
            acknowledge()
            return

        def close_and_acknowledge():
            for unit in replies:
                self.watch.close_store(unit)
            acknowledge()

        self._end_tasks(replies, close_and_acknowledge)

    def _logout(self, message, descriptors):
        # a lost connection cannot be asked: its tasks must not wait for a reassignment
        self.members.abandon_lost()
        for connection in list(self.connections):
            connection.requests.ask_for_logout(int(message['seconds']))

    def _check_connections(self, message, descriptors):
        """The initiator logs in once more. If it has closed every connection of this session, the
        session ends, and the master notices that."""
        if not self.members.are_closed_by_initiator():
            self.report('continues', id=message['id'])

    def _end(self, message, descriptors):
        self._retiring = True
        self.watch.start()  # a connection's thread may be in a call that does not return
        self.members.abandon_lost()
        if not self._stop_connections(message['why']):
            self.exit()  # at most a login is unfinished, and it may be cut off

    def _retire(self, message, descriptors):
        self._retiring = True
        if not self._is_serving:
            self.exit()

    def _stop_connections(self, why):
        """Stop every connection and return their number. Their threads end them. [control]"""
        connections = list(self.connections)
        for connection in connections:
            connection.stop(why)
        return len(connections)

    def exit(self):
        """End the control thread and with it the process. [any]"""
        try:
            self.channel.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    # -- messages to the master ---------------------------------------------------------------

    def report(self, what, **words):
        """Send a report to the master. If the master is gone, nothing happens here: the control
        thread notices it and ends the process. [any]"""
        words['report'] = what
        try:
            self.channel.send(words)
        except (ChannelClosed, OSError):
            pass

    def ask_master(self, what, answered, **words):
        """Send a question to the master; answered(message) is called in the control thread. [any]"""
        number = next(self._numbers)
        self.has_asked = True
        self._answers[number] = answered
        words['ask'], words['id'] = what, number
        try:
            self.channel.send(words)
        except (ChannelClosed, OSError):
            self._answers.pop(number, None)

    def claim(self, nexus, seconds, **words):
        """Ask the master for a session; returns the answer, or None if it, or one of the units of the
        session, does not arrive in time. [control, during login]"""
        answer = self.ask_and_wait('claim', seconds, **words)
        if answer is not None and nexus is not None and not answer['status_class']:
            self.replica = Replica(self, nexus, self.configuration)
            self.device = self.replica.create_units(answer['units'], answer['descriptors'])
            self._are_units_complete = not answer['more']
            while not self._are_units_complete:  # they follow in `units` orders
                if not self.execute_order(seconds):
                    return None
        return answer

    def ask_and_wait(self, what, seconds, **words):
        """Send a question to the master; returns the answer, or None if none arrives in time. Executes
        the orders that arrive before the answer. [control, during login]"""
        answers = []
        self.ask_master(what, answers.append, **words)
        end = time.monotonic() + seconds
        while not answers:
            if not self.execute_order(end - time.monotonic()):
                return None
        return answers[0]

    def execute_order(self, seconds, sock=None):
        """Execute the next order. Returns False if none arrives within so many seconds, or if `sock`
        can be received from. Raises ChannelClosed. [control]"""
        if not self.channel.has_frame():
            ready = select.poll()
            for each in (self.channel, sock) if sock is not None else (self.channel,):
                ready.register(each, select.POLLIN)
            found = ready.poll(max(0, int(seconds * 1000)))
            if all(number != self.channel.fileno() for number, _ in found):
                return False
        message, descriptors = self.channel.read()
        self._orders[message['do']](message, descriptors)
        return True

    def ask_change(self, task, change, complete):
        """Send a command's Change to the master; complete(task, MasterAnswer) is called when the
        change is in force in every worker. UNFLUSHED and DELAYED are done here. [any]"""
        if change.arguments is None:
            (self.limits if change is sam.DELAYED else self.group_commit).add(task)
            return
        task.sent_to_master = True
        words = dict(change.arguments, unit=self.replica.unit_id(task.unit))
        self.ask_master(change.kind, lambda a: complete(task, answer_to(task, change, a)), **words)

    def ask_reset(self, function, lun_field, done):
        """Send a task management function that concerns other nexuses too to the master;
        done(MasterAnswer) is called in the control thread. [any]"""
        unit_id = self.replica.unit_id(self.device.unit(lun_field)) or self.replica.any_unit_id()
        if unit_id is None:
            done(MasterAnswer(sam.GOOD, b'', None))
            return
        self.ask_master(
            'reset', lambda a: done(MasterAnswer.of(a)), function=function, unit=unit_id
        )

    def unit_failed(self, unit_id, text):
        """Report that a unit lost data which it may have acknowledged: the master fences it. [any]"""
        log.error('unit %s: %s', unit_id, text)
        self.report('failed', unit=unit_id, text=text)

    # -- connections and operations -----------------------------------------------------------

    def _serve_connection(self, connection):
        """Serve a connection to its end by serve(worker, socket, *arguments). connection: (socket,
        members, serve, arguments); members: those of the session that the connection begins or joins,
        None if there is none. [connection]"""
        sock, members, serve, arguments = connection
        try:
            why, in_order = serve(self, sock, *arguments)
        except TakenOver:
            return
        except ChannelClosed:  # during the login
            raise
        except Exception:  # a defect in targetd: the session ends, the log has the traceback
            log.exception('a connection failed unexpectedly')
            why, in_order = 'internal failure', False
            sock.close()
        if members is not None and members.is_over():
            self._session_over(why, in_order)

    def _run_operation(self, message, descriptors):
        """[erasing]"""
        failed = ''
        try:
            with store.from_descriptor(message['store'], *(descriptors or [None])) as medium:
                erasing.run_operation(
                    medium,
                    message['operation'],
                    lambda position, lasting: self.report(
                        'progress', position=position, lasting=lasting
                    ),
                )
        except OSError as e:
            failed = e.strerror or str(e)
        except Exception as e:  # a defect: the operation fails, the log has the traceback
            log.exception('an operation failed unexpectedly')
            failed = 'internal failure: %s' % e
        self.report('operated', failed=failed)
        self._is_serving = False
        if self._retiring:
            self.exit()
        else:
            self.report('idle')

    def begin_session(self, session):
        """The master has granted the claim. [control, during login]"""
        self.session = session
        self.has_asked = False
        if self.device is None:
            self.tasks = Tasks(session)
            return
        self.ordering = Ordering(self.device, session.tasks, self.connections)
        self.tasks = Tasks(
            session,
            self.ordering.gates,
            self._resume_soon,
            self.watch.start,
            self.watch.fences.take_down,
            self.limits.cancel,
        )

    def _resume_soon(self):
        """A task has ended for which others may wait: start those that may start now. [any]"""
        self.executor.submit(Worker._resume, self)

    def _resume(self):
        """[executor]"""
        with self.working:
            ordering = self.ordering
            for task in ordering.startable() if ordering else ():
                task.connection.starter.start_parked(task)
        self.group_commit.begin()
        for connection in list(self.connections):
            connection.drain_or_stop()

    def _session_over(self, why, in_order):
        """The last connection has ended. in_order: it ended by a logout, or before there was a
        session. [connection]"""
        log.report_suppressed(0)
        is_quiet = self.tasks is None or self._wait_until_quiet()
        report_counters(self, FINAL)
        self.captures.close()
        if in_order and is_quiet and not self._retiring and self._sessions_left > 0:
            self._sessions_left -= 1
            self._become_spare()
            self.report('idle', why=why)
        else:
            # the process cannot end before the calls that hang have returned; their units are fenced
            hangs = leave_media(self)
            self.report('ended', why=why, hangs=hangs, quiet=is_quiet)
            self.exit()

    def _wait_until_quiet(self):
        """Return True when no command of the ended session can touch a medium any more, False if a
        command hangs and its unit is fenced, or after LEAVE_SECONDS."""
        quiet = threading.Event()
        with self.working:  # an executor thread may be starting tasks that were parked
            self.tasks.abort(lambda task: True, quiet.set)
        if quiet.wait(LEAVE_SECONDS):
            return not self.tasks.hung
        log.warning(
            'a command was still waiting for the disk %d seconds after its session ended',
            LEAVE_SECONDS,
        )
        return False

    def _become_spare(self):
        """Drop all state of the session. A worker whose session ended by a logout serves the next
        one, which saves a fork for each login (ARCHITECTURE D13)."""
        replica, self.replica = self.replica, None
        self.tasks = self.device = self.ordering = self.session = None
        self.write_buffers.clear()
        self.limits.close()
        self.members = Members(self)
        self._is_serving = False
        self._answers.clear()
        if replica is not None:
            replica.close()

    def text_exchange(self, connection):
        """Return a TextExchange for this connection."""
        return TextExchange(self.policies, connection)


def run_worker(channel, configuration):
    """Run the worker in a forked process; returns when the process is to exit. Garbage collection is rare:
    a command creates no reference cycles, and each would copy memory shared with the master."""
    gc.set_threshold(100000, 20, 20)
    Worker(channel, configuration).run()
