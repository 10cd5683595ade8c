"""Rules for several LUNs on one medium. Pure."""

from targetd.errors import StoreError
from targetd.master.units import guards


def require_compatible(lun, store, others):
    """Raises StoreError if this LUN on this OpenedStore cannot be served besides the other Units of its
    medium."""
    _require_sole_writer(lun, store, others)
    _require_same_atomic_writes(lun, store, others)
    _require_same_journal(lun, store, others)


def _require_sole_writer(lun, store, others):
    """Raises StoreError if another LUN serves the medium under another name (a hard link, a bind
    mount, another device node) and one of the two can write: they would not know each other's
    reservations. The same name twice is an error of the configuration."""
    if store.kind not in ('file', 'block', 'nbd', 'passthrough') or lun.allow_in_use:
        return
    for other in others:
        if not (lun.readonly and other.lun.readonly):
            raise StoreError(
                '%s is the medium of lun %d of %s, %s, under another name: both are exported by this '
                'targetd; serve it once, and admit several initiators to that target; or make both '
                'readonly; or, if the initiators coordinate their accesses, write allow-in-use = yes'
                % (store.path, other.lun.number, other.target_name, other.store.path)
            )


def _require_same_atomic_writes(lun, store, others):
    """Raises StoreError unless all LUNs of one medium have the same atomic-writes setting: either
    all of them lock the blocks that they read and write, or none does. others: the Units of the same
    medium."""
    for other in others:
        if other.lun.atomic_writes != lun.atomic_writes:
            raise StoreError(
                '%s is also lun %d of %s, with another value of atomic-writes; write the same value for '
                'both' % (store.path, other.lun.number, other.target_name)
            )


def _require_same_journal(lun, store, others):
    """Raises StoreError unless all LUNs of one medium have the same undo journal: what one of them writes
    without it could not be undone. others: the Units of the same medium."""
    for other in others:
        if guards.journal_bytes(other.lun) != guards.journal_bytes(lun):
            raise StoreError(
                '%s is also lun %d of %s, with another undo-journal; write the same guard for both'
                % (store.path, other.lun.number, other.target_name)
            )
