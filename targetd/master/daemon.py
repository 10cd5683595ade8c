"""The server process of the command `targetd`: pid file, background, the run of the master, exit code.

     starting command ---fork---> session leader ---fork---> the server
            |                                                   | opens stores, control socket, portals
            +<------------- one line on the status pipe --------+

The command that starts a server in the background returns when the server accepts logins, or with the
reason and the exit code if it cannot.
"""

import errno
import fcntl
import functools
import json
import os
import resource
import sys

from targetd import __version__, crc32c, log
from targetd.config.words import counted
from targetd.errors import EXIT_FAILURE, EXIT_OK, AlreadyRunning, StoreError, TargetdError
from targetd.host import network
from targetd.master import feasible
from targetd.master.log_files import start_log
from targetd.master.master import Master
from targetd.master.processes import child
from targetd.master.upgrade import handover
from targetd.master.vault import Vault, load
from targetd.trusted_path import open_trusted

OOM_SCORE = (
    '-500'  # the kernel kills other processes first: many hosts depend on the disks of this one
)
DIGESTS = ('HeaderDigest', 'DataDigest')
FAILURES = '.failures'  # suffix of the pid file's name: why the last stop was not clean
DESCRIPTORS = 16384  # limit of open files, if the host allows it: one per connection and disk


class PidFile(object):
    """The file with the process id of the server, which locks it as long as it runs: a crash leaves
    the file, but not the lock. descriptor: None until it is locked."""

    def __init__(self, path, descriptor=None):
        self.path = path
        self.descriptor = descriptor

    def lock_file(self):
        """Create and lock the file. Raises AlreadyRunning, TargetdError."""
        try:
            os.makedirs(os.path.dirname(self.path) or '.', 0o755, exist_ok=True)
            while self.descriptor is None:
                self._lock_once()
        except OSError as e:
            raise TargetdError(
                'the pid file %s cannot be written: %s; write another pid-file'
                % (self.path, e.strerror)
            )

    def _lock_once(self):
        # no symbolic link, and no descriptor for other users: any descriptor can hold a lock
        flags = os.O_RDWR | os.O_CREAT
        if os.path.islink(self.path):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), self.path)
        descriptor = open_trusted(self.path, flags, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not self._is_still_there(descriptor):
                os.close(descriptor)  # removed by its owner between open and lock
                return
        except OSError as e:
            pid = os.read(descriptor, 32)
            os.close(descriptor)
            if e.errno in (errno.EACCES, errno.EAGAIN):
                raise self._running(pid)
            raise
        self.descriptor = descriptor

    def _is_still_there(self, descriptor):
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _running(self, content):
        pid = content.decode('ascii', 'replace').strip()
        return AlreadyRunning(
            'targetd is running already%s: %s is locked; stop it with "targetdctl stop"'
            % (' (process %s)' % pid if pid else '', self.path)
        )

    def write(self):
        """Write the process id, and remove the failures of the last stop. A child does not inherit POSIX
        locks, so call it in the process that called lock_file()."""
        try:
            os.unlink(self.path + FAILURES)
        except OSError:
            pass
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, b'%d\n' % os.getpid(), 0)

    def leave_failures(self, sentences):
        """Write these sentences beside the file, if there are any: no process receives the exit code
        of a server in the background, so the init script looks for them."""
        if sentences:
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
                descriptor = open_trusted(self.path + FAILURES, flags, 0o644)
                with os.fdopen(descriptor, 'w', encoding='utf-8') as f:
                    f.write('\n'.join(sentences) + '\n')
            except OSError as e:
                log.error('%s cannot be written: %s', self.path + FAILURES, e.strerror)

    def remove(self):
        """Remove and unlock the file. Does nothing if it is not locked."""
        if self.descriptor is not None:
            try:
                os.unlink(self.path)
            except OSError:
                pass
            os.close(self.descriptor)
            self.descriptor = None


