"""The dispatch of workers' messages: each part of the master registers the kinds of message that it
handles.

A worker sends reports (one-way) and requests (`ask`, answered with the same id); channel.py lists
them. A worker is not trusted: a handler checks the fields of its message, and a message of an unknown
kind is logged and dropped.
"""

from targetd import log


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
        """Call the handler of the message's kind. Returns False if there is none, and logs that."""
        if 'ask' in message:
            word, kind, handlers = 'request', message['ask'], self._of_requests
        else:
            word, kind, handlers = 'report', message.get('report'), self._of_reports
        handler = handlers.get(kind) if isinstance(kind, str) else None
        if handler is None:
            log.error('worker %d sent a %s of an unknown kind: %.100r', worker.pid, word, kind)
            return False
        handler(worker, message)
        return True


def _add(table, handlers):
    for kind, handler in handlers.items():
        if kind in table:
            raise ValueError('%s has a handler already' % kind)
        table[kind] = handler
