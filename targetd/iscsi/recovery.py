"""Recovery within a command (RFC 7143 7.2, 7.9, 11.16): lost Data-Out is requested again, and sent
replies are kept for a SNACK. Pure.

Used only on connections with ErrorRecoveryLevel 1 or 2. TCP does not lose data, so a missing PDU was
discarded because of its data digest: its header is known, and so is the end of each sequence.
"""

import struct
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from targetd.iscsi import const, pdu
from targetd.iscsi.errors import UNEXPECTED_DATA, DataRefused
from targetd.iscsi.transfer import NO_TAG, BytesLike, Limits, R2t, Transfer

_U32 = struct.Struct('>I')

#: (header of 48 bytes, data or None)
SentPdu = Tuple[bytes, Optional[BytesLike]]


class RecoveringTransfer(Transfer):
    """A Transfer that requests lost data again: the rest of a sequence from the first PDU that was
    lost."""

    __slots__ = ('_broken', '_to_request_again', '_r2ts')

    def __init__(
        self, itt: int, wanted: int, edtl: int, limits: Limits, buffer: Optional[memoryview] = None
    ) -> None:
        super(RecoveringTransfer, self).__init__(itt, wanted, edtl, limits, buffer)
        self._broken: Set[int] = set()  # TTTs of sequences in which a PDU was lost
        self._to_request_again: List[
            Tuple[Optional[int], int, int]
        ] = []  # (r2t_sn or None, offset, end) of data to request again
        self._r2ts: Dict[int, R2t] = {}  # TTT -> (ttt, r2t_sn, offset, length)

    @property
    def is_complete(self) -> bool:
        """Like Transfer.is_complete."""
        return not self._to_request_again and super(RecoveringTransfer, self).is_complete

    def receive_data_out(
        self, ttt: int, offset: int, data_sn: int, data: Optional[BytesLike], final: bool
    ) -> None:
        """Like Transfer.receive_data_out, but a gap is not an error: the missing data is requested
        again at the end of the sequence."""
        sequence = self._unsolicited if ttt == NO_TAG else self._outstanding.get(ttt)
        if sequence is not None and (ttt in self._broken or data_sn > sequence.next_data_sn):
            self.data_out_lost(ttt, final)
        else:
            super(RecoveringTransfer, self).receive_data_out(ttt, offset, data_sn, data, final)

    def data_out_lost(self, ttt: int, final: bool) -> None:
        """Note that a PDU of this sequence was discarded; final: its F bit. Raises DataRefused if
        the TTT is not outstanding."""
        sequence = self._unsolicited if ttt == NO_TAG else self._outstanding.get(ttt)
        if sequence is None:
            raise DataRefused(
                UNEXPECTED_DATA, 'Data-Out with a target transfer tag that is not outstanding'
            )
        self._broken.add(ttt)
        if not final:
            return
        self._broken.discard(ttt)
        if ttt == NO_TAG:
            self._end_unsolicited()
        else:
            del self._outstanding[ttt]
            self._to_request_again.append((None, sequence.next_offset, sequence.end))

    def next_r2ts(self, allot_ttt: Callable[[], int]) -> List[R2t]:
        """Like Transfer.next_r2ts; R2Ts for lost data come first."""
        out = []
        while self._to_request_again and len(self._outstanding) < self._limits.max_outstanding_r2t:
            r2t_sn, offset, end = self._to_request_again.pop(0)
            if r2t_sn is None:
                r2t_sn, self._r2t_sn = self._r2t_sn, self._r2t_sn + 1
            ttt = allot_ttt()
            self._add_outstanding(ttt, offset, end)
            out.append((ttt, r2t_sn, offset, end - offset))
        out.extend(super(RecoveringTransfer, self).next_r2ts(allot_ttt))
        self._r2ts.update((r2t[0], r2t) for r2t in out)
        return out

    def outstanding(self, first: int, count: int) -> List[R2t]:
        """Return the unanswered R2Ts, as next_r2ts returned them, with the R2TSNs from `first` on;
        `count` of them, or all if count is 0."""
        found = [
            self._r2ts[ttt]
            for ttt in self._outstanding
            if first <= self._r2ts[ttt][1] and (not count or self._r2ts[ttt][1] < first + count)
        ]
        return sorted(found, key=lambda r2t: r2t[1])

    def reassign(self) -> None:
        """Continue the transfer on another connection: the outstanding data is requested again, with
        the same R2TSNs."""
        if self._unsolicited is not None:
            self._end_unsolicited()
        outstanding = [
            (self._r2ts[ttt][1], sequence.next_offset, sequence.end)
            for ttt, sequence in self._outstanding.items()
        ]
        self._to_request_again = sorted(outstanding) + self._to_request_again
        self._outstanding.clear()
        self._broken.clear()


