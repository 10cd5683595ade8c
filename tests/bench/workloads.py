"""TABLE: the workloads that are measured against tgtd, one row each, and the clients that drive
them.

A row's `run(server, amount, python)` returns (operations, operations per second). `amount` is seconds
for clients that stop by the clock, and a number of operations for those that count; `measure` finds
a count that takes about as long. Every client is Debian's, but for data digests, which libiscsi
1.19 and with it qemu do not have (header digests they do): those go through load.py.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections import namedtuple

from servers import MIB, cpu_seconds, program

LOAD = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'load.py')
NAME = 'iqn.2026-11.test.targetd:client%d'
KIB = 1024


class Failed(Exception):
    """A client did not do its work; the message has what it said."""


#: name; title, for the report; goal: the ratio to reach; run; counted: operations, not seconds, are
#: given to run; probe: how many operations tell how long they take; setup: of the servers, a key of
#: SETUPS.
Workload = namedtuple('Workload', 'name title goal run counted probe setup')

#: How a server is set up. keys: the digests that it requires; on_loop: the images are files on a loop
#: device; write_cache.
Setup = namedtuple('Setup', 'keys on_loop write_cache')
SETUPS = {
    None: Setup((), False, True),
    'header': Setup(('HeaderDigest',), False, True),
    'both': Setup(('HeaderDigest', 'DataDigest'), False, True),
    'durable': Setup((), True, False),
    'loop': Setup((), True, True),
}


def url(server, options=''):
    """The iSCSI URL of the server's LUN 1."""
    return 'iscsi://127.0.0.1:%d/%s/1%s' % (server.port, server.iqn, options)


def _finish(processes, expression, seconds):
    """What each client printed last that matches, as a number. Raises Failed."""
    found = []
    for process in processes:
        try:
            output = process.communicate(timeout=60 + 4 * seconds)[0]
        except subprocess.TimeoutExpired:
            for each in processes:
                each.kill()
            raise Failed('a client did not end')
        numbers = re.findall(expression, output)
        if process.returncode or not numbers:
            raise Failed('a client ended with %s: %s' % (process.returncode, output.strip()[-300:]))
        found.append(float(numbers[-1]))
    return found


def _start(command):
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True
    )


