"""The administrator's commands, one row each. `targetdctl`, its manual page and the dispatch in the
master are derived from this table.

Pure, so that the master may import it; the rows of the commands that change the configuration are in
change_commands, those that show what happens now in watch_commands, further ones in view_commands,
image_commands, guard_commands and takeover_commands. Each request and each reply on
the control socket is one line of JSON in UTF-8 that ends with a newline:

  request  {"command": "end", "session": 3}             the command's name; its arguments by name
  reply    {"ok": true, "message": "…"}                 one sentence that describes what was done
           {"ok": true, "rows": [{"tsih": 1, …}, …]}    for a command with columns: one object per
                                                        row; keys as in `columns`; further keys
                                                        appear with --json only
           {"ok": false, "error": "…", "exit_code": 1}  one sentence; exit_code as in targetd.errors

The rows of `why` contain the login status as four hex digits ('0202', RFC 7143 11.13.5); the client
adds the message that Windows shows for it. After `stop` the server keeps the connection open until
the process ends, and the client waits for the end of the connection.
"""

import json

from targetd.admin import (
    change_commands,
    guard_commands,
    image_commands,
    takeover_commands,
    view_commands,
    watch_commands,
)
from targetd.admin.command_rows import WIDE, Argument, columns, command

MAXIMUM_REQUEST = 64 << 10  # bytes of one line, newline included
MAXIMUM_REPLY = 16 << 20

_SESSION = Argument('session', 'number', True, 'the number in the first column of "show sessions"')

