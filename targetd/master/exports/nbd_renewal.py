"""Replaces keepers of NBD exports that have ended without an order (killed, or out of memory).

     check_now: the control socket is at its end --> a job starts a keeper --> the sessions get new
     lines --> flush

The connections of the sessions live on until then, but would not be made again. Commands in flight
end with COMMANDS CLEARED BY ANOTHER INITIATOR, which initiators send again. The flush makes durable
what the sessions had written; if the server has died in the meantime, that is lost, and the
sessions that had it set the failure flag.

May import store, nbd.
"""

import os
import select

from targetd import log
from targetd.master.exports import image_export


class NbdRenewal(object):
    """units: logical_units.Units; jobs: Jobs."""

    def __init__(self, units, jobs):
        self._units = units
        self._jobs = jobs
        self._running = set()  # ids of units whose keeper is being started

    def check_now(self):
        """Starts keepers for the units that have none any more."""
        for unit in list(self._units.by_id.values()):
            store = unit.store
            is_export = store.kind == 'nbd' and store.descriptor is not None
            if is_export and unit.id not in self._running and has_ended(store.descriptor):
                self._renew(unit)

    def _renew(self, unit):
        store = unit.store
        log.error(
            'unit %s: the process that connects to the NBD server has ended unexpectedly; another '
            'one is started',
            unit.id,
        )
        self._running.add(unit.id)
        self._jobs.submit_job(
            ('keeper', unit.id),
            lambda: ({}, [image_export.start_again(store)]),
            lambda answer: self._started(unit, store, answer),
            list(store.claims),
        )

    def _started(self, unit, store, answer):
        self._running.discard(unit.id)
        is_current = self._units.by_id.get(unit.id) is unit and unit.store is store
        if not answer.descriptors or not is_current or store.descriptor is None:
            for descriptor in answer.descriptors:
                os.close(descriptor)
            if answer.why:
                log.error('unit %s: no process connects to its server: %s', unit.id, answer.why)
            return
        os.close(store.descriptor)
        store.descriptor = answer.descriptors[0]

        def flush():
            self._units.flushes.flush_unit(unit, lambda error: None)

        self._units.replication.order_units(list(unit.workers), replace=[unit], done=flush)


def has_ended(descriptor):
    """True if the process at the other end of a socket has closed it."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))
