"""The state of a unit that all sessions share: its value, and what of it is kept in state-dir. Pure.

units.transitions has the functions that change it.
"""

from collections import namedtuple

from targetd.scsi import alua, faults, modes, operations, records, reservations
from targetd.scsi.medium_state import EJECTED, FAILED, READY, STOPPED


#: The state that all sessions of a unit share.
#:
#: reservations, modes, access (alua), records: values of the scsi module of that name
#: medium: READY …, or a state of scsi.operations
#: prevented_by: ((initiator_port, target_port) …) that prevent medium removal
#: operation: the FORMAT UNIT or SANITIZE in progress or failed (scsi.operations), or None
#: crossed: indices of the thresholds (scsi.modes) that are reached; None before the first check
#: key_check: identifies the encryption key of the medium (state.key_files); '' if not encrypted
#: failure: why the medium is FAILED, '' if it is not
#: restriction: what the setting on-error has done, one of scsi.faults.RESTRICTIONS
#: ordered: what the setting state of the LUN says, likewise
class Shared(
    namedtuple(
        'Shared',
        'reservations modes medium prevented_by operation access crossed records key_check failure '
        'restriction ordered',
    )
):
    """See above."""

    __slots__ = ()

    @property
    def in_force(self):
        """The stricter one of both restrictions, which the replicas have."""
        return faults.stricter(self.restriction, self.ordered)


Shared.__new__.__defaults__ = (READY, (), None, alua.initial(), None, records.initial()) + (
    '',
    '',
    '',
    '',
)

#: The value of `ordered` for each value of the setting.
ORDERED = {'ready': faults.NONE, 'read-only': faults.READ_ONLY, 'offline': faults.OFFLINE}


def initial_state(facts, saved, boot_id, configured=None):
    """The Shared state of a unit when it is exported. saved: the dict that saved_state() returned,
    or {}; boot_id: identifies this boot of the machine. Reservations outlast a restart of targetd in
    the same boot; after another boot (loss of power) only those with APTPL are restored. configured:
    the alua state in the configuration. Raises ValueError if `saved` is damaged."""
    same_boot = bool(boot_id) and saved.get('boot_id') == boot_id
    operation = operations.operation_from_storage(saved.get('operation'))
    failure = str(saved.get('failure') or '')
    return Shared(
        reservations.aptpl_load(saved.get('reservations'), power_lost=not same_boot),
        modes.restore(facts, saved.get('modes')),
        medium_of(operation, failure),
        (),
        operation,
        alua.restore(configured or alua.initial(), saved.get('access')),
        records=records.records_from_storage(saved.get('records')),
        key_check=saved.get('key_check') or '',
        failure=failure,
        restriction=_restriction(saved.get('restriction', faults.NONE)),
    )


def _restriction(value):
    if value not in faults.RESTRICTIONS:
        raise ValueError('restriction %r' % (value,))
    return value


def medium_of(operation, failure):
    """The state of a medium with this operation (or None) and this failure (or '')."""
    return FAILED if failure else operations.medium_state_of(operation) or READY


def saved_state(shared, boot_id):
    """The dict to save on stable storage; {} if nothing has to be restored."""
    state = {}
    if shared.reservations['registrations']:
        state['reservations'] = reservations.aptpl_dump(shared.reservations)
    kept = modes.saved(shared.modes)
    if kept:
        state['modes'] = kept
    if shared.operation is not None:
        state['operation'] = shared.operation
    remembered = records.records_for_storage(shared.records)
    if remembered:
        state['records'] = remembered
    paths = alua.saved(shared.access)
    if paths:
        state['access'] = paths
    if shared.key_check:
        state['key_check'] = shared.key_check
    if shared.failure:
        state['failure'] = shared.failure
    if shared.restriction:
        state['restriction'] = shared.restriction
    if state:
        state['boot_id'] = boot_id
    return state


def durable_part(shared):
    """What a command waits for until it is saved: everything that is saved but the records, which are
    saved by themselves."""
    state = saved_state(shared, '')
    state.pop('records', None)
    return state


def may_stop_flushing(old, new):
    """True if initiators may stop flushing when the state changes from `old` to `new`, because they
    need not flush any more (no write cache, write protection) or cannot (no medium, no active
    path)."""
    before, after = modes.parameters(old.modes), modes.parameters(new.modes)
    return (
        (before.wce and not after.wce)
        or (after.swp and not before.swp)
        or (bool(new.ordered) and not old.ordered)
        or (old.medium == READY and new.medium in (STOPPED, EJECTED))
        or any(
            alua.refusal(alua.state_of(new.access, tag))
            and not alua.refusal(alua.state_of(old.access, tag))
            for tag in map(int, old.access['states'])
        )
    )
