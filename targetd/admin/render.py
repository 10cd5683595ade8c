"""Renders the table of commands as man/targetdctl.8 and etc/targetdctl.bash-completion.

May import base and admin. `python3 -m targetd.admin.render man` (or `completion`) prints one file,
`... write` writes both into the source tree. A test compares the committed files with the rendered
ones.
"""

import os
import sys

from targetd.admin.command_rows import described
from targetd.admin.commands import TABLE
from targetd.admin.protocol import SOCKET_PATH
from targetd.errors import (
    EXIT_CONFIG,
    EXIT_FAILURE,
    EXIT_NOT_RUNNING,
    EXIT_OK,
    EXIT_PORTAL,
    EXIT_STORE,
    EXIT_USAGE,
)

TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

EXITS = (
    (EXIT_OK, 'Success.'),
    (
        EXIT_FAILURE,
        'The command was refused or failed; one sentence on standard error explains why.',
    ),
    (EXIT_USAGE, 'The command line is wrong.'),
    (
        EXIT_CONFIG,
        'The configuration contains errors. All of them are printed on standard error, and nothing '
        'was changed.',
    ),
    (EXIT_PORTAL, 'A portal could not be opened.'),
    (EXIT_STORE, 'A backing store is missing, in use or unusable.'),
    (EXIT_NOT_RUNNING, 'targetd is not running, or it uses another control socket.'),
)

EXAMPLES = (
    ('Show which initiators are logged in to which targets:', 'targetdctl show sessions'),
    ('Show why the initiator at 10.0.5.17 cannot log in:', 'targetdctl why 10.0.5.17'),
    ('Show what a changed configuration would do:', 'targetdctl reload --plan'),
    (
        'Let node_exporter report the state, from a line in /etc/cron.d:',
        '* * * * * root targetdctl metrics --output /var/lib/prometheus/node-exporter/targetd.prom',
    ),
    ('List the disks and show which of them are unused:', 'targetdctl disks'),
    (
        'Print only the session numbers, for a script:',
        'targetdctl show sessions --json | python3 -c \'import json, sys; print(*[s["tsih"] for s '
        'in json.load(sys.stdin)])\'',
    ),
)


def _roff(text):
    """The text with the characters escaped that roff would interpret."""
    text = text.replace('\\', '\\e').replace('-', '\\-')
    return '\\&' + text if text.startswith(('.', "'")) else text


def _usage(row):
    """A command with its arguments: '\\fBend\\fR \\fISESSION\\fR'."""
    parts = ['\\fB%s\\fR' % _roff(row.words)]
    for argument in row.arguments:
        if argument.kind == 'flag':
            parts.append('[\\fB\\-\\-%s\\fR]' % _roff(argument.name))
        elif argument.kind == 'option':
            name = argument.name
            parts.append('[\\fB\\-\\-%s\\fR \\fI%s\\fR]' % (_roff(name), name.upper()))
        elif argument.kind == 'options':
            parts.append('[\\fB\\-\\-%s\\fR \\fINAME=VALUE\\fR ...]' % _roff(argument.name))
        elif argument.kind == 'secret':
            parts.append('[\\fB\\-\\-secret\\-file\\fR \\fIFILE\\fR | \\fB\\-\\-generate\\fR]')
        elif argument.kind == 'texts':
            parts.append('\\fIFILE\\fR ...' if argument.required else '[\\fIFILE\\fR ...]')
        elif argument.required:
            parts.append('\\fI%s\\fR' % argument.name.upper())
        elif argument.kind == 'number':
            parts.append('[\\fB\\-\\-%s\\fR \\fINUMBER\\fR]' % _roff(argument.name))
        else:
            parts.append('[\\fI%s\\fR]' % argument.name.upper())
    return ' '.join(parts)


def _is_option(argument):
    """True for an argument that is typed with '--': a flag, an option or an optional number."""
    is_number = argument.kind == 'number' and not argument.required
    return is_number or argument.kind in ('flag', 'option', 'options')


