"""The sandbox of a worker process: what a worker that was taken over cannot do.

No new privileges, an empty capability bounding set, resource limits, and a seccomp
filter: a BPF program that the kernel runs at every system call. The filter allows the calls that a
worker needs (`system_calls`), so files cannot be opened, named or changed, and nothing can be
connected, executed, forked, signalled or traced. A call that is not in the table fails with EPERM, or
with ENOSYS if it is new, so that a C library uses an older one; a call that no worker ever makes kills
the process. What a worker needs it has received as descriptors.

`atomic-writes` and `guard = undo-journal` open the descriptor of their lock file again, and `filter =
trace` opens a file, so where a LUN has one of these, files can be opened (may_open). Where a LUN is a real
SCSI device, SCSI commands can be sent through the descriptors that the process has (may_command). May
import base only.
"""

import collections
import ctypes
import errno
import os
import platform
import resource
import struct

from targetd.master.processes import system_calls

PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 22, 24, 38
SECCOMP_SET_MODE_FILTER, SECCOMP_MODE_FILTER = 1, 2
# without this flag some kernels would also disable speculation, which slows every memory access
SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4
LAST_CAPABILITY = 63

LOAD, JUMP_IF_EQUAL, JUMP_IF_GREATER, JUMP_IF_ANY_BIT, RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
# Linux before 4.14 kills the thread only
KILL, ALLOW, REFUSE = 0x80000000, 0x7FFF0000, 0x00050000
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data

INSTRUCTION = struct.Struct('=HBBI')

X86_64, AARCH64 = (0xC000003E, 0), (0xC00000B7, 1)
I386, ARM = (0x40000003, 2), (0x40000028, 3)
#: machine, bytes of a pointer -> (AUDIT_ARCH_..., column of the tables); all of them little endian
ARCHITECTURES = {
    ('x86_64', 8): X86_64,
    ('aarch64', 8): AARCH64,
    ('i386', 4): I386,
    ('i486', 4): I386,
    ('i586', 4): I386,
    ('i686', 4): I386,
    ('x86_64', 4): I386,
    ('armv6l', 4): ARM,
    ('armv7l', 4): ARM,
    ('armv8l', 4): ARM,
    ('aarch64', 4): ARM,
}

_libc = ctypes.CDLL(None, use_errno=True)
try:  # the C library loads it when the first thread ends, and could not open it then
    _libgcc = ctypes.CDLL('libgcc_s.so.1')
except OSError:
    pass

#: Resource limits that are 0 for a worker: core files, locked memory, message queues, priorities. Size of
#: files, processes and open files are not among them (SECURITY.md).
NO_MORE = (
    resource.RLIMIT_CORE,
    resource.RLIMIT_MEMLOCK,
    resource.RLIMIT_MSGQUEUE,
    resource.RLIMIT_NICE,
    resource.RLIMIT_RTPRIO,
)

#: has_filter: the seccomp filter is installed; may_open: it allows files to be opened; may_command: it allows
#: SG_IO.
Rules = collections.namedtuple('Rules', 'has_filter may_open may_command')
Rules.__new__.__defaults__ = (False,)


class _Program(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('instructions', ctypes.c_void_p)]


def _architecture():
    return ARCHITECTURES.get((platform.machine(), struct.calcsize('P')))


# Computed now: platform.machine() may start a program.
ARCHITECTURE_HERE = _architecture()


def why_not():
    """Why this host has no seccomp filter for workers, or ''."""
    if ARCHITECTURE_HERE is None:
        return 'there is no table of system calls for this processor (%s)' % platform.machine()
    # the kernel answers EFAULT to a filter at address 0, EINVAL if it has no filters
    _libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, None, 0, 0)
    if ctypes.get_errno() != errno.EFAULT:
        return 'the kernel has no seccomp filters'
    return ''


def program(architecture, column, pid, may_open=False, may_command=False):
    """The filter as bytes. pid: of the process, which may signal itself."""
    calls = system_calls
    refuse = (RETURN, 0, 0, REFUSE | errno.EPERM)
    code = [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_IF_EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
    ]

    def when_equal(rows, answer, conditions=()):
        for row in rows:
            number, checks = row[1 + column], []
            for condition in conditions or row[5:] and row[5]:
                checks += _check(*condition) + [refuse]
            checks.append((RETURN, 0, 0, answer))
            if number is not None:
                code.append((JUMP_IF_EQUAL, 0, len(checks), number))
                code.extend(checks)

    when_equal(calls.FREQUENT + calls.ALLOWED + (calls.OPENING if may_open else ()), ALLOW)
    # the first row of a call counts
    when_equal((calls.COMMANDING if may_command else ()) + calls.CONDITIONAL, ALLOW)
    when_equal(calls.OWN_PROCESS, ALLOW, [(0, calls.ONE_OF, (pid,))])
    when_equal(calls.FATAL, KILL)
    code += [
        (JUMP_IF_GREATER, 0, 1, calls.NEWEST_OLD),
        (RETURN, 0, 0, REFUSE | errno.ENOSYS),
        refuse,
    ]
    return b''.join(INSTRUCTION.pack(*instruction) for instruction in code)


def _check(argument, test, value):
    """Instructions that skip the one after them if a condition of system_calls is true."""
    high, argument = divmod(argument, system_calls.HIGH)
    check = [(LOAD, 0, 0, ARGUMENTS + 8 * argument + 4 * high)]
    if test == system_calls.ONE_OF:
        for left in range(len(value), 0, -1):
            check.append((JUMP_IF_EQUAL, left, 0, value[-left]))
    elif test == system_calls.ANY_OF:
        check.append((JUMP_IF_ANY_BIT, 1, 0, value))
    else:
        check.append((JUMP_IF_ANY_BIT, 0, 1, value))
    return check


def drop_capabilities():
    """Empty the capability bounding set. Call it as root, before the user is changed."""
    for number in range(LAST_CAPABILITY + 1):
        _libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)


def confine(rules):
    """Confine this process for ever; it must have one thread only. Raises OSError if the filter is
    wanted and cannot be installed."""
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for limit in NO_MORE:
        resource.setrlimit(limit, (0, 0))
    if rules.has_filter:
        architecture, column = ARCHITECTURE_HERE
        allowed = rules.may_open, rules.may_command
        _install(program(architecture, column, os.getpid(), *allowed), column)


def _install(data, column):
    kept = ctypes.create_string_buffer(data, len(data))
    number = system_calls.SECCOMP[column]
    filters = _Program(len(data) // INSTRUCTION.size, ctypes.addressof(kept))
    for flags in (SECCOMP_FILTER_FLAG_SPEC_ALLOW, 0):  # the flag: Linux 4.17
        if not _libc.syscall(number, SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(filters)):
            return
    if _libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filters), 0, 0):
        failure = ctypes.get_errno()
        raise OSError(failure, os.strerror(failure))
