"""What a freshly forked child does before it is a worker, or does a job: it lets go of
everything that is the master's.

The order matters. Descriptors first (the master holds open disks, listeners and other workers'
channels: D4), then signals, then privileges, then the death signal (changing credentials clears
it), then the check that the master still lives. The Python objects of the closed descriptors stay
referenced from the frames below, so no finalizer closes a reused number.
"""

import ctypes
import grp
import os
import pwd
import signal
import sys

from targetd import log

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15

#: What the master acts on; held back around a fork, because its handlers write to the master's
#: pipe.
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
    """What ps and top show for this process (15 bytes at most)."""
    _libc.prctl(PR_SET_NAME, ctypes.c_char_p(name.encode('ascii')), 0, 0, 0)


def close_descriptors(kept):
    """Close every descriptor of this process that is not in `kept`."""
    for name in os.listdir('/proc/self/fd'):
        if int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:  # the listing's own
                pass


def reset_signals():
    """What stops, reloads or hangs up the server is the master's to act on, and often comes to the
    whole process group (Ctrl-C, init systems): a worker obeys its channel, and SIGKILL."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def credentials_of(user):
    """(uid, gid, groups) of a user name or number, for drop_privileges. Raises KeyError if there is
    no such user.

    Looked up in the master, once: the libraries that this loads would cost each worker half a
    megabyte of its own.
    """
    entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
    groups = sorted(
        {entry.pw_gid} | {g.gr_gid for g in grp.getgrall() if entry.pw_name in g.gr_mem}
    )
    return entry.pw_uid, entry.pw_gid, groups


def drop_privileges(credentials):
    """Become this user for good; nothing unless we are root. credentials: of credentials_of, or
    None. Raises OSError."""
    if os.geteuid() != 0 or credentials is None:
        return
    uid, gid, groups = credentials
    os.setgroups(groups)
    os.setgid(gid)
    os.setuid(uid)


def die_with(master):
    """Be killed when the master dies, whatever kills it; at once if it is dead already."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != master:
        os._exit(0)


def _be_expendable():
    try:
        with open('/proc/self/oom_score_adj', 'w') as f:
            f.write('0')
    except OSError:
        pass


def fork(fork, inside):
    """Fork: inside() runs in the child, which ends when that returns or raises. Returns the child's
    process id. Raises OSError.

    fork: os.fork, or what a test puts in its place.
    """
    held = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        pid = fork()
        if pid == 0:
            try:
                # before they are let in again: the pipe of set_wakeup_fd is the master's
                reset_signals()
                signal.pthread_sigmask(signal.SIG_SETMASK, held)
                inside()
            finally:
                os._exit(1)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    return pid


def become_job_process(channel, kept, master):
    """As become_worker, but with the master's rights and the descriptors `kept`."""
    close_descriptors({0, 1, 2, channel.fileno(), log.descriptor()} | set(kept))
    name_process('targetd-job')
    die_with(master)


def become_worker(channel, credentials, master):
    """All of the above. After it the process holds its channel, standard input, output and error,
    and the log."""
    close_descriptors({0, 1, 2, channel.fileno(), log.descriptor()})
    reset_signals()
    name_process('targetd-worker')
    _be_expendable()
    drop_privileges(credentials)
    die_with(master)


def run(channel, credentials, master, serve):
    """Become a worker, call serve(channel), exit. Never returns, whatever happens."""
    code = 1
    try:
        become_worker(channel, credentials, master)
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
