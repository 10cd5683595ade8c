"""The dispatch of workers' messages: each part of the master registers the kinds of message that it
handles.

A worker sends reports (one-way) and requests (`ask`, answered with the same id); channel.py lists
them. A worker is not trusted: dispatch_message() checks the values of every message and the fields of
its kind before a handler is called, and raises BadMessage otherwise. A handler checks what only it can
know (ranges, what the session may do).
"""

from targetd.message_fields import complaint_about, is_list, is_number, is_object, is_text

MAXIMUM_DEPTH = 8  # of nested lists and objects; the deepest valid message has 4 levels
MAXIMUM_NUMBER = (1 << 64) - 1  # in magnitude
MAXIMUM_TEXT = 1 << 18  # characters
SHORT_TEXT = 1 << 10
MAXIMUM_ID = (1 << 53) - 1

#: What a handler may raise for a value that it cannot interpret; the handler's module turns it into
#: the end of the worker.
VALUE_ERRORS = (KeyError, IndexError, ValueError, TypeError, AttributeError, OverflowError)


class BadMessage(ValueError):
    """A worker sent a message that no worker sends: it is broken or hostile. The text says what is
    wrong."""


def _is_flag(value):
    return isinstance(value, bool)


def _is_peer(value):
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and is_number(value[1])
        and 0 <= value[1] <= 0xFFFF
    )


def _is_number_or_null(value):
    return value is None or is_number(value)


def _is_text_or_null(value):
    return value is None or isinstance(value, str)


# Fields that are not listed here are checked by the handler. See message_fields.
# fmt: off
REPORTS = {
    'ready':       {},
    'log':         {'level': is_number, 'text': is_text, '?kind': is_text},
    'idle':        {'?why': is_text},
    'ended':       {'?why': is_text, '?hangs': _is_flag, '?quiet': _is_flag},
    'acknowledge': {'id': is_number},
    'failed':      {'unit': is_text, '?text': is_text},
    'refused':     {'peer': _is_peer, '?initiator_name': _is_text_or_null,
                    '?target_name': _is_text_or_null, '?why': is_text,
                    '?status_class': _is_number_or_null, '?status_detail': _is_number_or_null,
                    '?response': _is_text_or_null},
    'closed':      {'peer': _is_peer, '?cid': _is_number_or_null},
    'continues':   {'id': is_number},
    'copy-left':   {'unit': is_text},
    'note':        {'unit': is_text, 'kind': is_text, 'note': is_object},
    'progress':    {'position': is_number, '?lasting': _is_flag},
    'operated':    {'?failed': is_text},
    'counted':     {'id': is_number, 'units': is_list, 'more': _is_flag},
    'line':        {'id': is_number, 'at': is_number, 'connections': is_list, 'counted': is_list,
                    'waiting': is_object},
    'black-hole':  {'peer': _is_peer, 'segment': is_number, 'times': is_number},
    'ring':        {'tsih': is_number, 'why': is_text, 'data': is_text},
    'hanging':     {'unit': is_text, 'commands': is_number, '?command': is_text,
                    '?lba': _is_number_or_null, '?milliseconds': is_number},
    'fence-over':  {'unit': is_text},
    'attention':   {'unit': is_text, 'asc': is_number, 'ascq': is_number},
}
REQUESTS = {
    'claim':       {'session': is_object, 'peer': _is_peer},
    'leave':       {},
    'fence':       {'unit': is_text},
    'challenge':   {'peer': _is_peer, 'target_name': _is_text_or_null, 'offered': is_text,
                    '?initiator_name': _is_text_or_null},
    'authenticate': {'peer': _is_peer, 'values': is_object},
}
_OF_A_UNIT = {
    'unit': is_text, '?function': is_text, '?kind': None, '?action': is_text, '?prevent': _is_flag,
    '?token': is_text, '?ranges': is_list, '?states': is_object, '?pages': is_object,
}
# fmt: on


class MessageHandlers(object):
    """Handlers of workers' messages, by kind: handler(worker, message)."""

    def __init__(self):
        self._of_reports = {}
        self._of_requests = {}

    def register_reports(self, handlers):
        """handlers: {kind of a `report`: handler}. A kind has one handler."""
        _add(self._of_reports, handlers)

    def register_requests(self, handlers):
        """handlers: {kind of an `ask`: handler}. A kind has one handler; it sends the answer, now or
        later."""
        _add(self._of_requests, handlers)

    def dispatch_message(self, worker, message):
        """Call the handler of the message's kind. Raises BadMessage."""
        check_values(message)
        if 'ask' in message:
            word, kind, handlers, known = 'request', message['ask'], self._of_requests, REQUESTS
            number = message.get('id')
            if not is_number(number) or not 0 <= number <= MAXIMUM_ID:
                raise BadMessage('a request without an id')
        else:
            word, kind, handlers, known = 'report', message.get('report'), self._of_reports, REPORTS
        handler = handlers.get(kind) if isinstance(kind, str) else None
        if handler is None:
            raise BadMessage('a %s of an unknown kind: %.100r' % (word, kind))
        complaint = complaint_about(kind, message, known.get(kind, _OF_A_UNIT))
        if complaint:
            raise BadMessage(complaint)
        handler(worker, message)


def _add(table, handlers):
    for kind, handler in handlers.items():
        if kind in table:
            raise ValueError('%s has a handler already' % kind)
        table[kind] = handler


def check_values(value, depth=0):
    """Raise BadMessage unless a message consists of objects, lists, text that UTF-8 can encode, 64-bit
    numbers, true, false and null, nested at most MAXIMUM_DEPTH levels deep."""
    kind = value.__class__
    if kind is str:
        _check_text(value)
    elif kind is dict or kind is list:
        if depth >= MAXIMUM_DEPTH:
            raise BadMessage('objects nested more than %d levels deep' % MAXIMUM_DEPTH)
        if kind is dict:
            for name in value:
                if len(name) > SHORT_TEXT or not name.isprintable():
                    _check_text(name)
            value = value.values()
        for item in value:
            kind = item.__class__
            if kind is str:
                if len(item) > SHORT_TEXT or not item.isprintable():
                    _check_text(item)
            elif kind is int and -MAXIMUM_NUMBER <= item <= MAXIMUM_NUMBER:
                continue
            elif kind is not bool and item is not None:
                check_values(item, depth + 1)
    elif isinstance(value, float):
        raise BadMessage('the number %r is not an integer' % value)
    elif isinstance(value, int) and abs(value) > MAXIMUM_NUMBER:
        raise BadMessage('a number of more than 64 bits')


def _check_text(text):
    if len(text) > MAXIMUM_TEXT:
        raise BadMessage('a text of %d characters' % len(text))
    if text.isprintable():  # half of a surrogate pair is not
        return
    try:
        text.encode('utf-8')
    except UnicodeEncodeError:
        raise BadMessage('a text with half of a surrogate pair')


__all__ = ('BadMessage', 'MessageHandlers', 'VALUE_ERRORS', 'check_values')
