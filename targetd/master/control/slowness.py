"""What limits a session: the answer of `targetdctl why slow`, from samples of its connections and
counters. Pure.

The numbers come from Linux (TCP_INFO): for which part of the time data waited to be sent, the receive
window of the initiator was full, segments were lost. What the initiator does is concluded from that. A
limit is named only if it took a good part of the time; several may be.
"""

from collections import namedtuple

from targetd import tcp_info
from targetd.config.words import counted

#: limit: a short name; share: part of the time, 0 to 1, or None; why, remedy: sentences.
Finding = namedtuple('Finding', 'limit share why remedy')

#: A part of the time that is worth a sentence.
_NOTABLE = 0.3
#: A round trip, in microseconds, from which on distance matters.
_FAR = 2000
#: A full line has a queue: the round trip is a multiple of the least one, and this much longer.
_QUEUE = 10000
#: Part of the sent bytes that were sent again, or of the received segments that came out of order.
_LOSSY = 0.0005

WINDOW_REMEDY = (
    "On the initiator. open-iscsi: node.conn[0].tcp.window_size = 0 in iscsid.conf before the discovery, or "
    "iscsiadm -m node -T TARGET -o update -n 'node.conn[0].tcp.window_size' -v 0, then log in again; its "
    'default, 524288, is cut to net.core.rmem_max and stops the kernel from adapting the buffers. '
    'Windows: netsh interface tcp set global autotuninglevel=normal.'
)
LOSS_REMEDY = (
    'congestion-control = bbr in the section of this portal group, then targetdctl reload and a new login; '
    'and find where packets are lost.'
)
LOSS_AT_INITIATOR_REMEDY = (
    'On the initiator, which decides how it sends: sysctl net.ipv4.tcp_congestion_control=bbr on Linux; '
    'and find where packets are lost.'
)
DEPTH_REMEDY = (
    'Let the initiator have more commands in progress, or longer ones: a larger read-ahead and more '
    'queued commands (node.session.cmds_max and queue_depth of open-iscsi), or several files at once.'
)
R2T_REMEDY = (
    'InitialR2T = No and a FirstBurstLength of 1 MiB in the target (its defaults) and in the initiator '
    '(node.session.iscsi.InitialR2T = No, node.session.iscsi.FirstBurstLength = 1048576 of open-iscsi): '
    'the stricter side decides. Then log in again. MaxOutstandingR2T above 1 helps initiators that '
    'accept it; Linux does not.'
)


class Observed(object):
    """What happened between the first and the last sample. samples: at least 2 of LineSampling; keys: the
    negotiated keys; processor: part of the time that the worker process used a processor, or None; limits:
    (rows of `show limits` about the session before, after)."""

    def __init__(self, samples, keys, processor=None, limits=((), ())):
        self.samples = samples
        self.keys = keys
        self.processor = processor
        self.limits = limits
        first, last = samples[0], samples[-1]
        self.seconds = max(last.at - first.at, 1) / 1e6
        self.count = {
            name: max(last.counted[name] - first.counted[name], 0) for name in first.counted
        }
        # connections that were there all the time; the first one speaks for those that are alike
        self.cids = [cid for cid in sorted(last.lines) if all(cid in s.lines for s in samples)]

    def increase(self, cid, name):
        """Increase of a field of TCP_INFO, None if the kernel does not have it."""
        before, after = (self.samples[i].lines[cid].tcp.get(name) for i in (0, -1))
        return None if before is None or after is None else max(after - before, 0)

    def part(self, test):
        """Part of the samples for which test(sample) is true."""
        return sum(1 for sample in self.samples if test(sample)) / len(self.samples)

    def waits_to_send(self, cid):
        """Part of the samples in which data waited to be sent: TCP is the limit then."""
        return self.part(lambda sample: _has_unsent(sample.lines[cid]))

    def mean_waiting(self, name):
        """Mean number of commands that waited for this."""
        return sum(sample.waiting[name] for sample in self.samples) / len(self.samples)

    def rate(self, name):
        """Mbit/s of a counter of bytes."""
        return self.count[name] * 8 / self.seconds / 1e6

    def rtt(self):
        """The least round trip of the connections, in microseconds; 0: unknown."""
        last = self.samples[-1].lines
        return min([tcp_info.minimum_rtt(last[cid].tcp) for cid in self.cids] or [0])


