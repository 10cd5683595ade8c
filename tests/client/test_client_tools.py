"""Tests with the tools of libiscsi and qemu as an administrator runs them: without CHAP, with CHAP,
with a wrong secret, with digests, over IPv4 and IPv6."""

import filecmp
import os
import re
import subprocess

import clients
import pytest
from clients import need, run
from daemon import TARGET, eventually, free_port, has_ipv6, watched
from initiator import pattern

pytestmark = pytest.mark.client

SECRET = 'iqn.2026-11.test.targetd:secret'
MUTUAL = 'iqn.2026-11.test.targetd:mutual'
ACCOUNT = ('erp', 'secret-of-12-to-16')
ADDRESSES = ['ipv4', 'ipv6']


def url(address, target=TARGET, lun=0, account=None, options=''):
    """A libiscsi URL. `account`: (name, secret); `options`: 'header_digest=crc32c&…'."""
    host, port = address
    host = '[%s]' % host if ':' in host else host
    who = '%s%%%s@' % account if account else ''
    return 'iscsi://%s%s:%d/%s/%d%s' % (
        who,
        host,
        port,
        target,
        lun,
        '?' + options if options else '',
    )


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """A daemon on IPv4 and IPv6 with three targets; .addresses: {'ipv4': …, 'ipv6': …}."""
    with watched(tmp_path_factory.mktemp('clients')) as daemon:
        daemon.addresses = {'ipv4': daemon.address}
        if has_ipv6():
            other = free_port('::1')
            daemon.text.portal('[::1]:%d' % other)
            daemon.addresses['ipv6'] = ('::1', other)
        everyone = ['initiator-address = ALL']
        daemon.target(TARGET, everyone + ['alias = Disks for clients'])
        daemon.target(SECRET, everyone + ['incominguser = %s %s' % ACCOUNT])
        daemon.target(
            MUTUAL,
            everyone + ['incominguser = %s %s' % ACCOUNT, 'outgoinguser = erp-back another-secret'],
        )
        daemon.start()
        for address in daemon.addresses.values():
            daemon.wait_listening(address)
        yield daemon


def address_of(world, family):
    if family not in world.addresses:
        pytest.skip('no IPv6 on this machine')
    return world.addresses[family]


# -- libiscsi --------------------------------------------------------------------------------------


@pytest.mark.parametrize('family', ADDRESSES)
def test_iscsi_ls(world, family):
    need('iscsi-ls')
    host, port = address_of(world, family)
    portal = '%s:%d' % ('[%s]' % host if ':' in host else host, port)
    output = clients.output('iscsi-ls', 'iscsi://' + portal)
    found = re.findall(r'Target:(\S+) Portal:(\S+)', output)
    assert {name for name, _ in found} == {TARGET, SECRET, MUTUAL}
    assert (TARGET, portal + ',1') in found
    output = clients.output('iscsi-ls', '-s', 'iscsi://%s@%s' % ('%'.join(ACCOUNT), portal))
    assert len(re.findall(r'Lun:0\s+Type:DIRECT_ACCESS \(Size:6\dM\)', output)) >= 2, output


@pytest.mark.parametrize('family', ADDRESSES)
@pytest.mark.parametrize('digest', ['none', 'crc32c'])
def test_iscsi_readcapacity16(world, family, digest):
    need('iscsi-readcapacity16')
    output = clients.output(
        'iscsi-readcapacity16',
        '-s',
        url(address_of(world, family), options='header_digest=' + digest),
    )
    assert output.strip() == str(64 << 20)


@pytest.mark.parametrize('page', [None, 0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2])
def test_iscsi_inq(world, page):
    need('iscsi-inq')
    words = [] if page is None else ['-e', '1', '-c', str(page)]
    output = clients.output('iscsi-inq', *(words + [url(world.address)]))
    expected = {
        None: 'Peripheral Device Type:DIRECT_ACCESS',
        0x00: 'Page:',
        0x80: 'Unit Serial Number',
        0x83: 'Designator',
        0xB0: 'unmap',
        0xB1: 'rotation',
        0xB2: 'provisioning',
    }[page]
    assert re.search(expected, output, re.I), output


@pytest.mark.parametrize('family', ADDRESSES)
def test_chap(world, family):
    need('iscsi-inq')
    address = address_of(world, family)
    clients.output('iscsi-inq', url(address, SECRET, account=ACCOUNT))
    options = 'target_user=erp-back&target_password=another-secret'
    clients.output('iscsi-inq', url(address, MUTUAL, account=ACCOUNT, options=options))


