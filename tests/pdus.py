"""PDUs, digests, text keys and CHAP of an initiator, for tests; no code is shared with the
target. A received PDU that violates RFC 7143 11 raises Violation.
"""

import base64
import hashlib
import hmac
import os
import socket
import struct

# Opcodes, RFC 7143 11.2.1.2
NOP_OUT, SCSI_COMMAND, TASK_MANAGEMENT, LOGIN, TEXT, DATA_OUT, LOGOUT, SNACK = range(8)
(
    NOP_IN,
    SCSI_RESPONSE,
    TASK_MANAGEMENT_RESPONSE,
    LOGIN_RESPONSE,
    TEXT_RESPONSE,
    DATA_IN,
    LOGOUT_RESPONSE,
) = range(0x20, 0x27)
R2T, ASYNC, REJECT = 0x31, 0x32, 0x3F

IMMEDIATE = 0x40
FINAL = 0x80
NO_TAG = 0xFFFFFFFF


class Violation(AssertionError):
    """The target sent what RFC 7143 does not allow."""


class Closed(Exception):
    """The target closed the connection."""


def require(condition, text, *arguments):
    if not condition:
        raise Violation(text % arguments)


# -- CRC32C, RFC 7143 11.2.3: polynomial 1EDC6F41, reflected ---------------------------------------


def _crc_table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC = _crc_table()


