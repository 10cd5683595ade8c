"""A cluster, a pool and an image by the C functions of librados and librbd (c_library), like the classes
Rados, Ioctx and Image of the modules rados and rbd as far as rbd_image uses them.

The image that an operation of poll_operations uses must be open in this way: the modules do not show the
handle of theirs, and the lock of an image belongs to one handle. What fails raises the exceptions of the
modules, with the positive errno.
"""

import ctypes
import errno
import threading
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint64, c_void_p

from targetd.ceph import c_library

_FIRST_ROOM = 64  # elements of a list; the library says how many it needs
_VALUE_BYTES = 4096


class Library(object):
    """rados, rbd: the modules, whose exceptions are raised. Raises c_library.Missing."""

    def __init__(self, rados, rbd):
        self.rados = c_library.load(c_library.LIBRADOS, c_library.RADOS)
        self.rbd = c_library.load(c_library.LIBRBD, c_library.RBD)
        self._cluster_errors = {
            errno.ENOENT: rados.ObjectNotFound,
            errno.EPERM: rados.PermissionError,
            errno.EACCES: rados.PermissionError,
            errno.ETIMEDOUT: rados.TimedOut,
        }
        self._image_errors = {
            errno.ENOENT: rbd.ImageNotFound,
            errno.EPERM: rbd.PermissionError,
            errno.EROFS: rbd.ReadOnlyImage,
        }
        self._others = rados.OSError, rbd.OSError

    def make_cluster(self, rados_id, conffile, conf):
        """Like rados.Rados()."""
        return Cluster(self, rados_id, conffile, conf)

    def make_image(self, pool, name, read_only=False):
        """Like rbd.Image()."""
        return Image(self, pool, name, read_only)

    def check_cluster(self, number, what):
        """Raises an exception of the module rados for a negative number."""
        if number < 0:
            raise self._cluster_errors.get(-number, self._others[0])(what, errno=-number)

    def check_image(self, number, what):
        """Raises an exception of the module rbd for a negative number."""
        if number < 0:
            raise self._image_errors.get(-number, self._others[1])(what, errno=-number)


class Cluster(object):
    """rados_id: name of the user without `client.`; conffile: path; conf: {option: value}."""

    def __init__(self, library, rados_id, conffile, conf):
        self._library = library
        self._c = library.rados
        self.rados_id = rados_id
        handle = c_void_p()
        name = ('client.' + rados_id).encode()
        number = self._c.rados_create2(byref(handle), None, name, 0)
        library.check_cluster(number, 'error making a client')
        self._handle = handle.value
        number = self._c.rados_conf_read_file(self._handle, conffile.encode())
        library.check_cluster(number, 'error reading %s' % conffile)
        for key, value in conf.items():
            number = self._c.rados_conf_set(self._handle, key.encode(), value.encode())
            library.check_cluster(number, 'error setting %s' % key)

    def connect(self):
        self._library.check_cluster(self._c.rados_connect(self._handle), 'error connecting')

    def shutdown(self):
        self._c.rados_shutdown(self._handle)

    def get_addrs(self):
        text = c_void_p()
        number = self._c.rados_getaddrs(self._handle, byref(text))
        self._library.check_cluster(number, 'error asking for the own address')
        found = ctypes.string_at(text.value).decode()
        self._c.rados_buffer_free(text)
        return found

    def wait_for_latest_osdmap(self):
        number = self._c.rados_wait_for_latest_osdmap(self._handle)
        self._library.check_cluster(number, 'error waiting for the map')

    def mon_command(self, command, data):
        """Returns (number, output, text); the number is negative if it failed."""
        words = (c_char_p * 1)(command.encode())
        output, text = c_void_p(), c_void_p()
        sizes = c_size_t(), c_size_t()
        number = self._c.rados_mon_command(
            self._handle, words, 1, data, len(data),
            byref(output), byref(sizes[0]), byref(text), byref(sizes[1]),
        )  # fmt: skip
        found = []
        for place, size in zip((output, text), sizes):
            found.append(ctypes.string_at(place.value, size.value) if place.value else b'')
            if place.value:
                self._c.rados_buffer_free(place)
        return number, found[0], found[1].decode('utf-8', 'replace')

    def open_ioctx(self, name):
        handle = c_void_p()
        number = self._c.rados_ioctx_create(self._handle, name.encode(), byref(handle))
        self._library.check_cluster(number, 'error opening the pool %s' % name)
        return Pool(self._c, handle.value)


class Pool(object):
    """handle: of an open pool (rados_ioctx_t)."""

    def __init__(self, functions, handle):
        self._c = functions
        self.handle = handle

    def set_namespace(self, name):
        self._c.rados_ioctx_set_namespace(self.handle, name.encode())

    def set_pool_full_try(self):
        self._c.rados_set_pool_full_try(self.handle)

    def close(self):
        self._c.rados_ioctx_destroy(self.handle)


