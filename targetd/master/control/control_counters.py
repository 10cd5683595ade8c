"""The answer to `targetdctl show counters`: what the workers have counted (master.counting)."""

from targetd.admin import commands
from targetd.master.counting import HISTOGRAMS, NUMBERS
from targetd.master.logins.sessions import MAXIMUM_TSIH


def counters_reply(units, rows, ended, silent):
    """units: {unit id: Unit}; rows, silent: as Counting.collect passes them to done(); ended: of
    Counting.ended()."""
    found = []
    for session, row in rows:
        unit = units.get(row['unit'])
        if unit is not None:
            found.append(_row(unit, row, session))
    for row in ended:
        found.append(_row(units[row['unit']], row, None))
    found.sort(key=lambda row: (row['tsih'] or MAXIMUM_TSIH + 1, row['target_name'], row['lun']))
    names = ', '.join(
        'session %d of %s (process %d)'
        % (worker.session.tsih, worker.session.initiator_name, worker.pid)
        for worker in silent
        if worker.session is not None
    )
    return commands.reply_rows(
        found, names and 'no answer within a second, not counted: %s' % names
    )


def _row(unit, row, session):
    found = {name: row[name] for name in NUMBERS + HISTOGRAMS}
    found.update(
        tsih=session.tsih if session else None,
        initiator_name=session.initiator_name if session else '',
        address=session.described()['address'] if session else '',
        pid=session.worker.pid if session else None,
        unit=unit.id,
        target_name=unit.target_name,
        lun=unit.lun.number,
    )
    return found
