"""A fresh Debian 12 in a directory, in which a test installs targetd as a user would.

The system is made once by debootstrap and kept ($XDG_CACHE_HOME/targetd-tests); each test gets a layer of
its own above it. The packages that the tests install are in its cache of apt and its directory of wheels,
so that the tests need no network: they run in a network namespace that has only a loopback interface.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile

import namespaces
from daemon import ROOT

SUITE = 'bookworm'
MIRROR = 'http://deb.debian.org/debian'
VERSION = 2  # of the kept system; increase it when the lists below change
#: What apt finds without a network. The first packages are those that targetd-iscsi needs.
PACKAGES = (
    'python3-configobj', 'adduser', 'python3-crc32c', 'python3-psutil', 'python3-venv', 'openrc', 'runit',
    's6', 'execline', 'busybox', 'libxml2-utils', 'resource-agents',
)  # fmt: skip
#: What pip finds without a network.
WHEELS = ('configobj==5.0.9', 'setuptools==75.8.2', 'wheel==0.45.1', 'psutil==7.0.0')
WHEEL_FOLDER = '/var/cache/wheels'
BUILD_SECONDS = 900


def build(kind, out, tree=ROOT):
    """Build a package of a source tree with its own script; returns the directory with the result."""
    run(os.path.join(tree, 'packaging', 'build'), kind, str(out))
    return str(out)


def base():
    """The path of the kept system, which is made if it is not there yet."""
    cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    path = os.path.join(cache, 'targetd-tests', '%s-%d' % (SUITE, VERSION))
    if not os.path.isdir(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        new = tempfile.mkdtemp(prefix=path + '.')
        try:
            _make(new)
            os.chmod(new, 0o755)
            os.rename(new, path)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return path


def _make(root):
    run('debootstrap', '--variant=minbase', '--include=python3', SUITE, root, MIRROR)
    with open(root + '/etc/dpkg/dpkg.cfg.d/tests', 'w') as file:
        file.write('force-unsafe-io\n')  # nothing here has to survive a power failure
    with mounted(root):
        run('chroot', root, 'apt-get', 'install', '-q', '-y', '-d', *PACKAGES)
    run('python3', '-m', 'pip', 'download', '-q', '--no-deps', '-d', root + WHEEL_FOLDER, *WHEELS)


def run(*command):
    environment = dict(os.environ, DEBIAN_FRONTEND='noninteractive', LC_ALL='C')
    # of conftest.py: the compiled files of the system would be there, and not where they belong
    environment.pop('PYTHONPYCACHEPREFIX', None)
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=BUILD_SECONDS,
    )
    assert done.returncode == 0, (command, done.stdout.decode('utf-8', 'replace')[-4000:])


@contextlib.contextmanager
def mounted(root):
    """/proc and /dev of the host are below this directory in the `with` block."""
    for kind, place in (('proc', '/proc'), ('devtmpfs', '/dev')):
        run('mount', '-t', kind, kind, root + place)
    try:
        yield
    finally:
        for place in ('/dev', '/proc'):
            run('umount', '-l', root + place)


class Chroot(object):
    """A layer above the kept system, in a network namespace. root: its path; transcript: the commands that
    were run in it and what they printed."""

    def __init__(self, root, namespace):
        self.root = root
        self.namespace = namespace
        self.transcript = ''

    def run(self, command, seconds=120):
        """Run a line of shell in the system; returns (exit code, output)."""
        done = subprocess.run(
            ['ip', 'netns', 'exec', self.namespace.name, 'chroot', self.root, 'sh', '-c', command],
            env={
                'PATH': '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
                'HOME': '/root',
                'DEBIAN_FRONTEND': 'noninteractive',
                'PIP_NO_INDEX': '1',
                'PIP_FIND_LINKS': WHEEL_FOLDER,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
        )
        output = done.stdout.decode('utf-8', 'replace')
        self.transcript += '# %s\n%s' % (command, output)
        return done.returncode, output

    def must(self, command, seconds=120):
        """Run a line of shell in the system, which succeeds; returns its output."""
        code, output = self.run(command, seconds)
        assert code == 0, 'exit code %d of the last command:\n%s' % (code, self.transcript)
        return output

    def host(self, *command):
        """Run a program of the host in the network namespace; returns its output."""
        done = subprocess.run(
            ('ip', 'netns', 'exec', self.namespace.name) + command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
        )
        output = done.stdout.decode('utf-8', 'replace')
        assert done.returncode == 0, (command, output, self.transcript)
        return output

    def put(self, source, path):
        """Copy a file or a directory of the host into the system."""
        if os.path.isdir(source):
            shutil.copytree(source, self.root + path)
        else:
            shutil.copy(source, self.root + path)

    def write(self, path, text, mode='w'):
        with open(self.root + path, mode) as file:
            file.write(text)

    def exists(self, path):
        return os.path.lexists(self.root + path)

    def processes(self):
        """The ids of the processes whose root directory this is."""
        found = []
        for pid in os.listdir('/proc'):
            try:
                if pid.isdigit() and os.readlink('/proc/%s/root' % pid) == self.root:
                    found.append(int(pid))
            except OSError:
                pass
        return found


@contextlib.contextmanager
def fresh(directory):
    """A Chroot; its layer is in this directory. What still runs in it at the end is killed."""
    lower = base()
    upper, work, root = (os.path.join(str(directory), name) for name in ('upper', 'work', 'root'))
    for path in (upper, work, root):
        os.makedirs(path)
    options = 'lowerdir=%s,upperdir=%s,workdir=%s' % (lower, upper, work)
    run('mount', '-t', 'overlay', 'overlay', '-o', options, root)
    namespace = namespaces.Namespace('targetd-%d-%d' % (os.getpid(), os.stat(upper).st_ino))
    try:
        with mounted(root):
            chroot = Chroot(root, namespace)
            try:
                yield chroot
            finally:
                for pid in chroot.processes():
                    try:
                        os.kill(pid, 9)
                    except ProcessLookupError:
                        pass
    finally:
        namespace.remove()
        run('umount', '-l', root)
