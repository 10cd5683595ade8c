"""TABLE: what a session may cost, and what load must not do to others; one row each, beside the
ratios of workloads.py.

A row's `run(bench)` returns the figure, `is_reached(figure, limit)` judges it. `bench`: directory,
python, seconds, rounds, servers (the running targetd and tgtd). Most rows start a targetd of their
own. Clients are the tests' small initiator and load.py, but for the processor time of a read, which
iscsi-perf drives.
"""

import operator
import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections import namedtuple

import ceph_images
import initiator
import many
import nbd
from daemon import Daemon
from servers import IQN, MIB, Targetd, cpu_seconds, pss, session_workers, tree
from workloads import NAME, Failed, flat, program, reads, url

#: name; title and unit, for the report; limit; is_reached: operator.le or operator.ge; run.
Limit = namedtuple('Limit', 'name title unit limit is_reached run')

IDLE_SESSIONS = 20
MANY_SESSIONS = 200
SLOW_MS = 10
SLOW_DEPTH = 32
SLOW_LUNS = 8
STUCK, STUCK_MS = 64, 3000
WRITES = 64


def _connect(server, number=0):
    session = initiator.connect(
        ('127.0.0.1', server.port),
        server.iqn,
        name=NAME % number,
        isid=b'\x80\xab\xcd' + number.to_bytes(3, 'big'),
    )
    session.clear_attentions(1)
    return session


def idle_session(bench):
    """MiB of PSS that each further session adds to the whole of targetd."""
    with Targetd(bench.directory, bench.python, 64 * MIB) as server:
        sessions = [_connect(server, 0)]
        one = pss(session_workers(server.daemon, 1))
        sessions += [_connect(server, number) for number in range(1, 1 + IDLE_SESSIONS)]
        many = pss(session_workers(server.daemon, 1 + IDLE_SESSIONS))
        for session in sessions:
            session.close()
    return (many - one) / float(IDLE_SESSIONS) / MIB


class _Peak(object):
    """The highest PSS of a process, or of the biggest below it, while a `with` block runs; `.bytes`
    afterwards."""

    def __init__(self, pid, children=False):
        self._pid, self._children = pid, children
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.bytes = 0

    def _watch(self):
        while not self._over.wait(0.01):
            for pid in tree(self._pid)[1:] if self._children else [self._pid]:
                self.bytes = max(self.bytes, pss([pid]))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *failure):
        self._over.set()
        self._thread.join()


def writing_session(bench):
    """MiB of PSS, at most, of the worker of a session with 64 writes of 1 MiB on their way: all but
    the last burst of each has come before any is finished, and then once more at full speed."""
    with Targetd(bench.directory, bench.python, 256 * MIB) as server:
        session = _connect(server)
        worker = server.daemon.worker_of(session).pid
        with _Peak(worker) as peak:
            _write_slowly(session)
        session.close()
        held = peak.bytes
        with _Peak(server.pid, children=True) as peak:
            flat(server, bench.python, bench.seconds, MIB, WRITES, (0, 256 * MIB), '--write')
    return max(held, peak.bytes) / float(MIB)


def _write_slowly(session):
    session.hold_r2t = True
    data = initiator.pattern(7, MIB)
    commands = [
        session.submit(
            bytes((0x2A, 0)) + (2048 * number).to_bytes(4, 'big') + b'\0\x08\0\0', 1, out=data
        )
        for number in range(WRITES)
    ]
    while any(command.solicited < command.edtl or not command.r2ts for command in commands):
        for command in commands:
            if command.r2ts and command.solicited < command.edtl:
                session.answer_r2t(command)
        session.step()
    for command in commands:
        session.answer_r2t(command)
    for command in commands:
        session.wait(command).good()


def many_sessions(bench):
    """How many sessions are logged in at once and answer a read."""
    with Targetd(bench.directory, bench.python, 64 * MIB) as server:
        sessions = []
        try:
            for number in range(MANY_SESSIONS):
                sessions.append(_connect(server, number))
            answered = sum(len(session.read(8, 1, 1)) == 512 for session in sessions)
        finally:
            for session in sessions:
                session.close()
    return answered


def processor_time(bench):
    """targetd's processor seconds for each 4 KiB random read at depth 32, as a ratio to tgtd's."""
    ratios = []
    for _ in range(bench.rounds):
        each = []
        for server in bench.servers:
            before = cpu_seconds(server.pid)
            operations, _ = reads(4096, 32)(server, bench.seconds, bench.python)
            each.append((cpu_seconds(server.pid) - before) / operations)
        ratios.append(each[0] / each[1])
    return statistics.median(ratios)


def _on_a_slow_disk(bench):
    """load.py against a disk of which all but the first MiB takes 10 ms for each read; probes are
    reads of block 0."""
    with Targetd(
        bench.directory,
        bench.python,
        1024 * MIB,
        lun=['filter = delay read=%dms offset=%d..%d' % (SLOW_MS, MIB, 1024 * MIB)],
    ) as server:
        return flat(
            server,
            bench.python,
            bench.seconds,
            4096,
            SLOW_DEPTH,
            (MIB, 1024 * MIB),
            '--probe',
            'read',
        )


