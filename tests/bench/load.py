"""A flat load of our own, for what Debian's clients cannot do: data digests, probes under load, a
part of the medium only.

Logs in with the tests' strict initiator, then keeps `depth` READ(10) or WRITE(10) on their way in a
loop that does nothing else, so that the target stays the slower of the two. A probe, if asked for,
is a NOP-Out or a READ of block 0 sent among them every few milliseconds, one at a time, whose
latency is noted: as the initiator sees it, behind whatever it has itself not read yet. A process of
its own, run by the server's interpreter, that prints one JSON object:

    {"operations": …, "seconds": …, "probes": [seconds, …]}
"""

import argparse
import json
import os
import random
import struct
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import initiator  # noqa: E402
from pdus import (  # noqa: E402
    DATA_IN,
    DATA_OUT,
    FINAL,
    IMMEDIATE,
    NO_TAG,
    NOP_IN,
    NOP_OUT,
    R2T,
    SCSI_COMMAND,
    SCSI_RESPONSE,
    lun_field,
)

BLOCK = 512
PROBE_TAG = 0x10000
BATCH_BUFFERS = 1000
RECEIVE_BYTES = 4 << 20

_HEADER = struct.Struct('>BBBBI8xIIIIIIII')
_COMMAND = struct.Struct('>BBHI8sIIII16s').pack
_TAIL = struct.Struct('>BBHI8sIIIIIIII').pack
_CDB_10 = struct.Struct('>BBIBHB6x').pack
_DIGEST = struct.Struct('<I')
_PAD = (b'', b'\0\0\0', b'\0\0', b'\0')
_MASK = 0xFFFFFFFF

#: What libiscsi asks for.
KEYS = {
    'InitialR2T': 'No',
    'ImmediateData': 'Yes',
    'MaxRecvDataSegmentLength': '262144',
    'MaxBurstLength': '262144',
    'FirstBurstLength': '262144',
}


