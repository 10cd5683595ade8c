"""In the guest: reads and writes of 1 MiB at a distance, by each target and by plain TCP, as a table.

measure.py [outside] [WORD ...]
    words restrict the run: to targets (targetd, tgt, LIO), and to cases that begin with the word
    (cubic/0%/shipped, bbr/1%, …). outside: the servers and the line are outside of the guest, with the
    congestion control and the loss of the only case (tests/distance_line.py)

Rates are what TCP delivered, in both cases: bytes_received and bytes_acked of the initiator's end, as ss has
them, without what was sent twice. So commands that are in progress at the end do not matter.
"""

import mmap
import os
import re
import socket
import subprocess
import sys
import threading
import time

NAME = 'iqn.2026-11.com.example:'
PORTS = {'targetd': 3260, 'tgt': 3261, 'LIO': 3262, 'plain': 5001}
TARGETS = ('targetd', 'tgt', 'LIO')
MEBIBYTE = 1 << 20
MEBIBYTES = 120  # of the disks, of which each command moves one
#: The path: 100 ms, 100 Mbit/s and a queue of 300 ms.
LINE = ('limit', '2500', 'delay', '50ms', 'rate', '100mbit')
#: What targetd has to reach of plain TCP with 8 commands of 1 MiB at once.
GOAL = 0.8
DEADLINE = 90
WINDOWS = {'shipped': '524288', 'tuned': '0'}
PATHS = (('bbr', '1%'), ('cubic', '0%'), ('bbr', '0%'), ('cubic', '1%'))


def run(*command):
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        timeout=DEADLINE,
    )
    text = done.stdout.decode('utf-8', 'replace')
    assert done.returncode == 0, (command, text)
    return text


def within(host, *command):
    return run('nsenter', '--net=/run/netns/' + host, '--', *command)


class Inside(object):
    """The path between the network namespaces of this guest."""

    server = '10.2.0.2'
    #: Seconds before the measurement, in which TCP finds its rate, and those of the measurement.
    before, seconds = 5, 5

    def shape(self, *words):
        for device in ('client', 'server'):
            within('router', 'tc', 'qdisc', 'replace', 'dev', device, 'root', 'netem', *words)

    def use_congestion_control(self, name):
        setting = 'net.ipv4.tcp_congestion_control=' + name
        run('sysctl', '-q', setting)
        within('server', 'sysctl', '-q', setting)

    def sent_from(self, port):
        """What ss says of the connections of the server's port."""
        return within('server', 'ss', '-tinH', 'sport', '=', ':%d' % port)


class Outside(object):
    """A line that was made outside, to servers there: what limits them as senders is not seen here."""

    server = '10.77.0.1'
    before, seconds = 8, 10

    def shape(self, *words):
        pass

    def use_congestion_control(self, name):
        run('sysctl', '-q', 'net.ipv4.tcp_congestion_control=' + name)

    def sent_from(self, port):
        return ''


class Sample(object):
    """The initiator's connections to a port, and how long their senders were limited by what."""

    def __init__(self, path, port, is_read):
        self.at = time.monotonic()
        text = run('ss', '-tinmH', 'dst', path.server, 'dport', '=', ':%d' % port)
        self.bytes = total(text, 'bytes_received' if is_read else 'bytes_acked')
        self.buffer = re.findall(r'\b%s(\d+)' % ('rb' if is_read else 'tb'), text)
        if is_read:  # the server is the sender
            text = path.sent_from(port)
        self.receiver_limited = total(text, 'rwnd_limited')
        self.buffer_limited = total(text, 'sndbuf_limited')
        self.retransmitted = total(text, r'retrans:\d+/')
        self.sent = total(text, 'segs_out')


def total(text, name):
    pattern = name if name.endswith('/') else r'\b%s:' % name
    return sum(int(value) for value in re.findall(pattern + r'(\d+)', text))


