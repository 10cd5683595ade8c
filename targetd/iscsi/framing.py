"""Bytes to PDUs (RFC 7143 11.1, 11.2): finds PDUs in what a connection received, checks digests and
receives large data directly into its final buffer.

Pure; imports iscsi only. One Framer handles one direction of one connection and is used by one thread.

    view = framer.receive_buffer(); n = recv_into(view)    # while landing: recvmsg_into(receive_buffers())
    for fields, ahs, data in framer.parse_received(n): ... # whole PDUs, in order
    if framer.partial is not None:                         # a header has arrived, its (large) data has not:
        framer.land_data(buffer)                           # the data is received into this buffer ("lands")

Invariants
 1. `parse_received` looks at no byte twice, except for a header whose data has not arrived yet.
 2. `data` of a PDU is a view of the batch buffer and is valid until the next receive_buffer(), unless it
    landed in the caller's buffer.
 3. `partial` is set only after every PDU before it was returned, so the caller has already acted on those.
 4. A length that the peer sent never causes an allocation, except through land_data().
"""

import struct
from typing import Any, Callable, List, Optional, Tuple

from targetd.iscsi import const
from targetd.iscsi.const import BHS_LENGTH
from targetd.iscsi.errors import PduRejected

#: Basic Header Segment: opcode (with I bit), flags, bytes 2-3, TotalAHSLength and DataSegmentLength,
#: LUN, ITT, bytes 20-23, CmdSN, ExpStatSN, rest. It covers every byte, so BHS.pack(*fields) returns
#: the header again.
BHS = struct.Struct('>BBHIQIIII16s')
_BHS_UNPACK = BHS.unpack_from
_DIGEST = struct.Struct('<I')

#: Room for a PDU with the largest data segment that targetd declares (256 KiB) and for what arrives
#: with it: such a PDU is executed where it is, without a copy.
BATCH_BYTES = 384 << 10
#: Replaces a PDU's data when its data digest is wrong (RFC 7143 7.8).
DIGEST_ERROR = object()

# A data segment of at least this length is landed in a separate buffer if it has not arrived whole.
LANDING_BYTES = 32 << 10


#: (fields as unpacked by BHS, AHS bytes or None, data as a memoryview, None or DIGEST_ERROR)
ParsedPdu = Tuple[Tuple[Any, ...], Optional[bytes], Any]
Crc32c = Callable[..., int]


