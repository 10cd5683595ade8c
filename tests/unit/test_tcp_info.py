"""TCP_INFO of Linux: the fields of kernels of different ages, and the mark of a path MTU black hole."""

import struct

from targetd import tcp_info

#: A connection whose full packets a router dropped, while it was heard, 5 s after they were sent.
HOLE = dict(
    state=1,
    retransmits=4,
    unacked=3,
    snd_mss=1448,
    rto=3264000,
    last_data_recv=250,
    last_ack_recv=250,
)


def raw(**values):
    """The bytes of a struct tcp_info of Linux 6.2 or later."""
    data = bytearray(240)
    for start, form, names in tcp_info._LAYOUT:
        for number, name in enumerate(names.split()):
            offset = start + number * struct.calcsize('=' + form)
            struct.pack_into('=' + form, data, offset, values.get(name, 0))
    return bytes(data)


def test_every_field_is_found():
    info = tcp_info.parse(raw(state=1, rtt=101000, min_rtt=100000, rwnd_limited=1 << 40, rcv_wnd=7))
    assert (info['state'], info['rtt'], info['min_rtt']) == (1, 101000, 100000)
    assert (info['rwnd_limited'], info['rcv_wnd']) == (1 << 40, 7)


def test_an_older_kernel_has_fewer_fields():
    info = tcp_info.parse(raw(rtt=50000, total_retrans=3)[:104])  # Linux 2.6.32
    assert info['rtt'] == 50000 and info['total_retrans'] == 3
    assert 'min_rtt' not in info and tcp_info.minimum_rtt(info) == 50000
    assert tcp_info.parse(b'') == {}


def test_the_offsets_are_those_of_linux():
    """Those that the kernel's header (linux/tcp.h) gives; tcpi_rtt and tcpi_total_retrans were in 2.6."""
    data = bytearray(240)
    for offset, form, value in (
        (68, 'I', 1),
        (148, 'I', 2),
        (176, 'Q', 3),
        (208, 'Q', 4),
        (228, 'I', 5),
    ):
        struct.pack_into('=' + form, data, offset, value)
    info = tcp_info.parse(bytes(data))
    names = ('rtt', 'min_rtt', 'rwnd_limited', 'bytes_retrans', 'snd_wnd')
    assert [info[name] for name in names] == [1, 2, 3, 4, 5]


def test_a_black_hole_is_recognized():
    assert tcp_info.is_black_hole(HOLE) and tcp_info.is_heard(HOLE)


def test_what_is_no_black_hole():
    for change in (
        {'unacked': 0},  # all was acknowledged
        {'retransmits': 1},  # a loss
        {'snd_mss': 1200},  # every path carries these
    ):
        assert not tcp_info.is_black_hole(dict(HOLE, **change)), change
    assert not tcp_info.is_heard(dict(HOLE, last_data_recv=9000, last_ack_recv=9000))  # a dead line


def test_the_sentence_names_the_figures():
    text = tcp_info.hole_text(1448, 5)
    assert '1448 bytes' in text and '5 times' in text
    assert 'mss' in tcp_info.HOLE_REMEDY and 'ICMP' in tcp_info.HOLE_REMEDY
