"""Bytes to PDUs (RFC 7143 11.1, 11.2): finds PDUs in what a connection received, checks digests,
lands large data in place.

Pure; imports iscsi only. One Framer is one direction of one connection, used by one thread.

    view = framer.receive_buffer(); n = recv_into(view)            # or recvmsg_into(framer.receive_buffers()) while data is landing
    for fields, ahs, data in framer.parse_received(n): …         # whole PDUs, in order
    if framer.partial is not None: framer.land_data(buffer)     # a header is there, its (large) data is not: say where it lands

Invariants
 1. `received` never looks at a byte twice except a header whose data is not yet there.
 2. `data` of a PDU is a view of the batch buffer, valid until the next wanted(), unless it was landed in the caller's buffer.
 3. `partial` is only set when every PDU before it has been given out, so the caller has already acted on them.
 4. Nothing is allocated by a length that the peer sent, except through land().
"""

import struct

from targetd.iscsi import const
from targetd.iscsi.const import BHS_LENGTH
from targetd.iscsi.errors import PduRejected

#: opcode (with I bit), flags, bytes 2-3, TotalAHSLength and DataSegmentLength, LUN, ITT, bytes
#: 20-23, CmdSN, ExpStatSN, rest. Every byte of a BHS is in it, so BHS.pack(*fields) gives the
#: header back.
BHS = struct.Struct('>BBHIQIIII16s')
_BHS_UNPACK = BHS.unpack_from
_DIGEST = struct.Struct('<I')

BATCH_BYTES = 256 << 10
#: What stands in place of a PDU's data when its digest is wrong (RFC 7143 7.8).
DIGEST_ERROR = object()

# data segments from here on land in their own buffer when they are not there at once
LANDING_BYTES = 32 << 10


class Framer(object):
    """See the module. maximum_data: the MaxRecvDataSegmentLength that we declared, bytes; crc32c: a
    function of (bytes, value) for the digests that were negotiated, or None; buffer: a bytearray to
    receive into, whatever is in it, in place of one of batch_bytes."""

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
        maximum_data,
        crc32c=None,
        header_digest=False,
        data_digest=False,
        batch_bytes=BATCH_BYTES,
        buffer=None,
    ):
        self.partial = None
        self.landing = None  # the rest of the landing buffer, while data is on its way into it
        self.buffer = bytearray(batch_bytes) if buffer is None else buffer
        self._view = memoryview(self.buffer)
        self._start = self._end = 0
        self.apply_negotiated(maximum_data, crc32c, header_digest, data_digest)

    def apply_negotiated(self, maximum_data, crc32c, header_digest, data_digest):
        """What the login's last response changed; called between PDUs."""
        self._maximum_data = maximum_data
        self._crc32c = crc32c
        self._header_digest = 4 if header_digest else 0
        self._data_digest = 4 if data_digest else 0

    def release(self):
        """Nothing will be received any more: let go of the buffer. PDUs that were given out keep
        what they need."""
        self.buffer = self._view = self.landing = self._landing_data = None

    # -- receiving ---------------------------------------------------------------------------------------------------

    def receive_buffer(self):
        """A writable view for the next bytes; never empty. Hot."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end > len(self.buffer) >> 1:
            self._move_to_front()
        return self._view[self._end :]

    def receive_buffers(self):
        """While landing: [the rest of the landing buffer, the batch buffer], for a scattering
        receive."""
        return [self.landing, self.receive_buffer()]

    def _move_to_front(self):
        rest = bytes(self._view[self._start : self._end])
        self._view[: len(rest)] = rest
        self._start, self._end = 0, len(rest)

    def parse_received(self, count):
        """`count` more bytes are where wanted() (or wanted_parts()) said. Gives the PDUs that are now whole, in order, as
        (fields, ahs, data): fields as unpacked by BHS; ahs: bytes or None; data: memoryview or None. Hot.

        data is DIGEST_ERROR where a data digest is wrong. Raises PduRejected (fatal) for what makes
        the stream unreadable; the PDUs before it come with the exception, as its `before`.
        """
        out = []
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
                    after = self._whole(fields, position, end, out)
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

    def _whole(self, fields, position, end, out):
        """A PDU with more than a BHS: appended to `out` if all of it is there. Gives where the next
        one starts, or None."""
        ahs_and_data = fields[3]
        length = ahs_and_data & 0xFFFFFF
        header = BHS_LENGTH + (ahs_and_data >> 24) * 4
        body = position + header + self._header_digest
        if length > self._maximum_data:
            raise PduRejected(
                const.REJECT_PROTOCOL_ERROR,
                'a data segment of %d bytes where %d were declared' % (length, self._maximum_data),
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
            raise PduRejected(const.REJECT_PROTOCOL_ERROR, 'a header digest is wrong', fatal=True)

    def remaining_bytes(self):
        """What arrived behind the last whole PDU, as bytes: for the framer that takes over when the
        login is done."""
        return bytes(self._view[self._start : self._end])

    # -- landing -----------------------------------------------------------------------------------------------------

    def land_data(self, buffer):
        """The data of the partial PDU goes into `buffer` (writable, at least its DataSegmentLength;
        None: into one of ours)."""
        fields = self.partial
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
        """Account `count` bytes that came while landing; gives how many of them are in the batch
        buffer."""
        landed = min(count, len(self.landing))
        if landed:
            self.landing = self.landing[landed:]
            count -= landed
        if len(self.landing):
            return count
        trailer = (-len(self._landing_data) & 3) + self._data_digest
        self._end += count
        if self._end - self._start >= trailer:
            data = self._landing_data if self._landed_whole(trailer) else DIGEST_ERROR
            out.append((self._landing_fields, self._landing_ahs, data))
            self._start += trailer
            self.landing = self._landing_data = None
        return 0

    def _landed_whole(self, trailer):
        """True if the data digest, whose last byte has arrived behind the pad bytes, is right; or
        there is none."""
        if not self._data_digest:
            return True
        digest = self._start + trailer - 4
        crc = self._crc32c(self._view[self._start : digest], self._crc32c(self._landing_data, 0))
        return crc == _DIGEST.unpack_from(self.buffer, digest)[0]