def compared(first, last):
    """(Mbit/s, what limited the sender)."""
    seconds = last.at - first.at
    rate = (last.bytes - first.bytes) * 8 / seconds / 1e6
    words = []
    for what, before, after in (
        ('receive window', first.receiver_limited, last.receiver_limited),
        ('send buffer', first.buffer_limited, last.buffer_limited),
    ):
        share = (after - before) / 1000 / seconds / max(1, len(last.buffer))
        if share > 0.1:
            words.append('%s %d %%' % (what, min(100, share * 100)))
    if words:
        words.append('buffer ' + '+'.join(last.buffer))
    if last.retransmitted > first.retransmitted:
        words.append(
            'sent twice %.1f %%'
            % (100 * (last.retransmitted - first.retransmitted) / (last.sent - first.sent or 1))
        )
    return rate, ', '.join(words)


class Measurement(object):
    """A load on the line with this loss. Connections begin, and complete what is in progress, without losses
    but at the same distance: bbr would rely for ten seconds on a round trip that was shorter before."""

    def __init__(self, path, load, port, is_read, loss):
        self.path, self.load, self.port = path, load, port
        self.is_read, self.loss = is_read, loss

    def result(self):
        self.path.shape(*LINE + (('loss', self.loss) if self.loss != '0%' else ()))
        self.load.start()
        try:
            time.sleep(self.path.before)
            first = Sample(self.path, self.port, self.is_read)
            time.sleep(self.path.seconds)
            last = Sample(self.path, self.port, self.is_read)
        finally:
            self.load.is_over = True
            self.path.shape(*LINE)
            self.load.end()
        return compared(first, last)


class Disks(object):
    """`depth` commands at once, distributed to the disks."""

    def __init__(self, disks, depth, is_read):
        self.is_over = False
        self.error = None
        self.threads = [
            threading.Thread(target=self._run, args=(disks[at % len(disks)], at, depth, is_read))
            for at in range(depth)
        ]

    def _run(self, disk, number, step, is_read):
        room = mmap.mmap(-1, MEBIBYTE)  # aligned, as O_DIRECT demands
        call = os.preadv if is_read else os.pwritev
        try:
            descriptor = os.open(disk, os.O_RDWR | os.O_DIRECT)
            while not self.is_over:
                assert call(descriptor, [room], number % MEBIBYTES * MEBIBYTE) == MEBIBYTE
                number += step
            os.close(descriptor)
        except Exception as e:
            self.error = e

    def start(self):
        for thread in self.threads:
            thread.start()

    def end(self):
        for thread in self.threads:
            thread.join(DEADLINE)
            assert not thread.is_alive()
        assert self.error is None, self.error


class Plain(object):
    """One connection."""

    def __init__(self, server, is_read):
        self.is_over = False
        self.sock = socket.create_connection((server, PORTS['plain']), DEADLINE)
        self.sock.sendall(b'r' if is_read else b'w')
        self.thread = threading.Thread(target=self._run, args=(is_read,))

    def _run(self, is_read):
        room = bytearray(1 << 18)
        while not self.is_over:
            if is_read:
                self.sock.recv_into(room)
            else:
                self.sock.sendall(room)

    def start(self):
        self.thread.start()

    def end(self):
        self.thread.join(DEADLINE)
        assert not self.thread.is_alive()
        self.sock.close()


def iscsiadm(name, *words):
    run('iscsiadm', '-m', 'node', '-T', NAME + name.lower(), *words)


def log_in(name, portal, window, sessions):
    """Returns the disks."""
    for key, value in (
        ('node.conn[0].tcp.window_size', WINDOWS[window]),
        ('node.session.nr_sessions', str(sessions)),
    ):
        iscsiadm(name, *portal + ('-o', 'update', '-n', key, '-v', value))
    iscsiadm(name, *portal + ('--login',))
    end = time.monotonic() + DEADLINE
    while True:
        disks = disks_of(name)
        if len(disks) == sessions and all(map(os.path.exists, disks)):
            break
        assert time.monotonic() < end, disks
        time.sleep(0.2)
    run('udevadm', 'settle', '-t', '60')
    for disk in disks:  # commands of 1 MiB, whatever the target recommends
        with open('/sys/block/%s/queue/max_sectors_kb' % os.path.basename(disk), 'w') as file:
            file.write('1024')
    return disks