# fmt: off
TABLE = (
    command('status', 'show whether the server is running and what it serves',
             'One line per fact: version, process id, start time, numbers of sessions, targets, '
             'logical units and spare worker processes.',
             columns=columns(('name', 'WHAT'), ('value', 'VALUE'))),
    command('show sessions', 'list the sessions',
             'One line per session. The number in the first column is the argument of "end" and '
             '"logout".',
             columns=columns(('tsih', 'SESSION'), ('initiator_name', 'INITIATOR'),
                              ('address', 'ADDRESS'),
                              ('target_name', 'TARGET'), ('account', 'ACCOUNT', 'text', WIDE),
                              ('lun_map', 'LUN-MAP', 'text', WIDE),
                              ('connections', 'CONNECTIONS', 'text', WIDE),
                              ('since', 'SINCE'), ('pid', 'PROCESS', 'text', WIDE)),
             empty='no initiator is logged in'),
    command('show targets', 'list the targets',
             'One line per target, with the numbers of its logical units and sessions.',
             columns=columns(('target_name', 'TARGET'), ('alias', 'ALIAS'),
                              ('groups', 'PORTAL-GROUPS'), ('units', 'UNITS'),
                              ('sessions', 'SESSIONS'), ('state', 'STATE')),
             empty='no target is configured'),
    command('show units', 'list the logical units and their backing stores',
             'One line per logical unit: its target and LUN, its backing store, size and state, '
             'the initiator that holds a reservation, and the number of errors of its medium. A unit '
             'is degraded after an error until "acknowledge".',
             columns=columns(('unit', 'UNIT', 'text', WIDE), ('target_name', 'TARGET'), ('lun', 'LUN'),
                              ('path', 'BACKING-STORE'),
                              ('size', 'SIZE', 'bytes'), ('state', 'STATE'),
                              ('read_only', 'READ-ONLY', 'yes-no', WIDE),
                              ('encrypted', 'ENCRYPTED', 'yes-no', WIDE),
                              ('reserved_by', 'RESERVED-BY', 'text', WIDE),
                              ('fence', 'FENCE', 'text', WIDE),
                              ('errors', 'ERRORS'), ('sessions', 'SESSIONS')),
             empty='no logical unit is configured'),
    command('show errors', 'list the errors of a medium and its bad blocks',
             'One line per kind of error since the last "acknowledge": the access and the error of '
             'the operating system, how often, and of the latest: the LBA, the initiator and the '
             'time. Then one line per range of blocks that could not be read and have not been '
             'rewritten since; at most 256 ranges are recorded. Without an argument: of all units.',
             arguments=[
                 Argument('unit', 'text', False, 'only of this unit: TARGET/LUN')],
             columns=columns(('unit', 'UNIT'), ('what', 'WHAT'), ('count', 'COUNT'), ('first', 'LBA'),
                              ('last', 'LAST-LBA'), ('initiator_name', 'INITIATOR'),
                              ('time', 'TIME')),
             empty='no error is recorded'),
    command('show counters', 'list what the sessions have read and written',
             'One line per session and logical unit that has received a command: the numbers of '
             'reads, writes, other commands and errors, and the bytes, since the login. A line without '
             'a session has the sums of the sessions that have ended. "stats" and "top" print rates.',
             columns=columns(('tsih', 'SESSION'), ('initiator_name', 'INITIATOR', 'text', WIDE),
                              ('target_name', 'TARGET'), ('lun', 'LUN'),
                              ('reads', 'READS'), ('bytes_read', 'READ', 'bytes'),
                              ('writes', 'WRITES'), ('bytes_written', 'WRITTEN', 'bytes'),
                              ('others', 'OTHER', 'text', WIDE), ('errors', 'ERRORS'),
                              ('unfinished', 'UNFINISHED', 'text', WIDE)),
             empty='no session has sent a command'),
    command('show portals', 'list the addresses that the server listens on',
             'One line per portal, with its portal group and the number of connections of that '
             'group.',
             columns=columns(('group', 'GROUP'), ('address', 'ADDRESS'), ('port', 'PORT'),
                              ('connections', 'CONNECTIONS'),
                              ('state', 'STATE'), ('interface', 'INTERFACE')),
             empty='no portal is open'),
    command('show alua', 'list the ALUA states of the portal groups',
             'One line per portal group of each logical unit: its asymmetric access state, and '
             'whether the configuration, the administrator or an initiator set it. Targets without '
             'ALUA (alua = off) are not listed.',
             columns=columns(('target_name', 'TARGET'), ('lun', 'LUN'), ('group', 'GROUP'),
                              ('access', 'STATE'),
                              ('set_by', 'SET-BY'), ('sessions', 'SESSIONS')),
             empty='no target reports ALUA states'),
    command('why', 'explain why logins were refused, and what the user of the initiator sees',
            'The last refused logins, newest first, with the rule that refused each of them and '
            'the message that Windows shows. With an argument: only logins from that address, of that '
            'initiator, or to that target; with two, those to which both apply.',
            arguments=[Argument('who', 'text', False, 'an address, or the name of an initiator or a target'),
                       Argument('target', 'text', False, 'the name of a target')],
            columns=columns(('time', 'TIME'), ('address', 'ADDRESS'),
                            ('initiator_name', 'INITIATOR'),
                            ('target_name', 'TARGET'), ('status', 'STATUS'), ('why', 'WHY'),
                            ('windows', 'WINDOWS-SHOWS'),
                            ('look_at', 'LOOK-AT')),
            empty='no login was refused', records=True),
    command('reload', 'read the configuration again and apply the changes',
             'The whole configuration is checked first. If it contains an error, all errors are '
             'shown and nothing changes. Sessions continue: a change that needs a logout, such as '
             'another backing-store, is pending in "show units" until the sessions of its target have '
             'ended. Only the removal of a target, or of the right to log in, ends sessions.',
             arguments=[
                 Argument('plan', 'flag', False, 'only show the changes; do not apply them'),
                 Argument('now', 'flag', False,
                          'ask the initiators that pending changes wait for to log out, and end their '
                          'sessions after stop-timeout')],
             columns=columns(('step', 'STEP'), ('effect', 'EFFECT')),
             empty='nothing changed', seconds=120),
    command('upgrade', 'continue with the program that is installed now, without a logout',
             'After an upgrade of targetd: the server process starts the installed program in its '
             'place. Sessions continue in their worker processes, which are of the old program until '
             'the logout; new sessions get the new one. Logins wait for a second or two. A trial is '
             'made first: if the new program cannot be started, does not accept the configuration, '
             'or has another format of the state, nothing changes, and the reason is shown. Changes of '
             'the configuration that are not in force must be reloaded before. SIGUSR2 does the same; '
             'the outcome is then in the log.',
             seconds=120),
    command('stop', 'stop the server in an orderly way and wait until it has ended',
             'The server refuses new logins, asks the initiators to log out and flushes every '
             'logical unit. Sessions that are still logged in after stop-timeout are ended.',
             seconds=120),
    command('reopen-logs', 'reopen the log file',
             'For log rotation: the log file is closed and opened again by its name.'),
    command('logout', 'ask an initiator to log out',
             'Sends an asynchronous message that requests a logout (RFC 7143 11.9). Windows logs '
             'out and logs in again automatically; a multipath initiator first moves its I/O to '
             'another path.',
             arguments=[
                 _SESSION,
                 Argument('seconds', 'number', False,
                          'time that the initiator has to log out (default 10)')]),
    command('kick', 'ask all sessions of an initiator to log out, then end them',
             'Like "logout" for each session of an initiator, whose iSCSI name or address is given, or '
             'for the session with this number. Most initiators log in again; to prevent that, change '
             'initiator-name or initiator-address first.',
             arguments=[
                 Argument('who', 'text', True, 'an iSCSI name, an address, or a session number'),
                 Argument('seconds', 'number', False,
                          'time that the initiator has to log out (default 10)')]),
    command('end', 'end a session immediately',
             'The worker process of the session completes the writes that it has started, and '
             'ends. The initiator usually logs in again.',
             arguments=[_SESSION]),
    command('acknowledge', 'make a failed or degraded logical unit usable again',
             'After a failed write or flush that may have lost data, a logical unit refuses writes '
             'and flushes, also after a reload or a restart, until you run this command; reads are '
             'answered. It also ends what on-error has done (read-only, offline) and sets the numbers '
             'of errors to 0; the list of bad blocks remains. Check the data first. See FAILED LOGICAL '
             'UNITS and FAILING DISKS in targetd(8). A unit whose disk or file has shrunk is served '
             'with its present size afterwards.',
             arguments=[
                 Argument('unit', 'text', True, 'the first column of "show units", or TARGET/LUN')]),
    command('accept', 'accept a replacement disk for a LUN',
             'A LUN is not served if its backing-store names another disk than before, because a '
             'name such as /dev/sdb can refer to another disk after a boot; or a file that was '
             'replaced, is shorter than before, or has disappeared and would be created again. Run '
             'this command if the change is intended.',
             arguments=[Argument('unit', 'text', True, 'TARGET/LUN')]),
    command('alua', 'set the ALUA state of a portal group',
             'The state is optimized, nonoptimized, standby, unavailable, offline or '
             'transitioning. Initiators are notified immediately, and multipath software moves to '
             'the best remaining paths. The state persists, across restarts too, until it is set '
             'again or alua-state changes in the configuration.',
             arguments=[Argument('target', 'text', True, 'the name of the target'),
                        Argument('group', 'number', True, 'the tag of the portal group'),
                        Argument('state', 'text', True, 'the new state'),
                        Argument('lun', 'number', False, 'only for this LUN')]),
    command('disks', 'list the disks of this host and what uses them',
             'Disks that can be written as backing-store: their persistent names, their contents '
             '(if you are root) and their users on this host; the tape drives, medium changers and '
             'other SCSI devices that type = passthrough serves; then the disk images that the server serves.'
             ' With files: these only, images (VHDX, VHD, VMDK, qcow2, VDI) with their format, the '
             'size of the disk in them and the bytes that are allocated. The server need not be running.',
             arguments=[Argument('files', 'texts', False, 'files to describe instead of the disks')],
             columns=columns(('path', 'PATH'), ('size', 'SIZE', 'bytes'), ('model', 'MODEL'),
                              ('transport', 'ON'),
                              ('backing_store', 'BACKING-STORE'), ('contents', 'CONTENT'),
                              ('used_by', 'USED-BY')),
             empty='this host has no disk', local=True),
    command('nagios', 'report the state as a check for Nagios or Icinga',
             'Prints one line with performance data, then one line per problem, and exits with 0 '
             '(OK), 1 (WARNING: a unit is degraded, a portal is not open), 2 (CRITICAL: a unit has '
             'failed, is missing or hangs, no portal is open, or targetd is not running) or 3 '
             '(UNKNOWN: targetd does not answer, or this user may not ask it).',
             local=True),
    command('metrics', 'print the state as metrics of Prometheus',
             'Prints sizes, states, sessions and medium errors in the text format of Prometheus. With '
             '--output, the file is replaced as a whole: name a file *.prom in the directory of the '
             "textfile collector of node_exporter, and run the command from cron. If targetd is not "
             'running, the only metric is targetd_up 0.',
             arguments=[
                 Argument('output', 'option', False, 'file to write, instead of standard output')],
             local=True),
    command('export', 'write the running configuration as one file',
             'Writes the configuration of the running server, with everything that it includes and '
             'with the accounts of other files, as one configuration to standard output; only '
             'comments are lost. ALUA states that were set at run time are in it. Changes of the '
             'files that are not in force yet are listed on standard error, and the exit code is '
             'then 1. It contains secrets. "targetdctl import" of the result is the same '
             'configuration.',
             arguments=[
                 Argument('config', 'option', False,
                          'configuration file to write, instead of that of the running server'),
                 Argument('output', 'option', False, 'file to write, instead of standard output'),
                 Argument('identities', 'flag', False,
                          'also write the serial numbers and NAA identifiers that the server derived, so '
                          'that they remain on another host'),
                 Argument('force', 'flag', False,
                          'write in spite of errors, and overwrite an existing file')],
             local=True),
    command('import', 'write the configuration of another iSCSI target as one of targetd',
             'Reads targets.conf of tgt (with the files that it includes) or the output of tgt-admin '
             '--dump, saveconfig.json of LIO, scst.conf, ietd.conf, ctl.conf of FreeBSD, istgt.conf, '
             'gateway.conf of ceph-iscsi, or the XML of Export-IscsiTargetServerConfiguration, and '
             'writes a configuration of targetd to standard output. Names, LUN numbers, access '
             'rules, accounts, portals, write caches and identities are kept. Every line without a '
             'counterpart, or whose meaning changes, is listed on standard error with its number. If '
             'there is an error, nothing is written without --force. A disk of this machine with the '
             'content of a Linux host gets content = keep, so that it is served as before. The exit '
             'code is 0 only if nothing was left out. The server need not be running.',
             arguments=[
                 Argument('files', 'texts', True, 'configuration files of the other target'),
                 Argument('format', 'option', False,
                          'tgt, lio, scst, iet, ctl, istgt, ceph or microsoft, if it is not recognized'),
                 Argument('output', 'option', False, 'file to write, instead of standard output'),
                 Argument('force', 'flag', False,
                          'write in spite of errors, and overwrite an existing file'),
                 Argument('running', 'flag', False,
                          'compare with the running tgtd (tgtadm --op show --mode target)')],
             local=True),
    command('rehearse', 'test a target as a Windows host uses it, and show what Windows would see',
             'Logs in to a target like Windows (discovery, keys, CHAP, every address of the target), asks '
             'its disks what Windows asks them, and shows the disks as Windows does: number, size, '
             'partition table, 512 or 4Kn, thin provisioning and trim, write cache, reservations, '
             'identity. Then it lists each reason to expect trouble, with the remedy; the exit code is 1 '
             'if there is one. Nothing is written, unless --scratch or --reservations is given. Portals '
             'and accounts are those of the running server, whose configuration is read; with --portal '
             'any target can be tested, also of another host. The connections come from this host: '
             'initiator-address must admit it.',
             arguments=[
                 Argument('target', 'text', True, 'the name of the target'),
                 Argument('from', 'option', False,
                          'iSCSI name of the Windows host (default: as Windows would name this host)'),
                 Argument('portal', 'option', False,
                          'ADDRESS or ADDRESS:PORT of the target, instead of that of the server'),
                 Argument('user', 'option', False, 'CHAP user, with --secret-file'),
                 Argument('secret-file', 'option', False, 'file with the CHAP secret'),
                 Argument('scratch', 'option', False,
                          'LUN:FIRST+COUNT: write and trim these blocks, whose contents are lost'),
                 Argument('reservations', 'flag', False,
                          'also test persistent reservations as the cluster validation does, on disks '
                          'without registrations')],
             local=True),
) + view_commands.TABLE + change_commands.TABLE + image_commands.TABLE + watch_commands.TABLE
TABLE += guard_commands.TABLE
TABLE += takeover_commands.TABLE
# fmt: on


