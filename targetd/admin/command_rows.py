"""What a row of the tables of commands consists of (commands, change_commands). Pure."""

import re
from collections import namedtuple

from targetd.nbd import uri

#: An argument. name: as in the request; kind: 'number', 'text', 'path' (a text, which the client makes
#: absolute unless is_selector()), 'texts' (several, of a local command), 'flag'
#: (typed as --name), 'option' (a text, typed as --name TEXT), 'options' (the same, repeated) or 'secret'
#: (the client reads it, and sends a descriptor); required: bool; help: for --help.
Argument = namedtuple('Argument', 'name kind required help')

#: A column. key: in a row's object; heading: printed above it; form: 'text', 'bytes' or 'yes-no'; is_wide:
#: not shown on a terminal without --wide.
Column = namedtuple('Column', 'key heading form is_wide')
WIDE = True

#: A command. words: as typed, separated by a blank; arguments: Arguments; help: one line; text: a
#: paragraph for the manual page; columns: () if the reply is a message; empty: printed when there
#: are no rows; seconds: timeout of the reply; local: True if the client answers it itself, without a
#: server; records: True if the rows are long and are printed as paragraphs; streams: True if the
#: connection goes on after the reply (admin.capture).
Command = namedtuple(
    'Command', 'words arguments help text columns empty seconds local records streams'
)


def described(row):
    """What a command does, in sentences: for its manual entry and its --help."""
    return '%s%s. %s' % (row.help[0].upper(), row.help[1:], row.text)


def columns(*each_column):
    return tuple(
        Column(*(tuple(values) + ('text', False)[len(values) - 2 :])) for values in each_column
    )


def command(
    words,
    help,
    text,
    arguments=(),
    columns=(),
    empty='',
    seconds=30,
    local=False,
    records=False,
    streams=False,
):
    return Command(
        words, tuple(arguments), help, text, columns, empty, seconds, local, records, streams
    )


def is_selector(text):
    """True if a 'path' is not the name of a file: a selector of a disk, such as serial:X, the URI of an NBD
    export, or a word."""
    return (
        uri.is_uri(text)
        or bool(re.match('[a-z][a-z-]*:(?!//)', text))
        or text in ('ram', 'null', 'none')
    )
