"""The logical units in the state that a master hands over (handover): media that stay open, what sessions
share of them, journals of atomic writes, ROD tokens, and the units in standby, which have no medium."""

from targetd.config.lun_maps import Shown
from targetd.host import identity
from targetd.master.exports.exports import UnavailableLun
from targetd.master.units.shared_state import Shared
from targetd.master.units.unit import StandbyUnit, Unit
from targetd.scsi.sam import Nexus
from targetd.store import adopt_store

#: Attributes of a Unit that pass over as they are.
PLAIN = (
    'path_problem',
    'shrinkage',
    'replicated_size',
    'since',
    'watched',
    'sleep',
    'asleep_since',
    'spin_downs',
    'spin_ups',
    'is_unsaved',
    'are_records_scheduled',
    'acknowledged_at',
)


def collect(master, keep):
    """The units as plain values. keep(descriptor): the new program gets the descriptor, too."""
    exports = master.exports
    missing = [
        (each.target_name, each.lun.number, each.why) for each in exports.unavailable.values()
    ]
    removed = master.units.hanging.removed
    return {
        'units': [_unit_row(unit, keep) for unit in master.units.by_id.values()],
        'standby': [_unit_row(unit, keep) for unit in master.units.in_standby.values()],
        'journals': master.atomic_writes.handed_over(keep),
        'tokens': master.rod_tokens.handed_over(),
        'generations': exports.generations,
        'unavailable': missing,
        'removed': [
            (unit_id, key, [worker.pid for worker in workers])
            for unit_id, (key, workers) in removed.items()
        ],
    }


def _unit_row(unit, keep):
    row = {name: getattr(unit, name) for name in PLAIN}
    row.update(
        id=unit.id,
        key=unit.key,
        target_name=unit.target_name,
        lun=unit.lun.number,
        facts=unit.facts,
        found=unit.found,
        shared=dict(unit.shared._asdict()),
        store=unit.store.description(),
        medium=unit.store.key,
        descriptors=[keep(descriptor) for descriptor in unit.store.descriptors()],
        spares=len(unit.store.spares),
        workers={worker.pid: tuple(nexus) for worker, nexus in unit.workers.items()},
        readers=[worker.pid for worker in unit.readers],
        views={worker.pid: tuple(shown) for worker, shown in unit.views.items()},
        left_out={worker.pid: holder for worker, holder in unit.left_out.items()},
        guests={worker.pid: (tuple(nexus), n) for worker, (nexus, n) in unit.guests.items()},
        slots={worker.pid: slot.number for worker, slot in unit.slots.items()},
    )
    return row


def restore(master, words):
    """Give a new Master the units. Raises KeyError if the configuration has not the same LUNs."""
    configuration, workers = master.state.configuration, master.workers.by_pid
    master.atomic_writes.take_over(words['journals'])
    for row in words['units']:
        target = configuration.targets[row['target_name']]
        unit = _restored_unit(master, row, target.luns[row['lun']])
        _restore_sessions(unit, row, workers)
        master.units.by_id[unit.id] = unit
        if unit.lun.unit_state:
            master.replication.state.active.add((unit.target_name, unit.lun.number))
    for row in words['standby']:
        unit = _restored_standby(row, configuration.targets[row['target_name']])
        _restore_sessions(unit, row, workers)
        master.units.in_standby[unit.id] = unit
    master.rod_tokens.take_over(words['tokens'], workers)
    for unit_id, key, pids in words['removed']:
        holders = {workers[pid] for pid in pids if pid in workers}
        master.units.hanging.removed[unit_id] = key, holders
    exports, server = master.exports, configuration.server
    exports.server = server.server_id or identity.server_id(server.state_dir)
    exports.known.load()
    exports.generations.update(words['generations'])
    for target_name, number, why in words['unavailable']:
        target = configuration.targets[target_name]
        exports.unavailable[target_name, number] = UnavailableLun(target, target.luns[number], why)


def _store(row):
    store = adopt_store(row['store'], row['medium'], row['descriptors'], row['spares'])
    store.flag = row['store']['flag']
    return store


def _restored_unit(master, row, lun):
    store = _store(row)
    medium = master.atomic_writes.of_store(store.key) if lun.atomic_writes else None
    unit = Unit(
        row['id'],
        row['key'],
        row['target_name'],
        lun,
        store,
        row['facts'],
        Shared(**row['shared']),
        medium,
        row['found'],
    )
    for pid, number in row['slots'].items():
        unit.slots[master.workers.by_pid[pid]] = medium.slots[number]
    return unit


def _restored_standby(row, target):
    return StandbyUnit(
        row['id'],
        row['key'],
        target,
        target.luns[row['lun']],
        _store(row),
        row['facts'],
        Shared(**row['shared']),
    )


def _restore_sessions(unit, row, workers):
    for name in PLAIN:
        if name in row:  # an earlier program lacks the newest
            setattr(unit, name, row[name])
    for pid, nexus in row['workers'].items():
        unit.workers[workers[pid]] = Nexus(*nexus)
    unit.readers = {workers[pid] for pid in row['readers']}
    # an earlier program has no maps
    unit.views = {workers[pid]: Shown(*shown) for pid, shown in row.get('views', {}).items()}
    unit.left_out = {workers[pid]: holder for pid, holder in row['left_out'].items()}
    for pid, (nexus, count) in row['guests'].items():
        unit.guests[workers[pid]] = Nexus(*nexus), count


def start_serving(master):
    """The old program is gone: start what timers do."""
    exports, replication = master.exports, master.replication
    exports.retry_later()
    exports.check_space()
    exports.read_only_times.look()
    for unit in master.units.by_id.values():
        if unit.is_unsaved:
            replication.save_when_possible(unit, unit.shared)
        if unit.are_records_scheduled:
            replication.send_records_later(unit)
