"""The `targetd` command: checks the configuration, starts the server, or runs the demo.

Entry point: may import base, config, master. Every error is printed here as one sentence per line
on stderr and sets one of the exit codes of targetd.errors.
"""

import argparse
import sys

import targetd
from targetd import demo, xts
from targetd.config import explain, lint, loader, render, words
from targetd.errors import EXIT_CONFIG, EXIT_FAILURE, EXIT_OK, EXIT_USAGE, ConfigError, TargetdError

CONFIGURATION = '/etc/targetd.conf'


def parser():
    """The argparse parser of the command line, which targetd(8) describes."""
    command = argparse.ArgumentParser(
        prog='targetd',
        add_help=False,
        description='An iSCSI target (storage server).',
        epilog='Exit codes: 0 success, 1 failure, 2 wrong command line, 3 configuration, '
        '4 portal, 5 backing store, 6 already running.',
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
    add('--version', action='version', version='targetd %s' % targetd.__version__)
    add('-h', '--help', action='help', help='show this and exit')
    return command


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
        if chosen.demo is not None:
            return demo.run_demo(chosen.demo)
        return serve(chosen.config or CONFIGURATION, chosen.foreground, chosen.test)
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


def serve(path, foreground, only_test):
    """Load and check the configuration; explain it (only_test), or start the server.

    Returns the exit code. Raises TargetdError if the server cannot start.
    """
    try:
        if not only_test:
            return _start(path, foreground)
        configuration = loader.load(path)
    except ConfigError as e:
        print_errors(str(e), e.exit_code)
        errors = words.counted(len(e.complaints), 'error')
        return print_errors('%s in the configuration; nothing was started' % errors, EXIT_CONFIG)
    from targetd.master.exports import unit_identity

    describe = unit_identity.describer(configuration.server)
    print_text(explain.explained(configuration, describe))
    for warning in (
        lint.warnings(configuration)
        + lint.missing_stores(configuration)
        + lint.contents(configuration)
    ):
        sys.stderr.write('targetd: warning: %s\n' % str(warning))
    return EXIT_OK


def _start(path, foreground):
    # imported only here, so that -t also works in an environment without sockets
    from targetd.master import daemon, vault

    configuration, secrets, warnings = vault.load(path)
    for warning in warnings:
        sys.stderr.write('targetd: warning: %s\n' % warning)
    return daemon.run(path, configuration, foreground, secrets)
