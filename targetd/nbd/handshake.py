"""The handshake of a client (proto.md, "Fixed newstyle negotiation"), as a generator.

     greeting --> client flags --> EXTENDED_HEADERS --refused--> STRUCTURED_REPLY --> SET_META_CONTEXT --> GO

The caller sends the bytes that the generator yields, and sends it the bytes of the length that it yields
as a number. It returns an Export, or raises Refused.
"""

import struct
from collections import namedtuple

from targetd.nbd import numbers

#: Sizes of a server that does not report them (proto.md, "Block size constraints").
MINIMUM, PREFERRED, MAXIMUM = 1, 4096, 32 << 20

#: Bytes of one option reply at most, and replies to one option.
LONGEST_REPLY = 64 << 10
MOST_REPLIES = 64

#: What a server offers. size: bytes; flags: transmission flags, without those that were not agreed;
#: minimum, preferred, maximum: block sizes in bytes; structured, extended: kinds of replies that were
#: agreed; allocation: the id of the metadata context base:allocation, None if there is none.
Export = namedtuple('Export', 'size flags minimum preferred maximum structured extended allocation')

_GREETING = struct.Struct('>QQ')
_OPTION = struct.Struct('>QII')
_OPTION_REPLY = struct.Struct('>QIII')


class Refused(Exception):
    """The server cannot be used; the message is a sentence without a subject, with the remedy."""


def negotiate(export_name):
    """The generator, for an export of this name."""
    name = export_name.encode('utf-8', 'surrogateescape')
    flags = yield from _greeting()
    yield struct.pack('>I', numbers.FLAG_FIXED_NEWSTYLE | flags & numbers.FLAG_NO_ZEROES)
    extended = yield from _asked(numbers.OPT_EXTENDED_HEADERS, b'')
    structured = extended or (yield from _asked(numbers.OPT_STRUCTURED_REPLY, b''))
    allocation = None
    if structured:
        allocation = yield from _context(name)
    size, flags, sizes = yield from _go(name)
    return _checked(size, flags, sizes, structured, extended, allocation)


def _greeting():
    """Returns the handshake flags."""
    password, magic = _GREETING.unpack((yield _GREETING.size))
    if password != numbers.INIT_PASSWORD:
        raise Refused(
            'is not an NBD server: it does not send the greeting of one; correct the address'
        )
    if magic == numbers.OLDSTYLE_MAGIC:
        raise Refused(
            'uses the oldstyle handshake, which has no export names and no durable writes; start it with '
            'the newstyle one (nbdkit: without -o)'
        )
    (flags,) = struct.unpack('>H', (yield 2))
    if magic != numbers.OPTION_MAGIC or not flags & numbers.FLAG_FIXED_NEWSTYLE:
        raise Refused('does not use the fixed newstyle handshake; use a newer server')
    return flags


def _replies(option, data):
    """Sends an option; yields through, and returns [(reply type, data)] up to the last reply."""
    yield _OPTION.pack(numbers.OPTION_MAGIC, option, len(data)) + data
    found = []
    while len(found) < MOST_REPLIES:
        magic, answered, kind, length = _OPTION_REPLY.unpack((yield _OPTION_REPLY.size))
        if magic != numbers.OPTION_REPLY_MAGIC or answered != option or length > LONGEST_REPLY:
            raise Refused('sent an invalid reply to option %d; use another server' % option)
        found.append((kind, (yield length) if length else b''))
        if kind == numbers.REP_ERR_TLS_REQD:
            raise Refused(
                'requires TLS, which targetd cannot use; allow connections without TLS, and protect the '
                'network between the two hosts'
            )
        if kind == numbers.REP_ACK or kind & numbers.REP_ERROR:
            return found
    raise Refused('sent too many replies to option %d; use another server' % option)


def _asked(option, data):
    """Returns True if the server agrees to an option without data."""
    replies = yield from _replies(option, data)
    return replies[-1][0] == numbers.REP_ACK


def _context(name):
    """Returns the id of the context base:allocation, or None."""
    query = numbers.BASE_ALLOCATION.encode('ascii')
    data = struct.pack('>I', len(name)) + name + struct.pack('>II', 1, len(query)) + query
    replies = yield from _replies(numbers.OPT_SET_META_CONTEXT, data)
    if replies[-1][0] != numbers.REP_ACK:
        return None
    for kind, data in replies:
        if kind == numbers.REP_META_CONTEXT and data[4:] == query:
            return struct.unpack_from('>I', data)[0]
    return None


def _go(name):
    """Returns (size, transmission flags, (minimum, preferred, maximum))."""
    data = struct.pack('>I', len(name)) + name + struct.pack('>HH', 1, numbers.INFO_BLOCK_SIZE)
    replies = yield from _replies(numbers.OPT_GO, data)
    last, text = replies[-1]
    if last != numbers.REP_ACK:
        raise Refused(_why_not(last, text.decode('utf-8', 'replace')[:200].strip()))
    export, sizes = None, (MINIMUM, PREFERRED, MAXIMUM)
    for kind, data in replies:
        if kind != numbers.REP_INFO or len(data) < 2:
            continue
        (what,) = struct.unpack_from('>H', data)
        if what == numbers.INFO_EXPORT and len(data) == 12:
            export = struct.unpack_from('>QH', data, 2)
        elif what == numbers.INFO_BLOCK_SIZE and len(data) == 14:
            sizes = struct.unpack_from('>III', data, 2)
    if export is None:
        raise Refused('does not report the size of the export; use another server')
    return export + (sizes,)


_REASONS = {
    numbers.REP_ERR_UNSUP: 'does not know the option NBD_OPT_GO; use a newer server',
    numbers.REP_ERR_POLICY: 'does not admit this host; change its access rules',
    numbers.REP_ERR_PLATFORM: 'cannot serve the export on its platform; use another server',
    numbers.REP_ERR_UNKNOWN: 'has no export of this name; correct the name in the URI',
    numbers.REP_ERR_SHUTDOWN: 'is shutting down; start it again',
    numbers.REP_ERR_BLOCK_SIZE_REQD: 'requires a block size that was not agreed; use another server',
}


def _why_not(kind, text):
    reason = _REASONS.get(kind, 'refuses the export (%08Xh); see its log' % kind)
    return '%s (it says: %s)' % (reason, text) if text else reason


def _checked(size, flags, sizes, structured, extended, allocation):
    minimum, preferred, maximum = sizes
    is_power = minimum > 0 and not minimum & (minimum - 1)
    if not is_power or minimum > 65536 or preferred < minimum or maximum < max(minimum, 4096):
        raise Refused('reports invalid block sizes (%d, %d, %d); use another server' % tuple(sizes))
    if size >= 1 << 63:
        raise Refused('reports an invalid size (%d); use another server' % size)
    if not flags & numbers.HAS_FLAGS:
        flags = 0
    if not structured:
        flags &= ~numbers.SEND_DF
    if not flags & numbers.SEND_WRITE_ZEROES:
        flags &= ~numbers.SEND_FAST_ZERO
    maximum = min(maximum, 64 << 20) // minimum * minimum
    return Export(size, flags, minimum, preferred, maximum, structured, extended, allocation)
