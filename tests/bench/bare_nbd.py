"""A bare pipelined client of an NBD server: what a LUN on the server is measured against.

It keeps `depth` requests on their way on one connection and does nothing else: no errors, no lost connection,
no order. A process of its own that prints one JSON object:

    {"operations": …, "seconds": …, "cpu": its processor seconds}
"""

import argparse
import json
import os
import random
import struct
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from targetd.master.exports import nbd_connecting  # noqa: E402
from targetd.nbd import numbers, uri  # noqa: E402

REQUEST = struct.Struct('>IHHQQI').pack
RECEIVE_BYTES = 4 << 20


class Client(object):
    """sock: connected; export: handshake.Export; the rest as in parse()."""

    def __init__(self, sock, export, size, depth, area, write):
        self._socket, self._structured = sock, export.structured
        self._size, self._depth, self._blocks = size, depth, area // size
        self._payload = os.urandom(size) if write else None
        self._command = numbers.CMD_WRITE if write else numbers.CMD_READ
        has_df = not write and export.flags & numbers.SEND_DF
        self._flags = numbers.FLAG_DF if has_df else 0

    def _send(self, count):
        out = []
        for _ in range(count):
            offset = random.randrange(self._blocks) * self._size
            out.append(
                REQUEST(numbers.REQUEST_MAGIC, self._flags, self._command, 1, offset, self._size)
            )
            if self._payload:
                out.append(self._payload)
        total, sent = sum(map(len, out)), self._socket.sendmsg(out)
        if sent < total:
            self._socket.sendall(b''.join(out)[sent:])

    def _reply_size(self, head):
        """Bytes of each reply; a server may answer what has no data with simple ones."""
        if struct.unpack('>I', head)[0] == numbers.SIMPLE_REPLY_MAGIC:
            return 16 + (0 if self._payload else self._size)
        return 20 + (0 if self._payload else 8 + self._size)

    def run(self, seconds):
        """(operations, seconds). Nothing is on its way afterwards."""
        buffer = bytearray(RECEIVE_BYTES)
        began = time.perf_counter()
        self._send(self._depth)
        flying, there, done, reply = self._depth, 0, 0, None
        while flying:
            there += self._socket.recv_into(memoryview(buffer)[there if reply is None else 0 :])
            if reply is None:
                if there < 4:
                    continue
                reply = self._reply_size(bytes(buffer[:4]))
            count, there = divmod(there, reply)
            done, flying = done + count, flying - count
            if count and time.perf_counter() < began + seconds:
                self._send(count)
                flying += count
        return done, time.perf_counter() - began


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--uri', required=True)
    parser.add_argument('--size', type=int, default=4096, help='bytes of each request')
    parser.add_argument('--depth', type=int, default=32)
    parser.add_argument('--seconds', type=float, default=2.0)
    parser.add_argument('--area', type=int, default=64 << 20, help='bytes of the export to use')
    parser.add_argument('--write', action='store_true')
    return parser.parse_args(arguments)


def main():
    options = parse()
    sock, export = nbd_connecting.connect(uri.parse_uri(options.uri))
    client = Client(sock, export, options.size, options.depth, options.area, options.write)
    before = time.process_time()
    operations, seconds = client.run(options.seconds)
    cpu = time.process_time() - before
    print(json.dumps({'operations': operations, 'seconds': seconds, 'cpu': cpu}))


if __name__ == '__main__':
    main()