class Report(object):
    """Reports the outcome of the start to the starting command: one JSON line on a pipe. The pipe is
    closed without a line if the server dies."""

    def __init__(self, descriptor=None):
        self.descriptor = descriptor

    def send_outcome(self, exit_code, text=''):
        """Send the outcome; only the first call has an effect."""
        if self.descriptor is not None:
            os.write(
                self.descriptor,
                json.dumps({'exit_code': exit_code, 'text': text}).encode('utf-8') + b'\n',
            )
            os.close(self.descriptor)
            self.descriptor = None


def run(path, configuration, foreground=False, vault=None, strict=False, whole=None):
    """Run a server: in the foreground until it is stopped, in the background until it accepts logins.
    path: absolute; strict: do not start if a LUN or a portal cannot be served yet; whole: Vault with the
    text of the configuration, for the history. Returns the exit code. Raises TargetdError if the server
    cannot start."""
    serve = functools.partial(_serve, path, configuration, vault, strict, whole)
    if foreground:
        try:
            return serve(Report(), True)
        finally:
            log.stop()
    return _in_background(serve)


def _in_background(serve):
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = EXIT_FAILURE
        try:
            os.close(reading)
            code = _second_fork(serve, Report(writing))
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, 'rb') as pipe:
        line = pipe.readline()
    os.waitpid(pid, 0)
    if not line:
        raise TargetdError('targetd died while it started; its log may contain the reason')
    outcome = json.loads(line.decode('utf-8'))
    if outcome['exit_code'] != EXIT_OK:
        error = TargetdError(outcome['text'])
        error.exit_code = outcome['exit_code']
        raise error
    sys.stdout.write(outcome['text'])
    return EXIT_OK


def _second_fork(serve, report):
    """In the child: start a new session, and fork the server so that init becomes its parent."""
    os.setsid()
    if os.fork() != 0:
        return EXIT_OK
    os.chdir('/')
    os.umask(0o022)
    _leave_terminal()  # a job that hangs would keep the terminal, or the pipe of the init script
    code = EXIT_FAILURE
    try:
        code = serve(report, False)
    except TargetdError as e:
        log.error('%s', e)
        report.send_outcome(e.exit_code, str(e))
        code = e.exit_code
    except BaseException as e:  # the process ends here: the starting command must learn why
        log.exception('targetd ends because of an unexpected failure')
        report.send_outcome(EXIT_FAILURE, 'an unexpected failure: %r; the log has the details' % e)
    finally:
        log.stop()
    return code


def _serve(path, configuration, vault, strict, whole, report, foreground):
    server = configuration.server
    feasible.require_feasible(server)
    pid_file = PidFile(server.pid_file)
    pid_file.lock_file()
    try:
        writer = _start_log(server, foreground)
        _raise_limits()
        master = Master(path, configuration, foreground=foreground, vault=vault)
        master.pid_file = pid_file
        master.log_files.adopt_writer(writer)
        master.start()

        def begin():
            if strict and master.waiting():
                raise StoreError('\n'.join(master.waiting()))
            pid_file.write()
            _protect_from_oom_killer()
            _log_started(master)
            _log_digests(configuration)
            if network.psutil is None:
                log.warning(network.WITHOUT_PSUTIL)
            if whole is not None:
                master.history.record(whole, master.state.started, 'root', 'start')
            report.send_outcome(EXIT_OK, _outcome(master))

        _run_to_the_end(master, begin)
    finally:
        pid_file.remove()
    return master.stop.exit_code


def _run_to_the_end(master, begin):
    """Serve until the server ends. begin(): what is done first."""
    try:
        begin()
        master.notices.ready()
        master.run()
    finally:
        master.close()
    master.pid_file.leave_failures(master.stop.failures)


