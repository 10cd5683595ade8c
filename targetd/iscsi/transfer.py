"""The Data-Out of one command (RFC 7143 11.7, 11.8, 4.2.5.2): immediate, unsolicited, and solicited by
R2T. Pure.

    transfer = Transfer(task.itt, wanted, edtl, limits); transfer.receive_immediate(data, final)
    while not transfer.is_complete: for r2t in transfer.next_r2ts(allot_ttt): send it
    for each Data-Out: view = transfer.place_data_out(...) (the data may be received into this view),
                       then transfer.receive_data_out(...) when it is whole

Invariants
 1. The buffer is as long as the CDB and the EDTL both allow, never longer; further data is not kept.
 2. Data is accepted in order (DataPDUInOrder and DataSequenceInOrder are Yes): a DataSN or offset that is
    not the next one is refused.
 3. At most MaxOutstandingR2T R2Ts are unanswered, each for at most MaxBurstLength bytes, and none is sent
    before the unsolicited data has ended.
"""

from collections import namedtuple
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

from targetd.iscsi import const
from targetd.iscsi.errors import LOST_DATA, UNEXPECTED_DATA, WRONG_AMOUNT, DataRefused

NO_TAG = const.RESERVED_TAG

BytesLike = Union[bytes, bytearray, memoryview]
#: (target transfer tag, R2TSN, offset in bytes, length in bytes)
R2t = Tuple[int, int, int, int]


class Limits(
    namedtuple('Limits', 'initial_r2t immediate_data first_burst max_burst max_outstanding_r2t')
):
    """The negotiated values that limit a data transfer: two bools, bytes, bytes, a count."""

    __slots__ = ()

    @property
    def max_immediate(self) -> int:
        """Maximum bytes of immediate data of a command."""
        return self.first_burst if self.immediate_data else 0

    @classmethod
    def of(cls, values: Dict[str, Any]) -> 'Limits':
        """Return the Limits of the negotiated values {text key: typed value}."""
        return cls(
            values['InitialR2T'],
            values['ImmediateData'],
            values['FirstBurstLength'],
            values['MaxBurstLength'],
            values['MaxOutstandingR2T'],
        )


class _Sequence(object):
    """One sequence of Data-Out PDUs: the answer to one R2T, or the unsolicited data."""

    __slots__ = ('next_offset', 'end', 'next_data_sn', 'start')

    def __init__(self, start: int, end: int) -> None:
        self.start = self.next_offset = start
        self.end = end
        self.next_data_sn = 0


