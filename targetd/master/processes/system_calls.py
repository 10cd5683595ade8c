"""The system calls of a worker: which it may make, with which arguments, and which end it.

Table. A row has the name of a call and its number on x86_64, aarch64, i386 and arm; None: it does not
exist there. A number above NEWEST_OLD has been the same everywhere since Linux 5.1. The rows are what
the suites make on Python 3.6 to 3.13 (strace), and what other releases of glibc and musl use for the
same work. `tests/client/test_client_system_calls.py` compares the numbers with libseccomp's.
"""

#: Calls above this number are newer than the C libraries that cannot do without them.
NEWEST_OLD = 402

AF_ALG = 38
#: Flags of clone() with which the C library starts a thread. glibc: 3D0F00h, musl: also DETACHED.
THREAD_FLAGS, CLONE_THREAD = 0x007D0F00, 0x00010000
AT_EMPTY_PATH = 0x1000  # the status of a descriptor, not of a name
PUNCH_HOLE, ZERO_RANGE = 0x02, 0x10
PR_SET_NAME, PR_SET_VMA = 15, 0x53564D41

# fmt: off
#: Examined first, because they are called for every command.
FREQUENT = (
    ('recvfrom', 45, 207, 371, 292),
    ('recvmsg', 47, 212, 372, 297),
    ('sendmsg', 46, 211, 370, 296),
    ('preadv2', 327, 286, 378, 392),
    ('pwritev2', 328, 287, 379, 393),
    ('futex', 202, 98, 240, 240),
    ('read', 0, 63, 3, 3),
    ('write', 1, 64, 4, 4),
    ('pread64', 17, 67, 180, 180),
    ('pwrite64', 18, 68, 181, 181),
    ('fdatasync', 75, 83, 148, 148),
    ('poll', 7, None, 168, 168),
    ('ppoll', 271, 73, 309, 336),
)

