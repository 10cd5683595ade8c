"""The entry points of the commands `targetd` and `targetdctl`: what must be right before the first import
of another package.
"""

import importlib
import os
import sys

from targetd.errors import missing_package

REQUIRED = ('configobj',)  # setup.cfg


def targetd():
    """Run `targetd`; returns the exit code."""
    return _run('targetd', 'targetd.cli')


def targetdctl():
    """Run `targetdctl`; returns the exit code."""
    return _run('targetdctl', 'targetd.admin.cli')


def by_name(path):
    """Run the command that has the name of this program file: targetdctl, or else targetd; returns the exit
    code."""
    return targetdctl() if os.path.basename(path).startswith('targetdctl') else targetd()


def _run(program, module):
    open_standard_files()
    try:
        for package in REQUIRED:
            importlib.import_module(package)
        command = importlib.import_module(module).main
    except ImportError as e:
        sys.stderr.write('%s: %s\n' % (program, missing_package(e)))
        return 1
    return command()


def open_standard_files():
    """Open /dev/null as standard input, output and error where they are closed: a file or socket that is
    opened later would get their number, and would receive what is printed."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets this number: the lower ones are open
            os.set_inheritable(number, True)
    for name, mode in (('stdin', 'r'), ('stdout', 'w'), ('stderr', 'w')):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))