class _SlowLuns(object):
    """A targetd with one target of `luns` files, whose reads are delayed as `delays` {LUN: ms} says."""

    def __init__(self, bench, luns, delays):
        folder = tempfile.mkdtemp(prefix='slow-', dir=bench.directory)
        os.chmod(folder, 0o755)
        self.daemon = Daemon(folder, bench.python)
        self.daemon.text.server['log-level'] = 'warning'
        self.iqn = IQN
        rows = {}
        for lun in range(luns):
            rows[lun] = ['backing-store = %s' % self.daemon.image('%d.img' % lun)]
            if lun in delays:
                rows[lun].append('filter = delay read=%dms' % delays[lun])
        self.daemon.target(self.iqn, luns=rows)
        self.daemon.start()

    @property
    def port(self):
        return self.daemon.port

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.daemon.stop()


def slow_luns(bench):
    """Reads per second of 8 slow LUNs at depth 32 each in one session, in percent of what 256 requests
    at once can do."""
    delays = dict.fromkeys(range(SLOW_LUNS), SLOW_MS)
    with _SlowLuns(bench, SLOW_LUNS, delays) as server:
        depth = SLOW_LUNS * SLOW_DEPTH
        more = ('--lun', '0', '--luns', str(SLOW_LUNS))
        found = flat(server, bench.python, bench.seconds, 4096, depth, (0, 64 * MIB), *more)
    return 100.0 * found['operations'] / found['seconds'] / (depth * 1000.0 / SLOW_MS)


def read_beside_stuck(bench):
    """Milliseconds of a read of LUN 1 while 64 reads of LUN 0 wait for its disk."""
    with _SlowLuns(bench, 2, {0: STUCK_MS}) as server:
        session = initiator.connect(('127.0.0.1', server.port), server.iqn, timeout=60)
        session.clear_attentions(0)
        session.clear_attentions(1)
        read = bytes((0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0))
        stuck = [session.submit(read, 0, read=4096) for _ in range(STUCK)]
        session.ping(immediate=True)  # the reads have been taken
        began = time.perf_counter()
        session.read(0, 8, 1)
        seconds = time.perf_counter() - began
        if any(command.result is not None for command in stuck):
            raise Failed('a read of the disk that hangs was answered')
        session.close()
    return 1000.0 * seconds


def slow_disk(bench):
    """Reads per second of a slow disk at depth 32, in percent of what 32 requests at once can do."""
    found = _on_a_slow_disk(bench)
    return 100.0 * found['operations'] / found['seconds'] / (SLOW_DEPTH * 1000.0 / SLOW_MS)


def read_beside_slow(bench):
    """Milliseconds in which 99 of 100 cached reads are answered on a session that has 32 slow ones
    on their way."""
    return _worst(_on_a_slow_disk(bench)['probes'], 0.99)


def _worst(seconds, share=1.0):
    """Milliseconds within which this share of the probes was answered. Raises Failed when there are
    too few of them."""
    if len(seconds) < 20:
        raise Failed('only %d probes were answered' % len(seconds))
    return 1000 * sorted(seconds)[min(len(seconds) - 1, int(len(seconds) * share))]


def ping_same_session(write, size, depth):
    def run(bench):
        server = bench.servers[0]
        more = ['--probe', 'nop'] + (['--write'] if write else [])
        return _worst(
            flat(server, bench.python, bench.seconds, size, depth, (0, 64 * MIB), *more)['probes']
        )

    return run


def ping_other_session(bench):
    """Milliseconds, at worst, for a NOP-Out of a second session while iscsi-perf reads 4 KiB at
    depth 128."""
    server = bench.servers[0]
    seconds = []
    with _connect(server) as session:
        command = [
            program('iscsi-perf'),
            '-b',
            '8',
            '-m',
            '128',
            '-t',
            str(bench.seconds),
            '-r',
            '-i',
            NAME % 1,
            url(server),
        ]
        with open(os.devnull, 'w') as nowhere:
            client = subprocess.Popen(command, stdout=nowhere, stderr=nowhere)
            while client.poll() is None:
                began = time.perf_counter()
                session.ping(b'are you there?', immediate=True)
                seconds.append(time.perf_counter() - began)
                time.sleep(0.005)  # the pace of the probes
    if client.returncode:
        raise Failed('iscsi-perf ended with %s' % client.returncode)
    return _worst(seconds)


def _nbd(name, title, ratio, run):
    return Limit(
        'nbd-' + name,
        'rate of a LUN on ' + title.replace(':', ', ratio to', 1),
        '',
        ratio,
        operator.ge,
        run,
    )


