"""Programs of targetd that need Python modules of the distribution: they are run by its interpreter, which
may be another one than that of targetd (a virtual environment)."""

import os
import sys

import targetd

#: Where distributions have the interpreter for their Python modules.
INTERPRETERS = ('/usr/bin/python3', '/usr/libexec/platform-python')

#: What it executes: the modules of the distribution come first, but for those of targetd.
PROGRAM = (
    'import sys; sys.path.insert(0, sys.argv[1]); from targetd.ceph import {module} as program; '
    'sys.path.pop(0); sys.path.append(sys.argv[1]); program.main(sys.argv[2])'
)


def interpreter():
    """Returns the path of the interpreter."""
    return next((path for path in INTERPRETERS if os.access(path, os.X_OK)), sys.executable)


def words(module, argument):
    """The command that runs main(argument) of a module of targetd.ceph."""
    place = os.path.dirname(os.path.dirname(os.path.abspath(targetd.__file__)))
    return [interpreter(), '-I', '-c', PROGRAM.format(module=module), place, argument]