class SentReply(object):
    """The PDUs that answered one request and that the initiator has not acknowledged.

    pdus: [(header, data or None)], the one with StatSN last; acknowledged: the first DataSN that the
    initiator has not acknowledged; tags: target transfer tags of the DataACKs that were requested.
    """

    __slots__ = ('itt', 'stat_sn', 'pdus', 'acknowledged', 'tags')

    def __init__(self, itt: int, stat_sn: int, pdus: List[SentPdu]) -> None:
        self.itt = itt
        self.stat_sn = stat_sn
        self.pdus = pdus
        self.acknowledged = 0
        self.tags: Set[int] = set()

    @property
    def size(self) -> int:
        """Number of data bytes that are kept."""
        return sum(len(data) for _, data in self.pdus if data)

    @property
    def is_scsi_reply(self) -> bool:
        """True if this is the reply to a SCSI command."""
        return self.pdus[-1][0][0] in (const.SCSI_RESPONSE, const.DATA_IN)

    def data_in_pdus(self, first: int, count: int) -> List[SentPdu]:
        """Return the Data-In PDUs with the DataSNs from `first` on; `count` of them, or all if count
        is 0. Returns [] unless all of them can be sent again."""
        have = [
            (_U32.unpack_from(header, 36)[0], header, data)
            for header, data in self.pdus
            if header[0] == const.DATA_IN
        ]
        found = [
            (header, data)
            for data_sn, header, data in have
            if max(first, self.acknowledged) <= data_sn and (not count or data_sn < first + count)
        ]
        return found if len(found) == count or not count and first >= self.acknowledged else []

    def acknowledge_data(self, data_sn: int) -> None:
        """Release the Data-In PDUs before this DataSN, which have arrived."""
        self.acknowledged = max(self.acknowledged, data_sn)
        self.pdus = [
            (header, data)
            for header, data in self.pdus[:-1]
            if _U32.unpack_from(header, 36)[0] >= self.acknowledged
        ] + self.pdus[-1:]

    def resegmented(self, first: int, segment: int, burst: int, snack_tag: int) -> List[Any]:
        """Return PDUs that carry the data from DataSN `first` on again in segments of another size,
        and the status (RFC 7143 11.16.4, 7.2.1). Their StatSN is not set. segment, burst: bytes."""
        kept = [(header, data) for header, data in self.pdus if header[0] == const.DATA_IN]
        kept = [(header, data) for header, data in kept if _U32.unpack_from(header, 36)[0] >= first]
        out = []
        if kept:
            start = _U32.unpack_from(kept[0][0], 40)[0]
            out = _segmented(
                self.itt,
                b''.join(bytes(data or b'') for _, data in kept),
                start,
                first,
                segment,
                burst,
            )
        header, data = self.pdus[-1]
        if header[0] == const.SCSI_RESPONSE:
            status = pdu.ScsiResponse.decode(header, b'', data)
        else:
            last = pdu.DataIn.decode(header)
            status = pdu.ScsiResponse(
                itt=self.itt, status=last.status, residual_count=last.residual_count
            )
            status.overflow, status.underflow = last.overflow, last.underflow
        status.snack_tag, status.exp_data_sn = snack_tag, first + len(out)
        return out + [status]


def _segmented(itt, data, start, data_sn, segment, burst):
    """Return Data-In PDUs of `data`, whose first byte is at offset `start`. The F bit is set where a
    burst ends."""
    out: List[pdu.DataIn] = []
    offset = 0
    while offset < len(data):
        size = min(segment, burst - offset % burst, len(data) - offset)
        piece = pdu.DataIn(
            itt=itt,
            data_sn=data_sn + len(out),
            buffer_offset=start + offset,
            data=data[offset : offset + size],
        )
        offset += size
        piece.final = offset % burst == 0 or offset == len(data)
        out.append(piece)
    return out
