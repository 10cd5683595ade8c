"""Checks the orders of the master before they are executed: a worker that receives an invalid one ends
with one line in the log.

Pure. The master is trusted, so what is inside an object is not checked. channel.py lists the orders.
"""

from targetd.message_fields import complaint_about, is_list, is_number, is_object, is_text


class BadOrder(ValueError):
    """An order that no master sends."""


def _is_duration(value):
    return isinstance(value, (int, float)) and 0 <= value < 1e9


#: Order -> (number of descriptors that it needs, {field: check}). See message_fields.
# fmt: off
ORDERS = {
    'serve':   (1, {'connection': is_object, '?session_values': is_object, '?capture': is_number}),
    'join':    (1, {'connection': is_object, 'tsih': is_number, 'cid': is_number, 'keys': is_object,
                    'login': is_object, '?capture': is_number}),
    'answer':  (0, {'id': is_number}),
    'change':  (0, {'id': is_number, 'unit': is_text}),
    'units':   (0, {'id': is_number, '?add': is_list, '?remove': is_list, '?replace': is_list}),
    'operate': (0, {'operation': is_object, 'store': is_object}),
    'logout':  (0, {'seconds': _is_duration}),
    'check-connections': (0, {'id': is_number}),
    'capture': (1, {'tsih': is_number, 'data': is_number}),
    'count':   (0, {'id': is_number}),
    'line':    (0, {'id': is_number}),
    'limits':  (1, {'session': is_list, 'luns': is_object, 'timed': is_list}),
    'end':     (0, {'why': is_text}),
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
    complaint = complaint_about(kind, message, fields)
    if complaint:
        raise BadOrder(complaint)
