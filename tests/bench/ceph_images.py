"""Rows of limits.TABLE about LUNs on images of a Ceph cluster, against Debian's tgtd with tgt-rbd.

The cluster has one node and is started for the row (ceph_cluster.py: root, and Debian's Ceph packages). Each
target has an image of its own, filled with data, in the same pool; they take turns in each round, and the
figure is the median of the ratios of the rounds. No client flushes, so librbd's cache, which tgtd uses as
librbd has it, writes through. The OSD shares the processors with the targets, as everything here does: what
a target spends for a command, the OSD does not have.
"""

import os
import statistics
import tempfile

import ceph_cluster
from nbd import SIZE, through
from servers import Missing, Targetd, Tgtd, fill

MODULE = '/usr/lib/tgt/backing-store/bs_rbd.so'


def against_tgt(shape):
    """The row's run: the rate of a LUN of targetd, as a ratio to one of tgtd."""

    def run(bench):
        if not (os.path.exists(MODULE) and ceph_cluster.is_installed()):
            raise Missing('it needs the packages tgt-rbd %s' % ceph_cluster.PACKAGES)
        directory = tempfile.mkdtemp(prefix='ceph-', dir=bench.directory)
        os.chmod(directory, 0o755)  # workers run as nobody
        cluster = ceph_cluster.Cluster(os.path.join(directory, 'cluster'))
        with cluster:
            with _targetd(bench, directory, cluster) as ours, _tgtd(directory, cluster) as other:
                return statistics.median(_ratios(bench, shape, ours, other))

    run.needs_servers = False
    return run


def _ratios(bench, shape, ours, other):
    ratios = []
    for number in range(bench.rounds):
        rates = {}
        for server in (ours, other) if number % 2 == 0 else (other, ours):
            rates[server] = through(server, bench.python, shape, bench.seconds)
        ratios.append(rates[ours] / rates[other])
    return ratios


def _image(cluster, directory, name):
    path = fill(os.path.join(directory, name), SIZE)
    cluster.rbd('import', '--no-progress', path, 'disks/' + name)
    os.unlink(path)
    return 'disks/' + name


def _targetd(bench, directory, cluster):
    image = 'rbd:' + _image(cluster, directory, 'targetd')
    rows = ['ceph-conf = "%s"' % cluster.conf]
    return Targetd(directory, bench.python, image='"%s"' % image, lun=rows)


def _tgtd(directory, cluster):
    options = 'conf=%s;id=targetd' % cluster.conf
    return Tgtd(directory, _image(cluster, directory, 'tgtd'), store=('rbd', options))
