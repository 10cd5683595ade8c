"""Every difference between Python 3.6 and 3.13, and between old and new kernels, that the rest of
targetd would notice.

May be imported by anyone; version checks stand here and nowhere else.
"""

import ctypes
import errno
import fcntl
import gc
import os
import struct
import sys
import tempfile

assert sys.version_info >= (3, 6), 'targetd needs Python 3.6 or newer'


def freeze_collector():
    """Keep what was loaded before a fork out of the collector's sight, so that its pages stay
    shared (gc.freeze, 3.7)."""
    gc.collect()
    if hasattr(gc, 'freeze'):
        gc.freeze()


# -- reading and writing at an offset (store/) -------------------------------------------------------------------------

RWF_DSYNC = 0x2  # Linux 4.7: this write is durable when the call returns
RWF_NOWAIT = 0x8  # Linux 4.14: fail with EAGAIN where the call would wait for a disk


def _ctypes_transfer(name):
    """preadv2 or pwritev2 of the C library as f(fd, [one buffer], offset, flags=0) -> bytes moved;
    None where it has neither.

    For Python 3.6, and for interpreters built against a C library older than glibc 2.26. Slower
    than os.preadv, and still many times cheaper than handing the command to another thread.
    """
    library = ctypes.CDLL(None, use_errno=True)
    call = getattr(library, name + '64v2', None) or getattr(library, name + '2', None)
    if call is None:
        return None
    off_t = ctypes.c_int64 if hasattr(library, name + '64v2') else ctypes.c_long

    class Vector(ctypes.Structure):
        _fields_ = [('base', ctypes.c_void_p), ('length', ctypes.c_size_t)]

    call.restype = ctypes.c_ssize_t
    call.argtypes = [ctypes.c_int, ctypes.POINTER(Vector), ctypes.c_int, off_t, ctypes.c_int]
    address_of, char = ctypes.addressof, ctypes.c_char

    def transfer(descriptor, buffers, offset, flags=0):
        view = memoryview(buffers[0])
        if not view.nbytes:
            return 0
        if view.readonly:
            data = view.tobytes()
            base = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value
        else:
            data = char.from_buffer(view)
            base = address_of(data)
        vector = Vector(base, view.nbytes)
        while True:
            moved = call(descriptor, vector, 1, offset, flags)
            if moved >= 0:
                return moved
            number = ctypes.get_errno()
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number))

    return transfer


def _transfer(name):
    """os.preadv or os.pwritev where flags work (Python 3.7 built against glibc 2.26), else by
    ctypes, else None."""
    if hasattr(os, name) and hasattr(os, 'RWF_NOWAIT') and hasattr(os, 'RWF_DSYNC'):
        return getattr(os, name)
    return _ctypes_transfer(name)


#: preadv(descriptor, [buffer], offset, flags=0) -> bytes read, with ONE buffer; None where this
#: host cannot.
preadv = _transfer('preadv')
#: pwritev(descriptor, [buffer], offset, flags=0) -> bytes written, with ONE buffer; None where this
#: host cannot.
pwritev = _transfer('pwritev')


def memory_file(name, size):
    """A descriptor of `size` bytes of memory, all zeroes, that can be passed to other processes.
    Raises OSError.

    os.memfd_create is Python 3.8 and Linux 3.17; else an unlinked file in /dev/shm, or in the
    directory for temporary files.
    """
    if hasattr(os, 'memfd_create'):
        try:
            descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
        except OSError as e:
            if e.errno != errno.ENOSYS:
                raise
        else:
            return _sized(descriptor, size)
    directory = '/dev/shm' if os.access('/dev/shm', os.W_OK) else tempfile.gettempdir()
    descriptor, path = tempfile.mkstemp(prefix='targetd-', dir=directory)
    os.unlink(path)
    return _sized(descriptor, size)


def _sized(descriptor, size):
    try:
        os.ftruncate(descriptor, size)
    except Exception:
        os.close(descriptor)
        raise
    return descriptor


def _raw_buffer():
    try:
        make = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_char_p, ctypes.c_ssize_t)(
            ('PyByteArray_FromStringAndSize', ctypes.pythonapi)
        )
    except AttributeError:
        return bytearray
    return lambda length: make(None, length)


#: raw_buffer(length) -> a bytearray with anything in it. Quicker than bytearray(length) from 48 KiB
#: on, where zeroing is what costs: for 1 MiB 1 us and not 24. Whoever takes one must fill all of it
#: before showing it to anybody.
raw_buffer = _raw_buffer()


# -- locks of open file descriptions (store/range_locks.py) ----------------------------------------

F_OFD_GETLK, F_OFD_SETLK = 36, 37  # Linux 3.15; in fcntl from Python 3.9 on
# type, whence, start, length, process: always 0 with these locks
_FLOCK = struct.Struct('@hhqqi4x')


def _flock(kind, start, length):
    return _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)


def try_lock(descriptor, is_exclusive, start, length):
    """Lock bytes for this open file description, which is who owns them, however many processes
    have it: True, or False if another has them. Waits never. Raises OSError: EINVAL where the
    kernel has no such locks."""
    try:
        fcntl.fcntl(
            descriptor,
            F_OFD_SETLK,
            _flock(fcntl.F_WRLCK if is_exclusive else fcntl.F_RDLCK, start, length),
        )
    except OSError as e:
        if e.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def is_locked(descriptor, start, length):
    """True if another open file description has an exclusive lock there. Raises OSError."""
    found = fcntl.fcntl(descriptor, F_OFD_GETLK, _flock(fcntl.F_RDLCK, start, length))
    return _FLOCK.unpack(found)[0] != fcntl.F_UNLCK


def unlock(descriptor):
    """Give up every lock of this open file description. Raises OSError."""
    fcntl.fcntl(descriptor, F_OFD_SETLK, _flock(fcntl.F_UNLCK, 0, 0))
