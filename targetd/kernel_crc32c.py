"""CRC32C computed by the kernel through sockets of the family AF_ALG: fast on hosts without a C
extension.

Base. A request is one message (the bytes), the answer another message (the CRC, little endian). A
request takes two system calls whatever its length, less than a loop over half a PDU header; the
kernel does not copy the bytes. The algorithm always starts with the register 0xFFFFFFFF: to continue
from an earlier value, that value is XORed onto the first four bytes.

Invariants: a socket carries one request at a time, and is used by one process only (a process that
inherited it would receive the answers of its parent); after any failure the tables compute the
digest, no error is raised, and one warning is logged.
"""

import os
import socket
import struct

from targetd import log

#: Bytes below which the loop over the tables (0.1 us a byte) is faster than two system calls (2 us).
SHORT = 32

_ANSWER = struct.Struct('<I').unpack

#: Test vectors that the kernel must compute correctly before it is used: (data, earlier value, CRC).
_SAMPLE = bytes(range(256)) * 17
KNOWN = (
    (b'\0' * 32, 0, 0x8A9136AA),
    (_SAMPLE, 0, 0x52DDE6D2),
    (_SAMPLE[100:], 0x12345678, 0xBFEE7B17),
)


def open_request():
    """Return a socket that answers each message with its CRC32C. Raises OSError or AttributeError if
    this host does not support it."""
    algorithm = socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET, 0)
    try:
        algorithm.bind(('hash', 'crc32c'))
        return algorithm.accept()[0]
    finally:
        algorithm.close()


class KernelDigest(object):
    """The kernel's CRC32C, for any thread. fallback: a function crc32c(data, value) for short data and
    after failures."""

    def __init__(self, fallback):
        self._fallback = fallback
        self._idle = {}  # process id -> its idle sockets
        self._has_complained = False

    def crc32c(self, data, value=0):
        """Return the CRC32C of `data` (bytes-like); `value` is the CRC of the bytes before it. Hot if
        digests are used."""
        if len(data) < SHORT:
            return self._fallback(data, value)
        idle = self._idle.get(os.getpid())
        if idle is None:
            idle = self._idle.setdefault(os.getpid(), [])
        try:
            request = idle.pop()
        except IndexError:
            request = None
        try:
            if request is None:
                request = open_request()
            result = _ask(request, data, value)
        except OSError as e:
            if request is not None:
                request.close()
            self._complain(e)
            return self._fallback(data, value)
        idle.append(request)
        return result

    def is_right(self):
        """Return True if the kernel supports CRC32C and computes it correctly. Keeps no socket open."""
        try:
            with open_request() as request:
                return all(_ask(request, data, value) == crc for data, value, crc in KNOWN)
        except (OSError, AttributeError):  # no AF_ALG in this kernel, or in this Python
            return False

    def _complain(self, error):
        if not self._has_complained:
            self._has_complained = True
            log.warning(
                'the kernel failed to compute a digest (%s); it was computed in Python, which is slower',
                error,
            )


def _ask(request, data, value):
    """Return the kernel's answer for one request. Raises OSError."""
    if value:
        first = int.from_bytes(data[:4], 'little') ^ value
        sent = request.sendmsg((first.to_bytes(4, 'little'), memoryview(data)[4:]))
    else:
        sent = request.send(data)
    answer = request.recv(4)
    if sent != len(data) or len(answer) != 4:
        raise OSError('%d of %d bytes taken, %d bytes answered' % (sent, len(data), len(answer)))
    return _ANSWER(answer)[0]
