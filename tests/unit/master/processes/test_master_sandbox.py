"""The filter of system calls for each processor, run by an interpreter of BPF; what the kernel does
with it is tested in test_process_hostile.py.
"""

import errno
import struct

import pytest

from targetd.master.processes import sandbox, system_calls

PID = 4711
ALLOWED, KILLED = 'allowed', 'killed'
ARCHITECTURES = sorted(set(sandbox.ARCHITECTURES.values()))
ROWS = {
    row[0]: row
    for table in ('FREQUENT', 'ALLOWED', 'OPENING', 'OWN_PROCESS', 'CONDITIONAL', 'FATAL')
    for row in getattr(system_calls, table)
}
BY_NUMBER = {
    'connect': (42, 203, 362, 283),
    'listen': (50, 201, 363, 284),
    'unlinkat': (263, 35, 301, 328),
    'setuid': (105, 146, 23, 23),
    'setrlimit': (160, 164, 75, 75),
    'ftruncate': (77, 46, 93, 93),
    'io_uring_setup': (425,) * 4,
    'clone3': (435,) * 4,
    'pidfd_getfd': (438,) * 4,
    'openat2': (437,) * 4,
}


def run(code, architecture, number, arguments=()):
    """The answer of the filter: 'allowed', 'killed' or the name of an error."""
    data = struct.pack('<IIQ6Q', number, architecture, 0, *(list(arguments) + [0] * 6)[:6])
    at = accumulator = 0
    while True:
        operation, if_true, if_false, value = sandbox.INSTRUCTION.unpack_from(code, 8 * at)
        at += 1
        if operation == sandbox.LOAD:
            (accumulator,) = struct.unpack_from('<I', data, value)
        elif operation == sandbox.RETURN:
            if value >> 16 == sandbox.REFUSE >> 16:
                return errno.errorcode[value & 0xFFFF]
            return {sandbox.ALLOW: ALLOWED, sandbox.KILL: KILLED}[value]
        else:
            is_true = {
                sandbox.JUMP_IF_EQUAL: accumulator == value,
                sandbox.JUMP_IF_GREATER: accumulator > value,
                sandbox.JUMP_IF_ANY_BIT: bool(accumulator & value),
            }[operation]
            at += if_true if is_true else if_false


@pytest.fixture(params=range(4), ids='x86_64 aarch64 i386 arm'.split().__getitem__)
def column(request):
    return request.param


@pytest.fixture
def filtered(column):
    """filtered(name, *arguments, may_open=False): the answer of the filter of one processor; None if
    it does not have the call."""
    architecture = {column: number for number, column in ARCHITECTURES}[column]

    def filtered(name, *arguments, **options):
        number = (BY_NUMBER.get(name) or ROWS[name][1:5])[column]
        code = sandbox.program(architecture, column, PID, **options)
        return None if number is None else run(code, architecture, number, arguments)

    return filtered


def test_a_worker_may_make_the_calls_of_the_table(filtered):
    for table in (system_calls.FREQUENT, system_calls.ALLOWED):
        for row in table:
            assert filtered(row[0]) in (ALLOWED, None), row[0]


def test_other_calls_are_refused(filtered):
    for name in ('connect', 'listen', 'unlinkat', 'setuid', 'setrlimit', 'ftruncate', 'openat'):
        assert filtered(name) == 'EPERM', name
    assert filtered('openat', may_open=True) == ALLOWED


def test_new_calls_do_not_exist_so_that_the_c_library_uses_old_ones(filtered):
    for name in ('clone3', 'openat2', 'io_uring_setup', 'pidfd_getfd'):
        assert filtered(name) == 'ENOSYS'


def test_scsi_commands_are_sent_only_where_a_lun_is_a_real_device(filtered):
    assert filtered('ioctl', 5, 0x2285) == 'EPERM'
    assert filtered('ioctl', 5, 0x2285, may_command=True) == ALLOWED
    assert filtered('ioctl', 5, 0x1277, may_command=True) == ALLOWED
    assert filtered('ioctl', 5, 0x2272, may_command=True) == 'EPERM'  # SG_SET_RESERVED_SIZE