@pytest.mark.parametrize(
    'target, account, options',
    [
        (SECRET, None, ''),
        (SECRET, ('erp', 'wrong'), ''),
        (SECRET, ('somebody', 'secret-of-12-to-16'), ''),
        (MUTUAL, ('erp', 'wrong'), 'target_user=erp-back&target_password=another-secret'),
    ],
)
def test_wrong_chap_is_refused_with_the_right_status(world, target, account, options):
    need('iscsi-inq')
    code, output = run('iscsi-inq', url(world.address, target, account=account, options=options))
    assert code != 0
    assert 'Authentication failure(513)' in output, output  # 0201h


def test_the_client_detects_a_target_that_fails_mutual_chap(world):
    need('iscsi-inq')
    options = 'target_user=x&target_password=not-this-one'
    code, _ = run('iscsi-inq', url(world.address, MUTUAL, account=ACCOUNT, options=options))
    assert code != 0


def test_unknown_target_and_lun(world):
    need('iscsi-inq')
    code, output = run('iscsi-inq', url(world.address, 'iqn.2026-11.test.targetd:no-such'))
    assert code != 0 and 'Target not found(515)' in output, output  # 0203h
    code, output = run('iscsi-readcapacity16', url(world.address, lun=7))
    assert code != 0


# -- qemu ------------------------------------------------------------------------------------------


def qemu_image(address, target=TARGET, account=None, digest='none', lun=0):
    """Returns (options, arguments) that name the disk for qemu's tools."""
    host, port = address
    host = '[%s]' % host if ':' in host else host
    words = [
        'driver=raw',
        'file.driver=iscsi',
        'file.transport=tcp',
        'file.portal=%s:%d' % (host, port),
        'file.target=%s' % target,
        'file.lun=%d' % lun,
        'file.header-digest=%s' % digest,
    ]
    objects = []
    if account:
        objects = ['--object', 'secret,id=chap,data=%s' % account[1]]
        words += ['file.user=%s' % account[0], 'file.password-secret=chap']
    return objects, ','.join(words)


CASES = [
    ('ipv4', TARGET, None, 'none'),
    ('ipv4', TARGET, None, 'none-crc32c'),
    ('ipv4', TARGET, None, 'crc32c-none'),
    ('ipv4', SECRET, ACCOUNT, 'none'),
    ('ipv6', TARGET, None, 'none'),
    ('ipv6', SECRET, ACCOUNT, 'crc32c'),
]


@pytest.fixture(scope='module')
def disk_image(tmp_path_factory):
    """A partitioned 64 MiB image with an ext4 file system in it and random data behind."""
    need('sfdisk', 'mkfs.ext4')
    path = str(tmp_path_factory.mktemp('image') / 'disk.img')
    with open(path, 'wb') as file:
        file.truncate(64 << 20)
        file.seek(40 << 20)
        file.write(os.urandom(8 << 20))
    partition(path)
    clients.output('mkfs.ext4', '-q', '-F', '-E', 'offset=%d' % (1 << 20), path, '30M')
    return path


