"""The Data-Out of one command (RFC 7143 11.7, 11.8, 4.2.5.2): immediate, unsolicited, and asked for
by R2T. Pure.

    transfer = Transfer(task.itt, wanted, edtl, limits); transfer.receive_immediate(data, final)
    while not transfer.is_complete: for r2t in transfer.next_r2ts(allot_ttt): send it …
    on Data-Out: view = transfer.place_data_out(…) (where the data may land), then transfer.receive_data_out(…) when it is whole

Invariants
 1. The buffer is as long as the CDB and EDTL both allow, never longer; what an initiator sends beyond it is not kept.
 2. Data is taken in order (DataPDUInOrder and DataSequenceInOrder are Yes): a DataSN or offset that is not due is refused.
 3. At most MaxOutstandingR2T R2Ts are unanswered, each of at most MaxBurstLength, none before the unsolicited data ended.
"""

from collections import namedtuple

from targetd.iscsi import const
from targetd.iscsi.errors import PduRejected

NO_TAG = 0xFFFFFFFF


class Limits(
    namedtuple('Limits', 'initial_r2t immediate_data first_burst max_burst max_outstanding_r2t')
):
    """What the login negotiated: two bools, bytes, bytes, a count."""

    __slots__ = ()

    @property
    def max_immediate(self):
        """Bytes of immediate data that a command may bring."""
        return self.first_burst if self.immediate_data else 0

    @classmethod
    def of(cls, values):
        """From the negotiated text keys."""
        return cls(
            values['InitialR2T'],
            values['ImmediateData'],
            values['FirstBurstLength'],
            values['MaxBurstLength'],
            values['MaxOutstandingR2T'],
        )


class _Sequence(object):
    """One run of Data-Out PDUs: what was asked for by one R2T, or the unsolicited ones."""

    __slots__ = ('next_offset', 'end', 'next_data_sn', 'start')

    def __init__(self, start, end):
        self.start = self.next_offset = start
        self.end = end
        self.next_data_sn = 0