def crc32c(data):
    """Returns the digest of `data` as four bytes in wire order."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return struct.pack('<I', crc ^ 0xFFFFFFFF)


# -- PDUs ------------------------------------------------------------------------------------------


def lun_field(lun):
    """Returns the 8-byte LUN field: peripheral device addressing up to 255, flat space addressing
    above (SAM-5)."""
    return struct.pack('>H6x', lun if lun < 256 else 0x4000 | lun)


def pack_bhs(
    opcode,
    flags=FINAL,
    lun=0,
    itt=0,
    word20=0,
    word24=0,
    word28=0,
    word32=0,
    word36=0,
    word40=0,
    word44=0,
    second=b'\0\0',
):
    """Returns a header of 48 bytes; Wire.send sets the lengths. `second`: bytes 2 and 3."""
    return struct.pack(
        '>BB2s4x8s8I',
        opcode,
        flags,
        second,
        lun_field(lun) if isinstance(lun, int) else lun,
        itt,
        word20,
        word24,
        word28,
        word32,
        word36,
        word40,
        word44,
    )


class Pdu(object):
    """A received PDU: bhs (48 bytes), ahs, data."""

    def __init__(self, bhs, ahs, data):
        self.bhs, self.ahs, self.data = bhs, ahs, data
        self.opcode, self.flags = bhs[0] & 0x3F, bhs[1]
        (
            self.itt,
            self.ttt,
            self.stat_sn,
            self.exp_cmd_sn,
            self.max_cmd_sn,
            self.word36,
            self.word40,
            self.word44,
        ) = struct.unpack_from('>8I', bhs, 16)
        self.lun = bhs[8:16]

    def __repr__(self):
        return 'Pdu(opcode %02x flags %02x itt %08x, %d bytes)' % (
            self.opcode,
            self.flags,
            self.itt,
            len(self.data),
        )


def read_10(lba, blocks=1):
    """Returns a CDB (SBC-3)."""
    return struct.pack('>BBIBHB', 0x28, 0, lba, 0, blocks, 0)


def write_10(lba, blocks=1, fua=False):
    """Returns a CDB (SBC-3)."""
    return struct.pack('>BBIBHB', 0x2A, 8 if fua else 0, lba, 0, blocks, 0)


def pack_text(pairs):
    """Returns text keys in wire format. `pairs`: a mapping or (key, value) pairs."""
    pairs = pairs.items() if hasattr(pairs, 'items') else pairs
    return b''.join(('%s=%s' % pair).encode('utf-8') + b'\0' for pair in pairs)


def unpack_pairs(data):
    """Returns [(key, value), …] in the order of arrival."""
    require(not data or data.endswith(b'\0'), 'text does not end with NUL: %r', data[-20:])
    return [tuple(word.decode('utf-8').split('=', 1)) for word in data.split(b'\0') if word]


def unpack_text(data):
    """Returns the keys as a dict; a duplicate key raises Violation."""
    pairs = unpack_pairs(data)
    keys = [key for key, _ in pairs]
    require(len(set(keys)) == len(keys), 'a key was sent twice: %s', keys)
    return dict(pairs)


class Wire(object):
    """One TCP connection and its PDU framing, with digests but without sequence numbers."""

    def __init__(self, address, timeout=20.0, receive_buffer=None, source=None):
        family = socket.AF_INET6 if ':' in address[0] else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source:
            self.socket.bind((source, 0))
        self.socket.connect(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.header_digest = self.data_digest = False

    def send(self, bhs, data=b'', ahs=b'', spoil_header=False, spoil_data=False):
        """Sends a PDU; `spoil_…` sends a wrong digest."""
        require(len(ahs) % 4 == 0, 'an AHS of %d bytes in a test', len(ahs))
        head = bhs[:4] + struct.pack('>I', ((len(ahs) // 4) << 24) | len(data)) + bhs[8:] + ahs
        parts = [head]
        if self.header_digest:
            parts.append(_spoil(crc32c(head), spoil_header))
        if data:
            padded = bytes(data) + bytes(-len(data) % 4)
            parts.append(padded)
            if self.data_digest:
                parts.append(_spoil(crc32c(padded), spoil_data))
        self.raw(b''.join(parts))

    def raw(self, data):
        """Sends unchanged bytes."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as e:
            raise Closed(str(e))

    def _exactly(self, count):
        data = bytearray()
        while len(data) < count:
            try:
                part = self.socket.recv(count - len(data))
            except ConnectionResetError as e:
                raise Closed(str(e))
            if not part:
                require(
                    not data,
                    'the connection ended inside a PDU, after %d of %d bytes',
                    len(data),
                    count,
                )
                raise Closed('end of stream')
            data += part
        return bytes(data)

    def receive(self):
        """Returns the next Pdu. Raises Closed or socket.timeout."""
        bhs = self._exactly(48)
        ahs = self._exactly(4 * bhs[4])
        if self.header_digest:
            require(self._exactly(4) == crc32c(bhs + ahs), 'wrong header digest')
        length = struct.unpack_from('>I', bhs, 4)[0] & 0xFFFFFF
        data = self._exactly(length + (-length % 4))
        if length and self.data_digest:
            require(self._exactly(4) == crc32c(data), 'wrong data digest')
        return Pdu(bhs, ahs, data[:length])

    def close(self):
        self.socket.close()

    def reset(self):
        """Closes the connection with a TCP reset, as after a crash of the host."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        self.socket.close()


def _spoil(digest, spoilt):
    return bytes([digest[0] ^ 0x55]) + digest[1:] if spoilt else digest


# -- CHAP, RFC 7143 12.1.3 -------------------------------------------------------------------------

_HASH = {5: hashlib.md5, 6: hashlib.sha1, 7: hashlib.sha256, 8: getattr(hashlib, 'sha3_256', None)}


def encode_binary(data, encoding):
    if encoding == 'base64':
        return '0b' + base64.b64encode(data).decode('ascii')
    return '0x' + data.hex()


def decode_binary(text):
    if text[:2].lower() == '0b':
        return base64.b64decode(text[2:])
    require(text[:2].lower() == '0x', 'a binary value begins with %r', text[:2])
    return bytes.fromhex(text[2:] if len(text) % 2 == 0 else '0' + text[2:])


def chap_response(algorithm, identifier, secret, challenge):
    return _HASH[algorithm](bytes([identifier]) + secret.encode('utf-8') + challenge).digest()


class Chap(object):
    """The initiator's side of CHAP. `back`: (name, secret) of the target, for mutual CHAP."""

    def __init__(self, name, secret, algorithms='5', back=None, encoding='hex', challenge=None):
        self.name, self.secret, self.algorithms, self.back, self.encoding = (
            name,
            secret,
            algorithms,
            back,
            encoding,
        )
        self.challenge = challenge if challenge is not None else os.urandom(16)
        self.identifier = 0x2A
        self.algorithm = None  # what the target chose

    def answer(self, keys):
        """Returns CHAP_N and CHAP_R (and CHAP_I, CHAP_C) for the target's CHAP_A, CHAP_I,
        CHAP_C."""
        self.algorithm = int(keys['CHAP_A'])
        require(
            str(self.algorithm) in self.algorithms.split(','),
            'CHAP_A=%s was not offered',
            self.algorithm,
        )
        challenge = decode_binary(keys['CHAP_C'])
        require(len(challenge) >= 16, 'a challenge of only %d bytes', len(challenge))
        response = chap_response(self.algorithm, int(keys['CHAP_I']), self.secret, challenge)
        pairs = [('CHAP_N', self.name), ('CHAP_R', encode_binary(response, self.encoding))]
        if self.back:
            pairs += [
                ('CHAP_I', str(self.identifier)),
                ('CHAP_C', encode_binary(self.challenge, self.encoding)),
            ]
        return pairs

    def verify(self, keys):
        """Checks the CHAP_N and CHAP_R of the target."""
        if not self.back:
            return
        name, secret = self.back
        require(keys.get('CHAP_N') == name, 'the target calls itself %r', keys.get('CHAP_N'))
        expected = chap_response(self.algorithm, self.identifier, secret, self.challenge)
        require(
            hmac.compare_digest(decode_binary(keys['CHAP_R']), expected),
            "the target's CHAP response is wrong",
        )
