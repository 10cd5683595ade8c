"""iSNSP messages and their bytes (RFC 4171 5): PDUs, attributes, and the numbers that they carry.
Pure; no other import.

A message is one or more PDUs of one transaction, a PDU a header of 12 bytes and its part of the
payload:

    version 2 | function 2 | payload length 2 | flags 2 | transaction 2 | sequence 2      RFC 4171 5.1
    payload of a request:   source, keys, delimiter, operating attributes      RFC 4171 5.6
    payload of a response:  status 4, keys, delimiter, operating attributes      RFC 4171 5.7
    attribute:              tag 4 | length 4 | value, padded to a multiple of four      RFC 4171 5.1.2, 6

In this module the payload is a tuple of (tag, value bytes). The delimiter is an attribute with the tag
DELIMITER. An attribute with an empty value requests the attribute in a query, and denies access in a
portal group.
"""

import ipaddress
import struct
from collections import namedtuple

VERSION = 0x0001
PORT = 3205

# Functions; a response has RESPONSE added, RFC 4171 5.1.1
REGISTER = 0x0001  # DevAttrReg
QUERY = 0x0002  # DevAttrQry
DEREGISTER = 0x0004  # DevDereg
REGISTER_SCN = 0x0005  # SCNReg
STATE_CHANGE_NOTIFICATION = 0x0008  # SCN
ENTITY_STATUS_INQUIRY = 0x000D  # ESI
HEARTBEAT = 0x000E
RESPONSE = 0x8000
FUNCTION_NAMES = {
    REGISTER: 'DevAttrReg',
    QUERY: 'DevAttrQry',
    DEREGISTER: 'DevDereg',
    REGISTER_SCN: 'SCNReg',
    STATE_CHANGE_NOTIFICATION: 'SCN',
    ENTITY_STATUS_INQUIRY: 'ESI',
    HEARTBEAT: 'Heartbeat',
}

# Flags, RFC 4171 5.1.4
FROM_CLIENT = 0x8000
FROM_SERVER = 0x4000
AUTHENTICATED = 0x2000
REPLACE = 0x1000
LAST = 0x0800
FIRST = 0x0400

# Status codes, RFC 4171 5.4
SUCCESS = 0
NO_SUCH_ENTRY = 9
MESSAGE_NOT_SUPPORTED = 15
ESI_NOT_AVAILABLE = 21
STATUS_NAMES = {
    0: 'successful',
    1: 'unknown error',
    2: 'message format error',
    3: 'invalid registration',
    5: 'invalid query',
    6: 'source unknown',
    7: 'source absent',
    8: 'source unauthorized',
    9: 'no such entry',
    10: 'version not supported',
    11: 'internal error',
    12: 'busy',
    13: 'option not understood',
    14: 'invalid update',
    15: 'message not supported',
    16: 'SCN event rejected',
    17: 'SCN registration rejected',
    18: 'attribute not implemented',
    21: 'ESI not available',
    22: 'invalid deregistration',
    23: 'registration feature not supported',
}

# Attributes, RFC 4171 6.1
DELIMITER = 0
ENTITY_IDENTIFIER = 1
ENTITY_PROTOCOL = 2
TIMESTAMP = 4
REGISTRATION_PERIOD = 6
PORTAL_ADDRESS = 16
PORTAL_PORT = 17
ESI_INTERVAL = 19
ESI_PORT = 20
SCN_PORT = 23
ISCSI_NAME = 32
ISCSI_NODE_TYPE = 33
ISCSI_ALIAS = 34
ISCSI_SCN_BITMAP = 35
PG_PORTAL_ADDRESS = 49
PG_PORTAL_PORT = 50
PG_TAG = 51

PROTOCOL_ISCSI = 2  # RFC 4171 6.2.2
NODE_TARGET = 1  # RFC 4171 6.4.2

# Bits of the SCN bitmap, RFC 4171 6.4.4
INITIATORS_AND_SELF = 0x80
OBJECT_REMOVED = 0x10
OBJECT_ADDED = 0x08
OBJECT_UPDATED = 0x04
MEMBER_REMOVED = 0x02
MEMBER_ADDED = 0x01

HEADER = struct.Struct('>HHHHHH')
ATTRIBUTE = struct.Struct('>II')
NUMBER = struct.Struct('>I')

LONGEST_PDU = 8192  # including the header; Open-iSNS cannot read a longer PDU
MAXIMUM_MESSAGE = 1 << 20  # bytes of a payload that is assembled
MAPPED = b'\0' * 10 + b'\xff\xff'


class BadMessage(ValueError):
    """A received message is not a valid iSNSP message; the text is the reason."""


class Message(namedtuple('Message', 'function flags transaction status attributes')):
    """One iSNSP message. function: includes RESPONSE in a response; flags: without FIRST and LAST;
    status: None in a request; attributes: ((tag, value bytes), …)."""

    __slots__ = ()

    @property
    def is_response(self):
        return bool(self.function & RESPONSE)

    @property
    def operating(self):
        """The attributes after the delimiter that have a value."""
        tags = [tag for tag, _ in self.attributes]
        return (
            tuple(a for a in self.attributes[tags.index(DELIMITER) + 1 :] if a[1])
            if DELIMITER in tags
            else ()
        )

    def number(self, tag):
        """Return the first four-byte value with this tag as an int, or None."""
        return next(
            (
                NUMBER.unpack(value)[0]
                for each, value in self.attributes
                if each == tag and len(value) == 4
            ),
            None,
        )