def partition(path):
    """Writes a GPT with two partitions: 1–33 MiB, and the remaining space."""
    done = subprocess.run(
        ['sfdisk', '-q', '--no-reread', '--no-tell-kernel', path],
        input=b'label: gpt\nstart=2048, size=65536\nstart=67584\n',
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout.decode()


@pytest.mark.parametrize('family, target, account, digest', CASES)
def test_qemu_img_convert_in_and_out(world, disk_image, tmp_path, family, target, account, digest):
    need('qemu-img', 'sgdisk', 'e2fsck')
    objects, remote = qemu_image(address_of(world, family), target, account, digest)
    back = str(tmp_path / 'back.img')
    clients.output(
        'qemu-img',
        'convert',
        *(objects + ['-n', '-f', 'raw', '--target-image-opts', disk_image, remote]),
    )
    local = 'driver=raw,file.driver=file,file.filename=%s' % disk_image
    clients.output('qemu-img', 'compare', *(objects + ['--image-opts', remote, local]))
    clients.output('qemu-img', 'convert', *(objects + ['--image-opts', '-O', 'raw', remote, back]))
    assert filecmp.cmp(disk_image, back, shallow=False)
    assert 'No problems found' in clients.output('sgdisk', '-v', back)
    clients.output('e2fsck', '-fn', '%s?offset=%d' % (back, 1 << 20))
    with open(world.image('%s.img' % target.rsplit(':', 1)[1]), 'rb') as server, open(
        disk_image, 'rb'
    ) as client:
        assert server.read() == client.read()  # and so does the file of the server


@pytest.mark.parametrize('family, target, account, digest', CASES)
def test_qemu_io_patterns(world, family, target, account, digest):
    need('qemu-io')
    objects, remote = qemu_image(address_of(world, family), target, account, digest)
    commands = []
    for number, (offset, length) in enumerate(
        [('0', '512'), ('1M', '64k'), ('3M', '4M'), ('60M', '512'), ('67108352', '512')]
    ):
        commands += ['-c', 'write -P %d %s %s' % (0x40 + number, offset, length)]
    commands += [
        '-c',
        'write -f -P 0x77 8M 64k',
        '-c',
        'flush',
        '-c',
        'write -z 9M 1M',
        '-c',
        'discard 10M 1M',
    ]
    for number, (offset, length) in enumerate(
        [('0', '512'), ('1M', '64k'), ('3M', '4M'), ('60M', '512'), ('67108352', '512')]
    ):
        commands += ['-c', 'read -P %d %s %s' % (0x40 + number, offset, length)]
    commands += ['-c', 'read -P 0x77 8M 64k', '-c', 'read -P 0 9M 1M']
    output = clients.output('qemu-io', *(objects + ['--image-opts', remote] + commands))
    assert 'Pattern verification failed' not in output and output.count('read ') == 7, output


def test_qemu_is_refused_without_the_secret(world):
    need('qemu-img')
    objects, remote = qemu_image(world.address, SECRET, ('erp', 'wrong'))
    code, output = run('qemu-img', 'info', *(objects + ['--image-opts', remote]))
    assert code != 0 and 'Authentication failure' in output, output


def test_a_disk_is_partitioned_formatted_written_and_checked_over_the_wire(world, tmp_path):
    """qemu-storage-daemon exports the remote disk as a local file (FUSE), so that the usual Linux
    disk tools can use it."""
    need('qemu-storage-daemon', 'sfdisk', 'sgdisk', 'mkfs.ext4', 'e2fsck', 'debugfs')
    if not os.access('/dev/fuse', os.R_OK | os.W_OK):
        pytest.skip('/dev/fuse cannot be used here')
    disk = str(tmp_path / 'disk')
    open(disk, 'w').close()
    host, port = world.address
    daemon = subprocess.Popen(
        [
            'qemu-storage-daemon',
            '--blockdev',
            'driver=iscsi,node-name=wire,transport=tcp,portal=%s:%d,target=%s,lun=0'
            % (host, port, TARGET),
            '--export',
            'type=fuse,id=e,node-name=wire,mountpoint=%s,writable=on' % disk,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        try:
            eventually(lambda: daemon.poll() is not None or os.stat(disk).st_size == 64 << 20, 20)
        except AssertionError:
            daemon.kill()
        if daemon.poll() is not None:
            text = daemon.stdout.read().decode()
            if 'fuse' in text.lower():
                pytest.skip('FUSE does not work here: %s' % text.strip())
            pytest.fail(text)
        partition(disk)
        assert 'No problems found' in clients.output('sgdisk', '-v', disk)
        part = '%s?offset=%d' % (disk, 1 << 20)
        clients.output('mkfs.ext4', '-q', '-F', '-E', 'offset=%d' % (1 << 20), disk, '32M')
        source, back = str(tmp_path / 'source'), str(tmp_path / 'back')
        with open(source, 'wb') as file:
            file.write(pattern(1, 8 << 20))
        clients.output('debugfs', '-w', '-R', 'write %s data' % source, part)
        clients.output('e2fsck', '-fn', part)
        clients.output('debugfs', '-R', 'dump data %s' % back, part)
        assert filecmp.cmp(source, back, shallow=False)
    finally:
        daemon.terminate()
        daemon.wait(20)
    server = world.image('disk.img')  # and on the server's side it is the same
    clients.output(
        'debugfs',
        '-R',
        'dump data %s' % str(tmp_path / 'again'),
        '%s?offset=%d' % (server, 1 << 20),
    )
    assert filecmp.cmp(source, str(tmp_path / 'again'), shallow=False)
