"""Captured PDUs as a pcapng file that Wireshark and tshark dissect: packets with IP and TCP headers that
are made up from what is known of the connection (link type "raw IP"). Pure.

A Record is one PDU, or what was kept of it, with its place in the stream of its direction. Its binary form
is what a worker writes into the socket of a capture, and what it sends to the master with the last PDUs
before an error.
"""

import json
import socket
import struct
from collections import namedtuple

#: kind: one of CONNECTION, RECEIVED, SENT, LOST; connection: number of the connection within the
#: capture's socket; microseconds: since 1970; offset: bytes of this direction before it; length: original
#: number of bytes; data: what was kept of them. Of CONNECTION, data is JSON: peer and local [address,
#: port], cid; of LOST, length is the number of PDUs that were dropped.
Record = namedtuple('Record', 'kind connection microseconds offset length data')
CONNECTION, RECEIVED, SENT, LOST = range(4)
_RECORD = struct.Struct('>IBHQQI')
MAXIMUM_RECORD = 32 << 20

#: Wireshark dissects iSCSI at this port, whatever the real one is.
ISCSI_PORT = 3260
_RAW_IP = 101
_LONGEST_SEGMENT = 60000  # an IP packet has at most 64 KiB


def pack(record):
    """The binary form of a Record."""
    kind, connection, microseconds, offset, length, data = record
    return _RECORD.pack(len(data), kind, connection & 0xFFFF, microseconds, offset, length) + data


def unpack(buffer):
    """([Record, …], rest) of the bytes that were received. Raises ValueError."""
    found, position = [], 0
    while len(buffer) - position >= _RECORD.size:
        size, kind, connection, microseconds, offset, length = _RECORD.unpack_from(buffer, position)
        if size > MAXIMUM_RECORD or kind > LOST:
            raise ValueError('not a record of a capture')
        end = position + _RECORD.size + size
        if end > len(buffer):
            break
        data = bytes(buffer[position + _RECORD.size : end])
        found.append(Record(kind, connection, microseconds, offset, length, data))
        position = end
    return found, buffer[position:]


def connection_record(number, microseconds, peer, local, cid):
    """The Record that begins a connection."""
    words = {'peer': list(peer), 'local': list(local), 'cid': cid}
    return Record(CONNECTION, number, microseconds, 0, 0, json.dumps(words).encode('utf-8'))


# -- blocks of a file ------------------------------------------------------------------------------


def _padded(data):
    return data + bytes(-len(data) % 4)


def _option(code, data):
    return struct.pack('<HH', code, len(data)) + _padded(data)


def _block(kind, body):
    total = len(body) + 12
    return struct.pack('<II', kind, total) + body + struct.pack('<I', total)


def file_header(comment):
    """The first blocks of a file: section header and interface."""
    options = _option(1, comment.encode('utf-8')[:1000]) + _option(4, b'targetd') + _option(0, b'')
    section = struct.pack('<IHHq', 0x1A2B3C4D, 1, 0, -1) + options
    interface = struct.pack('<HHI', _RAW_IP, 0, 0)
    return _block(0x0A0D0D0A, section) + _block(1, interface)


def _packet(microseconds, data, length):
    head = struct.pack(
        '<IIIII', 0, microseconds >> 32, microseconds & 0xFFFFFFFF, len(data), length
    )
    return _block(6, head + _padded(data))


def _ip(source, target, size):
    """The IP header of a TCP segment of `size` bytes. Checksums of 0 are not checked."""
    if ':' in source or ':' in target:
        pairs = [socket.inet_pton(socket.AF_INET6, _plain6(each)) for each in (source, target)]
        return struct.pack('>IHBB', 0x60000000, size, 6, 64) + pairs[0] + pairs[1]
    pairs = [socket.inet_pton(socket.AF_INET, each) for each in (source, target)]
    return struct.pack('>BBHHHBBH', 0x45, 0, 20 + size, 0, 0x4000, 64, 6, 0) + pairs[0] + pairs[1]


def _plain6(address):
    address = address.partition('%')[0]
    return address if ':' in address else '::ffff:' + address


_SYN, _ACK, _PUSH_ACK, _SYN_ACK = 0x02, 0x10, 0x18, 0x12


class Conversation(object):
    """The packets of one connection. peer, local: [address, port] of the initiator and of the target."""

    def __init__(self, peer, local):
        self._ends = {
            RECEIVED: (peer[0], peer[1], local[0], ISCSI_PORT),
            SENT: (local[0], ISCSI_PORT, peer[0], peer[1]),
        }
        self._next = {RECEIVED: 0, SENT: 0}  # offset after the last byte of each direction

    def beginning(self, microseconds):
        """The packets that open the connection, so that sequence numbers are shown from 0 on."""
        parts = [
            self._segment(RECEIVED, microseconds, 0, 0, _SYN),
            self._segment(SENT, microseconds, 0, 1, _SYN_ACK),
            self._segment(RECEIVED, microseconds, 1, 1, _ACK),
        ]
        return b''.join(parts)

    def packets(self, record):
        """The packets of one PDU."""
        other = SENT if record.kind == RECEIVED else RECEIVED
        out, done = [], 0
        while done < record.length:
            size = min(_LONGEST_SEGMENT, record.length - done)
            data = record.data[done : done + size]
            number = record.offset + done + 1
            acknowledged = self._next[other] + 1
            out.append(
                self._segment(
                    record.kind, record.microseconds, number, acknowledged, _PUSH_ACK, data, size
                )
            )
            done += size
        self._next[record.kind] = record.offset + record.length
        return b''.join(out)

    def _segment(self, kind, microseconds, number, acknowledged, flags, data=b'', size=0):
        source, source_port, target, target_port = self._ends[kind]
        tcp = struct.pack(
            '>HHIIBBHHH',
            source_port,
            target_port,
            number & 0xFFFFFFFF,
            acknowledged & 0xFFFFFFFF,
            0x50,
            flags,
            0xFFFF,
            0,
            0,
        )
        header = _ip(source, target, len(tcp) + size) + tcp
        return _packet(microseconds, header + data, len(header) + size)


class File(object):
    """The contents of a file, as pieces of bytes. port: of the target, for the comment."""

    def __init__(self, port, what):
        self.header = file_header(
            '%s; the real port of the target is %s; IP and TCP headers are synthetic' % (what, port)
        )
        self._conversations = {}
        self.pdus = 0
        self.lost = 0

    def add(self, source, record):
        """The bytes to append for a Record. source: the socket that it came from (connections are
        numbered in each)."""
        key = source, record.connection
        if record.kind == CONNECTION:
            words = json.loads(record.data.decode('utf-8'))
            peer = tuple(words['peer'])
            known = self._conversations.get(peer)
            if known is not None:  # the login was captured in another process
                self._conversations[key] = known
                return b''
            found = Conversation(words['peer'], words['local'])
            self._conversations[key] = self._conversations[peer] = found
            return found.beginning(record.microseconds)
        if record.kind == LOST:
            self.lost += record.length
            return b''
        self.pdus += 1
        return self._conversations[key].packets(record)
