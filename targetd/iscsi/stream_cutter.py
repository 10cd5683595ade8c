"""Cuts a stream of PDUs for a capture: header and digests whole, of user data only the beginning; and
masks what must not be in a capture. Pure."""

from typing import Any, List, Tuple

from targetd.iscsi import const
from targetd.iscsi.const import BHS_LENGTH

#: PDUs whose data segment is user data.
_USER_DATA = (const.SCSI_COMMAND, const.DATA_OUT, const.DATA_IN)

#: With the challenge, its identifier and the response, a secret can be guessed at leisure.
_MASKED_KEYS = (b'CHAP_R', b'CHAP_C')


class Cutter(object):
    """One direction of one connection, from the first byte of a PDU on. header_digest, data_digest:
    whether they were negotiated; limit: bytes of user data that are kept of each PDU."""

    def __init__(self, header_digest: bool, data_digest: bool, limit: int) -> None:
        self._header_digest = 4 if header_digest else 0
        self._data_digest = 4 if data_digest else 0
        self._limit = limit
        self._kept = bytearray()
        self._header = BHS_LENGTH  # bytes before the data segment, as far as is known
        self._body = -1  # bytes of data, pad bytes and data digest; -1: the header is not complete
        self._room = 0
        self._left = 0

    def feed(self, chunk: Any) -> List[Tuple[bytes, int]]:
        """Take more bytes (bytes-like). Returns [(kept bytes, original length)] of the PDUs that are
        complete now."""
        out = []
        view = memoryview(chunk)
        while len(view):
            if self._body < 0:
                count = min(self._header - len(self._kept), len(view))
                self._kept += view[:count]
                self._look_at_header()
            else:
                count = min(self._left, len(view))
                self._kept += view[: min(count, self._room)]
                self._room -= min(count, self._room)
                self._left -= count
            view = view[count:]
            if self._body >= 0 and not self._left:
                out.append((bytes(self._kept), self._header + self._body))
                self._kept = bytearray()
                self._header, self._body = BHS_LENGTH, -1
        return out

    def _look_at_header(self):
        kept = self._kept
        if len(kept) == BHS_LENGTH == self._header:
            self._header += kept[4] * 4 + self._header_digest
        if len(kept) == self._header:
            length = int.from_bytes(kept[5:8], 'big')
            self._body = self._left = (length + 3 & ~3) + (self._data_digest if length else 0)
            is_cut = kept[0] & 0x3F in _USER_DATA and self._limit < length
            self._room = self._limit if is_cut else self._body


class LoginMask(object):
    """Masks the values of _MASKED_KEYS in the text of the login PDUs of one direction, at the same length.
    A value may continue in the next PDU."""

    def __init__(self) -> None:
        self._key = b''  # of the value that has begun, or the beginning of a key
        self._is_value = False

    def masked(self, pdu: bytes) -> bytes:
        """The PDU with masked values; other PDUs than those of a login are returned as they are."""
        if pdu[0] & 0x3F not in (const.LOGIN_REQUEST, const.LOGIN_RESPONSE):
            return pdu
        start = BHS_LENGTH + pdu[4] * 4
        out = bytearray(pdu)
        for at in range(start, min(start + int.from_bytes(pdu[5:8], 'big'), len(pdu))):
            byte = pdu[at]
            if not byte:
                self._key, self._is_value = b'', False
            elif self._is_value:
                if self._key in _MASKED_KEYS:
                    out[at] = 0x78  # x
            elif byte == 0x3D:  # =
                self._is_value = True
            else:
                self._key = (self._key + bytes((byte,)))[-64:]
        return bytes(out)
