"""targetd with one disk that several servers see and that does not exist: fake_shared_disk.py FILE HOST, and
the arguments of targetd.

FILE is the disk, and its last TABLE bytes are its persistent reservations (SPC-4 5.12), JSON:

    keys      {HOST: key}
    holder    [HOST, key, type] of the reservation, or null
    refused   [service action of PERSISTENT RESERVE IN or OUT that the disk does not have]
    attention {HOST: [ASC, ASCQ] of a unit attention that it has not been told of}
    commands  [[HOST, operation code, service action] …]
"""

import errno
import fcntl
import json
import os
import struct
import sys

TABLE = 1 << 16
EMPTY = {'keys': {}, 'holder': None, 'refused': [], 'attention': {}, 'commands': []}
GOOD, CHECK_CONDITION, CONFLICT = 0x00, 0x02, 0x18
REGISTER, RESERVE, CLEAR, PREEMPT_AND_ABORT, IGNORE = 0, 1, 3, 5, 6
PREEMPTED = [0x2A, 0x05]


class Disk(object):
    """The file, as a test and the servers use it."""

    def __init__(self, path, size=None):
        self.path = path
        if size is not None:
            with open(path, 'wb') as file:
                file.truncate(size + TABLE)
            self.change()

    def table(self):
        with open(self.path, 'rb') as file:
            return _read(file.fileno())

    def change(self, **values):
        """Write these values into the table."""
        with open(self.path, 'r+b') as file, _Locked(file.fileno(), fcntl.LOCK_EX):
            _write(file.fileno(), dict(_read(file.fileno()), **values))

    def lose_power(self):
        """As a disk that has not kept its reservations."""
        self.change(keys={}, holder=None)

    def keys(self):
        return self.table()['keys']


class _Locked(object):
    def __init__(self, descriptor, kind):
        self._descriptor, self._kind = descriptor, kind

    def __enter__(self):
        fcntl.lockf(self._descriptor, self._kind, TABLE, _place(self._descriptor))

    def __exit__(self, *failure):
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, TABLE, _place(self._descriptor))


def _place(descriptor):
    return os.fstat(descriptor).st_size - TABLE


def _read(descriptor):
    text = os.pread(descriptor, TABLE, _place(descriptor)).rstrip(b'\0 ')
    return json.loads(text.decode()) if text else dict(EMPTY)


def _write(descriptor, table):
    os.pwrite(descriptor, json.dumps(table).encode().ljust(TABLE), _place(descriptor))


def may_write(table, host):
    """Write Exclusive - Registrants Only."""
    return table['holder'] is None or host in table['keys']


def reply_to(table, host, cdb, data_out):
    """(status, sense, Data-In) of a command, which may change the table."""
    action = cdb[1] & 0x1F
    if host in table['attention']:
        asc, ascq = table['attention'].pop(host)
        return CHECK_CONDITION, bytes((0x70, 0, 6) + (0,) * 9 + (asc, ascq, 0, 0, 0, 0)), b''
    table['commands'] = (table['commands'] + [[host, cdb[0], action]])[-200:]
    if [cdb[0], action] in table['refused']:
        return CHECK_CONDITION, bytes((0x70, 0, 5) + (0,) * 9 + (0x20, 0, 0, 0, 0, 0)), b''
    if cdb[0] == 0x5E:
        return GOOD, b'', _reserve_in(table, action)
    key, other = struct.unpack_from('>QQ', data_out)
    return (CONFLICT if _reserve_out(table, host, action, cdb[2], key, other) else GOOD), b'', b''


def _reserve_in(table, action):
    if action == 2:
        return bytes((0, 8, 1, 0x80, 0x20, 0, 0, 0))
    data = b''.join(struct.pack('>Q', key) for key in table['keys'].values())
    if action == 1:
        holder = table['holder']
        data = struct.pack('>Q5xB2x', holder[1], holder[2]) if holder else b''
    return struct.pack('>II', 0, len(data)) + data


def _reserve_out(table, host, action, kind, key, other):
    """Returns True if it is a conflict."""
    keys, holder = table['keys'], table['holder']
    if action != IGNORE and keys.get(host) != key:
        return True
    if action in (REGISTER, IGNORE):
        if other:
            keys[host] = other
            if holder and holder[0] == host:
                holder[1] = other
        else:
            keys.pop(host, None)
            if holder and holder[0] == host:
                table['holder'] = None
    elif action == RESERVE:
        if holder and holder != [host, key, kind]:
            return True
        table['holder'] = [host, key, kind]
    elif action == CLEAR:
        table.update(keys={}, holder=None)
    elif action == PREEMPT_AND_ABORT:
        gone = [each for each in keys if keys[each] == other and each != host]
        if not gone:
            return True
        for each in gone:
            del keys[each]
            table['attention'][each] = PREEMPTED
        if holder and holder[1] == other:
            table['holder'] = [host, key, kind]
    return False


def executor(host):
    """What replaces sg_io.execute in the server HOST."""

    def execute(descriptor, cdb, data_out=b'', length=0, seconds=60):
        from targetd import sg_io

        with _Locked(descriptor, fcntl.LOCK_EX):
            table = _read(descriptor)
            status, sense, data = reply_to(table, host, bytes(cdb), bytes(data_out))
            _write(descriptor, table)
        data = memoryview(data[:length])
        return sg_io.Outcome(status, 0, 8 if sense else 0, sense, length - len(data), data)

    return execute


def refuse_writes(host, identity):
    """Have the accesses of this process to the disk end as the kernel's do after a reservation conflict."""
    from targetd.store.direct import DirectAccess

    write, sync = DirectAccess.write, os.fdatasync

    def is_disk(descriptor):
        status = os.fstat(descriptor)
        return (status.st_dev, status.st_ino) == identity

    def checked(access, offset, data):
        with _Locked(access._descriptor, fcntl.LOCK_SH):
            if not may_write(_read(access._descriptor), host):
                raise OSError(errno.EBADE, os.strerror(errno.EBADE))
            write(access, offset, data)

    def checked_sync(descriptor):
        if is_disk(descriptor) and not may_write(_read(descriptor), host):
            raise OSError(errno.EBADE, os.strerror(errno.EBADE))
        sync(descriptor)

    DirectAccess.write, os.fdatasync = checked, checked_sync


def main(path, host):
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from targetd import entry, sg_io
    from targetd.host import disk_reservations, in_use
    from targetd.store import opening

    def find_nodes(found, roots=None):
        if not os.path.samefile(found, path):
            raise disk_reservations.NotOffered('is not a disk')
        return [path]

    status = os.stat(path)
    sg_io.execute = executor(host)
    disk_reservations.find_nodes = find_nodes
    # the file is a disk of each of two hosts
    opening.claim_file = lambda wanted, descriptor: None
    in_use.require_free = lambda *arguments, **more: None
    os.O_DIRECT = 0  # the file may be on a file system that has no direct I/O
    refuse_writes(host, (status.st_dev, status.st_ino))
    sys.argv[1:] = sys.argv[3:]
    sys.exit(entry.targetd())


if __name__ == '__main__':
    main(sys.argv[1], sys.argv[2])
