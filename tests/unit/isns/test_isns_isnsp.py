"""iSNSP encoding: recorded responses of servers, messages of several PDUs, and malformed input."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targetd.isns import isnsp

NAME = b'iqn.2026-11.com.example:disk'

#: The response of a Windows 2012 R2 server to a DevAttrReg: key, delimiter, then entity, portal,
#: node, portal group tag.
WINDOWS = bytes.fromhex(
    '0001 8001 00c8 4c00 0042 0000  00000000'
    '00000001 00000008 7374 6f72 6167 6500  00000000 00000000'
    '00000001 00000008 7374 6f72 6167 6500  00000006 00000004 0000012c  00000002 00000004 00000002'
    '00000010 00000010 00000000000000000000ffffc0a80102  00000011 00000004 00000cbc'
    '00000020 0000001c'
    + NAME.hex()
    + '00000021 00000004 00000001  00000033 00000004 00000001'
    '00000031 00000010 00000000000000000000ffffc0a80102  00000032 00000004 00000cbc'.replace(
        ' ', ''
    )
)


def one(data):
    (message,) = isnsp.Assembler().receive(data)
    return message


def test_a_recorded_response_is_parsed():
    message = one(WINDOWS)
    assert (
        message.is_response
        and message.function == isnsp.REGISTER | isnsp.RESPONSE
        and message.status == isnsp.SUCCESS
    )
    assert message.transaction == 0x42
    assert (
        message.number(isnsp.REGISTRATION_PERIOD) == 300
        and message.number(isnsp.PORTAL_PORT) == 3260
    )
    assert message.operating[0] == isnsp.text_attribute(isnsp.ENTITY_IDENTIFIER, 'storage')
    assert dict(message.attributes)[isnsp.ISCSI_NAME] == NAME


def test_a_refusal_is_parsed():
    message = one(bytes.fromhex('0001 8001 0004 4c00 0007 0000 0000000e'))
    assert (
        message.status == 14
        and message.operating == ()
        and isnsp.status_name(14) == 'invalid update (status 14)'
    )
    assert isnsp.status_name(99) == 'refused (status 99)'


def test_the_bytes_of_a_request():
    """RFC 4171 5.1, 5.1.2: header, then attributes whose values are padded to four bytes; text is
    ended by a NUL."""
    sent = isnsp.encode(
        isnsp.request_message(
            isnsp.DEREGISTER,
            isnsp.text_attribute(isnsp.ISCSI_NAME, 'iqn.x:abc'),
            isnsp.empty_attribute(isnsp.DELIMITER),
            isnsp.number_attribute(isnsp.REGISTRATION_PERIOD, 300),
        )._replace(transaction=5)
    )
    assert sent == (
        struct.pack('>HHHHHH', 1, 4, 8 + 12 + 8 + 12, 0x8C00, 5, 0)
        + struct.pack('>II12s', 32, 12, b'iqn.x:abc')
        + struct.pack('>II', 0, 0)
        + struct.pack('>III', 6, 4, 300)
    )


@pytest.mark.parametrize(
    'text, packed',
    [
        ('192.168.1.2', '00000000000000000000ffffc0a80102'),
        ('2001:db8::1', '20010db8000000000000000000000001'),
        ('fe80::1%eth0', 'fe800000000000000000000000000001'),
    ],
)
def test_addresses_are_sixteen_bytes(text, packed):
    assert isnsp.address_attribute(isnsp.PORTAL_ADDRESS, text) == (16, bytes.fromhex(packed))


ATTRIBUTES = st.lists(
    st.tuples(
        st.integers(0, 0xFFFFFFFF), st.binary(max_size=200).map(lambda b: b + bytes(-len(b) % 4))
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(ATTRIBUTES, st.one_of(st.none(), st.integers(0, 30)), st.integers(230, 2000), st.data())
def test_a_message_is_received_however_its_bytes_are_divided(attributes, status, longest, data):
    function = isnsp.REGISTER if status is None else isnsp.REGISTER | isnsp.RESPONSE
    message = isnsp.Message(function, isnsp.FROM_CLIENT, 77, status, tuple(attributes))
    sent = isnsp.encode(message, longest) + isnsp.encode(message._replace(transaction=78), longest)
    assembler, received = isnsp.Assembler(), []
    while sent:
        cut = data.draw(st.integers(1, len(sent)))
        received += assembler.receive(sent[:cut])
        sent = sent[cut:]
    assert received == [message, message._replace(transaction=78)]


def test_a_long_message_is_several_pdus_of_bounded_size():
    message = isnsp.request_message(
        isnsp.REGISTER,
        *[
            isnsp.text_attribute(isnsp.ISCSI_NAME, 'iqn.2026-11.test:%0100d' % n)
            for n in range(200)
        ],
    )
    sent, lengths, flags = isnsp.encode(message), [], []
    at = 0
    while at < len(sent):
        _, _, length, flag, _, sequence = struct.unpack_from('>HHHHHH', sent, at)
        assert sequence == len(lengths)
        lengths.append(length + 12)
        flags.append(flag & 0x0C00)
        at += length + 12
    assert max(lengths) <= 8192 and len(lengths) == 4
    assert flags == [isnsp.FIRST, 0, 0, isnsp.LAST]


def header(
    function=isnsp.STATE_CHANGE_NOTIFICATION,
    length=0,
    flags=isnsp.FIRST | isnsp.LAST,
    transaction=1,
    sequence=0,
    version=1,
):
    return struct.pack('>HHHHHH', version, function, length, flags, transaction, sequence)


@pytest.mark.parametrize(
    'data, why',
    [
        (b'GET / HTTP/1.1\r\n\r\n', 'version'),
        (header(version=2), 'version'),
        (header(flags=isnsp.FIRST | isnsp.LAST | isnsp.AUTHENTICATED), 'signs'),
        (header(flags=isnsp.LAST, sequence=1), 'does not continue a message'),
        (
            header(flags=isnsp.FIRST) + header(flags=isnsp.LAST, sequence=2),
            'does not continue a message',
        ),
        (
            header(flags=isnsp.FIRST) + header(flags=isnsp.LAST, sequence=1, transaction=9),
            'does not continue a message',
        ),
        (header(function=isnsp.REGISTER | isnsp.RESPONSE), 'has no status'),
        (header(length=4) + bytes(4), 'truncated'),
        (header(length=8) + struct.pack('>II', 1, 4), 'longer than its message'),
    ],
)
def test_malformed_messages_are_refused(data, why):
    with pytest.raises(isnsp.BadMessage, match=why):
        isnsp.Assembler().receive(data)


def test_a_message_without_end_is_cut_off():
    assembler = isnsp.Assembler(1000)
    with pytest.raises(isnsp.BadMessage, match='1000'):
        for sequence in range(5):
            assembler.receive(
                header(length=400, flags=0 if sequence else isnsp.FIRST, sequence=sequence)
                + bytes(400)
            )


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=300),
        st.tuples(st.integers(0, 65535), st.integers(0, 65535), st.binary(max_size=200)).map(
            lambda t: header(t[0], len(t[2]), t[1]) + t[2]
        ),
    )
)
def test_random_bytes_are_a_message_or_refused(data):
    try:
        for message in isnsp.Assembler().receive(data):
            assert isinstance(message.attributes, tuple)
            message.number(isnsp.PORTAL_PORT), message.operating
    except isnsp.BadMessage:
        pass
