"""The administrator's commands: one row each, from which `targetdctl`, its manual page and the
master's answers come.

Pure; imports nothing of targetd, so that the master may import it. The conversation on the control
socket is one line each way, JSON in UTF-8 ended by a newline:

  request   {"command": "end", "session": 3}                 the command's name and its arguments by name
  reply     {"ok": true, "message": "…"}                     what was done, one sentence; and for a command with columns
            {"ok": true, "rows": [{"tsih": 1, …}, …]}        one object a row, keys as in `columns`; others show in --json
            {"ok": false, "error": "…", "exit_code": 1}      one plain sentence; exit_code as in targetd.errors

The rows of `why` have the login status as four hex digits ('0202', RFC 7143 11.13.5); the client
adds what Windows says for it. The server may keep the connection of `stop` open until it is gone:
its end is what the command waits for.
"""

import json
from collections import namedtuple

MAXIMUM_REQUEST = 64 << 10  # bytes of one line, newline included
MAXIMUM_REPLY = 16 << 20

#: An argument. name: as in the request; kind: 'number', 'text' or 'flag' (written --name);
#: required: bool; help: for --help.
Argument = namedtuple('Argument', 'name kind required help')

#: A column. key: in a row's object; heading: above it; form: 'text', 'bytes' or 'yes-no'.
Column = namedtuple('Column', 'key heading form')

#: A command. words: as typed, blank between; arguments: Arguments; help: one line; text: a
#: paragraph for the manual page; columns: () if the answer is a message; empty: what is said when
#: there are no rows; seconds: how long an answer may take; local: True if it is answered without a
#: server; records: True if rows are long and print as paragraphs.
Command = namedtuple('Command', 'words arguments help text columns empty seconds local records')


def _columns(*triples):
    return tuple(
        Column(*(triple if len(triple) == 3 else triple + ('text',))) for triple in triples
    )


def _command(
    words, help, text, arguments=(), columns=(), empty='', seconds=30, local=False, records=False
):
    return Command(words, tuple(arguments), help, text, columns, empty, seconds, local, records)


_SESSION = Argument('session', 'number', True, 'the number in the first column of show sessions')

# fmt: off
TABLE = (
    _command('status', 'say whether the server runs and what it serves',
             'One line for each fact: version, process id, since when, how many sessions, targets, units and spare workers.',
             columns=_columns(('name', 'WHAT'), ('value', 'VALUE'))),
    _command('show sessions', 'list who is logged in',
             'One line for each session. The number in the first column is what end and logout want.',
             columns=_columns(('tsih', 'SESSION'), ('initiator_name', 'INITIATOR'), ('address', 'ADDRESS'),
                              ('target_name', 'TARGET'), ('account', 'ACCOUNT'), ('connections', 'CONNECTIONS'),
                              ('since', 'SINCE'), ('pid', 'PROCESS')),
             empty='nobody is logged in'),
    _command('show targets', 'list the targets',
             'One line for each target: how many logical units it has and how many sessions use it.',
             columns=_columns(('target_name', 'TARGET'), ('alias', 'ALIAS'), ('groups', 'PORTAL-GROUPS'), ('units', 'UNITS'),
                              ('sessions', 'SESSIONS'), ('state', 'STATE')),
             empty='no target is configured'),
    _command('show units', 'list the logical units and what they are made of',
             'One line for each logical unit: its target and LUN, what is behind it, its size, its state, who has reserved it.',
             columns=_columns(('unit', 'UNIT'), ('target_name', 'TARGET'), ('lun', 'LUN'), ('path', 'BACKING-STORE'),
                              ('size', 'SIZE', 'bytes'), ('state', 'STATE'), ('read_only', 'READ-ONLY', 'yes-no'),
                              ('encrypted', 'ENCRYPTED', 'yes-no'), ('reserved_by', 'RESERVED-BY'), ('sessions', 'SESSIONS')),
             empty='no logical unit is configured'),
    _command('show portals', 'list the addresses that the server listens on',
             'One line for each portal, with its portal group and the connections that came in by it.',
             columns=_columns(('group', 'GROUP'), ('address', 'ADDRESS'), ('port', 'PORT'), ('connections', 'CONNECTIONS'),
                              ('state', 'STATE')),
             empty='no portal is open'),
    _command('show alua', 'list the states of portal groups that initiators are told',
             'One line for each portal group of each logical unit: its asymmetric access state and who gave it. Targets whose '
             'alua setting is off are left out.',
             columns=_columns(('target_name', 'TARGET'), ('lun', 'LUN'), ('group', 'GROUP'), ('access', 'STATE'),
                              ('given_by', 'GIVEN-BY'), ('sessions', 'SESSIONS')),
             empty='no target tells initiators of portal groups'),
    _command('why', 'say why logins were refused, and what the initiator\'s user sees',
             'The last refused logins, newest first, with the rule that refused them and the message that Windows shows for '
             'it. With an address only those that came from it.',
             arguments=[Argument('address', 'text', False, 'only logins from this address')],
             columns=_columns(('time', 'TIME'), ('address', 'ADDRESS'), ('initiator_name', 'INITIATOR'),
                              ('target_name', 'TARGET'), ('status', 'STATUS'), ('why', 'WHY'), ('windows', 'WINDOWS-SAYS'),
                              ('look_at', 'LOOK-AT')),
             empty='no login was refused', records=True),
    _command('reload', 'read the configuration again and apply what changed',
             'The whole configuration is checked first; if anything in it cannot be used, all complaints are shown and nothing '
             'changes. Sessions that a change does not concern do not notice.',
             arguments=[Argument('plan', 'flag', False, 'only show what would be done')],
             columns=_columns(('step', 'STEP'), ('effect', 'EFFECT')),
             empty='nothing changed', seconds=120),
    _command('stop', 'stop the server in order and wait until it is gone',
             'No new login is admitted, initiators are asked to log out, every logical unit is flushed; what is still logged '
             'in after the configured time is ended.',
             seconds=120),
    _command('reopen-logs', 'open the log file anew', 'For log rotation: the file is closed and opened again by its name.'),
    _command('logout', 'ask an initiator to log out',
             'Sends the initiator an asynchronous message that asks for a logout. Windows logs out and in again by itself; a '
             'multipath initiator moves to its other path first.',
             arguments=[_SESSION, Argument('seconds', 'number', False, 'how long the initiator is given; 10 if not said')]),
    _command('end', 'end a session at once',
             'The session\'s worker process ends after what it has begun to write. The initiator usually logs in again.',
             arguments=[_SESSION]),
    _command('acknowledge', 'make a failed logical unit usable again',
             'After a write or a flush failed in a way that may have lost data, a logical unit answers every command with an '
             'error until this is said, so that nobody takes it for whole. Check its content first.',
             arguments=[Argument('unit', 'text', True, 'the first column of show units, or TARGET/LUN')]),
    _command('accept', 'take another disk for the one that a LUN had',
             'A LUN whose backing-store names another disk than when it was served last (or a file that is gone and would be '
             'made anew) is not served until this is said: the name may have changed its meaning, as /dev/sdb can at a boot.',
             arguments=[Argument('unit', 'text', True, 'TARGET/LUN')]),
    _command('alua', 'give a portal group of a target another state',
             'The state is optimized, nonoptimized, standby, unavailable, offline or transitioning. Initiators are told at '
             'once, and multipath software moves to the best paths that are left. The state holds, over restarts too, until '
             'it is given another one or alua-state changes in the configuration.',
             arguments=[Argument('target', 'text', True, 'the name of the target'),
                        Argument('group', 'number', True, 'the portal group'),
                        Argument('state', 'text', True, 'the state'),
                        Argument('lun', 'number', False, 'only for this logical unit')]),
    _command('disks', 'list the disks of this host and who uses them',
             'What may stand in a backing-store: the disks, how they name themselves, what is on them (for root) and who uses '
             'them on this host. Needs no running server.',
             columns=_columns(('path', 'PATH'), ('size', 'SIZE', 'bytes'), ('model', 'MODEL'), ('transport', 'ON'),
                              ('backing_store', 'BACKING-STORE'), ('contents', 'CONTENT'), ('used_by', 'USED-BY')),
             empty='this host has no disk', local=True),
)
# fmt: on


