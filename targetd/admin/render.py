"""The files made from the table of commands: man/targetdctl.8 and etc/targetdctl.bash-completion.

May import base and admin. `python3 -m targetd.admin.render man` (or `completion`) prints one; a
test compares what is in the tree with what is printed.
"""

import sys

from targetd.admin.commands import TABLE
from targetd.errors import (
    EXIT_CONFIG,
    EXIT_FAILURE,
    EXIT_NOT_RUNNING,
    EXIT_OK,
    EXIT_PORTAL,
    EXIT_STORE,
    EXIT_USAGE,
)

EXITS = (
    (EXIT_OK, 'Done.'),
    (EXIT_FAILURE, 'Refused, or failed; one sentence on standard error says why.'),
    (EXIT_USAGE, 'Wrong command line.'),
    (
        EXIT_CONFIG,
        'The configuration cannot be used; all complaints are on standard error and nothing was changed.',
    ),
    (EXIT_PORTAL, 'A portal could not be opened.'),
    (EXIT_STORE, 'A backing store is missing, in use or unusable.'),
    (EXIT_NOT_RUNNING, 'No targetd answers on the control socket.'),
)

EXAMPLES = (
    ('Who is logged in, and to what:', 'targetdctl show sessions'),
    ('Why can the server at 10.0.5.17 not log in?', 'targetdctl why 10.0.5.17'),
    ('What would a changed configuration do?', 'targetdctl reload --plan'),
    ('Which disk is which, and which are free:', 'targetdctl disks'),
    (
        'Only the session numbers, for a script:',
        'targetdctl show sessions --json | python3 -c \'import json, sys; print(*[s["tsih"] for s in json.load(sys.stdin)])\'',
    ),
)


def _roff(text):
    """Text as roff takes it literally."""
    text = text.replace('\\', '\\e').replace('-', '\\-')
    return '\\&' + text if text.startswith(('.', "'")) else text


def _usage(row):
    """A command with its arguments: '\\fBend\\fR \\fISESSION\\fR'."""
    parts = ['\\fB%s\\fR' % _roff(row.words)]
    for argument in row.arguments:
        if argument.kind == 'flag':
            parts.append('[\\fB\\-\\-%s\\fR]' % _roff(argument.name))
        elif argument.required:
            parts.append('\\fI%s\\fR' % argument.name.upper())
        elif argument.kind == 'number':
            parts.append('[\\fB\\-\\-%s\\fR \\fINUMBER\\fR]' % _roff(argument.name))
        else:
            parts.append('[\\fI%s\\fR]' % argument.name.upper())
    return ' '.join(parts)


def _is_option(argument):
    """True for what is written with '--'; required arguments and words stand alone."""
    return argument.kind == 'flag' or (argument.kind == 'number' and not argument.required)


def _command_lines(row):
    lines = ['.TP', _usage(row), _roff(row.text)]
    for argument in row.arguments:
        name = '\\-\\-' + _roff(argument.name) if _is_option(argument) else argument.name.upper()
        lines += ['.IP', '%s: %s.' % (name, _roff(argument.help))]
    if row.columns:
        lines += [
            '.IP',
            'Columns: %s.' % _roff(', '.join(column.heading for column in row.columns)),
        ]
    return lines