def _has_unsent(line):
    return line.queued > 0 or line.tcp.get('notsent_bytes', 0) > 0


def summary(observed):
    """A sentence with the figures."""
    count, last = observed.count, observed.samples[-1]
    trips = [last.lines[cid].tcp.get('rtt', 0) / 1000 for cid in observed.cids]
    return (
        'in %.1f seconds %s (%.1f Mbit/s) and %s (%.1f Mbit/s) on %s; round trip %s, at least %.1f ms'
        % (
            observed.seconds,
            counted(count['reads'], 'read'),
            observed.rate('bytes_read'),
            counted(count['writes'], 'write'),
            observed.rate('bytes_written'),
            counted(len(observed.cids), 'connection'),
            ', '.join('%.1f ms' % trip for trip in trips) or 'unknown',
            observed.rtt() / 1000,
        )
    )


def findings(observed):
    """The Findings, the greatest limit first; there is always one."""
    found = []
    for cid in observed.cids:
        found += _black_hole(observed, cid)
    if found:
        return found[:1]
    for cid in observed.cids:
        found += _sending(observed, cid)
    found += _receiving(observed) + _limits(observed) + _disk(observed) + _processor(observed)
    if not found:
        found = [_waiting_for_commands(observed)]
    unique = {(f.limit, f.remedy): f for f in sorted(found, key=lambda f: f.share or 0)}
    return sorted(unique.values(), key=lambda f: f.share or 0, reverse=True)


def _black_hole(observed, cid):
    info = observed.samples[-1].lines[cid].tcp
    if not tcp_info.is_black_hole(info) or not any(
        tcp_info.is_heard(sample.lines[cid].tcp) for sample in observed.samples
    ):
        return []
    text = tcp_info.hole_text(info['snd_mss'], info['retransmits'] + 1)
    return [Finding('path MTU', 1.0, text[0].upper() + text[1:] + '.', tcp_info.HOLE_REMEDY)]


def _sending(observed, cid):
    """What limits the data that the target sends on a connection."""
    pressed = observed.waits_to_send(cid)
    if pressed < _NOTABLE:
        return []
    line = observed.samples[-1].lines[cid]
    info, least = line.tcp, tcp_info.minimum_rtt(line.tcp)
    rate = (observed.increase(cid, 'bytes_acked') or 0) * 8 / observed.seconds / 1e6
    window = (observed.increase(cid, 'rwnd_limited') or 0) / 1e6 / observed.seconds
    again, sent = observed.increase(cid, 'bytes_retrans'), observed.increase(cid, 'bytes_sent')
    lost = again / sent if again and sent else 0
    if info.get('rtt', 0) > 2 * least + _QUEUE:
        why = (
            'The line is full: data waits in its queue, which makes the round trip %.0f ms instead of '
            '%.0f ms. It carried %.1f Mbit/s to the initiator.'
            % (info['rtt'] / 1000, least / 1000, rate)
        )
        remedy = 'A faster line, or less data at once.'
        return [Finding('line', pressed, why, remedy)]
    if window >= _NOTABLE and (window >= 0.5 or lost < _LOSSY):
        return [_window(info, least, window, rate)]
    if lost >= _LOSSY:
        why = (
            'Packets to the initiator are lost: %.2f %% of the bytes were sent again. The congestion '
            'control "%s" sends at most %d segments of %d bytes in each round trip of %.0f ms.'
            % (
                lost * 100,
                line.congestion,
                info.get('snd_cwnd', 0),
                info.get('snd_mss', 0),
                info.get('rtt', 0) / 1000,
            )
        )
        remedy = LOSS_REMEDY
        if line.congestion == 'bbr':
            remedy = 'Find where packets are lost; bbr, which copes best with losses, is in use.'
        return [Finding('loss', pressed, why, remedy)]
    why = (
        'The congestion window of TCP: %d segments of %d bytes in each round trip of %.0f ms, %.1f Mbit/s. '
        'It grows while nothing is lost.'
        % (info.get('snd_cwnd', 0), info.get('snd_mss', 0), info.get('rtt', 0) / 1000, rate)
    )
    remedy = 'None if the line carries no more.'
    if line.congestion != 'bbr' and least > _FAR:
        remedy = (
            'Measure again after some seconds; if the line carries more, congestion-control = bbr in '
            'the section of this portal group.'
        )
    return [Finding('congestion window', pressed, why, remedy)]