def request_message(function, *attributes, **more):
    """Return a request of targetd with these attributes. more: flags (REPLACE)."""
    return Message(function, FROM_CLIENT | more.get('flags', 0), 0, None, attributes)


def response_message(message, status, *attributes):
    """Return the response to a message of a server."""
    return Message(
        message.function | RESPONSE, FROM_CLIENT, message.transaction, status, attributes
    )


def status_name(status):
    """Return a text for the log such as 'no such entry (status 9)'."""
    return '%s (status %d)' % (STATUS_NAMES.get(status, 'refused'), status)


# -- attributes ------------------------------------------------------------------------------------


def empty_attribute(tag):
    """Return an attribute without a value."""
    return tag, b''


def number_attribute(tag, value):
    """Return an attribute whose value is a four-byte number."""
    return tag, NUMBER.pack(value)


def text_attribute(tag, value):
    """Return an attribute whose value is UTF-8 text, terminated and padded with NULs."""
    data = value.encode('utf-8', 'replace') + b'\0'
    return tag, data + bytes(-len(data) % 4)


def address_attribute(tag, value):
    """Return an attribute whose value is an IP address: 16 bytes, an IPv4 address is mapped into IPv6
    (RFC 4171 6.3.1). A scope is removed."""
    packed = ipaddress.ip_address(value.partition('%')[0]).packed
    return tag, packed if len(packed) == 16 else MAPPED + packed


def attribute_text(value):
    """Return the text of a received value."""
    return value.partition(b'\0')[0].decode('utf-8', 'replace')


# -- bytes -----------------------------------------------------------------------------------------


def encode(message, longest=LONGEST_PDU):
    """Return the bytes of a message in as few PDUs as possible; no attribute is divided."""
    room = longest - HEADER.size
    parts = [b'' if message.status is None else NUMBER.pack(message.status)]
    for tag, value in message.attributes:
        piece = ATTRIBUTE.pack(tag, len(value)) + value
        if len(parts[-1]) + len(piece) > room and parts[-1]:
            parts.append(b'')
        parts[-1] += piece
    last = len(parts) - 1
    return b''.join(
        HEADER.pack(
            VERSION,
            message.function,
            len(part),
            message.flags | (FIRST if number == 0 else 0) | (LAST if number == last else 0),
            message.transaction,
            number,
        )
        + part
        for number, part in enumerate(parts)
    )


class Assembler(object):
    """Assembles the bytes of one connection to whole Messages."""

    def __init__(self, maximum=MAXIMUM_MESSAGE):
        self._maximum = maximum
        self._received = bytearray()
        self._payload = None  # of the incomplete message
        self._expected = None  # (function, transaction, sequence) of its next PDU

    def receive(self, data):
        """Return [Message, …] of the messages that are complete now. Raises BadMessage; the connection
        cannot be used afterwards."""
        self._received += data
        messages = []
        while len(self._received) >= HEADER.size:
            version, function, length, flags, transaction, sequence = HEADER.unpack_from(
                self._received
            )
            if version != VERSION:
                raise BadMessage('the iSNSP version is %d, or the protocol is not iSNSP' % version)
            if len(self._received) < HEADER.size + length:
                break
            payload = bytes(self._received[HEADER.size : HEADER.size + length])
            del self._received[: HEADER.size + length]
            messages.extend(self._pdu(function, flags, transaction, sequence, payload))
        return messages

    def _pdu(self, function, flags, transaction, sequence, payload):
        if flags & AUTHENTICATED:
            raise BadMessage('the server signs its messages, which is not supported')
        if flags & FIRST:
            self._payload, self._expected = bytearray(), (function, transaction, sequence)
        if self._payload is None or (function, transaction, sequence) != self._expected:
            raise BadMessage('a PDU does not continue a message')
        self._payload += payload
        if len(self._payload) > self._maximum:
            raise BadMessage('a message is longer than %d bytes' % self._maximum)
        self._expected = (function, transaction, sequence + 1 & 0xFFFF)
        if not flags & LAST:
            return []
        whole, self._payload = bytes(self._payload), None
        return [decode(function, flags & ~(FIRST | LAST), transaction, whole)]


def decode(function, flags, transaction, payload):
    """Return the Message of a whole payload. Raises BadMessage."""
    status, at = None, 0
    if function & RESPONSE:
        if len(payload) < 4:
            raise BadMessage('a response has no status')
        (status,) = NUMBER.unpack_from(payload)
        at = 4
    attributes = []
    while at < len(payload):
        if at + ATTRIBUTE.size > len(payload):
            raise BadMessage('an attribute is truncated')
        tag, length = ATTRIBUTE.unpack_from(payload, at)
        at += ATTRIBUTE.size
        if at + length > len(payload):
            raise BadMessage('an attribute is longer than its message')
        attributes.append((tag, payload[at : at + length]))
        at += length + -length % 4
    return Message(function, flags, transaction, status, tuple(attributes))