class Framer(object):
    """The receive buffer of one connection and the parser of what is in it; see the module.

    maximum_data: the MaxRecvDataSegmentLength that the target declared, bytes; crc32c: function
    (bytes, value) for the negotiated digests, or None; buffer: a bytearray to receive into, with any
    contents, instead of a new one of batch_bytes.
    """

    __slots__ = (
        'partial',
        'landing',
        'buffer',
        '_view',
        '_start',
        '_end',
        '_maximum_data',
        '_crc32c',
        '_header_digest',
        '_data_digest',
        '_landing_fields',
        '_landing_ahs',
        '_landing_data',
    )

    def __init__(
        self,
        maximum_data: int,
        crc32c: Optional[Crc32c] = None,
        header_digest: bool = False,
        data_digest: bool = False,
        batch_bytes: int = BATCH_BYTES,
        buffer: Optional[bytearray] = None,
    ) -> None:
        self.partial: Optional[Tuple[Any, ...]] = None
        # the unfilled part of the landing buffer while data is received into it
        self.landing: Any = None
        self.buffer: Any = bytearray(batch_bytes) if buffer is None else buffer
        self._view: Any = memoryview(self.buffer)
        self._start = self._end = 0
        self._landing_data: Any = None
        self.apply_negotiated(maximum_data, crc32c, header_digest, data_digest)

    def apply_negotiated(
        self, maximum_data: int, crc32c: Optional[Crc32c], header_digest: bool, data_digest: bool
    ) -> None:
        """Apply the values that the login negotiated. Called between PDUs."""
        self._maximum_data = maximum_data
        self._crc32c: Any = crc32c
        self._header_digest = 4 if header_digest else 0
        self._data_digest = 4 if data_digest else 0

    def release(self) -> None:
        """Release the buffers; nothing can be received afterwards. PDUs that were returned stay
        valid."""
        self.buffer = self._view = self.landing = self._landing_data = None

    # -- receiving ---------------------------------------------------------------------------------

    def receive_buffer(self) -> memoryview:
        """Return a writable view for the next bytes; it is never empty. Hot."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end > len(self.buffer) >> 1:
            self._move_to_front()
        return self._view[self._end :]

    def receive_buffers(self) -> List[memoryview]:
        """Return [the unfilled part of the landing buffer, the batch buffer] for a scattered receive
        while data is landing."""
        return [self.landing, self.receive_buffer()]

    def _move_to_front(self):
        rest = bytes(self._view[self._start : self._end])
        self._view[: len(rest)] = rest
        self._start, self._end = 0, len(rest)

    def parse_received(self, count: int) -> List[ParsedPdu]:
        """Return the PDUs that are complete after `count` more bytes, in order, as (fields, ahs, data).
        The bytes are in the view that receive_buffer() (or receive_buffers()) returned. Hot.

        fields: as unpacked by BHS; ahs: bytes or None; data: memoryview, None without data,
        DIGEST_ERROR if the data digest is wrong. Raises PduRejected (fatal) for an error after which
        no further PDU can be found; its `before` has the complete PDUs before the error, its
        `fields` the header.
        """
        out: List[ParsedPdu] = []
        if self.landing is not None:
            count = self._received_landing(count, out)
        buffer = self.buffer
        position = self._start
        end = self._end = self._end + count
        careful = self._header_digest
        while end - position >= BHS_LENGTH and self.landing is None:
            fields = _BHS_UNPACK(buffer, position)
            if fields[3] or careful:
                try:
                    after = self._parse_whole_pdu(fields, position, end, out)
                except PduRejected as refusal:
                    refusal.before, refusal.fields = out, fields
                    raise
                if after is None:
                    break
                position = after
            else:
                out.append((fields, None, None))
                position += BHS_LENGTH
        self._start = position
        return out

    def _parse_whole_pdu(self, fields, position, end, out):
        """Append a PDU that has more than a BHS to `out` if all of it has arrived. Returns the
        position after it, or None."""
        ahs_and_data = fields[3]
        length = ahs_and_data & 0xFFFFFF
        header = BHS_LENGTH + (ahs_and_data >> 24) * 4
        body = position + header + self._header_digest
        if length > self._maximum_data:
            raise PduRejected(
                const.REJECT_PROTOCOL_ERROR,
                'a data segment has %d bytes, and the target declared a maximum of %d'
                % (length, self._maximum_data),
                fatal=True,
            )
        if end < body:
            return None
        if self._header_digest:
            self._check_header_digest(position, header)
        padded = length + 3 & ~3
        after = body + padded + (self._data_digest if length else 0)
        if end < after:
            if length >= LANDING_BYTES or after - position > len(self.buffer) >> 1:
                self.partial = fields
                self._start = position
                self._landing_ahs = (
                    bytes(self._view[position + BHS_LENGTH : position + header])
                    if header > BHS_LENGTH
                    else None
                )
            return None
        ahs = (
            bytes(self._view[position + BHS_LENGTH : position + header])
            if header > BHS_LENGTH
            else None
        )
        data = self._view[body : body + length] if length else None
        if length and self._data_digest:
            crc = self._crc32c(self._view[body : body + padded], 0)
            if crc != _DIGEST.unpack_from(self.buffer, body + padded)[0]:
                data = DIGEST_ERROR
        out.append((fields, ahs, data))
        return after

    def _check_header_digest(self, position, header):
        crc = self._crc32c(self._view[position : position + header], 0)
        if crc != _DIGEST.unpack_from(self.buffer, position + header)[0]:
            raise PduRejected(const.REJECT_PROTOCOL_ERROR, 'the header digest is wrong', fatal=True)

    def arrived(self, count: int) -> List[memoryview]:
        """Return the `count` bytes that were received, before parse_received(count)."""
        landed = 0 if self.landing is None else min(count, len(self.landing))
        end = self._end + count - landed
        return ([self.landing[:landed]] if landed else []) + [self._view[self._end : end]]

    def remaining_bytes(self) -> bytes:
        """Return the bytes that arrived after the last whole PDU, for the framer that follows when
        the login is over."""
        return bytes(self._view[self._start : self._end])

    # -- landing -----------------------------------------------------------------------------------

    def land_data(self, buffer: Optional[memoryview]) -> None:
        """Receive the data of the partial PDU into `buffer` (a writable memoryview of at least its
        DataSegmentLength; None: a new buffer)."""
        fields: Any = self.partial
        length = fields[3] & 0xFFFFFF
        buffer = memoryview(bytearray(length)) if buffer is None else buffer[:length]
        body = self._start + BHS_LENGTH + (fields[3] >> 24) * 4 + self._header_digest
        arrived = min(self._end - body, length)
        buffer[:arrived] = self._view[body : body + arrived]
        self._start = body + arrived
        self._landing_fields = fields
        self._landing_data = buffer
        self.landing = buffer[arrived:]
        self.partial = None

    def _received_landing(self, count, out):
        """Account for `count` bytes that arrived while landing. Returns how many of them are in the
        batch buffer."""
        landed = min(count, len(self.landing))
        if landed:
            self.landing = self.landing[landed:]
            count -= landed
        if len(self.landing):
            return count
        trailer = (-len(self._landing_data) & 3) + self._data_digest
        self._end += count
        if self._end - self._start >= trailer:
            data = self._landing_data if self._is_landed_digest_right(trailer) else DIGEST_ERROR
            out.append((self._landing_fields, self._landing_ahs, data))
            self._start += trailer
            self.landing = self._landing_data = None
        return 0

    def _is_landed_digest_right(self, trailer):
        """Return True if the data digest behind the pad bytes is right, or if no data digest was
        negotiated. Everything has arrived."""
        if not self._data_digest:
            return True
        digest = self._start + trailer - 4
        crc = self._crc32c(self._view[self._start : digest], self._crc32c(self._landing_data, 0))
        return crc == _DIGEST.unpack_from(self.buffer, digest)[0]
