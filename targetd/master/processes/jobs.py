"""Jobs: what may have to wait for a medium (to open, sync or close it) is done by a child, so
that the master never waits.

     submit_job --(AT_ONCE at a time)--> forked --one message, with descriptors--> done(JobResult)
                                     |------ it ends without a word -------> done(JobResult with `why`)
                                     |------ SECONDS are over: killed -----> done(JobResult with `why`, is_late)

A process that waits for a dying disk cannot be killed until the disk answers, which may be never:
it is left behind, and while it is there nothing else is sent under its name. It holds nothing but
what it was given (`kept`).
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

SECONDS = 10.0  # within which a disk that spins up answers, and nobody minds waiting once
AT_ONCE = 16

#: What became of a job. values: dict that the work returned; descriptors: that it opened, ours
#: now; why: '' or why there is no answer; is_late: because there was none in time.
JobResult = namedtuple('JobResult', 'values descriptors why is_late')


class Job(object):
    """One. work() -> (JSON-able dict, descriptors) runs in the child; kept: the descriptors of ours
    that it needs."""

    def __init__(self, name, work, done, kept, seconds, forked):
        self.name = name
        self.work = work
        self.done = done
        self.kept = kept
        self.seconds = seconds
        self.forked = forked
        self.pid = None
        self.channel = None
        self.timer = None
        self.due = None
        self.answer = None  # it came; the child is about to end


class Jobs(object):
    """The jobs of one master. `fork`: as of Workers."""

    def __init__(self, loop, fork=os.fork):
        self.loop = loop
        self.fork = fork
        self._queue = deque()
        self._under_way = []
        self._ending = {}  # pid -> name: answered, or given up and killed; not reaped yet
        self._stuck = set()  # pids that were given up

    def submit_job(self, name, work, done, kept=(), seconds=None, forked=lambda: None):
        """Have work() done, soon; done(JobResult) is called from the loop or from wait(). name:
        hashable, of what it is about; forked() is called when the child has its own `kept`, or will
        never have them."""
        self._queue.append(Job(name, work, done, tuple(kept), seconds or SECONDS, forked))
        self._start()

    def is_stuck(self, name):
        """True if the last job of this name got no answer, and still waits for one."""
        self.reap()
        return any(self._ending[pid] == name for pid in self._stuck)

    @property
    def is_idle(self):
        return not (self._queue or self._under_way)

    def _start(self):
        while self._queue and len(self._under_way) < AT_ONCE:
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
            job.pid = child.fork(self.fork, lambda: _do(job, theirs, master))
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        job.channel = ours
        job.due = self.loop.clock() + job.seconds
        job.timer = self.loop.call_later(job.seconds, lambda: self._expired(job))
        self._under_way.append(job)
        self.loop.watch(ours, READ, lambda events: self._ready(job))

    def wait(self):
        """Until nothing is under way, without the loop: at the start, when nobody is served yet.
        Bounded as they are."""
        while not self.is_idle:
            poll, by_descriptor = select.poll(), {}
            for job in self._under_way:
                by_descriptor[job.channel.fileno()] = job
                poll.register(job.channel.fileno(), select.POLLIN)
            soonest = min(job.due for job in self._under_way)
            for descriptor, _ in poll.poll(max(0.0, soonest - self.loop.clock()) * 1000 + 1):
                self._ready(by_descriptor[descriptor])
            for job in list(self._under_way):
                if job.due <= self.loop.clock():
                    self._expired(job)

    # -- ends --------------------------------------------------------------------------------------------------------

    def _ready(self, job):
        """It is over at the end of the channel: what was handed back, a claim above all, is then
        the master's alone."""
        try:
            messages = job.channel.receive()
        except ChannelClosed:
            self._over(
                job, job.answer or JobResult({}, [], 'the process that was to do it died', False)
            )
            return
        for message, descriptors in messages[:1]:
            job.answer = JobResult(message, descriptors, str(message.get('failed') or ''), False)

    def _expired(self, job):
        if job in self._under_way:
            self._stuck.add(job.pid)
            try:
                os.kill(job.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            late = JobResult({}, [], 'there was no answer within %g seconds' % job.seconds, True)
            self._over(job, job.answer or late)

    def _over(self, job, answer):
        self._under_way.remove(job)
        self._ending[job.pid] = job.name
        job.timer.cancel()
        self.loop.forget(job.channel)
        job.channel.close()
        try:
            job.done(answer)
        finally:
            self.reap()
            self._start()

    def reap(self):
        """After SIGCHLD: take leave of those that have ended."""
        for pid in list(self._ending):
            try:
                gone, _ = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                gone = pid
            if gone:
                del self._ending[pid]
                self._stuck.discard(pid)

    def close(self):
        """The end: whoever is still at it is killed, and nobody is told."""
        self._queue.clear()
        for job in self._under_way:
            job.timer.cancel()
            self.loop.forget(job.channel)
            job.channel.close()
            self._ending[job.pid] = job.name
            try:
                os.kill(job.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        del self._under_way[:]
        self.reap()


def _do(job, channel, master):
    """In the child."""
    child.become_job_process(channel, job.kept, master)
    try:
        words, descriptors = job.work()
    except Exception as e:  # the boundary: the process ends here
        log.exception('a job for %s met an unexpected failure', job.name)
        words, descriptors = {'failed': 'an unexpected failure: %r' % e}, ()
    channel.send(words, descriptors)
    child.close_descriptors({channel.fileno()})
    os._exit(0)