ALLOWED = (
    # memory
    ('brk', 12, 214, 45, 45),
    ('mmap', 9, 222, 90, None),
    ('mmap2', None, None, 192, 192),
    ('mprotect', 10, 226, 125, 125),
    ('munmap', 11, 215, 91, 91),
    ('mremap', 25, 216, 163, 163),
    ('madvise', 28, 233, 219, 220),
    # threads, and the process itself
    ('futex_time64', None, None, 422, 422),
    ('set_robust_list', 273, 99, 311, 338),
    ('set_tid_address', 218, 96, 258, 256),
    ('rseq', 334, 293, 386, 398),
    ('membarrier', 324, 283, 375, 389),
    ('exit', 60, 93, 1, 1),
    ('exit_group', 231, 94, 252, 248),
    ('restart_syscall', 219, 128, 0, 0),
    ('gettid', 186, 178, 224, 224),
    ('getpid', 39, 172, 20, 20),
    ('getppid', 110, 173, 64, 64),
    ('getuid', 102, 174, 24, 24),
    ('geteuid', 107, 175, 49, 49),
    ('getgid', 104, 176, 47, 47),
    ('getegid', 108, 177, 50, 50),
    ('getuid32', None, None, 199, 199),
    ('geteuid32', None, None, 201, 201),
    ('getgid32', None, None, 200, 200),
    ('getegid32', None, None, 202, 202),
    ('sched_yield', 24, 124, 158, 158),
    ('sched_getaffinity', 204, 123, 242, 242),
    ('getcpu', 309, 168, 318, 345),
    ('uname', 63, 160, 122, 122),
    ('sysinfo', 99, 179, 116, 116),
    ('cacheflush', None, None, None, 983042),
    ('set_tls', None, None, None, 983045),
    ('get_tls', None, None, None, 983046),
    # signals
    ('rt_sigaction', 13, 134, 174, 174),
    ('rt_sigprocmask', 14, 135, 175, 175),
    ('rt_sigreturn', 15, 139, 173, 173),
    ('sigreturn', None, None, 119, 119),
    ('sigaltstack', 131, 132, 186, 186),
    # time and random numbers
    ('clock_gettime', 228, 113, 265, 263),
    ('clock_gettime64', None, None, 403, 403),
    ('clock_getres', 229, 114, 266, 264),
    ('clock_getres_time64', None, None, 406, 406),
    ('clock_nanosleep', 230, 115, 267, 265),
    ('clock_nanosleep_time64', None, None, 407, 407),
    ('nanosleep', 35, 101, 162, 162),
    ('gettimeofday', 96, 169, 78, 78),
    ('time', 201, None, 13, None),
    ('times', 100, 153, 43, 43),
    ('getrusage', 98, 165, 77, 77),
    ('getrandom', 318, 278, 355, 384),
    # descriptors and media
    ('close', 3, 57, 6, 6),
    ('dup', 32, 23, 41, 41),
    ('dup2', 33, None, 63, 63),
    ('dup3', 292, 24, 330, 358),
    ('fstat', 5, 80, 108, 108),
    ('fstat64', None, None, 197, 197),
    ('fstatfs', 138, 44, 100, 100),
    ('fstatfs64', None, None, 269, 267),
    ('lseek', 8, 62, 19, 19),
    ('_llseek', None, None, 140, 140),
    ('readv', 19, 65, 145, 145),
    ('writev', 20, 66, 146, 146),
    ('preadv', 295, 69, 333, 361),
    ('pwritev', 296, 70, 334, 362),
    ('fsync', 74, 82, 118, 118),
    ('sync_file_range', 277, 84, 314, None),
    ('arm_sync_file_range', None, None, None, 341),
    ('fadvise64', 221, 223, 250, None),
    ('fadvise64_64', None, None, 272, None),
    ('arm_fadvise64_64', None, None, None, 270),
    ('copy_file_range', 326, 285, 377, 391),
    # waiting for descriptors
    ('select', 23, None, 82, None),
    ('_newselect', None, None, 142, 142),
    ('pselect6', 270, 72, 308, 335),
    ('pselect6_time64', None, None, 413, 413),
    ('ppoll_time64', None, None, 414, 414),
    # sockets that it has, and those of the digests
    ('sendto', 44, 206, 369, 290),
    ('send', None, None, None, 289),
    ('recv', None, None, None, 291),
    ('getsockopt', 55, 209, 365, 295),
    ('setsockopt', 54, 208, 366, 294),
    ('getsockname', 51, 204, 367, 286),
    ('getpeername', 52, 205, 368, 287),
    ('shutdown', 48, 210, 373, 293),
    ('bind', 49, 200, 361, 282),
    ('accept', 43, 202, None, 285),
    ('accept4', 288, 242, 364, 366),
)

#: Allowed in addition where files may be opened.
OPENING = (
    ('open', 2, None, 5, 5),
    ('openat', 257, 56, 295, 322),
)

#: Allowed if the first argument is this process, which the filter adds.
OWN_PROCESS = (
    ('kill', 62, 129, 37, 37),
    ('tgkill', 234, 131, 270, 268),
)

# Conditions: (argument, test, value) of each, all must be true. ONE_OF: the value is in this tuple;
# NONE_OF and ANY_OF: no bit, or some bit, of the value is set. HIGH + argument: its upper 32 bits.
ONE_OF, NONE_OF, ANY_OF = range(3)
HIGH = 100

