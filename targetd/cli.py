"""The `targetd` command: check the configuration, start the server, or show it off.

The front door: may import base, config, master. Everything that goes wrong ends here as one plain
sentence on stderr and one of the exit codes in targetd.errors.
"""

import argparse
import sys

import targetd
from targetd import demo, xts
from targetd.config import explain, lint, loader, render
from targetd.errors import EXIT_CONFIG, EXIT_FAILURE, EXIT_OK, EXIT_USAGE, ConfigError, TargetdError

CONFIGURATION = '/etc/targetd.conf'


def parser():
    """The command line; also what targetd(8) describes."""
    command = argparse.ArgumentParser(
        prog='targetd',
        add_help=False,
        description='An iSCSI target (storage server).',
        epilog='Exit codes: 0 all right, 1 failure, 2 wrong command line, 3 configuration, '
        '4 portal, 5 backing store, 6 already running.',
    )
    add = command.add_argument
    add('-c', '--config', metavar='FILE', help='the configuration; %s if not given' % CONFIGURATION)
    add(
        '-f',
        '--foreground',
        action='store_true',
        help='stay in the foreground, for service managers and for trying out',
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
        help='serve a sparse 1 GiB disk at this address (%s) in the foreground, without any configuration'
        % demo.ADDRESS,
    )
    add(
        '--help-settings',
        nargs='?',
        const='',
        metavar='NAME',
        help='explain all settings of the configuration, or this one',
    )
    add(
        '--make-key',
        metavar='FILE',
        help='make a key for an encrypted disk, and exit; an existing file is left alone',
    )
    add('--version', action='version', version='targetd %s' % targetd.__version__)
    add('-h', '--help', action='help', help='show this and exit')
    return command


def main(arguments=None):
    """Run the command; returns the exit code. arguments: without the program's name, sys.argv if
    None."""
    command = parser()
    chosen = command.parse_args(arguments)
    if chosen.demo is not None and (chosen.config or chosen.test):
        return complain('--demo brings its own configuration: leave -c and -t out', EXIT_USAGE)
    try:
        if chosen.help_settings is not None:
            return help_settings(chosen.help_settings)
        if chosen.make_key is not None:
            return make_key(chosen.make_key)
        if chosen.demo is not None:
            return demo.run(chosen.demo)
        return serve(chosen.config or CONFIGURATION, chosen.foreground, chosen.test)
    except TargetdError as e:
        return complain(str(e), e.exit_code)


def complain(text, exit_code):
    """Every line to stderr with the program's name; returns the exit code."""
    for line in text.split('\n'):
        sys.stderr.write('targetd: %s\n' % line)
    return exit_code


def say(text):
    """To stdout, in a locale without the characters too (LANG=C)."""
    encoding = sys.stdout.encoding or 'ascii'
    sys.stdout.write(text.encode(encoding, 'backslashreplace').decode(encoding))


def help_settings(name):
    """Print what the manual page says of all settings, or of one."""
    text = render.plain_help(name)
    if not text:
        return complain('there is no setting %s%s' % (name, render.meant(name)), EXIT_USAGE)
    say(text)
    return EXIT_OK


def make_key(path):
    """A key file for encryption-key-file."""
    from targetd.master.state import key_files

    if xts.why_not():
        return complain(xts.why_not(), EXIT_FAILURE)
    key_files.make_key(path)
    say(
        'The key is in %s. Keep a copy of it in a safe place: without it nothing on its disk can be read.\n'
        % path
    )
    return EXIT_OK


def serve(path, foreground, only_test):
    """Load and check the configuration; explain it, or start the server."""
    try:
        configuration = loader.load(path)
    except ConfigError as e:
        count = len(e.complaints)
        complain(str(e), e.exit_code)
        return complain(
            '%d complaint%s; nothing was started' % (count, '' if count == 1 else 's'), EXIT_CONFIG
        )
    if only_test:
        say(explain.explained(configuration))
        for warning in (
            lint.warnings(configuration)
            + lint.missing_stores(configuration)
            + lint.contents(configuration)
        ):
            sys.stderr.write('targetd: warning: %s\n' % str(warning))
        return EXIT_OK
    for warning in lint.warnings(configuration):
        sys.stderr.write('targetd: warning: %s\n' % str(warning))
    # not before it is needed: -t works where no socket is allowed
    from targetd.master import daemon

    return daemon.run(path, configuration, foreground)
