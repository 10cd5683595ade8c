"""Records and the pcapng file that is made of them."""

import os
import struct

import pytest

from targetd import pcapng
from targetd.pcapng import LOST, RECEIVED, SENT, Record


def blocks(data):
    """[(type, body)] of a file; checks the lengths."""
    found, at = [], 0
    while at < len(data):
        kind, length = struct.unpack_from('<II', data, at)
        assert length % 4 == 0 and struct.unpack_from('<I', data, at + length - 4)[0] == length
        found.append((kind, data[at + 8 : at + length - 4]))
        at += length
    return found


def packets(data):
    """[(captured bytes, original length)] of the enhanced packet blocks."""
    found = []
    for kind, body in blocks(data):
        assert kind == 6
        captured, length = struct.unpack_from('<II', body, 12)
        found.append((body[20 : 20 + captured], length))
    return found


def tcp(packet):
    """(source port, target port, sequence number, acknowledgement, flags, payload)."""
    start = 40 if packet[0] >> 4 == 6 else 20
    ports = struct.unpack_from('>HHII', packet, start)
    return ports + (packet[start + 13], packet[start + 20 :])


def opened(peer=('10.0.5.17', 50000), local=('10.0.5.1', 3261), number=1):
    file = pcapng.File(3261, 'a test')
    begin = file.add('a', pcapng.connection_record(number, 5000000, peer, local, 0))
    return file, begin


def test_records_arrive_whole_in_pieces_of_any_size():
    records = [Record(RECEIVED, 3, 1 << 40, 1 << 33, 5000, b'abc'), Record(LOST, 0, 1, 0, 7, b'')]
    packed = b''.join(map(pcapng.pack, records))
    for at in range(len(packed) + 1):
        first, rest = pcapng.unpack(packed[:at])
        second, rest = pcapng.unpack(rest + packed[at:])
        assert first + second == records and rest == b''
    with pytest.raises(ValueError):
        pcapng.unpack(b'\xff' * 64)


def test_the_file_has_a_section_and_an_interface_of_raw_ip():
    file, _ = opened()
    (section, first), (interface, second) = blocks(file.header)
    assert (section, interface) == (0x0A0D0D0A, 1)
    assert struct.unpack_from('<IHH', first) == (0x1A2B3C4D, 1, 0)
    assert b'3261' in first and struct.unpack_from('<H', second)[0] == 101


def test_a_connection_opens_and_its_numbers_go_on():
    file, begin = opened()
    numbers = [tcp(packet)[:5] for packet, _ in packets(begin)]
    assert numbers == [
        (50000, 3260, 0, 0, 0x02),
        (3260, 50000, 0, 1, 0x12),
        (50000, 3260, 1, 1, 0x10),
    ]
    data = file.add('a', Record(RECEIVED, 1, 1, 0, 48, b'r' * 48))
    ((packet, length),) = packets(data)
    assert tcp(packet) == (50000, 3260, 1, 1, 0x18, b'r' * 48) and length == len(packet)
    ((packet, _),) = packets(file.add('a', Record(SENT, 1, 1, 0, 52, b's' * 52)))
    assert tcp(packet)[2:4] == (1, 49)
    ((packet, _),) = packets(file.add('a', Record(RECEIVED, 1, 1, 48, 48, b'r' * 48)))
    assert tcp(packet)[2:4] == (49, 53)
    assert file.pdus == 3


def test_a_long_pdu_is_several_packets_and_a_cut_one_keeps_its_length():
    file, _ = opened()
    found = packets(file.add('a', Record(SENT, 1, 1, 0, 150048, b'd' * 64)))
    assert [length - 40 for _, length in found] == [60000, 60000, 30048]
    assert [len(packet) - 40 for packet, _ in found] == [64, 0, 0]
    assert [tcp(packet)[2] for packet, _ in found] == [1, 60001, 120001]


@pytest.mark.parametrize(
    'peer, local', [(('fe80::1%eth0', 1), ('fe80::2', 2)), (('::ffff:1.2.3.4', 1), ('1.2.3.5', 2))]
)
def test_ipv6_has_its_own_header(peer, local):
    _, begin = opened(peer, local)
    packet, length = packets(begin)[0]
    assert packet[0] >> 4 == 6 and length == 60 and len(packet) == 60


def test_a_connection_that_two_processes_record_is_one():
    file, _ = opened()
    file.add('a', Record(RECEIVED, 1, 1, 0, 48, b'r' * 48))
    words = pcapng.connection_record(9, 1, ('10.0.5.17', 50000), ('10.0.5.1', 3261), 1)
    assert file.add('b', words) == b''
    assert file.add('b', Record(SENT, 9, 1, 0, 48, b's' * 48))
    file.add('b', Record(LOST, 0, 1, 0, 7, b''))
    assert file.lost == 7 and os.sep not in repr(file.pdus)
