"""The open file descriptions of media that workers get.

Linux reports a failed write-back once to each open file description, so every worker gets one of its
own, and a flush in one session cannot hide an error from another. The master's description, which
holds the claim on the medium, is used by the master alone (the flush at the stop).

     file:   reopened when it is handed over
     block device: taken from the spare descriptions of the store; opening a disk can block, so a job
             opens more of them when the last one is taken (ARCHITECTURE D15)

A worker shares the master's description if there is no other: the first worker after the spare ones
were used up, a medium that cannot be reopened, or a kernel before 4.13. The workers that share one
flush in turn (store.failure_flags). Memory and read-only media are never flushed, so they are shared.

An export of an NBD server has no description to share: every worker gets a line to its keeper.

May import store.
"""

import os

from targetd import compat, log
from targetd.store import linux, nbd_line

SPARES = 4  # descriptions that a job opens


class Descriptions(object):
    """Hands out descriptions. jobs: the jobs that open more of them."""

    def __init__(self, loop, jobs):
        self._loop = loop
        self._jobs = jobs
        self._complained = set()  # keys of media that cannot be reopened

    def lend(self, store):
        """Returns (descriptor, True if other processes use the same description) for a worker. The
        descriptor is valid until the loop runs again; the message that has it is queued before. Raises
        OSError if the keeper of an NBD export has ended."""
        if store.kind == 'nbd':
            line = nbd_line.open_line(store.descriptor, store.flag)
            self._loop.call_later(0, lambda: os.close(line))
            return line, False
        if not needs_own(store):
            return store.descriptor, False
        if not compat.HAS_ERROR_PER_DESCRIPTION:
            return store.descriptor, True
        descriptor = self._reopened(store) if store.kind == 'file' else self._spare(store)
        if descriptor is None:
            return store.descriptor, True
        self._loop.call_later(0, lambda: os.close(descriptor))
        return descriptor, False

    def _reopened(self, store):
        try:
            return linux.reopen(store.descriptor)
        except OSError as e:
            self._complain(store, e.strerror)
            return None

    def _spare(self, store):
        descriptor = store.spares.pop() if store.spares else None
        name = ('reopen', store.key)
        if not store.spares and not store.is_reopening and not self._jobs.is_stuck(name):
            store.is_reopening = True
            flag = store.flag
            self._jobs.submit_job(
                name,
                lambda: open_spares(store.descriptor),
                lambda answer: self._on_reopened(store, flag, answer),
                [store.descriptor],
            )
        return descriptor

    def _on_reopened(self, store, flag, answer):
        store.is_reopening = False
        if answer.why:
            self._complain(store, answer.why)
        elif store.descriptor is not None and store.flag == flag:
            store.spares += answer.descriptors
            return
        for descriptor in answer.descriptors:  # the store was closed or recovered meanwhile
            os.close(descriptor)

    def _complain(self, store, why):
        """Logs, once for each medium, that sessions share a description."""
        if store.key not in self._complained:
            self._complained.add(store.key)
            log.warning(
                '%s cannot be opened again for each session (%s): the sessions flush it in turn, '
                'which is slower',
                store.path,
                why,
            )


def needs_own(store):
    """Returns True if a flush of this medium can report lost data."""
    return store.kind in ('file', 'block') and not store.read_only


def open_spares(descriptor, count=SPARES):
    """A job in a child process: opens descriptions of this medium."""
    opened = []
    try:
        while len(opened) < count:
            opened.append(linux.reopen(descriptor))
    except OSError as e:
        if not opened:
            return {'failed': e.strerror}, ()
    return {}, opened
