"""The checks of the fields of a channel message (channel.py), for both directions.

A table has {field: check} for each kind of message. A name with '?' may be absent; a check of None accepts
every value. Pure.
"""


def is_number(value):
    """An integer; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_text(value):
    """A string."""
    return isinstance(value, str)


def is_object(value):
    """A dict."""
    return isinstance(value, dict)


def is_list(value):
    """A list."""
    return isinstance(value, list)


def complaint_about(kind, message, fields):
    """Why this message has not what every message of its kind has; '' if it has."""
    for name, is_valid in fields.items():
        is_optional, name = name.startswith('?'), name.lstrip('?')
        if name not in message:
            if not is_optional:
                return '%s without %s' % (kind, name)
        elif is_valid is not None and not is_valid(message[name]):
            return '%s with a malformed %s: %.100r' % (kind, name, message[name])
    return ''
