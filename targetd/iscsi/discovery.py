"""SendTargets (RFC 7143 appendix C), and answers that are too long for one PDU. Pure; imports the rest
of iscsi."""

from collections import namedtuple
from typing import Iterable, List, Optional, Sequence, Tuple

from targetd.iscsi import names, text
from targetd.iscsi.const import REJECT_INVALID_PDU_FIELD, REJECT_PROTOCOL_ERROR, RESERVED_TAG
from targetd.iscsi.errors import PduRejected
from targetd.iscsi.pdu import TextRequest, TextResponse

ALL = 'All'


class Portal(namedtuple('Portal', 'address port tag')):
    """A portal through which a target is reached. address: numeric, IPv6 without brackets; tag: of
    the portal group."""

    __slots__ = ()

    def __str__(self) -> str:
        """Return the value of TargetAddress, RFC 7143 13.8: '10.0.0.1:3260,1', '[2001:db8::1]:3260,1'."""
        return ('[%s]:%d,%d' if ':' in self.address else '%s:%d,%d') % (
            self.address,
            self.port,
            self.tag,
        )


def send_targets(
    value: str, targets: Iterable[Tuple[str, Sequence[Portal]]], own_name: Optional[str] = None
) -> List[Tuple[str, str]]:
    """Return the pairs that answer SendTargets=value. targets: [(name, [Portal, …])] of all targets
    that this initiator may see, with the portals that it can reach; own_name: the target of the
    session, None in a discovery session. Raises PduRejected.

    'All' is allowed in discovery sessions, the empty value in normal sessions, a name in both (RFC
    7143 appendix C). The answer for a target that the initiator may not see is empty, like the answer
    for a target that does not exist.
    """
    if value == ALL and own_name is not None:
        raise PduRejected(REJECT_PROTOCOL_ERROR, 'SendTargets=All outside a discovery session')
    if value == '' and own_name is None:
        raise PduRejected(REJECT_PROTOCOL_ERROR, 'an empty SendTargets in a discovery session')
    wanted = own_name if value == '' else names.fold(value)
    pairs = []
    for name, portals in targets:
        if value == ALL or names.fold(name) == wanted and own_name in (None, name):
            pairs.append(('TargetName', name))
            pairs.extend(('TargetAddress', str(portal)) for portal in portals)
    return pairs


class TextAnswer(object):
    """The text of an answer, which is sent in as many Text Responses as necessary (RFC 7143 11.11).

    data: the whole text; maximum: the initiator's MaxRecvDataSegmentLength, bytes; ttt: an unused
    Target Transfer Tag, which the initiator repeats to request the next piece.
    """

    __slots__ = ('ttt', '_pieces')

    def __init__(self, data: bytes, maximum: int, ttt: int) -> None:
        self.ttt = ttt
        self._pieces = text.split_text(data, maximum)

    @property
    def is_finished(self) -> bool:
        """True when the last piece was returned."""
        return not self._pieces

    def next_response(self, request: TextRequest) -> TextResponse:
        """Return the next TextResponse, without sequence numbers. request: the TextRequest that
        it answers: the first one, or an empty one that repeats `ttt`. Only a request with the F bit
        gets a response with the F bit (RFC 7143 11.11.1)."""
        piece = self._pieces.pop(0)
        is_final = self.is_finished and request.final
        return TextResponse(
            itt=request.itt,
            lun=request.lun,
            final=is_final,
            continues=not self.is_finished,
            ttt=RESERVED_TAG if is_final else self.ttt,
            data=piece,
        )

    def continue_answer(self, request: TextRequest) -> TextResponse:
        """Return next_response() to a continuation request. Raises PduRejected if the request does
        not continue this answer."""
        if self.is_finished or request.ttt != self.ttt or request.data:
            raise PduRejected(
                REJECT_INVALID_PDU_FIELD, 'the Text Request does not continue the pending answer'
            )
        return self.next_response(request)
