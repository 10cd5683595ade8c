"""`targetdctl snmp`: the protocol pass_persist of snmpd (snmpd.conf(5)), on standard input and output.

The tree below the OID that snmpd.conf names (BASE by default):

  .1.1.0  severity: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN     .1.2.0  the state in words
  .1.3.0  sessions   .1.4.0  LUNs   .1.5.0  LUNs that are critical
  .2.COLUMN.INDEX  a row for each LUN: 1 name, 2 state, 3 severity, 4 bytes, 5 sessions, 6 medium errors,
                   7 reads, 8 bytes read, 9 writes, 10 bytes written

May import base and admin.
"""

import time

from targetd.admin import monitoring
from targetd.errors import TargetdError

#: netSnmpPlaypen of NET-SNMP-MIB, for experiments, and the port of iSCSI.
BASE = '.1.3.6.1.4.1.8072.9999.9999.3260'
FRESH_SECONDS = 5.0


def _number(oid):
    return tuple(int(part) for part in oid.strip('.').split('.'))


def tree(snapshot):
    """{OID below the base as a tuple: (type, value)}. snapshot: monitoring.Snapshot, or None if the
    server does not answer."""
    if snapshot is None:
        return {
            (1, 1, 0): ('integer', monitoring.UNKNOWN),
            (1, 2, 0): ('string', 'targetd does not answer'),
        }
    severity, text = monitoring.nagios(snapshot)
    critical = sum(
        monitoring.unit_severity(u['state']) == monitoring.CRITICAL for u in snapshot.units
    )
    found = {
        (1, 1, 0): ('integer', severity),
        (1, 2, 0): ('string', text.split('\n')[0].split(' | ')[0]),
        (1, 3, 0): ('gauge', int(snapshot.status.get('sessions', 0))),
        (1, 4, 0): ('gauge', len(snapshot.units)),
        (1, 5, 0): ('gauge', critical),
    }
    counted = {}
    for row in snapshot.counters:
        sums = counted.setdefault((row['target_name'], row['lun']), [0, 0, 0, 0])
        for at, name in enumerate(('reads', 'bytes_read', 'writes', 'bytes_written')):
            sums[at] += row[name]
    for index, unit in enumerate(snapshot.units, 1):
        key = unit['target_name'], unit['lun']
        values = [
            ('string', '%s/%d' % key),
            ('string', unit['state'].replace('\n', ' ')),
            ('integer', monitoring.unit_severity(unit['state'])),
            ('counter64', unit['size'] or 0),
            ('gauge', unit['sessions']),
            ('gauge', unit.get('errors') or 0),
        ]
        values += [('counter64', number) for number in counted.get(key, [0, 0, 0, 0])]
        for column, value in enumerate(values, 1):
            found[2, column, index] = value
    return found


class Answers(object):
    """Answers the lines of snmpd. snapshot(): a monitoring.Snapshot; may raise TargetdError."""

    def __init__(self, snapshot, base=BASE, clock=time.monotonic):
        self._snapshot = snapshot
        self._base = _number(base)
        self._clock = clock
        self._tree = {}
        self._taken = None

    def _fresh(self):
        now = self._clock()
        if self._taken is None or now >= self._taken + FRESH_SECONDS:
            try:
                self._tree = tree(self._snapshot())
            except TargetdError:
                self._tree = tree(None)
            self._taken = now
        return {self._base + oid: value for oid, value in self._tree.items()}

    def get(self, oid):
        """The lines of the answer to `get`."""
        found = self._fresh()
        wanted = _number(oid)
        return self._shown(wanted, found[wanted]) if wanted in found else ['NONE']

    def get_next(self, oid):
        """The lines of the answer to `getnext`."""
        found, wanted = self._fresh(), _number(oid)
        later = sorted(each for each in found if each > wanted)
        return self._shown(later[0], found[later[0]]) if later else ['NONE']

    @staticmethod
    def _shown(oid, value):
        return ['.' + '.'.join(map(str, oid)), value[0], str(value[1])]

    def run(self, lines, write):
        """Answer until the input ends. lines: iterator of lines; write(text)."""
        for line in lines:
            word = line.strip()
            if not word:
                return  # as snmpd asks a program to end
            if word == 'PING':
                answer = ['PONG']
            elif word in ('get', 'getnext'):
                oid = next(lines, '').strip()
                try:
                    answer = self.get(oid) if word == 'get' else self.get_next(oid)
                except ValueError:
                    answer = ['NONE']
            elif word == 'set':
                next(lines, ''), next(lines, '')
                answer = ['not-writable']
            else:
                answer = ['NONE']
            write('\n'.join(answer) + '\n')