def _command_lines(row):
    lines = ['.TP', _usage(row), _roff(described(row))]
    for argument in row.arguments:
        if argument.kind == 'secret':
            continue
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
        '.\\" Rendered by "python3 -m targetd.admin.render write" from targetd/admin/commands.py; '
        'change that file.',
        '.TH TARGETDCTL 8 "" "targetd" "System Administration"',
        '.SH NAME',
        'targetdctl \\- control a running targetd',
        '.SH SYNOPSIS',
        '.B targetdctl',
        '[\\fB\\-s\\fR \\fISOCKET\\fR] [\\fB\\-\\-json\\fR] \\fICOMMAND\\fR [\\fIARGUMENT\\fR ...]',
        '.SH DESCRIPTION',
        _roff(
            'targetdctl controls targetd(8) over its control socket: it lists sessions, targets, '
            'logical units and portals, explains why a login was refused, changes the configuration '
            'while sessions continue, measures and captures sessions, and reloads, upgrades or stops '
            'the server.'
        ),
        '.PP',
        _roff(
            'Do not confuse it with targetctl of LIO (package python3-rtslib-fb), which saves, '
            'restores and clears the configuration of the target in the Linux kernel; targetdctl '
            'never touches that one.'
        ),
        '.SH OPTIONS',
        '.TP',
        '\\fB\\-s\\fR, \\fB\\-\\-socket\\fR \\fISOCKET\\fR',
        _roff(
            'The control socket of the server (setting control-socket in targetd.conf(5)). Without '
            'this option, targetdctl uses the environment variable TARGETD_SOCKET, or %s.'
            % SOCKET_PATH
        ),
        '.TP',
        '\\fB\\-\\-json\\fR',
        _roff(
            'Print JSON: for a command with columns a list of objects, which may have more keys '
            'than there are columns. Sizes are in bytes.'
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
        '.I ' + _roff(SOCKET_PATH),
        _roff('The control socket. By default only root may use it.'),
        '.SH SEE ALSO',
        '.BR targetd (8),',
        '.BR targetd.conf (5)',
    ]
    return '\n'.join(lines) + '\n'


def _words_after():
    """Returns {words typed so far: [words that may follow]}."""
    after = {}
    for row in TABLE:
        words = row.words.split()
        for i in range(len(words)):
            following = after.setdefault(' '.join(words[:i]), [])
            if words[i] not in following:
                following.append(words[i])
        options = ['--' + a.name for a in row.arguments if _is_option(a)]
        if any(a.kind == 'secret' for a in row.arguments):
            options += ['--secret-file', '--generate']
        after[row.words] = options + ['--json', '--socket', '--help']
    after[''] += ['--socket', '--json', '--version', '--help']
    return after


def _options_with_value():
    found = {'--secret-file'}
    for row in TABLE:
        is_valued = ('option', 'options', 'number')
        found.update('--' + a.name for a in row.arguments if _is_option(a) and a.kind in is_valued)
    return sorted(found)


def bash_completion():
    """The text of etc/targetdctl.bash-completion, which gets session numbers and unit names from the
    running server."""
    # argument: (command that lists its values, key in the rows)
    value_sources = {
        'session': ('show sessions', 'tsih'),
        'unit': ('show units', 'unit'),
        'target': ('show targets', 'target_name'),
    }
    lines = [
        '# Completion of targetdctl for bash; rendered by "python3 -m targetd.admin.render write".',
        '_targetdctl()',
        '{',
        '    local current="${COMP_WORDS[COMP_CWORD]}" typed="" socket="" skip="" word i',
        '    for ((i = 1; i < COMP_CWORD; i++)); do',
        '        word="${COMP_WORDS[i]}"',
        '        if [ "$skip" = socket ]; then socket="$word"; fi',
        '        if [ -n "$skip" ]; then skip=""; continue; fi',
        '        case "$word" in',
        '            -s|--socket) skip=socket ;;',
        '            %s) skip=value ;;' % '|'.join(_options_with_value()),
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
            if argument.name in value_sources and argument.required:
                source, key = value_sources[argument.name]
                lines += [
                    '    if [ "$typed" = "%s" ]; then' % row.words,
                    '        choices="$choices $(targetdctl ${socket:+-s "$socket"} %s --json '
                    '2>/dev/null |' % source,
                    '            sed -n \'s/^ *"%s": "\\{0,1\\}\\([^",]*\\).*/\\1/p\')"' % key,
                    '    fi',
                ]
    lines += [
        '    COMPREPLY=($(compgen -W "$choices" -- "$current"))',
        '}',
        'complete -F _targetdctl targetdctl',
    ]
    return '\n'.join(lines) + '\n'


#: Argument of the command -> (path in the source tree, function that renders the file).
FILES = {
    'man': ('man/targetdctl.8', man_page),
    'completion': ('etc/targetdctl.bash-completion', bash_completion),
}


def main(arguments):
    """Print one of FILES, or write all of them; returns the exit code."""
    if arguments == ['write']:
        for path, render in FILES.values():
            with open(os.path.join(TREE, path), 'w', encoding='utf-8') as f:
                f.write(render())
        return EXIT_OK
    if len(arguments) != 1 or arguments[0] not in FILES:
        print(
            'usage: python3 -m targetd.admin.render %s|write' % '|'.join(sorted(FILES)),
            file=sys.stderr,
        )
        return EXIT_USAGE
    sys.stdout.write(FILES[arguments[0]][1]())
    return EXIT_OK


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
