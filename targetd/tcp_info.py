"""What Linux reports about a TCP connection (getsockopt TCP_INFO), and what it means. Pure.

The kernel returns as much of its struct tcp_info as it has: an older kernel returns fewer fields. A
field that it does not have is missing in the result.
"""

import struct

#: Socket options of IPPROTO_TCP on Linux that Python may have been built without.
TCP_CONGESTION = 13
#: Bytes that are asked for: more than any kernel has.
SIZE = 512

ESTABLISHED = 1

#: (offset, format, names) of struct tcp_info (linux/tcp.h).
_LAYOUT = (
    (0, 'B', 'state ca_state retransmits probes backoff options'),
    (8, 'I', 'rto ato snd_mss rcv_mss unacked sacked lost retrans fackets'),
    (44, 'I', 'last_data_sent last_ack_sent last_data_recv last_ack_recv'),
    (60, 'I', 'pmtu rcv_ssthresh rtt rttvar snd_ssthresh snd_cwnd advmss reordering'),
    (92, 'I', 'rcv_rtt rcv_space total_retrans'),
    (104, 'Q', 'pacing_rate max_pacing_rate bytes_acked bytes_received'),
    (136, 'I', 'segs_out segs_in notsent_bytes min_rtt data_segs_in data_segs_out'),
    (160, 'Q', 'delivery_rate busy_time rwnd_limited sndbuf_limited'),
    (192, 'I', 'delivered delivered_ce'),
    (200, 'Q', 'bytes_sent bytes_retrans'),
    (216, 'I', 'dsack_dups reord_seen rcv_ooopack snd_wnd rcv_wnd'),
)

#: So often the first unacknowledged segment was sent again, without an answer, before a black hole is
#: suspected: with a round trip below 100 ms this takes 2 to 3 seconds.
_RETRANSMISSIONS = 3
#: A path that loses longer segments than this is not called a black hole: IPv6 carries 1280 bytes
#: everywhere (RFC 8200 5), which leaves 1220 for the data of a segment.
_SHORT_SEGMENT = 1220

HOLE_REMEDY = (
    'Let routers and firewalls pass ICMP "fragmentation needed" (IPv6: "packet too big"), or correct the '
    'MTU of the tunnel; or set mss in the section of this portal group to what fits, 1288 for most '
    'tunnels, then targetdctl reload: the initiator logs in again by itself.'
)


def hole_text(segment, times):
    """The sentence about a path that loses full packets. times: that a segment of so many bytes was sent."""
    return (
        'full packets do not reach the initiator: a segment of %d bytes was sent %d times and never '
        'acknowledged, while short packets pass (path MTU black hole)' % (segment, times)
    )


def parse(data):
    """{name: number} of the bytes of TCP_INFO. Times are in microseconds, except last_…: milliseconds."""
    found = {}
    for start, form, names in _LAYOUT:
        size = struct.calcsize('=' + form)
        for number, name in enumerate(names.split()):
            offset = start + number * size
            if offset + size <= len(data):
                (found[name],) = struct.unpack_from('=' + form, data, offset)
    return found


def is_black_hole(info):
    """True if full segments seem to be lost although the initiator is heard: the path carries shorter
    packets than both ends believe, and the ICMP messages that would say so do not arrive (RFC 2923
    2.1). The caller knows that the initiator was heard just now, or asks is_heard()."""
    return (
        info.get('unacked', 0) > 0
        and info.get('retransmits', 0) >= _RETRANSMISSIONS
        and info.get('snd_mss', 0) > _SHORT_SEGMENT
    )


def is_heard(info):
    """True if a packet of the initiator arrived after the oldest unacknowledged segment was sent again."""
    silent = min(info.get('last_data_recv', 1 << 32), info.get('last_ack_recv', 1 << 32))
    return silent * 1000 <= info.get('rto', 0)


def minimum_rtt(info):
    """The least round trip that was seen, in microseconds; an older kernel has only the mean. 0: unknown."""
    least = info.get('min_rtt', 0)
    return least if 0 < least < 0xFFFFFFFF else info.get('rtt', 0)
