"""One TCP connection of a session in full feature phase: it receives PDUs, runs commands and queues
the replies.

Threads. The connection's own thread runs run() and everything marked [connection]. It holds
`working` while it acts on a batch, but not while it blocks in recv(). Executor threads call
complete() [any]. The control thread takes `working` to be sure that no command is half done, and
may then call what is marked [control]. No thread waits for `working` while it holds the outbox's
lock.

The hot path is one pass in one thread: batch → _command → unit.admit → task.run → outbox.queue →
one send for each batch. Its budget: no allocation except the reply's data, no lock, no clock, no
log.
"""

import socket
import threading
from time import monotonic

from targetd import log
from targetd.compat import raw_buffer
from targetd.crc32c import crc32c
from targetd.iscsi import const, pdu
from targetd.iscsi.errors import LOST_DATA, PduRejected
from targetd.iscsi.framing import BATCH_BYTES, BHS, DIGEST_ERROR, Framer
from targetd.iscsi.session import WINDOW
from targetd.iscsi.transfer import Transfer
from targetd.scsi import sam
from targetd.scsi.counters import ERROR_KEYS
from targetd.scsi.sense import HARDWARE_ERROR, CheckCondition, StatusReturned
from targetd.tcp_info import ESTABLISHED
from targetd.worker.connection.black_hole import look_for_black_hole
from targetd.worker.connection.blocking import Blocking
from targetd.worker.connection.busy_poll import FEW, busy_poll
from targetd.worker.connection.data_out import UNEXPECTED_SENSE, DataOut
from targetd.worker.connection.measuring import MEASURED_BATCHES, act_and_measure
from targetd.worker.connection.outbox import SEND_SECONDS, Outbox
from targetd.worker.connection.pipelining import run_elsewhere
from targetd.worker.connection.replies import reply_pdus
from targetd.worker.connection.requests import Requests
from targetd.worker.connection.task_ordering import TaskStarter

_MASK = 0xFFFFFFFF
_READ, _WRITE = const.COMMAND_READ, const.COMMAND_WRITE
_WOULD_BLOCK = sam.WOULD_BLOCK
_BYTES = (bytes, bytearray, memoryview)

#: A reply with more data than this is sent before the next command of the batch is run. This bounds
#: the memory that replies hold.
SEND_NOW_BYTES = 64 << 10

#: When more replies than this are queued by reply(), they are sent before the next command is run.
_QUEUE_LENGTH = 256

_INTERNAL_TARGET_FAILURE = (HARDWARE_ERROR, 0x44, 0x00)

#: Data of commands that arrived before their CmdSN was due. An initiator that sends more loses its
#: connection.
HELD_BYTES = 64 << 20
#: Immediate commands that may be unfinished in addition to the command window; the next is rejected.
IMMEDIATE_COMMANDS = 64


class ConnectionEnded(Exception):
    """The connection has ended; the message is the reason, for the log."""


def _act_on_nothing(pdus, then_held=True):
    """Takes the place of Connection._dispatch when the connection executes nothing any more."""


