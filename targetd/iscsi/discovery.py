"""SendTargets (RFC 7143 appendix C), and texts that are too long for one PDU. Pure; imports the
rest of iscsi."""

from collections import namedtuple

from targetd.iscsi import names, text
from targetd.iscsi.const import REJECT_INVALID_PDU_FIELD, REJECT_PROTOCOL_ERROR, RESERVED_TAG
from targetd.iscsi.errors import PduRejected
from targetd.iscsi.pdu import TextResponse

ALL = 'All'


class Portal(namedtuple('Portal', 'address port tag')):
    """Where a target is reached. address: numeric, IPv6 without brackets; tag: of the portal group."""

    __slots__ = ()

    def __str__(self):
        """As in TargetAddress, RFC 7143 13.8: '10.0.0.1:3260,1', '[2001:db8::1]:3260,1'."""
        return ('[%s]:%d,%d' if ':' in self.address else '%s:%d,%d') % (
            self.address,
            self.port,
            self.tag,
        )


def send_targets(value, targets, own_name=None):
    """The pairs that answer SendTargets=value. targets: [(name, [Portal, …])], all that this
    initiator may see, at addresses that it can reach; own_name: of the target that the session is
    with, None in a discovery session. Raises PduRejected.

    'All' is for discovery sessions, the empty value for normal ones, a name for both (RFC 7143
    appendix C); a name that the initiator may not see is answered as one that does not exist, with
    nothing.
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
    """The text of an answer on its way out over as many Text Responses as it takes (RFC 7143
    11.11).

    data: the whole text; maximum: the initiator's MaxRecvDataSegmentLength; ttt: a Target Transfer
    Tag that nothing else uses, which the initiator repeats to get the next piece.
    """

    __slots__ = ('ttt', '_pieces')

    def __init__(self, data, maximum, ttt):
        self.ttt = ttt
        self._pieces = text.split_text(data, maximum)

    @property
    def is_finished(self):
        """True when the last piece was given out."""
        return not self._pieces

    def next_response(self, request):
        """The next TextResponse, numbers not stamped. request: the TextRequest that asks for it:
        the first one, or one that is empty and repeats `ttt`."""
        piece = self._pieces.pop(0)
        return TextResponse(
            itt=request.itt,
            lun=request.lun,
            final=self.is_finished,
            continues=not self.is_finished,
            ttt=RESERVED_TAG if self.is_finished else self.ttt,
            data=piece,
        )

    def continue_answer(self, request):
        """respond() to a request that should be a continuation. Raises PduRejected when it is none."""
        if self.is_finished or request.ttt != self.ttt or request.data:
            raise PduRejected(
                REJECT_INVALID_PDU_FIELD, 'a Text Request that continues no answer of ours'
            )
        return self.next_response(request)
