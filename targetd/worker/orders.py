"""Checks the orders of the master before they are executed: a worker that receives an invalid one ends
with one line in the log.

Pure. The master is trusted, so what is inside an object is not checked. channel.py lists the orders.
"""


class BadOrder(ValueError):
    """An order that no master sends."""


def _is_number(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive(value):
    return isinstance(value, (int, float)) and 0 <= value < 1e9


def _is_text(value):
    return isinstance(value, str)


def _is_object(value):
    return isinstance(value, dict)


def _is_list(value):
    return isinstance(value, list)


#: Order -> (number of descriptors that it needs, {field: check}). A name with '?' may be absent.
# fmt: off
ORDERS = {
    'serve':   (1, {'connection': _is_object, '?session_values': _is_object, '?capture': _is_number}),
    'join':    (1, {'connection': _is_object, 'tsih': _is_number, 'cid': _is_number, 'keys': _is_object,
                    'login': _is_object, '?capture': _is_number}),
    'answer':  (0, {'id': _is_number}),
    'change':  (0, {'id': _is_number, 'unit': _is_text}),
    'units':   (0, {'id': _is_number, '?add': _is_list, '?remove': _is_list, '?replace': _is_list}),
    'operate': (0, {'operation': _is_object, 'store': _is_object}),
    'logout':  (0, {'seconds': _is_positive}),
    'check-connections': (0, {'id': _is_number}),
    'capture': (1, {'tsih': _is_number, 'data': _is_number}),
    'count':   (0, {'id': _is_number}),
    'end':     (0, {'why': _is_text}),
    'retire':  (0, {}),
}
# fmt: on


def check_order(message, descriptors):
    """Raises BadOrder if an order is unknown, or has not what every order of its kind has."""
    kind = message.get('do')
    row = ORDERS.get(kind) if isinstance(kind, str) else None
    if row is None:
        raise BadOrder('an unknown order: %.100r' % (kind,))
    needed, fields = row
    if len(descriptors) < needed:
        raise BadOrder('%s without a descriptor' % kind)
    for name, is_valid in fields.items():
        is_optional, name = name.startswith('?'), name.lstrip('?')
        if name not in message:
            if is_optional:
                continue
            raise BadOrder('%s without %s' % (kind, name))
        if not is_valid(message[name]):
            raise BadOrder('%s with a malformed %s: %.100r' % (kind, name, message[name]))