def test_calls_that_kill(filtered):
    for row in system_calls.FATAL:
        assert filtered(row[0]) in (KILLED, None)
    assert filtered('execve') == filtered('ptrace') == KILLED


def test_another_architecture_kills(column):
    architecture = {column: number for number, column in ARCHITECTURES}[column]
    assert run(sandbox.program(architecture, column, PID), architecture ^ 1, 0) == KILLED


def test_only_threads_are_started(filtered):
    assert filtered('clone', 0x3D0F00) == filtered('clone', 0x7D0F00) == ALLOWED
    assert filtered('clone', 0x11) == 'EPERM'  # fork
    assert filtered('clone', 0x4111) == 'EPERM'  # vfork
    assert filtered('clone', 0x3D0F00 | 0x10000000) == 'EPERM'  # a user namespace


def test_arguments(filtered):
    assert filtered('kill', PID, 9) == filtered('tgkill', PID, PID, 6) == ALLOWED
    assert filtered('kill', 1, 9) == filtered('tgkill', 1, PID, 6) == 'EPERM'
    assert filtered('kill', 0, 9) == filtered('kill', 0xFFFFFFFF, 9) == 'EPERM'
    assert filtered('socket', 38) == ALLOWED
    assert filtered('socket', 1) == filtered('socket', 2) == filtered('socket', 16) == 'EPERM'
    assert filtered('ioctl', 5, 0x5421) == filtered('ioctl', 5, 0x1277) == ALLOWED
    assert filtered('ioctl', 5, 0x2285) == filtered('ioctl', 5, 0x5412) == 'EPERM'
    assert filtered('fcntl', 5, 7) == filtered('fcntl', 5, 37) == ALLOWED
    assert filtered('fcntl', 5, 8) == 'EPERM'
    assert filtered('fallocate', 5, 3) == filtered('fallocate', 5, 0x10) == ALLOWED
    assert filtered('fallocate', 5, 0) == filtered('fallocate', 5, 1) == 'EPERM'
    assert filtered('prctl', 15) == ALLOWED and filtered('prctl', 4, 1) == 'EPERM'
    assert filtered('prlimit64', 0, 7) == ALLOWED
    assert filtered('prlimit64', 0, 7, 1) == filtered('prlimit64', 0, 7, 1 << 32) == 'EPERM'
    assert filtered('prlimit64', 1, 7) == 'EPERM'
    assert filtered('statx', 5, 0, 0x1000) == ALLOWED and filtered('statx', 5) == 'EPERM'
    assert filtered('newfstatat', 5, 0, 0, 0x1000) in (ALLOWED, None)
    assert filtered('newfstatat', 5) in ('EPERM', None)


def test_the_multiplexed_socket_call_of_old_32_bit_libraries(filtered):
    if filtered('socketcall') is not None:
        assert filtered('socketcall', 12) == filtered('socketcall', 17) == ALLOWED
        for number in (1, 2, 3, 4, 5, 8, 18, 19, 20):  # socket, bind, connect, listen, accept, ...
            assert filtered('socketcall', number) == 'EPERM'


def test_the_frequent_calls_are_examined_first(column):
    architecture = {column: number for number, column in ARCHITECTURES}[column]
    code = sandbox.program(architecture, column, PID)
    numbers = [
        value
        for operation, _, _, value in struct.iter_unpack('=HBBI', code)
        if operation == sandbox.JUMP_IF_EQUAL
    ]
    assert numbers[1] == ROWS['recvfrom'][1 + column]
    assert len(code) // 8 < 4096  # the kernel's limit


def test_a_processor_without_a_table_has_no_filter(monkeypatch):
    monkeypatch.setattr(sandbox, 'ARCHITECTURE_HERE', None)
    assert 'no table of system calls' in sandbox.why_not()
