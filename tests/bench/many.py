"""What many LUNs and many sessions at once cost: the rows of limits.py about them."""

import os
import statistics
import tempfile
import threading
import time

import initiator
from daemon import Daemon
from servers import MIB, cpu_seconds
from workloads import NAME, Failed

TARGETS, LUNS_OF_TARGET = 100, 10
LOGINS = 100
STORM = 300
ROUNDS = 3


class _Server(object):
    """A targetd with the given numbers of targets and of LUNs in each. daemon: its Daemon; seconds:
    what its start took."""

    def __init__(self, bench, targets, luns):
        folder = tempfile.mkdtemp(prefix='many-', dir=bench.directory)
        os.chmod(folder, 0o755)
        self.daemon = Daemon(folder, bench.python)
        self.daemon.text.server.update(
            {
                'max-sessions': str(2 * STORM),
                'max-connections-per-address': str(2 * STORM),
                'log-level': 'warning',
            }
        )
        for number in range(targets):
            rows = {
                lun: ['backing-store = %s' % self.daemon.image('%d-%d.img' % (number, lun), MIB)]
                for lun in range(luns)
            }
            self.daemon.target(_name(number), luns=rows)
        began = time.perf_counter()
        self.daemon.launch()
        self.daemon.wait_listening(self.daemon.address, 120)
        self.seconds = time.perf_counter() - began

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        process, self.daemon.process = self.daemon.process, None
        process.terminate()
        process.wait(120)


def _name(number):
    return 'iqn.2026-11.test.targetd:many%d' % number


def _login(server, number=0):
    return initiator.connect(
        server.daemon.address,
        _name(0),
        name=NAME % number,
        isid=b'\x80\xab\xcd' + number.to_bytes(3, 'big'),
        timeout=60,
    )


def start_many_luns(bench):
    """Seconds from the start of targetd with 1,000 files in 100 targets until its portal listens."""
    with _Server(bench, TARGETS, LUNS_OF_TARGET) as server:
        return server.seconds


def reload_many_luns(bench):
    """Seconds of a reload that changes one alias of such a server, without the start of targetdctl."""
    with _Server(bench, TARGETS, LUNS_OF_TARGET) as server:
        seconds = []
        for number in range(ROUNDS):
            server.daemon.text.targets[_name(0)][0].append('alias = round %d' % number)
            server.daemon.write_config()
            seconds.append(_duration(server, 'reload') - _duration(server, 'status'))
            server.daemon.text.targets[_name(0)][0].pop()
        return max(0.0, statistics.median(seconds))


def _duration(server, verb):
    began = time.perf_counter()
    code, output = server.daemon.targetdctl(verb, seconds=120)
    if code:
        raise Failed('targetdctl %s: %s' % (verb, output))
    return time.perf_counter() - began


def _master_seconds_of_a_login(server):
    """Processor seconds of the master for one login and logout."""
    _login(server).logout()
    before = cpu_seconds(server.daemon.process.pid, children=False)
    for _ in range(LOGINS):
        _login(server).logout()
    return (cpu_seconds(server.daemon.process.pid, children=False) - before) / LOGINS


def login_with_many_luns(bench):
    """The master's processor time for a login with 1,000 units in 1,000 targets' worth of
    configuration, as a ratio to that with one target of as many LUNs as the session has."""
    with _Server(bench, 1, LUNS_OF_TARGET) as few, _Server(bench, TARGETS, LUNS_OF_TARGET) as many:
        return statistics.median(
            _master_seconds_of_a_login(many) / _master_seconds_of_a_login(few)
            for _ in range(ROUNDS)
        )


def storm(bench):
    """Seconds until 300 initiators that come at once, as after a restart, are all logged in."""
    with _Server(bench, 1, 1) as server:
        sessions, failures = [], []

        def log_in(number):
            try:
                sessions.append(_login(server, number))
            except (OSError, AssertionError, initiator.LoginFailed) as e:
                failures.append(e)

        threads = [threading.Thread(target=log_in, args=(number,)) for number in range(STORM)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - began
        for session in sessions:
            session.close()
        if failures:
            raise Failed('%d of %d logins failed: %s' % (len(failures), STORM, failures[0]))
        return seconds