#: Commands that change nothing, besides `show …`.
READ_ONLY = (
    'status',
    'why',
    'why slow',
    'reservation show',
    'identify',
    'history',
    'diff',
    'guard list',
)


def is_read_only(row):
    """True if the command changes nothing: the members of control-group may use it."""
    return row.words in READ_ONLY or row.words.startswith('show ')


def name_of(row):
    """The command's name in a request: 'show-sessions' for 'show sessions'."""
    return row.words.replace(' ', '-')


BY_NAME = {name_of(row): row for row in TABLE + image_commands.REQUESTS}


class BadRequest(ValueError):
    """A request that does not fit any row of the table. The text is shown to the administrator."""


def _is_text(value):
    return isinstance(value, str) and 0 < len(value) <= 4096


def _checked(argument, value):
    if argument.kind == 'flag':
        is_valid = isinstance(value, bool)
    elif argument.kind == 'number':
        is_valid = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 32
    elif argument.kind == 'options':
        is_valid = isinstance(value, list) and 0 < len(value) <= 100 and all(map(_is_text, value))
    else:
        is_valid = _is_text(value)
    if not is_valid:
        raise BadRequest('%s: %r is not a valid %s' % (argument.name, value, argument.kind))
    return value


def parse_request(line):
    """Decode one received line (bytes) to (Command, {argument: value}).

    Arguments that were not given are None (flags: False). Raises BadRequest for a line that is not
    JSON, does not name a command of the table or does not fit its row.
    """
    if len(line) > MAXIMUM_REQUEST:
        raise BadRequest('the request is longer than %d bytes' % MAXIMUM_REQUEST)
    try:
        request = json.loads(line.decode('utf-8'))
    except (ValueError, RecursionError):
        raise BadRequest('the request is not JSON')
    if not isinstance(request, dict):
        raise BadRequest('the request is not a JSON object')
    name = request.pop('command', None)
    row = BY_NAME.get(name) if isinstance(name, str) else None
    if row is None or row.local:
        raise BadRequest('unknown command; the server and targetdctl may be of different versions')
    arguments = {
        a.name: False if a.kind == 'flag' else None for a in row.arguments if a.kind != 'secret'
    }
    for argument in row.arguments:
        if argument.kind == 'secret':
            continue  # it is sent as a descriptor
        if argument.name in request:
            arguments[argument.name] = _checked(argument, request.pop(argument.name))
        elif argument.required:
            raise BadRequest('%s: the %s is missing' % (row.words, argument.name))
    if request:
        raise BadRequest(
            '%s: unknown argument %s' % (row.words, ', '.join(sorted(map(repr, request))))
        )
    return row, arguments


def typed(row, arguments):
    """The command as it is typed, for the log and the history; it contains no secret."""
    words = [row.words]
    for argument in row.arguments:
        value = arguments.get(argument.name)
        if value in (None, False) or argument.name == 'dry-run':
            continue
        for each in value if isinstance(value, list) else [value]:
            if argument.kind == 'flag':
                words.append('--' + argument.name)
            elif argument.kind in ('option', 'options'):
                words += ['--' + argument.name, str(each)]
            else:
                words.append(str(each))
    return ' '.join(words)


def pack(message):
    """Encode a request or reply as one line of bytes."""
    return json.dumps(message, separators=(',', ':')).encode('utf-8') + b'\n'


def reply_message(text):
    """The reply of a command that made a change."""
    return pack({'ok': True, 'message': text})


def reply_rows(rows, message=None):
    """The reply of a command with columns. rows: a list of dicts that JSON can encode."""
    reply = {'ok': True, 'rows': rows}
    if message:
        reply['message'] = message
    return pack(reply)


def reply_error(text, exit_code=1):
    """The reply of a command that failed. text: one sentence, or one line per error."""
    return pack({'ok': False, 'error': text, 'exit_code': exit_code})