def man_page():
    """The text of man/targetdctl.8."""
    lines = [
        '.\\" Made by "python3 -m targetd.admin.render man"; change targetd/admin/commands.py and make it again.',
        '.TH TARGETDCTL 8 "" "targetd" "System Administration"',
        '.SH NAME',
        'targetdctl \\- ask and command a running targetd',
        '.SH SYNOPSIS',
        '.B targetdctl',
        '[\\fB\\-s\\fR \\fISOCKET\\fR] [\\fB\\-\\-json\\fR] \\fICOMMAND\\fR [\\fIARGUMENT\\fR ...]',
        '.SH DESCRIPTION',
        _roff(
            'targetdctl speaks with targetd(8) on its control socket: it shows who is logged in and what is served, says why '
            'a login was refused, and makes the server reload its configuration, end a session or stop.'
        ),
        '.SH OPTIONS',
        '.TP',
        '\\fB\\-s\\fR, \\fB\\-\\-socket\\fR \\fISOCKET\\fR',
        _roff(
            'The control socket, as control-socket in targetd.conf(5) has it. Without it the environment variable '
            'TARGETD_SOCKET is used, or /var/run/targetd.sock.'
        ),
        '.TP',
        '\\fB\\-\\-json\\fR',
        _roff(
            'Print the answer as JSON: a list of objects for a command with columns, with more keys than the columns have. '
            'Sizes are in bytes.'
        ),
        '.TP',
        '\\fB\\-\\-version\\fR',
        'Print the version.',
        '.TP',
        '\\fB\\-h\\fR, \\fB\\-\\-help\\fR',
        'Print help; after a command, for that command.',
        '.SH COMMANDS',
    ]
    for row in TABLE:
        lines += _command_lines(row)
    lines.append('.SH EXIT STATUS')
    for code, meaning in EXITS:
        lines += ['.TP', str(code), _roff(meaning)]
    lines.append('.SH EXAMPLES')
    for text, command in EXAMPLES:
        lines += ['.PP', _roff(text), '.PP', '.nf', '.RS', _roff(command), '.RE', '.fi']
    lines += [
        '.SH FILES',
        '.TP',
        '.I /var/run/targetd.sock',
        _roff('The control socket. Only root may use it as shipped.'),
        '.SH SEE ALSO',
        '.BR targetd (8),',
        '.BR targetd.conf (5)',
    ]
    return '\n'.join(lines) + '\n'


def _words_after():
    """{words typed so far: words that may follow}, from the table."""
    after = {}
    for row in TABLE:
        words = row.words.split()
        for i in range(len(words)):
            following = after.setdefault(' '.join(words[:i]), [])
            if words[i] not in following:
                following.append(words[i])
        options = ['--' + a.name for a in row.arguments if _is_option(a)]
        after[row.words] = options + ['--json', '--socket', '--help']
    after[''] += ['--socket', '--json', '--version', '--help']
    return after


def bash_completion():
    """The text of etc/targetdctl.bash-completion. It asks the running server for session numbers and
    unit names."""
    asked = {'session': ('show sessions', 'tsih'), 'unit': ('show units', 'unit')}
    lines = [
        '# Completion of targetdctl for bash; made by "python3 -m targetd.admin.render completion".',
        '_targetdctl()',
        '{',
        '    local current="${COMP_WORDS[COMP_CWORD]}" typed="" socket="" skip="" word i',
        '    for ((i = 1; i < COMP_CWORD; i++)); do',
        '        word="${COMP_WORDS[i]}"',
        '        if [ "$skip" = socket ]; then socket="$word"; fi',
        '        if [ -n "$skip" ]; then skip=""; continue; fi',
        '        case "$word" in',
        '            -s|--socket) skip=socket ;;',
        '            --seconds) skip=value ;;',
        '            -*) ;;',
        '            *) typed="${typed:+$typed }$word" ;;',
        '        esac',
        '    done',
        '    if [ "$skip" = socket ]; then COMPREPLY=($(compgen -f -- "$current")); fi',
        '    if [ -n "$skip" ]; then return; fi',
        '    local choices=""',
        '    case "$typed" in',
    ]
    for typed, choices in _words_after().items():
        lines.append('        "%s") choices="%s" ;;' % (typed, ' '.join(choices)))
    lines.append('    esac')
    for row in TABLE:
        for argument in row.arguments:
            if argument.name in asked and argument.required:
                source, key = asked[argument.name]
                lines += [
                    '    if [ "$typed" = "%s" ]; then' % row.words,
                    '        choices="$choices $(targetdctl ${socket:+-s "$socket"} %s --json 2>/dev/null |'
                    % source,
                    '            sed -n \'s/^ *"%s": "\\{0,1\\}\\([^",]*\\).*/\\1/p\')"' % key,
                    '    fi',
                ]
    lines += [
        '    COMPREPLY=($(compgen -W "$choices" -- "$current"))',
        '}',
        'complete -F _targetdctl targetdctl',
    ]
    return '\n'.join(lines) + '\n'


#: what may be asked for -> (where it belongs in the tree, how it is made)
FILES = {
    'man': ('man/targetdctl.8', man_page),
    'completion': ('etc/targetdctl.bash-completion', bash_completion),
}


def main(arguments):
    """Print one of FILES; returns the exit code."""
    if len(arguments) != 1 or arguments[0] not in FILES:
        print(
            'usage: python3 -m targetd.admin.render %s' % '|'.join(sorted(FILES)), file=sys.stderr
        )
        return EXIT_USAGE
    sys.stdout.write(FILES[arguments[0]][1]())
    return EXIT_OK


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
