"""What a newly forked child does before it runs as a worker or runs a job: it closes or resets
everything that belongs to the master.

The order matters. The child first closes descriptors (the master holds open disks, listening sockets
and the channels of other workers: ARCHITECTURE D4). Then it resets signals, drops privileges and sets
its death signal (a change of credentials clears it), and last it checks that the master still runs.
The Python objects of the closed descriptors stay referenced from the frames of the master's code, so
no finalizer closes a descriptor number that is in use again.
"""

import ctypes
import grp
import os
import pwd
import signal
import sys

from targetd import log
from targetd.channel import ChannelClosed
from targetd.master.processes import sandbox, scrub

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15

#: The signals that the master handles. They are blocked around a fork, because until the child has
#: reset them a signal would be written to the master's wakeup pipe.
SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGPIPE,
    signal.SIGCHLD,
)

_libc = ctypes.CDLL(None, use_errno=True)


def name_process(name):
    """Set the name that ps and top show for this process (15 bytes at most)."""
    _libc.prctl(PR_SET_NAME, ctypes.c_char_p(name.encode('ascii')), 0, 0, 0)


def close_descriptors(kept):
    """Close every descriptor of this process that is not in `kept`."""
    for name in os.listdir('/proc/self/fd'):
        if int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:  # the descriptor of the listing itself
                pass


def reset_signals():
    """Ignore the signals that stop, reload or hang up the server: only the master handles them, and
    they often go to the whole process group (Ctrl-C, init systems). A child obeys its channel, and
    SIGKILL."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def credentials_of(user):
    """(uid, gid, groups) of a user name or number, for drop_privileges. Raises KeyError if there is
    no such user.

    Call it once, in the master: the libraries that it loads would cost each worker half a megabyte
    of private memory.
    """
    entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
    groups = sorted(
        {entry.pw_gid} | {g.gr_gid for g in grp.getgrall() if entry.pw_name in g.gr_mem}
    )
    return entry.pw_uid, entry.pw_gid, groups


def drop_privileges(credentials):
    """Become this user permanently. Does nothing unless the process runs as root, or for the user root.
    credentials: what credentials_of() returned, or None. Raises OSError."""
    if os.geteuid() != 0 or credentials is None or credentials[0] == 0:
        return
    uid, gid, groups = credentials
    os.setgroups(groups)
    os.setgid(gid)
    os.setuid(uid)


def why_not_become(credentials):
    """Try drop_privileges() in a child process: why it is not possible, or ''."""
    reading, writing = os.pipe()

    def inside():
        try:
            drop_privileges(credentials)
        except OSError as e:
            os.write(writing, e.strerror.encode('utf-8'))
        os._exit(0)

    try:
        pid = fork(os.fork, inside)
    except OSError:  # the start itself reports that no process can be forked
        os.close(reading)
        return ''
    finally:
        os.close(writing)
    with os.fdopen(reading, 'rb') as pipe:
        why = pipe.read()
    os.waitpid(pid, 0)
    return why.decode('utf-8')


def die_with(master):
    """Have the kernel kill this process when the master dies. Exit now if it is dead already.

    master: its process id."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != master:
        os._exit(0)


def _reset_oom_score():
    try:
        with open('/proc/self/oom_score_adj', 'w') as f:
            f.write('0')
    except OSError:
        pass


def fork(fork, inside):
    """Fork a child that runs inside() and exits when that returns or raises.

    fork: os.fork, or a substitute of a test. Returns the child's process id. Raises OSError.
    """
    held = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        pid = fork()
        if pid == 0:
            try:
                # before they are unblocked: the pipe of set_wakeup_fd belongs to the master
                reset_signals()
                signal.pthread_sigmask(signal.SIG_SETMASK, held)
                inside()
            finally:
                os._exit(1)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    return pid


def become_job_process(channel, kept, master):
    """Make this child a job process: it keeps the master's privileges and the descriptors `kept`."""
    close_descriptors({0, 1, 2, channel.fileno(), log.descriptor()} | set(kept))
    name_process('targetd-job')
    die_with(master)


def forget_standard_files():
    """Replace standard input, output and error by /dev/null."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.close(null)


def _log_to_master(channel):
    """A line of the log is a report to the master (master.log_files)."""

    def send(level, text, kind):
        try:
            channel.send({'report': 'log', 'level': level, 'text': text, 'kind': kind})
        except (ChannelClosed, OSError):  # the master is gone: so is this process, soon
            pass

    log.start_remote(send)


def become_worker(channel, credentials, master, rules, secrets=()):
    """Make this child a worker process. rules: sandbox.Rules, or None; secrets: keys in hex digits
    that the master has and the worker shall not have. Afterwards its only descriptor is its channel,
    beside /dev/null as standard input, output and error. Raises OSError."""
    _log_to_master(channel)
    scrub.forget(secrets)
    if rules is not None:
        forget_standard_files()
    close_descriptors({0, 1, 2, channel.fileno()})
    reset_signals()
    name_process('targetd-worker')
    _reset_oom_score()
    if rules is not None:
        sandbox.drop_capabilities()
    drop_privileges(credentials)
    die_with(master)
    if rules is not None:
        sandbox.confine(rules)


def run_worker(channel, credentials, master, serve, rules=None, secrets=()):
    """Become a worker, call serve(channel), exit. Never returns."""
    code = 1
    try:
        become_worker(channel, credentials, master, rules, secrets)
        serve(channel)
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
    except BaseException:
        # the process ends here; the master sees the exit code, the log the reason
        log.exception('a worker met an unexpected failure')
    finally:
        try:
            sys.stdout.flush()
        except (OSError, ValueError, AttributeError):
            pass
        os._exit(code)
