"""CRC32C by the kernel, which is asked through sockets of the family AF_ALG: quick wherever there
is no C extension.

Base. A request is one message (the bytes) and its answer another (the CRC, little endian). It costs
two system calls whatever the length, which is less than a loop over half a PDU header; the kernel
reads the bytes where they lie. The algorithm always begins with the register 0xFFFFFFFF: to go on
from a value, the value is XORed onto the first four bytes, as the register would have been.

Invariants: a socket carries one request at a time, and one process's only (another process that
inherited it would get our answers); anything that goes wrong is answered by the tables, never by an
error, and said once.
"""

import os
import socket
import struct

from targetd import log

#: Bytes below which two system calls cost more than the tables' loop (0.1 us a byte against 2 us).
SHORT = 32

_ANSWER = struct.Struct('<I').unpack

#: What a kernel must get right before it is believed: (data, value to go on from, CRC).
_SAMPLE = bytes(range(256)) * 17
KNOWN = (
    (b'\0' * 32, 0, 0x8A9136AA),
    (_SAMPLE, 0, 0x52DDE6D2),
    (_SAMPLE[100:], 0x12345678, 0xBFEE7B17),
)


def open_request():
    """A socket that takes messages and answers with their CRC32C. Raises OSError or AttributeError
    where there is none."""
    algorithm = socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET, 0)
    try:
        algorithm.bind(('hash', 'crc32c'))
        return algorithm.accept()[0]
    finally:
        algorithm.close()


class KernelDigest(object):
    """`crc32c(data, value)`, from any thread. fallback: a function like it, for what is short and for what fails."""

    def __init__(self, fallback):
        self._fallback = fallback
        self._idle = {}  # process id -> its sockets that are not in use
        self._has_complained = False

    def crc32c(self, data, value=0):
        """CRC32C of `data` (bytes-like), going on from `value`. Hot, with digests."""
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
        """True if the kernel has CRC32C and computes it as the standard does. Keeps nothing open."""
        try:
            with open_request() as request:
                return all(_ask(request, data, value) == crc for data, value, crc in KNOWN)
        except (OSError, AttributeError):  # no AF_ALG in this kernel, or in this Python
            return False

    def _complain(self, error):
        if not self._has_complained:
            self._has_complained = True
            log.warning(
                'the kernel did not compute a digest (%s); the slow way does, now and whenever that happens',
                error,
            )


def _ask(request, data, value):
    """Raises OSError."""
    if value:
        first = int.from_bytes(data[:4], 'little') ^ value
        sent = request.sendmsg((first.to_bytes(4, 'little'), memoryview(data)[4:]))
    else:
        sent = request.send(data)
    answer = request.recv(4)
    if sent != len(data) or len(answer) != 4:
        raise OSError('%d of %d bytes taken, %d bytes answered' % (sent, len(data), len(answer)))
    return _ANSWER(answer)[0]
