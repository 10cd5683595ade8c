"""The numbers of the sandbox's system calls, against libseccomp's (Debian: seccomp)."""

import subprocess

import clients
import pytest

from targetd.master.processes import system_calls

TABLES = ('FREQUENT', 'ALLOWED', 'OPENING', 'OWN_PROCESS', 'CONDITIONAL', 'FATAL')
ROWS = [row for name in TABLES for row in getattr(system_calls, name)]


def resolved(architecture, name):
    """The number of a call; None if the architecture does not have it."""
    output = subprocess.check_output(['scmp_sys_resolver', '-a', architecture, name])
    number = int(output)
    return None if number < 0 else number


@pytest.mark.parametrize(
    'column, architecture', list(enumerate(['x86_64', 'aarch64', 'x86', 'arm'], 1)), ids=str
)
def test_the_numbers_are_those_of_libseccomp(column, architecture):
    clients.need('scmp_sys_resolver')
    wrong = []
    for row in ROWS:
        number = resolved(architecture, row[0])
        # libseccomp has the sockets of i386 by socketcall only
        if number != row[column] and not (number is None and 358 < (row[column] or 0) < 374):
            wrong.append((row[0], row[column], number))
    assert wrong == []
    assert resolved(architecture, 'seccomp') == system_calls.SECCOMP[column - 1]
