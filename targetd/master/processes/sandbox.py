"""The sandbox of a worker process: what a worker that was taken over cannot do.

No new privileges, an empty capability bounding set, no core file, and a seccomp filter (a BPF program
that the kernel runs at every system call). The filter refuses with EPERM: every call that opens, names
or changes a file, connects or listens, executes or forks, traces or signals another process, or
administers the host; and with ENOSYS every call that is newer than this table. Sockets can be created
for the kernel's digests (AF_ALG) only. What a worker needs it has received as descriptors.

`atomic-writes` opens the descriptor of its medium again, and `filter = trace` opens a file, so where a
LUN has one of these, files can be opened (may_open). May import base only.
"""

import collections
import ctypes
import errno
import os
import platform
import resource
import struct

PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 22, 24, 38
SECCOMP_SET_MODE_FILTER, SECCOMP_MODE_FILTER = 1, 2
# without this flag some kernels would also disable speculation, which slows every memory access
SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4
LAST_CAPABILITY = 63

LOAD, JUMP_IF_EQUAL, JUMP_IF_GREATER, JUMP_IF_ANY_BIT, RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
KILL, ALLOW, REFUSE = 0x00000000, 0x7FFF0000, 0x00050000
NUMBER, ARCHITECTURE, ARGUMENT_0 = 0, 4, 16  # offsets in struct seccomp_data
NEWEST = 460  # numbers above are unknown; they are the same on every architecture
CLONE_THREAD = 0x00010000
AF_ALG = 38

INSTRUCTION = struct.Struct('=HBBI')

#: machine, bytes of a pointer -> (AUDIT_ARCH_..., column of the tables)
ARCHITECTURES = {
    ('x86_64', 8): (0xC000003E, 0),
    ('aarch64', 8): (0xC00000B7, 1),
    ('i386', 4): (0x40000003, 2),
    ('i686', 4): (0x40000003, 2),
    ('x86_64', 4): (0x40000003, 2),
}

