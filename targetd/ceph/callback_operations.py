"""The asynchronous operations of an image of the module rbd, where librbd cannot be polled: it calls a Python
function for the end of each, from threads of its own. poll_operations has the same functions.
"""

import collections
import ctypes
import errno

from targetd.ceph.poll_operations import add_event, clear_events, event_counter


class Operations(object):
    """image: an open rbd.Image, or a substitute of a test."""

    def __init__(self, image):
        self._image = image
        self._found = collections.deque()
        self.writes_zeroes = hasattr(image, 'aio_write_zeroes')
        self.descriptor = event_counter()

    def wake(self):
        """[any] Make the descriptor readable."""
        add_event(self.descriptor)

    def read(self, request, offset, length, address):
        """Read bytes of the image to an address of this process."""

        def was_read(completion, content):
            number = completion.get_return_value()
            if number >= 0:
                number = -errno.EIO if content is None else len(content)
            if number > 0:
                ctypes.memmove(address, content, number)
            self._add(request, number)

        _start(self._image.aio_read, offset, length, was_read)

    def write(self, request, offset, length, address):
        """Write bytes from an address of this process."""
        data = ctypes.string_at(address, length)

        def was_done(completion, data=data):  # `data` lives as long as librbd uses it
            self._add(request, completion.get_return_value())

        _start(self._image.aio_write, data, offset, was_done)

    def flush(self, request):
        """End when what has ended before is durable."""
        _start(self._image.aio_flush, self._was_done(request))

    def discard(self, request, offset, length):
        """Free the whole blocks of a range."""
        _start(self._image.aio_discard, offset, length, self._was_done(request))

    def write_zeroes(self, request, offset, length, flags):
        """flags: RBD_WRITE_ZEROES_FLAG_… of the module rbd."""
        _start(self._image.aio_write_zeroes, offset, length, self._was_done(request), flags)

    def _was_done(self, request):
        return lambda completion: self._add(request, completion.get_return_value())

    def _add(self, request, number):
        """[threads of librbd]"""
        self._found.append((request, number))
        self.wake()

    def ended(self):
        """As poll_operations.Operations.ended()."""
        clear_events(self.descriptor)
        found = []
        while self._found:
            found.append(self._found.popleft())
        return found


def _start(function, *arguments):
    """Call a function of the module rbd. Raises OSError if it fails."""
    try:
        function(*arguments)
    except Exception as e:
        raise OSError(abs(getattr(e, 'errno', 0) or errno.EIO), str(e))
