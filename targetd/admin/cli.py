"""The `targetdctl` command: its arguments and its output come from the table of commands.

May import base, config.model and admin. Exit codes as in targetd.errors: 0 done, 1 refused or
failed, 2 wrong command line, 7 no server answers; a refusal may carry another of them.
"""

import argparse
import json
import os
import re
import sys

from targetd import __version__
from targetd.admin import local, windows
from targetd.admin.commands import TABLE, name_of
from targetd.admin.protocol import ask, default_socket
from targetd.errors import EXIT_FAILURE, EXIT_OK, EXIT_USAGE, TargetdError

UNITS = ('bytes', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB')


# -- the command line --------------------------------------------------------------------------------------------------------


def _number(text):
    number = int(text)
    if not 0 <= number < 1 << 32:
        raise argparse.ArgumentTypeError('%s is out of range' % text)
    return number


def _add_argument(parser, argument):
    kind = {'number': _number, 'text': str}.get(argument.kind)
    if argument.kind == 'flag':
        parser.add_argument('--' + argument.name, action='store_true', help=argument.help)
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
    """-s and --json may stand before the command or after it."""
    parser.add_argument(
        '-s',
        '--socket',
        metavar='SOCKET',
        default=default_socket_text,
        help='the control socket of the server (default: $TARGETD_SOCKET or /var/run/targetd.sock)',
    )
    parser.add_argument(
        '--json',
        action='store_true',
        default=default_json,
        help='print the answer as JSON, for programs',
    )


def build_parser():
    """The argparse parser made of the table; the parsed arguments have `row`, the Command."""
    parser = argparse.ArgumentParser(
        prog='targetdctl', description='Ask and command a running targetd.'
    )
    parser.add_argument('--version', action='version', version='targetdctl ' + __version__)
    _add_common(parser)
    verbs = parser.add_subparsers(metavar='COMMAND', dest='verb')
    groups = {}
    for row in TABLE:
        words = row.words.split()
        place = verbs
        if len(words) == 2:
            if words[0] not in groups:
                group = verbs.add_parser(
                    words[0],
                    help='list what the server has',
                    description='List what the server has.',
                )
                groups[words[0]] = group.add_subparsers(metavar='WHAT', dest='what')
            place = groups[words[0]]
        command = place.add_parser(words[-1], help=row.help, description=row.text)
        _add_common(command, argparse.SUPPRESS, argparse.SUPPRESS)
        for argument in row.arguments:
            _add_argument(command, argument)
        command.set_defaults(row=row)
    return parser


def _request(row, parsed):
    request = {'command': name_of(row)}
    for argument in row.arguments:
        value = getattr(parsed, argument.name.replace('-', '_'))
        if value is not None and value is not False:
            request[argument.name] = value
    return request


# -- what is printed ---------------------------------------------------------------------------------------------------------


def human_bytes(number):
    """Bytes in the largest unit that leaves a whole number or one digit after the point: '200 GiB',
    '1.5 TiB'."""
    figure, unit = float(number), 0
    while figure >= 1024 and unit < len(UNITS) - 1:
        figure, unit = figure / 1024, unit + 1
    return ('%d %s' if figure == int(figure) else '%.1f %s') % (figure, UNITS[unit])


def _plain(text):
    """Text from elsewhere without control characters: an initiator's name may hold anything."""
    return ''.join(c if c.isprintable() else '?' for c in text)


def _cell(value, form):
    if value is None or value == '':
        return '-'
    if form == 'bytes' and isinstance(value, int) and not isinstance(value, bool):
        return human_bytes(value)
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    if isinstance(value, (list, tuple)):
        return _plain(', '.join(str(each) for each in value)) or '-'
    return _plain(str(value))


def table_text(columns, rows):
    """Rows (dicts) under their headings, columns lined up, no blanks at the ends of lines."""
    lines = [[column.heading for column in columns]]
    lines += [[_cell(row.get(column.key), column.form) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return '\n'.join(
        '  '.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines
    )


def records_text(columns, rows):
    """Rows with long sentences: one paragraph each, 'heading: value' a line."""
    blocks = [
        [
            '%s: %s'
            % (column.heading.lower().replace('-', ' '), _cell(row[column.key], column.form))
            for column in columns
            if row.get(column.key) not in (None, '')
        ]
        for row in rows
    ]
    return '\n\n'.join('\n'.join(block) for block in blocks)


def _explained(rows):
    """The refused logins with what Windows shows for their status and where to look."""
    explained = []
    for row in rows:
        row = dict(row)
        status = re.match(r'^([0-9A-Fa-f]{2})([0-9A-Fa-f]{2})$', str(row.get('status')))
        if status:
            numbers = int(status.group(1), 16), int(status.group(2), 16)
            row.setdefault('windows', windows.says(*numbers))
            row.setdefault('look_at', windows.advice(*numbers))
        explained.append(row)
    return explained


def _print_reply(row, reply, as_json):
    if row.words == 'why' and 'rows' in reply:
        reply['rows'] = _explained(reply['rows'])
    if as_json:
        print(
            json.dumps(
                reply.get('rows') if row.columns and 'rows' in reply else reply,
                indent=2,
                sort_keys=True,
            )
        )
        return
    rows = reply.get('rows')
    if rows:
        print((records_text if row.records else table_text)(row.columns, rows))
    elif rows is not None and row.empty and not reply.get('message'):
        print(row.empty)
    if reply.get('message'):
        print(_plain_lines(str(reply['message'])))


def _plain_lines(text):
    return '\n'.join(_plain(line) for line in text.split('\n'))


# -- the command -------------------------------------------------------------------------------------------------------------


def run(parsed):
    """Do what was parsed and print the answer. Raises TargetdError."""
    row = parsed.row
    if row.local:
        reply = {'ok': True, 'rows': local.ANSWERS[row.words]()}
    else:
        reply = ask(
            parsed.socket or default_socket(),
            _request(row, parsed),
            row.seconds,
            until_gone=row.words == 'stop',
        )
    _print_reply(row, reply, parsed.json)


def main(arguments=None):
    """The entry point of `targetdctl`; returns the exit code."""
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    if not hasattr(parsed, 'row'):
        parser.print_usage(sys.stderr)
        print('targetdctl: a command is missing; targetdctl --help lists them', file=sys.stderr)
        return EXIT_USAGE
    try:
        run(parsed)
        sys.stdout.flush()
        return EXIT_OK
    except TargetdError as e:
        print('targetdctl: %s' % _plain_lines(str(e)), file=sys.stderr)
        return e.exit_code
    except BrokenPipeError:  # `targetdctl show sessions | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except KeyboardInterrupt:
        return EXIT_FAILURE


if __name__ == '__main__':
    sys.exit(main())
