"""One TCP connection of a session in full feature phase: PDUs in, commands run, replies out.

Threads. The connection's own thread runs run() and everything marked [connection]; it holds
`working` while it acts on a batch, and not while it waits in the socket. Executor threads call
complete() [any]. The control thread takes `working` to be sure that no command is half done, then
may call what is marked [control]. Nobody waits for `working` while holding the outbox's lock.

The hot path is one pass in one thread: batch → _command → unit.admit → task.run → outbox.queue → one send a batch.
Budget there: no allocation but the reply's data, no lock, no clock, no log.
"""

import socket
import threading

from targetd import log
from targetd.compat import raw_buffer
from targetd.crc32c import crc32c
from targetd.iscsi import const, pdu
from targetd.iscsi.errors import PduRejected
from targetd.iscsi.framing import BATCH_BYTES, BHS, DIGEST_ERROR, Framer
from targetd.iscsi.session import WINDOW
from targetd.iscsi.transfer import Transfer
from targetd.scsi import sam
from targetd.scsi.sense import ABORTED_COMMAND, CheckCondition, StatusReturned
from targetd.worker.connection.busy_poll import FEW, polling
from targetd.worker.connection.outbox import Outbox
from targetd.worker.connection.replies import replies
from targetd.worker.connection.requests import Requests
from targetd.worker.connection.task_ordering import UNEXPECTED_DATA, Unusual, Waits

_DATA_OUT_TAIL = pdu.struct.Struct('>4xII4x').unpack
_MASK = 0xFFFFFFFF
_READ, _WRITE = const.COMMAND_READ, const.COMMAND_WRITE
_WOULD_BLOCK = sam.WOULD_BLOCK
_BYTES = (bytes, bytearray, memoryview)

#: Replies with more data than this are sent before the next command of the batch is looked at:
#: bounds memory.
SEND_NOW_BYTES = 64 << 10

#: Unusual replies beyond so many are sent before the next command of the batch is looked at.
_QUEUE_LENGTH = 256

#: RFC 7143 11.4.7.2: what the initiator is told of Data-Out that did not come as agreed.
_BAD_DATA_OUT = (ABORTED_COMMAND, 0x47, 0x05)

#: Data-Out that a session's unfinished commands may hold. A command that goes beyond it ends with
#: TASK SET FULL.
DATA_OUT_BYTES = 256 << 20
#: Only writes from here on are counted: 256 of those below it are less than DATA_OUT_BYTES.
_COUNTED_BYTES = 512 << 10
#: Data of commands that came before their turn; an initiator that sends more ends its connection.
HELD_BYTES = 64 << 20
#: Immediate commands beside the window; one more is rejected.
IMMEDIATE_COMMANDS = 64


class ConnectionEnded(Exception):
    """The connection is over; the message says why, for the log."""


