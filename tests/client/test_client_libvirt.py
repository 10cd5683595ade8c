"""libvirt's storage pool of type iscsi-direct: a libvirtd of its own, with the storage driver only, finds
the LUNs of a target and wipes one."""

import os
import shutil
import subprocess
import tempfile

import clients
import pytest
from daemon import TARGET, eventually

pytestmark = pytest.mark.client

SECONDS = 60
INITIATOR = 'iqn.2026-11.test.targetd:libvirt'
POOL = """<pool type='iscsi-direct'><name>targetd</name><source>
<host name='127.0.0.1' port='%d'/><device path='%s'/><initiator><iqn name='%s'/></initiator>
</source></pool>"""
CONFIGURATION = """unix_sock_dir = "%s"
auth_unix_ro = "none"
auth_unix_rw = "none"
"""


@pytest.fixture
def virsh():
    """virsh(word, …) -> output of virsh, which is connected to a libvirtd of its own."""
    clients.need('libvirtd', 'virsh')
    if os.geteuid() != 0:
        pytest.skip('a libvirtd with a configuration of its own needs root')
    # a path of a Unix socket is short
    folder = tempfile.mkdtemp(prefix='libvirt-')
    drivers = [os.path.join(base, 'libvirt', 'connection-driver') for base in _library_folders()]
    storage = [os.path.join(each, 'libvirt_driver_storage.so') for each in drivers]
    os.mkdir(folder + '/drivers')
    for each in filter(os.path.exists, storage):
        os.symlink(each, folder + '/drivers/libvirt_driver_storage.so')
    with open(folder + '/libvirtd.conf', 'w') as file:
        file.write(CONFIGURATION % folder)
    # the other drivers need users and programs that this test does not
    environment = dict(
        clients.ENVIRONMENT, LIBVIRT_DRIVER_DIR=folder + '/drivers', XDG_RUNTIME_DIR=folder
    )
    with open(folder + '/output', 'w') as output:
        server = subprocess.Popen(
            ['libvirtd', '-f', folder + '/libvirtd.conf', '-p', folder + '/pid'],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    address = 'storage:///system?socket=%s/libvirt-sock' % folder

    def run(*words):
        code, text = clients.run('virsh', '-c', address, *words, seconds=SECONDS)
        assert code == 0, text
        return text

    try:
        eventually(lambda: os.path.exists(folder + '/libvirt-sock'), SECONDS, 'the socket')
        yield run
    finally:
        server.terminate()
        server.wait(SECONDS)
        shutil.rmtree(folder)


def _library_folders():
    return [os.path.join('/usr/lib', name) for name in os.listdir('/usr/lib')] + ['/usr/lib64']


def test_an_iscsi_direct_pool_lists_and_wipes_luns(daemon, virsh, ready):
    """It shows LUN 300 as the field of REPORT LUNS: 16684 (412Ch), or 300 with the setting
    `lun-addressing = peripheral`."""
    luns = {
        number: ['backing-store = %s' % daemon.image('%d.img' % number, 8 << 20)]
        for number in (0, 1, 300)
    }
    daemon.target(TARGET, ['initiator-address = ALL', 'lun-addressing = peripheral'], luns)
    daemon.start()
    session = ready(daemon)
    session.clear_attentions(1)
    session.write(0, b'\xee' * 4096, lun=1)
    pool = os.path.join(daemon.directory, 'pool.xml')
    with open(pool, 'w') as file:
        file.write(POOL % (daemon.port, TARGET, INITIATOR))
    where = ['127.0.0.1', str(daemon.port), '--initiator', INITIATOR]
    found = virsh('find-storage-pool-sources-as', 'iscsi-direct', *where)
    assert TARGET in found
    virsh('pool-create', pool)
    listed = virsh('vol-list', 'targetd', '--details')
    for number in luns:
        assert 'unit:0:0:%d ' % number in listed, listed
    assert listed.count('8.00 MiB') == 2 * len(luns)
    virsh('vol-wipe', 'unit:0:0:1', '--pool', 'targetd')
    assert session.read(0, 8, lun=1) == bytes(4096)
    virsh('pool-destroy', 'targetd')