def name_of(command):
    """The command as it stands in a request: 'show sessions' is 'show-sessions'."""
    return command.words.replace(' ', '-')


BY_NAME = {name_of(row): row for row in TABLE}


class BadRequest(ValueError):
    """A request that no row allows; the text is for the administrator."""


def _checked(argument, value):
    if argument.kind == 'flag':
        good = isinstance(value, bool)
    elif argument.kind == 'number':
        good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 32
    else:
        good = isinstance(value, str) and 0 < len(value) <= 4096
    if not good:
        raise BadRequest('%s: %r is not a %s' % (argument.name, value, argument.kind))
    return value


def parse_request(line):
    """One received line (bytes) -> (Command, {argument: value}), arguments not given are None
    (flags False).

    Raises BadRequest for what is not JSON, names no command of the table or does not fit its row.
    """
    if len(line) > MAXIMUM_REQUEST:
        raise BadRequest('a request of more than %d bytes' % MAXIMUM_REQUEST)
    try:
        request = json.loads(line.decode('utf-8'))
    except (ValueError, RecursionError):
        raise BadRequest('a request that is not JSON')
    if not isinstance(request, dict):
        raise BadRequest('a request that is no object')
    row = BY_NAME.get(
        request.pop('command', None) if isinstance(request.get('command'), str) else None
    )
    if row is None or row.local:
        raise BadRequest(
            'an unknown command; the server and targetdctl may be of different versions'
        )
    arguments = {a.name: False if a.kind == 'flag' else None for a in row.arguments}
    for argument in row.arguments:
        if argument.name in request:
            arguments[argument.name] = _checked(argument, request.pop(argument.name))
        elif argument.required:
            raise BadRequest('%s: the %s is missing' % (row.words, argument.name))
    if request:
        raise BadRequest(
            '%s: unknown argument %s' % (row.words, ', '.join(sorted(map(repr, request))))
        )
    return row, arguments


def pack(message):
    """A request or reply as the bytes of one line."""
    return json.dumps(message, separators=(',', ':')).encode('utf-8') + b'\n'


def reply_message(text):
    """The reply of a command that did something."""
    return pack({'ok': True, 'message': text})


def reply_rows(rows, message=None):
    """The reply of a command with columns. rows: a list of JSON-able dicts."""
    reply = {'ok': True, 'rows': rows}
    if message:
        reply['message'] = message
    return pack(reply)


def reply_error(text, exit_code=1):
    """The reply of a command that could not be done. text: one plain sentence, or several lines of
    complaints."""
    return pack({'ok': False, 'error': text, 'exit_code': exit_code})
