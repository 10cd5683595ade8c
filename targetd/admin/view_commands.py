"""The rows of the commands that look at sessions, workers, reservations and the configuration, and of those
that act on sessions and reservations of a target: see commands. Pure.
"""

from targetd.admin.command_rows import WIDE, Argument, columns, command

_UNIT = Argument('unit', 'text', True, 'TARGET/LUN, or the first column of "show units --wide"')

# fmt: off
TABLE = (
    command('show connections', 'list the TCP connections of the sessions',
            'One line per connection: its session, its number in it (CID), and the address of the '
            'initiator.',
            columns=columns(('tsih', 'SESSION'), ('cid', 'CID'), ('address', 'ADDRESS'),
                            ('group', 'GROUP'), ('initiator_name', 'INITIATOR'),
                            ('target_name', 'TARGET', 'text', WIDE)),
            empty='no initiator is logged in'),
    command('show luns', 'list the LUNs that each session sees',
            'One line per session and LUN: the number under which the initiator addresses it, the LUN of the '
            'target that it is, and what the session may do with it; if nothing, the reason. See lun-map and '
            'sharing in targetd.conf(5).',
            arguments=[Argument('who', 'text', False,
                                'only of this initiator, address, target or session number')],
            columns=columns(('tsih', 'SESSION'), ('initiator_name', 'INITIATOR'),
                            ('target_name', 'TARGET'), ('number', 'LUN'), ('lun', 'LUN-OF-TARGET'),
                            ('path', 'BACKING-STORE', 'text', WIDE), ('access', 'ACCESS')),
            empty='no session sees a LUN'),
    command('show settings', 'list what was negotiated for a session',
            'The keys of RFC 7143 13 with the values that both sides use.',
            arguments=[Argument('session', 'number', True, 'the first column of "show sessions"')],
            columns=columns(('key', 'KEY'), ('value', 'VALUE')), empty='nothing was negotiated'),
    command('show workers', 'list the worker processes',
            'One line per worker process: its session, how long it runs, the memory that it uses and the '
            'processor time that it has used.',
            columns=columns(('pid', 'PROCESS'), ('state', 'STATE'), ('tsih', 'SESSION'),
                            ('initiator_name', 'INITIATOR'), ('age', 'SECONDS'),
                            ('memory', 'MEMORY', 'bytes'), ('cpu_seconds', 'CPU-SECONDS')),
            empty='no worker runs'),
    command('show config', 'print the configuration in force',
            'With all files that it includes and the live changes, as one configuration; secrets are '
            'replaced by ***. "export" writes it with the secrets.', seconds=60),
    command('why slow', 'measure what limits the speed of a session, and name the remedy',
            'Use it while the disk is slow. Linux reports what TCP does, and the worker what its commands '
            'wait for: the receive window or the send buffer of the initiator, lost packets, a full line, '
            'round trips for R2Ts or between commands, a path that loses full packets, the disk, the '
            'processor.',
            arguments=[
                Argument('session', 'number', True, 'the first column of "show sessions"'),
                Argument('seconds', 'number', False, 'time of the measurement (default 3, at most 30)')],
            columns=columns(('seen', 'SEEN'), ('limit', 'LIMIT'), ('share', 'OF-THE-TIME'),
                            ('why', 'WHY'), ('remedy', 'REMEDY')),
            empty='nothing was measured', seconds=60, records=True),
    command('reservation show', 'list the reservations and registrations of the logical units',
            'One line per registered initiator: its key, and whether it holds the reservation.',
            arguments=[Argument('unit', 'text', False, 'only of this unit')],
            columns=columns(('target_name', 'TARGET'), ('lun', 'LUN'),
                            ('initiator_name', 'INITIATOR'), ('key', 'KEY'),
                            ('type', 'TYPE'), ('holds', 'HOLDS', 'yes-no')),
            empty='no logical unit is reserved'),
    command('reservation clear', 'remove the reservations and registrations of a logical unit',
            'For an initiator that holds a reservation and will not return. DO NOT use it while a '
            'cluster runs: its nodes then write without protection. The initiators are notified '
            '(RESERVATIONS PREEMPTED).',
            arguments=[_UNIT], seconds=60),
    command('drain', 'set a target offline and wait until its sessions have logged out',
            'For maintenance: new logins are refused with "service unavailable", the sessions are asked '
            'to log out, and ended after the time. "target online" admits logins again.',
            arguments=[
                Argument('target', 'text', True, 'the name of the target'),
                Argument('seconds', 'number', False,
                         'time that the initiators have to log out (default 10, at most 240)'),
                Argument('dry-run', 'flag', False, 'only show what would change')],
            columns=columns(('step', 'STEP'), ('effect', 'EFFECT')), empty='it was offline before',
            seconds=270),
    command('show disks', 'list the health of the disks behind the logical units, and which of them sleep',
            'One line per unit and disk: what the disk said about itself (SMART) when it was asked last; see '
            'health-interval. failing: it predicts its failure; hot: its temperature is over the limit; '
            'asleep: it was not asked, so that it is not woken; unknown: it did not tell, WHY says why not. '
            'WEAR is the percentage of its endurance that an SSD has used; REPLACED and PENDING are blocks '
            'that were replaced by spare ones, or could not be read. POWER says whether a disk with '
            'spin-down is awake or asleep, or why it does not sleep; DOWNS and UPS count how often targetd '
            'has stopped and started it.',
            arguments=[Argument('unit', 'text', False, 'only of this unit')],
            columns=columns(('unit', 'UNIT'), ('node', 'DISK'), ('model', 'MODEL'),
                            ('serial', 'SERIAL', 'text', WIDE), ('firmware', 'FIRMWARE', 'text', WIDE),
                            ('state', 'STATE'), ('temperature', 'CELSIUS'),
                            ('limit', 'LIMIT', 'text', WIDE), ('hours', 'HOURS'), ('wear', 'WEAR'),
                            ('reallocated', 'REPLACED'), ('pending', 'PENDING'), ('power', 'POWER'),
                            ('spin_downs', 'DOWNS'), ('spin_ups', 'UPS'), ('why', 'WHY')),
            empty='no disk was asked; see the settings health-interval and spin-down'),
    command('show limits', 'list the limits on commands and bytes per second, and what they delay',
            'One line per target, LUN and initiator that has a limit (iops-limit, bandwidth-limit, '
            'initiator-iops-limit, initiator-bandwidth-limit) or a latency-target: the limits, the '
            'number of commands that were delayed because of them, and how long on average. '
            'Initiators are listed while they are logged in. A command that several limits delay is '
            'counted at the one that delays it most. A LUN or initiator with a latency-target has the '
            'time within which its disk has answered 90 percent of its commands in the last second. '
            'While that is too long, each LUN that is slowed down for it has a further line, with the '
            'names of those for which it is.',
            columns=columns(('target_name', 'TARGET'), ('what', 'LIMIT-OF'), ('iops', 'IOPS'),
                            ('bandwidth', 'BYTES/s', 'bytes'), ('delayed', 'DELAYED'),
                            ('average', 'AVERAGE-DELAY'), ('latency_target', 'LATENCY-TARGET'),
                            ('latency', 'LATENCY'), ('slowed_for', 'SLOWED-FOR'),
                            ('delay_seconds', 'SECONDS', 'text', WIDE)),
            empty='no limit is configured; see the settings iops-limit, bandwidth-limit and '
                  'latency-target'),
    command('show space', 'list the space that the logical units occupy, and what is left of it',
            'One line per unit: its size, the space that its file occupies, how much of that was written '
            '(MAPPED), how much is shared with other files (reflinks, snapshots), what its file system has '
            'left, and how far a trim is. A line below names each file system that has less space than its '
            'LUNs may still use. MAPPED and SHARED are empty where the file system does not tell, or a file '
            'has very many extents. A disk occupies all of its size.',
            arguments=[Argument('unit', 'text', False, 'only this unit')],
            columns=columns(('unit', 'UNIT'), ('path', 'BACKING-STORE', 'text', WIDE),
                            ('size', 'SIZE', 'bytes'), ('allocated', 'OCCUPIES', 'bytes'),
                            ('mapped', 'MAPPED', 'bytes'), ('reserved', 'RESERVED', 'bytes', WIDE),
                            ('shared', 'SHARED', 'bytes'), ('available', 'AVAILABLE', 'bytes'),
                            ('mount', 'FILE-SYSTEM'), ('trim', 'TRIM')),
            empty='no logical unit has a file or a disk', seconds=60),
    command('trim', 'free the blocks of a logical unit that are all zero',
            'For a file that has grown and was zeroed by its initiator, or was copied without its holes: '
            'such blocks use no space afterwards, and read as zeroes as before. Initiators may use the LUN '
            'meanwhile; no write is lost, and a write to the same part waits for some milliseconds. It runs '
            'until it is done, or until --stop, a stop or an upgrade of the server. Space that was '
            'allocated in advance and not written stays reserved. A disk is refused if it cannot discard '
            'blocks so that they read as zeroes.',
            arguments=[_UNIT, Argument('stop', 'flag', False, 'end the trim that is running')]),
    command('identify', 'show by which names initiators know a logical unit',
            'The serial number and the identifiers, the names of the disk in Linux, Windows and VMware, '
            'what is behind it, and who is logged in.',
            arguments=[_UNIT], columns=columns(('what', 'WHAT'), ('value', 'VALUE')),
            empty='nothing is known'),
)
# fmt: on
