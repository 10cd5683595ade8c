"""Recovery within a command (RFC 7143 7.2, 7.9, 11.16): Data-Out that is asked for again, replies
kept for a SNACK. Pure.

Used on connections with ErrorRecoveryLevel 1 or 2 only. TCP loses nothing, so what is missing was
discarded for its data digest: its header is known, and so is the end of each sequence.
"""

import struct

from targetd.iscsi import const, pdu
from targetd.iscsi.errors import PduRejected
from targetd.iscsi.transfer import NO_TAG, Transfer

_U32 = struct.Struct('>I')


class RecoveringTransfer(Transfer):
    """A Transfer that asks again for what did not come whole: the rest of a sequence from the first
    PDU that was lost."""

    __slots__ = ('_broken', '_again', '_r2ts')

    def __init__(self, itt, wanted, edtl, limits, buffer=None):
        super(RecoveringTransfer, self).__init__(itt, wanted, edtl, limits, buffer)
        self._broken = set()  # TTTs of sequences whose rest is dropped
        self._again = []  # (r2t_sn or None, offset, end) still to be asked for again
        self._r2ts = {}  # TTT -> (ttt, r2t_sn, offset, length)

    @property
    def is_complete(self):
        """As Transfer.is_complete."""
        return not self._again and super(RecoveringTransfer, self).is_complete

    def receive_data_out(self, ttt, offset, data_sn, data, final):
        """As Transfer.receive, but a gap is no error: what is missing is asked for again at the end
        of the sequence."""
        sequence = self._unsolicited if ttt == NO_TAG else self._outstanding.get(ttt)
        if sequence is not None and (ttt in self._broken or data_sn > sequence.next_data_sn):
            self.data_out_lost(ttt, final)
        else:
            super(RecoveringTransfer, self).receive_data_out(ttt, offset, data_sn, data, final)

    def data_out_lost(self, ttt, final):
        """A PDU of this sequence was discarded; final: its F bit. Raises PduRejected for a TTT that
        is not outstanding."""
        sequence = self._unsolicited if ttt == NO_TAG else self._outstanding.get(ttt)
        if sequence is None:
            raise PduRejected(
                const.REJECT_PROTOCOL_ERROR,
                'Data-Out with a target transfer tag that is not outstanding',
            )
        self._broken.add(ttt)
        if not final:
            return
        self._broken.discard(ttt)
        if ttt == NO_TAG:
            self._end_unsolicited()
        else:
            del self._outstanding[ttt]
            self._again.append((None, sequence.next_offset, sequence.end))

    def next_r2ts(self, allot_ttt):
        """As Transfer.next_r2ts; what is asked for again comes first."""
        out = []
        while self._again and len(self._outstanding) < self._limits.max_outstanding_r2t:
            r2t_sn, offset, end = self._again.pop(0)
            if r2t_sn is None:
                r2t_sn, self._r2t_sn = self._r2t_sn, self._r2t_sn + 1
            ttt = allot_ttt()
            self._add_outstanding(ttt, offset, end)
            out.append((ttt, r2t_sn, offset, end - offset))
        out.extend(super(RecoveringTransfer, self).next_r2ts(allot_ttt))
        self._r2ts.update((r2t[0], r2t) for r2t in out)
        return out

    def outstanding(self, first, count):
        """The R2Ts, as solicit gave them, with these R2TSNs (count 0: from `first` on) that are not
        answered yet."""
        found = [
            self._r2ts[ttt]
            for ttt in self._outstanding
            if first <= self._r2ts[ttt][1] and (not count or self._r2ts[ttt][1] < first + count)
        ]
        return sorted(found, key=lambda r2t: r2t[1])

    def reassign(self):
        """The task goes on on another connection: whatever was on its way is asked for again, under
        its old R2TSN."""
        if self._unsolicited is not None:
            self._end_unsolicited()
        waiting = [
            (self._r2ts[ttt][1], sequence.next_offset, sequence.end)
            for ttt, sequence in self._outstanding.items()
        ]
        self._again = sorted(waiting) + self._again
        self._outstanding.clear()
        self._broken.clear()


class SentReply(object):
    """What was sent to answer one PDU and is not acknowledged. pdus: [(header, data or None)], the
    one with StatSN last; acknowledged: the first DataSN that the initiator did not acknowledge;
    tag: of the DataACK that was asked for, or None."""

    __slots__ = ('itt', 'stat_sn', 'pdus', 'acknowledged', 'tags')

    def __init__(self, itt, stat_sn, pdus):
        self.itt = itt
        self.stat_sn = stat_sn
        self.pdus = pdus
        self.acknowledged = 0
        self.tags = set()

    @property
    def size(self):
        """Bytes of data that are kept."""
        return sum(len(data) for _, data in self.pdus if data)

    @property
    def is_scsi_reply(self):
        """Is it the reply to a SCSI command?"""
        return self.pdus[-1][0][0] in (const.SCSI_RESPONSE, const.DATA_IN)

    def data_in_pdus(self, first, count):
        """The Data-In PDUs with these DataSNs (count 0: from `first` on); [] unless all of them can
        be sent again."""
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

    def acknowledge_data(self, data_sn):
        """Data-In before this DataSN has arrived and is let go of."""
        self.acknowledged = max(self.acknowledged, data_sn)
        self.pdus = [
            (header, data)
            for header, data in self.pdus[:-1]
            if _U32.unpack_from(header, 36)[0] >= self.acknowledged
        ] + self.pdus[-1:]

    def resegmented(self, first, segment, burst, snack_tag):
        """PDUs that give the data from DataSN `first` on once more, in other segments, and the status (RFC 7143 11.16.4,
        7.2.1). Their StatSN is not set."""
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
    """Data-In PDUs of `data`, whose first byte is at offset `start`; F where a burst ends."""
    out = []
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