def disks_of(name):
    found = []
    sessions = '/sys/class/iscsi_session'
    for session in sorted(os.listdir(sessions)):
        with open(os.path.join(sessions, session, 'targetname')) as file:
            if file.read().strip() != NAME + name.lower():
                continue
        for top, folders, _ in os.walk(os.path.realpath(os.path.join(sessions, session, 'device'))):
            if os.path.basename(top) == 'block':
                found += ['/dev/' + folder for folder in folders]
                break
    return found


class Table(object):
    def __init__(self):
        self.rates = {}
        print('cc    loss target      window   depth  read write  (Mbit/s)', flush=True)

    def add(self, cc, loss, name, window, depth, results):
        reads, writes = results
        self.rates.setdefault((cc, loss, name, window, depth), []).append((reads[0], writes[0]))
        notes = ' | '.join(
            '%s: %s' % (what, words)
            for what, (_, words) in (('read', reads), ('write', writes))
            if words
        )
        print(
            '%-5s %-4s %-11s %-8s %-5s %5.1f %5.1f  %s'
            % (cc, loss, name, window, depth, reads[0], writes[0], notes),
            flush=True,
        )


def measure_plain(path, table, cc, loss):
    results = []
    for is_read in (True, False):
        load = Plain(path.server, is_read)
        results.append(Measurement(path, load, PORTS['plain'], is_read, loss).result())
    table.add(cc, loss, 'plain', '-', '-', results)


def measure_target(path, table, cc, loss, name, window, sessions=1, depths=(8, 1)):
    portal = ('-p', '%s:%d' % (path.server, PORTS[name]))
    disks = log_in(name, portal, window, sessions)
    try:
        for depth in depths:
            results = []
            for is_read in (True, False):
                load = Disks(disks, depth, is_read)
                results.append(Measurement(path, load, PORTS[name], is_read, loss).result())
            title = name if sessions == 1 else '%s x %d' % (name, sessions)
            table.add(cc, loss, title, window, depth, results)
    finally:
        iscsiadm(name, *portal + ('--logout',))


def goals(rates):
    """The ratios to plain TCP of the same path; returns how many are below the goal."""
    below = 0
    for (cc, loss, name, window, depth), found in sorted(rates.items(), key=str):
        plain = rates.get((cc, loss, 'plain', '-', '-'))
        if plain is None or depth != 8:
            continue
        for index, what in enumerate(('reads', 'writes')):
            ratio = found[0][index] / (sum(each[index] for each in plain) / len(plain))
            is_goal = (cc, loss, name, window) == ('bbr', '1%', 'targetd', 'tuned')
            is_missed = is_goal and ratio < GOAL
            below += is_missed
            print(
                '%-5s %-2s %-11s %-8s %-6s %4.2f of plain TCP%s'
                % (cc, loss, name, window, what, ratio, ': BELOW THE GOAL' if is_missed else '')
            )
    return below


def main(words):
    path = Outside() if 'outside' in words else Inside()
    targets = [each for each in TARGETS if each in words] or TARGETS
    starts = tuple(word for word in words if '/' in word) or ('',)
    table = Table()
    path.shape(*LINE)
    for cc, loss in PATHS:
        cases = ['/'.join((cc, loss, window)) for window in WINDOWS]
        windows = [case.split('/')[2] for case in cases if case.startswith(starts)]
        if not windows:
            continue
        path.use_congestion_control(cc)
        measure_plain(path, table, cc, loss)
        for window in windows:
            for name in targets:
                measure_target(path, table, cc, loss, name, window)
            if window == 'shipped' and (cc, loss) == ('cubic', '0%'):
                for count in (2, 4):
                    measure_target(path, table, cc, loss, 'targetd', window, count, (8,))
        measure_plain(path, table, cc, loss)
    below = goals(table.rates)
    print(
        'the goal is %.1f for targetd with bbr, 1%% and window_size = 0: %d missed' % (GOAL, below)
    )
    return int(below > 0)


sys.exit(main(sys.argv[1:]))
