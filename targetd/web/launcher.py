"""`targetdctl web`: opens the port, and starts the page as an unprivileged user. It imports bottle late, so
that a missing package is one sentence.
"""

import json
import os
import pwd
import re
import signal
import socket
import stat
import subprocess
import sys
from collections import namedtuple

import targetd
from targetd.admin import secret_input
from targetd.admin.protocol import default_socket
from targetd.errors import EXIT_FAILURE, TargetdError
from targetd.web import gate, visitors

DEFAULT_LISTEN = '127.0.0.1:8260'
DEFAULT_USER = 'nobody'
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(targetd.__file__)))

#: address, port: where it listens; socket: the control socket; user: (uid, gid), or None if the page runs as
#: the user who started it; token: or None if the page is read-only.
Settings = namedtuple('Settings', 'address port socket user token hosts')


def endpoint(text):
    """(address, port) of 'ADDRESS:PORT', '[IPV6]:PORT' or 'ADDRESS'. Raises TargetdError."""
    match = re.match(r'^(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+|localhost))(?::([0-9]{1,5}))?$', text)
    port = int(match.group(3) or 8260) if match else 0
    if not 0 < port < 65536:
        raise TargetdError(
            '--listen %s is not ADDRESS:PORT; write for example %s' % (text, DEFAULT_LISTEN)
        )
    return match.group(1) or match.group(2).replace('localhost', '127.0.0.1'), port


def is_loopback(address):
    return address == '::1' or address.startswith('127.')


def unprivileged_user(name):
    """(uid, gid) of the user of the page, or None if this process is not root. Raises TargetdError."""
    if os.geteuid() != 0:
        if name:
            raise TargetdError(
                '--user needs root; without it the page runs as the user who starts it'
            )
        return None
    try:
        found = pwd.getpwnam(name or DEFAULT_USER)
    except KeyError:
        raise TargetdError('there is no user %s; write another --user' % (name or DEFAULT_USER))
    if found.pw_uid == 0:
        raise TargetdError('the page must not run as root; write another --user')
    return found.pw_uid, found.pw_gid


def read_token(path):
    """The token in a file, which is made with a random one if it does not exist. Raises TargetdError."""
    try:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            pass
        else:
            with os.fdopen(descriptor, 'w') as file:
                file.write(new_token() + '\n')
        with open(path, encoding='utf-8') as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode) or mode & 0o077:
                raise TargetdError('%s must be a file that only its owner may read; chmod 600 %s'
                                   % (path, path))  # fmt: skip
            token = file.readline().strip()
    except (OSError, UnicodeDecodeError) as e:
        raise TargetdError('the token cannot be read from %s: %s' % (path, e))
    if len(token) < visitors.SHORTEST_TOKEN:
        raise TargetdError(
            'the token in %s is shorter than %d characters' % (path, visitors.SHORTEST_TOKEN)
        )
    return token


def new_token():
    return secret_input.generated() + secret_input.generated()


def settings_of(parsed):
    """The Settings of a command line. Raises TargetdError."""
    address, port = endpoint(parsed.listen or DEFAULT_LISTEN)
    if not is_loopback(address) and not parsed.allow_remote:
        raise TargetdError(
            '--listen %s admits browsers of other hosts, and the page is not encrypted; use an SSH tunnel '
            '(ssh -L 8260:127.0.0.1:8260 SERVER) or a web server with TLS in front of it, or write '
            '--allow-remote' % address
        )
    if parsed.token_file and not parsed.allow_changes:
        raise TargetdError('--token-file is of use with --allow-changes only')
    token = None
    if parsed.allow_changes:
        token = read_token(parsed.token_file) if parsed.token_file else new_token()
    names = [name.strip() for name in (parsed.host_name or '').split(',') if name.strip()]
    wrong = [name for name in names if not visitors.host_of(name)]
    if wrong:
        raise TargetdError('--host-name %s is not the name of a host' % wrong[0])
    names.append(socket.gethostname())
    return Settings(
        address,
        port,
        parsed.socket or default_socket(),
        unprivileged_user(parsed.user),
        token,
        visitors.allowed_hosts(address, names),
    )


def listen(address, port):
    """A listening socket. Raises TargetdError."""
    listener = socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(32)
    except OSError as e:
        listener.close()
        raise TargetdError(
            'port %d of %s cannot be opened: %s; write another --listen'
            % (port, address, e.strerror)
        )
    return listener


def run(parsed):
    """Serve the page until the process is ended; returns the exit code. Raises TargetdError."""
    bottle = load_page()
    settings = settings_of(parsed)
    listener = listen(settings.address, settings.port)
    _announce(parsed, settings)
    if settings.user is None:
        from targetd.web import program

        digest = visitors.digest(settings.token) if settings.token else None
        a_gate = gate.Gate(settings.socket, settings.token is not None)
        program.serve([listener], a_gate, digest, settings.hosts)
        return EXIT_FAILURE
    return _run_with_relay(settings, listener, os.path.dirname(os.path.abspath(bottle.__file__)))


def load_page():
    """The module bottle. Raises TargetdError if it is missing."""
    try:
        import bottle
    except ImportError:
        raise TargetdError(
            'the status page needs the Python package bottle, the extra "web": %s -m pip install '
            '"targetd[web]", or apt-get install python3-bottle' % (sys.executable or 'python3')
        )
    return bottle


def _announce(parsed, settings):
    shown = '[%s]' % settings.address if ':' in settings.address else settings.address
    print('The status page is at http://%s:%d/ (%s)' % (
        shown, settings.port, 'changes are allowed' if settings.token else 'read-only'))  # fmt: skip
    if settings.token and not parsed.token_file:
        print('The token of the login, valid until this command ends, is %s' % settings.token)
    sys.stdout.flush()
    if not is_loopback(settings.address):
        print(
            'targetdctl: warning: everyone who reaches %s sees the state of the server, and can read '
            'the token and the cookie of a login on the way' % settings.address,
            file=sys.stderr,
        )


def _run_with_relay(settings, listener, folder_of_bottle):
    ours, theirs = socket.socketpair()
    command = [sys.executable, '-s', '-m', 'targetd.web.program', '--relay', str(theirs.fileno())]
    command += ['--listen', str(listener.fileno()), '--user', '%d:%d' % settings.user]
    environment = {'PYTHONPATH': os.pathsep.join([_ROOT, folder_of_bottle]), 'LANG': 'C.UTF-8'}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    page = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        env=environment,
        cwd='/',
        pass_fds=(theirs.fileno(), listener.fileno()),
    )
    theirs.close()
    listener.close()
    digest = visitors.digest(settings.token) if settings.token else None
    words = json.dumps({'token_digest': digest, 'hosts': sorted(settings.hosts)})
    page.stdin.write(words.encode('ascii'))
    page.stdin.close()
    try:
        gate.Relay(ours, gate.Gate(settings.socket, settings.token is not None)).run()
        raise TargetdError('the process of the status page ended (%d)' % page.wait())
    finally:
        ours.close()  # the page ends
        page.wait()
