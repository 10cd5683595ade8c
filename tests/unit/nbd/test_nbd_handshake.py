"""The handshake of a client, against servers that are lists of bytes."""

import struct

import pytest

from targetd.nbd import numbers
from targetd.nbd.handshake import Refused, negotiate

GREETING = struct.pack('>QQH', numbers.INIT_PASSWORD, numbers.OPTION_MAGIC, 3)
FLAGS = numbers.HAS_FLAGS | numbers.SEND_FLUSH | numbers.SEND_DF | numbers.SEND_FAST_ZERO
ACK = numbers.REP_ACK


def reply(option, kind, data=b''):
    return struct.pack('>QIII', numbers.OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def unsupported(option):
    return reply(option, numbers.REP_ERR_UNSUP)


def info_export(size=1 << 20, flags=FLAGS):
    return reply(numbers.OPT_GO, numbers.REP_INFO, struct.pack('>HQH', 0, size, flags))


def info_sizes(minimum, preferred, maximum):
    data = struct.pack('>HIII', numbers.INFO_BLOCK_SIZE, minimum, preferred, maximum)
    return reply(numbers.OPT_GO, numbers.REP_INFO, data)


def context(number):
    option = numbers.OPT_SET_META_CONTEXT
    data = struct.pack('>I', number) + b'base:allocation'
    return reply(option, numbers.REP_META_CONTEXT, data) + reply(option, ACK)


MODERN = (
    GREETING
    + unsupported(numbers.OPT_EXTENDED_HEADERS)
    + reply(numbers.OPT_STRUCTURED_REPLY, ACK)
    + context(7)
)
GO_ACK = reply(numbers.OPT_GO, ACK)


def talk(server, name='disk'):
    """Returns (result, bytes that the client sent) of a server that sends these bytes."""
    generator, sent, answer = negotiate(name), b'', None
    while True:
        try:
            wanted = generator.send(answer)
        except StopIteration as e:
            assert not server, 'the client left bytes unread'
            return e.value, sent
        answer = None
        if isinstance(wanted, bytes):
            sent += wanted
        else:
            assert len(server) >= wanted, 'the client waits for more than the server sends'
            answer, server = server[:wanted], server[wanted:]


def options_of(sent):
    """[(option, data)] that a client sent after its flags."""
    found, sent = [], sent[4:]
    while sent:
        magic, option, length = struct.unpack_from('>QII', sent)
        assert magic == numbers.OPTION_MAGIC
        found.append((option, sent[16 : 16 + length]))
        sent = sent[16 + length :]
    return found


def test_a_usual_server():
    export, sent = talk(MODERN + info_export() + info_sizes(512, 4096, 1 << 25) + GO_ACK)
    assert (export.size, export.flags) == (1 << 20, FLAGS & ~numbers.SEND_FAST_ZERO)
    assert (export.minimum, export.preferred, export.maximum) == (512, 4096, 1 << 25)
    assert (export.structured, export.extended, export.allocation) == (True, False, 7)
    assert sent[:4] == struct.pack('>I', 3)
    asked = options_of(sent)
    assert [option for option, _ in asked] == [11, 8, 10, 7]
    assert asked[2][1] == b'\0\0\0\4disk\0\0\0\1\0\0\0\x0fbase:allocation'
    assert asked[3][1] == b'\0\0\0\4disk\0\1\0\3'


def test_extended_headers_include_structured_replies():
    server = GREETING + reply(numbers.OPT_EXTENDED_HEADERS, ACK) + context(1)
    export, sent = talk(server + info_export() + GO_ACK)
    assert export.extended and export.structured and export.allocation == 1
    assert numbers.OPT_STRUCTURED_REPLY not in [option for option, _ in options_of(sent)]


def test_without_structured_replies_there_is_neither_df_nor_block_status():
    server = GREETING + unsupported(11) + unsupported(8) + info_export() + GO_ACK
    export, sent = talk(server)
    assert not export.structured and export.allocation is None
    assert not export.flags & numbers.SEND_DF
    assert [option for option, _ in options_of(sent)] == [11, 8, 7]


def test_a_server_that_reports_no_block_sizes():
    export, _ = talk(MODERN + info_export() + GO_ACK)
    assert (export.minimum, export.preferred, export.maximum) == (1, 4096, 32 << 20)


def test_a_server_without_block_status():
    server = GREETING + unsupported(11) + reply(8, ACK) + unsupported(10)
    assert talk(server + info_export() + GO_ACK)[0].allocation is None
    server = GREETING + unsupported(11) + reply(8, ACK) + reply(10, ACK)
    assert talk(server + info_export() + GO_ACK)[0].allocation is None


def test_fast_zero_is_kept_beside_write_zeroes():
    flags = FLAGS | numbers.SEND_WRITE_ZEROES
    assert talk(MODERN + info_export(flags=flags) + GO_ACK)[0].flags == flags


OLDSTYLE = struct.pack('>QQ', numbers.INIT_PASSWORD, numbers.OLDSTYLE_MAGIC)
NOT_FIXED = struct.pack('>QQH', numbers.INIT_PASSWORD, numbers.OPTION_MAGIC, 0)
MANY = b''.join(reply(numbers.OPT_GO, numbers.REP_INFO, b'\0\1x') for _ in range(64))


@pytest.mark.parametrize(
    'server, words',
    [
        (b'SSH-2.0-OpenSSH_9', 'not an NBD server'),
        (OLDSTYLE, 'oldstyle'),
        (NOT_FIXED, 'fixed newstyle'),
        (GREETING + reply(11, numbers.REP_ERR_TLS_REQD), 'requires TLS'),
        (GREETING + reply(8, ACK), 'invalid reply'),
        (GREETING + b'\0' * 20, 'invalid reply'),
        (
            GREETING + struct.pack('>QIII', numbers.OPTION_REPLY_MAGIC, 11, ACK, 1 << 30),
            'invalid reply',
        ),
        (MODERN + reply(7, numbers.REP_ERR_UNKNOWN, b'no such'), '(it says: no such)'),
        (MODERN + reply(7, numbers.REP_ERR_POLICY), 'does not admit this host'),
        (MODERN + reply(7, numbers.REP_ERROR | 99), '80000063h'),
        (MODERN + GO_ACK, 'does not report the size'),
        (MODERN + MANY, 'too many replies'),
        (MODERN + info_export() + info_sizes(3, 4096, 1 << 20) + GO_ACK, 'block sizes'),
        (MODERN + info_export() + info_sizes(0, 4096, 1 << 20) + GO_ACK, 'block sizes'),
        (MODERN + info_export() + info_sizes(512, 512, 512) + GO_ACK, 'block sizes'),
        (MODERN + info_export(1 << 63) + GO_ACK, 'invalid size'),
    ],
)
def test_a_server_that_cannot_be_used_is_refused_with_the_reason(server, words):
    with pytest.raises(Refused) as caught:
        talk(server)
    assert words in str(caught.value)