# name, and its number on x86_64, aarch64, i386; None: it does not exist there
# fmt: off
#: Examined first, because they are called for every command.
FREQUENT = (
    ('recvfrom', 45, 207, 371), ('recvmsg', 47, 212, 372), ('sendmsg', 46, 211, 370),
    ('preadv2', 327, 286, 378), ('pwritev2', 328, 287, 379), ('futex', 202, 98, 240),
    ('read', 0, 63, 3), ('write', 1, 64, 4), ('pread64', 17, 67, 180), ('pwrite64', 18, 68, 181),
    ('fdatasync', 75, 83, 148), ('poll', 7, None, 168), ('ppoll', 271, 73, 309),
)
#: Refused unless files may be opened.
OPENING = ('open', 'openat')
REFUSED = (
    ('open', 2, None, 5),
    ('openat', 257, 56, 295),
    ('openat2', 437, 437, 437),
    ('creat', 85, None, 8),
    ('open_by_handle_at', 304, 265, 342),
    ('name_to_handle_at', 303, 264, 341),
    ('memfd_secret', 447, 447, 447),
    ('connect', 42, 203, 362),
    ('listen', 50, 201, 363),
    ('execve', 59, 221, 11),
    ('execveat', 322, 281, 358),
    ('fork', 57, None, 2),
    ('vfork', 58, None, 190),
    ('clone3', 435, 435, 435),
    ('ptrace', 101, 117, 26),
    ('process_vm_readv', 310, 270, 347),
    ('process_vm_writev', 311, 271, 348),
    ('kcmp', 312, 272, 349),
    ('pidfd_open', 434, 434, 434),
    ('pidfd_getfd', 438, 438, 438),
    ('pidfd_send_signal', 424, 424, 424),
    ('process_madvise', 440, 440, 440),
    ('process_mrelease', 448, 448, 448),
    ('tkill', 200, 130, 238),
    ('rt_sigqueueinfo', 129, 138, 178),
    ('rt_tgsigqueueinfo', 297, 240, 335),
    ('setpriority', 141, 140, 97),
    ('sched_setscheduler', 144, 119, 156),
    ('sched_setparam', 142, 118, 154),
    ('sched_setattr', 314, 274, 351),
    ('ioprio_set', 251, 30, 289),
    ('link', 86, None, 9),
    ('linkat', 265, 37, 303),
    ('symlink', 88, None, 83),
    ('symlinkat', 266, 36, 304),
    ('unlink', 87, None, 10),
    ('unlinkat', 263, 35, 301),
    ('rename', 82, None, 38),
    ('renameat', 264, 38, 302),
    ('renameat2', 316, 276, 353),
    ('mkdir', 83, None, 39),
    ('mkdirat', 258, 34, 296),
    ('rmdir', 84, None, 40),
    ('mknod', 133, None, 14),
    ('mknodat', 259, 33, 297),
    ('truncate', 76, 45, 92),
    ('truncate64', None, None, 193),
    ('chmod', 90, None, 15),
    ('fchmod', 91, 52, 94),
    ('fchmodat', 268, 53, 306),
    ('chown', 92, None, 182),
    ('fchown', 93, 55, 95),
    ('lchown', 94, None, 16),
    ('fchownat', 260, 54, 298),
    ('chown32', None, None, 212),
    ('fchown32', None, None, 207),
    ('lchown32', None, None, 198),
    ('utime', 132, None, 30),
    ('utimes', 235, None, 271),
    ('utimensat', 280, 88, 320),
    ('futimesat', 261, None, 299),
    ('setxattr', 188, 5, 226),
    ('lsetxattr', 189, 6, 227),
    ('fsetxattr', 190, 7, 228),
    ('removexattr', 197, 14, 235),
    ('lremovexattr', 198, 15, 236),
    ('fremovexattr', 199, 16, 237),
    ('mount', 165, 40, 21),
    ('umount', None, None, 22),
    ('umount2', 166, 39, 52),
    ('pivot_root', 155, 41, 217),
    ('chroot', 161, 51, 61),
    ('unshare', 272, 97, 310),
    ('setns', 308, 268, 346),
    ('fsopen', 430, 430, 430),
    ('fsconfig', 431, 431, 431),
    ('fsmount', 432, 432, 432),
    ('fspick', 433, 433, 433),
    ('move_mount', 429, 429, 429),
    ('open_tree', 428, 428, 428),
    ('mount_setattr', 442, 442, 442),
    ('swapon', 167, 224, 87),
    ('swapoff', 168, 225, 115),
    ('quotactl', 179, 60, 131),
    ('quotactl_fd', 443, 443, 443),
    ('acct', 163, 89, 51),
    ('sync', 162, 81, 36),
    ('setuid', 105, 146, 23),
    ('setgid', 106, 144, 46),
    ('setreuid', 113, 145, 70),
    ('setregid', 114, 143, 71),
    ('setresuid', 117, 147, 164),
    ('setresgid', 119, 149, 170),
    ('setgroups', 116, 159, 81),
    ('setfsuid', 122, 151, 138),
    ('setfsgid', 123, 152, 139),
    ('capset', 126, 91, 185),
    ('setuid32', None, None, 213),
    ('setgid32', None, None, 214),
    ('setreuid32', None, None, 203),
    ('setregid32', None, None, 204),
    ('setresuid32', None, None, 208),
    ('setresgid32', None, None, 210),
    ('setgroups32', None, None, 206),
    ('setfsuid32', None, None, 215),
    ('setfsgid32', None, None, 216),
    ('init_module', 175, 105, 128),
    ('finit_module', 313, 273, 350),
    ('delete_module', 176, 106, 129),
    ('kexec_load', 246, 104, 283),
    ('kexec_file_load', 320, 294, None),
    ('reboot', 169, 142, 88),
    ('bpf', 321, 280, 357),
    ('perf_event_open', 298, 241, 336),
    ('userfaultfd', 323, 282, 374),
    ('io_uring_setup', 425, 425, 425),
    ('io_uring_enter', 426, 426, 426),
    ('io_uring_register', 427, 427, 427),
    ('io_setup', 206, 0, 245),
    ('io_submit', 209, 2, 248),
    ('keyctl', 250, 219, 288),
    ('add_key', 248, 217, 286),
    ('request_key', 249, 218, 287),
    ('personality', 135, 92, 136),
    ('modify_ldt', 154, None, 123),
    ('iopl', 172, None, 110),
    ('ioperm', 173, None, 101),
    ('vm86', None, None, 166),
    ('vm86old', None, None, 113),
    ('uselib', 134, None, 86),
    ('settimeofday', 164, 170, 79),
    ('stime', None, None, 25),
    ('clock_settime', 227, 112, 264),
    ('clock_settime64', None, 404, 404),
    ('clock_adjtime', 305, 266, 343),
    ('adjtimex', 159, 171, 124),
    ('sethostname', 170, 161, 74),
    ('setdomainname', 171, 162, 121),
    ('syslog', 103, 116, 103),
    ('vhangup', 153, 58, 111),
    ('nfsservctl', 180, 42, 169),
    ('lookup_dcookie', 212, 18, 253),
    ('fanotify_init', 300, 262, 338),
    ('fanotify_mark', 301, 263, 339),
    ('inotify_init', 253, None, 291),
    ('inotify_init1', 294, 26, 332),
    ('inotify_add_watch', 254, 27, 292),
    ('shmget', 29, 194, 395),
    ('shmat', 30, 196, 397),
    ('shmctl', 31, 195, 396),
    ('msgget', 68, 186, 399),
    ('msgsnd', 69, 189, 400),
    ('msgrcv', 70, 188, 401),
    ('msgctl', 71, 187, 402),
    ('semget', 64, 190, 393),
    ('semop', 65, 193, None),
    ('semctl', 66, 191, 394),
    ('ipc', None, None, 117),
    ('mq_open', 240, 180, 277),
    ('mq_unlink', 241, 181, 278),
    ('setsid', 112, 157, 66),
    ('setpgid', 109, 154, 57),
    ('landlock_create_ruleset', 444, 444, 444),
)
SOCKET, CLONE, KILL_PROCESS, TGKILL, PRLIMIT = (
    (41, 198, 359), (56, 220, 120), (62, 129, 37), (234, 131, 270), (302, 261, 340),
)
SECCOMP = (317, 277, 354)
# fmt: on