class Image(object):
    """Opens an image. Threads may call every function at the same time; close() waits for those that run.
    Raises exceptions of the module rbd, also if it is closed."""

    def __init__(self, library, pool, name, read_only):
        self._library = library
        self._c = library.rbd
        self._free = threading.Condition()
        self._callers = 0
        handle = c_void_p()
        open_it = self._c.rbd_open_read_only if read_only else self._c.rbd_open
        number = open_it(pool.handle, name.encode(), byref(handle), None)
        library.check_image(number, 'error opening the image %s' % name)
        self.handle = handle.value

    def _call(self, function, *arguments):
        """Call a function of the library for the image; returns its number."""
        with self._free:
            if self.handle is None:
                self._library.check_image(-errno.EBADF, 'the image is closed')
            handle, self._callers = self.handle, self._callers + 1
        try:
            return function(handle, *arguments)
        finally:
            with self._free:
                self._callers -= 1
                self._free.notify_all()

    def _check(self, function, *arguments):
        number = self._call(function, *arguments)
        self._library.check_image(number, 'error in ' + function.__name__)
        return number

    def _listed(self, function, cleanup, kind, count):
        """Call a function that fills an array, whose length is a number of the type `count`; returns the
        elements that cleanup() frees, made by kind.convert."""
        room = _FIRST_ROOM
        while True:
            array, size = (kind * room)(), count(room)
            number = self._call(function, array, byref(size))
            if number != -errno.ERANGE:
                break
            room = max(2 * room, size.value)
        self._library.check_image(number, 'error in ' + function.__name__)
        return array, size.value, cleanup

    def close(self):
        """Raises an exception if the image could not be closed in order."""
        with self._free:
            handle, self.handle = self.handle, None
            while self._callers:
                self._free.wait()
        if handle is not None:
            self._library.check_image(self._c.rbd_close(handle), 'error closing the image')

    def size(self):
        found = c_uint64()
        self._check(self._c.rbd_get_size, byref(found))
        return found.value

    def features(self):
        found = c_uint64()
        self._check(self._c.rbd_get_features, byref(found))
        return found.value

    def set_snap(self, name):
        self._check(self._c.rbd_snap_set, name.encode())

    def config_list(self):
        """Returns [{name, value}]."""
        array, count, cleanup = self._listed(
            self._c.rbd_config_image_list,
            self._c.rbd_config_image_list_cleanup,
            c_library.ConfigOption,
            c_int,
        )
        found = [
            {'name': each.name.decode(), 'value': each.value.decode()} for each in array[:count]
        ]
        cleanup(array, count)
        return found

    def watchers_list(self):
        """Returns [{addr}]."""
        array, count, cleanup = self._listed(
            self._c.rbd_watchers_list,
            self._c.rbd_watchers_list_cleanup,
            c_library.Watcher,
            c_size_t,
        )
        found = [{'addr': each.addr.decode()} for each in array[:count]]
        cleanup(array, count)
        return found

    def lock_get_owners(self):
        """Returns [{owner}]."""
        mode, count = c_int(), c_size_t(_FIRST_ROOM)
        array = (c_char_p * _FIRST_ROOM)()  # an image has one owner, or shared ones
        number = self._call(self._c.rbd_lock_get_owners, byref(mode), array, byref(count))
        if number == -errno.ENOENT:
            return []
        self._library.check_image(number, 'error listing the owners of the lock')
        found = [{'owner': each.decode()} for each in array[: count.value]]
        self._c.rbd_lock_get_owners_cleanup(array, count.value)
        return found

    def lock_break(self, mode, owner):
        self._check(self._c.rbd_lock_break, mode, owner.encode())

    def lock_acquire(self, mode):
        self._check(self._c.rbd_lock_acquire, mode)

    def metadata_get(self, key):
        """Returns the value. Raises KeyError."""
        size = c_size_t(_VALUE_BYTES)
        while True:
            value = ctypes.create_string_buffer(size.value)
            number = self._call(self._c.rbd_metadata_get, key.encode(), value, byref(size))
            if number != -errno.ERANGE:
                break
        if number == -errno.ENOENT:
            raise KeyError(key)
        self._library.check_image(number, 'error reading metadata')
        return value.value.decode()

    def metadata_set(self, key, value):
        self._check(self._c.rbd_metadata_set, key.encode(), value.encode())

    def diff_iterate(self, offset, length, start, call, include_parent, whole_object):
        """As of rbd.Image; start: must be None. call(offset, length, exists) must not fail."""

        def each(at, size, exists, _):
            call(at, size, bool(exists))
            return 0

        function = c_library.DIFFERENCE(each)
        self._check(
            self._c.rbd_diff_iterate2,
            start,
            offset,
            length,
            include_parent,
            whole_object,
            function,
            None,
        )
