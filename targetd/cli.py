"""The `targetd` command: checks the configuration, starts the server, or runs the demo.

Entry point: may import base, config, master. Every error is printed here as one sentence per line
on stderr and sets one of the exit codes of targetd.errors.
"""

import argparse
import os
import sys

import targetd
from targetd import demo, xts
from targetd.admin import system_files
from targetd.config import explain, lint, loader, render, words
from targetd.errors import (
    EXIT_CONFIG,
    EXIT_FAILURE,
    EXIT_NOT_RUNNING,
    EXIT_OK,
    EXIT_PORTAL,
    EXIT_USAGE,
    ConfigError,
    TargetdError,
)

CONFIGURATION = '/etc/targetd.conf'


def parser():
    """The argparse parser of the command line, which targetd(8) describes."""
    command = argparse.ArgumentParser(
        prog='targetd',
        add_help=False,
        description='An iSCSI target (storage server).',
        epilog='Exit codes: 0 success, 1 failure, 2 wrong command line, 3 configuration, '
        '4 portal, 5 backing store, 6 already running, 7 not running.',
    )
    add = command.add_argument
    add('-c', '--config', metavar='FILE', help='configuration file (default: %s)' % CONFIGURATION)
    add(
        '-f',
        '--foreground',
        action='store_true',
        help='stay in the foreground, for service managers and for tests',
    )
    add(
        '-t',
        '--test',
        action='store_true',
        help='check the configuration, explain what it would serve to whom, and exit',
    )
    add(
        '--strict',
        action='store_true',
        help='do not start if a LUN or a portal of the configuration cannot be served yet; with -t: fail',
    )
    add(
        '--pid',
        nargs='?',
        const='',
        metavar='PIDFILE',
        help='print the process id of the running server of this configuration, and exit',
    )
    add(
        '--demo',
        nargs='?',
        const=demo.ADDRESS,
        metavar='ADDRESS',
        help='serve a sparse 1 GiB disk on this address (default: %s) in the foreground, without a '
        'configuration' % demo.ADDRESS,
    )
    add(
        '--help-settings',
        nargs='?',
        const='',
        metavar='NAME',
        help='explain all settings of the configuration, or one',
    )
    add(
        '--make-key',
        metavar='FILE',
        help='create a key for an encrypted disk, and exit; an existing file is not overwritten',
    )
    _add_installation(add)
    for option in ('--take-over', '--try-take-over'):  # of master.upgrade.upgrade
        add(option, type=int, help=argparse.SUPPRESS)
    add('--version', action='version', version='targetd %s' % targetd.__version__)
    add('-h', '--help', action='help', help='show this and exit')
    return command


def _add_installation(add):
    add(
        '--install-files',
        action='store_true',
        help='install the init script, manual pages, sample configuration and other files, and exit; a '
        'changed file is not overwritten',
    )
    add(
        '--uninstall-files',
        action='store_true',
        help='remove the files that --install-files has installed and nobody has changed, and exit',
    )
    add('--root', metavar='DIR', default='/', help='install below this directory')
    add(
        '--init',
        metavar='NAME',
        default='',
        help='init system to install for: %s (default: that of the host)'
        % ', '.join(sorted(system_files.INITS)),
    )


def main(arguments=None):
    """The entry point of `targetd`; returns the exit code. arguments: without the name of the
    program; None for those of sys.argv."""
    command = parser()
    chosen = command.parse_args(arguments)
    if chosen.demo is not None and (chosen.config or chosen.test):
        return print_errors('--demo needs no configuration; remove -c and -t', EXIT_USAGE)
    try:
        if chosen.help_settings is not None:
            return print_settings(chosen.help_settings)
        if chosen.make_key is not None:
            return make_key(chosen.make_key)
        if chosen.install_files or chosen.uninstall_files:
            return install_files(chosen)
        if chosen.demo is not None:
            return demo.run_demo(chosen.demo)
        path = os.path.abspath(chosen.config or CONFIGURATION)
        if chosen.pid is not None:
            return print_pid(path, chosen.pid)
        if chosen.test:
            return check(path, chosen.strict)
        if chosen.take_over is not None or chosen.try_take_over is not None:
            return take_over(path, chosen)
        return serve(path, chosen.foreground, chosen.strict)
    except TargetdError as e:
        return print_errors(str(e), e.exit_code)


