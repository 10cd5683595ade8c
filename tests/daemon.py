"""Start, watch and stop the real targetd in a folder of its own, on loopback ports that nobody
uses.

Also `Text`, which writes configuration files. For tests; every wait is bounded.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import psutil

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
EXIT_NOT_DURABLE = 8  # a unit has failed, or could not be flushed at the stop
#: Factor of every time limit here, for a machine that is slower than those of CI (an emulated guest).
PATIENCE = float(os.environ.get('TARGETD_TEST_PATIENCE', '1'))
STOP_SECONDS = 15  # generous: an ordered stop asks initiators for logout first
START_SECONDS = 60  # on a busy machine; one second on an idle one
LIVING = []  # the Daemons of fixtures that are in use now, for the report of a failure
TARGET = 'iqn.2026-11.test.targetd:disk'


def eventually(question, seconds=10.0, what=None):
    """Calls a function until its result is true and returns the result; raises AssertionError after
    `seconds` times PATIENCE. `what`: description of the awaited event, or a callable that returns it."""
    seconds *= PATIENCE
    end = time.monotonic() + seconds
    while True:
        answer = question()
        if answer:
            return answer
        assert time.monotonic() < end, 'not within %g s: %s' % (
            seconds,
            what() if callable(what) else what or question,
        )
        time.sleep(0.02 * PATIENCE)  # the pause of a poll, not a wait for luck


def free_port(address='127.0.0.1'):
    """Returns a TCP port that is free on this address and on the wildcard address."""
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]


def has_ipv6():
    """True if this machine can listen on ::1."""
    try:
        free_port('::1')
    except OSError:
        return False
    return True


def is_listening(address):
    """True if a connection to (host, port) is accepted."""
    try:
        socket.create_connection(address, 1).close()
    except OSError:
        return False
    return True


class Text(object):
    """The content of a configuration file. Sections keep their order; `write` returns the text."""

    def __init__(self, directory):
        self.directory = directory
        self.server = {}
        self.groups = {}  # tag -> [portal, …]
        self.targets = {}  # name -> ([line, …], {lun: [line, …]})
        self.extra = ''

    def portal(self, text, group=1):
        self.groups.setdefault(group, []).append(text)

    def target(self, name, lines=('initiator-address = ALL',), luns=None, group=1):
        """`luns`: {number: [line, …]}."""
        settings = ['portal-group = %s' % group] + list(lines)
        if not any(line.startswith('sharing') for line in settings):
            # most tests log in with several initiator names; the lines of the test keep their places
            settings[0] += '\nsharing = cluster'
        self.targets[name] = (settings, dict(luns or {}))

    def render(self):
        lines = ['[server]']
        defaults = {
            'pid-file': 'targetd.pid',
            'control-socket': 'targetd.sock',
            'state-dir': 'state',
            'log': 'targetd.log',
        }
        server = {key: os.path.join(self.directory, name) for key, name in defaults.items()}
        server.update(self.server)
        lines += ['%s = %s' % item for item in sorted(server.items())]
        for tag, portals in sorted(self.groups.items()):
            lines += ['', '[portal-group %s]' % tag, 'portal = %s' % ', '.join(portals)]
        for name, (settings, luns) in self.targets.items():
            lines += ['', '[target %s]' % name] + settings
            for number, rows in sorted(luns.items()):
                lines += ['  [[lun %s]]' % number] + ['  ' + row for row in rows]
        return '\n'.join(lines) + '\n' + self.extra


class Daemon(object):
    """One targetd process. `text`: its configuration, which the test changes before start() or
    reload()."""

    def __init__(self, directory, python=None):
        self.directory = str(directory)
        self.text = Text(self.directory)
        self.port = free_port()
        self.text.portal('127.0.0.1:%d' % self.port)
        self.config = os.path.join(self.directory, 'targetd.conf')
        self.log_file = os.path.join(self.directory, 'targetd.log')
        self.output_file = os.path.join(self.directory, 'output')
        self.python = python or sys.executable
        self.process = None
        self.seen_workers = {}  # pid -> psutil.Process, every worker this test has met
        # regular expressions of log lines that look like errors but are expected
        self.expected_trouble = []

    # -- files -------------------------------------------------------------------------------------

    @property
    def address(self):
        return ('127.0.0.1', self.port)

    def image(self, name='disk.img', size=64 << 20):
        """Creates a sparse file of this size and returns its path."""
        path = os.path.join(self.directory, name)
        with open(path, 'ab') as file:
            file.truncate(size)
        return path

    def target(
        self, name=TARGET, lines=('initiator-address = ALL',), luns=None, group=1, size=64 << 20
    ):
        """Adds a target; without `luns`, its LUN 0 is a sparse file of `size` bytes."""
        if luns is None:
            luns = {0: ['backing-store = %s' % self.image(name.rsplit(':', 1)[-1] + '.img', size)]}
        self.text.target(name, lines, luns, group)
        return name

    def write_config(self):
        with open(self.config, 'w') as file:
            file.write(self.text.render())
        os.chmod(self.config, 0o600)

    @property
    def log(self):
        """All output and log lines so far."""
        parts = []
        for path in (self.log_file, self.output_file):
            if os.path.exists(path):
                with open(path, errors='replace') as file:
                    parts.append(file.read())
        return '\n'.join(parts)

    def logged(self, expression, seconds=15):
        """Waits until a line of the log matches the regular expression."""
        return eventually(
            lambda: re.search(expression, self.log),
            seconds,
            lambda: 'a log line like %r in:\n%s' % (expression, self.log),
        )

    # -- life --------------------------------------------------------------------------------------

    def command(self, *arguments):
        return [self.python, '-m', 'targetd'] + list(arguments)

    def environment(self):
        return dict(os.environ, PYTHONPATH=ROOT, PYTHONUNBUFFERED='1')

    def launch(self, *arguments):
        """Starts targetd without waiting."""
        self.write_config()
        os.makedirs(os.path.join(self.directory, 'state'), exist_ok=True)
        with open(self.output_file, 'ab') as output:
            self.process = subprocess.Popen(
                self.command('-c', self.config, '-f', *arguments),
                cwd=self.directory,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        return self

    def start(self, *arguments):
        """Starts targetd and waits until the first portal listens."""
        self.launch(*arguments)
        self.wait_listening(self.address)
        return self

    def wait_listening(self, address, seconds=START_SECONDS):
        def question():
            assert self.process.poll() is None, 'targetd ended with %s:\n%s' % (
                self.process.returncode,
                self.log,
            )
            return is_listening(address)

        eventually(question, seconds, lambda: 'targetd listening on %s:\n%s' % (address, self.log))

    def run_once(self, *arguments):
        """Runs targetd until it ends; returns (exit code, output and log)."""
        self.launch(*arguments)
        code = self.process.wait(START_SECONDS * PATIENCE)
        self.process = None
        return code, self.log

    def check(self, *arguments):
        """Runs `targetd -t`; returns (exit code, output)."""
        self.write_config()
        done = subprocess.run(
            self.command('-t', '-c', self.config, *arguments),
            cwd=self.directory,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=START_SECONDS * PATIENCE,
        )
        return done.returncode, done.stdout.decode('utf-8', 'replace')

    def targetdctl(self, *words, seconds=30):
        """Runs targetdctl; returns (exit code, output)."""
        done = subprocess.run(
            [self.python, '-m', 'targetd.admin.cli']
            + ['-s', os.path.join(self.directory, 'targetd.sock')]
            + list(words),
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds * PATIENCE,
        )
        return done.returncode, done.stdout.decode('utf-8', 'replace')

    def units(self):
        """Returns the rows of `show units` as {lun number: row}."""
        code, output = self.targetdctl('--json', 'show', 'units')
        assert code == 0, output
        return {row['lun']: row for row in json.loads(output)}

    def workers(self):
        """Returns the worker processes of the master, including the spare ones, and its jobs."""
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            children = []
        children = [child for child in children if not _is_helper(child)]
        for child in children:
            self.seen_workers[child.pid] = child
        return children

    def worker_of(self, session):
        """Returns the worker that serves this initiator's TCP connection, found by the initiator's
        port."""
        port = session.wire.socket.getsockname()[1]

        def question():
            return [child for child in self.workers() if _has_peer_port(child, port)]

        return eventually(question, 5, 'a worker with a connection from port %d' % port)[0]

    def signal(self, number):
        os.kill(self.process.pid, number)

    def reload(self, text='reload', seconds=10):
        """Writes the configuration, sends SIGHUP, and waits until the result is logged."""
        before = len(re.findall(text, self.log, re.I))
        self.write_config()
        self.signal(signal.SIGHUP)
        eventually(
            lambda: len(re.findall(text, self.log, re.I)) > before,
            seconds,
            lambda: 'a log line about the reload:\n' + self.log,
        )

    def control(self, *words):
        """Runs targetdctl; returns its output. Raises AssertionError if it fails."""
        path = os.path.join(self.directory, 'targetd.sock')
        done = subprocess.run(
            [self.python, '-m', 'targetd.admin.cli', '-s', path] + list(words),
            cwd=self.directory,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60 * PATIENCE,
        )
        text = done.stdout.decode('utf-8', 'replace')
        assert done.returncode == 0, text
        return text

    def stop(self, seconds=STOP_SECONDS):
        """Sends SIGTERM; returns the exit code."""
        self.workers()
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            code = self.process.wait(seconds * PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                'targetd did not stop within %d s of SIGTERM:\n%s' % (seconds, self.log)
            )
        self.process = None
        return code

    def kill(self):
        """Sends SIGKILL to the master and its remaining workers, after a failed test."""
        for process in [self.process] + list(self.seen_workers.values()) + self.workers():
            try:
                process.kill()
            except (psutil.NoSuchProcess, ProcessLookupError):
                pass
        self.process.wait(5 * PATIENCE)
        self.process = None
        # a child that was just being forked keeps the port for a moment; a restarted Daemon would
        # mistake it for the new server
        eventually(lambda: not is_listening(self.address), 10, 'the port free')

    def survivors(self):
        """Returns the workers seen earlier that are still alive."""
        return [
            worker
            for worker in self.seen_workers.values()
            if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE
        ]

    def trouble(self):
        """Returns unwanted lines of the log: tracebacks, and Python's warnings about unclosed
        resources."""
        found = re.findall(
            r'^.*(?:Traceback|Exception ignored|Fatal Python error|Segmentation).*$', self.log, re.M
        )
        return [
            line
            for line in found
            if not any(re.search(wanted, line) for wanted in self.expected_trouble)
        ]

    def finish(self):
        """Ends each test: checks for a normal stop with exit code 0, no remaining process and no
        traceback."""
        if self.process is not None:
            has_failed_unit = ' FAILED: ' in self.log
            code = self.stop()
            expected = (0, EXIT_NOT_DURABLE) if has_failed_unit else (0,)
            assert code in expected, 'exit code %s after SIGTERM:\n%s' % (code, self.log)
        eventually(
            lambda: not self.survivors(),
            5,
            'workers that outlive their master: %s' % self.survivors(),
        )
        assert not self.trouble(), '\n'.join(self.trouble() + [self.log[-6000:]])


@contextlib.contextmanager
def watched(directory):
    """Yields a Daemon that is not started. It is stopped and checked at the end, and all its
    processes are ended in every case."""
    daemon = Daemon(directory)
    LIVING.append(daemon)
    try:
        yield daemon
        daemon.finish()
    finally:
        LIVING.remove(daemon)
        if daemon.process is not None:
            daemon.kill()
        shutil.rmtree(str(directory), ignore_errors=True)


def _is_helper(process):
    try:
        return process.name() in ('targetd-log', 'targetd-saver', 'targetd-export')
    except psutil.Error:
        return True


def _has_peer_port(process, port):
    try:
        # psutil 6 renamed it
        ask = getattr(process, 'net_connections', None) or process.connections
        return any(c.raddr and c.raddr[1] == port for c in ask(kind='tcp'))
    except psutil.Error:
        return False
