"""The two targets that are measured, started on loopback, and what the kernel says they cost.

Both serve a file of their own, equally long and filled with the same bytes, which stays in the page
cache. Both run with their defaults, but for what a measurement is about. Linux only. Python 3.6 and
later.
"""

import os
import re
import shutil
import signal
import subprocess
import tempfile

from daemon import ROOT, Daemon, eventually, free_port, is_listening

TICKS = float(os.sysconf('SC_CLK_TCK'))
MIB = 1 << 20
IQN = 'iqn.2026-11.test.targetd:bench'
ROOM_FOR_ALL = 10000
#: The Caching mode page of tgt-admin's `write-cache off`.
CACHE_OFF = 'mode_page=8:0:18:0x10:0:0xff:0xff:0:0:0xff:0xff:0xff:0xff:0x80:0x14:0:0:0:0:0:0'


class Missing(Exception):
    """Something that the measurement needs is not installed."""


def program(name):
    """The path of a program, also where only root's PATH would find it. Raises Missing."""
    found = shutil.which(name, path=os.environ.get('PATH', '') + ':/usr/sbin:/sbin')
    if not found:
        raise Missing(
            '%s is not installed (Debian: tgt, libiscsi-bin, qemu-utils, qemu-block-extra)' % name
        )
    return found


