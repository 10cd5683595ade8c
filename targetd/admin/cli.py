"""The `targetdctl` command. Its arguments and its output are derived from the table of commands.

May import base, config.model and admin. Exit codes as in targetd.errors: 0 success, 1 refused or
failed, 2 wrong command line, 7 no server is running; the server may send another one with a refusal.
"""

import argparse
import json
import os
import shutil
import sys

from targetd import __version__
from targetd.admin import secret_input, windows
from targetd.admin.command_rows import described, is_selector
from targetd.admin.commands import TABLE, name_of
from targetd.admin.protocol import SOCKET_PATH, connect, default_socket, send_request
from targetd.errors import EXIT_FAILURE, EXIT_OK, EXIT_USAGE, TargetdError, missing_package

UNITS = ('bytes', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB')

#: Commands of targetctl, the tool of LIO (the Linux kernel's target); its `restore` has at most one
#: argument, and that of targetdctl two. An administrator who types
#: one of them has probably confused the two programs, so the error explains the difference.
LIO_COMMANDS = ('save', 'restore', 'clear')


#: The help of a word that another one follows.
GROUPS = {
    'guard': 'list, restore and remove what was kept of a LUN before it was written',
    'show': 'list sessions, targets, units, portals and others',
    'target': 'add, remove or rename a target, set it offline or online',
    'lun': 'add, remove, resize or move a LUN, set it offline, read-only or online',
    'account': 'add or remove a CHAP account, or give it another secret',
    'acl': 'admit initiators to a target, or no longer',
    'map': 'decide which LUNs of a target an initiator sees',
    'portal': 'listen on an address, or no longer',
    'reservation': 'show or clear the reservations of a LUN',
}

#: The first words of the commands, in the order of --help: what is looked at, what is changed, sessions,
#: disks and files, the server, other programs.
ORDER = (
    'status show why top stats web identify disks '
    'target lun medium account acl map portal log-level history diff rollback '
    'kick logout end drain reservation alua takeover standby '
    'acknowledge accept create snapshot restore guard trim '
    'reload upgrade stop reopen-logs '
    'capture trace nagios metrics snmp rehearse import export'
).split()

#: Single words that are commands, and with a second word another one: `why` and `why slow`.
COMMANDS_WITH_A_SECOND_WORD = frozenset(
    row.words.split()[0] for row in TABLE if ' ' in row.words
) & frozenset(row.words for row in TABLE)

# -- the command line ------------------------------------------------------------------------------


def _number(text):
    number = int(text)
    if not 0 <= number < 1 << 32:
        raise argparse.ArgumentTypeError('%s is out of range' % text)
    return number


def _path(text):
    """A path as the server can use it, whose directory is another one; serial:X and the like as it is."""
    return text if is_selector(text) or not text else os.path.abspath(text)


def _add_argument(parser, argument):
    kind = {'number': _number, 'text': str, 'path': _path}.get(argument.kind)
    if argument.kind == 'flag':
        parser.add_argument('--' + argument.name, action='store_true', help=argument.help)
    elif argument.kind == 'option':
        parser.add_argument('--' + argument.name, metavar=argument.name.upper(), help=argument.help)
    elif argument.kind == 'options':
        name = argument.name
        parser.add_argument('--' + name, metavar='NAME=VALUE', action='append', help=argument.help)
    elif argument.kind == 'secret':
        parser.add_argument(
            '--secret-file', metavar='FILE', help='file whose first line is the secret'
        )
        parser.add_argument('--generate', action='store_true', help='make a secret and print it')
    elif argument.kind == 'texts':
        count = '+' if argument.required else '*'
        parser.add_argument(argument.name, metavar='FILE', nargs=count, help=argument.help)
    elif not argument.required and argument.kind == 'number':
        parser.add_argument('--' + argument.name, type=kind, metavar='NUMBER', help=argument.help)
    else:
        parser.add_argument(
            argument.name,
            type=kind,
            metavar=argument.name.upper(),
            nargs=None if argument.required else '?',
            help=argument.help,
        )


def _add_common(parser, default_socket_text=None, default_json=False):
    """Add -s and --json, which are accepted before and after the command."""
    parser.add_argument(
        '-s',
        '--socket',
        metavar='SOCKET',
        default=default_socket_text,
        help='control socket of the server (default: $TARGETD_SOCKET or %s)' % SOCKET_PATH,
    )
    parser.add_argument(
        '--json', action='store_true', default=default_json, help='print JSON, for programs'
    )
    parser.add_argument(
        '--wide',
        action='store_true',
        default=default_json,
        help='print all columns of a table; otherwise it fits a terminal of 80 columns',
    )


def rows_of(arguments):
    """The rows of the table that these arguments can mean: those of the command with which they begin, after
    the options of all commands; or else all rows. A parser of all rows takes as long as the rest of a
    command."""
    at = 0
    while arguments[at : at + 1] in (['-s'], ['--socket'], ['--json'], ['--wide']):
        at += 2 if arguments[at] in ('-s', '--socket') else 1
    found = []
    for row in TABLE:
        words = row.words.split()
        if words == arguments[at : at + len(words)]:
            found.append(row)
    return found or TABLE


def build_parser(rows=TABLE):
    """The argparse parser of these rows of the table. The parsed arguments have an attribute `row`, the
    Command."""
    parser = argparse.ArgumentParser(prog='targetdctl', description='Control a running targetd.')
    parser.add_argument('--version', action='version', version='targetdctl ' + __version__)
    _add_common(parser)
    verbs = parser.add_subparsers(metavar='COMMAND', dest='verb')
    groups = {}
    for row in sorted(rows, key=lambda row: ORDER.index(row.words.split()[0])):
        words = row.words.split()
        place = verbs
        if words[0] in COMMANDS_WITH_A_SECOND_WORD:
            words = [row.words]  # the parser sees one word: see joined()
        elif len(words) == 2:
            if words[0] not in groups:
                group = verbs.add_parser(
                    words[0],
                    help=GROUPS[words[0]],
                    description=GROUPS[words[0]][0].upper() + GROUPS[words[0]][1:] + '.',
                )
                groups[words[0]] = group.add_subparsers(metavar='WHAT', dest='what')
            place = groups[words[0]]
        command = place.add_parser(words[-1], help=row.help, description=described(row))
        _add_common(command, argparse.SUPPRESS, argparse.SUPPRESS)
        for argument in row.arguments:
            _add_argument(command, argument)
        command.set_defaults(row=row)
    return parser


def joined(arguments):
    """The arguments with the words of such a command as one: ['why slow', '3']."""
    found = list(arguments)
    for row in TABLE:
        first, _, second = row.words.partition(' ')
        if second and first in COMMANDS_WITH_A_SECOND_WORD and first in found[:-1]:
            at = found.index(first)
            if found[at + 1] == second:
                found[at : at + 2] = [row.words]
    return found


def _request(row, parsed):
    request = {'command': name_of(row)}
    for argument in row.arguments:
        value = getattr(parsed, argument.name.replace('-', '_'), None)
        if value is not None and value is not False:
            request[argument.name] = value
    return request


# -- output ----------------------------------------------------------------------------------------


def human_bytes(number):
    """A number of bytes in the largest unit in which it is at least 1: '200 GiB', '1.5 TiB'."""
    figure, unit = float(number), 0
    while figure >= 1024 and unit < len(UNITS) - 1:
        figure, unit = figure / 1024, unit + 1
    return ('%d %s' if figure == int(figure) else '%.1f %s') % (figure, UNITS[unit])


def _plain(text):
    """The text with control characters replaced: an initiator's name may contain any character."""
    return ''.join(c if c.isprintable() else '?' for c in text)


def cell_text(value, form):
    """The text of a cell of a table. form: of its Column."""
    if value is None or value == '':
        return '-'
    if form == 'bytes' and isinstance(value, int) and not isinstance(value, bool):
        return human_bytes(value)
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    if isinstance(value, (list, tuple)):
        return _plain(', '.join(str(each) for each in value)) or '-'
    return _plain(str(value))


def table_text(columns, rows, limit=None):
    """Rows (dicts) under their headings, in aligned columns, without blanks at the end of lines. limit:
    of the length of a line, in which cells are continued on further lines; None: no limit."""
    lines = [[column.heading for column in columns]]
    lines += [[cell_text(row.get(column.key), column.form) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    while limit and sum(widths) + 2 * len(widths) - 2 > limit and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1
    return '\n'.join(text for line in lines for text in _folded(line, widths))


def _folded(cells, widths):
    """The lines of text of one row of a table."""
    pieces = [_pieces(cell, width) for cell, width in zip(cells, widths)]
    for number in range(max(map(len, pieces))):
        row = [each[number] if number < len(each) else '' for each in pieces]
        yield '  '.join(text.ljust(width) for text, width in zip(row, widths)).rstrip()


def _pieces(text, width):
    """The text in pieces of at most this width, broken at a blank or after '-', '/', '.' or ':' if there
    is one."""
    found = []
    while len(text) > width:
        at = max(text.rfind(mark, 0, width) for mark in ' -/.:') + 1 or width
        at = at if at > width // 2 else width
        found.append(text[:at].rstrip())
        text = text[at:].lstrip()
    return found + [text]


def _limit(is_wide):
    """The length of lines: of the terminal, at least 80; None if the output is not a terminal."""
    if is_wide or not sys.stdout.isatty():
        return None
    return max(80, shutil.get_terminal_size().columns)


def records_text(columns, rows):
    """Rows that contain long sentences: one paragraph each, with lines 'heading: value'."""
    blocks = [
        [
            '%s: %s'
            % (column.heading.lower().replace('-', ' '), cell_text(row[column.key], column.form))
            for column in columns
            if row.get(column.key) not in (None, '')
        ]
        for row in rows
    ]
    return '\n\n'.join('\n'.join(block) for block in blocks)


def _print_reply(parsed, reply):
    row, as_json = parsed.row, parsed.json
    if row.words == 'why' and 'rows' in reply:
        reply['rows'] = windows.explained(reply['rows'])
    if as_json:
        print(
            json.dumps(
                reply if 'rows' not in reply or 'secret' in reply else reply['rows'],
                indent=2,
                sort_keys=True,
            )
        )
        return
    if reply.get('text'):
        sys.stdout.write(reply['text'])
    rows = reply.get('rows')
    if rows:
        limit = _limit(parsed.wide)
        columns = [c for c in row.columns if not (limit and c.is_wide)]
        print(records_text(columns, rows) if row.records else table_text(columns, rows, limit))
    elif rows is not None and row.empty and not reply.get('message'):
        print(row.empty)
    if reply.get('message'):
        print(_plain_lines(str(reply['message'])))


def _plain_lines(text):
    return '\n'.join(_plain(line) for line in text.split('\n'))


# -- the command -----------------------------------------------------------------------------------


def lio_command(arguments):
    """The first word of the command line if it is a command of LIO's targetctl, else None."""
    options = argparse.ArgumentParser(prog='targetdctl', add_help=False)
    _add_common(options)
    _, words = options.parse_known_args(arguments)
    if not words or words[0] not in LIO_COMMANDS:
        return None
    is_ours = words[0] == 'restore' and (len(words) > 2 or '--help' in words or '-h' in words)
    return None if is_ours else words[0]


def _secret(row, parsed):
    """The secret to send, or None. A generated one is printed, after the change if it succeeds."""
    if not any(argument.kind == 'secret' for argument in row.arguments):
        return None
    connect(parsed.socket or default_socket()).close()  # no server, no question
    if not parsed.generate:
        return secret_input.read_secret(parsed.secret_file)
    if parsed.secret_file is not None:
        raise TargetdError('write either --generate or --secret-file')
    parsed.generated = secret_input.generated()
    return parsed.generated


def run_command(parsed):
    """Execute the parsed command and print the reply; returns the exit code. Raises TargetdError."""
    row = parsed.row
    if row.local:
        # slow to load, and most commands do without
        from targetd.admin import local

        reply = local.ANSWERS[row.words](parsed)
    elif row.streams:
        from targetd.admin import capture  # slow to load, too

        reply = capture.ANSWERS[row.words](parsed)
    else:
        reply = send_request(
            parsed.socket or default_socket(),
            _request(row, parsed),
            row.seconds,
            until_gone=row.words == 'stop',
            secret=_secret(row, parsed),
        )
    for line in reply.pop('messages', ()) if not parsed.json else ():
        print('targetdctl: %s' % _plain(line), file=sys.stderr)
    if getattr(parsed, 'generated', None) and not parsed.dry_run:
        reply['secret'] = parsed.generated
        reply['message'] = '%s\nThe secret is %s' % (reply.get('message', ''), parsed.generated)
    _print_reply(parsed, reply)
    return reply.get('exit_code', EXIT_OK)


def main(arguments=None):
    """The entry point of `targetdctl`; returns the exit code."""
    word = lio_command(arguments)
    if word:
        print(
            'targetdctl: "%s" is a command of targetctl, the tool of LIO, the target in the Linux '
            'kernel (package python3-rtslib-fb); targetdctl controls targetd, and targetdctl '
            '--help lists its commands' % word,
            file=sys.stderr,
        )
        return EXIT_USAGE
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser(rows_of(words))
    parsed = parser.parse_args(joined(words))
    if not hasattr(parsed, 'row'):
        parser.print_usage(sys.stderr)
        lists = [row.words.split()[1] for row in TABLE if row.words.startswith('%s ' % parsed.verb)]
        if parsed.verb == 'show':
            print('targetdctl: write what to show: %s' % ', '.join(lists), file=sys.stderr)
        elif lists:
            words = parsed.verb, ', '.join(lists)
            print('targetdctl: write what to do after %s: %s' % words, file=sys.stderr)
        else:
            print('targetdctl: a command is missing; targetdctl --help lists all', file=sys.stderr)
        return EXIT_USAGE
    try:
        code = run_command(parsed)
        sys.stdout.flush()
        return code
    except TargetdError as e:
        print('targetdctl: %s' % _plain_lines(str(e)), file=sys.stderr)
        return e.exit_code
    except ImportError as e:  # `import` and `export` load more than the other commands
        print('targetdctl: %s' % missing_package(e), file=sys.stderr)
        return EXIT_FAILURE
    except BrokenPipeError:  # `targetdctl show sessions | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except KeyboardInterrupt:
        return EXIT_FAILURE


if __name__ == '__main__':
    sys.exit(main())