class Connection(Unusual):
    """See the module. worker: gives device, executor, ask(), tasks; session: iscsi.session.Session;
    declared: our own MaxRecvDataSegmentLength; leftover: bytes that arrived behind the login;
    values: what this connection agreed upon; peer: [address, port]."""

    transfer_class = Transfer
    keeps_tasks = False  # its tasks may be reassigned when it is over (ErrorRecoveryLevel 2)

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
        self.has_left = threading.Event()  # nothing of it is going on any more
        self.requests = Requests(self, keepalive)
        self.device = worker.ordering.device if worker.ordering else None
        self.ended = None  # why, once somebody decided that it is over
        self.ended_quietly = False  # as agreed: a logout
        self._leftover = leftover
        self._polling = polling(worker.busy_poll_seconds)
        self._were_few = False  # PDUs of the batch before: only then is the next worth polling for
        self._queue = self.outbox.queue
        self._task = sam.Task()
        self._max_immediate = session.limits.max_immediate if session.limits else 0
        self._others = {const.SCSI_COMMAND: self._command, const.DATA_OUT: self._data_out}
        self._others.update(self.requests.by_opcode)
        if session.is_discovery:
            self._command = self._others[const.SCSI_COMMAND] = self._refuse_command
            self._others.pop(const.TASK_MANAGEMENT_REQUEST)

    def make_outbox(self, stat_sn):
        """For the constructor."""
        return Outbox(self.socket, self.session, stat_sn, crc32c, self.values)

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run(self):
        """Serve until the connection ends; gives why. [connection]"""
        try:
            # what others have put there since the session knows this connection
            self.outbox.drain()
            if self._leftover:
                self.framer.wanted()[: len(self._leftover)] = self._leftover
                self._act(len(self._leftover))
                self.outbox.drain()
            while self.ended is None:
                self._receive_and_act()
            # another thread may be at it: the socket stays open until the last reply is sent
            self.outbox.drain_and_wait()
        except ConnectionEnded as e:
            self.ended = self.ended or str(e)
        except PduRejected as e:
            self._last_words(e)
            self.ended = self.ended or 'its PDU cannot be read: %s' % e.why
        except OSError as e:
            self.ended = self.ended or 'the connection broke: %s' % (e.strerror or e)
        finally:
            if self.ended_quietly:
                self.send_last_words()
            self.close()
        return self.ended

    def _receive_and_act(self):
        """One receive, all its PDUs, one send. [connection] Hot."""
        framer = self.framer
        try:
            if framer.landing is None:
                if self._were_few and self._polling is not None and not self.session.tasks:
                    count = self._polling.receive(self.socket.recv_into, framer.wanted())
                else:
                    count = self.socket.recv_into(framer.wanted())
            else:
                count = self.socket.recvmsg_into(framer.wanted_parts())[0]
        except BlockingIOError:
            self.requests.silence()
            self.outbox.drain()
            return
        if not count:
            raise ConnectionEnded('the initiator closed the connection')
        self.requests.unanswered_pings = 0
        self._act(count)
        self.outbox.drain()

    def _act(self, count):
        """Act on `count` more bytes. [connection] Hot."""
        framer = self.framer
        with self.working:
            try:
                pdus = framer.received(count)
            except PduRejected as e:
                self._dispatch(e.before)
                raise
            self._were_few = len(pdus) <= FEW
            self._dispatch(pdus)
            if framer.partial is not None:
                framer.land(self._place(framer.partial))

    def _dispatch(self, pdus, then_held=True):
        """Act on PDUs in order. [connection] Hot."""
        command, others, held = self._command, self._others, then_held and self.session.held
        for fields, ahs, data in pdus:
            opcode = fields[0] & 0x3F
            try:
                if opcode == 1 and data is None and ahs is None:
                    command(fields, None, None)
                elif data is DIGEST_ERROR:
                    self._digest_error(fields)
                elif opcode in others:
                    others[opcode](fields, ahs, data)
                else:
                    raise PduRejected(
                        const.REJECT_COMMAND_NOT_SUPPORTED, 'opcode %02Xh is not known' % opcode
                    )
            except PduRejected as e:
                self._reject(fields, e)
            if held:
                self._dispatch_held()

    def _dispatch_held(self):
        """PDUs that came before their turn and whose turn it is now. [connection]"""
        held = self.session.next_held()
        while held is not None:
            held[3].act_on_held(held[:3], self)
            held = self.session.next_held()

    def act_on_held(self, whole, by):
        """Its turn has come. by: the connection that runs. [by's thread]"""
        self._dispatch((whole,), False)

    def end(self, why, quietly=False):
        """The connection is over once its replies are sent. [connection]"""
        self.ended_quietly = quietly
        self.ended = why

    def stop(self, why):
        """End the connection from elsewhere: its thread wakes up, and run() gives `why`. [control]"""
        self.ended = self.ended or why
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is closed already

    def drain_from_elsewhere(self):
        """Send what another thread queued. Any thread. When it cannot be sent, maybe half of a PDU
        was: the connection ends."""
        try:
            self.outbox.drain()
        except OSError as e:
            self.stop('nothing can be sent: %s' % (e.strerror or e))

    def send_last_words(self):
        """Send what is queued, if need be after another thread's turn; in vain if the connection is
        broken. [any]"""
        try:
            self.outbox.drain_and_wait()
        except OSError:
            pass

    def drain_soon(self):
        """The same in an executor thread: for those who must not wait for a slow initiator. [any]"""
        self.worker.executor.submit(Connection.drain_from_elsewhere, self)

    def close(self):
        """Close the socket. [connection]"""
        try:
            self.socket.close()
        except OSError:
            pass

    # -- commands ----------------------------------------------------------------------------------------------------

    def _command(self, fields, ahs, data):
        """A SCSI Command PDU. [connection] Hot."""
        opcode, flags, _, _, lun, itt, edtl, cmd_sn, _, cdb = fields
        session = self.session
        numbered = not opcode & 0x40
        if numbered:
            if cmd_sn == session.exp_cmd_sn:
                session.exp_cmd_sn = cmd_sn + 1 & _MASK
            elif not self.takes(fields, ahs, data):
                return
        if flags & 6:
            self._with_attribute(fields, ahs, data)
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
                raise CheckCondition(*UNEXPECTED_DATA)
            result = task.run(task)
        except (CheckCondition, StatusReturned) as refusal:
            self._refused(task, flags, data, refusal)
            return
        except Waits:
            self._with_attribute(fields, ahs, data)
            return
        if result is None or result is _WOULD_BLOCK or result.__class__ is sam.Change:
            if (
                result is None
                and numbered
                and edtl == task.data_out_length
                and (flags & _WRITE or not edtl)
            ):
                self._queue.append((itt, None))
            else:
                self._later(task, result)
        elif len(result) == edtl and flags & _READ and numbered:
            self._queue.append((itt, result))
            if edtl > SEND_NOW_BYTES:
                self.outbox.drain()
        else:
            self.reply(task, result)

    def takes(self, fields, ahs, data):
        """True if the PDU may be acted upon now: it is immediate, or its CmdSN's turn has come.
        [connection]"""
        if fields[0] & const.IMMEDIATE:
            return True
        if data is not None and self.session.held_bytes() + len(data) > HELD_BYTES:
            raise PduRejected(
                const.REJECT_PROTOCOL_ERROR,
                'too much data with commands whose turn has not come',
                fatal=True,
            )
        return self.session.takes(
            fields[7], (fields, ahs, None if data is None else bytes(data), self)
        )

    def _has_all_data(self, task, flags, data):
        """True if the command's Data-Out is all there (task.data_out is set); else its Transfer
        goes on. [connection]"""
        wanted = min(task.edtl, task.data_out_length) if flags & _WRITE else 0
        if data is None or len(data) <= self._max_immediate:
            if data is None and not wanted and flags & 0x80:
                task.data_out = b''
                return True
            if data is not None and flags & 0x80 and wanted <= len(data) <= task.edtl:
                task.data_out = data if len(data) == wanted else data[:wanted]
                return True
        if wanted >= _COUNTED_BYTES:
            self._check_room(wanted)
        transfer = task.transfer = self.transfer_class(
            task.itt, wanted, task.edtl, self.session.limits
        )
        try:
            transfer.immediate(data, flags & 0x80)
        except PduRejected as e:
            log.info('%s: a write is refused: %s', self.session.initiator_name, e.why)
            raise CheckCondition(*UNEXPECTED_DATA)
        if transfer.is_complete:
            task.data_out = transfer.buffer
            task.transfer = None
            return True
        self._retain(task)
        self._solicit(transfer, task)
        return False

    def _check_room(self, wanted):
        """Raise TASK SET FULL if unfinished commands hold so much that this one's data is too much.
        [connection]"""
        for task in list(self.session.tasks.values()):
            wanted += (
                task.transfer.wanted if task.transfer is not None else len(task.data_out or ())
            )
        if wanted > DATA_OUT_BYTES:
            raise StatusReturned(sam.TASK_SET_FULL)

    def _refused(self, task, flags, data, refusal):
        """The command ends before its data was taken; what still comes of it is dropped.
        [connection]"""
        if flags & _WRITE and not flags & 0x80:
            self.session.discard(task.itt)
        task.transfer = None
        self.reply(task, refusal)

    def _retain(self, task):
        """The task outlives this call: it stands in session.tasks, and the next command gets
        another object. [connection]"""
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

    def _later(self, task, result):
        """run() did not end the task, or ended it in an unusual way. [connection]"""
        if result is _WOULD_BLOCK:
            self._retain(task)
            if (
                task.data_out is not None
                and task.data_out.__class__ is memoryview
                and task.data_out.obj is self.framer.buffer
            ):
                task.data_out = bytes(task.data_out)
            self.worker.executor.submit(self._run_blocking, task)
        elif result.__class__ is sam.Change:
            self._retain(task)
            self.worker.ask_change(task, result, self.complete)
        else:
            self.reply(task, result)

    def _run_blocking(self, task):
        """In an executor thread. [any]"""
        if task.edtl <= SEND_NOW_BYTES or not task.expects_read:
            self._run_to_its_end(task)
            return
        room = self.outbox.room
        room.take(task.edtl)  # waits while an initiator does not read what it asked for before
        try:
            self._run_to_its_end(task)
        finally:
            room.give_back(task.edtl)

    def _run_to_its_end(self, task):
        """In an executor thread. [any]"""
        try:
            outcome = None if task.aborted else task.run_blocking(task)
            if outcome.__class__ is sam.Change:
                self.worker.ask_change(task, outcome, self.complete)
                return
        except (CheckCondition, StatusReturned) as refusal:
            outcome = refusal
        except Exception as e:  # a defect of ours must end this command, not the thread
            log.exception('command %s failed unexpectedly' % bytes(task.cdb).hex())
            outcome = internal_failure(e)
        self.complete(task, outcome)

    def complete(self, task, outcome):
        """A retained task is over: outcome is what run() may return but WOULD_BLOCK, or an
        exception it may raise. [any]"""
        if self.finish(task, outcome):
            self.drain_from_elsewhere()

    def finish(self, task, outcome):
        """Queue the reply to a retained task. False: it was aborted, nobody is to be answered.
        [any]"""
        task.data_out = None
        if not self.worker.tasks.finished(task):
            return False
        if (
            task.cmd_sn is not None
            and outcome is None
            and task.edtl == task.data_out_length
            and (task.expects_write or not task.edtl)
        ):
            self._queue.append((task.itt, None))
        elif (
            task.cmd_sn is not None
            and task.expects_read
            and outcome.__class__ in _BYTES
            and len(outcome) == task.edtl
        ):
            self._queue.append((task.itt, outcome))
        else:
            self.reply(task, outcome)
        return True

    def reassign(self, request, respond):
        """TASK REASSIGN; respond(response). [connection]"""
        respond(const.REASSIGNMENT_NOT_SUPPORTED)

    def reply(self, task, outcome):
        """Queue the reply to a task that is not the usual case. Any thread."""
        self.outbox.put_pdus(replies(task, outcome, self.values), task.cmd_sn is not None)
        if len(self._queue) > _QUEUE_LENGTH:
            self.drain_from_elsewhere()

    @staticmethod
    def _refuse_command(fields, ahs, data):
        raise PduRejected(const.REJECT_PROTOCOL_ERROR, 'a SCSI command in a discovery session')

    # -- data --------------------------------------------------------------------------------------------------------

    def _place(self, fields):
        """Where the data of a PDU lands whose header is here; None: the framer keeps it.
        [connection]"""
        opcode = fields[0] & 0x3F
        length = fields[3] & 0xFFFFFF
        if opcode == const.DATA_OUT:
            task = self.session.tasks.get(fields[5])
            if (
                task is not None
                and task.transfer is not None
                and task.connection is self
                and not task.transfer.failed
            ):
                data_sn, offset = _DATA_OUT_TAIL(fields[9])
                try:
                    return task.transfer.place(fields[6], offset, data_sn, length)
                except PduRejected:
                    return None  # refused when it is whole
        return None

    def _data_out(self, fields, ahs, data):
        """A SCSI Data-Out PDU. LUN and ExpStatSN are not looked at: old initiators leave them 0.
        [connection]"""
        itt = fields[5]
        final = fields[1] & 0x80
        task = self.session.tasks.get(itt)
        if task is None or task.transfer is None or task.connection is not self:
            if self.session.discarding.get(itt):
                if final and fields[6] == _MASK:
                    self.session.discarding.pop(itt, None)
                return
            raise PduRejected(const.REJECT_PROTOCOL_ERROR, 'Data-Out for a task that expects none')
        data_sn, offset = _DATA_OUT_TAIL(fields[9])
        self._take_data(task, (fields[6], offset, data_sn, data, final))

    def _take_data(self, task, arguments):
        """Data-Out for a task that waits for it. arguments: of Transfer.receive. [connection]"""
        transfer = task.transfer
        try:
            transfer.receive(*arguments)
        except PduRejected as e:
            log.info('%s: a write is aborted: %s', self.session.initiator_name, e.why)
            self._fail_transfer(task)
            return
        if transfer.is_complete:
            self._all_data_here(task)
        elif arguments[4]:
            self._solicit(transfer, task)

    def _all_data_here(self, task):
        task.data_out = task.transfer.buffer
        task.transfer = None
        if task.aborted:
            self.complete(task, None)
            return
        try:
            result = task.run(task)
        except (CheckCondition, StatusReturned) as refusal:
            result = refusal
        if result is _WOULD_BLOCK:
            self.worker.executor.submit(self._run_blocking, task)
        elif result.__class__ is sam.Change:
            self.worker.ask_change(task, result, self.complete)
        else:
            self.complete(task, result)

    def _fail_transfer(self, task):
        """Data-Out did not come as agreed: the command ends, what still comes for it is dropped
        (RFC 7143 7.9, ERL 0)."""
        self.session.discard(task.itt)
        task.transfer = None
        self.complete(task, CheckCondition(*_BAD_DATA_OUT))

    def _solicit(self, transfer, task):
        for ttt, r2t_sn, offset, length in transfer.solicit(self.session.allot_ttt):
            self.outbox.put_pdu(
                pdu.ReadyToTransfer(
                    lun=task.lun,
                    itt=task.itt,
                    ttt=ttt,
                    r2t_sn=r2t_sn,
                    buffer_offset=offset,
                    desired_length=length,
                )
            )

    def _digest_error(self, fields):
        """RFC 7143 7.8: Reject; a command that lost its data is over, its CmdSN counts as used.
        [connection]"""
        opcode = fields[0] & 0x3F
        self._reject(fields, PduRejected(const.REJECT_DATA_DIGEST_ERROR, 'a data digest is wrong'))
        task = self.session.tasks.get(fields[5])
        if opcode == const.DATA_OUT and task is not None and task.transfer is not None:
            self._fail_transfer(task)

    def take_segment_length(self, length):
        """The initiator declares a new MaxRecvDataSegmentLength (RFC 7143 13.12). [connection]"""
        self.values['MaxRecvDataSegmentLength'] = length
        self.outbox.take_segment_length(length)

    # -- refusing ----------------------------------------------------------------------------------------------------

    def _reject(self, fields, refusal):
        log.info('%s: rejected a PDU: %s', self.session.initiator_name, refusal.why)
        self.outbox.put_pdu(
            pdu.Reject(reason=refusal.reason, data=BHS.pack(*fields)), refusal.numbered
        )
        if refusal.fatal:
            raise ConnectionEnded(refusal.why)

    def _last_words(self, refusal):
        """Say what was wrong before the connection closes."""
        self.outbox.put_pdu(pdu.Reject(reason=refusal.reason, data=BHS.pack(*refusal.fields)))
        self.send_last_words()


def internal_failure(error):
    """What the initiator is told of a defect of ours: HARDWARE ERROR, INTERNAL TARGET FAILURE."""
    return CheckCondition(0x4, 0x44, 0x00)