def print_errors(text, exit_code):
    """Print every line to stderr with the name of the program; returns the exit code."""
    for line in text.split('\n'):
        sys.stderr.write('targetd: %s\n' % line)
    return exit_code


def print_text(text):
    """Print to stdout. Characters that the locale (LANG=C) cannot encode are escaped."""
    encoding = sys.stdout.encoding or 'ascii'
    sys.stdout.write(text.encode(encoding, 'backslashreplace').decode(encoding))


def print_settings(name):
    """Print the description of all settings (name ''), or of one; returns the exit code."""
    text = render.plain_help(name)
    if not text:
        return print_errors('there is no setting %s%s' % (name, render.meant(name)), EXIT_USAGE)
    print_text(text)
    return EXIT_OK


def install_files(chosen):
    """Install the files of targetd, or remove them; returns the exit code. Raises TargetdError."""
    if chosen.install_files:
        lines = system_files.install(chosen.root, chosen.init)
    else:
        lines = system_files.uninstall(chosen.root)
    print_text(''.join(line + '\n' for line in lines))
    return EXIT_OK


def make_key(path):
    """Create a key file for encryption-key-file; returns the exit code. Raises TargetdError."""
    from targetd.master.state import key_files

    if xts.why_not():
        return print_errors(xts.why_not(), EXIT_FAILURE)
    key_files.make_key(path)
    print_text(
        'The key is in %s. Keep a copy of it in a safe place: without the key the data on the disk '
        'cannot be read.\n' % path
    )
    return EXIT_OK


def print_pid(path, pid_file):
    """Print the process id of the server that holds the pid file or the control socket of this
    configuration, which may contain errors; returns the exit code. pid_file: '' for the configured one."""
    from targetd.master import running

    configured, control_socket = loader.server_paths(path)
    pid = running.running_process(pid_file or configured, control_socket)
    if pid is None:
        return EXIT_NOT_RUNNING
    print_text('%s\n' % (pid if pid > 0 else 'unknown'))
    return EXIT_OK


def check(path, strict):
    """Load and check the configuration, and explain what a start would do; returns the exit code that a
    start would have, or EXIT_STORE if a LUN would not be served."""
    # imported only here, because the master needs sockets
    from targetd.master import trial
    from targetd.master.exports import unit_identity

    try:
        configuration = loader.load(path)
    except ConfigError as e:
        return print_config_error(e)
    tried = trial.try_start(configuration)
    describe = unit_identity.describer(configuration.server)
    print_text(explain.explained(configuration, describe, tried.facts, tried.origins))
    warnings = lint.warnings(configuration) + lint.missing_keys(configuration)
    warnings += lint.overcommitted(configuration) + lint.contents(configuration)
    for warning in warnings + tried.notes:
        sys.stderr.write('targetd: warning: %s\n' % str(warning))
    for complaint in tried.waiting + tried.fatal:
        sys.stderr.write('targetd: %s\n' % str(complaint))
    if trial.summary(tried, configuration):
        sys.stderr.write('targetd: %s\n' % trial.summary(tried, configuration))
    return EXIT_PORTAL if strict and tried.waiting and not tried.exit_code else tried.exit_code


def print_config_error(error):
    """Print every complaint of a ConfigError; returns the exit code."""
    print_errors(str(error), error.exit_code)
    errors = words.counted(len(error.complaints), 'error')
    return print_errors('%s in the configuration; nothing was started' % errors, EXIT_CONFIG)


def take_over(path, chosen):
    """Replace the program that has run in this process, or try to; returns the exit code."""
    from targetd.master import daemon

    if chosen.try_take_over is not None:
        daemon.try_take_over(path, chosen.try_take_over)
    return daemon.take_over(chosen.take_over)


def serve(path, foreground, strict):
    """Load the configuration and start the server; returns the exit code. Raises TargetdError if the
    server cannot start."""
    # imported only here, because the master needs sockets
    from targetd.master import daemon, vault

    try:
        loaded = vault.load(path)
    except ConfigError as e:
        return print_config_error(e)
    for warning in loaded.warnings:
        sys.stderr.write('targetd: warning: %s\n' % str(warning))
    return daemon.run(path, loaded.configuration, foreground, loaded.vault, strict, loaded.whole)
