"""Connections with ErrorRecoveryLevel 1 or 2 (RFC 7143 7): SNACK, recovery R2T, reassignment of
tasks.

May import what Connection may. Sent PDUs are kept until ExpStatSN or a DataACK acknowledges them.
Sessions with level 0 do not use this module (connection_class() chooses once per connection) and
pay nothing for it.
"""

import struct
import threading
from collections import deque

from targetd import log
from targetd.crc32c import crc32c
from targetd.iscsi import const, pdu
from targetd.iscsi.errors import PduRejected
from targetd.iscsi.framing import BHS
from targetd.iscsi.recovery import RecoveringTransfer, SentReply
from targetd.worker.connection.multi_connection import SharedConnection
from targetd.worker.connection.outbox import Outbox
from targetd.worker.connection.paced import PaceableConnection
from targetd.worker.connection.shared_outbox import SharedOutbox

_U32 = struct.Struct('>I')
_MASK = 0xFFFFFFFF

#: Sent replies that are kept until they are acknowledged. Beyond these limits the oldest ones are
#: dropped, and a SNACK for them is rejected.
KEPT_BYTES = 64 << 20
KEPT_REPLIES = 4096
#: Target transfer tags of replies that are no longer kept, for which a late DataACK is accepted.
ENDED_TAGS = 1024


def connection_class(values):
    """Return the class of a connection whose session negotiated these values."""
    if values.get('ErrorRecoveryLevel'):
        return RecoveringConnection
    return PaceableConnection if values.get('MaxConnections', 1) == 1 else SharedConnection


class _Resend(object):
    """An entry of the queue: PDUs that were sent before, [(header, data)]."""

    __slots__ = ('pdus',)

    def __init__(self, pdus):
        self.pdus = pdus

    def __getitem__(self, index):  # as (None, ()) for Outbox._queued_bytes
        return None if index == 0 else ()


def _itt_of_reply(pdus):
    """The initiator task tag of queued PDU objects that answer a SCSI command, or None."""
    is_reply = pdus and pdus[-1].opcode in (const.DATA_IN, const.SCSI_RESPONSE)
    return pdus[-1].itt if is_reply else None


class RecoveringOutbox(SharedOutbox):
    """Send queue that keeps the sent replies until the initiator acknowledges them."""

    __slots__ = ('_kept', '_keeping', '_bytes', '_ended_tags', 'luns')
    # half: data that was read and not yet sent is kept too when the connection is lost
    budget_bytes = KEPT_BYTES // 2

    def __init__(self, *arguments):
        super(RecoveringOutbox, self).__init__(*arguments)
        self._kept = {}  # StatSN -> SentReply, in the order of sending
        self._keeping = threading.Lock()
        self._bytes = 0
        self._ended_tags = deque(maxlen=ENDED_TAGS)
        self.luns = {}  # ITT -> LUN field of unfinished reads

    def _stamp(self):
        with self._numbering:
            return self._stamp_with_digests()

    def _headers(self, entry):
        if entry.__class__ is _Resend:
            return [(self._renewed(header), data) for header, data in entry.pdus]
        whole = list(Outbox._headers(self, entry))
        if whole:
            self._keep(whole)
        return whole

    def _renewed(self, header):
        """Return the header with the current ExpCmdSN and MaxCmdSN (RFC 7143 11.16)."""
        header = bytearray(header)
        _U32.pack_into(header, 28, self._session.exp_cmd_sn)
        _U32.pack_into(header, 32, self._session.max_cmd_sn)
        return bytes(header)

    def _keep(self, whole):
        header = whole[-1][0]
        is_ping = header[0] == const.NOP_IN and header[20:24] != b'\xff' * 4
        if header[0] == const.READY_TO_TRANSFER or is_ping:
            return  # these PDUs use no StatSN
        itt, stat_sn = _U32.unpack_from(header, 16)[0], _U32.unpack_from(header, 24)[0]
        reply = SentReply(itt, stat_sn, whole)
        if len(whole) > 1:
            self._request_data_ack(reply)
        with self._keeping:
            self._kept[stat_sn] = reply
            self._bytes += reply.size
            while self._bytes > KEPT_BYTES or len(self._kept) > KEPT_REPLIES:
                self._forget(next(iter(self._kept)))

    def _request_data_ack(self, reply):
        """Set the A bit, a tag and the LUN in the last Data-In of each burst, except the PDU with
        the status (RFC 7143 11.7.2)."""
        lun = self.luns.pop(reply.itt, None)
        if lun is None:
            return
        for index, (header, data) in enumerate(reply.pdus):
            if header[0] == const.DATA_IN and header[1] & 0x81 == 0x80:
                tag = self._session.allot_ttt()
                reply.tags.add(tag)
                header = bytearray(header)
                header[1] |= const.ACKNOWLEDGE
                header[8:16] = lun.to_bytes(8, 'big')
                _U32.pack_into(header, 20, tag)
                reply.pdus[index] = bytes(header), data

    def _forget(self, stat_sn):
        reply = self._kept.pop(stat_sn)
        self._bytes -= reply.size
        self._ended_tags.extend(reply.tags)

    def acknowledge(self, exp_stat_sn):
        """Drop the replies before this StatSN: the initiator has received them. [connection]"""
        if self.stat_sn - exp_stat_sn & _MASK >= 0x80000000:
            return  # the initiator acknowledges more than was sent
        with self._keeping:
            while self._kept:
                stat_sn = next(iter(self._kept))
                if not 0 < exp_stat_sn - stat_sn & _MASK < 0x80000000:
                    return
                self._forget(stat_sn)

    def kept(self, first=None, count=0):
        """Return `count` Replies from StatSN `first` on; count 0: all from there; first None: all."""
        with self._keeping:
            replies = list(self._kept.values())
        if first is None:
            return replies
        return [reply for reply in replies if reply.stat_sn - first & _MASK < (count or 0x80000000)]

    def reply_to(self, itt):
        """Return the newest kept SentReply with this initiator task tag, or None."""
        return next(
            (reply for reply in reversed(self.kept()) if reply.itt == itt and reply.is_scsi_reply),
            None,
        )

    def holds_reply_to(self, itt):
        """Return True if a reply to this task waits in the queue, or was sent and is kept. [any]"""
        with self._numbering:  # entries go from the queue to what is kept while it is held
            return self.reply_to(itt) is not None or any(
                itt == (entry[0] if entry[0] is not None else _itt_of_reply(entry[1]))
                for entry in list(self.queue)
            )

    def drop(self, reply):
        """Drop the reply: another connection sends it now."""
        with self._keeping:
            if reply.stat_sn in self._kept:
                self._forget(reply.stat_sn)

    def acknowledge_data(self, tag, data_sn):
        """A DataACK; returns False if its tag is not known. The tag of a reply that ExpStatSN has
        acknowledged meanwhile is known: the DataACK has no effect then."""
        for reply in self.kept():
            if tag in reply.tags:
                with self._keeping:
                    self._bytes -= reply.size
                    reply.acknowledge_data(data_sn)
                    self._bytes += reply.size if reply.stat_sn in self._kept else 0
                return True
        return tag in self._ended_tags

    def send_again(self, pdus):
        """Queue PDUs that were sent before."""
        self.queue.append(_Resend(pdus))

    def segments_of(self, reply, first, snack_tag):
        """Return the PDUs of the reply in segments of the current MaxRecvDataSegmentLength."""
        return reply.resegmented(first, self._segment, self._burst, snack_tag)


