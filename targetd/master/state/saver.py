"""Saves files of state-dir in a child process, one after the other, so that the master never waits
for the disk.

     write() --> queue --> the child writes, syncs, renames --> done(None or OSError), in the same order
                              |-- no answer within SECONDS: killed --> done(OSError) for all that wait

What needs the saved state waits for done(); everything else continues. The child is forked for the
first file and ends with the master. After a write without an answer it is not known which state the
file has (OutcomeUnknown): the caller saves its present state again.
"""

import errno
import os
import signal
from collections import deque

from targetd import channel as channels
from targetd import log
from targetd.channel import ChannelClosed
from targetd.master.processes import child
from targetd.master.processes.loop import READ, WRITE
from targetd.master.state.state_directory import store_document
from targetd.master.state.state_places import store_held

SECONDS = 30.0  # for one file; a longer wait is a disk that does not answer
CLOSE_SECONDS = 10.0


def _store(path, text, node):
    if node is None:
        store_document(path, text)
    else:
        store_held(path, text, node)


class OutcomeUnknown(OSError):
    """The file has the old or the new state."""


class DirectSaver(object):
    """Has the interface of Saver and writes at once, in this process."""

    @staticmethod
    def write(path, text, done, node=None):
        """Write the file; done(None or OSError) is called before this returns."""
        try:
            _store(path, text, node)
        except OSError as e:
            done(e)
        else:
            done(None)

    @staticmethod
    def when_idle(callback):
        """Call it now."""
        callback()

    def close(self):
        """Nothing is left to write."""


