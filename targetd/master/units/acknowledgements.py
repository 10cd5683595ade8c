"""Acknowledgements: which workers still have to confirm that they applied a message.

     expect --> messages are sent --> start_timer --every worker acknowledged, or died--> done()
                                          |
                                          +-- ACKNOWLEDGE_SECONDS are over: the late workers are killed

A worker that does not acknowledge in time is killed, and its death counts as its acknowledgement: a
dead process writes nothing to the medium.
"""

ACKNOWLEDGE_SECONDS = 10.0


class _Pending(object):
    """The workers that have not acknowledged one message, and the callback for the last one."""

    def __init__(self, workers, done):
        self.workers = set(workers)
        self.done = done
        self.timer = None


class Acknowledgements(object):
    """Tracks the acknowledgements of all messages. kill(worker, why) ends a worker process."""

    def __init__(self, loop, kill):
        self.loop = loop
        self.kill = kill
        self._pending = {}  # message id -> _Pending
        self.last_id = 0

    @property
    def is_idle(self):
        """True if no acknowledgement is awaited."""
        return not self._pending

    def expect(self, workers, done):
        """Returns the id for a message to these workers. done() is called when all of them have
        acknowledged it, but not before start_timer(id) was called."""
        self.last_id += 1
        self._pending[self.last_id] = _Pending(workers, done)
        return self.last_id

    def start_timer(self, message_id):
        """The message was sent: kill the workers that do not acknowledge it in time."""
        pending = self._pending.get(message_id)
        if pending is None:
            return
        if pending.workers:
            pending.timer = self.loop.call_later(
                ACKNOWLEDGE_SECONDS, lambda: self._kill_late_workers(message_id)
            )
        else:
            del self._pending[message_id]
            pending.done()

    def acknowledge(self, worker, message_id):
        """The worker has applied this message. Unknown ids are ignored."""
        pending = self._pending.get(message_id)
        if pending is None or worker not in pending.workers:
            return
        pending.workers.discard(worker)
        if not pending.workers:
            del self._pending[message_id]
            if pending.timer is not None:
                pending.timer.cancel()
            pending.done()

    def worker_gone(self, worker):
        """The worker is dead or serves no session any more: it counts as having acknowledged."""
        waiting = [number for number, p in self._pending.items() if worker in p.workers]
        for message_id in waiting:
            self.acknowledge(worker, message_id)

    def _kill_late_workers(self, message_id):
        for worker in list(self._pending[message_id].workers):
            self.kill(
                worker, 'it did not acknowledge a change within %d seconds' % ACKNOWLEDGE_SECONDS
            )