def reads(size, depth, rand=True, sessions=1, options=''):
    """iscsi-perf for so many seconds; the sum of its sessions."""

    def run(server, seconds, python):
        command = [
            program('iscsi-perf'),
            '-b',
            str(size // 512),
            '-m',
            str(depth),
            '-t',
            str(seconds),
        ]
        command += ['-r'] if rand else []
        processes = [
            _start(command + ['-i', NAME % each, url(server, options)]) for each in range(sessions)
        ]
        rate = sum(_finish(processes, r'iops average (\d+)', seconds))
        return rate * seconds, rate

    return run


def bench(size, depth, write, sessions=1):
    """qemu-img bench, sequential, so many operations in each session; the sum."""

    def run(server, count, python):
        command = [
            program('qemu-img'),
            'bench',
            '-f',
            'raw',
            '-t',
            'none',
            '-c',
            str(count),
            '-d',
            str(depth),
            '-s',
            str(size),
        ]
        command += ['-w'] if write else []
        processes = [_start(command + [url(server)]) for _ in range(sessions)]
        rate = sum(
            count / seconds for seconds in _finish(processes, r'completed in ([\d.]+) seconds', 60)
        )
        return count * sessions, rate

    return run


def logins(server, count, python):
    """iscsi-inq: a login, an INQUIRY and a logout each, one after the other."""
    began = time.time()
    for _ in range(count):
        done = subprocess.run(
            [program('iscsi-inq'), url(server)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=30,
        )
        if done.returncode:
            raise Failed('iscsi-inq: %s' % done.stdout.decode('utf-8', 'replace').strip()[-300:])
    return count, count / (time.time() - began)


def flat(server, python, seconds, size=4096, depth=32, area=(0, 64 * MIB), *more):
    """What load.py found: {'operations', 'seconds', 'probes'}. Raises Failed."""
    command = [
        python,
        LOAD,
        '--port',
        str(server.port),
        '--target',
        server.iqn,
        '--size',
        str(size),
        '--depth',
        str(depth),
        '--seconds',
        str(seconds),
        '--area',
        str(area[0]),
        str(area[1]),
    ] + list(more)
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        timeout=60 + 4 * seconds,
    )
    if done.returncode:
        raise Failed('load.py: %s' % done.stderr.strip()[-300:])
    return json.loads(done.stdout)


def mixed(size, depth, *more):
    def run(server, seconds, python):
        found = flat(server, python, seconds, size, depth, (0, 64 * MIB), *more)
        return found['operations'], found['operations'] / found['seconds']

    return run


def _timed(name, title, goal, run, setup=None):
    return Workload(name, title, goal, run, False, 0, setup)


def _counted(name, title, goal, run, probe, setup=None):
    return Workload(name, title, goal, run, True, probe, setup)


TABLE = (
    _timed('read-4k-qd1', '4 KiB random read, depth 1', 1.3, reads(4 * KIB, 1)),
    _timed('read-4k-qd32', '4 KiB random read, depth 32', 1.8, reads(4 * KIB, 32)),
    _timed('read-4k-qd128', '4 KiB random read, depth 128', 2.0, reads(4 * KIB, 128)),
    _timed(
        'read-4k-seq-qd32', '4 KiB sequential read, depth 32', 2.0, reads(4 * KIB, 32, rand=False)
    ),
    _timed('read-256k-qd8', '256 KiB random read, depth 8', 1.5, reads(256 * KIB, 8)),
    _counted('read-1m-seq-qd8', '1 MiB sequential read, depth 8', 1.5, bench(MIB, 8, False), 200),
    _counted('write-4k-qd1', '4 KiB write, depth 1', 1.2, bench(4 * KIB, 1, True), 1000),
    _counted('write-4k-qd32', '4 KiB write, depth 32', 1.2, bench(4 * KIB, 32, True), 4000),
    _counted('write-64k-qd16', '64 KiB write, depth 16', 1.2, bench(64 * KIB, 16, True), 1000),
    _counted('write-256k-qd8', '256 KiB write, depth 8', 1.2, bench(256 * KIB, 8, True), 400),
    _counted('write-1m-qd8', '1 MiB write, depth 8', 2.2, bench(MIB, 8, True), 100),
    _counted(
        'write-4k-durable-qd1',
        '4 KiB write, cache off, depth 1',
        0.9,
        bench(4 * KIB, 1, True),
        50,
        'durable',
    ),
    _counted(
        'write-4k-durable-qd32',
        '4 KiB write, cache off, depth 32',
        2.5,
        bench(4 * KIB, 32, True),
        200,
        'durable',
    ),
    _timed(
        'fua-mix',
        '70 % reads, 30 % FUA writes, depth 32',
        2.0,
        mixed(4 * KIB, 32, '--write', '--fua', '--reads', '70'),
        'loop',
    ),
    _timed(
        'read-4k-2sessions', '4 KiB random read, 2 sessions', 2.0, reads(4 * KIB, 32, sessions=2)
    ),
    _timed(
        'read-4k-8sessions', '4 KiB random read, 8 sessions', 2.0, reads(4 * KIB, 32, sessions=8)
    ),
    _counted(
        'write-64k-2sessions',
        '64 KiB write, 2 sessions',
        1.5,
        bench(64 * KIB, 16, True, sessions=2),
        500,
    ),
    _counted('logins', 'login, INQUIRY, logout', 0.65, logins, 10),
    _timed(
        'read-64k-header-digest',
        '64 KiB read, header digest',
        0.8,
        reads(64 * KIB, 16, options='?header_digest=crc32c'),
        'header',
    ),
    _timed(
        'read-64k-digests',
        '64 KiB read, both digests',
        0.8,
        mixed(64 * KIB, 16, '--digests'),
        'both',
    ),
    _timed(
        'write-64k-digests',
        '64 KiB write, both digests',
        0.8,
        mixed(64 * KIB, 16, '--digests', '--write'),
        'both',
    ),
)


class Figures(object):
    """One workload's: rates and processor seconds per operation of both targets, round by round."""

    def __init__(self, workload):
        self.workload = workload
        self.rates = {'targetd': [], 'tgtd': []}
        self.cpu = {'targetd': [], 'tgtd': []}

    def as_dict(self):
        """For JSON: everything that was measured, and the ratios."""
        ratios = [a / b for a, b in zip(self.rates['targetd'], self.rates['tgtd'])]
        cpu = [a / b for a, b in zip(self.cpu['targetd'], self.cpu['tgtd']) if b]
        median = statistics.median(ratios)
        return {
            'name': self.workload.name,
            'title': self.workload.title,
            'goal': self.workload.goal,
            'rates': self.rates,
            'cpu_seconds_per_operation': self.cpu,
            'ratios': ratios,
            'median': median,
            'lowest': min(ratios),
            'highest': max(ratios),
            'reached': median >= self.workload.goal,
            'cpu_ratio': statistics.median(cpu) if cpu else None,
        }


def amount(workload, servers, seconds, python):
    """What run() is given so that it takes about `seconds` with the servers' mean speed."""
    if not workload.counted:
        return seconds
    rate = sum(workload.run(server, workload.probe, python)[1] for server in servers) / len(servers)
    return max(workload.probe, int(rate * seconds))


def measure(workload, servers, rounds, seconds, python):
    """Figures of so many rounds, the servers taking turns; who begins alternates too."""
    figures = Figures(workload)
    much = amount(workload, servers, seconds, python)
    for number in range(rounds):
        for server in servers if number % 2 == 0 else servers[::-1]:
            before = cpu_seconds(server.pid)
            operations, rate = workload.run(server, much, python)
            figures.rates[server.name].append(rate)
            figures.cpu[server.name].append((cpu_seconds(server.pid) - before) / operations)
    return figures


def chosen(names, table=TABLE):
    """The rows with these names, or whose name starts with one that ends in `*`; all of them for no
    names."""
    if not names:
        return list(table)
    rows = []
    for name in names:
        found = [
            row
            for row in table
            if row.name == name or name.endswith('*') and row.name.startswith(name[:-1])
        ]
        if not found:
            sys.exit('no workload or limit is called %s; --list shows them' % name)
        rows += found
    return [row for row in table if row in rows]
