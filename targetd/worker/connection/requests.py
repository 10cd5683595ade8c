"""The PDUs that are neither commands nor data: NOP-Out, Text, Task Management, Logout, and the
target's NOP-In pings.

Everything here runs in the connection's thread unless marked [any]. May import what Connection may.
"""

import time

from targetd import log
from targetd.iscsi import const, pdu
from targetd.iscsi.errors import PduRejected
from targetd.iscsi.framing import BHS
from targetd.scsi.device import lun_of
from targetd.scsi.sense import UNIT_ATTENTION
from targetd.worker.connection.black_hole import look_for_black_hole

#: Task management functions that concern other nexuses too. The master performs them (ARCHITECTURE
#: D3).
_MASTER_FUNCTIONS = {
    const.CLEAR_TASK_SET: 'clear-task-set',
    const.LOGICAL_UNIT_RESET: 'logical-unit-reset',
    const.TARGET_WARM_RESET: 'target-warm-reset',
    const.TARGET_COLD_RESET: 'target-cold-reset',
}
_UNIT_FUNCTIONS = (
    const.ABORT_TASK_SET,
    const.CLEAR_TASK_SET,
    const.LOGICAL_UNIT_RESET,
    const.CLEAR_ACA,
    const.QUERY_TASK,
    const.QUERY_TASK_SET,
    const.QUERY_ASYNCHRONOUS_EVENT,
)

#: A text exchange that the initiator does not continue within this time is dropped.
TEXT_SECONDS = 30.0