TABLE = (
    Limit(
        'idle-session',
        'memory of each idle session beyond the first (PSS)',
        'MiB',
        4.0,
        operator.le,
        idle_session,
    ),
    Limit(
        'writing-session',
        'memory of a session doing 64 writes of 1 MiB (PSS)',
        'MiB',
        100.0,
        operator.le,
        writing_session,
    ),
    Limit(
        'many-sessions', 'sessions logged in at once', '', MANY_SESSIONS, operator.ge, many_sessions
    ),
    Limit(
        'processor-time',
        'processor time of a 4 KiB read at depth 32, ratio to tgtd',
        '',
        1.0,
        operator.le,
        processor_time,
    ),
    Limit(
        'slow-disk',
        'slow disk (10 ms), depth 32: part of 3,200 reads/s',
        '%',
        90.0,
        operator.ge,
        slow_disk,
    ),
    Limit(
        'slow-luns',
        '8 slow LUNs (10 ms), depth 32 each, one session: part of 25,600 reads/s',
        '%',
        90.0,
        operator.ge,
        slow_luns,
    ),
    Limit(
        'read-beside-stuck',
        'read of LUN 1 beside 64 stuck reads of LUN 0',
        'ms',
        50.0,
        operator.le,
        read_beside_stuck,
    ),
    Limit(
        'read-beside-slow',
        'cached read beside 32 slow ones, 99th percentile',
        'ms',
        9.9,
        operator.le,
        read_beside_slow,
    ),
    Limit(
        'ping-reads',
        'NOP-Out among 128 reads of 4 KiB, at worst',
        'ms',
        100.0,
        operator.le,
        ping_same_session(False, 4096, 128),
    ),
    Limit(
        'ping-writes',
        'NOP-Out among 16 writes of 64 KiB, at worst',
        'ms',
        100.0,
        operator.le,
        ping_same_session(True, 65536, 16),
    ),
    Limit(
        'ping-other',
        'NOP-Out of a second session meanwhile, at worst',
        'ms',
        100.0,
        operator.le,
        ping_other_session,
    ),
    Limit(
        'start-1000-luns',
        'start with 1,000 file LUNs in 100 targets',
        's',
        5.0,
        operator.le,
        many.start_many_luns,
    ),
    Limit(
        'reload-1000-luns',
        'reload of it with one change',
        's',
        0.5,
        operator.le,
        many.reload_many_luns,
    ),
    Limit(
        'login-1000-luns',
        'processor time of the master for a login to it, ratio to a server with 10 LUNs',
        '',
        1.3,
        operator.le,
        many.login_with_many_luns,
    ),
    _nbd(
        'bare-read-4k',
        'nbdkit: bare client, 4 KiB read, depth 32',
        0.7,
        nbd.against_bare('nbdkit', nbd.READ_4K),
    ),
    _nbd(
        'bare-write-64k',
        'nbdkit: bare client, 64 KiB write, depth 8',
        0.7,
        nbd.against_bare('nbdkit', nbd.WRITE_64K),
    ),
    _nbd(
        'bare-read-256k',
        'nbdkit: bare client, 256 KiB read, depth 8',
        0.7,
        nbd.against_bare('nbdkit', nbd.READ_256K),
    ),
    _nbd(
        'file-read-4k',
        'nbdkit: LUN on a file, 4 KiB read, depth 32',
        0.4,
        nbd.against_file('nbdkit', nbd.READ_4K),
    ),
    _nbd(
        'file-write-64k',
        'nbdkit: LUN on a file, 64 KiB write, depth 8',
        0.5,
        nbd.against_file('nbdkit', nbd.WRITE_64K),
    ),
    _nbd(
        'file-read-256k',
        'nbdkit: LUN on a file, 256 KiB read, depth 8',
        0.35,
        nbd.against_file('nbdkit', nbd.READ_256K),
    ),
    _nbd(
        'file-read-4k-qemu',
        'qemu-nbd: LUN on a file, 4 KiB read, depth 32',
        0.2,
        nbd.against_file('qemu-nbd', nbd.READ_4K),
    ),
    _nbd(
        'file-read-4k-uring',
        'qemu-nbd, io_uring: LUN on a file, 4 KiB read, depth 32',
        0.3,
        nbd.against_file('io_uring', nbd.READ_4K),
    ),
    Limit(
        'ceph-read-4k',
        'rate of a LUN on a Ceph image, ratio to tgt-rbd, 4 KiB read, depth 32',
        '',
        1.0,
        operator.ge,
        ceph_images.against_tgt(nbd.READ_4K),
    ),
    Limit(
        'ceph-write-4k',
        'rate of a LUN on a Ceph image, ratio to tgt-rbd, 4 KiB write, depth 32',
        '',
        1.0,
        operator.ge,
        ceph_images.against_tgt(nbd.WRITE_4K),
    ),
    Limit(
        'login-storm', '300 sessions at once, until all are in', 's', 4.0, operator.le, many.storm
    ),
)


def measure(row, bench):
    """The row as a dict for JSON. Raises Failed."""
    figure = row.run(bench)
    return {
        'name': row.name,
        'title': row.title,
        'unit': row.unit,
        'limit': row.limit,
        'figure': figure,
        'at_most': row.is_reached is operator.le,
        'reached': bool(row.is_reached(figure, row.limit)),
    }