def fill(path, size):
    """A file of `size` bytes, no holes, in the page cache and on the disk, so that nothing is
    written back meanwhile."""
    block = os.urandom(MIB)
    with open(path, 'wb') as file:
        for _ in range(size // MIB):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return path


class LoopFileSystem(object):
    """ext4 on a loop device, whose flushes reach the file below it. directory: where its files go.
    Raises Missing: it needs root and loop devices."""

    def __init__(self, directory, size):
        self._below = os.path.join(directory, 'loop.img')
        self.path = os.path.join(directory, 'loop')
        with open(self._below, 'wb') as file:
            file.truncate(size)
        os.mkdir(self.path)
        self._run('mkfs.ext4', '-q', '-F', self._below)
        self._run('mount', '-o', 'loop', self._below, self.path)
        os.chmod(self.path, 0o755)

    @staticmethod
    def _run(name, *arguments):
        try:
            subprocess.check_output((program(name),) + arguments, stderr=subprocess.STDOUT)
        except subprocess.CalledProcessError as e:
            raise Missing('%s: %s' % (name, e.output.decode('utf-8', 'replace').strip()[-200:]))

    def close(self):
        """Unmount it."""
        self._run('umount', self.path)


# -- what /proc says -------------------------------------------------------------------------------


def stat_fields(pid):
    """/proc/PID/stat from the third field on; None if the process is gone."""
    try:
        with open('/proc/%d/stat' % pid) as file:
            text = file.read()
    except (OSError, IOError):
        return None
    return text[text.rindex(')') + 2 :].split()


def tree(pid):
    """The process and everything below it."""
    children = {}
    for name in os.listdir('/proc'):
        fields = stat_fields(int(name)) if name.isdigit() else None
        if fields:
            children.setdefault(int(fields[1]), []).append(int(name))
    found = [pid]
    for each in found:  # grows while it is walked
        found.extend(children.get(each, ()))
    return found


def cpu_seconds(pid, children=True):
    """User and system time of a process; with `children` also of all below it and of those that it
    has already reaped."""
    total = 0
    for each in tree(pid) if children else [pid]:
        fields = stat_fields(each)
        if fields:
            total += sum(int(field) for field in fields[11 : 15 if children else 13])
    return total / TICKS


def pss(pids):
    """Bytes of memory, what is shared counted in proportion."""
    total = 0
    for each in pids:
        try:
            with open('/proc/%d/smaps_rollup' % each) as file:
                total += sum(int(line.split()[1]) << 10 for line in file if line.startswith('Pss:'))
        except (OSError, IOError):
            pass  # it ended meanwhile
    return total


def session_workers(daemon, count):
    """Wait until `daemon` has its spare workers beside `count` of sessions; the whole tree of
    processes.

    A spare is forked after a login has taken one, so memory is only comparable when they are all
    there."""
    spares = int(daemon.text.server.get('spare-workers', 2))

    def complete():
        has_all = len(daemon.workers()) == spares + count
        return tree(daemon.process.pid) if has_all else None

    return eventually(complete, 60, '%d workers, %d spare ones' % (count, spares))


# -- the servers -----------------------------------------------------------------------------------


class Targetd(object):
    """targetd, one LUN 1. lun: further lines of its [[lun]] section; target: of its [target]
    section; server: settings."""

    name = 'targetd'

    def __init__(self, directory, python, size=None, image=None, lun=(), target=(), **server):
        self.directory = tempfile.mkdtemp(prefix='targetd-', dir=directory)
        os.chmod(self.directory, 0o755)
        self.daemon = Daemon(self.directory, python)
        self.iqn = IQN
        image = image or self.daemon.image('disk.img', size)
        settings = {
            'max-sessions': ROOM_FOR_ALL,
            'max-connections-per-address': ROOM_FOR_ALL,
            'log-level': 'warning',
        }
        self.daemon.text.server.update(settings)
        self.daemon.text.server.update(server)
        self.daemon.target(
            self.iqn,
            ['initiator-address = ALL'] + list(target),
            {1: ['backing-store = %s' % image] + list(lun)},
        )
        self.daemon.start()

    @property
    def port(self):
        return self.daemon.port

    @property
    def pid(self):
        return self.daemon.process.pid

    def stop(self):
        """End it, whatever state it is in."""
        if self.daemon.process is not None:
            try:
                self.daemon.stop()
            except AssertionError:
                pass  # killed: it did not stop in time
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.stop()


class Tgtd(object):
    """Debian's tgtd, one LUN 1. parameters: {name: value} of `tgtadm --op update`; write_cache: False clears
    WCE; store: kind of the store, and its options; portal: (address, port), a free port of the loopback
    interface without."""

    name = 'tgtd'

    def __init__(
        self,
        directory,
        image,
        parameters=None,
        write_cache=True,
        store=('rdwr', None),
        portal=None,
        iqn=IQN,
    ):
        self.iqn = iqn
        address, self.port = portal or ('127.0.0.1', free_port())
        self._control = str(os.getpid() % 30000 + 1)
        self._log = open(os.path.join(directory, 'tgtd.log'), 'wb')
        self._process = subprocess.Popen(
            [
                program('tgtd'),
                '-f',
                '-C',
                self._control,
                '--iscsi',
                'portal=%s:%d' % (address, self.port),
            ],
            stdout=self._log,
            stderr=self._log,
        )
        try:
            eventually(lambda: is_listening((address, self.port)), 15, 'tgtd listening')
            self._admin('--op', 'new', '--mode', 'target', '--tid', '1', '-T', self.iqn)
            for name, value in (parameters or {}).items():
                self._admin(
                    '--op',
                    'update',
                    '--mode',
                    'target',
                    '--tid',
                    '1',
                    '--name',
                    name,
                    '--value',
                    value,
                )
            self._admin(
                '--op',
                'new',
                '--mode',
                'logicalunit',
                '--tid',
                '1',
                '--lun',
                '1',
                '-b',
                image,
                '--bstype',
                store[0],
                *(('--bsopts', store[1]) if store[1] else ()),
            )
            if not write_cache:
                unit = ('--mode', 'logicalunit', '--tid', '1', '--lun', '1')
                self._admin('--op', 'update', *(unit + ('--params', CACHE_OFF)))
            self._admin('--op', 'bind', '--mode', 'target', '--tid', '1', '-I', 'ALL')
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self):
        return self._process.pid

    def _admin(self, *arguments):
        subprocess.check_output(
            (program('tgtadm'), '-C', self._control, '--lld', 'iscsi') + arguments,
            stderr=subprocess.STDOUT,
        )

    def stop(self):
        """End it."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.stop()


# -- the machine -----------------------------------------------------------------------------------


def _first_line(*command):
    try:
        out = subprocess.check_output(command, stderr=subprocess.STDOUT, cwd=ROOT).decode(
            'utf-8', 'replace'
        )
    except (OSError, subprocess.CalledProcessError):
        return '?'
    return out.strip().split('\n')[0]


def _package_version(name):
    return _first_line('dpkg-query', '-W', '-f', '${Version}', name)


def machine(python):
    """What the figures depend on, for the report: {word: text}."""
    with open('/proc/cpuinfo') as file:
        model = re.search(r'model name\s*:\s*(.*)', file.read())
    return {
        'processor': model.group(1) if model else os.uname().machine,
        'cores': os.cpu_count(),
        'memory': '%d GiB'
        % round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / float(1 << 30)),
        'kernel': os.uname().release,
        'python': _first_line(
            python,
            '-c',
            'import platform as p; print(p.python_implementation(), p.python_version())',
        ),
        'crc32c': _first_line(python, '-c', 'from targetd.crc32c import NAME; print(NAME)'),
        'tgt': _package_version('tgt'),
        'libiscsi': _package_version('libiscsi-bin'),
        'qemu': _package_version('qemu-utils'),
    }
