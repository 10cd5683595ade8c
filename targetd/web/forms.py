"""The forms of the commands that change something: made from the rows of the table of commands. Pure.

A form has the arguments of its command. A secret may be left empty: then one is generated, and shown once.
"""

import re
from collections import namedtuple

from targetd.admin.command_rows import described, is_selector
from targetd.admin.secret_input import generated
from targetd.errors import TargetdError
from targetd.web import gate

#: words: the label; value: text, or True for a flag that is set.
Field = namedtuple('Field', 'name words kind help required value')

#: First word of a command's name -> the page to which its form returns.
_BACK = {
    'lun': '/luns',
    'acknowledge': '/luns',
    'accept': '/luns',
    'reservation': '/luns',
    'target': '/targets',
    'account': '/targets',
    'acl': '/targets',
    'map': '/targets',
    'alua': '/targets',
    'drain': '/targets',
    'kick': '/sessions',
    'logout': '/sessions',
    'end': '/sessions',
    'portal': '/',
}

LONGEST_VALUE = 4096


def back_of(name):
    """The page that a form belongs to."""
    return _BACK.get(name.split('-')[0], '/configuration')


def title_of(row):
    return row.help[0].upper() + row.help[1:]


def verb_of(row):
    """The words of the button."""
    words = row.words.split()
    return ' '.join([words[-1].capitalize()] + words[:-1])


def has_preview(row):
    return any(argument.name == 'dry-run' for argument in row.arguments)


def text_of(row):
    """What the command does, without the sentences about a terminal."""
    return re.sub(r' ?The secret is read from the terminal.*', '', described(row))


def fields(row, values):
    """The Fields of the form. values: {name: text}, from the address or from the form that was sent."""
    found = []
    for argument in row.arguments:
        if argument.name == 'dry-run':
            continue
        help_text, required = argument.help, argument.required
        if argument.kind == 'secret':
            help_text, required = (
                'if it is empty, one of 16 characters is made and shown once',
                False,
            )
        elif argument.kind == 'options':
            help_text = 'NAME=VALUE: settings, as in targetd.conf(5), one in each line'
        value = '' if argument.kind == 'secret' else values.get(argument.name, '')
        words = argument.name[0].upper() + argument.name[1:].replace('-', ' ')
        found.append(
            Field(
                argument.name,
                words,
                argument.kind,
                help_text,
                required,
                bool(value) if argument.kind == 'flag' else value,
            )
        )
    return found


def request_of(row, values, is_preview):
    """({argument: value}, generated secret or None) of a form that was sent. Raises TargetdError."""
    arguments, made = {}, None
    for argument in row.arguments:
        value = values.get(argument.name, '').strip()
        if argument.name == 'dry-run':
            if is_preview:
                arguments['dry-run'] = True
        elif argument.kind == 'secret':
            made = None if value else generated()
            arguments['secret'] = value or made
        elif not value:
            if argument.required:
                raise TargetdError('%s is missing: %s' % (argument.name, argument.help))
        else:
            arguments[argument.name] = _typed(argument, value)
    return arguments, made


def _typed(argument, value):
    if len(value) > LONGEST_VALUE:
        raise TargetdError('%s is longer than %d characters' % (argument.name, LONGEST_VALUE))
    if argument.kind == 'number':
        if not re.match(r'^[0-9]{1,10}$', value):
            raise TargetdError('%s: "%s" is not a number' % (argument.name, value))
        return int(value)
    if argument.kind == 'flag':
        return True
    if argument.kind == 'options':
        return [line.strip() for line in value.splitlines() if line.strip()]
    if argument.kind == 'path' and not is_selector(value) and not value.startswith('/'):
        raise TargetdError(
            '%s: "%s" is not a whole path; it must begin with /' % (argument.name, value)
        )
    return value


def outcome(row, reply, made):
    """The sentence that is shown after a change. made: the generated secret, or None."""
    steps = [
        '%s: %s' % (step.get('step'), step['effect'])
        if step.get('effect')
        else str(step.get('step'))
        for step in reply.get('rows', ())
    ]
    words = [reply['message']] if reply.get('message') else []
    words += steps or ([] if words else [row.empty.capitalize() or 'Done'])
    if made:
        words.append('The secret is %s; it is not shown again' % made)
    return '. '.join(words) + '.'


def steps_of(reply):
    """The lines of a preview."""
    lines = [
        ' – '.join(str(step[k]) for k in ('step', 'effect') if step.get(k))
        for step in reply.get('rows', ())
    ]
    return lines + ([reply['message']] if reply.get('message') and not lines else [])


def row_of(name):
    """The row of a command that the page may use, or None."""
    return gate.CHANGES.get(name)
