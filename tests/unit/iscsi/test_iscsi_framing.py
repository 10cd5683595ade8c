"""Framer: the parsed PDUs do not depend on how the bytes arrive, large data is received into the
given buffer, and wrong digests are detected."""

import random
import zlib

import pytest

from targetd.iscsi import pdu
from targetd.iscsi.errors import PduRejected
from targetd.iscsi.framing import BHS, DIGEST_ERROR, LANDING_BYTES, Framer

#: Any checksum will do for the framer; this one is fast.
crc32c = zlib.crc32


def wire(one, header_digest=False, data_digest=False):
    """The bytes of a PDU as a sender writes them."""
    out = one.encode() + bytes(one.ahs)
    if header_digest:
        out += crc32c(out, 0).to_bytes(4, 'little')
    if one.data:
        padded = bytes(one.data) + bytes(-len(one.data) % 4)
        out += padded
        if data_digest:
            out += crc32c(padded, 0).to_bytes(4, 'little')
    return out


def feed(framer, stream, cuts, land=None):
    """Everything the framer returns for `stream` cut into pieces of the sizes that cuts()
    returns; data
    copied out."""
    out = []
    position = 0
    while position < len(stream):
        size = cuts()
        parts = (
            framer.receive_buffers() if framer.landing is not None else [framer.receive_buffer()]
        )
        count = 0
        for part in parts:
            piece = stream[position : position + min(size - count, len(part))]
            part[: len(piece)] = piece
            position += len(piece)
            count += len(piece)
        for fields, ahs, data in framer.parse_received(count):
            out.append(
                (
                    BHS.pack(*fields),
                    ahs,
                    data if data is None or data is DIGEST_ERROR else bytes(data),
                )
            )
        if framer.partial is not None:
            framer.land_data(land(framer.partial) if land else None)
    return out


def some_pdus(seed):
    chance = random.Random(seed)
    pdus = []
    for number in range(12):
        length = chance.choice((0, 1, 5, 512, 4096, 70000, LANDING_BYTES, 131072))
        pdus.append(
            pdu.ScsiCommand(
                itt=number,
                cmd_sn=number,
                data=bytes(chance.getrandbits(8) for _ in range(64)) * (length // 64)
                + bytes(length % 64),
            )
        )
    pdus.append(pdu.ScsiCommand(itt=99, ahs=pdu.encode_ahs(extended_cdb=bytes(range(16)))))
    return pdus


def expected(pdus):
    return [(one.encode(), bytes(one.ahs) or None, bytes(one.data) or None) for one in pdus]


@pytest.mark.parametrize('digests', [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize('chunking', ['whole', 'small', 'random'])
def test_the_pdus_do_not_depend_on_how_the_bytes_are_divided(digests, chunking):
    pdus = some_pdus(1)
    stream = b''.join(wire(one, *digests) for one in pdus)
    chance = random.Random(2)
    cuts = {
        'whole': lambda: 1 << 20,
        'small': lambda: 997,
        'random': lambda: chance.randint(1, 60000),
    }[chunking]
    assert feed(Framer(1 << 18, crc32c, *digests), stream, cuts) == expected(pdus)


def test_pdus_that_arrive_byte_by_byte():
    pdus = some_pdus(3)[:3] + [pdu.NopOut(itt=1, data=b'abcde'), pdu.LogoutRequest(itt=2)]
    stream = b''.join(wire(one, True, True) for one in pdus)
    framer = Framer(1 << 18, crc32c, True, True)
    assert feed(framer, stream[:20000], lambda: 1) + feed(
        framer, stream[20000:], lambda: 1 << 18
    ) == expected(pdus)


def test_large_data_is_received_into_the_given_buffer():
    one = pdu.DataOut(itt=7, data=bytes(range(256)) * 512)
    buffer = bytearray(len(one.data))
    framer = Framer(1 << 20)
    out = feed(framer, wire(one), lambda: 5000, lambda fields: memoryview(buffer))
    assert out == expected([one]) and buffer == one.data


@pytest.mark.clause('RFC 7143 7.8')
def test_a_wrong_data_digest_discards_the_data_but_not_the_next_pdu():
    for length in (512, LANDING_BYTES * 3):
        bad = bytearray(wire(pdu.DataOut(itt=7, data=b'x' * length), False, True))
        bad[-1] ^= 1
        after = pdu.NopOut(itt=8)
        out = feed(Framer(1 << 20, crc32c, False, True), bytes(bad) + wire(after), lambda: 9000)
        assert out[0][2] is DIGEST_ERROR
        assert out[1:] == expected([after])


@pytest.mark.clause('RFC 7143 7.8')
def test_a_wrong_header_digest_ends_the_stream_after_the_earlier_pdus():
    bad = bytearray(wire(pdu.NopOut(itt=9), True))
    bad[20] ^= 1
    framer = Framer(1 << 20, crc32c, True, False)
    stream = wire(pdu.NopOut(itt=8), True) + bytes(bad)
    view = framer.receive_buffer()
    view[: len(stream)] = stream
    with pytest.raises(PduRejected) as caught:
        framer.parse_received(len(stream))
    assert caught.value.fatal and [fields[5] for fields, _, _ in caught.value.before] == [8]
    assert caught.value.fields[5] != 8


@pytest.mark.clause('RFC 7143 13.12')
def test_a_data_segment_longer_than_declared_is_refused_before_it_arrives():
    framer = Framer(8192)
    header = pdu.NopOut(itt=1, data=b'x' * 8193).encode()
    framer.receive_buffer()[:48] = header
    with pytest.raises(PduRejected) as caught:
        framer.parse_received(48)
    assert caught.value.fatal and '8193' in caught.value.why


def test_a_header_is_returned_only_when_it_is_complete():
    framer = Framer(8192)
    stream = wire(pdu.NopOut(itt=1))
    framer.receive_buffer()[:47] = stream[:47]
    assert framer.parse_received(47) == []
    framer.receive_buffer()[:1] = stream[47:]
    assert len(framer.parse_received(1)) == 1


def test_the_batch_buffer_always_has_free_space():
    framer = Framer(8192, batch_bytes=65536)
    one = pdu.NopOut(itt=1, data=b'y' * 8192)
    stream = wire(one) * 40
    chance = random.Random(5)
    assert len(feed(framer, stream, lambda: chance.randint(1, 20000))) == 40


def test_a_pdu_remains_valid_when_its_buffer_is_reused():
    framer = Framer(8192)
    data = BHS.pack(0x40, 0x80, 0, 4, 0, 7, 0xFFFFFFFF, 0, 0, bytes(16)) + b'data'
    framer.receive_buffer()[: len(data)] = data
    ((_, _, kept),) = framer.parse_received(len(data))
    framer.release()
    assert framer.buffer is None and bytes(kept) == b'data'