def _window(info, least, share, rate):
    window = info.get('snd_wnd') or info.get('unacked', 0) * info.get('snd_mss', 0)
    if least < _FAR:
        why = (
            'The initiator does not take the data fast enough: its receive window was full for %.0f %% of '
            'the time, and the round trip is only %.1f ms.' % (share * 100, least / 1000)
        )
        remedy = 'See what the initiator is busy with: its processors, its network card, its virtual machine.'
        return Finding('initiator', share, why, remedy)
    why = (
        'The receive buffer of the initiator: its window was full for %.0f %% of the time. It has announced '
        '%.0f KiB, and no more can be sent in each round trip of %.0f ms: %.1f Mbit/s.'
        % (share * 100, window / 1024, least / 1000, rate)
    )
    return Finding('receive window', share, why, WINDOW_REMEDY)


# -- writes ----------------------------------------------------------------------------------------


def r2t_round_trips(size, keys):
    """Round trips that a write of so many bytes waits for R2Ts, after the data that needs none."""
    first = keys.get('FirstBurstLength', 65536)
    if keys.get('InitialR2T', True) and not keys.get('ImmediateData', True):
        first = 0
    if keys.get('InitialR2T', True):
        first = min(first, _IMMEDIATE)
    at_once = keys.get('MaxBurstLength', 262144) * keys.get('MaxOutstandingR2T', 1)
    return max(0, -(-int(size - first) // max(at_once, 1)))


#: The immediate data of a command is one PDU: at most the MaxRecvDataSegmentLength of the target, whose
#: default this is.
_IMMEDIATE = 262144


def _receiving(observed):
    """What limits the data that the initiator sends."""
    share = observed.part(lambda sample: sample.waiting['data'] > 0)
    if share < _NOTABLE:
        return []
    rtt, writes = observed.rtt(), observed.count['writes']
    segments = sum(observed.increase(cid, 'data_segs_in') or 0 for cid in observed.cids)
    disorder = sum(observed.increase(cid, 'rcv_ooopack') or 0 for cid in observed.cids)
    received = sum(observed.increase(cid, 'bytes_received') or 0 for cid in observed.cids)
    if disorder and not received:
        why = (
            'Long packets of the initiator do not arrive, while shorter ones do: a path MTU black hole '
            'in this direction.'
        )
        return [Finding('path MTU', share, why, tcp_info.HOLE_REMEDY)]
    if writes:
        size = observed.count['bytes_written'] / writes
        trips = r2t_round_trips(size, observed.keys)
        each = observed.mean_waiting('data') * observed.seconds / writes
        if rtt > _FAR and trips and trips * rtt / 1e6 >= _NOTABLE * each:
            why = (
                'R2Ts: a write of %.0f KiB waits for %s before its last data is sent, %.0f ms of the '
                '%.0f ms for which the target waits for its data (FirstBurstLength %d, InitialR2T=%s, '
                'MaxBurstLength %d, MaxOutstandingR2T %d).'
                % (
                    size / 1024,
                    counted(trips, 'round trip'),
                    trips * rtt / 1000,
                    each * 1000,
                    observed.keys.get('FirstBurstLength', 65536),
                    'Yes' if observed.keys.get('InitialR2T', True) else 'No',
                    observed.keys.get('MaxBurstLength', 262144),
                    observed.keys.get('MaxOutstandingR2T', 1),
                )
            )
            return [Finding('R2T', min(share, trips * rtt / 1e6 / each), why, R2T_REMEDY)]
    rate = received * 8 / observed.seconds / 1e6
    if segments and disorder / segments >= _LOSSY:
        why = (
            'Packets of the initiator are lost: %.2f %% of the segments arrived out of order. It sends '
            '%.1f Mbit/s.' % (disorder / segments * 100, rate)
        )
        return [Finding('loss', share, why, LOSS_AT_INITIATOR_REMEDY)]
    if rtt > _FAR:
        why = (
            'The initiator sends %.0f KiB in each round trip of %.0f ms, %.1f Mbit/s: its send buffer, its '
            'congestion window, or the line. The target has %s in progress for which it waits.'
            % (
                received / observed.seconds * rtt / 1e6 / 1024,
                rtt / 1000,
                rate,
                counted(int(round(observed.mean_waiting('data'))), 'write'),
            )
        )
        return [Finding('send window', share, why, WINDOW_REMEDY)]
    why = (
        'The target waits for the data of writes for %.0f %% of the time; the initiator, or the line, '
        'sends %.1f Mbit/s.' % (share * 100, rate)
    )
    remedy = 'See what the initiator is busy with, and what the line carries.'
    return [Finding('initiator', share, why, remedy)]


# -- the target ------------------------------------------------------------------------------------


def _limits(observed):
    """Commands that wait because of the limits of the session, which are named."""
    share = observed.part(lambda sample: sample.waiting['limit'] > 0)
    if share < _NOTABLE:
        return []
    before = {row['what']: row['delayed'] for row in observed.limits[0]}
    delayed = [
        (row['delayed'] - before.get(row['what'], 0), row)
        for row in observed.limits[1]
        if row['delayed'] > before.get(row['what'], 0)
    ]
    number = observed.mean_waiting('limit')
    why = 'A limit of this server: %.1f commands wait for it on average' % number
    for count, row in sorted(delayed, key=lambda each: -each[0]):
        why += '; %s has delayed %s' % (_limit_text(row), counted(count, 'command'))
    remedy = 'A higher limit (targetdctl lun limit, target limit), if it is not what you want.'
    if any(row['slowed_for'] for _, row in delayed):
        remedy = (
            'It ends when the disk answers the protected LUN in time: less load, a faster disk, or a longer '
            'latency-target. ' + remedy
        )
    return [Finding('limit', share, why + '.', remedy)]


def _limit_text(row):
    """A limit, from its row of `show limits`."""
    rates = []
    if row['iops']:
        rates.append('%d commands per second' % row['iops'])
    if row['bandwidth']:
        rates.append('%d bytes per second' % row['bandwidth'])
    text = '%s (%s)' % (row['what'], ', '.join(rates))
    return (
        '%s for the latency-target of %s' % (text, row['slowed_for']) if row['slowed_for'] else text
    )


def _disk(observed):
    share = observed.part(
        lambda sample: (
            sample.waiting['disk'] > 0 and not any(map(_has_unsent, sample.lines.values()))
        )
    )
    if share < _NOTABLE:
        return []
    commands = sum(observed.count[name] for name in ('reads', 'writes', 'others'))
    why = 'The disk: %.1f commands wait for it on average' % observed.mean_waiting('disk')
    if commands:
        each = observed.mean_waiting('disk') * observed.seconds / commands
        why += ', each for %.1f ms' % (each * 1000)
    remedy = (
        'targetdctl stats shows the latencies of each LUN. A faster disk, write-cache = on where the host '
        'has a UPS, or fewer hosts that use the disk at once.'
    )
    return [Finding('disk', share, why + '.', remedy)]


def _processor(observed):
    if observed.processor is None or observed.processor < 0.9:
        return []
    why = 'The worker process of the session used %.0f %% of a processor.' % (
        observed.processor * 100
    )
    remedy = 'Longer commands, no digests, or several sessions (multipath): each has a process of its own.'
    return [Finding('processor', observed.processor, why, remedy)]


def _waiting_for_commands(observed):
    commands = sum(observed.count[name] for name in ('reads', 'writes', 'others'))
    idle = observed.part(lambda sample: not any(sample.waiting.values()))
    if not commands:
        why = 'The initiator sent no command, and the target has none in progress.'
        return Finding('no commands', None, why, 'Run the command again while the disk is used.')
    rtt, rate = observed.rtt(), commands / observed.seconds
    if rtt > _FAR and rate * rtt / 1e6 >= _NOTABLE:
        why = (
            'Distance: %.1f commands at once, each of which takes a round trip of %.0f ms, are %.0f in a '
            'second. The target waits for the next one for %.0f %% of the time.'
            % (rate * rtt / 1e6, rtt / 1000, rate, idle * 100)
        )
        return Finding('round trips', idle, why, DEPTH_REMEDY)
    why = 'The target waits for commands for %.0f %% of the time: it could do more.' % (idle * 100)
    return Finding('initiator', idle, why, DEPTH_REMEDY)
