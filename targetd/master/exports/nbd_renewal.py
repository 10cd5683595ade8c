"""Replaces keepers of NBD exports that have ended without an order (killed, or out of memory), and adopts the
size of exports that the server has made larger.

     check_now: the control socket is at its end --> a job starts a keeper --> the sessions get new
     lines --> flush

The connections of the sessions live on until then, but would not be made again. Commands in flight
end with COMMANDS CLEARED BY ANOTHER INITIATOR, which initiators send again. The flush makes durable
what the sessions had written; if the server has died in the meantime, that is lost, and the
sessions that had it set the failure flag.

     a new connection has a larger size --> a job orders the keeper to replace older ones --> 2A/09

New connections are made when one was lost, and by a reload, which looks at servers that admit several
clients (CAN_MULTI_CONN). qemu-nbd shows every connection the size of its start.

May import store, nbd.
"""

import os
import select

from targetd import log
from targetd.master.exports import image_export, nbd_connecting, nbd_size_change
from targetd.master.exports.resizing import IMAGE_SECONDS
from targetd.nbd import uri
from targetd.store import nbd_line


class NbdRenewal(object):
    """units: logical_units.Units; jobs: Jobs; adopt_size(unit, bytes): of MediaWatch."""

    def __init__(self, units, jobs, adopt_size):
        self._units = units
        self._jobs = jobs
        self._adopt_size = adopt_size
        self._running = set()  # ids of units whose keeper is being started
        self._sizing = set()  # ids of units whose size is being changed

    def check_now(self):
        """Starts keepers for the units that have none any more."""
        for unit in list(self._units.by_id.values()):
            store = unit.store
            is_export = store.kind == 'nbd' and store.descriptor is not None
            if not is_export or unit.id in self._running:
                continue
            if has_ended(store.descriptor):
                self._renew(unit)
            elif nbd_size_change.noted_size(store.claims[0]) >= _next_size(unit):
                self._take_size(unit, False)

    def look_at_sizes(self):
        """Looks whether servers have made their exports larger, as far as they admit another client."""
        for unit in list(self._units.by_id.values()):
            store = unit.store
            if store.kind == 'nbd' and store.descriptor is not None and store.multi:
                self._take_size(unit, True)

    def _take_size(self, unit, connects):
        """connects: the job connects to the server; else the size is known from another connection."""
        store, least = unit.store, _next_size(unit)
        if store.image or unit.id in self._sizing or unit.is_resizing:
            return
        self._sizing.add(unit.id)

        def in_child():
            try:
                found = _size_of(store) if connects else nbd_size_change.noted_size(store.claims[0])
                if found >= least:
                    reply = nbd_line.order_size(store.descriptor, found)
                    return {'size': nbd_line.received_size(reply, IMAGE_SECONDS)}, ()
            except OSError as e:
                return {'failed': '%s %s' % (store.path, e.strerror or e)}, ()
            return {}, ()

        def answered(answer):
            self._sizing.discard(unit.id)
            size = answer.values.get('size', 0)
            is_current = self._units.by_id.get(unit.id) is unit and unit.store is store
            if answer.why:
                log.error('unit %s: its new size is not used: %s', unit.id, answer.why)
            elif is_current and size >= least:
                self._adopt_size(unit, size - size % store.block_size)

        self._jobs.submit_job(
            ('nbd size', unit.id), in_child, answered, store.descriptors(), IMAGE_SECONDS
        )

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


def _next_size(unit):
    """The smallest size (bytes) that initiators would see as a larger one."""
    return unit.replicated_size + unit.store.block_size


def _size_of(store):
    """Runs in a job. Returns the size (bytes) of the export for a new connection, 0 if the server is away."""
    try:
        sock, export = nbd_connecting.connect(uri.parse_uri(store.path))
    except nbd_connecting.Unavailable:
        return 0
    nbd_connecting.disconnect(sock)
    return export.size


def has_ended(descriptor):
    """True if the process at the other end of a socket has closed it."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))