class Transfer(object):
    """The Data-Out of one command; see the module.

    itt: of the command; wanted: bytes of Data-Out that the command uses; edtl: Expected Data Transfer
    Length, bytes; buffer: a writable memoryview of at least `wanted` bytes, or None for a new one.
    """

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

    def __init__(
        self, itt: int, wanted: int, edtl: int, limits: Limits, buffer: Optional[memoryview] = None
    ) -> None:
        self.itt = itt
        self.wanted = wanted
        self.buffer = memoryview(bytearray(wanted)) if buffer is None else buffer[:wanted]
        # True after a sequence error: the command has been answered, further data is discarded.
        self.failed = False
        self._limits = limits
        self._unsolicited: Any = _Sequence(0, min(limits.first_burst, edtl))
        self._outstanding: Dict[int, _Sequence] = {}  # TTT -> _Sequence
        self._next_r2t_offset = 0
        self._r2t_sn = 0
        self._placed: Optional[memoryview] = None

    # -- immediate and unsolicited data ---------------------------------------------

    def receive_immediate(
        self, data: Optional[BytesLike], final: bool, is_placed: bool = False
    ) -> None:
        """Accept the immediate data (None or bytes-like) and the F bit of the command. is_placed: the
        data is at the start of the buffer already. Raises DataRefused if the data is longer than
        negotiated, or if unsolicited data is announced and InitialR2T=Yes was negotiated."""
        sequence = self._unsolicited
        if data is not None:
            if len(data) > min(sequence.end, self._limits.max_immediate):
                raise DataRefused(
                    WRONG_AMOUNT if self._limits.immediate_data else UNEXPECTED_DATA,
                    '%d bytes of immediate data are more than was negotiated' % len(data),
                )
            if not is_placed:
                self._keep(0, data)
            sequence.next_offset = len(data)
        if not final and self._limits.initial_r2t:
            raise DataRefused(
                UNEXPECTED_DATA,
                'unsolicited data was announced although InitialR2T=Yes was negotiated',
            )
        if final or sequence.next_offset >= sequence.end:
            self._end_unsolicited()

    def _end_unsolicited(self):
        self._next_r2t_offset = self._unsolicited.next_offset
        self._unsolicited = None

    @property
    def awaits_unsolicited(self) -> bool:
        """True until the unsolicited data that the command announced has ended."""
        return self._unsolicited is not None

    @property
    def is_complete(self) -> bool:
        """True when every byte that the command uses is in the buffer and every sequence has
        ended."""
        return (
            self._unsolicited is None
            and not self._outstanding
            and self._next_r2t_offset >= self.wanted
        )

    # -- Data-Out ----------------------------------------------------------------------------------

    def place_data_out(
        self, ttt: int, offset: int, data_sn: int, length: int
    ) -> Optional[memoryview]:
        """Return a view into which this PDU's data may be received, or None if the command does not
        use all of it. Raises DataRefused as receive_data_out() does. Bytes."""
        self._sequence(ttt, offset, data_sn, length)
        self._placed = (
            self.buffer[offset : offset + length] if offset + length <= self.wanted else None
        )
        return self._placed

    def receive_data_out(
        self, ttt: int, offset: int, data_sn: int, data: Optional[BytesLike], final: bool
    ) -> None:
        """Accept one whole Data-Out. offset: bytes; data: bytes-like or None; final: the F bit.
        Raises DataRefused if the PDU is not the next one of an outstanding sequence."""
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
                raise DataRefused(WRONG_AMOUNT, 'an R2T was answered without data')
            if self._outstanding:
                raise DataRefused(
                    WRONG_AMOUNT,
                    'an R2T was answered with too little data while other R2Ts were unanswered',
                )
            self._next_r2t_offset = sequence.next_offset

    def _sequence(self, ttt, offset, data_sn, length):
        sequence = self._unsolicited if ttt == NO_TAG else self._outstanding.get(ttt)
        if sequence is None:
            raise DataRefused(
                UNEXPECTED_DATA, 'Data-Out with a target transfer tag that is not outstanding'
            )
        if data_sn != sequence.next_data_sn:
            raise DataRefused(
                LOST_DATA, 'DataSN is %d, and %d was expected' % (data_sn, sequence.next_data_sn)
            )
        if offset != sequence.next_offset or offset + length > sequence.end:
            raise DataRefused(
                WRONG_AMOUNT,
                'Data-Out is for bytes %d+%d, and bytes %d to %d were expected'
                % (offset, length, sequence.next_offset, sequence.end),
            )
        return sequence

    def _keep(self, offset, data):
        if data is self._placed:
            self._placed = None  # the data was received directly into the buffer
            return
        room = self.wanted - offset
        if room > 0:
            piece = data[:room]
            self.buffer[offset : offset + len(piece)] = piece

    def fail(self) -> None:
        """Mark the transfer as failed: the command has been answered, further data for it is to be
        discarded."""
        self.failed = True

    def _add_outstanding(self, ttt, offset, end):
        self._outstanding[ttt] = _Sequence(offset, end)

    # -- R2T ---------------------------------------------------------------------------------------

    def next_r2ts(self, allot_ttt: Callable[[], int]) -> List[R2t]:
        """Return the R2Ts that may be sent now, as (ttt, r2t_sn, offset, length); bytes. allot_ttt:
        callable that returns a TTT that is unused in the session."""
        out: List[R2t] = []
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