class RecoveringConnection(SharedConnection):
    """A connection with ErrorRecoveryLevel 1 or 2."""

    transfer_class = RecoveringTransfer

    def __init__(self, *arguments, **more):
        super(RecoveringConnection, self).__init__(*arguments, **more)
        self.keeps_tasks = self.values['ErrorRecoveryLevel'] == 2 and not self.session.is_discovery
        self._handlers[const.SNACK_REQUEST] = self._snack
        # StatSN from which replies have the segment length that is declared now
        self._changed_segments_at = None
        self._snacks = {
            const.SNACK_DATA_OR_R2T: self._snack_data,
            const.SNACK_STATUS: self._snack_status,
            const.SNACK_DATA_ACK: self._data_ack,
            const.SNACK_R_DATA: self._snack_r_data,
        }

    def make_outbox(self, stat_sn):
        return self.with_callbacks(
            RecoveringOutbox(
                self.socket, self.session, stat_sn, crc32c, self.values, self.worker.numbering
            )
        )

    def _dispatch(self, pdus, then_held=True):
        # One at a time: the ExpStatSN of a later PDU says nothing about what an earlier one needs.
        for one in pdus:
            self.outbox.acknowledge(one[0][8])
            super(RecoveringConnection, self)._dispatch((one,), then_held)

    def _command(self, fields, ahs, data):
        if fields[6] > self.values['MaxBurstLength'] and fields[1] & const.COMMAND_READ:
            luns = self.outbox.luns
            luns[fields[5]] = fields[4]
            while len(luns) > 1024:
                luns.pop(next(iter(luns)), None)
        super(RecoveringConnection, self)._command(fields, ahs, data)

    def take_segment_length(self, length):
        super(RecoveringConnection, self).take_segment_length(length)
        self._changed_segments_at = self.outbox.stat_sn

    # -- SNACK, RFC 7143 11.16 ----------------------------------------------------------------

    def _snack(self, fields, ahs, data):
        request = pdu.SnackRequest.decode(BHS.pack(*fields))
        serve = self._snacks.get(request.kind)
        if serve is None or not serve(request):
            raise PduRejected(
                const.REJECT_PROTOCOL_ERROR,
                'a SNACK for PDUs that were not sent or are acknowledged',
            )

    def _snack_status(self, request):
        everything = not request.beg_run and not request.run_length
        replies = self.outbox.kept(None if everything else request.beg_run, request.run_length)
        if len(replies) < request.run_length:
            return False
        self.outbox.send_again([reply.pdus[-1] for reply in replies])
        return True

    def _snack_data(self, request):
        task = self.session.tasks.get(request.itt)
        if self._waits_for_data(task):
            return self._snack_r2t(request, task)
        reply = self.outbox.reply_to(request.itt)
        found = reply.data_in_pdus(request.beg_run, request.run_length) if reply is not None else []
        if found and self._is_from_before_the_change(reply):
            raise PduRejected(
                const.REJECT_SNACK, 'a Data SNACK after MaxRecvDataSegmentLength was changed'
            )
        self.outbox.send_again(found)
        return bool(found)

    def _waits_for_data(self, task):
        """Return True if the task is one of this connection and waits for Data-Out."""
        return (
            task is not None
            and task.connection is self
            and task.transfer.__class__ is RecoveringTransfer
        )

    def _is_from_before_the_change(self, reply):
        """Return True if the reply was sent before the initiator changed the segment length."""
        changed_at = self._changed_segments_at
        return changed_at is not None and 0 < changed_at - reply.stat_sn & _MASK < 0x80000000

    def _snack_r2t(self, request, task):
        r2ts = task.transfer.outstanding(request.beg_run, request.run_length)
        if r2ts:
            self.data_out.solicit(task.transfer, task, r2ts)
        return bool(r2ts)

    def _data_ack(self, request):
        if not self.outbox.acknowledge_data(request.ttt, request.beg_run):
            raise PduRejected(const.REJECT_INVALID_DATA_ACK, 'a DataACK that was not requested')
        return True

    def _snack_r_data(self, request):
        """Send the data again in other segments, then a response that carries the SNACK tag."""
        reply = self.outbox.reply_to(request.itt)
        if reply is None or request.beg_run < reply.acknowledged:
            return False
        pdus = self.outbox.segments_of(reply, max(request.beg_run, reply.acknowledged), request.ttt)
        pdus[-1].stat_sn = reply.stat_sn
        reply.pdus = [(one.encode(), one.data) for one in pdus]
        self.outbox.send_again(reply.pdus)
        return True

    # -- digests ------------------------------------------------------------------------------

    def _digest_error(self, fields):
        """Reject the PDU, and solicit Data-Out again (RFC 7143 7.8). Any other PDU counts as not
        received: the initiator sends it again."""
        self.reject_pdu(
            fields, PduRejected(const.REJECT_DATA_DIGEST_ERROR, 'a data digest is wrong')
        )
        task = self.session.tasks.get(fields[5])
        if fields[0] & 0x3F == const.DATA_OUT and self._waits_for_data(task):
            try:
                task.transfer.data_out_lost(fields[6], fields[1] & 0x80)
            except PduRejected as e:
                log.info('%s: %s', self.session.initiator_name, e.why)
                return
            if fields[1] & 0x80:
                self.data_out.solicit(task.transfer, task)

    # -- allegiance, RFC 7143 7.2 -------------------------------------------------------------

    def complete(self, task, outcome):
        with self.worker.allegiance:
            connection = task.connection
            is_answered = connection.finish(task, outcome)
        if is_answered:
            connection.drain_or_stop()

    def reassign(self, request, respond):
        """TASK REASSIGN: take the task over from a connection that has ended; calls
        respond(response). [connection]"""
        if self.values['ErrorRecoveryLevel'] < 2:
            respond(const.REASSIGNMENT_NOT_SUPPORTED)
            return
        tag = request.referenced_task_tag
        with self.worker.allegiance:
            task = self.session.tasks.get(tag)
            if task is not None and task.lun == request.lun:
                self._take_task(task, respond)
            else:
                self._take_reply(request, tag, respond)

    def _take_task(self, task, respond):
        if task.connection is self or task.connection.ended is None:
            respond(const.TASK_STILL_ALLEGIANT)
            return
        was_postponed = task.connection.outbox.withdraw_postponed(task)
        task.connection = self
        respond(const.FUNCTION_COMPLETE)
        if was_postponed:
            self.worker.executor.submit(self.run_in_executor, task, task.unit)
        elif task.transfer.__class__ is RecoveringTransfer:
            task.transfer.reassign()
            if task.transfer.is_complete:
                self.data_out.run_complete(task)
            else:
                self.data_out.solicit(task.transfer, task)

    def _take_reply(self, request, tag, respond):
        """The task has ended and its reply did not arrive: send the reply here."""
        # the living ones first: one that ends meanwhile is then seen twice, and not missed
        for connection in list(self.worker.connections) + list(self.worker.members.lost.values()):
            if connection.ended is None:
                if connection.outbox.holds_reply_to(tag):
                    respond(const.TASK_STILL_ALLEGIANT)
                    return
                continue
            connection.send_remaining()  # queued replies get their StatSN and are kept
            reply = connection.outbox.reply_to(tag)
            if reply is not None:
                connection.outbox.drop(reply)
                respond(const.FUNCTION_COMPLETE)
                first = max(request.exp_data_sn, reply.acknowledged)
                self.outbox.put_pdus(self.outbox.segments_of(reply, first, 0))
                return
        respond(const.TASK_DOES_NOT_EXIST)
