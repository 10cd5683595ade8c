"""Fuzzers on many connections, and a session beside them that writes, reads and compares all the
while.

SOAK_SECONDS: how long (20); SOAK_SEED: what the fuzzers draw from, printed when the test fails.
They may end their own sessions and workers; the verified session never meets an error, the log
holds nothing unexpected, the master is alive and neither it nor the worker of the verified session
has grown.
"""

import contextlib
import os
import threading
import time

import psutil
import pytest
from daemon import TARGET, eventually
from fuzzers import Fuzzer
from initiator import connect, pattern
from members import Member, Numbering, join

pytestmark = [pytest.mark.wire, pytest.mark.slow]

SECONDS = float(os.environ.get('SOAK_SECONDS', 20))
SEED = int(os.environ.get('SOAK_SEED', 7143))
FUZZED = 'iqn.2026-11.test.targetd:fuzzed'
FUZZERS = 3
GROWTH = 6 << 20  # bytes that a process may have more at the end than after the first quarter
COUNTED = ('count', 'logged_in', 'joined', 'refused', 'reassigned')


def write_and_verify(sessions, seed, number):
    """One round in a separate block range: writes of several sizes, each read back immediately and
    again later."""
    place = number % 16 * 512
    blocks = (1, 8, 128, 512)[number % 4]
    data = pattern(seed + number, blocks * 512)
    sessions[number % 3].write(place, data)
    assert sessions[number % 2].read(place, blocks) == data
    return place, blocks, data


def around_trouble(log):
    """Returns the log from shortly before its first traceback."""
    at = log.find('Traceback')
    return log[max(0, at - 1500) : at + 3500]


class Memory(object):
    """Resources of some processes over time. `grown`: the largest growth of one process since the
    first quarter of the run."""

    def __init__(self, **processes):
        self.processes = {name: psutil.Process(pid) for name, pid in processes.items()}
        self.figures = []  # [{name: bytes}, …]

    def note(self):
        self.figures.append(
            {name: process.memory_info().rss for name, process in self.processes.items()}
        )

    @property
    def grown(self):
        settled = self.figures[len(self.figures) // 4]
        return max(self.figures[-1][name] - settled[name] for name in settled)

    def __str__(self):
        chosen = self.figures[:: max(1, len(self.figures) // 10)] + self.figures[-1:]
        return ', '.join(
            '%s %s MiB' % (name, ' '.join('%.1f' % (each[name] / 1048576) for each in chosen))
            for name in sorted(self.processes)
        )


def configure(daemon):
    lines = [
        'initiator-address = ALL',
        'HeaderDigest = None, CRC32C',
        'DataDigest = None, CRC32C',
        'ErrorRecoveryLevel = 2',
        'MaxConnections = 4',
    ]
    daemon.target(lines=lines)
    daemon.target(
        FUZZED,
        lines,
        {0: ['backing-store = %s' % daemon.image('fuzzed.img', 16 << 20), 'thin = yes']},
    )
    daemon.text.server['max-sessions'] = 200
    daemon.text.server['max-connections-per-address'] = 200


@contextlib.contextmanager
def verified_sessions(daemon):
    """A plain session, and two connections of another one."""
    numbering = Numbering()
    with connect(daemon.address, TARGET, name='iqn.2026-11.test:verified') as plain, Member(
        daemon.address, 1, numbering, name='iqn.2026-11.test:verified-too'
    ) as one:
        one.login(TARGET, keys={'MaxConnections': '2', 'ErrorRecoveryLevel': '2'})
        with join(one, 2, TARGET) as two:
            plain.clear_attentions()
            one.clear_attentions()
            yield [plain, one, two]


def fuzz(daemon, sessions, fuzzers, over, memory):
    """Runs the fuzzers while data is written and compared; returns ({LBA: (blocks, data)},
    rounds)."""
    for fuzzer in fuzzers:
        fuzzer.start()
    began, rounds, kept = time.monotonic(), 0, {}
    try:
        while time.monotonic() < began + SECONDS:
            place, blocks, data = write_and_verify(sessions, SEED, rounds)
            kept[place] = blocks, data
            rounds += 1
            if rounds % 50 == 0:
                memory.note()
                assert not daemon.trouble(), around_trouble(daemon.log)
    finally:
        over.set()
        for fuzzer in fuzzers:
            fuzzer.join(30)
        print(
            'seed %d: %d rounds verified; fuzzers: %s; %s'
            % (
                SEED,
                rounds,
                ', '.join(
                    '%s %d' % (name, sum(getattr(each, name) for each in fuzzers))
                    for name in COUNTED
                ),
                memory,
            )
        )
    memory.note()
    return kept, rounds


@pytest.mark.clause('RFC 7143 9.1')
def test_soak(daemon):
    configure(daemon)
    daemon.start()
    with verified_sessions(daemon) as sessions:
        workers = [daemon.worker_of(session).pid for session in sessions]
        normal = len(daemon.workers())
        over = threading.Event()
        fuzzers = [
            Fuzzer(
                daemon.address,
                FUZZED,
                SEED * 100 + number,
                over,
                [session.tsih for session in sessions],
            )
            for number in range(FUZZERS)
        ]
        memory = Memory(master=daemon.process.pid, plain=workers[0], shared=workers[1])
        kept, rounds = fuzz(daemon, sessions, fuzzers, over, memory)
        assert [each.wrong for each in fuzzers] == [None] * FUZZERS
        assert not any(each.is_alive() for each in fuzzers)
        for place, (blocks, data) in kept.items():
            for session in sessions:
                assert session.read(place, blocks) == data
        assert [session.rejects + session.events for session in sessions] == [[], [], []]
        assert rounds > SECONDS
        for name in COUNTED:
            assert sum(getattr(each, name) for each in fuzzers) > FUZZERS, name
        eventually(
            lambda: len(daemon.workers()) <= normal,
            30,
            lambda: 'workers left: %s\n%s' % (daemon.workers(), daemon.log[-3000:]),
        )
        assert [daemon.worker_of(session).pid for session in sessions] == workers
        assert memory.grown < GROWTH, str(memory)
        sessions[0].logout()
        sessions[1].logout()
    with connect(daemon.address, FUZZED, name='iqn.2026-11.test:afterwards') as fresh:
        fresh.run(bytes(6))
        fresh.inquiry()