class Connection(object):
    """A connection of a session that has one connection and ErrorRecoveryLevel 0.

    worker: the Worker, for its device, executor and tasks; session: iscsi.session.Session;
    declared: the MaxRecvDataSegmentLength that the target declared; leftover: bytes that arrived
    after the last login request; values: the keys negotiated for this connection; peer: [address,
    port]."""

    transfer_class = Transfer
    send_seconds = SEND_SECONDS  # SO_SNDTIMEO
    tap = None  # worker.capturing.Tap, if the connection is or was captured
    reported_black_hole = False  # see black_hole
    may_pipeline = False  # see pipelining
    pipelining = None  # once a command was begun
    keeps_tasks = False  # its tasks may be reassigned after it has ended (ErrorRecoveryLevel 2)

    def __init__(
        self,
        worker,
        sock,
        session,
        cid,
        stat_sn,
        declared,
        keepalive,
        leftover=b'',
        values=None,
        peer=None,
    ):
        values = self.values = dict(values or session.values)
        self.worker = worker
        self.session = session
        self.cid = cid
        self.socket = sock
        self.working = worker.working
        self.framer = Framer(
            declared,
            crc32c,
            values.get('HeaderDigest') == 'CRC32C',
            values.get('DataDigest') == 'CRC32C',
            buffer=raw_buffer(BATCH_BYTES),
        )
        self.outbox = self.make_outbox(stat_sn)
        self.peer = peer
        self.has_left = threading.Event()  # set when the connection has ended and is quiet
        self.requests = Requests(self, keepalive)
        self.device = worker.ordering.device if worker.ordering else None
        self.data_out = DataOut(self, self.transfer_class, worker.write_buffers)
        self.starter = TaskStarter(self, worker.ordering, worker.device)
        self.ended = None  # the reason, once the connection is to end
        self.ended_quietly = False  # it ended by a logout
        self._leftover = leftover
        self._batch = []  # the PDUs that its thread is acting on
        self._busy_poll = busy_poll(worker.busy_poll_seconds)
        self._were_few = False  # the last batch was small: polling for the next one may pay
        self._queue = self.outbox.queue
        self.blocking = Blocking()
        self._group_commit = worker.group_commit
        self._task = sam.Task()
        self._has_all_data = self.data_out.has_all
        self._handlers = {const.SCSI_COMMAND: self._command, const.DATA_OUT: self.data_out.receive}
        self._handlers.update(self.requests.by_opcode)
        if session.is_discovery:
            self._command = self._handlers[const.SCSI_COMMAND] = self._reject_in_discovery
            self._handlers.pop(const.TASK_MANAGEMENT_REQUEST)

    def make_outbox(self, stat_sn):
        """Return the outbox. Called by the constructor."""
        return Outbox(self.socket, self.session, stat_sn, crc32c, self.values)

    # -- the loop -----------------------------------------------------------------------------

    def run(self):
        """Serve until the connection ends; returns the reason. Raises TakenOver. [connection]"""
        self.blocking.begin()
        try:
            # other threads may have queued PDUs since the session knows this connection
            self.outbox.drain()
            if self._leftover:
                leftover, self._leftover = self._leftover, b''
                self.framer.receive_buffer()[: len(leftover)] = leftover
                self._act(len(leftover))
                self.outbox.drain()
                self._flush_what_is_due()
            while self.ended is None:
                self._receive_and_act()
            # another thread may be sending: the socket stays open until the last reply is sent
            self.outbox.drain_and_wait()
        except ConnectionEnded as e:
            self.ended = self.ended or str(e)
        except PduRejected as e:
            self._send_final_reject(e)
            self.ended = self.ended or 'a PDU from the initiator cannot be parsed: %s' % e.why
        except OSError as e:
            self.ended = self.ended or 'the connection broke: %s' % (e.strerror or e)
        finally:
            if self.blocking.is_in_charge():
                self._group_commit.begin()
                if self.ended_quietly:
                    self.send_remaining()
                self.close()
        return self.ended

    def _receive_and_act(self):
        """One receive, all its PDUs, one send. [connection] Hot."""
        framer = self.framer
        try:
            if framer.landing is None:
                if self._were_few and self._busy_poll is not None and not self.session.tasks:
                    count = self._busy_poll.receive(self.socket.recv_into, framer.receive_buffer())
                else:
                    count = self.socket.recv_into(framer.receive_buffer())
            else:
                count = self.socket.recvmsg_into(framer.receive_buffers())[0]
        except BlockingIOError:
            self.requests.on_silence()
            self.outbox.drain()
            return
        if not count:
            look_for_black_hole(self)
            raise ConnectionEnded('the initiator closed the connection')
        self.requests.unanswered_pings = 0
        if self.session.exp_cmd_sn % MEASURED_BATCHES:
            self._act(count)
            self.outbox.drain()
        else:
            act_and_measure(self, self._act, count)
        if self._group_commit.due:
            self._flush_what_is_due()

    def release_memory(self):
        """The initiator is silent: release the data of the last commands and the buffers of writes.
        [connection]"""
        self._batch, self._task = [], sam.Task()
        self.data_out.forget_command_buffer()
        self.worker.write_buffers.clear()

    def _flush_what_is_due(self):
        """Flush for the durable writes of the batch. Raises TakenOver. [connection]"""
        self._group_commit.begin(self if self.blocking.start else None)

    def _act(self, count):
        """Act on `count` more received bytes. [connection] Hot."""
        framer = self.framer
        with self.working:
            try:
                pdus = self._batch = framer.parse_received(count)
            except PduRejected as e:
                self._batch = e.before
                self._dispatch(e.before)
                raise
            self._were_few = len(pdus) <= FEW
            self._dispatch(pdus)
            if framer.partial is not None:
                framer.land_data(self.data_out.place(framer.partial))

    def _dispatch(self, pdus, then_held=True):
        """Act on PDUs in order. [connection] Hot."""
        command, handlers, held = self._command, self._handlers, then_held and self.session.held
        for fields, ahs, data in pdus:
            opcode = fields[0] & 0x3F
            try:
                if opcode == 1 and data is None and ahs is None:
                    command(fields, None, None)
                elif data is DIGEST_ERROR:
                    self._digest_error(fields)
                elif opcode in handlers:
                    handlers[opcode](fields, ahs, data)
                else:
                    raise PduRejected(
                        const.REJECT_COMMAND_NOT_SUPPORTED, 'opcode %02Xh is not known' % opcode
                    )
            except PduRejected as e:
                self.reject_pdu(fields, e)
            if held:
                self._dispatch_held()

    def _dispatch_held(self):
        """Act on PDUs that arrived before their CmdSN was due and are due now. [connection]"""
        held = self.session.next_held()
        while held is not None:
            held[3].act_on_held(held[:3], self)
            held = self.session.next_held()

    def act_on_held(self, held_pdu, runner):
        """Act on a held PDU of this connection. runner: the connection whose thread calls this."""
        self._dispatch((held_pdu,), False)

    def end(self, why, quietly=False):
        """Let the connection end once its replies are sent. [connection]"""
        self.ended_quietly = quietly
        self.ended = why

    def stop_acting(self):
        """Act on no PDU that arrives from now on, on none that is held, and on none of the rest of the
        batch. Its replies are still sent. [any, with `working` held]"""
        self._dispatch = _act_on_nothing
        self._batch.clear()
        self.session.forget_held(self)

    def stop(self, why):
        """End the connection from another thread: its own thread wakes up and run() returns `why`.
        It acts on no further batch of PDUs. [any]"""
        self.ended = self.ended or why
        self._dispatch = _act_on_nothing
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is closed already

    def is_closed_by_initiator(self):
        """Return True if the connection has ended, or TCP has received a FIN or RST on it, which its
        thread may not have noticed. [any]"""
        try:
            state = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        except OSError:  # the socket is closed
            return True
        return self.ended is not None or state != ESTABLISHED

    def drain_or_stop(self):
        """Send what is queued. If this fails, stop the connection: part of a PDU may have been
        sent. [any]"""
        try:
            self.outbox.drain()
        except OSError as e:
            self.stop('nothing can be sent: %s' % (e.strerror or e))

    def send_remaining(self):
        """Send what is queued, after any thread that is sending now. Does nothing if the connection
        is broken. [any]"""
        try:
            self.outbox.drain_and_wait()
        except OSError:
            pass

    def drain_in_executor(self):
        """drain_or_stop() in an executor thread, for callers that must not wait for a slow
        initiator. [any]"""
        self.worker.executor.submit(Connection.drain_or_stop, self)

    def close(self):
        """Close the socket. [connection]"""
        if self.pipelining is not None:
            self.pipelining.leave()
        try:
            self.socket.close()
        except OSError:
            pass

    # -- commands -----------------------------------------------------------------------------

    def _command(self, fields, ahs, data):
        """A SCSI Command PDU. [connection] Hot."""
        opcode, flags, _, _, lun, itt, edtl, cmd_sn, _, cdb = fields
        session = self.session
        numbered = not opcode & 0x40
        if numbered:
            if cmd_sn == session.exp_cmd_sn:
                session.exp_cmd_sn = cmd_sn + 1 & _MASK
            elif not self.is_due(fields, ahs, data):
                return
        if flags & 6:
            self.starter.start_or_park(fields, ahs, data)
            return
        task = self._task
        task.itt = itt
        task.lun = lun
        task.cdb = cdb
        task.edtl = edtl
        task.expects_read = flags & _READ
        task.expects_write = flags & _WRITE
        task.data_out_length = 0
        task.connection = self
        task.cmd_sn = cmd_sn if numbered else None
        unit = task.unit = self.device.unit(lun)
        try:
            if ahs:
                task.cdb = cdb + pdu.decode_ahs(ahs).extended_cdb
            unit.admit(task)
            if flags & _WRITE or task.data_out_length:
                if not self._has_all_data(task, flags, data):
                    return
            elif data is not None:
                raise CheckCondition(*UNEXPECTED_SENSE)
            result = task.run(task)
        except (CheckCondition, StatusReturned) as refusal:
            self.refuse(task, flags, data, refusal)
            return
        except sam.Waits:
            self.starter.start_or_park(fields, ahs, data)
            return
        if result is None or result is _WOULD_BLOCK or result.__class__ is sam.Change:
            no_residual = edtl == task.data_out_length and (flags & _WRITE or not edtl)
            if result is None and numbered and no_residual:
                self._queue.append((itt, None))
            else:
                self.handle_result(task, result)
        elif len(result) == edtl and flags & _READ and numbered:
            self._queue.append((itt, result))
            if edtl > SEND_NOW_BYTES:
                self.outbox.drain()
        else:
            self.reply(task, result)

    def is_due(self, fields, ahs, data):
        """Return True if the PDU is immediate or its CmdSN is the next; else hold it, or drop it if
        it is outside the command window. Raises PduRejected. [connection]"""
        if fields[0] & const.IMMEDIATE:
            return True
        if data is not None and self.session.held_bytes() + len(data) > HELD_BYTES:
            raise PduRejected(
                const.REJECT_PROTOCOL_ERROR,
                'too much data with commands whose CmdSN is not due',
                fatal=True,
            )
        return self.session.accept_command_number(
            fields[7], (fields, ahs, None if data is None else bytes(data), self)
        )

    def refuse(self, task, flags, data, refusal):
        """End a command before its Data-Out has arrived; Data-Out that still arrives for it is
        dropped. [connection]"""
        if flags & _WRITE and not flags & 0x80:
            self.session.discard_data_out(task.itt)
        task.transfer = None
        self.reply(task, refusal)

    def retain(self, task):
        """Keep the task in session.tasks beyond this call; the next command gets another Task.
        Raises PduRejected. [connection]"""
        if task.itt in self.session.tasks:
            task.transfer = None
            raise PduRejected(
                const.REJECT_TASK_IN_PROGRESS,
                'initiator task tag %08Xh is in use' % task.itt,
                numbered=True,
            )
        if task.cmd_sn is None and len(self.session.tasks) >= WINDOW + IMMEDIATE_COMMANDS:
            task.transfer = None
            raise PduRejected(
                const.REJECT_TOO_MANY_IMMEDIATE,
                'more than %d immediate commands' % IMMEDIATE_COMMANDS,
            )
        if task is self._task:
            self._task = sam.Task()
        self.session.tasks[task.itt] = task

    def run_task(self, task):
        """Return the result of task.run, for a task that TaskStarter starts. [connection or any,
        with `working`]"""
        return task.run(task)

    def handle_result(self, task, result):
        """Handle what task.run returned: run the task in an executor thread, ask the master, or
        reply. [connection]"""
        if result is _WOULD_BLOCK:
            self._retain_with_data(task)
            run_elsewhere(self, task)
        elif result.__class__ is sam.Change:
            (self._retain_with_data if result is sam.DELAYED else self.retain)(task)
            self.worker.ask_change(task, result, self.complete)
        else:
            self.reply(task, result)

    def _retain_with_data(self, task):
        """As retain(); the data of the task is not where the next receive overwrites it. [connection]"""
        self.retain(task)
        data = task.data_out
        if data.__class__ is memoryview and data.obj is self.framer.buffer:
            task.data_out = bytes(data)

    def run_in_executor(self, task):
        """Run a retained task to its end. [any: an executor thread]"""
        if task.edtl <= SEND_NOW_BYTES or not task.expects_read:
            self._run_to_completion(task)
            return
        budget = self.outbox.read_budget
        budget.take(task.edtl, task.unit)  # blocks while the initiator does not read earlier data
        try:
            self._run_to_completion(task)
        finally:
            budget.give_back(task.edtl, task.unit)

    def _run_to_completion(self, task):
        """[any: an executor thread]"""
        task.started = monotonic()  # before `aborted` is read: see Tasks.give_up
        watch = self.worker.watch
        if not watch.is_running:
            watch.start()
        try:
            outcome = None if task.aborted else task.run_blocking(task)
            if outcome.__class__ is sam.Change:
                self.worker.ask_change(task, outcome, self.complete)
                self._group_commit.begin()
                return
        except (CheckCondition, StatusReturned) as refusal:
            outcome = refusal
        except Exception:  # a defect in targetd must end this command, but not the thread
            log.exception('command %s failed unexpectedly' % bytes(task.cdb).hex())
            outcome = CheckCondition(*_INTERNAL_TARGET_FAILURE)
        self.complete(task, outcome)

    def complete(self, task, outcome):
        """End a retained task and send its reply. outcome: what run() may return, except
        WOULD_BLOCK, or an exception that it may raise. [any]"""
        if self.finish(task, outcome):
            self.drain_or_stop()

    def finish(self, task, outcome):
        """Queue the reply to a retained task. Returns False if the task was aborted and gets no
        reply. [any]"""
        task.data_out = None
        if not self.worker.tasks.finished(task):
            return False
        if task.arrived is not None:
            self.worker.latency.note_finished(task)
        numbered, edtl = task.cmd_sn is not None, task.edtl
        no_residual = edtl == task.data_out_length and (task.expects_write or not edtl)
        is_data = task.expects_read and outcome.__class__ in _BYTES
        if numbered and outcome is None and no_residual:
            self._queue.append((task.itt, None))
        elif numbered and is_data and len(outcome) == edtl:
            self._queue.append((task.itt, outcome))
        else:
            self.reply(task, outcome)
        return True

    def reassign(self, request, respond):
        """TASK REASSIGN; calls respond(response). [connection]"""
        respond(const.REASSIGNMENT_NOT_SUPPORTED)

    def reply(self, task, outcome):
        """Queue a reply that may have a residual, sense data or a status other than GOOD. [any]"""
        captures = self.worker.captures
        if captures.ring is not None and getattr(outcome, 'key', None) in ERROR_KEYS:
            captures.on_trouble('a command ended with an error')
        self.outbox.put_pdus(reply_pdus(task, outcome, self.values), task.cmd_sn is not None)
        if len(self._queue) > _QUEUE_LENGTH:
            self.drain_or_stop()

    @staticmethod
    def _reject_in_discovery(fields, ahs, data):
        raise PduRejected(const.REJECT_PROTOCOL_ERROR, 'a SCSI command in a discovery session')

    def take_segment_length(self, length):
        """The initiator declares a new MaxRecvDataSegmentLength (RFC 7143 13.12), for what is sent
        from now on. [connection]"""
        self.outbox.drain()
        self.values['MaxRecvDataSegmentLength'] = length
        self.outbox.take_segment_length(length)

    # -- rejecting ----------------------------------------------------------------------------

    def _digest_error(self, fields):
        """Reject a PDU with a wrong data digest (RFC 7143 7.8). A command whose Data-Out is lost
        ends; its CmdSN counts as used. [connection]"""
        opcode = fields[0] & 0x3F
        self.reject_pdu(
            fields, PduRejected(const.REJECT_DATA_DIGEST_ERROR, 'a data digest is wrong')
        )
        task = self.session.tasks.get(fields[5])
        if opcode == const.DATA_OUT and task is not None and task.transfer is not None:
            self.data_out.fail(task, LOST_DATA)

    def reject_pdu(self, fields, refusal):
        """Queue a Reject PDU. Raises ConnectionEnded if the refusal is fatal. [connection]"""
        log.info('%s: rejected a PDU: %s', self.session.initiator_name, refusal.why)
        self.outbox.put_pdu(
            pdu.Reject(reason=refusal.reason, data=BHS.pack(*fields)), refusal.numbered
        )
        if refusal.fatal:
            raise ConnectionEnded(refusal.why)

    def _send_final_reject(self, refusal):
        """Send a Reject PDU before the connection closes."""
        self.outbox.put_pdu(pdu.Reject(reason=refusal.reason, data=BHS.pack(*refusal.fields)))
        self.send_remaining()