class Requests(object):
    """Handles the requests of one connection. keepalive: (seconds of silence before a ping, number
    of unanswered pings that ends the connection)."""

    def __init__(self, connection, keepalive):
        self._connection = connection
        self._session = connection.session
        self.keepalive_seconds, self._ping_limit = keepalive
        self._text = None  # the unfinished Text exchange
        self._text_until = 0.0
        self.unanswered_pings = 0
        self._queries = {}
        if connection.values.get('iSCSIProtocolLevel', 1) >= 2:
            self._queries = {
                const.QUERY_TASK: self._query_task,
                const.QUERY_TASK_SET: self._query_task_set,
                const.I_T_NEXUS_RESET: self._reset_nexus,
                const.QUERY_ASYNCHRONOUS_EVENT: self._query_asynchronous_event,
            }
        self.by_opcode = {
            const.NOP_OUT: self._nop_out,
            const.TEXT_REQUEST: self._text_request,
            const.TASK_MANAGEMENT_REQUEST: self._task_management,
            const.LOGOUT_REQUEST: self._logout,
        }

    # -- pings --------------------------------------------------------------------------------

    def on_silence(self):
        """Nothing arrived for the keepalive interval: ping the initiator, or end the connection.

        While an answer is on its way over a slow line the initiator has nothing to say, and a ping
        would wait behind that answer. TCP_USER_TIMEOUT finds an initiator that is lost meanwhile.
        """
        self._connection.release_memory()
        if not self.unanswered_pings and self._connection.outbox.is_outstanding():
            return
        if self.unanswered_pings >= self._ping_limit > 0:
            self._connection.end('the initiator did not answer %d pings' % self.unanswered_pings)
            return
        if self._ping_limit > 0:
            self.unanswered_pings += 1
            self._connection.outbox.put_pdu(pdu.NopIn(ttt=self._session.allot_ttt()))

    def _nop_out(self, fields, ahs, data):
        request = pdu.NopOut.decode(BHS.pack(*fields))
        if not request.immediate:
            if not self._connection.is_due(fields, ahs, data):
                return
            self._refuse_reserved_tag(request)
        look_for_black_hole(self._connection)
        if request.itt == const.RESERVED_TAG:
            return  # the answer to a ping
        self._connection.worker.write_buffers.release_unused()
        longest = self._connection.values['MaxRecvDataSegmentLength']
        echo = b'' if data is None else bytes(data[:longest])
        self._connection.outbox.put_pdu(
            pdu.NopIn(itt=request.itt, lun=request.lun, data=echo), not request.immediate
        )

    @staticmethod
    def _refuse_reserved_tag(request):
        if request.itt == const.RESERVED_TAG:
            raise PduRejected(
                const.REJECT_PROTOCOL_ERROR,
                'a numbered NOP-Out without an initiator task tag',
                numbered=True,
            )

    # -- text ---------------------------------------------------------------------------------

    def _text_request(self, fields, ahs, data):
        if not self._connection.is_due(fields, ahs, data):
            return
        request = pdu.TextRequest.decode(
            BHS.pack(*fields), b'', b'' if data is None else bytes(data)
        )
        numbered = not request.immediate
        now = time.monotonic()
        if self._text is None or request.ttt == const.RESERVED_TAG or now > self._text_until:
            if request.ttt != const.RESERVED_TAG:
                raise PduRejected(
                    const.REJECT_PROTOCOL_ERROR,
                    'the continuation of a text exchange that is over',
                    numbered=numbered,
                )
            self._text_until = now + TEXT_SECONDS
            self._text = self._connection.worker.text_exchange(self._connection)
        response = self._text.receive(request)
        if response.final:
            self._text = None
        self._connection.outbox.put_pdu(response, numbered)

    # -- task management ----------------------------------------------------------------------

    def _task_management(self, fields, ahs, data):
        if not self._connection.is_due(fields, ahs, data):
            return
        request = pdu.TaskManagementRequest.decode(BHS.pack(*fields))
        self._connection.worker.captures.on_trouble('the initiator sent a task management request')
        log.info(
            '%s: %s%s',
            self._session.initiator_name,
            const.TASK_MANAGEMENT_NAMES.get(request.function, 'an unknown function'),
            ' for LUN %s' % lun_of(request.lun) if request.function in _UNIT_FUNCTIONS else '',
        )
        has_unit = lun_of(request.lun) in self._connection.device.luns
        if request.function in _UNIT_FUNCTIONS and not has_unit:
            self._respond(request, const.LUN_DOES_NOT_EXIST)
        elif request.function == const.ABORT_TASK:
            self._abort_task(request)
        elif request.function == const.ABORT_TASK_SET:
            self._widen_window(self._session.abort_held(request.lun, request.cmd_sn))
            self._abort(request, lambda task: task.lun == request.lun)
        elif request.function in _MASTER_FUNCTIONS:
            if request.function == const.TARGET_COLD_RESET:  # it ends the session
                self._connection.worker.members.close()
                self._stop_acting(list(self._connection.worker.connections))
            if request.function in _UNIT_FUNCTIONS:
                self._widen_window(self._session.abort_held(request.lun, request.cmd_sn))
            self._connection.worker.ask_reset(
                _MASTER_FUNCTIONS[request.function],
                request.lun,
                lambda answer: self._reset_done(request, answer),
            )
        elif request.function == const.TASK_REASSIGN:
            self._connection.reassign(request, lambda response: self._respond(request, response))
        elif request.function in self._queries:
            self._queries[request.function](request)
        else:
            self._respond(request, const.FUNCTION_NOT_SUPPORTED)

    # RFC 7144 6.1, if iSCSIProtocolLevel 2 was negotiated

    def _query(self, request, wanted):
        """Answer "succeeded" if a task of the unit exists for which wanted(task) is true."""
        is_there = any(
            task.lun == request.lun and wanted(task) for task in list(self._session.tasks.values())
        )
        self._respond(request, const.FUNCTION_SUCCEEDED if is_there else const.FUNCTION_COMPLETE)

    def _query_task(self, request):
        self._query(request, lambda task: task.itt == request.referenced_task_tag)

    def _query_task_set(self, request):
        self._query(request, lambda task: True)

    def _query_asynchronous_event(self, request):
        """Answer with the pending unit attention (SAM-5): UADE DEPTH (1: one is pending, 2:
        more) and sense key, ASC, ASCQ."""
        pending = self._connection.device.luns[lun_of(request.lun)].attention
        first = pending.peek()
        if first is None:
            self._respond(request, const.FUNCTION_COMPLETE)
        else:
            depth = 1 if len(pending) == 1 else 2
            self._respond(
                request,
                const.FUNCTION_SUCCEEDED,
                bytes((depth << 4 | UNIT_ATTENTION,) + tuple(first)),
            )

    def _reset_nexus(self, request):
        """I_T NEXUS RESET (SAM-5): the nexus loses its tasks, its reservation and its medium
        removal prevention; the session continues."""
        worker = self._connection.worker
        worker.tasks.abort(
            lambda task: True,
            lambda: worker.ask_reset(
                'i-t-nexus-reset', request.lun, lambda answer: self._reset_done(request, answer)
            ),
        )

    def _abort_task(self, request):
        tag = request.referenced_task_tag
        task = self._session.tasks.get(tag)
        if task is not None and task.lun == request.lun:
            self._abort(request, lambda task: task.itt == tag)
        elif self._session.abort_before_its_turn(tag, request.ref_cmd_sn, request.cmd_sn):
            self._widen_window(1)
            self._respond(request, const.FUNCTION_COMPLETE)
        else:
            self._respond(request, const.TASK_DOES_NOT_EXIST)

    def _widen_window(self, count):
        """Increase MaxCmdSN for commands that were aborted before their turn: they get no
        response."""
        for _ in range(count):
            self._connection.outbox.put_pdus((), numbered=True)

    def _abort(self, request, wanted):
        self._connection.worker.tasks.abort(
            wanted, lambda: self._respond(request, const.FUNCTION_COMPLETE)
        )

    def _reset_done(self, request, answer):
        """[any]"""
        self._respond(
            request, const.FUNCTION_COMPLETE if answer.status == 0 else const.FUNCTION_REJECTED
        )
        self._connection.drain_or_stop()
        if request.function == const.TARGET_COLD_RESET:
            for connection in list(self._connection.worker.connections):
                connection.stop('the initiator reset the target')

    def _respond(self, request, response, information=bytes(3)):
        """[any]"""
        self._connection.outbox.put_pdu(
            pdu.TaskManagementResponse(
                itt=request.itt, response=response, additional_information=information
            ),
            not request.immediate,
        )
        self._connection.drain_or_stop()

    # -- logout -------------------------------------------------------------------------------

    def _logout(self, fields, ahs, data):
        if not self._connection.is_due(fields, ahs, data):
            return
        request = pdu.LogoutRequest.decode(BHS.pack(*fields))
        if request.reason not in (
            const.CLOSE_SESSION,
            const.CLOSE_CONNECTION,
            const.REMOVE_CONNECTION_FOR_RECOVERY,
        ):
            raise PduRejected(
                const.REJECT_INVALID_PDU_FIELD,
                'logout reason %d is not known' % request.reason,
                numbered=not request.immediate,
            )
        worker = self._connection.worker
        leaving = self._leaving_connections(request)
        for_recovery = request.reason == const.REMOVE_CONNECTION_FOR_RECOVERY
        if for_recovery and self._session.values['ErrorRecoveryLevel'] != 2:
            self._answer_logout(request, const.LOGOUT_RECOVERY_NOT_SUPPORTED)
        elif not leaving:
            self._answer_logout(request, const.LOGOUT_CID_NOT_FOUND)
        elif for_recovery:
            self._stop_acting(leaving)
            self._logged_out(request, leaving)
        else:
            self._stop_acting(leaving)
            for connection in leaving:
                connection.keeps_tasks = False
            worker.tasks.abort(
                lambda task: task.connection in leaving, lambda: self._when_quiet(request, leaving)
            )

    @staticmethod
    def _stop_acting(connections):
        """These connections end. What arrives on them from now on must not be executed after the
        response: the initiator may have begun another session."""
        for connection in connections:
            connection.stop_acting()

    def _leaving_connections(self, request):
        """Return the connections that a Logout Request ends, current or lost (RFC 7143 11.14.1)."""
        worker = self._connection.worker
        if request.reason == const.CLOSE_SESSION:
            worker.members.close()
            return list(worker.connections) + list(worker.members.lost.values())
        connections = (worker.members.with_cid(request.cid), worker.members.lost.get(request.cid))
        return [
            connection
            for connection in connections
            if connection is not None and not connection.ended_quietly
        ]

    def _answer_logout(self, request, response):
        values = self._session.values
        self._connection.outbox.put_pdu(
            pdu.LogoutResponse(
                itt=request.itt,
                response=response,
                time2wait=values['DefaultTime2Wait'],
                time2retain=values['DefaultTime2Retain'],
            ),
            not request.immediate,
        )

    def _when_quiet(self, request, leaving):
        """No task of the leaving connections runs any more.

        If the session ends with them, the master first releases what the nexus held, and the
        initiator gets its answer afterwards: libiscsi's tests log out and use another session at
        once. A session that has asked the master for nothing holds nothing. [any]"""
        worker = self._connection.worker

        def answered(_message):
            worker.executor.submit(lambda _: self._logged_out(request, leaving), None)

        holds_nothing = worker.replica is None or not worker.has_asked
        if not holds_nothing and set(worker.connections) <= set(leaving):
            worker.ask_master('leave', answered)
        else:
            self._logged_out(request, leaving)

    def _logged_out(self, request, leaving):
        """The tasks of the leaving connections have ended, or they may be reassigned: answer the
        request and end the connections. [any]"""
        self._answer_logout(request, const.LOGOUT_SUCCESS)
        for connection in leaving:  # before the initiator reads the answer and closes its end
            connection.end('the initiator logged out', quietly=True)
        self._connection.send_remaining()
        worker = self._connection.worker
        for connection in leaving:
            connection.stop('the initiator logged out')
            if not connection.keeps_tasks:
                worker.members.drop_lost(connection)

    def ask_for_logout(self, seconds):
        """Send an asynchronous message that asks the initiator to log out within `seconds` (RFC 7143
        11.9.1, event 1). [any]"""
        self._connection.outbox.put_pdu(
            pdu.AsyncMessage(event=const.ASYNC_LOGOUT_REQUESTED, parameter3=seconds)
        )
        self._connection.drain_or_stop()
