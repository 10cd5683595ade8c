"""Text Requests in full feature phase (RFC 7143 11.10): SendTargets, and the few keys that may be
negotiated then.

May import iscsi. Runs in the connection's thread.
"""

from targetd.iscsi import const, discovery, keys, text
from targetd.iscsi.errors import PduRejected
from targetd.iscsi.pdu import TextResponse


class TextExchange(object):
    """One exchange, from its first Text Request to its last Text Response. policies:
    worker.policy.Policies; connection: has session, values, peer_address, local_address and
    evidence."""

    def __init__(self, policies, connection):
        self._policies = policies
        self._connection = connection
        self._collector = text.TextCollector()
        self._answer = None
        self._ttt = connection.session.allot_ttt()

    def receive(self, request):
        """Return the TextResponse to a TextRequest. Raises PduRejected.

        After an answer to a request without the F bit, the exchange goes on with the next text."""
        if self._answer is not None and not self._answer.is_finished:
            return self._answer.continue_answer(request)
        if request.ttt not in (const.RESERVED_TAG, self._ttt):
            raise PduRejected(
                const.REJECT_PROTOCOL_ERROR,
                'the Text Request has another target transfer tag than its exchange',
                numbered=not request.immediate,
            )
        try:
            whole = self._collector.add_piece(request.data, request.continues)
            if whole is None:
                return TextResponse(itt=request.itt, lun=request.lun, final=False, ttt=self._ttt)
            pairs = self._answers(text.parse_text(whole))
        except text.TextError as e:
            raise PduRejected(const.REJECT_PROTOCOL_ERROR, str(e), numbered=not request.immediate)
        self._answer = discovery.TextAnswer(
            text.render_text(pairs), self._connection.values['MaxRecvDataSegmentLength'], self._ttt
        )
        return self._answer.next_response(request)

    def _answers(self, offers):
        session, connection = self._connection.session, self._connection
        negotiated = keys.negotiate_keys(
            offers,
            stage=keys.FULL_FEATURE,
            session_type=keys.DISCOVERY if session.is_discovery else keys.NORMAL,
        )
        if 'MaxRecvDataSegmentLength' in negotiated.values:
            connection.take_segment_length(negotiated.values['MaxRecvDataSegmentLength'])
        answers = list(negotiated.answers)
        if 'SendTargets' in negotiated.values:
            visible = self._policies.visible(
                session.initiator_name,
                connection.peer_address,
                connection.local_address,
                connection.evidence,
            )
            answers.extend(
                discovery.send_targets(
                    negotiated.values['SendTargets'], visible, session.target_name
                )
            )
        return answers
