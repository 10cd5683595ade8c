"""The side of a server: the handshake as a generator, requests and replies as bytes (proto.md, "Fixed
newstyle negotiation" and "Transmission").

It serves one export, of any name, to clients that use NBD_OPT_GO. Structured replies and the context
base:allocation are agreed if the client asks for them; extended headers and TLS are not known.
"""

import errno
import struct
from collections import namedtuple

from targetd.nbd import numbers

#: Bytes of the data of one option at most.
LONGEST_OPTION = 16 << 10

#: What is served. size: bytes; flags: transmission flags; minimum, preferred, maximum: block sizes in bytes;
#: has_allocation: the context base:allocation is offered.
Offer = namedtuple('Offer', 'size flags minimum preferred maximum has_allocation')

#: What was agreed. has_allocation: BLOCK_STATUS may be used.
Agreed = namedtuple('Agreed', 'structured has_allocation')

REQUEST_SIZE = 28
_CONTEXT_ID = 1
_GREETING = struct.Struct('>QQH')
_OPTION = struct.Struct('>QII')
_OPTION_REPLY = struct.Struct('>QIII')
_REQUEST = struct.Struct('>IHHQQI')
_SIMPLE = struct.Struct('>IIQ')
_CHUNK = struct.Struct('>IHHQI')
_DATA = struct.Struct('>IHHQIQ')
DATA_HEADER = _DATA.size

#: errno of this host -> number of the protocol; others are EIO.
_NUMBERS = {
    errno.EPERM: 1,
    errno.EROFS: 1,
    errno.EACCES: 1,
    errno.ENOMEM: 12,
    errno.EINVAL: 22,
    errno.ENOSPC: 28,
    errno.EDQUOT: 28,
    errno.EOPNOTSUPP: 95,
    errno.ESHUTDOWN: 108,
}


class ProtocolError(Exception):
    """The client violates the protocol: the connection is of no use any more."""


def negotiate(offer):
    """The handshake as a generator: yields bytes to send, or the number of bytes to receive, which it is
    sent. Returns Agreed, or None if the client leaves. Raises ProtocolError."""
    yield _GREETING.pack(
        numbers.INIT_PASSWORD,
        numbers.OPTION_MAGIC,
        numbers.FLAG_FIXED_NEWSTYLE | numbers.FLAG_NO_ZEROES,
    )
    yield 4  # the flags of the client
    structured = allocation = False
    while True:
        magic, option, length = _OPTION.unpack((yield _OPTION.size))
        if magic != numbers.OPTION_MAGIC or length > LONGEST_OPTION:
            raise ProtocolError('an invalid option')
        data = (yield length) if length else b''
        if option == numbers.OPT_ABORT:
            yield _reply(option, numbers.REP_ACK)
            return None
        if option == numbers.OPT_GO:
            yield _go(offer)
            return Agreed(structured, allocation)
        if option == numbers.OPT_STRUCTURED_REPLY:
            structured = True
            yield _reply(option, numbers.REP_ACK)
        elif option == numbers.OPT_SET_META_CONTEXT:
            allocation = offer.has_allocation and structured and _asks_allocation(data)
            yield _context(allocation)
        else:
            yield _reply(option, numbers.REP_ERR_UNSUP)


def _reply(option, kind, data=b''):
    return _OPTION_REPLY.pack(numbers.OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def _go(offer):
    """The replies to NBD_OPT_GO: every export name means the one export."""
    export = struct.pack('>HQH', numbers.INFO_EXPORT, offer.size, offer.flags)
    sizes = struct.pack(
        '>HIII', numbers.INFO_BLOCK_SIZE, offer.minimum, offer.preferred, offer.maximum
    )
    option = numbers.OPT_GO
    return (
        _reply(option, numbers.REP_INFO, export)
        + _reply(option, numbers.REP_INFO, sizes)
        + _reply(option, numbers.REP_ACK)
    )


def _context(is_offered):
    option, answer = numbers.OPT_SET_META_CONTEXT, b''
    if is_offered:
        data = struct.pack('>I', _CONTEXT_ID) + numbers.BASE_ALLOCATION.encode('ascii')
        answer = _reply(option, numbers.REP_META_CONTEXT, data)
    return answer + _reply(option, numbers.REP_ACK)


def _asks_allocation(data):
    """True if base:allocation is among the queries of NBD_OPT_SET_META_CONTEXT. Raises ProtocolError."""
    try:
        (length,) = struct.unpack_from('>I', data)
        at = 4 + length
        (count,) = struct.unpack_from('>I', data, at)
        at += 4
        for _ in range(count):
            (length,) = struct.unpack_from('>I', data, at)
            if bytes(data[at + 4 : at + 4 + length]) == numbers.BASE_ALLOCATION.encode('ascii'):
                return True
            at += 4 + length
    except struct.error:
        raise ProtocolError('an invalid list of contexts')
    return False


def parse_request(header, at=0):
    """Returns (command flags, command, cookie, offset, length) of the 28 bytes from `at` on. Raises
    ProtocolError."""
    magic, flags, command, cookie, offset, length = _REQUEST.unpack_from(header, at)
    if magic != numbers.REQUEST_MAGIC:
        raise ProtocolError('a request begins with %08Xh' % magic)
    return flags, command, cookie, offset, length


def done(cookie, error=0):
    """The reply to a request that has no data, or that failed with this errno and structured replies were not
    agreed or are not needed: a simple one."""
    return _SIMPLE.pack(numbers.SIMPLE_REPLY_MAGIC, _number(error) if error else 0, cookie)


def failed(cookie, error):
    """The reply to a READ or BLOCK_STATUS that failed with this errno, where structured replies were
    agreed."""
    payload = struct.pack('>IH', _number(error), 0)
    return _chunk(cookie, numbers.REPLY_ERROR, payload)


def ended(structured, command, cookie, error):
    """The reply to a request without data that has ended with this errno, or 0."""
    if error and structured and command in (numbers.CMD_READ, numbers.CMD_BLOCK_STATUS):
        return failed(cookie, error)
    return done(cookie, error)


def put_data_header(structured, buffer, end, cookie, offset, length):
    """Write what comes before the data in the reply to a READ into a buffer, so that it ends at `end`; it has
    DATA_HEADER bytes at most. Returns where it begins."""
    if not structured:
        start = end - _SIMPLE.size
        _SIMPLE.pack_into(buffer, start, numbers.SIMPLE_REPLY_MAGIC, 0, cookie)
        return start
    start = end - DATA_HEADER
    _DATA.pack_into(
        buffer,
        start,
        numbers.STRUCTURED_REPLY_MAGIC,
        numbers.REPLY_DONE,
        numbers.REPLY_OFFSET_DATA,
        cookie,
        8 + length,
        offset,
    )
    return start


def status(cookie, extents):
    """The structured reply to a BLOCK_STATUS. extents: [(length, is a hole that reads as zeroes)]."""
    hole = numbers.STATE_HOLE | numbers.STATE_ZERO
    payload = struct.pack('>I', _CONTEXT_ID) + b''.join(
        struct.pack('>II', length, hole if is_hole else 0) for length, is_hole in extents
    )
    return _chunk(cookie, numbers.REPLY_BLOCK_STATUS, payload)


def _chunk(cookie, kind, payload):
    return (
        _CHUNK.pack(numbers.STRUCTURED_REPLY_MAGIC, numbers.REPLY_DONE, kind, cookie, len(payload))
        + payload
    )


def _number(error):
    return _NUMBERS.get(error, 5)
