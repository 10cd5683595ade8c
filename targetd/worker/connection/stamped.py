"""PDUs that were stamped for one send, cut apart again because the line is slow (see paced). Pure."""

from collections import deque

from targetd.iscsi import const


class Pdu(object):
    """A PDU that was stamped before the line was found slow: its buffers, of which the first is the
    header. Its StatSN is stamped again when it is sent."""

    __slots__ = ('buffers', 'opcode')

    def __init__(self, buffers):
        self.buffers = buffers
        self.opcode = buffers[0][0] & 0x3F

    def __len__(self):
        return sum(map(len, self.buffers))

    @property
    def takes_stat_sn(self):
        """True if the PDU uses up its StatSN."""
        header = self.buffers[0]
        if self.opcode == const.DATA_IN:
            return self.has_stat_sn
        if self.opcode == const.NOP_IN:
            return bytes(header[20:24]) == b'\xff\xff\xff\xff'
        return self.opcode != const.READY_TO_TRANSFER

    @property
    def has_stat_sn(self):
        """True if the PDU shows a StatSN."""
        return self.opcode != const.DATA_IN or bool(self.buffers[0][1] & 1)

    def restamp(self, stat_sn, digest):
        """Give the PDU this StatSN. digest: computes that of the header, None if it has none."""
        header = bytearray(self.buffers[0])
        if self.has_stat_sn:
            header[24:28] = stat_sn.to_bytes(4, 'big')
        self.buffers[0] = bytes(header)
        if digest is not None:
            self.buffers[1] = digest(bytes(header), 0).to_bytes(4, 'little')


def split(buffers, header_digest, data_digest):
    """The Pdus of the buffers of Outbox._stamp."""
    found, at = [], 0
    while at < len(buffers):
        start, length = at, int.from_bytes(buffers[at][5:8], 'big')
        at += 2 if header_digest else 1
        if length:
            at += 1 + bool(length & 3) + data_digest
        found.append(Pdu(list(buffers[start:at])))
    return found


class LongReply(object):
    """A reply with GOOD whose data is sent in several turns. chunks: what is left of it, from `offset` on;
    is_counted: MaxCmdSN has been increased for it."""

    __slots__ = ('itt', 'chunks', 'offset', 'data_sn', 'is_counted', '_left')

    def __init__(self, itt, chunks, offset=0, data_sn=0, is_counted=False):
        self.itt = itt
        self.chunks = deque(map(memoryview, chunks))
        self._left = sum(map(len, self.chunks))
        self.offset, self.data_sn = offset, data_sn
        self.is_counted = is_counted

    def __len__(self):
        return self._left

    def take(self, most):
        """Return the next data, at most so many bytes, and advance offset and DataSN."""
        chunk = self.chunks.popleft()
        data = chunk[:most]
        if len(chunk) > most:
            self.chunks.appendleft(chunk[most:])
        self._left -= len(data)
        self.offset += len(data)
        self.data_sn += 1
        return data


def long_reply(pdus, has_digest):
    """The LongReply of the last Data-In PDUs of a reply, or None if it does not end with plain GOOD. A PDU
    may be as long as the line needs seconds for, so they are cut anew."""
    first, last = bytes(pdus[0].buffers[0]), pdus[-1].buffers[0]
    if not last[1] & 1 or last[1] & 6 or last[3]:
        return None
    chunks = [pdu.buffers[1 + has_digest] for pdu in pdus]
    itt, data_sn, offset = (int.from_bytes(first[at : at + 4], 'big') for at in (16, 36, 40))
    return LongReply(itt, chunks, offset, data_sn, True)
