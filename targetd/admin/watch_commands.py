"""The rows of the commands that show what the server does now: see commands. Pure."""

from targetd.admin.command_rows import Argument, columns, command

_BY = Argument('by', 'option', False, 'session (default), lun, target or initiator')

# fmt: off
TABLE = (
    command('stats', 'show rates and latencies',
            'Takes the counters twice and shows one line per session (or LUN, target, initiator) with '
            'commands per second, megabytes read and written per second, the latencies within which '
            'half and 99 percent of the commands were answered, unfinished commands, errors, and '
            'processor time and memory of the worker process. The latency of one command in about 61 is '
            'measured (with latency-target, the time that the disk takes for each); if there are few in '
            'the time, the latencies are those since the login. Cached reads are answered at once and are '
            'never unfinished.',
            arguments=[
                _BY,
                Argument('seconds', 'number', False, 'time between the two samples (default 2)')],
            columns=columns(('name', 'NAME'), ('iops', 'IOPS'), ('read_rate', 'RMB/s'),
                            ('write_rate', 'WMB/s'), ('p50', 'P50'), ('p99', 'P99'),
                            ('queue', 'QUE'), ('errors', 'ERR'), ('cpu', 'CPU%'), ('memory', 'MEM')),
            empty='no session has sent a command', local=True),
    command('top', 'show rates and latencies in place',
            'The table of "stats" on a terminal, every few seconds. Keys: i, r, w, l, d, e, c, m, n '
            'sort by IOPS, read, write, latency, queue, errors, processor time, memory or name; b '
            'changes between sessions, LUNs, targets and initiators; q leaves.',
            arguments=[
                _BY,
                Argument('seconds', 'number', False, 'time between two samples (default 2)')],
            local=True),
    command('web', 'show the state of the server in a web browser',
            'Serves a status page until it is ended with Ctrl-C: overview, targets, LUNs, sessions with '
            'graphs of the last hour, disks, refusals with remedies, and the configuration with its '
            'history. It needs the Python package bottle. Started as root, the page runs as another user, '
            'and can ask the server nothing but what it shows; started by a member of control-group, it '
            'may do what that group may. Every user of this host can see the page; it shows no '
            'secrets. With --allow-changes, whoever knows the token can change the configuration.',
            arguments=[
                Argument('listen', 'option', False, 'ADDRESS:PORT (default 127.0.0.1:8260)'),
                Argument('user', 'option', False, 'user of the page if root starts it (default nobody)'),
                Argument('allow-changes', 'flag', False, 'admit the commands that change something'),
                Argument('token-file', 'option', False,
                         'file with the token of the login, made if it does not exist; without it, the '
                         'token is another one each time, and is printed'),
                Argument('host-name', 'option', False,
                         'names, separated by commas, by which browsers call the page through a web '
                         'server in front of it'),
                Argument('allow-remote', 'flag', False,
                         'admit an address that is not loopback; nothing is encrypted')],
            local=True),
    command('snmp', 'answer snmpd',
            'Speaks the protocol pass_persist of snmpd on standard input and output. Below the OID: 1.1.0 '
            'the severity (0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN), 1.2.0 the state in words, 1.3.0 '
            'sessions, 1.4.0 LUNs, 1.5.0 critical LUNs; 2.COLUMN.INDEX a row for each LUN with the columns '
            'name, state, severity, bytes, sessions, medium errors, reads, bytes read, writes, bytes '
            'written. etc/monitoring/snmpd.conf has the line for snmpd.',
            arguments=[
                Argument('base', 'option', False,
                         'the OID in snmpd.conf (default .1.3.6.1.4.1.8072.9999.9999.3260)')],
            local=True),
    command('capture', 'write the PDUs of a session into a file for Wireshark',
            'Writes what a session sends and receives as a pcapng file, which Wireshark and tshark '
            'dissect as iSCSI; IP and TCP headers are synthetic. Of the data of each PDU the first '
            'bytes are kept. With an address instead of a session: its sessions, and every connection '
            'that arrives from there, with its login; secrets are masked (CHAP_C, CHAP_R). Ends after '
            '--seconds, with the session, or with Ctrl-C. It costs the session processor time, '
            'but the session never waits: PDUs that come too quickly are lost and counted.',
            arguments=[
                Argument('who', 'text', True, 'a session number, or an address'),
                Argument('file', 'text', True, 'the file to write; an existing one is overwritten'),
                Argument('seconds', 'number', False, 'end after this time'),
                Argument('data', 'number', False,
                         'bytes of the data of each PDU that are kept (default 256)')],
            streams=True),
    command('trace', 'print what a session sends and receives in words',
            'One line per PDU: time, direction (> from the initiator, < to it), and its content: the '
            'command with its LBA and LUN, the status and how long it took, the keys of a login. '
            'Otherwise as "capture".',
            arguments=[
                Argument('who', 'text', True, 'a session number, or an address'),
                Argument('seconds', 'number', False, 'end after this time')],
            streams=True),
)
# fmt: on
