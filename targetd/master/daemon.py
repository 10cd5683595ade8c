"""From the command `targetd` to a server: pid file, background, the master's run, and the exit
code.

     starting command ---fork---> session leader ---fork---> the server
            |                                                   | opens stores, control socket, portals
            +<------------- one line on the status pipe --------+

The command that starts a server in the background returns only when it serves, or with the reason
and the exit code why not.
"""

import errno
import fcntl
import json
import os
import resource
import sys

import psutil

from targetd import crc32c, log
from targetd.config.words import counted
from targetd.errors import EXIT_FAILURE, EXIT_OK, AlreadyRunning, TargetdError
from targetd.master.log_files import start_log
from targetd.master.master import Master
from targetd.master.processes import child

OOM_SCORE = '-500'  # when memory runs out, others go before everybody's disks
DIGESTS = ('HeaderDigest', 'DataDigest')
DESCRIPTORS = 16384  # as many as the host allows, up to this: connections and disks need one each


class PidFile(object):
    """The file with our process id, locked as long as we live: a crash leaves the file, not the
    lock."""

    def __init__(self, path):
        self.path = path
        self._descriptor = None

    def take(self):
        """Create and lock it. Raises AlreadyRunning, TargetdError."""
        try:
            os.makedirs(os.path.dirname(self.path) or '.', 0o755, exist_ok=True)
            while self._descriptor is None:
                self._take_once()
        except OSError as e:
            raise TargetdError(
                'the pid file %s cannot be written: %s; write another pid-file'
                % (self.path, e.strerror)
            )

    def _take_once(self):
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not self._is_still_there(descriptor):
                os.close(descriptor)  # removed by its owner between our open and our lock
                return
            self._refuse_living(os.read(descriptor, 32))
        except OSError as e:
            pid = os.read(descriptor, 32)
            os.close(descriptor)
            if e.errno in (errno.EACCES, errno.EAGAIN):
                raise self._running(pid)
            raise
        except TargetdError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def _is_still_there(self, descriptor):
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _refuse_living(self, content):
        """Where locks do not work (NFS): the process that the file names may be a targetd that
        lives."""
        pid = int(content) if content.strip().isdigit() else 0
        if pid and pid != os.getpid() and is_targetd(pid):
            raise self._running(content)

    def _running(self, content):
        pid = content.decode('ascii', 'replace').strip()
        return AlreadyRunning(
            'targetd runs already%s: %s is locked; stop it with "targetdctl stop"'
            % (' (process %s)' % pid if pid else '', self.path)
        )

    def write(self):
        """Put our process id in it. POSIX locks do not pass a fork: the process that writes must be
        the one that took."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, b'%d\n' % os.getpid(), 0)

    def remove(self):
        """At the end."""
        if self._descriptor is not None:
            try:
                os.unlink(self.path)
            except OSError:
                pass
            os.close(self._descriptor)
            self._descriptor = None


def is_targetd(pid):
    """True if this process lives and is a targetd."""
    try:
        process = psutil.Process(pid)
        words = [process.name()] + process.cmdline()
        return process.status() != psutil.STATUS_ZOMBIE and any('targetd' in word for word in words)
    except psutil.Error:
        return False


class Report(object):
    """How the starting command learns what became of the start: one JSON line on a pipe, or nothing
    if we die."""

    def __init__(self, descriptor=None):
        self.descriptor = descriptor

    def say(self, exit_code, text=''):
        """Tell it, once."""
        if self.descriptor is not None:
            os.write(
                self.descriptor,
                json.dumps({'exit_code': exit_code, 'text': text}).encode('utf-8') + b'\n',
            )
            os.close(self.descriptor)
            self.descriptor = None


def run(path, configuration, foreground=False):
    """Serve. In the foreground until stopped; in the background it returns once the server serves.
    Returns the exit code, or raises TargetdError if the server cannot start."""
    if foreground:
        return _serve(path, configuration, Report(), True)
    return _in_background(path, configuration)


def _in_background(path, configuration):
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = EXIT_FAILURE
        try:
            os.close(reading)
            code = _second_fork(path, configuration, Report(writing))
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, 'rb') as pipe:
        line = pipe.readline()
    os.waitpid(pid, 0)
    if not line:
        raise TargetdError('targetd died while it started; its log may say why')
    outcome = json.loads(line.decode('utf-8'))
    if outcome['exit_code'] != EXIT_OK:
        error = TargetdError(outcome['text'])
        error.exit_code = outcome['exit_code']
        raise error
    return EXIT_OK


def _second_fork(path, configuration, report):
    """In the child: become a session of our own, and let the server be nobody's child."""
    os.setsid()
    if os.fork() != 0:
        return EXIT_OK
    os.chdir('/')
    os.umask(0o022)
    code = EXIT_FAILURE
    try:
        code = _serve(path, configuration, report, False)
    except TargetdError as e:
        log.error('%s', e)
        report.say(e.exit_code, str(e))
        code = e.exit_code
    except BaseException as e:  # the end of the process: somebody has to be told
        log.exception('targetd ends: an unexpected failure')
        report.say(EXIT_FAILURE, 'an unexpected failure: %r; the log has the details' % e)
    return code


def _serve(path, configuration, report, foreground):
    server = configuration.server
    pid_file = PidFile(server.pid_file)
    pid_file.take()
    try:
        _start_log(server, foreground)
        _raise_limits()
        master = Master(
            os.path.abspath(path) if path else path, configuration, foreground=foreground
        )
        master.start()
        try:
            pid_file.write()
            _be_important()
            _say_started(master)
            _say_digests(configuration)
            report.say(EXIT_OK)
            if not foreground:
                _leave_terminal()
            master.run()
        finally:
            master.close()
    finally:
        pid_file.remove()
    return EXIT_OK


def _start_log(server, foreground):
    try:
        start_log(server, foreground)
    except OSError as e:
        raise TargetdError(
            'the log cannot be written to %s: %s; write another log' % (server.log, e.strerror)
        )


def _raise_limits():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as e:
            log.warning('no more than %d files and connections can be open at once: %s', soft, e)


def _be_important():
    child.name_process('targetd')
    try:
        with open('/proc/self/oom_score_adj', 'w') as f:
            f.write(OOM_SCORE)
    except OSError:  # not root
        pass


def _say_started(master):
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


def _say_digests(configuration):
    """Once, and only where an initiator could be made to wait for it."""
    log.debug('digests (CRC32C) are computed by: %s', crc32c.NAME)
    asked = any(
        'CRC32C' in target.keys[key] for target in configuration.targets.values() for key in DIGESTS
    )
    if asked and not crc32c.IS_FAST:
        log.warning(
            'digests (CRC32C) are slow here, some tens of megabytes per second, because neither the Python package '
            'crc32c nor CRC32C of the kernel (AF_ALG) is there: install one ("pip install crc32c", "modprobe '
            'algif_hash"), or write HeaderDigest = None and DataDigest = None so that no initiator uses them'
        )


def _leave_terminal():
    sys.stdout.flush()
    sys.stderr.flush()
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.close(null)
