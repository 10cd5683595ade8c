"""What Linux has and Python has not: fallocate, copy_file_range, the ioctls of block devices,
/sys/dev/block.

Imports base only. Every function raises OSError.
"""

import array
import ctypes
import errno
import fcntl
import os
import struct

# fallocate(2) modes
KEEP_SIZE = 0x01
PUNCH_HOLE = 0x02
ZERO_RANGE = 0x10

# ioctls of <linux/fs.h>
BLKROGET = 0x125E
BLKSSZGET = 0x1268
BLKDISCARD = 0x1277
BLKIOMIN = 0x1278
BLKIOOPT = 0x1279
BLKALIGNOFF = 0x127A
BLKPBSZGET = 0x127B
BLKZEROOUT = 0x127F
BLKGETSIZE64 = 0x80081272 if struct.calcsize('P') == 8 else 0x80041272  # _IOR(0x12, 114, size_t)

#: What fallocate and ioctl answer where the kernel, the file system or the device cannot do what
#: was asked.
UNSUPPORTED = frozenset(
    [errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.ENODEV, errno.EINVAL, errno.EREMOTEIO]
)

_RANGE = struct.Struct('=QQ')
_library = ctypes.CDLL(None, use_errno=True)


def _function(names, result, *arguments):
    for name in names:
        function = getattr(_library, name, None)
        if function is not None:
            function.restype = result
            function.argtypes = arguments
            return function
    return None


_fallocate = _function(
    ['fallocate64', 'fallocate'],
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
    ctypes.c_int64,
)
_copy_file_range = _function(
    ['copy_file_range'],
    ctypes.c_ssize_t,
    ctypes.c_int,
    ctypes.POINTER(ctypes.c_int64),
    ctypes.c_int,
    ctypes.POINTER(ctypes.c_int64),
    ctypes.c_size_t,
    ctypes.c_uint,
)


def _called(function, *arguments):
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    while True:
        result = function(*arguments)
        if result >= 0:
            return result
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def fallocate(descriptor, mode, offset, length):
    """fallocate(2); on a block device PUNCH_HOLE and ZERO_RANGE make zeroes or fail (Linux 4.9)."""
    _called(_fallocate, descriptor, mode, offset, length)


def copy_file_range(source, destination, count, source_offset, offset):
    """copy_file_range(2): bytes copied, 0 at the end of the source. ENOSYS, EXDEV, EINVAL where it
    cannot."""
    return _called(
        _copy_file_range,
        source,
        ctypes.byref(ctypes.c_int64(source_offset)),
        destination,
        ctypes.byref(ctypes.c_int64(offset)),
        count,
        0,
    )


def _number(descriptor, request, code):
    answer = array.array(code, [0])
    fcntl.ioctl(descriptor, request, answer, True)
    return answer[0]


def device_size(descriptor):
    """Bytes of a block device."""
    return _number(descriptor, BLKGETSIZE64, 'Q')


def device_is_read_only(descriptor):
    """True if the kernel refuses writes to this block device."""
    return bool(_number(descriptor, BLKROGET, 'i'))


def device_geometry(descriptor):
    """(logical block size, physical block size, alignment offset, minimum I/O, optimal I/O), bytes."""
    return (
        _number(descriptor, BLKSSZGET, 'i'),
        _number(descriptor, BLKPBSZGET, 'I'),
        max(0, _number(descriptor, BLKALIGNOFF, 'i')),
        _number(descriptor, BLKIOMIN, 'I'),
        _number(descriptor, BLKIOOPT, 'I'),
    )


def discard(descriptor, offset, length):
    """BLKDISCARD: the device may forget these bytes; what they read as afterwards is up to it."""
    fcntl.ioctl(descriptor, BLKDISCARD, _RANGE.pack(offset, length))


def zero_out(descriptor, offset, length):
    """BLKZEROOUT: zeroes, written by the device if it can and by the kernel if not; space stays
    reserved."""
    fcntl.ioctl(descriptor, BLKZEROOUT, _RANGE.pack(offset, length))


class Queue(object):
    """What /sys says about a block device (st_rdev) or the disk below it, if it is a partition.
    Answers 0 or '' if nothing."""

    def __init__(self, device, root='/sys/dev/block'):
        self.directory = os.path.realpath('%s/%d:%d' % (root, os.major(device), os.minor(device)))
        self.disk = self.directory
        if not os.path.isdir(os.path.join(self.directory, 'queue')):
            self.disk = os.path.dirname(self.directory)

    def text(self, *path):
        """The one line of a file below the disk's directory."""
        return self._text(os.path.join(self.disk, *path))

    @staticmethod
    def _text(path):
        try:
            with open(path) as f:
                return f.read().strip()
        except (OSError, UnicodeDecodeError):
            return ''

    def number(self, name):
        """queue/NAME as int, 0 if there is none."""
        text = self.text('queue', name)
        return int(text) if text.isdigit() else 0

    def rotational(self):
        """True, False, or None where the kernel does not say."""
        return {'0': False, '1': True}.get(self.text('queue', 'rotational'))

    def discard_alignment(self):
        """Bytes from the start of this device or partition to its first granule."""
        text = self._text(os.path.join(self.directory, 'discard_alignment'))
        return int(text) if text.isdigit() else 0

    def zeroes_by_unmapping(self):
        """True if the device makes zeroes itself and gives the space back in doing so.

        A SCSI disk whose way of zeroing is a plain WRITE SAME would write all of it: not an unmap.
        """
        if not self.number('discard_max_bytes') or not self.number('write_zeroes_max_bytes'):
            return False
        mode = self.zeroing_mode()
        return not mode or mode.endswith('_unmap')

    def zeroing_mode(self):
        """What a SCSI disk does to make zeroes ('writesame_16_unmap', 'write', …); '' for other
        devices."""
        directory = os.path.join(self.disk, 'device', 'scsi_disk')
        try:
            names = os.listdir(directory)
        except OSError:
            return ''
        return self._text(os.path.join(directory, names[0], 'zeroing_mode')) if names else ''
