"""A fake machine: /sys, /dev, /proc, /run and /etc in one directory; device nodes are plain files."""

import os

from targetd.host.roots import Roots


class FakeHost(Roots):
    """Roots of a fake machine: a test adds disks and stacked devices and passes this object as
    `roots`. The file of a device node contains its 'major:minor'."""

    def __init__(self, top):
        self.top = str(top)
        super(FakeHost, self).__init__(
            *(os.path.join(self.top, name) for name in ('sys', 'dev', 'proc', 'run', 'etc'))
        )
        for directory in (self.sys, self.dev, self.proc, self.run, self.block()):
            os.makedirs(directory)
        self.busy = set()
        self.mount_lines = []
        self.minor = 0

    def device_number(self, path):
        real = os.path.realpath(path)
        if not real.startswith(self.dev + '/') or not os.path.isfile(real):
            return None
        with open(real) as f:
            return f.read() or None

    def character_number(self, path):
        return self.device_number(path)

    def is_busy(self, path):
        return os.path.realpath(path) in self.busy

    def write(self, path, content):
        """Writes a file below the top directory and creates its directories."""
        path = os.path.join(self.top, path)
        if not os.path.isdir(os.path.dirname(path)):
            os.makedirs(os.path.dirname(path))
        with open(path, 'wb') as f:
            f.write(content if isinstance(content, bytes) else content.encode('utf-8'))
        return path

    def link(self, path, target):
        """Creates a symbolic link below the top directory to an absolute path."""
        path = os.path.join(self.top, path)
        if not os.path.isdir(os.path.dirname(path)):
            os.makedirs(os.path.dirname(path))
        os.symlink(target, path)
        return path

    def disk(
        self,
        name,
        place='devices/pci0000:00/ata1/host0/target0:0:0/0:0:0:0/block',
        size=1000**4,
        **files,
    ):
        """Adds a block device and returns its node. place: its directory below /sys; files: path
        (with '__' for '/') -> content."""
        directory = os.path.join(self.sys, place, name)
        self._device(name, directory, size)
        files.setdefault('queue__rotational', '1\n')
        for path, content in files.items():
            self.write(os.path.join(directory, path.replace('__', '/')), content)
        return self.node(name)

    def partition(self, disk, number, size=1000**3):
        """Adds a partition of a disk and returns its node."""
        name = '%s%s%d' % (disk, 'p' if disk[-1].isdigit() else '', number)
        directory = os.path.join(os.path.realpath(self.block(disk)), name)
        self._device(name, directory, size)
        self.write(os.path.join(directory, 'partition'), '%d\n' % number)
        return self.node(name)

    def _device(self, name, directory, size):
        self.minor += 1
        number = '8:%d' % self.minor
        self.write(os.path.join(directory, 'dev'), number + '\n')
        self.write(os.path.join(directory, 'size'), '%d\n' % (size // 512))
        self.write(os.path.join(directory, 'ro'), '0\n')
        os.makedirs(os.path.join(directory, 'holders'))
        self.write(self.node(name), number)
        self.link(self.block(name), directory)
        self.link(os.path.join(self.sys, 'dev', 'block', number), directory)

    def holds(self, holder, held):
        """Makes `holder` (a kernel name) a holder of `held`."""
        os.symlink(
            os.path.realpath(self.block(holder)),
            os.path.join(os.path.realpath(self.block(held)), 'holders', holder),
        )

    def mapped(self, name, dm_name, uuid, *held):
        """Adds a device-mapper device on other devices."""
        self.disk(name, 'devices/virtual/block', dm__name=dm_name + '\n', dm__uuid=uuid + '\n')
        for each in held:
            self.holds(name, each)

    def number(self, name):
        with open(self.block(name, 'dev')) as f:
            return f.read().strip()

    def mount(self, number, source, point, kind='ext4', process='self', namespace='mnt:[1]'):
        """Adds a mount to /proc/PROCESS/mountinfo; number: 'major:minor' or a kernel name."""
        number = number if ':' in number else self.number(number)
        directory = os.path.join(self.proc, process)
        line = '36 25 %s / %s rw,relatime shared:1 - %s %s rw\n' % (
            number,
            point.replace(' ', '\\040'),
            kind,
            source,
        )
        path = os.path.join(directory, 'mountinfo')
        old = open(path).read() if os.path.exists(path) else ''
        self.write(path, old + line)
        if not os.path.lexists(os.path.join(directory, 'ns', 'mnt')):
            self.link(os.path.join(directory, 'ns', 'mnt'), namespace)

    def process(self, pid, program, *opened):
        """Adds a process that has these paths open."""
        self.write('proc/%d/comm' % pid, program + '\n')
        for i, path in enumerate(opened):
            self.link('proc/%d/fd/%d' % (pid, i), path)
