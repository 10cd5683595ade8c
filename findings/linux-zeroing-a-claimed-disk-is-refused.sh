#!/bin/sh
# Linux: zeroing written pages of a block device fails with EBUSY through a description that does not hold its claim
#
# Version seen: Linux 6.18.44. Needs root, a loop device, Debian's python3 and util-linux.
#
# Expected: one process opens a disk with O_EXCL and reopens it, through /proc/self/fd, without O_EXCL. Writes through
# the second description work, so fallocate(FALLOC_FL_ZERO_RANGE) through it should work as well.
# Seen: pwrite() works, fallocate() of a range with written data that is still in the page cache fails with EBUSY: the
# kernel wants the claim before it drops such pages, and any other holder is in its way, be it the same process. After
# fdatasync(), or through the description that was opened with O_EXCL, the same call works.
# So a server that gives each of its processes a description of its own, for example to get every write-back error,
# must keep the claiming one at hand for these calls.
#
# Output seen:
#   second description, after a write: zero range EBUSY
#   second description, after a flush: zero range ok
#   claiming description, after a write: zero range ok
#
# Exit code 0: still so. Not 0: the behaviour has changed.
set -eu
folder=$(mktemp -d)
truncate -s 16M "$folder/disk.img"
loop=$(losetup --find --show "$folder/disk.img")
trap 'losetup --detach "$loop"; rm -rf "$folder"' EXIT
python3 - "$loop" <<'CHECK'
import ctypes
import errno
import os
import sys

libc = ctypes.CDLL(None, use_errno=True)
KEEP_SIZE, ZERO_RANGE = 1, 16


def zero_range(descriptor):
    length = ctypes.c_int64(1 << 20)
    if libc.fallocate(descriptor, KEEP_SIZE | ZERO_RANGE, ctypes.c_int64(0), length):
        return errno.errorcode[ctypes.get_errno()]
    return 'ok'


claiming = os.open(sys.argv[1], os.O_RDWR | os.O_EXCL)
second = os.open('/proc/self/fd/%d' % claiming, os.O_RDWR)
os.pwrite(second, bytes(4096), 0)
refused = zero_range(second)
os.fdatasync(second)
flushed = zero_range(second)
os.pwrite(second, bytes(4096), 0)
allowed = zero_range(claiming)
print('second description, after a write: zero range', refused)
print('second description, after a flush: zero range', flushed)
print('claiming description, after a write: zero range', allowed)
sys.exit(0 if (refused, flushed, allowed) == ('EBUSY', 'ok', 'ok') else 1)
CHECK