_libc = ctypes.CDLL(None, use_errno=True)
try:  # the C library loads it when the first thread ends, and could not open it then
    _libgcc = ctypes.CDLL('libgcc_s.so.1')
except OSError:
    pass

#: has_filter: the seccomp filter is installed; may_open: it allows files to be opened.
Rules = collections.namedtuple('Rules', 'has_filter may_open')


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


def program(architecture, column, pid, may_open=False):
    """The filter as bytes. pid: of the process, which may signal itself."""
    refuse, unknown = REFUSE | errno.EPERM, REFUSE | errno.ENOSYS
    code = [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_IF_EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
    ]

    def when_equal(number, *instructions):
        if number is not None:
            code.append((JUMP_IF_EQUAL, 0, len(instructions), number))
            code.extend(instructions)

    for row in FREQUENT:
        when_equal(row[1 + column], (RETURN, 0, 0, ALLOW))
    code += [(JUMP_IF_GREATER, 0, 1, NEWEST), (RETURN, 0, 0, unknown)]
    for row in REFUSED:
        if not (may_open and row[0] in OPENING):
            answer = unknown if row[0] == 'clone3' else refuse
            when_equal(row[1 + column], (RETURN, 0, 0, answer))

    def condition(numbers, kind, value):
        """Allow the call only if its first argument passes this test."""
        when_equal(
            numbers[column],
            (LOAD, 0, 0, ARGUMENT_0),
            (kind, 1, 0, value),
            (RETURN, 0, 0, refuse),
            (RETURN, 0, 0, ALLOW),
        )

    condition(SOCKET, JUMP_IF_EQUAL, AF_ALG)
    condition(CLONE, JUMP_IF_ANY_BIT, CLONE_THREAD)
    condition(KILL_PROCESS, JUMP_IF_EQUAL, pid)
    condition(TGKILL, JUMP_IF_EQUAL, pid)
    condition(PRLIMIT, JUMP_IF_EQUAL, 0)
    code.append((RETURN, 0, 0, ALLOW))
    return b''.join(INSTRUCTION.pack(*instruction) for instruction in code)


def drop_capabilities():
    """Empty the capability bounding set. Call it as root, before the user is changed."""
    for number in range(LAST_CAPABILITY + 1):
        _libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)


def confine(rules):
    """Confine this process for ever; it must have one thread only. Raises OSError if the filter is
    wanted and cannot be installed."""
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if rules.has_filter:
        architecture, column = ARCHITECTURE_HERE
        _install(program(architecture, column, os.getpid(), rules.may_open), SECCOMP[column])


def _install(data, seccomp_number):
    kept = ctypes.create_string_buffer(data, len(data))
    filters = _Program(len(data) // INSTRUCTION.size, ctypes.addressof(kept))
    for flags in (SECCOMP_FILTER_FLAG_SPEC_ALLOW, 0):  # the flag: Linux 4.17
        if not _libc.syscall(seccomp_number, SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(filters)):
            return
    if _libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filters), 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