class Transfer(object):
    """See the module. wanted: bytes of Data-Out that the command takes; edtl: bytes the initiator
    said it would send."""

    __slots__ = (
        'itt',
        'wanted',
        'buffer',
        'failed',
        '_limits',
        '_unsolicited',
        '_outstanding',
        '_next_r2t_offset',
        '_r2t_sn',
        '_placed',
    )

    def __init__(self, itt, wanted, edtl, limits, buffer=None):
        self.itt = itt
        self.wanted = wanted
        self.buffer = memoryview(bytearray(wanted)) if buffer is None else buffer[:wanted]
        # a sequence error: what still comes is discarded, the command has been answered
        self.failed = False
        self._limits = limits
        self._unsolicited = _Sequence(0, min(limits.first_burst, edtl))
        self._outstanding = {}  # TTT -> _Sequence
        self._next_r2t_offset = 0
        self._r2t_sn = 0
        self._placed = None

    # -- what comes with, or right behind, the command ----------------------------------------------------------------

    def place_immediate(self, length):
        """A view for `length` bytes of immediate data, or None if the command does not take all of
        them."""
        self._placed = self.buffer[:length] if length <= self.wanted else None
        return self._placed

    def receive_immediate(self, data, final):
        """The command's own data (None or bytes-like) and its F bit. Raises PduRejected for more
        than FirstBurstLength."""
        sequence = self._unsolicited
        if data is not None:
            if len(data) > min(sequence.end, self._limits.max_immediate):
                raise PduRejected(
                    const.REJECT_PROTOCOL_ERROR,
                    '%d bytes of immediate data, more than was agreed' % len(data),
                )
            self._keep(0, data)
            sequence.next_offset = len(data)
        if not final and self._limits.initial_r2t:
            raise PduRejected(
                const.REJECT_PROTOCOL_ERROR,
                'unsolicited data announced although InitialR2T=Yes was agreed',
            )
        if final or sequence.next_offset >= sequence.end:
            self._end_unsolicited()

    def _end_unsolicited(self):
        self._next_r2t_offset = self._unsolicited.next_offset
        self._unsolicited = None

    @property
    def awaits_unsolicited(self):
        """True until the unsolicited data that the command announced has ended."""
        return self._unsolicited is not None

    @property
    def is_complete(self):
        """True when nothing more can come: every byte wanted is in the buffer and every sequence
        has ended."""
        return (
            self._unsolicited is None
            and not self._outstanding
            and self._next_r2t_offset >= self.wanted
        )

    # -- Data-Out ----------------------------------------------------------------------------------------------------

    def place_data_out(self, ttt, offset, data_sn, length):
        """A view where this PDU's data may land, or None if it is not (all) wanted. Raises
        PduRejected: see receive()."""
        self._sequence(ttt, offset, data_sn, length)
        self._placed = (
            self.buffer[offset : offset + length] if offset + length <= self.wanted else None
        )
        return self._placed

    def receive_data_out(self, ttt, offset, data_sn, data, final):
        """One whole Data-Out; data: bytes-like or None. Raises PduRejected if it is not what was
        asked for."""
        length = len(data) if data is not None else 0
        sequence = self._sequence(ttt, offset, data_sn, length)
        if length:
            self._keep(offset, data)
        sequence.next_offset += length
        sequence.next_data_sn += 1
        if not final:
            return
        if sequence is self._unsolicited:
            self._end_unsolicited()
            return
        del self._outstanding[ttt]
        if sequence.next_offset < sequence.end:
            if sequence.next_offset == sequence.start:
                raise PduRejected(const.REJECT_PROTOCOL_ERROR, 'an R2T was answered without data')
            if self._outstanding:
                raise PduRejected(
                    const.REJECT_PROTOCOL_ERROR,
                    'an R2T was answered short while others were unanswered',
                )
            self._next_r2t_offset = sequence.next_offset

    def _sequence(self, ttt, offset, data_sn, length):
        sequence = self._unsolicited if ttt == NO_TAG else self._outstanding.get(ttt)
        if sequence is None:
            raise PduRejected(
                const.REJECT_PROTOCOL_ERROR,
                'Data-Out with a target transfer tag that is not outstanding',
            )
        if data_sn != sequence.next_data_sn:
            raise PduRejected(
                const.REJECT_PROTOCOL_ERROR,
                'DataSN %d where %d was due' % (data_sn, sequence.next_data_sn),
            )
        if offset != sequence.next_offset or offset + length > sequence.end:
            raise PduRejected(
                const.REJECT_PROTOCOL_ERROR,
                'Data-Out for bytes %d+%d where %d to %d were due'
                % (offset, length, sequence.next_offset, sequence.end),
            )
        return sequence

    def _keep(self, offset, data):
        if data is self._placed:
            self._placed = None  # it landed where it belongs
            return
        room = self.wanted - offset
        if room > 0:
            piece = data[:room]
            self.buffer[offset : offset + len(piece)] = piece

    def fail(self):
        """The command is answered; what still comes for it is to be discarded."""
        self.failed = True

    def _add_outstanding(self, ttt, offset, end):
        self._outstanding[ttt] = _Sequence(offset, end)

    # -- R2T ---------------------------------------------------------------------------------------------------------

    def next_r2ts(self, allot_ttt):
        """The R2Ts that may go out now, as (ttt, r2t_sn, offset, length). allot_ttt: gives a TTT
        unused in the session."""
        out = []
        if self._unsolicited is not None:
            return out
        while (
            self._next_r2t_offset < self.wanted
            and len(self._outstanding) < self._limits.max_outstanding_r2t
        ):
            length = min(self.wanted - self._next_r2t_offset, self._limits.max_burst)
            ttt = allot_ttt()
            self._outstanding[ttt] = _Sequence(
                self._next_r2t_offset, self._next_r2t_offset + length
            )
            out.append((ttt, self._r2t_sn, self._next_r2t_offset, length))
            self._next_r2t_offset += length
            self._r2t_sn += 1
        return out
