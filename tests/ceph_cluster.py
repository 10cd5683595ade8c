"""A Ceph cluster of one node for tests: a monitor and one bluestore OSD on a sparse file of 2 GiB, in a
temporary folder, with cephx, on loopback. It needs Debian's PACKAGES, and is up in about 15 s. Quotas of
pools need a manager (start_manager; Debian: ceph-mgr; 300 MiB of memory and 15 s more), which counts what
they have.

An OSD that is paused for 25 s or more does not answer any more afterwards (its read lease has ended and
there is no peer to renew it), until `ceph osd down 0` makes it start anew: tests pause it for less than 15 s.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import uuid

from daemon import eventually, free_port

PROGRAMS = ('ceph-mon', 'ceph-osd', 'ceph', 'rbd', 'monmaptool', 'ceph-authtool')
PACKAGES = 'ceph-mon ceph-osd ceph-common ceph-base python3-rados python3-rbd'
#: The interpreter that has python3-rados and python3-rbd.
PYTHON = '/usr/bin/python3'
COMMAND_SECONDS = 120  # on a busy machine; some seconds on an idle one
MANAGER_SECONDS = 300  # it loads all its modules first: 15 s on an idle machine
OSD_BYTES = 2 << 30
#: What an administrator gives the user that targetd has.
CAPABILITIES = ('mon', 'profile rbd', 'osd', 'profile rbd pool=disks, profile rbd pool=states')

CONFIGURATION = """
[global]
fsid = {fsid}
mon_host = [v2:{address}:{port}]
mon_initial_members = a
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
keyring = {path}/$name.keyring
run_dir = {path}
log_file = {path}/$name.log
admin_socket =
log_to_stderr = false
err_to_stderr = true
public_network = {address}/24
ms_bind_ipv6 = false
ms_bind_msgr1 = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
mon_data_avail_crit = 1
mon_data_avail_warn = 1
mon_max_pg_per_osd = 500
auth_allow_insecure_global_id_reclaim = false
[mon.a]
mon_data = {path}/mon
keyring = {path}/mon/keyring
[osd.0]
osd_data = {path}/osd
osd_objectstore = bluestore
osd_memory_target = 939524096
bluestore_block_size = {bytes}
bluestore_block_create = true
bluestore_prefer_deferred_size = 0
[mgr.a]
mgr_data = {path}/mgr
mgr_initial_modules =
mgr_stats_period = 1
"""


def is_installed():
    """True if the programs and the Python modules of Debian's packages are here."""
    if any(shutil.which(program) is None for program in PROGRAMS):
        return False
    done = subprocess.run([PYTHON, '-c', 'import rados, rbd'], stderr=subprocess.DEVNULL)
    return done.returncode == 0


