"""Runs the command of the setting on-event for each event, outside the master and bounded.

     emit --> queue (QUEUE_LENGTH) --> a job, at most RUNNING at once --> the command, at most SECONDS
       |--- the queue is full: counted in the log

The command gets the event in its environment: TARGETD_EVENT, and TARGETD_… for each detail.
"""

import os
import shlex
import signal
import subprocess
from collections import deque

from targetd import events, log
from targetd.master import service_notices

QUEUE_LENGTH = 64
RUNNING = 4
SECONDS = 30.0
_LONGEST_VALUE = 1000


class EventCommands(object):
    """jobs: Jobs; state: ServerState."""

    def __init__(self, jobs, state):
        self._jobs = jobs
        self._state = state
        self._queue = deque()
        self._running = 0
        self._lost = 0
        self._runs_commands = False

    def listen(self):
        """Hear of events from now on; they wait for begin()."""
        events.listen(self.on_event)

    def begin(self):
        """Run the commands from now on, also for the events of the start."""
        self._runs_commands = True
        events.listen(self.on_event)
        self._start()

    def on_event(self, kind, words):
        """An event has happened."""
        if not self._state.configuration.server.on_event:
            return
        if len(self._queue) >= QUEUE_LENGTH:
            self._lost += 1
            return
        self._queue.append(environment_of(kind, words))
        self._start()

    def _start(self):
        while self._runs_commands and self._queue and self._running < RUNNING:
            environment = self._queue.popleft()
            command = self._state.configuration.server.on_event
            self._running += 1
            self._jobs.submit_job(
                ('event', environment['TARGETD_EVENT']),
                lambda c=command, e=environment: (run(c, e), ()),
                lambda result, e=environment: self._done(result, e),
                seconds=SECONDS + 5,
            )

    def _done(self, result, environment):
        self._running -= 1
        why = result.why or result.values.get('failed')
        if why:
            log.warning('on-event for %s: %s', environment['TARGETD_EVENT'], why)
        if self._lost and not self._queue:
            log.warning(
                'on-event: %d events were dropped, because the command takes too long', self._lost
            )
            self._lost = 0
        self._start()


def environment_of(kind, words):
    """The variables that describe an event."""
    found = {'TARGETD_EVENT': kind}
    for name, value in words.items():
        text = ''.join(c if c.isprintable() else '?' for c in str(value))
        found['TARGETD_' + name.upper().replace('-', '_')] = text[:_LONGEST_VALUE]
    return found


def run(command, environment):
    """Run the command to its end. Returns {}, or {'failed': why}. In a job."""
    os.umask(0o022)
    try:
        process = subprocess.Popen(
            shlex.split(command),
            env=dict(service_notices.of_children(), **environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd='/',
            start_new_session=True,
        )
    except (OSError, ValueError) as e:
        return {'failed': '%s cannot be run: %s' % (command, getattr(e, 'strerror', None) or e)}
    try:
        code = process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return {'failed': '%s was killed after %d seconds' % (command, SECONDS)}
    return {'failed': '%s ended with exit code %d' % (command, code)} if code else {}
