"""What the [server] section asks for and this host cannot do. `targetd -t`, the start and a reload use the
same functions, so that their answers are the same. They change nothing.
"""

import os
import pwd

from targetd import log, xts
from targetd.errors import EXIT_FAILURE, TargetdError
from targetd.host import identity
from targetd.master.control.control import group_id
from targetd.master.processes import child, log_writer, sandbox
from targetd.master.units import guards

LONGEST_SOCKET_PATH = 107  # bytes, unix(7)
NO_PROC = (
    '/proc is not mounted, and targetd needs it to find its descriptors and the users of disks; mount it '
    'with "mount -t proc proc /proc"'
)

OWN_USER = 'targetd'  # the default of the setting `user`


def require_feasible(server, in_force=None):
    """Raise TargetdError, which names everything that is not possible. in_force: the Server of the running
    master, whose settings are not checked again; the log is tried by master.log_files then, because a
    file system may hang."""
    found = problems(server, in_force)
    if found:
        error = TargetdError('\n'.join(text for text, _ in found))
        error.exit_code = found[0][1]
        raise error


def problems(server, in_force=None):
    """[(sentence, exit code of the start)] for a config.model.Server; in_force as above."""
    if not os.path.isdir('/proc/self/fd'):
        return [(NO_PROC, EXIT_FAILURE)]
    found = []
    for setting, check in CHECKS:
        if in_force is not None and setting in ('log',) + _unchanged(server, in_force):
            continue
        try:
            check(server)
        except TargetdError as e:
            found.append((str(e), e.exit_code))
    return found


def _unchanged(server, in_force):
    return tuple(s for s, _ in CHECKS if getattr(server, s) == getattr(in_force, s))


def _user(server):
    found = credentials(server.user)
    if found is not None:
        why = child.why_not_become(found)
        if why:
            raise TargetdError(
                'the workers cannot run as user %s: %s; start targetd with the capabilities CAP_SETUID and '
                'CAP_SETGID, in a user namespace that maps this user, or write user = root'
                % (user_in_force(server.user), why)
            )


def _sandbox(server):
    why_not = sandbox.why_not() if server.sandbox == 'required' else None
    if why_not:
        raise TargetdError('sandbox = required, but %s; write sandbox = auto' % why_not)


def _log(server):
    try:
        log_writer.try_destination(server.log)
    except OSError as e:
        raise TargetdError(log_problem(server, e.strerror))


def log_problem(server, why):
    """The sentence for a log that cannot be written; why: of the operating system."""
    directory = os.path.dirname(server.log)
    if not os.path.isdir(directory):
        return (
            'the log cannot be written to %s: there is no directory %s; create it, or write another log'
            % (server.log, directory)
        )
    return 'the log cannot be written to %s: %s; write another log' % (server.log, why)


def _pid_file(server):
    why = (
        'it is a directory'
        if os.path.isdir(server.pid_file)
        else _why_no_directory(server.pid_file)
    )
    if why:
        raise TargetdError(
            'the pid file %s cannot be written: %s; write another pid-file' % (server.pid_file, why)
        )


def _control_group(server):
    group_id(server.control_group)


def _control_socket(server):
    path = server.control_socket
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        why = 'its path is longer than %d bytes' % LONGEST_SOCKET_PATH
    elif os.path.isdir(path) or os.path.isfile(path):
        why = 'there is a file of that name'
    else:
        why = _why_no_directory(path)
    if why:
        raise TargetdError(
            'the control socket %s cannot be opened: %s; write another control-socket' % (path, why)
        )


def _state_dir(server):
    path = os.path.join(server.state_dir, 'x')
    why = _why_no_directory(path)
    if why:
        raise TargetdError(
            'state-dir %s cannot be used: %s; write another state-dir' % (server.state_dir, why)
        )
    identity.require_sound_server_id(server.state_dir)


#: (field of the Server, function that raises TargetdError)
CHECKS = (
    ('user', _user),
    ('sandbox', _sandbox),
    ('log', _log),
    ('pid_file', _pid_file),
    ('control_group', _control_group),
    ('control_socket', _control_socket),
    ('state_dir', _state_dir),
)


def _why_no_directory(path):
    """Why a file of this path can neither be created nor replaced, or ''. Missing directories are
    created by the start."""
    directory = os.path.dirname(path)
    while not os.path.lexists(directory):
        directory = os.path.dirname(directory)
    if not os.path.isdir(directory):
        return '%s is not a directory' % directory
    if os.geteuid() != 0 and not os.access(directory, os.W_OK | os.X_OK):
        return 'this user may not write to %s' % directory
    return ''


def user_in_force(user):
    """The user that the workers of this setting run as: `nobody` if the host has no user `targetd`."""
    if user == OWN_USER:
        try:
            pwd.getpwnam(user)
        except KeyError:
            return 'nobody'
    return user


def credentials(user):
    """The credentials of the workers of a root master (child.credentials_of), else None. Raises
    TargetdError if there is no such user."""
    if os.geteuid() != 0 or not user:
        return None
    try:
        return child.credentials_of(user_in_force(user))
    except (KeyError, OverflowError):
        raise TargetdError(
            'there is no user %s for the workers; write another user, or create it' % user
        )


def sandbox_rules(configuration):
    """The sandbox.Rules of workers, or None for `sandbox = off`. Raises TargetdError if a sandbox is
    required and not available."""
    if configuration.server.sandbox == 'off':
        return None
    _sandbox(configuration.server)
    luns = [lun for target in configuration.targets.values() for lun in target.luns.values()]
    xts.why_not()  # loads the library of ciphers, if there is one: a confined worker cannot
    why_not = sandbox.why_not()
    if why_not:
        log.warning('workers run without a filter of system calls: %s', why_not)
    may_open = any(
        lun.atomic_writes
        or guards.journal_bytes(lun)
        or any(word.split()[0] == 'trace' for word in lun.filter)
        for lun in luns
    )
    may_command = any(lun.type == 'passthrough' for lun in luns)
    return sandbox.Rules(not why_not, may_open, may_command)
