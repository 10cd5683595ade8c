"""targetd against Debian's tgtd on this machine, in one run: python -m tests.bench (or python
tests/bench).

Each workload runs in rounds, the two targets taking turns on files of the same length in the page
cache, driven by Debian's own clients over loopback; what counts is the median of the round-by-round
ratios. The second table has what a session may cost. Needs the packages tgt, libiscsi-bin,
qemu-utils and qemu-block-extra; for the digest rows also the Python package crc32c, and for tgtd
root. Run it on a machine that does nothing else; with more rounds the median varies less.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections import namedtuple

HERE = os.path.dirname(os.path.abspath(__file__))
# our own modules; daemon and initiator: the tests' plain modules
sys.path[:0] = [HERE, os.path.dirname(HERE)]

import limits  # noqa: E402
import report  # noqa: E402
import workloads  # noqa: E402
from servers import MIB, LoopFileSystem, Missing, Targetd, Tgtd, fill, machine  # noqa: E402

LOOP_IMAGE = 128  # MiB of each image on the loop device

Bench = namedtuple('Bench', 'directory python seconds rounds servers')


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        prog='python -m tests.bench',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--list', action='store_true', help='name the workloads and limits, and end'
    )
    parser.add_argument(
        '--only',
        default='',
        metavar='NAMES',
        help='these workloads and limits; write-* for several',
    )
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--seconds', type=int, default=3, help='length of each measurement')
    parser.add_argument('--size', type=int, default=1024, metavar='MIB', help='size of each image')
    parser.add_argument(
        '--quick', action='store_true', help='3 rounds of 1 second, images of 256 MiB'
    )
    parser.add_argument(
        '--python',
        default=sys.executable,
        help='the interpreter that runs targetd; default: this one',
    )
    parser.add_argument(
        '--dir', metavar='DIRECTORY', help='where the images go; default: that for temporary files'
    )
    parser.add_argument('--json', metavar='FILE', help='write everything that was measured')
    parser.add_argument('--svg', metavar='FILE', help='write a plot of the ratios')
    parser.add_argument('--markdown', metavar='FILE', help="write the README's tables")
    parser.add_argument(
        '--readme', metavar='FILE', help='replace the tables of this README by the new ones'
    )
    parser.add_argument(
        '--from',
        dest='source',
        metavar='FILE',
        help='measure nothing: show what --json wrote earlier',
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.seconds, options.size = 3, 1, 256
    if min(options.rounds, options.seconds) < 1 or options.size < 64:
        parser.error('at least 1 round of 1 second with images of 64 MiB')
    return options


class Run(object):
    """One run: the servers it has started, by their setup, and what it has found."""

    def __init__(self, options, directory):
        self._options = options
        self._directory = directory
        self._servers = {}
        self._loop = None
        self._images = [
            fill(os.path.join(directory, name), options.size * MIB)
            for name in ('targetd.img', 'tgtd.img')
        ]
        self.found = {
            'machine': machine(options.python),
            'rounds': options.rounds,
            'seconds': options.seconds,
            'workloads': [],
            'limits': [],
        }

    def _has_crc32c(self):
        return self.found['machine']['crc32c'] != 'python'

    def servers(self, name=None):
        """(targetd, tgtd) of this setup, started when they are first wanted; those of other setups are
        stopped. Raises Missing."""
        if name not in self._servers:
            self.stop()
            setup = workloads.SETUPS[name]
            images = self._images_on_loop() if setup.on_loop else self._images
            running = self._servers[name] = []
            running.append(
                Targetd(
                    self._directory,
                    self._options.python,
                    image=images[0],
                    target=['%s = CRC32C' % key for key in setup.keys],
                    lun=[] if setup.write_cache else ['write-cache = off'],
                )
            )
            digests = dict.fromkeys(setup.keys, 'CRC32C')
            running.append(Tgtd(self._directory, images[1], digests, setup.write_cache))
        return self._servers[name]

    def _images_on_loop(self):
        if self._loop is None:
            self._loop = LoopFileSystem(self._directory, (2 * LOOP_IMAGE + 64) * MIB)
            for name in ('targetd.img', 'tgtd.img'):
                fill(os.path.join(self._loop.path, name), LOOP_IMAGE * MIB)
        return [os.path.join(self._loop.path, name) for name in ('targetd.img', 'tgtd.img')]

    def stop(self):
        """Stop the servers."""
        for servers in self._servers.values():
            for server in servers:
                server.stop()
        self._servers.clear()

    def close(self):
        """Stop the servers and unmount what was mounted."""
        self.stop()
        if self._loop is not None:
            self._loop.close()

    def workload(self, row):
        """Measure one, or say why not."""
        if workloads.SETUPS[row.setup].keys and not self._has_crc32c():
            return {
                'name': row.name,
                'title': row.title,
                'missing': 'no crc32c package for %s' % self._options.python,
            }
        try:
            return workloads.measure(
                row,
                self.servers(row.setup),
                self._options.rounds,
                self._options.seconds,
                self._options.python,
            ).as_dict()
        except (workloads.Failed, Missing) as e:
            return {'name': row.name, 'title': row.title, 'missing': str(e)}

    def limit(self, row):
        """Measure one, or say why not."""
        bench = Bench(
            self._directory,
            self._options.python,
            self._options.seconds,
            self._options.rounds,
            self.servers() if getattr(row.run, 'needs_servers', True) else (),
        )
        try:
            return limits.measure(row, bench)
        except (workloads.Failed, Missing, AssertionError) as e:
            return {'name': row.name, 'title': row.title, 'missing': str(e)[-300:]}


def measure(options, names):
    """The whole run, shown while it goes on."""
    directory = tempfile.mkdtemp(prefix='targetd-bench-', dir=options.dir)
    os.chmod(directory, 0o755)  # workers run as nobody
    run = None
    try:
        run = Run(options, directory)
        print(report.machine_line(run.found['machine']))
        wanted = [row for row in workloads.TABLE if row.name in names]
        if wanted:
            print(report.HEADING, flush=True)
        for row in wanted:
            run.found['workloads'].append(run.workload(row))
            print(report.workload_line(run.found['workloads'][-1]), flush=True)
        for row in limits.TABLE:
            if row.name in names:
                run.found['limits'].append(run.limit(row))
                print(report.limit_line(run.found['limits'][-1]), flush=True)
        return run.found
    finally:
        if run is not None:
            run.close()
        shutil.rmtree(directory, ignore_errors=True)


def show(found):
    """What an earlier run found."""
    print(report.machine_line(found['machine']))
    print(report.HEADING)
    for row in found['workloads']:
        print(report.workload_line(row))
    for row in found['limits']:
        print(report.limit_line(row))


def write(path, text):
    """To a file; nothing for no path."""
    if path:
        with open(path, 'wb') as file:
            file.write(text.encode('utf-8'))


def main(arguments=None):
    """The exit code: 0 if every figure is reached, 1 if not, 2 if something could not be measured."""
    options = parse(arguments)
    both = workloads.TABLE + limits.TABLE
    if options.list:
        for row in both:
            print('%-24s %s' % (row.name, row.title))
        return 0
    if options.source:
        with open(options.source) as file:
            found = json.load(file)
        show(found)
    else:
        names = workloads.chosen([name for name in options.only.split(',') if name], both)
        try:
            found = measure(options, set(row.name for row in names))
        except (Missing, AssertionError) as e:  # the latter: a server that did not start
            sys.exit(str(e))
    write(options.json, json.dumps(found, indent=1, sort_keys=True) + '\n')
    write(options.markdown, report.markdown(found))
    write(options.svg, report.svg(found))
    if options.readme:
        with open(options.readme, 'rb') as file:
            text = file.read().decode('utf-8')
        write(options.readme, report.with_tables(text, found))
    rows = found['workloads'] + found['limits']
    return (
        2
        if any('missing' in row for row in rows)
        else 0
        if all(row['reached'] for row in rows)
        else 1
    )


if __name__ == '__main__':
    sys.exit(main())
