"""The faults of the units' media in the answers of targetdctl: `show units`, `show errors`, `status`."""

import time

from targetd.master.units.fault_transitions import is_degraded
from targetd.scsi import faults
from targetd.scsi.medium_state import READY


def when(seconds):
    """A wall clock time as text, in the local time zone."""
    return time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(seconds))


def state_of(unit):
    """The state of the unit's medium, with the reason of a failure, the progress of an operation or
    the latest fault."""
    found = _state_of_medium(unit)
    ordered = unit.shared.ordered
    if not ordered:
        return found
    by = 'set by the administrator' if unit.lun.state != 'ready' else 'read-only-schedule'
    return '%s (%s)%s' % (ordered, by, '' if found == READY else '; ' + found)


def _state_of_medium(unit):
    medium, operation, restriction = (
        unit.shared.medium,
        unit.shared.operation,
        unit.shared.restriction,
    )
    trouble = unit.failure or unit.shrinkage
    if trouble:
        return '%s: %s%s' % (medium, trouble, restriction and '; it is %s' % restriction)
    if operation is not None:
        return '%s: %s' % (medium, operation['failed'] or '%d %%' % (unit.progress * 100 >> 16))
    if medium != READY or not is_degraded(unit.shared):
        return medium
    return '%s: %s' % (restriction or 'degraded', summary(unit))


def summary(unit):
    """'3 errors, the latest: read EIO at LBA 2048 for iqn…, 2026-11-28 17:20:11'; '' without faults."""
    number, latest = faults.count(unit.shared.records['faults']), latest_of(unit)
    if not number:
        return ''
    return '%d error%s, the latest: %s' % (number, '' if number == 1 else 's', latest)


def latest_of(unit):
    """'read EIO at LBA 2048 for iqn…, 2026-11-28 17:20:11'; '' without faults."""
    found = unit.shared.records['faults']
    key = faults.latest(found)
    if key is None:
        return ''
    row = _fault_row(unit, key, found[key])
    return '%s at LBA %d for %s, %s' % (key, row['first'], row['initiator_name'], row['time'])


def _fault_row(unit, key, fault):
    return {
        'what': key,
        'count': fault['count'],
        'first': fault['offset'] // unit.store.block_size,
        'last': None,
        'initiator_name': fault['by'],
        'time': when(fault['at'] / 1000.0),
    }


def error_rows(unit):
    """The rows of `show errors`: the kinds of faults, the latest first, then the bad blocks."""
    found, size = unit.shared.records['faults'], unit.store.block_size
    rows = [
        _fault_row(unit, key, found[key])
        for key in sorted(found, key=lambda key: found[key]['at'], reverse=True)
    ]
    for offset, length in unit.shared.records['bad_blocks']:
        first, last = offset // size, (offset + length - 1) // size
        rows.append(
            {
                'what': 'bad blocks',
                'count': last - first + 1,
                'first': first,
                'last': last,
                'initiator_name': '',
                'time': '',
            }
        )
    return rows


def status_facts(units):
    """[(name, value)] of `status`: how many units are degraded, and the latest fault of all."""
    degraded = [unit for unit in units if is_degraded(unit.shared)]
    facts = [('degraded units', len(degraded))]
    with_faults = [unit for unit in degraded if unit.shared.records['faults']]
    if with_faults:
        worst = max(with_faults, key=_latest_time)
        facts.append(('latest error', 'unit %s: %s' % (worst.id, latest_of(worst))))
    return facts


def _latest_time(unit):
    return max(fault['at'] for fault in unit.shared.records['faults'].values())
