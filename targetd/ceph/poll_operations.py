"""The asynchronous operations of an image, whose ends are polled for: librbd puts them into a queue and adds
1 to an event counter (eventfd), so that one thread waits for all of them and for sockets, and handles many at
once.

     read(request, …) --librbd's threads--> its queue, event counter --ended()--> [(request, number)]

Everything is used by one thread, but for wake(). A buffer must live and stay as it is until its operation has
ended.
"""

import ctypes
import os
import struct
from ctypes import byref, c_void_p

_EVENT_TYPE_EVENTFD = 2  # librbd.h
_EFD_NONBLOCK, _EFD_CLOEXEC = 0o4000, 0o2000000
_ONE = struct.pack('=Q', 1)
_BATCH = 128  # ends that are taken from the queue at once


def event_counter():
    """Returns the descriptor of a new event counter (eventfd). Raises OSError."""
    descriptor = ctypes.CDLL(None, use_errno=True).eventfd(0, _EFD_NONBLOCK | _EFD_CLOEXEC)
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return descriptor


def add_event(descriptor):
    """[any] Make the descriptor of an event counter readable."""
    os.write(descriptor, _ONE)


def clear_events(descriptor):
    """The descriptor is not readable until the next event."""
    try:
        os.read(descriptor, 8)
    except BlockingIOError:
        pass


class Operations(object):
    """library: the functions of c_library.RBD; image: the handle of an open image. Raises OSError."""

    writes_zeroes = True

    def __init__(self, library, image):
        self._image = image
        self._c = library
        self._flying = {}  # completion -> request
        self._place = c_void_p()
        self._place_at = byref(self._place)
        self._ended = (c_void_p * _BATCH)()
        #: Readable when operations may have ended, or after wake().
        self.descriptor = event_counter()
        number = library.rbd_set_image_notification(image, self.descriptor, _EVENT_TYPE_EVENTFD)
        if number < 0:
            os.close(self.descriptor)
            raise OSError(-number, 'librbd does not use an event counter')
        # what each READ calls
        self._create = library.rbd_aio_create_completion
        self._read = library.rbd_aio_read
        self._number_of = library.rbd_aio_get_return_value
        self._release = library.rbd_aio_release

    def wake(self):
        """[any] Make the descriptor readable."""
        add_event(self.descriptor)

    # -- starting; each raises OSError if the operation was not taken -------------------------------

    def read(self, request, offset, length, address):
        """Read bytes of the image to an address of this process."""
        self._create(None, None, self._place_at)
        completion = self._place.value
        number = self._read(self._image, offset, length, address, completion)
        if number < 0:
            self._refused(completion, number)
        self._flying[completion] = request

    def write(self, request, offset, length, address):
        """Write bytes from an address of this process."""
        completion = self._new()
        number = self._c.rbd_aio_write(self._image, offset, length, address, completion)
        self._keep(completion, request, number)

    def flush(self, request):
        """End when what has ended before is durable."""
        completion = self._new()
        self._keep(completion, request, self._c.rbd_aio_flush(self._image, completion))

    def discard(self, request, offset, length):
        """Free the whole blocks of a range."""
        completion = self._new()
        number = self._c.rbd_aio_discard(self._image, offset, length, completion)
        self._keep(completion, request, number)

    def write_zeroes(self, request, offset, length, flags):
        """flags: RBD_WRITE_ZEROES_FLAG_… of the module rbd."""
        completion = self._new()
        number = self._c.rbd_aio_write_zeroes(self._image, offset, length, completion, flags, 0)
        self._keep(completion, request, number)

    def _new(self):
        self._create(None, None, self._place_at)
        return self._place.value

    def _keep(self, completion, request, number):
        if number < 0:
            self._refused(completion, number)
        self._flying[completion] = request

    def _refused(self, completion, number):
        self._release(completion)
        raise OSError(-number, os.strerror(-number))

    # -- ends --------------------------------------------------------------------------------------

    def ended(self):
        """Returns [(request, its number)] of those that have ended since: negative errno, else for a READ
        the bytes that were read. Never waits."""
        clear_events(self.descriptor)  # first, so that what ends from here on is reported again
        found = []
        take, places = self._flying.pop, self._ended
        number_of, release = self._number_of, self._release
        while True:
            count = self._c.rbd_poll_io_events(self._image, places, _BATCH)
            if count < 0:
                raise OSError(-count, os.strerror(-count))
            for completion in places[:count]:
                found.append((take(completion), number_of(completion)))
                release(completion)
            if count < _BATCH:
                return found