def take_over(descriptor):
    """Continue as the server that has run in this process until now, with the state in this memory file
    (ARCHITECTURE D24). Returns the exit code."""
    code = EXIT_FAILURE
    try:
        head, state = handover.read(descriptor)
        os.close(descriptor)
        writer = handover.use_log(state)
        master = _restored(head, state)

        def begin():
            handover.start_serving(master, state, head['version'], writer)
            child.name_process('targetd')

        try:
            _run_to_the_end(master, begin)
        finally:
            master.pid_file.remove()
        code = master.stop.exit_code
    except BaseException:  # nobody else reports it: the process ends here, and its workers with it
        log.exception('targetd ends because it could not take over')
    finally:
        log.stop()
    return code


def _restored(head, state):
    old = Vault(state['vault'])
    loaded = load(state['path'], old)
    for text in (loaded.whole, loaded.live):  # the history has this configuration
        text.close()
    master = Master(
        state['path'], loaded.configuration, foreground=state['foreground'], vault=loaded.vault
    )
    master.pid_file = PidFile(loaded.configuration.server.pid_file, state['pid_file'])
    handover.restore(master, state, head['version'])
    old.close()
    return master


def try_take_over(path, descriptor):
    """In a child process of the server: try what take_over() would do, without an effect on the server or its
    sessions. If the file has no state: load the configuration. Prints one line of JSON. Never returns."""
    child.die_with(os.getppid())
    outcome = {'version': __version__, 'refused': ''}
    try:
        head, state = handover.read(descriptor)
        if state is None:
            load(path)
        else:
            _restored(head, state)
    except TargetdError as e:
        outcome['refused'] = str(e)
    except Exception as e:  # the boundary: the server must learn why
        log.exception('the state cannot be taken over')
        outcome['refused'] = 'an unexpected failure: %r' % e
    os.write(1, json.dumps(outcome).encode('ascii') + b'\n')
    os._exit(EXIT_OK)  # nothing is closed: the server uses the same sockets


def _start_log(server, foreground):
    try:
        return start_log(server, foreground)
    except OSError as e:
        raise TargetdError(feasible.log_problem(server, e.strerror))


def _outcome(master):
    """What the command that started the server prints: how much is served, and what waits."""
    luns = sum(len(target.luns) for target in master.state.configuration.targets.values())
    portals = len(master.portals) + len(master.listeners.waiting)
    lines = ['warning: not served yet: %s' % sentence for sentence in master.waiting()]
    lines.append(
        'serving %d of %s on %d of %s'
        % (
            len(master.units.by_id),
            counted(luns, 'LUN'),
            len(master.portals),
            counted(portals, 'portal'),
        )
    )
    return ''.join('targetd: %s\n' % line for line in lines)


def _raise_limits():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as e:
            log.warning('no more than %d files and connections can be open at once: %s', soft, e)


def _protect_from_oom_killer():
    child.name_process('targetd')
    try:
        with open('/proc/self/oom_score_adj', 'w') as f:
            f.write(OOM_SCORE)
    except OSError:  # not root
        pass


def _log_started(master):
    configuration = master.state.configuration
    portals = ', '.join(
        '[%s]:%d' % (a, p) if ':' in a else '%s:%d' % (a, p) for _, a, p in sorted(master.portals)
    )
    log.info(
        'serving %s, %s, on %s (process %d)',
        counted(len(configuration.targets), 'target'),
        counted(len(master.units.by_id), 'LUN'),
        portals,
        os.getpid(),
    )


def _log_digests(configuration):
    """Warn once if digests are slow on this host and a target may use them."""
    log.debug('digests (CRC32C) are computed by: %s', crc32c.NAME)
    asked = any(
        'CRC32C' in target.keys[key] for target in configuration.targets.values() for key in DIGESTS
    )
    if asked and not crc32c.IS_FAST:
        log.warning(
            'digests (CRC32C) are slow on this host, some tens of megabytes per second, because neither '
            'the Python package crc32c nor CRC32C of the kernel (AF_ALG) is available: install one '
            '("pip install crc32c", "modprobe algif_hash"), or write HeaderDigest = None and '
            'DataDigest = None so that no initiator uses them'
        )


def _leave_terminal():
    sys.stdout.flush()
    sys.stderr.flush()
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.close(null)
