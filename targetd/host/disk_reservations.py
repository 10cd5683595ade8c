"""The persistent reservations of a SCSI disk, as this host uses them (SPC-4 5.12): it registers a key on
every path to the disk, and reserves the disk with it.

May import base and host. Commands go to the sg nodes of the disk and, for a multipath map, of all its paths.
Every function blocks until the disk has answered each command, or for COMMAND_SECONDS for each of them.
"""

import errno
import os
import struct
import time
from collections import namedtuple

from targetd import sg_io
from targetd.host.roots import ROOTS, kernel_name, listing, read_text, whole_disk

COMMAND_SECONDS = 4
BUSY_SECONDS = 0.1
ATTEMPTS = 8  # of a command that ends with a unit attention, BUSY or TASK SET FULL

#: Write Exclusive - Registrants Only (SPC-4 table 66): who is not registered may read, and nothing else.
WRITE_EXCLUSIVE_REGISTRANTS = 0x05

_GOOD, _CHECK_CONDITION, _CONFLICT = 0x00, 0x02, 0x18
_TRANSIENT = frozenset((0x08, 0x28))  # BUSY, TASK SET FULL
_ILLEGAL_REQUEST, _UNIT_ATTENTION = 5, 6
_READ_KEYS, _READ_RESERVATION, _REPORT_CAPABILITIES = 0, 1, 2
_RESERVE, _PREEMPT_AND_ABORT, _REGISTER_AND_IGNORE = 1, 5, 6
_LONGEST_REPLY = 8192
_HEADER = struct.Struct('>II')

#: key: int; kind: the type of the reservation (SPC-4 table 66).
Holder = namedtuple('Holder', 'key kind')


class NotOffered(Exception):
    """There are no reservations to use. The message is a sentence without its subject, the disk."""


class Conflict(OSError):
    """The disk refused a command, because another key has the reservation, or this one is not registered."""


def find_nodes(path, roots=ROOTS):
    """Returns the nodes that take SCSI commands for the disk at a path, one for each path to it. Reads /sys
    only. Raises NotOffered."""
    name = kernel_name(path, roots)
    if name is None:
        raise NotOffered('is not a disk')
    if whole_disk(name, roots) != name:
        raise NotOffered('is a partition, and a reservation is of the whole disk')
    is_map = (read_text(roots.block(name, 'dm', 'uuid')) or '').startswith('mpath-')
    names = listing(roots.block(name, 'slaves')) if is_map else [name]
    nodes = []
    for each in names:
        if not os.path.exists(roots.block(each, 'device', 'scsi_level')):
            raise NotOffered('is not a SCSI disk')
        generic = listing(roots.block(each, 'device', 'scsi_generic'))
        # a command through the block device needs CAP_SYS_RAWIO, which targetd.service does not have
        nodes.append(roots.node(generic[0] if generic else each))
    if not nodes:
        raise NotOffered('has no path')
    return nodes