#: FIONBIO, FIONCLEX, FIOCLEX, FIONREAD, TIOCOUTQ; then those of block devices (linux/fs.h):
#: BLKROGET, BLKSSZGET, BLKDISCARD, BLKIOMIN, BLKIOOPT, BLKALIGNOFF, BLKPBSZGET, BLKZEROOUT, BLKGETSIZE64.
IOCTLS = (
    0x5421, 0x5450, 0x5451, 0x541B, 0x5411,
    0x125E, 0x1268, 0x1277, 0x1278, 0x1279, 0x127A, 0x127B, 0x127F, 0x80081272, 0x80041272,
)
#: SG_IO, allowed in addition where SCSI commands may be sent to devices.
COMMANDING = (('ioctl', 16, 29, 54, 54, ((1, ONE_OF, IOCTLS + (0x2285,)),)),)
#: 0 to 7: descriptors and locks; 12 to 14: locks with 32 bits; 36 to 38: locks of open file
#: descriptions; 1030: F_DUPFD_CLOEXEC. Not F_SETOWN and F_NOTIFY, which send signals.
FCNTLS = (0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 14, 36, 37, 38, 1030)
#: socketcall(): getsockname, getpeername, send, recv, sendto, recvfrom, shutdown, setsockopt,
#: getsockopt, sendmsg, recvmsg.
SOCKET_CALLS = (6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17)

CONDITIONAL = (
    ('socket', 41, 198, 359, 281, ((0, ONE_OF, (AF_ALG,)),)),
    ('socketcall', None, None, 102, None, ((0, ONE_OF, SOCKET_CALLS),)),
    ('clone', 56, 220, 120, 120, (
        (0, NONE_OF, 0xFFFFFFFF & ~THREAD_FLAGS), (0, ANY_OF, CLONE_THREAD),
    )),
    ('ioctl', 16, 29, 54, 54, ((1, ONE_OF, IOCTLS),)),
    ('fcntl', 72, 25, 55, 55, ((1, ONE_OF, FCNTLS),)),
    ('fcntl64', None, None, 221, 221, ((1, ONE_OF, FCNTLS),)),
    # punches holes, and zeroes; to allocate is refused
    ('fallocate', 285, 47, 324, 352, ((1, ANY_OF, PUNCH_HOLE | ZERO_RANGE),)),
    ('prctl', 157, 167, 172, 172, ((0, ONE_OF, (PR_SET_NAME, PR_SET_VMA)),)),
    # reads a limit; to set one is refused
    ('prlimit64', 302, 261, 340, 369, (
        (0, ONE_OF, (0,)), (2, ONE_OF, (0,)), (HIGH + 2, ONE_OF, (0,)),
    )),
    ('newfstatat', 262, 79, None, None, ((3, ANY_OF, AT_EMPTY_PATH),)),
    ('fstatat64', None, None, 300, 327, ((3, ANY_OF, AT_EMPTY_PATH),)),
    ('statx', 332, 291, 383, 397, ((2, ANY_OF, AT_EMPTY_PATH),)),
)

#: No part of a worker, of Python or of a C library makes these calls in a worker: they kill it, so
#: that the log shows the attempt.
FATAL = (
    ('execve', 59, 221, 11, 11),
    ('execveat', 322, 281, 358, 387),
    ('ptrace', 101, 117, 26, 26),
    ('process_vm_readv', 310, 270, 347, 376),
    ('process_vm_writev', 311, 271, 348, 377),
    ('init_module', 175, 105, 128, 128),
    ('finit_module', 313, 273, 350, 379),
    ('delete_module', 176, 106, 129, 129),
    ('kexec_load', 246, 104, 283, 347),
    ('kexec_file_load', 320, 294, None, 401),
    ('bpf', 321, 280, 357, 386),
    ('mount', 165, 40, 21, 21),
    ('umount2', 166, 39, 52, 52),
    ('pivot_root', 155, 41, 217, 218),
    ('chroot', 161, 51, 61, 61),
    ('setns', 308, 268, 346, 375),
    ('unshare', 272, 97, 310, 337),
    ('open_by_handle_at', 304, 265, 342, 371),
    ('iopl', 172, None, 110, None),
    ('ioperm', 173, None, 101, None),
    ('swapon', 167, 224, 87, 87),
    ('swapoff', 168, 225, 115, 115),
    ('reboot', 169, 142, 88, 88),
)

SECCOMP = (317, 277, 354, 383)
# fmt: on
