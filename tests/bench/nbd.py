"""Rows of limits.TABLE about LUNs on NBD servers: against a bare pipelined client of the same server
(bare_nbd.py), and against targetd's LUN on a file.

All use files of the same length in the page cache and take turns in each round; a figure is the median of
the ratios of the rounds. A LUN is driven over iSCSI by load.py, the bare client speaks to the server
itself, so what iSCSI costs is in the figure, too.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import namedtuple

from daemon import eventually
from servers import MIB, Targetd, fill, program
from workloads import Failed, flat

BARE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'bare_nbd.py')
SIZE = 128 * MIB
AREA = 64 * MIB
SERVERS = {
    'nbdkit': ['nbdkit', '-f', '-U', '{socket}', 'file', '{image}'],
    'qemu-nbd': ['qemu-nbd', '-t', '-e', '0', '-k', '{socket}', '-f', 'raw', '{image}'],
    'io_uring': [
        'qemu-nbd',
        '-t',
        '-e',
        '0',
        '-k',
        '{socket}',
        '--aio=io_uring',
        '-f',
        'raw',
        '{image}',
    ],
}

#: size: bytes of each command; depth; write: writes, or random reads.
Shape = namedtuple('Shape', 'size depth write')
READ_4K, WRITE_4K, WRITE_64K, READ_256K = (
    Shape(4096, 32, False),
    Shape(4096, 32, True),
    Shape(65536, 8, True),
    Shape(262144, 8, False),
)


class _Export(object):
    """An NBD server on a file. uri: of its export."""

    def __init__(self, directory, kind):
        image = fill(os.path.join(directory, 'nbd.img'), SIZE)
        socket = os.path.join(directory, 'nbd.sock')
        words = [word.format(socket=socket, image=image) for word in SERVERS[kind]]
        words[0] = program(words[0])
        self.uri = 'nbd+unix:///?socket=' + socket
        self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        eventually(lambda: os.path.exists(socket), 20, 'the NBD server')

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self._process.kill()
        self._process.wait(20)


def bare(uri, shape, seconds):
    """Operations per second of the bare client. Raises Failed."""
    command = [sys.executable, BARE, '--uri', uri, '--size', str(shape.size)]
    command += ['--depth', str(shape.depth), '--seconds', str(seconds), '--area', str(AREA)]
    done = subprocess.run(
        command + (['--write'] if shape.write else []),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        timeout=60 + 4 * seconds,
    )
    if done.returncode:
        raise Failed('bare_nbd.py: %s' % done.stderr.strip()[-300:])
    found = json.loads(done.stdout)
    return found['operations'] / found['seconds']


def through(server, python, shape, seconds):
    """Operations per second of a LUN."""
    more = ['--write'] if shape.write else []
    found = flat(server, python, seconds, shape.size, shape.depth, (0, AREA), *more)
    return found['operations'] / found['seconds']


def against_bare(kind, shape):
    """The row's run: the rate of a LUN on the server, as a ratio to the bare client's."""

    def run(bench):
        ratios = []
        directory = _directory(bench)
        with _Export(directory, kind) as export:
            with Targetd(directory, bench.python, image='"%s"' % export.uri) as server:
                for _ in range(bench.rounds):
                    other = bare(export.uri, shape, bench.seconds)
                    ratios.append(through(server, bench.python, shape, bench.seconds) / other)
        return statistics.median(ratios)

    run.needs_servers = False
    return run


def against_file(kind, shape):
    """The row's run: the rate of a LUN on the server, as a ratio to that of a LUN on a file."""

    def run(bench):
        ratios = []
        directory = _directory(bench)
        image = fill(os.path.join(directory, 'file.img'), SIZE)
        with _Export(directory, kind) as export:
            with Targetd(directory, bench.python, image='"%s"' % export.uri) as server:
                with Targetd(directory, bench.python, image=image) as file_server:
                    for _ in range(bench.rounds):
                        rates = [
                            through(each, bench.python, shape, bench.seconds)
                            for each in (server, file_server)
                        ]
                        ratios.append(rates[0] / rates[1])
        return statistics.median(ratios)

    run.needs_servers = False
    return run


def _directory(bench):
    directory = tempfile.mkdtemp(prefix='nbd-', dir=bench.directory)
    os.chmod(directory, 0o755)  # workers run as nobody
    return directory
