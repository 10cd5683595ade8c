"""Substitutes of the tests for an image of the module rbd, and for the C functions of librbd."""

import ctypes
import threading

from targetd.ceph.poll_operations import add_event

SIZE = 1 << 20


class Completion(object):
    def __init__(self, number):
        self.number = number

    def get_return_value(self):
        return self.number


class Image(object):
    """Like rbd.Image: completes each operation from another thread; hold: operations wait for it; error: the
    errno with which they fail; refuses: the errno with which they are not taken."""

    def __init__(self):
        self.content = bytearray(SIZE)
        self.hold = threading.Event()
        self.hold.set()
        self.error = self.refuses = 0
        self.began = []

    def size(self):
        return len(self.content)

    def features(self):
        return 3

    def later(self, name, call):
        """Begin an operation, which calls the function at its end."""
        if self.refuses:
            raise OSError(self.refuses, 'not taken')
        self.began.append(name)

        def run():
            self.hold.wait(20)
            call()

        threading.Thread(target=run, daemon=True).start()

    def _later(self, name, call, *result):
        self.later(name, lambda: call(Completion(-self.error), *result))

    def aio_read(self, offset, length, call):
        content = None if self.error else bytes(self.content[offset : offset + length])
        self._later('read', call, content)

    def aio_write(self, data, offset, call):
        self._later('write', call)
        self.content[offset : offset + len(data)] = data

    def aio_flush(self, call):
        self._later('flush', call)

    def aio_discard(self, offset, length, call):
        self._later('discard', call)

    def aio_write_zeroes(self, offset, length, call, flags):
        self._later('zeroes %d' % flags, call)
        self.content[offset : offset + length] = bytes(length)

    def diff_iterate(self, offset, length, _, call, parent, whole):
        call(65536, 65536, True)  # a whole object, wherever the range begins


class CFunctions(object):
    """Like librbd by ctypes, for an Image, which is its own handle. short: bytes that a READ returns less;
    flying: completions that were not released."""

    def __init__(self):
        self.flying = {}  # completion -> number, or None
        self.short = 0
        self._queue = []
        self._lock = threading.Lock()
        self._last = 0
        self._notify = None

    def rbd_set_image_notification(self, image, descriptor, kind):
        assert kind == 2
        self._notify = descriptor
        return 0

    def rbd_aio_create_completion(self, argument, call, place):
        self._last += 1
        self.flying[self._last] = None
        place._obj.value = self._last
        return 0

    def rbd_aio_get_return_value(self, completion):
        return self.flying[completion]

    def rbd_aio_release(self, completion):
        del self.flying[completion]

    def rbd_poll_io_events(self, image, places, room):
        with self._lock:
            found, self._queue = self._queue[:room], self._queue[room:]
        for at, completion in enumerate(found):
            places[at] = completion
        return len(found)

    def _later(self, image, name, completion, call=lambda: 0):
        def ends():
            self.flying[completion] = -image.error or call()
            with self._lock:
                self._queue.append(completion)
            add_event(self._notify)

        try:
            image.later(name, ends)
        except OSError as e:
            return -e.errno
        return 0

    def rbd_aio_read(self, image, offset, length, address, completion):
        def read():
            data = bytes(image.content[offset : offset + length])
            ctypes.memmove(address, data, length - self.short)
            return length - self.short

        return self._later(image, 'read', completion, read)

    def rbd_aio_write(self, image, offset, length, address, completion):
        def write():  # as librbd may do it without a copy: the buffer is read late
            image.content[offset : offset + length] = ctypes.string_at(address, length)
            return 0

        return self._later(image, 'write', completion, write)

    def rbd_aio_flush(self, image, completion):
        return self._later(image, 'flush', completion)

    def rbd_aio_discard(self, image, offset, length, completion):
        return self._later(image, 'discard', completion)

    def rbd_aio_write_zeroes(self, image, offset, length, completion, flags, more):
        def clear():
            image.content[offset : offset + length] = bytes(length)
            return 0

        return self._later(image, 'zeroes %d' % flags, completion, clear)


class Library(object):
    """Like the module rbd."""

    RBD_FEATURE_FAST_DIFF, RBD_FEATURE_OBJECT_MAP = 1, 2
    RBD_WRITE_ZEROES_FLAG_THICK_PROVISION = 1
    Error = OSError


class Opened(object):
    """Like rbd_image.OpenImage."""

    def __init__(self, image, read_only=False):
        self.image = image
        self.read_only = read_only
        self.wanted = {'is_plan': False}
        self.is_closed = False

    def is_holder(self):
        return True

    def close(self):
        self.is_closed = True
