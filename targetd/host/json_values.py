"""Values of a JSON object that another program wrote: what has another type than expected counts as missing.
Pure."""


def dict_of(value, key):
    """The object at this key of an object; {} if there is none."""
    found = value.get(key)
    return found if isinstance(found, dict) else {}


def rows_of(value, key):
    """The objects in the array at this key of an object; [] if there is none."""
    found = value.get(key)
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def text_of(value, key, most=100):
    """The text at this key of an object in one line, at most so many characters; '' if there is none."""
    found = value.get(key)
    text = found if isinstance(found, str) else ''
    return ' '.join(''.join(c if c.isprintable() else ' ' for c in text).split())[:most]


def number_of(value, key, most=(1 << 64) - 1):
    """The whole number from 0 to `most` at this key of an object; None if there is none."""
    found = value.get(key)
    is_number = isinstance(found, int) and not isinstance(found, bool)
    return found if is_number and 0 <= found <= most else None
