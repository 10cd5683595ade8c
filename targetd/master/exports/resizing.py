"""The sizes that a reload asks for: tried and put in force before the reload changes anything else,
so that a size that cannot be had refuses the whole reload.

     prepare --> a job per unit: refuse, or extend the medium --> done(failures)
                                                                    | any failure of the reload
     undo  <--------------------------------------------------------+ the files get their old size back

For `reload --plan` the job extends an unlinked file beside the medium instead. An extension can be
undone as long as no initiator knows of it, so media_watch ignores the size of these units meanwhile.
"""

import os
import tempfile

from targetd import log
from targetd.config import lun_rules
from targetd.errors import StoreError
from targetd.store import nbd_line

#: Limit for the change of the size of a disk image: its server is stopped and started again.
IMAGE_SECONDS = 60.0


class Resizes(object):
    """The sizes of one reload. jobs: Jobs; wanted: [(Unit, bytes)]; plan_only: True if nothing is to
    change."""

    def __init__(self, jobs, wanted, plan_only):
        self.jobs = jobs
        self.wanted = wanted
        self.plan_only = plan_only
        self.sizes = {}  # Unit -> the new size, of the media that have it now
        self._grown = []  # [(Unit, size before)]
        self._failures = []
        self._missing = 0

    def prepare(self, done):
        """Starts to extend all media. Calls done([why a size cannot be had …]), now or later."""
        self._missing = len(self.wanted) + 1
        for unit, _ in self.wanted:
            unit.is_resizing = not self.plan_only
        for unit, size in self.wanted:
            self._prepare(unit, size)
        self._done = done
        self._one_less()

    def _prepare(self, unit, size):
        store, name = unit.store, ('size', unit.id)
        if self.jobs.is_stuck(name):
            self._failed(unit, '%s does not respond; see dmesg' % store.path)
        elif store.descriptor is None:
            self._take(unit, size, extend_medium(store, size, self.plan_only)[0])
        else:
            self.jobs.submit_job(
                name,
                lambda: extend_medium(store, size, self.plan_only),
                lambda answer: self._take(unit, size, answer.values or {'failed': answer.why}),
                [store.descriptor],
                IMAGE_SECONDS if store.kind == 'nbd' else None,
            )

    def _take(self, unit, size, values):
        if 'failed' in values:
            self._failed(unit, values['failed'])
            return
        self.sizes[unit] = size
        if values['size'] < size:
            self._grown.append((unit, values['size']))
        self._one_less()

    def _failed(self, unit, why):
        self._failures.append('lun %d of %s: %s' % (unit.lun.number, unit.target_name, why))
        self._one_less()

    def _one_less(self):
        self._missing -= 1
        if not self._missing:
            self._done(self._failures)

    def undo(self):
        """The reload is refused: the files get their old size back."""
        for unit, size in [] if self.plan_only else self._grown:
            shorten(unit.store, size, [unit])
        del self._grown[:]
        self.finish()

    def finish(self):
        """The new sizes are in force, or undone."""
        for unit, _ in self.wanted:
            unit.is_resizing = False
            unit.sizes_changed += 1


def shorten(store, size, served):
    """Restores the old size of a file that was extended, unless initiators have seen the new size.
    served: the Units of this file that are exported."""
    if any(unit.replicated_size > size for unit in served):
        log.warning('%s keeps its new size: it is in use already', store.path)
        return
    for unit in served:
        unit.sizes_changed += 1
    try:
        if store.kind == 'nbd':
            nbd_line.order_size(store.descriptor, size, may_shrink=True).close()
        elif store.descriptor is not None:
            os.ftruncate(store.descriptor, size)
    except OSError as e:
        log.error('%s keeps its new size: %s', store.path, e.strerror)


# -- in the job ------------------------------------------------------------------------------------


def extend_medium(store, size, plan_only):
    """Runs in a child process: extends the medium of an OpenedStore to `size` bytes. Returns
    ({'size': bytes before} or {'failed': message}, ())."""
    try:
        now = store.resize_check()
        if store.kind == 'block' and now != size:
            raise StoreError(
                '%s has %d bytes, but the setting size is %d; leave size out, or correct the path'
                % (store.path, now, size)
            )
        grow(store, size, plan_only)
    except StoreError as e:
        return {'failed': str(e)}, ()
    except OSError as e:
        return {'failed': '%s: its size cannot be determined: %s' % (store.path, e.strerror)}, ()
    return {'size': now}, ()


def grow(store, size, plan_only=False):
    """Extends a file, memory or a disk image to this size (bytes). Raises StoreError if it is larger
    already: a medium is never made shorter."""
    now, name = store.resize_check(), store.path or 'the %s disk' % store.kind
    if now > size:
        raise StoreError(
            '%s has %d bytes, more than size = %d; a file is never made shorter: write size = %d, or omit '
            'the setting' % (name, now, size, now)
        )
    if now == size:
        return
    if store.kind == 'nbd' and store.image not in lun_rules.RESIZABLE_IMAGES:
        raise StoreError('%s: %s' % (name, lun_rules.why_not_resizable(store.image)))
    try:
        if store.kind == 'nbd' and not plan_only:
            reply = nbd_line.order_size(store.descriptor, size)
            nbd_line.received_size(reply, IMAGE_SECONDS)
        elif plan_only:
            try_size(store, size)
        elif store.descriptor is not None:
            os.ftruncate(store.descriptor, size)
    except OSError as e:
        raise StoreError('%s cannot be extended to %d bytes: %s' % (name, size, e.strerror))
    if not plan_only:
        store.set_size(size)


def try_size(store, size):
    """Extends an unlinked file in the directory of a file to this size, and removes it. Raises
    OSError."""
    if store.kind == 'file':
        with tempfile.TemporaryFile(dir=os.path.dirname(store.path)) as trial:
            os.ftruncate(trial.fileno(), size)
