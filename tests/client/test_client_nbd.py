"""Real initiators with LUNs on exports of NBD servers: libiscsi's suite over two paths, and qemu-img."""

import os

import clients
import pytest
from daemon import TARGET, free_port

pytestmark = pytest.mark.client

SECONDS = 400


def test_no_test_of_libiscsis_suite_fails_on_an_export_of_nbdkit(nbdkit, daemon):
    clients.need('iscsi-test-cu')
    other = free_port()
    daemon.text.portal('127.0.0.1:%d' % other)
    store = 'backing-store = "%s"' % nbdkit('memory', '256M').uri
    daemon.target(TARGET, luns={0: [store, 'thin = yes']})
    daemon.start()
    clients.require_suite_passes('export of nbdkit', daemon, other, SECONDS)


def test_a_qcow2_image_behind_qemu_nbd(qemu_nbd, daemon, tmp_path):
    """A raw image is copied to the LUN by qemu's own initiator, and is equal in the qcow2 file."""
    clients.need('qemu-img', 'qemu-nbd')
    raw, qcow2 = str(tmp_path / 'raw'), str(tmp_path / 'disk.qcow2')
    with open(raw, 'wb') as f:
        f.write(os.urandom(3 << 20))
        f.truncate(16 << 20)
        f.seek(12 << 20)
        f.write(os.urandom(1 << 20))
    clients.output('qemu-img', 'create', '-q', '-f', 'qcow2', qcow2, '16M')
    server = qemu_nbd('-e', '0', '-f', 'qcow2', '--discard=unmap', qcow2)
    daemon.target(TARGET, luns={0: ['backing-store = "%s"' % server.uri, 'thin = yes']})
    daemon.start()
    url = 'iscsi://127.0.0.1:%d/%s/0' % (daemon.port, TARGET)
    clients.output('qemu-img', 'convert', '-n', '-f', 'raw', '-O', 'raw', raw, url)
    assert 'identical' in clients.output('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', raw, url)
    daemon.stop()
    server.close()
    assert 'identical' in clients.output('qemu-img', 'compare', '-F', 'qcow2', raw, qcow2)