class DiskReservations(object):
    """The reservations of one disk. nodes: of find_nodes(). Use it in a `with` statement, which opens the
    nodes. Methods raise OSError if the disk does not answer or refuses a command for another reason than a
    reservation."""

    def __init__(self, nodes):
        self._nodes = nodes
        self._open = []

    def __enter__(self):
        error = None
        for node in self._nodes:
            try:
                self._open.append(os.open(node, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
            except OSError as e:
                error = e  # a path that is gone
        if not self._open:
            raise error
        return self

    def __exit__(self, *failure):
        while self._open:
            os.close(self._open.pop())

    def keeps_through_power_loss(self):
        """True if the disk can keep reservations while it has no power (APTPL). Raises NotOffered if it has
        no reservations of the type that is needed."""
        try:
            data = self._in(_REPORT_CAPABILITIES)
        except OSError as e:
            if e.errno != errno.EOPNOTSUPP:
                raise
            raise NotOffered('has no persistent reservations (it refuses REPORT CAPABILITIES)')
        if len(data) < 8:
            raise NotOffered('describes its persistent reservations with less than 8 bytes')
        is_mask_valid = data[3] & 0x80
        if is_mask_valid and not data[4] >> WRITE_EXCLUSIVE_REGISTRANTS & 1:
            raise NotOffered('has no reservations of the type Write Exclusive - Registrants Only')
        return bool(data[2] & 0x01)

    def keys(self):
        """Returns the registered keys, one for each I_T nexus."""
        data = self._listed(_READ_KEYS)
        return [struct.unpack_from('>Q', data, at)[0] for at in range(0, len(data) - 7, 8)]

    def holder(self):
        """Returns the Holder of the reservation, or None."""
        data = self._listed(_READ_RESERVATION)
        if len(data) < 16:
            return None
        return Holder(struct.unpack_from('>Q', data)[0], data[13] & 0x0F)

    def register(self, key, keeps):
        """Register this key on every path that works, in place of any that this host has registered there; 0
        removes that, and the reservation with it. keeps: through a loss of power."""
        done, error = 0, None
        for descriptor in self._open:
            try:
                self._out(descriptor, _REGISTER_AND_IGNORE, 0, key, keeps)
                done += 1
            except OSError as e:
                error = e
        if not done:
            raise error

    def reserve(self, key):
        """Reserve the disk. Raises Conflict."""
        self._on_a_path(_RESERVE, key, 0)

    def preempt(self, key, other):
        """Remove the registrations with another key, abort their commands, and have the reservation if they
        had it. Raises Conflict."""
        self._on_a_path(_PREEMPT_AND_ABORT, key, other)

    # -- commands ----------------------------------------------------------------------------------

    def _on_a_path(self, action, key, other):
        error = None
        for descriptor in self._open:
            try:
                self._out(descriptor, action, key, other, False)
                return
            except Conflict:
                raise
            except OSError as e:
                error = e
        raise error

    def _out(self, descriptor, action, key, other, keeps):
        kind = 0 if action == _REGISTER_AND_IGNORE else WRITE_EXCLUSIVE_REGISTRANTS
        parameters = struct.pack('>QQ4xB3x', key, other, 1 if keeps else 0)
        cdb = struct.pack('>BBB2xIB', 0x5F, action, kind, len(parameters), 0)
        _execute(descriptor, cdb, parameters)

    def _listed(self, action):
        """The data after the header of READ KEYS and READ RESERVATION."""
        data = self._in(action)
        if len(data) < _HEADER.size:
            raise OSError(errno.EIO, 'the disk answers PERSISTENT RESERVE IN with too few bytes')
        length = _HEADER.unpack_from(data)[1]
        if length > len(data) - _HEADER.size:
            raise OSError(errno.EIO, 'the disk has more registrations than targetd can read')
        return data[_HEADER.size : _HEADER.size + length]

    def _in(self, action):
        cdb = struct.pack('>BB5xHB', 0x5E, action, _LONGEST_REPLY, 0)
        error = None
        for descriptor in self._open:
            try:
                return _execute(descriptor, cdb, length=_LONGEST_REPLY)
            except OSError as e:
                error = e
        raise error


def _execute(descriptor, cdb, data_out=b'', length=0):
    """Returns the data of a command. Raises Conflict, OSError; EOPNOTSUPP: the disk does not have it."""
    for _ in range(ATTEMPTS):
        found = sg_io.execute(descriptor, cdb, data_out, length, COMMAND_SECONDS)
        key = sg_io.parse_sense(found.sense)[0]
        if found.status in _TRANSIENT:
            time.sleep(BUSY_SECONDS)
        elif not (found.status == _CHECK_CONDITION and key == _UNIT_ATTENTION):
            break
    if found.status == _CONFLICT:
        raise Conflict(errno.EBADE, 'the disk is reserved by another key')
    if found.status == _CHECK_CONDITION and key == _ILLEGAL_REQUEST:
        raise OSError(errno.EOPNOTSUPP, 'the disk refuses the command %02Xh' % cdb[0])
    if found.status != _GOOD or found.host or found.driver:
        raise OSError(
            errno.EIO,
            'the disk does not execute the command %02Xh (status %02Xh, sense key %Xh, host adapter %02Xh)'
            % (cdb[0], found.status, key, found.host),
        )
    return bytes(found.data)