class Cluster(object):
    """path: an empty directory; address: IPv4 address of this host, where it listens. start() returns when
    the OSD serves and the pools `disks` and `states` are there; the user `targetd` has CAPABILITIES."""

    def __init__(self, path, address='127.0.0.1'):
        self.path, self.address = str(path), address
        self.conf = os.path.join(self.path, 'ceph.conf')
        self.fsid, self.port = str(uuid.uuid4()), free_port(address)
        self.mon = self.osd = self.mgr = None

    # -- life --------------------------------------------------------------------------------------

    def start(self):
        os.makedirs(os.path.join(self.path, 'osd'), exist_ok=True)
        with open(self.conf, 'w') as f:
            f.write(
                CONFIGURATION.format(
                    fsid=self.fsid,
                    address=self.address,
                    port=self.port,
                    path=self.path,
                    bytes=OSD_BYTES,
                )
            )
        self._make_monitor()
        self.start_monitor()
        self.command('config', 'set', 'mon', 'auth_allow_insecure_global_id_reclaim', 'false')
        self._make_osd()
        self.start_osd()
        for pool in ('disks', 'states'):
            self.command('osd', 'pool', 'create', pool, '8')
            self.rbd('pool', 'init', pool)  # waits until the OSD serves the pool
        self.command(
            'auth',
            'get-or-create',
            'client.targetd',
            *CAPABILITIES,
            '-o',
            os.path.join(self.path, 'client.targetd.keyring'),
        )
        return self

    def _make_monitor(self):
        admin, mon = self.path + '/client.admin.keyring', self.path + '/mon.keyring'
        _run('ceph-authtool', '-C', admin, '--gen-key', '-n', 'client.admin', '--cap', 'mon',
             'allow *', '--cap', 'osd', 'allow *', '--cap', 'mgr', 'allow *')  # fmt: skip
        _run('ceph-authtool', '-C', mon, '--gen-key', '-n', 'mon.', '--cap', 'mon', 'allow *')
        _run('ceph-authtool', mon, '--import-keyring', admin)
        _run('monmaptool', '--create', '--fsid', self.fsid, '--addv', 'a',
             '[v2:%s:%d]' % (self.address, self.port), self.path + '/monmap')  # fmt: skip
        _run(
            'ceph-mon',
            '-c',
            self.conf,
            '--mkfs',
            '-i',
            'a',
            '--keyring',
            mon,
            '--monmap',
            self.path + '/monmap',
        )

    def _make_osd(self):
        number = str(uuid.uuid4())
        assert self.command('osd', 'new', number).strip() == '0'
        self.command('auth', 'get-or-create', 'osd.0', 'mon', 'allow profile osd', 'osd', 'allow *',
                     '-o', self.path + '/osd.0.keyring')  # fmt: skip
        _run('ceph-osd', '-c', self.conf, '-i', '0', '--mkfs', '--osd-uuid', number)

    def start_monitor(self):
        self.mon = self._child('ceph-mon', '-i', 'a')
        self.command('-s')

    def start_osd(self):
        self.osd = self._child('ceph-osd', '-i', '0')

    def start_manager(self):
        """Start ceph-mgr, and wait until it counts."""
        os.makedirs(self.path + '/mgr', exist_ok=True)
        self.command('auth', 'get-or-create', 'mgr.a', 'mon', 'allow profile mgr', 'osd', 'allow *',
                     'mds', 'allow *', '-o', self.path + '/mgr.a.keyring')  # fmt: skip
        self.mgr = self._child('ceph-mgr', '-i', 'a')
        eventually(lambda: self.used('disks'), MANAGER_SECONDS, 'what ceph-mgr has counted')

    def stop_manager(self):
        """End ceph-mgr; nothing is counted any more."""
        self.mgr.kill()
        self.mgr.wait()
        self.mgr = None

    def used(self, pool):
        """The bytes that a pool has, as ceph-mgr has counted them; 0 without one."""
        pools = json.loads(self.command('df', '--format', 'json'))['pools']
        return sum(each['stats']['stored'] for each in pools if each['name'] == pool)

    def flags(self, pool):
        """The flags of a pool, a list of words."""
        pools = json.loads(self.command('osd', 'dump', '--format', 'json'))['pools']
        return next(each['flags_names'].split(',') for each in pools if each['pool_name'] == pool)

    def _child(self, program, *words):
        return subprocess.Popen(
            (program, '-f', '-c', self.conf) + words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def stop(self):
        """End the daemons; their data is not needed any more."""
        for process in (self.mgr, self.osd, self.mon):
            if process is not None:
                process.kill()
                process.wait()
        self.mgr = self.osd = self.mon = None

    def __enter__(self):
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *failure):
        self.stop()

    def image(self, name, megabytes=64, *words):
        """Makes an image in the pool `disks`; returns the rows of a LUN on it."""
        self.rbd('create', '--size', '%dM' % megabytes, 'disks/' + name, *words)
        return self.rows('rbd:disks/' + name)

    def rows(self, name):
        """The rows of a LUN on the medium of this name."""
        return ['backing-store = "%s"' % name, 'ceph-conf = "%s"' % self.conf]

    # -- use ---------------------------------------------------------------------------------------

    def pause_osd(self):
        self.osd.send_signal(signal.SIGSTOP)

    def resume_osd(self):
        self.osd.send_signal(signal.SIGCONT)

    def command(self, *words):
        """Returns what `ceph WORD...` prints."""
        return _run('ceph', '-c', self.conf, '--connect-timeout', '20', *words)

    def rbd(self, *words):
        """Returns what `rbd WORD...` prints."""
        return _run('rbd', '-c', self.conf, *words)

    def python(self, text, *words, seconds=COMMAND_SECONDS):
        """Returns what a program prints that has python3-rados and python3-rbd; it gets the words."""
        return _run(PYTHON, '-c', text, *words, seconds=seconds)


def _run(*words, seconds=COMMAND_SECONDS):
    done = subprocess.run(
        ('timeout', '-s', 'KILL', str(seconds)) + words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert done.returncode == 0, (words, done.returncode, done.stdout, done.stderr)
    return done.stdout.decode('utf-8', 'replace')


if __name__ == '__main__':  # python3 tests/ceph_cluster.py DIRECTORY: for trying things by hand
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    with Cluster(sys.argv[1]) as cluster:
        print('export CEPH_CONF=%s' % cluster.conf, flush=True)
        signal.pause()