class Load(object):
    """One session. session: an initiator.Session that is logged in; lun: a LUN, or a list of them that
    take turns (of reads, or of writes without R2T); area: first and last byte + 1 of each medium to
    use."""

    def __init__(
        self,
        session,
        lun,
        write,
        size,
        depth,
        area,
        crc32c=None,
        sequential=False,
        probe=None,
        probe_seconds=0.005,
        fua=False,
        reads=0,
    ):
        self._socket = session.wire.socket
        self._luns = [lun_field(each) for each in (lun if isinstance(lun, list) else [lun])]
        self._lun = self._luns[0]
        self._flags = 8 if fua else 0
        self._reads = reads  # percent of the commands, if others write
        self._write = write
        self._size, self._depth, self._area = size, depth, area
        self._crc32c = crc32c
        self._sequential = sequential
        self._probe, self._probe_seconds = probe, probe_seconds
        self._session = session
        self._cmd_sn, self._stat_sn = session.cmd_sn, session.exp_stat_sn
        self._payload = memoryview(os.urandom(size) if write else b'')
        self._digests = {}  # (offset, length) of the payload -> its digest, made once
        self._next = area[0]
        self._out = []
        self._completed = []  # tags of commands that ended in this batch
        self._probe_sent = None
        self.probes = []

    # -- sending -----------------------------------------------------------------------------------

    def _put(self, header, data=b'', digest=None):
        """Queue a PDU; data: bytes-like; digest: its data digest, if it is known."""
        out = self._out
        out.append(header)
        if self._crc32c:
            out.append(_DIGEST.pack(self._crc32c(header)))
        if len(data):
            pad = _PAD[len(data) & 3]
            out.append(data)
            if pad:
                out.append(pad)
            if self._crc32c:
                out.append(digest or _DIGEST.pack(self._crc32c(pad, self._crc32c(data))))

    def _piece(self, offset, length):
        """(data, digest) of a piece of the payload."""
        data = self._payload[offset : offset + length]
        digest = None
        if self._crc32c:
            digest = self._digests.get((offset, length))
            if digest is None:
                crc = self._crc32c(_PAD[length & 3], self._crc32c(data))
                digest = self._digests[offset, length] = _DIGEST.pack(crc)
        return data, digest

    def _take_cmd_sn(self):
        sn = self._cmd_sn
        self._cmd_sn = sn + 1 & _MASK
        return sn

    def _offset(self):
        first, end = self._area
        if not self._sequential:
            return first + random.randrange((end - first) // self._size) * self._size
        at = self._next
        self._next = at + self._size if at + 2 * self._size <= end else first
        return at

    def _submit(self, tag):
        size = self._size
        lun = self._luns[tag % len(self._luns)]
        writes = self._write and random.randrange(100) >= self._reads
        cdb = _CDB_10(
            0x2A if writes else 0x28,
            self._flags if writes else 0,
            self._offset() // BLOCK,
            0,
            size // BLOCK,
            0,
        )
        if not writes:
            self._put(
                _COMMAND(
                    SCSI_COMMAND,
                    FINAL | 0x41,
                    0,
                    0,
                    lun,
                    tag,
                    size,
                    self._take_cmd_sn(),
                    self._stat_sn,
                    cdb,
                )
            )
            return
        session = self._session
        unsolicited = min(session.first_burst, size)
        immediate = min(unsolicited, session.send_limit) if session.immediate_data else 0
        more = not session.initial_r2t and immediate < unsolicited
        data, digest = self._piece(0, immediate)
        self._put(
            _COMMAND(
                SCSI_COMMAND,
                (0 if more else FINAL) | 0x21,
                0,
                immediate,
                lun,
                tag,
                size,
                self._take_cmd_sn(),
                self._stat_sn,
                cdb,
            ),
            data,
            digest,
        )
        if more:
            self._data_out(tag, NO_TAG, immediate, unsolicited)

    def _data_out(self, tag, ttt, offset, end):
        limit, data_sn = self._session.send_limit, 0
        while offset < end:
            length = min(limit, end - offset)
            data, digest = self._piece(offset, length)
            self._put(
                _TAIL(
                    DATA_OUT,
                    FINAL if offset + length == end else 0,
                    0,
                    length,
                    self._lun,
                    tag,
                    ttt,
                    0,
                    self._stat_sn,
                    0,
                    data_sn,
                    offset,
                    0,
                ),
                data,
                digest,
            )
            offset += length
            data_sn += 1

    def _send_probe(self, now):
        self._probe_sent = now
        if self._probe == 'nop':
            self._put(
                _TAIL(
                    NOP_OUT | IMMEDIATE,
                    FINAL,
                    0,
                    0,
                    self._lun,
                    PROBE_TAG,
                    NO_TAG,
                    self._cmd_sn,
                    self._stat_sn,
                    0,
                    0,
                    0,
                    0,
                )
            )
        else:
            self._put(
                _COMMAND(
                    SCSI_COMMAND,
                    FINAL | 0x41,
                    0,
                    0,
                    self._lun,
                    PROBE_TAG,
                    BLOCK,
                    self._take_cmd_sn(),
                    self._stat_sn,
                    _CDB_10(0x28, 0, 0, 0, 1, 0),
                )
            )

    def _flush(self):
        out, self._out = self._out, []
        for at in range(0, len(out), BATCH_BUFFERS):
            batch = out[at : at + BATCH_BUFFERS]
            sent = self._socket.sendmsg(batch)
            total = sum(map(len, batch))
            if sent < total:
                self._socket.sendall(b''.join(batch)[sent:])

    # -- receiving ---------------------------------------------------------------------------------

    def _receive(self, view, start, end):
        """Act on the whole PDUs in view[start:end]; returns the start of the first incomplete one, which
        starts."""
        crc32c = self._crc32c
        digest = 4 if crc32c else 0
        while end - start >= 48 + digest:
            header = _HEADER.unpack_from(view, start)
            length = header[4]
            body = start + 48 + digest
            after = body + (length + 3 & ~3) + (digest if length else 0)
            if after > end:
                break
            if crc32c:
                self._check(view, start, start + 48)
                if length:
                    self._check(view, body, after - 4)
            self._act(header)
            start = after
        return start

    def _check(self, view, start, end):
        if self._crc32c(view[start:end]) != _DIGEST.unpack_from(view, end)[0]:
            raise initiator.Violation('a wrong digest')

    def _act(self, header):
        opcode, flags, response, status, _, tag, ttt, stat_sn, _, _, _, offset, length = header
        opcode &= 0x3F
        if opcode == DATA_IN:
            if not flags & 1:
                return
        elif opcode == R2T:
            self._data_out(tag, ttt, offset, offset + length)
            return
        elif opcode == NOP_IN and tag == NO_TAG:
            self._put(
                _TAIL(
                    NOP_OUT | IMMEDIATE,
                    FINAL,
                    0,
                    0,
                    self._lun,
                    NO_TAG,
                    ttt,
                    self._cmd_sn,
                    self._stat_sn,
                    0,
                    0,
                    0,
                    0,
                )
            )
            return
        elif opcode not in (SCSI_RESPONSE, NOP_IN):
            raise initiator.Violation('a PDU with opcode %02x under load' % opcode)
        if opcode != NOP_IN and (status or opcode == SCSI_RESPONSE and response):
            raise initiator.Violation('response %02x, status %02x under load' % (response, status))
        self._stat_sn = stat_sn + 1 & _MASK
        if tag == PROBE_TAG:
            self.probes.append(time.perf_counter() - self._probe_sent)
            self._probe_sent = None
        else:
            self._completed.append(tag)

    # -- the loop ----------------------------------------------------------------------------------

    def run(self, seconds):
        """(operations that ended, seconds). Nothing is on its way afterwards."""
        buffer = bytearray(RECEIVE_BYTES)
        view = memoryview(buffer)
        start = end = operations = 0
        for tag in range(self._depth):
            self._submit(tag)
        began = probed = now = time.perf_counter()
        deadline = began + seconds
        running = self._depth
        while running or self._probe_sent is not None:
            self._flush()
            if end == len(buffer):
                rest = bytes(view[start:end])
                view[: len(rest)] = rest
                start, end = 0, len(rest)
            count = self._socket.recv_into(view[end:])
            if not count:
                raise initiator.Closed('under load')
            end += count
            start = self._receive(view, start, end)
            if start == end:
                start = end = 0
            now = time.perf_counter()
            operations += len(self._completed)
            if now < deadline:
                for tag in self._completed:
                    self._submit(tag)
                if self._probe and self._probe_sent is None and now - probed >= self._probe_seconds:
                    probed = now
                    self._send_probe(now)
            else:
                running -= len(self._completed)
            del self._completed[:]
        return operations, now - began

    def logout(self):
        """Set the numbering of the session, and log out."""
        self._session.cmd_sn, self._session.exp_stat_sn = self._cmd_sn, self._stat_sn
        self._session.logout()


def digest_function():
    """crc32c(data, value=0) of the C extension; there is no sense in measuring without."""
    try:
        from crc32c import crc32c
    except ImportError:
        sys.exit('the Python package crc32c is not installed for %s' % sys.executable)
    return crc32c


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--port', type=int, required=True)
    parser.add_argument('--target', required=True)
    parser.add_argument('--lun', type=int, default=1)
    parser.add_argument('--luns', type=int, default=1, help='number of LUNs that take turns')
    parser.add_argument('--write', action='store_true')
    parser.add_argument('--fua', action='store_true', help='the writes are durable')
    parser.add_argument('--reads', type=int, default=0, help='with --write: percent of reads')
    parser.add_argument('--sequential', action='store_true')
    parser.add_argument('--size', type=int, default=4096, help='bytes of each command')
    parser.add_argument('--depth', type=int, default=32)
    parser.add_argument('--seconds', type=float, default=2.0)
    parser.add_argument(
        '--area',
        type=int,
        nargs=2,
        required=True,
        metavar='BYTE',
        help='where on the medium: from, to',
    )
    parser.add_argument('--digests', action='store_true', help='header and data digests')
    parser.add_argument('--probe', choices=('nop', 'read'))
    return parser.parse_args(arguments)


def main():
    options = parse()
    crc32c = digest_function() if options.digests else None
    keys = dict(KEYS)
    if crc32c:
        keys.update(HeaderDigest='CRC32C', DataDigest='CRC32C')
    session = initiator.connect(('127.0.0.1', options.port), options.target, keys=keys)
    if crc32c and not (session.wire.header_digest and session.wire.data_digest):
        sys.exit('the target does not want digests: %s' % session.keys)
    luns = list(range(options.lun, options.lun + options.luns))
    for lun in luns:
        session.clear_attentions(lun)
    load = Load(
        session,
        luns,
        options.write,
        options.size,
        options.depth,
        options.area,
        crc32c,
        options.sequential,
        options.probe,
        fua=options.fua,
        reads=options.reads,
    )
    operations, seconds = load.run(options.seconds)
    load.logout()
    print(json.dumps({'operations': operations, 'seconds': seconds, 'probes': load.probes}))


if __name__ == '__main__':
    main()
