"""A store with one NBD connection whose requests are begun, without a keeper; what arrives at its server."""

import struct

from nbd_peer import chunk, receive

from targetd.nbd import numbers
from targetd.store.nbd_log import UnflushedChanges
from targetd.store.nbd_pipeline import PipelinedStore

SIZE = 1 << 20
FLAGS = numbers.SEND_FUA | numbers.SEND_DF


class Store(PipelinedStore):
    """A store with this connection. given: what its owner got from other threads; flushes: how often a
    thread has flushed."""

    def __init__(self, connection, is_multi=True):
        super().__init__({'kind': 'nbd', 'size': SIZE}, None)
        self._connections = [connection, None]
        self._changes = UnflushedChanges()
        self._is_multi, self._writes_durable = is_multi, not is_multi
        self._has_left, self._second_after = False, float('inf')
        self.changes, self.given, self.flushes = self._changes, [], 0

    def _flush_medium(self):
        self.flushes += 1
        self._require_not_lost()
        self._changes.forget(self._changes.mark())

    def _flush_failed(self, error):
        self.lost = error

    def _require_not_lost(self):
        if self.lost:
            raise OSError(self.lost, 'lost')

    def owner(self, requests):
        self.given += requests

    def read(self, offset, length, context=None):
        return self.begin_read(offset, length, context, self.owner)

    def write(self, offset, data, durable=False, context=None):
        return self.begin_write(offset, data, durable, context, self.owner)


def arrived(server, count=1, data=0):
    """The (flags, command, cookie, offset, length) of so many requests."""
    found = []
    for _ in range(count):
        found.append(struct.unpack('>4xHHQQI', receive(server, 28)))
        receive(server, data)
    return found


def data_reply(cookie, offset, data):
    return chunk(numbers.REPLY_OFFSET_DATA, cookie, struct.pack('>Q', offset) + data)