class Saver(object):
    """Writes through a child process. loop: Loop; fork: os.fork, or a substitute of a test."""

    def __init__(self, loop, fork=os.fork):
        self.loop = loop
        self.fork = fork
        self._queue = deque()  # (path, text, done, node); the first one is being written
        self._idle = []  # functions that wait for an empty queue
        self._channel = None
        self._pid = None
        self._timer = None
        self._unreaped = []  # pids of children that were killed

    def write(self, path, text, done, node=None):
        """Write the file durably, or remove it if `text` is None, after all files before it. node: the
        unit_state.Node that must hold it, for a file of a unit-state directory. done(None or OSError) is
        called later, from the loop."""
        self._queue.append((path, text, done, node))
        if len(self._queue) == 1:
            self._send()

    def when_idle(self, callback):
        """Call callback() as soon as nothing waits to be written: now or later."""
        if self._queue:
            self._idle.append(callback)
        else:
            callback()

    @property
    def is_idle(self):
        """True if nothing waits to be written."""
        return not self._queue

    @property
    def children(self):
        """The process ids of its children."""
        return self._unreaped + ([self._pid] if self._channel is not None else [])

    def _send(self):
        try:
            if self._channel is None:
                self._start()
            path, text, _, node = self._queue[0]
            self._channel.queue({'path': path, 'text': text, 'node': node})
            self._watch()
        except ChannelClosed:
            self.loop.call_later(0, self._lost)
            return
        except OSError as e:
            error = e
            self.loop.call_later(0, lambda: self._written(error))
            return
        self._timer = self.loop.call_later(SECONDS, self._late)

    def _start(self):
        self.reap()
        if self._unreaped:
            raise OutcomeUnknown(errno.ETIMEDOUT, 'the disk of state-dir does not answer')
        ours, theirs = channels.pair()
        master = os.getpid()
        try:
            self._pid = child.fork(self.fork, lambda: _run_in_child(theirs, master))
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._channel = ours

    def _watch(self):
        events = READ | WRITE if self._channel.wants_write else READ
        self.loop.watch(self._channel, events, self._ready)

    def _ready(self, events):
        try:
            if events & WRITE:
                self._channel.flush()
                self._watch()
            messages = self._channel.receive() if events & READ else ()
        except ChannelClosed:
            self._lost()
            return
        for message, _ in messages:
            number = message['errno']
            self._written(OSError(number, message['failed']) if number else None)

    def _written(self, error):
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            self._queue[0][2](error)  # what it writes waits until the first one is taken out
        finally:
            self._queue.popleft()
            self._continue()

    def _continue(self):
        if self._queue:
            self._send()
            return
        waiting, self._idle = self._idle, []
        for callback in waiting:
            callback()

    def _late(self):
        self._fail_all(errno.ETIMEDOUT, 'there was no answer within %d seconds' % SECONDS)

    def _lost(self):
        self._fail_all(errno.EIO, 'the process that saves it died')

    def _fail_all(self, number, why):
        """The child does not answer. What waits fails, since the disk may never answer."""
        log.error('state-dir cannot be written: %s', why)
        self._end_child()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        failed, self._queue = self._queue, deque([None])  # what is written now waits
        for _, _, done, _ in failed:
            try:
                done(OutcomeUnknown(number, why))
            except Exception:  # the others must not wait for ever
                log.exception('the end of a save met an unexpected failure')
        self._queue.popleft()
        self._continue()

    def _end_child(self):
        if self._channel is not None:
            self.loop.forget(self._channel)
            self._channel.close()
            self._channel = None
            try:
                os.kill(self._pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self._unreaped.append(self._pid)
            self.reap()

    def reap(self):
        """Reap children that were killed. Call after SIGCHLD."""
        for pid in list(self._unreaped):
            try:
                reaped = os.waitpid(pid, os.WNOHANG)[0]
            except ChildProcessError:
                reaped = pid
            if reaped:
                self._unreaped.remove(pid)

    def close(self):
        """At the end of the master, without the loop: wait until everything is written, but at most
        CLOSE_SECONDS."""
        end = self.loop.clock() + CLOSE_SECONDS
        while self._queue and self.loop.clock() < end:
            self.loop.run_once(0.05)
        self._end_child()


def _run_in_child(channel, master):
    """[the saver] Never returns."""
    child.become_job_process(channel, (), master)
    child.name_process('targetd-saver')
    try:
        while True:
            message, _ = channel.read()
            answer = {'errno': 0, 'failed': ''}
            try:
                _store(message['path'], message['text'], message['node'])
            except OSError as e:
                answer = {'errno': e.errno or errno.EIO, 'failed': e.strerror or str(e)}
            channel.send(answer)
    except ChannelClosed:
        os._exit(0)


class Savers(object):
    """A Saver for state-dir, and one for each other directory (unit-state): one that does not answer
    delays only its own files. Has the interface of Saver, and its arguments."""

    def __init__(self, loop, fork=os.fork):
        self._new = lambda: Saver(loop, fork)
        self._of_directory = {'': self._new()}

    def write(self, path, text, done, node=None):
        """See Saver.write()."""
        directory = '' if node is None else os.path.dirname(path)
        if directory not in self._of_directory:
            self._of_directory[directory] = self._new()
        self._of_directory[directory].write(path, text, done, node)

    def when_idle(self, callback):
        """Call callback() as soon as nothing that waits now has to be written: now or later."""
        left = [saver for saver in self._of_directory.values() if not saver.is_idle]
        if not left:
            callback()
            return
        waiting = [len(left)]

        def one_idle():
            waiting[0] -= 1
            if not waiting[0]:
                callback()

        for saver in left:
            saver.when_idle(one_idle)

    @property
    def is_idle(self):
        """True if nothing waits to be written."""
        return all(saver.is_idle for saver in self._of_directory.values())

    @property
    def children(self):
        """The process ids of their children."""
        return [pid for saver in self._of_directory.values() for pid in saver.children]

    def reap(self):
        """Reap children that were killed. Call after SIGCHLD."""
        for saver in self._of_directory.values():
            saver.reap()

    def close(self):
        """At the end of the master: see Saver.close()."""
        for saver in self._of_directory.values():
            saver.close()


__all__ = ('DirectSaver', 'OutcomeUnknown', 'Saver', 'Savers')
