"""The differences between Python 3.6 and 3.13, and between old and new kernels, that affect targetd.

Base: any module may import it. Version checks are in this module only.
"""

import ctypes
import errno
import fcntl
import gc
import os
import re
import struct
import sys
import tempfile

assert sys.version_info >= (3, 6), 'targetd needs Python 3.6 or newer'


def freeze_collector():
    """Exclude all existing objects from garbage collection before a fork, so that their memory pages
    stay shared (gc.freeze, Python 3.7)."""
    gc.collect()
    if hasattr(gc, 'freeze'):
        gc.freeze()


# -- reading and writing at an offset (store/) -----------------------------------------------------

RWF_NOWAIT = 0x8  # Linux 4.14: fail with EAGAIN if the call would wait for a disk


def _ctypes_preadv():
    """Return preadv2 of the C library as f(fd, [one buffer], offset, flags=0) -> bytes read, or None if
    the library does not have it.

    Used with Python 3.6, and with interpreters that were built against a C library older than glibc
    2.26. Slower than os.preadv, but much faster than handing the command to another thread.
    """
    library = ctypes.CDLL(None, use_errno=True)
    call = getattr(library, 'preadv64v2', None) or getattr(library, 'preadv2', None)
    if call is None:
        return None
    off_t = ctypes.c_int64 if hasattr(library, 'preadv64v2') else ctypes.c_long

    class Vector(ctypes.Structure):
        _fields_ = [('base', ctypes.c_void_p), ('length', ctypes.c_size_t)]

    call.restype = ctypes.c_ssize_t
    call.argtypes = [ctypes.c_int, ctypes.POINTER(Vector), ctypes.c_int, off_t, ctypes.c_int]
    address_of, char = ctypes.addressof, ctypes.c_char

    def read(descriptor, buffers, offset, flags=0):
        view = memoryview(buffers[0])
        if not view.nbytes:
            return 0
        data = char.from_buffer(view)
        vector = Vector(address_of(data), view.nbytes)
        while True:
            count = call(descriptor, vector, 1, offset, flags)
            if count >= 0:
                return count
            number = ctypes.get_errno()
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number))

    return read


def _preadv():
    """Return os.preadv if it supports flags (Python 3.7 built against glibc 2.26), else the C library's
    function by ctypes, else None."""
    if hasattr(os, 'preadv') and hasattr(os, 'RWF_NOWAIT'):
        return os.preadv
    return _ctypes_preadv()


#: preadv(descriptor, [buffer], offset, flags=0) -> bytes read, with ONE buffer; None if this host does
#: not support it.
preadv = _preadv()


# -- errors of writing back (store/failure_flags.py) -----------------------------------------------


def kernel_version(release):
    """Return the (major, minor) of a kernel release such as '5.10.0-28-amd64'."""
    numbers = re.match(r'(\d+)\.(\d+)', release)
    return (int(numbers.group(1)), int(numbers.group(2))) if numbers else (0, 0)


#: Linux 4.13 reports a failed write-back once to each open file description; older kernels report it
#: once for each file, to the first caller of fsync.
HAS_ERROR_PER_DESCRIPTION = kernel_version(os.uname().release) >= (4, 13)


def memory_file(name, size):
    """Return a descriptor of `size` bytes of zeroed memory that can be passed to other processes.
    Raises OSError.

    Uses os.memfd_create (Python 3.8, Linux 3.17), otherwise an unlinked file in /dev/shm or in the
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


#: raw_buffer(length) -> a bytearray with undefined contents. Faster than bytearray(length) from 48 KiB
#: on, because nothing is zeroed: 1 us instead of 24 us for 1 MiB. The caller must fill all of it
#: before it uses or sends the contents.
raw_buffer = _raw_buffer()


# -- locks of open file descriptions (store/range_locks.py) ----------------------------------------

F_OFD_GETLK, F_OFD_SETLK = 36, 37  # Linux 3.15; in fcntl from Python 3.9 on
# type, whence, start, length, process: always 0 with these locks
_FLOCK = struct.Struct('@hhqqi4x')


def _flock(kind, start, length):
    return _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)


def try_lock(descriptor, is_exclusive, start, length):
    """Lock bytes for this open file description, which owns the lock whatever processes share it.
    Returns False if another open file description has a conflicting lock; never blocks. start,
    length: bytes. Raises OSError: EINVAL if the kernel does not support these locks."""
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
    """Return True if another open file description has an exclusive lock on these bytes. Raises
    OSError."""
    found = fcntl.fcntl(descriptor, F_OFD_GETLK, _flock(fcntl.F_RDLCK, start, length))
    return _FLOCK.unpack(found)[0] != fcntl.F_UNLCK


def unlock(descriptor):
    """Release every lock of this open file description. Raises OSError."""
    fcntl.fcntl(descriptor, F_OFD_SETLK, _flock(fcntl.F_UNLCK, 0, 0))
