"""Linux interfaces that Python lacks: fallocate, copy_file_range, the ioctls of block devices,
/sys/dev/block.

Imports base only. Every function raises OSError.
"""

import array
import ctypes
import errno
import fcntl
import os
import struct
from typing import List, Tuple

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

#: Errors of fallocate and ioctl if the kernel, the file system or the device does not support the
#: operation.
UNSUPPORTED = frozenset(
    [errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.ENODEV, errno.EINVAL, errno.EREMOTEIO]
)


def reopen(descriptor: int, read_only: bool = False) -> int:
    """Returns a new open file description of the same file, with the same access mode (or for reading
    only) and O_DIRECT. It is no exclusive open of a device. Needs the permission to open the file."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    access = os.O_RDONLY if read_only else flags & os.O_ACCMODE
    return os.open(
        '/proc/self/fd/%d' % descriptor, access | flags & getattr(os, 'O_DIRECT', 0) | os.O_CLOEXEC
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


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """Call fallocate(2). On a block device PUNCH_HOLE and ZERO_RANGE write zeroes or fail (Linux
    4.9)."""
    _called(_fallocate, descriptor, mode, offset, length)


def copy_file_range(
    source: int, destination: int, count: int, source_offset: int, offset: int
) -> int:
    """Call copy_file_range(2). Returns the bytes copied, 0 at the end of the source. Raises ENOSYS,
    EXDEV or EINVAL if the copy is not supported."""
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


def device_size(descriptor: int) -> int:
    """Returns the size of a block device in bytes."""
    return _number(descriptor, BLKGETSIZE64, 'Q')


def device_is_read_only(descriptor: int) -> bool:
    """Returns True if the kernel refuses writes to this block device."""
    return bool(_number(descriptor, BLKROGET, 'i'))


def device_geometry(descriptor: int) -> Tuple[int, int, int, int, int]:
    """Returns (logical block size, physical block size, alignment offset, minimum I/O, optimal I/O)
    in bytes."""
    return (
        _number(descriptor, BLKSSZGET, 'i'),
        _number(descriptor, BLKPBSZGET, 'I'),
        max(0, _number(descriptor, BLKALIGNOFF, 'i')),
        _number(descriptor, BLKIOMIN, 'I'),
        _number(descriptor, BLKIOOPT, 'I'),
    )


def discard(descriptor: int, offset: int, length: int) -> None:
    """BLKDISCARD: the device may discard these bytes; the data of later reads is undefined."""
    fcntl.ioctl(descriptor, BLKDISCARD, _RANGE.pack(offset, length))


def zero_out(descriptor: int, offset: int, length: int) -> None:
    """BLKZEROOUT: the device writes zeroes, or else the kernel does; the space stays reserved."""
    fcntl.ioctl(descriptor, BLKZEROOUT, _RANGE.pack(offset, length))


# FIEMAP of <linux/fiemap.h>
_FIEMAP = 0xC020660B
_FIEMAP_HEAD, _FIEMAP_EXTENT = struct.Struct('=QQIIII'), struct.Struct('=QQQQQIIII')
_EXTENTS = 256  # of one call
EXTENT_LAST, EXTENT_UNWRITTEN, EXTENT_SHARED = 0x1, 0x800, 0x2000


def file_extents(descriptor: int, offset: int, length: int) -> List[Tuple[int, int, int]]:
    """FIEMAP: returns (offset, length, flags) of the first extents in this range; [] if there are
    none."""
    head = _FIEMAP_HEAD.pack(offset, length, 0, 0, _EXTENTS, 0)
    answer = bytearray(head + bytes(_EXTENTS * _FIEMAP_EXTENT.size))
    fcntl.ioctl(descriptor, _FIEMAP, answer, True)
    count = _FIEMAP_HEAD.unpack_from(answer)[3]
    found = []
    for n in range(count):
        row = _FIEMAP_EXTENT.unpack_from(answer, _FIEMAP_HEAD.size + n * _FIEMAP_EXTENT.size)
        found.append((row[0], row[2], row[5]))
    return found


#: Revolutions per minute that VPD page B1h can report; the values between 1 and these are reserved.
LOWEST_ROTATION_RATE, HIGHEST_ROTATION_RATE = 0x0401, 0xFFFE


class DeviceQueue(object):
    """What /sys reports about a block device (st_rdev), or about the disk that a partition is on.
    Missing values are 0 or ''."""

    def __init__(self, device: int, root: str = '/sys/dev/block') -> None:
        self.directory = os.path.realpath('%s/%d:%d' % (root, os.major(device), os.minor(device)))
        self.disk = self.directory
        if not os.path.isdir(os.path.join(self.directory, 'queue')):
            self.disk = os.path.dirname(self.directory)

    def text(self, *path: str) -> str:
        """Returns the one line of a file below the directory of the disk."""
        return self._text(os.path.join(self.disk, *path))

    @staticmethod
    def _text(path):
        try:
            with open(path) as f:
                return f.read().strip()
        except (OSError, UnicodeDecodeError):
            return ''

    def number(self, name: str) -> int:
        """Returns queue/NAME as an int, 0 if it does not exist."""
        text = self.text('queue', name)
        return int(text) if text.isdigit() else 0

    def rotation_rate(self) -> int:
        """Returns the MEDIUM ROTATION RATE of VPD page B1h (SBC-3): 1 for a medium that does not
        rotate, revolutions per minute if the disk reports them, 0 if unknown."""
        rotational = self.text('queue', 'rotational')
        if rotational == '0':
            return 1
        if rotational != '1':  # 1 is also the kernel's value for what it does not know
            return 0
        try:
            with open(os.path.join(self.disk, 'device', 'vpd_pgb1'), 'rb') as f:
                rate = int.from_bytes(f.read(6)[4:], 'big')
        except OSError:
            return 0
        return rate if LOWEST_ROTATION_RATE <= rate <= HIGHEST_ROTATION_RATE else 0

    def discard_alignment(self) -> int:
        """Returns the bytes from the start of this device or partition to its first granule."""
        text = self._text(os.path.join(self.directory, 'discard_alignment'))
        return int(text) if text.isdigit() else 0

    def zeroes_by_unmapping(self) -> bool:
        """Returns True if the device zeroes and frees space in one operation.

        A SCSI disk that zeroes with a plain WRITE SAME would write the whole range, which is not an
        unmap.
        """
        if not self.number('discard_max_bytes') or not self.number('write_zeroes_max_bytes'):
            return False
        mode = self.zeroing_mode()
        return not mode or mode.endswith('_unmap')

    def zeroing_mode(self) -> str:
        """Returns how a SCSI disk writes zeroes ('writesame_16_unmap', 'write', …), '' for other
        devices."""
        directory = os.path.join(self.disk, 'device', 'scsi_disk')
        try:
            names = os.listdir(directory)
        except OSError:
            return ''
        return self._text(os.path.join(directory, names[0], 'zeroing_mode')) if names else ''


def is_locked_by_strangers(descriptor: int) -> bool:
    """True if the lock of this file is held by processes of other users that cannot write it: every
    user who may read a file may lock it. False if that is not certain: only root sees the processes
    of all users."""
    if os.geteuid() != 0:
        return False
    wanted = os.fstat(descriptor)
    trusted, strangers = {0, wanted.st_uid}, False
    for pid in filter(str.isdigit, os.listdir('/proc')):
        for number in _listed('/proc/%s/fd' % pid):
            try:
                if int(pid) == os.getpid() and int(number) == descriptor:
                    continue
                status = os.stat('/proc/%s/fd/%s' % (pid, number))
                if (status.st_dev, status.st_ino) != (wanted.st_dev, wanted.st_ino):
                    continue
                owner = os.stat('/proc/%s' % pid).st_uid
                with open('/proc/%s/fdinfo/%s' % (pid, number)) as file:
                    flags = int(file.read().split('flags:')[1].split()[0], 8)
            except OSError:  # it was closed meanwhile
                continue
            if owner in trusted or flags & os.O_ACCMODE != os.O_RDONLY:
                return False
            strangers = True
    return strangers


def _listed(path: str) -> List[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []
