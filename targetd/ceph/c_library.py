"""The functions of librados and librbd that are called without the modules of the distribution, and their
types (librados.h, librbd.h): {name: (type of the result, types of the arguments)}.

The interface that polls for the ends of operations is only here: the module rbd calls a Python function for
each of them, from threads of librbd, which costs more processor time than the operation.
"""

import ctypes
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_ssize_t, c_uint8, c_uint64, c_void_p

LIBRADOS, LIBRBD = 'librados.so.2', 'librbd.so.1'


class Missing(Exception):
    """A library, or a function of it, is not there; the message names it."""


class Watcher(ctypes.Structure):
    """rbd_image_watcher_t"""

    _fields_ = [('addr', c_char_p), ('id', ctypes.c_int64), ('cookie', c_uint64)]


class ConfigOption(ctypes.Structure):
    """rbd_config_option_t"""

    _fields_ = [('name', c_char_p), ('value', c_char_p), ('source', c_int)]


#: A function that rbd_diff_iterate2 calls with offset, length, 1 if there is data, and a pointer.
DIFFERENCE = ctypes.CFUNCTYPE(c_int, c_uint64, c_size_t, c_int, c_void_p)

_SIZE_AT = POINTER(c_size_t)
_POINTER_AT = POINTER(c_void_p)

RADOS = {
    'rados_create2': (c_int, (_POINTER_AT, c_char_p, c_char_p, c_uint64)),
    'rados_conf_read_file': (c_int, (c_void_p, c_char_p)),
    'rados_conf_set': (c_int, (c_void_p, c_char_p, c_char_p)),
    'rados_connect': (c_int, (c_void_p,)),
    'rados_shutdown': (None, (c_void_p,)),
    'rados_getaddrs': (c_int, (c_void_p, _POINTER_AT)),
    'rados_wait_for_latest_osdmap': (c_int, (c_void_p,)),
    'rados_mon_command': (
        c_int,
        (c_void_p, POINTER(c_char_p), c_size_t, c_char_p, c_size_t)
        + (_POINTER_AT, _SIZE_AT) * 2,
    ),
    'rados_buffer_free': (None, (c_void_p,)),
    'rados_ioctx_create': (c_int, (c_void_p, c_char_p, _POINTER_AT)),
    'rados_ioctx_destroy': (None, (c_void_p,)),
    'rados_ioctx_set_namespace': (None, (c_void_p, c_char_p)),
    'rados_set_pool_full_try': (None, (c_void_p,)),
}  # fmt: skip

RBD = {
    'rbd_open': (c_int, (c_void_p, c_char_p, _POINTER_AT, c_char_p)),
    'rbd_open_read_only': (c_int, (c_void_p, c_char_p, _POINTER_AT, c_char_p)),
    'rbd_close': (c_int, (c_void_p,)),
    'rbd_get_size': (c_int, (c_void_p, POINTER(c_uint64))),
    'rbd_get_features': (c_int, (c_void_p, POINTER(c_uint64))),
    'rbd_snap_set': (c_int, (c_void_p, c_char_p)),
    'rbd_config_image_list': (c_int, (c_void_p, POINTER(ConfigOption), POINTER(c_int))),
    'rbd_config_image_list_cleanup': (None, (POINTER(ConfigOption), c_int)),
    'rbd_watchers_list': (c_int, (c_void_p, POINTER(Watcher), _SIZE_AT)),
    'rbd_watchers_list_cleanup': (None, (POINTER(Watcher), c_size_t)),
    'rbd_lock_get_owners': (c_int, (c_void_p, POINTER(c_int), POINTER(c_char_p), _SIZE_AT)),
    'rbd_lock_get_owners_cleanup': (None, (POINTER(c_char_p), c_size_t)),
    'rbd_lock_break': (c_int, (c_void_p, c_int, c_char_p)),
    'rbd_lock_acquire': (c_int, (c_void_p, c_int)),
    'rbd_metadata_get': (c_int, (c_void_p, c_char_p, c_char_p, _SIZE_AT)),
    'rbd_metadata_set': (c_int, (c_void_p, c_char_p, c_char_p)),
    'rbd_diff_iterate2': (
        c_int,
        (c_void_p, c_char_p, c_uint64, c_uint64, c_uint8, c_uint8, DIFFERENCE, c_void_p),
    ),
    'rbd_set_image_notification': (c_int, (c_void_p, c_int, c_int)),
    'rbd_poll_io_events': (c_int, (c_void_p, _POINTER_AT, c_int)),
    'rbd_aio_create_completion': (c_int, (c_void_p, c_void_p, _POINTER_AT)),
    'rbd_aio_get_return_value': (c_ssize_t, (c_void_p,)),
    'rbd_aio_release': (None, (c_void_p,)),
    'rbd_aio_read': (c_int, (c_void_p, c_uint64, c_size_t, c_void_p, c_void_p)),
    'rbd_aio_write': (c_int, (c_void_p, c_uint64, c_size_t, c_void_p, c_void_p)),
    'rbd_aio_flush': (c_int, (c_void_p, c_void_p)),
    'rbd_aio_discard': (c_int, (c_void_p, c_uint64, c_uint64, c_void_p)),
    'rbd_aio_write_zeroes': (c_int, (c_void_p, c_uint64, c_size_t, c_void_p, c_int, c_int)),
}


def load(name, table):
    """Returns the library of this file name, whose functions of a table have their types. Raises Missing."""
    try:
        library = ctypes.CDLL(name)
    except OSError as e:
        raise Missing(str(e))
    for function, (result, arguments) in table.items():
        try:
            found = getattr(library, function)
        except AttributeError:
            raise Missing('%s has no function %s' % (name, function))
        found.restype, found.argtypes = result, arguments
    return library
