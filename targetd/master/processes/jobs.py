"""Errands: what may have to wait for a medium (to open, sync or close it) is done by a child, so
that the master never waits.

     send --(AT_ONCE at a time)--> forked --one message, with descriptors--> done(Answer)
                                     |------ it ends without a word -------> done(Answer with `why`)
                                     |------ SECONDS are over: killed -----> done(Answer with `why`, is_late)

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

#: What became of an errand. words: dict that the work returned; descriptors: that it opened, ours
#: now; why: '' or why there is no answer; is_late: because there was none in time.
Answer = namedtuple('Answer', 'words descriptors why is_late')


class Errand(object):
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


class Errands(object):
    """The errands of one master. `fork`: as of Workers."""

    def __init__(self, loop, fork=os.fork):
        self.loop = loop
        self.fork = fork
        self._queue = deque()
        self._under_way = []
        self._ending = {}  # pid -> name: answered, or given up and killed; not reaped yet
        self._stuck = set()  # pids that were given up

    def send(self, name, work, done, kept=(), seconds=None, forked=lambda: None):
        """Have work() done, soon; done(Answer) is called from the loop or from wait(). name:
        hashable, of what it is about; forked() is called when the child has its own `kept`, or will
        never have them."""
        self._queue.append(Errand(name, work, done, tuple(kept), seconds or SECONDS, forked))
        self._start()

    def is_stuck(self, name):
        """True if the last errand of this name got no answer, and still waits for one."""
        self.reap()
        return any(self._ending[pid] == name for pid in self._stuck)

    @property
    def is_idle(self):
        return not (self._queue or self._under_way)

    def _start(self):
        while self._queue and len(self._under_way) < AT_ONCE:
            errand = self._queue.popleft()
            try:
                self._fork(errand)
                errand.forked()
            except OSError as e:
                errand.forked()
                errand.done(
                    Answer({}, [], 'no process can be forked for it: %s' % e.strerror, False)
                )

    def _fork(self, errand):
        ours, theirs = channels.pair()
        master = os.getpid()
        try:
            errand.pid = child.fork(self.fork, lambda: _do(errand, theirs, master))
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        errand.channel = ours
        errand.due = self.loop.clock() + errand.seconds
        errand.timer = self.loop.call_later(errand.seconds, lambda: self._expired(errand))
        self._under_way.append(errand)
        self.loop.watch(ours, READ, lambda events: self._ready(errand))

    def wait(self):
        """Until nothing is under way, without the loop: at the start, when nobody is served yet.
        Bounded as they are."""
        while not self.is_idle:
            poll, by_descriptor = select.poll(), {}
            for errand in self._under_way:
                by_descriptor[errand.channel.fileno()] = errand
                poll.register(errand.channel.fileno(), select.POLLIN)
            soonest = min(errand.due for errand in self._under_way)
            for descriptor, _ in poll.poll(max(0.0, soonest - self.loop.clock()) * 1000 + 1):
                self._ready(by_descriptor[descriptor])
            for errand in list(self._under_way):
                if errand.due <= self.loop.clock():
                    self._expired(errand)

    # -- ends --------------------------------------------------------------------------------------------------------

    def _ready(self, errand):
        """It is over at the end of the channel: what was handed back, a claim above all, is then
        the master's alone."""
        try:
            messages = errand.channel.receive()
        except ChannelClosed:
            self._over(
                errand, errand.answer or Answer({}, [], 'the process that was to do it died', False)
            )
            return
        for message, descriptors in messages[:1]:
            errand.answer = Answer(message, descriptors, str(message.get('failed') or ''), False)

    def _expired(self, errand):
        if errand in self._under_way:
            self._stuck.add(errand.pid)
            try:
                os.kill(errand.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            late = Answer({}, [], 'there was no answer within %g seconds' % errand.seconds, True)
            self._over(errand, errand.answer or late)

    def _over(self, errand, answer):
        self._under_way.remove(errand)
        self._ending[errand.pid] = errand.name
        errand.timer.cancel()
        self.loop.forget(errand.channel)
        errand.channel.close()
        try:
            errand.done(answer)
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
        for errand in self._under_way:
            errand.timer.cancel()
            self.loop.forget(errand.channel)
            errand.channel.close()
            self._ending[errand.pid] = errand.name
            try:
                os.kill(errand.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        del self._under_way[:]
        self.reap()


def _do(errand, channel, master):
    """In the child."""
    child.become_errand(channel, errand.kept, master)
    try:
        words, descriptors = errand.work()
    except Exception as e:  # the boundary: the process ends here
        log.exception('an errand for %s met an unexpected failure', errand.name)
        words, descriptors = {'failed': 'an unexpected failure: %r' % e}, ()
    channel.send(words, descriptors)
    child.close_descriptors({channel.fileno()})
    os._exit(0)
