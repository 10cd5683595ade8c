"""Jobs: work that may have to wait for a medium (to open, sync or close it) runs in a child process,
so that the master never waits (ARCHITECTURE D15).

     submit_job --> queued --> running --one message, with descriptors--> done(JobResult)
                                  |------ exits without a message ------> done(JobResult with `why`)
                                  |------ SECONDS are over: killed -----> done(JobResult with `why`, is_late)
                                  |------ SECONDS are over, `late` -----> done(JobResult with `why`, is_late)
                                                                            --it ends--> late(JobResult)

A process that waits for a dying disk cannot be killed until the disk answers, which may be never. The
master reports it as late and continues; is_stuck() is true for as long as the process exists. It
holds no descriptors except those that were passed to it (`kept`). A job whose outcome matters however
late it comes has a function `late`, and is not killed.
"""

import os
import select
import signal
from collections import deque, namedtuple

from targetd import channel as channels
from targetd import log
from targetd.channel import ChannelClosed
from targetd.master.processes import child
from targetd.master.processes.loop import READ

SECONDS = 10.0  # enough for a disk to spin up; the reload or the start waits this long
MAXIMUM_RUNNING = 16

#: `why` of a job whose process ended without a message.
DIED = 'the process that was to do it died'

#: The outcome of a job. values: dict that the work returned; descriptors: those that it opened, which
#: the receiver owns now; why: '', or why there is no outcome; is_late: True if the time was over.
JobResult = namedtuple('JobResult', 'values descriptors why is_late')


class Job(object):
    """A job that runs in a forked child process.

    name: hashable, for is_stuck(); work() -> (JSON-able dict, descriptors) runs in the child; kept:
    descriptors of the master that the child needs.
    """

    def __init__(self, name, work, done, kept, seconds, forked, late):
        self.name = name
        self.work = work
        self.done = done
        self.kept = kept
        self.seconds = seconds
        self.forked = forked
        self.late = late
        self.pid = None
        self.channel = None
        self.timer = None
        self.deadline = None
        self.result = None  # set when the child has sent it and is about to exit


class Jobs(object):
    """The queue of jobs, and the children that run them. fork: os.fork, or a substitute of a test."""

    def __init__(self, loop, fork=os.fork):
        self.loop = loop
        self.fork = fork
        self._queue = deque()
        self._running = []
        self._late = []  # jobs with a function `late` whose time is over
        self._unreaped = {}  # pid -> name of jobs that have ended or were killed, until reaped
        self._stuck = set()  # pids of jobs that were killed because their time was over

    def submit_job(self, name, work, done, kept=(), seconds=None, forked=lambda: None, late=None):
        """Run work() in a child process as soon as fewer than MAXIMUM_RUNNING are running.

        done(JobResult) is called from the loop or from wait(). forked() is called when the child has
        its copies of `kept`, or when it is certain that it will never have them. late(JobResult): see
        above.
        """
        self._queue.append(Job(name, work, done, tuple(kept), seconds or SECONDS, forked, late))
        self._start_queued()

    def is_stuck(self, name):
        """True if the time of a job of this name was over, and it still exists."""
        self.reap()
        return any(job.name == name for job in self._late) or any(
            self._unreaped[pid] == name for pid in self._stuck
        )

    @property
    def is_idle(self):
        """True if no job is queued or running."""
        return not (self._queue or self._running)

    @property
    def has_stuck(self):
        """True if a job whose time was over still exists."""
        self.reap()
        return bool(self._stuck or self._late)

    @property
    def unreaped(self):
        """The process ids of the children that have ended or were killed."""
        return list(self._unreaped)

    def adopt_children(self, pids):
        """Reap these children of the program that this one replaces, when they have ended."""
        self._unreaped.update((pid, None) for pid in pids)

    def _start_queued(self):
        while self._queue and len(self._running) < MAXIMUM_RUNNING:
            job = self._queue.popleft()
            try:
                self._fork(job)
                job.forked()
            except OSError as e:
                job.forked()
                job.done(
                    JobResult({}, [], 'no process can be forked for it: %s' % e.strerror, False)
                )

    def _fork(self, job):
        ours, theirs = channels.pair()
        master = os.getpid()
        try:
            job.pid = child.fork(self.fork, lambda: _run_in_child(job, theirs, master))
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        job.channel = ours
        job.deadline = self.loop.clock() + job.seconds
        job.timer = self.loop.call_later(job.seconds, lambda: self._expired(job))
        self._running.append(job)
        self.loop.watch(ours, READ, lambda events: self._readable(job))

    def wait(self):
        """Block until no job is queued or running, without the loop: at the start, before the server
        serves any initiator. The time limits of the jobs bound it."""
        while not self.is_idle:
            poll, by_descriptor = select.poll(), {}
            for job in self._running:
                by_descriptor[job.channel.fileno()] = job
                poll.register(job.channel.fileno(), select.POLLIN)
            soonest = min(job.deadline for job in self._running)
            for descriptor, _ in poll.poll(max(0.0, soonest - self.loop.clock()) * 1000 + 1):
                self._readable(by_descriptor[descriptor])
            for job in list(self._running):
                if job.deadline <= self.loop.clock():
                    self._expired(job)

    # -- end of a job ------------------------------------------------------------------------------

    def _readable(self, job):
        """The job ends at the end of file of its channel, not at its message: only then has the
        child closed its copies of the descriptors that it sends, exclusive claims above all."""
        try:
            messages = job.channel.receive()
        except ChannelClosed:
            died = JobResult({}, [], DIED, False)
            self._end(job, job.result or died)
            return
        for message, descriptors in messages[:1]:
            job.result = JobResult(message, descriptors, str(message.get('failed') or ''), False)

    def _expired(self, job):
        if job not in self._running:
            return
        late = JobResult({}, [], 'there was no answer within %g seconds' % job.seconds, True)
        if job.late is None:
            self._stuck.add(job.pid)
            _kill(job.pid)
            self._end(job, job.result or late)
            return
        self._running.remove(job)
        self._late.append(job)
        job.done(late)
        self._start_queued()

    def _end(self, job, result):
        is_late = job in self._late
        (self._late if is_late else self._running).remove(job)
        self._close_channel(job)
        try:
            (job.late if is_late else job.done)(result)
        finally:
            self.reap()
            self._start_queued()

    def _close_channel(self, job):
        self._unreaped[job.pid] = job.name
        job.timer.cancel()
        self.loop.forget(job.channel)
        job.channel.close()

    def reap(self):
        """Reap the children that have exited. Call after SIGCHLD."""
        for pid in list(self._unreaped):
            try:
                reaped, _ = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                reaped = pid
            if reaped:
                del self._unreaped[pid]
                self._stuck.discard(pid)

    def close(self):
        """Drop the queue and kill the running jobs; their done() is not called."""
        self._queue.clear()
        for job in self._running + self._late:
            self._close_channel(job)
            _kill(job.pid)
        del self._running[:], self._late[:]
        self.reap()


def _kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _run_in_child(job, channel, master):
    child.become_job_process(channel, job.kept, master)
    try:
        values, descriptors = job.work()
    except Exception as e:  # the boundary: the process ends here
        log.exception('a job for %s met an unexpected failure', job.name)
        values, descriptors = {'failed': 'an unexpected failure: %r' % e}, ()
    channel.send(values, descriptors)
    child.close_descriptors({channel.fileno()})
    os._exit(0)
