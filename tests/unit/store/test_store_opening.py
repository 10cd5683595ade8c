"""Opening in the master: what can be opened, what is refused with which message, claims."""

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys

import descriptors
import pytest

from targetd import errors, store
from targetd.store import opening

MIB = 1 << 20


def refusal(description, held=()):
    """Returns the message of the StoreError."""
    with pytest.raises(store.StoreError) as caught:
        store.open_store(description, held).close()
    return str(caught.value)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / 'disk.img'
    with open(str(path), 'wb') as f:
        f.truncate(MIB)
    return str(path)


def test_a_missing_file_is_created_sparse_and_private(tmp_path, opened):
    path = tmp_path / 'new.img'
    made = opened({'path': str(path), 'size': 10 << 30})
    status = os.stat(str(path))
    assert (status.st_size, stat.S_IMODE(status.st_mode)) == (10 << 30, 0o600)
    assert status.st_blocks * 512 < MIB
    assert (made.kind, made.size, made.block_size, made.physical_block_size) == (
        'file',
        10 << 30,
        512,
        4096,
    )


def test_existing_data_is_kept(image, opened):
    with open(image, 'r+b') as f:
        f.write(b'precious')
    assert bytes(opened({'path': image, 'size': MIB}).store().read(0, 8)) == b'precious'


@pytest.mark.parametrize(
    'description, words',
    [
        ({}, ['path of the store is missing']),
        ({'kind': 'tape', 'path': '/x'}, ['/x', 'tape', 'block file nbd null ram']),
        ({'kind': 'ram'}, ['ram', 'size = 1G']),
        ({'kind': 'null'}, ['null', 'size = 1G']),
        ({'kind': 'ram', 'size': 1000}, ['ram', '1000', 'multiple', '512']),
        ({'kind': 'ram', 'size': MIB, 'block_size': 520}, ['520', '4096']),
        (
            {'kind': 'ram', 'size': MIB, 'filters': 'dealy 1s'},
            ['ram', '"dealy"', 'did you mean "delay"'],
        ),
        ({'kind': 'ram', 'size': MIB, 'filters': [['error', {'nonsense': 1}]]}, ['nonsense']),
        ({'kind': 'ram', 'size': MIB, 'nonsense': 1}, ['nonsense']),
        (
            {'path': '/dev/disk/by-id/ata-GONE'},
            ['/dev/disk/by-id/ata-GONE', 'does not exist', 'lsblk'],
        ),
        ({'path': '/dev/null'}, ['/dev/null', 'neither a file nor a block device']),
        (
            {'path': '/nowhere/at/all', 'size': MIB},
            ['/nowhere/at/all', 'directory', 'its directory /nowhere/at does not exist'],
        ),
        ({'path': '/etc/passwd/x', 'size': MIB}, ['/etc/passwd/x', 'correct the path']),
    ],
)
def test_refusals_name_cause_and_remedy(description, words):
    text = refusal(description)
    for word in words:
        assert word in text


def test_refusals_about_files(tmp_path, image):
    assert 'is a directory' in refusal({'path': str(tmp_path)})
    assert 'is not a regular file' in refusal({'path': str(tmp_path), 'kind': 'file'})
    assert 'is not a block device' in refusal({'path': image, 'kind': 'block'})
    missing = str(tmp_path / 'missing.img')
    assert 'size = 10G' in refusal({'path': missing})
    assert 'cannot be served readonly' in refusal({'path': missing, 'size': MIB, 'read_only': True})
    assert not os.path.exists(missing)
    text = refusal({'path': image, 'size': 2 * MIB})
    assert image in text and str(MIB) in text and str(2 * MIB) in text and 'adds zeroes' in text
    assert 'CUTS OFF' in refusal({'path': image, 'size': MIB // 2})
    assert os.path.getsize(image) == MIB
    os.truncate(image, MIB + 512)
    assert 'not a multiple of the block size 4096' in refusal({'path': image, 'block_size': 4096})
    os.truncate(image, 0)
    assert 'is empty; write a size' in refusal({'path': image})
    assert isinstance(
        pytest.raises(store.StoreError, store.open_store, {'path': image}).value,
        errors.TargetdError,
    )


def test_a_file_that_cannot_get_its_size_is_deleted(tmp_path):
    path = str(tmp_path / 'huge.img')
    assert 'smaller size' in refusal({'path': path, 'size': 1 << 62})
    assert not os.path.exists(path)


def test_a_fifo_does_not_block_the_master(tmp_path):
    os.mkfifo(str(tmp_path / 'fifo'))
    assert 'neither' in refusal({'path': str(tmp_path / 'fifo')})
    assert 'not a regular file' in refusal({'path': str(tmp_path / 'fifo'), 'kind': 'file'})


@pytest.mark.parametrize(
    'number, read_only, words',
    [
        (errno.EROFS, False, ['readonly = yes']),
        (errno.EACCES, True, ['as root']),
        (errno.EBUSY, False, ['in use', 'lsblk']),
        (errno.ENOMEDIUM, False, ['no medium']),
        (errno.EIO, False, ['cannot be opened', os.strerror(errno.EIO)]),
    ],
)
def test_errors_of_open_are_explained(image, monkeypatch, number, read_only, words):
    def refuse(path, flags, mode=0):
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, 'open', refuse)
    text = refusal({'path': image, 'read_only': read_only})
    assert image in text
    for word in words:
        assert word in text


def test_unsupported_direct_io_is_refused(image, monkeypatch):
    def refuse(path, flags, mode=0):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)

    monkeypatch.setattr(os, 'open', refuse)
    assert 'direct-io = no' in refusal({'path': image, 'direct': True})


def test_nothing_stays_open_after_a_refusal(image, tmp_path):
    before = descriptors.count_open()
    for description in (
        {'path': image, 'size': 2 * MIB},
        {'path': str(tmp_path / 'huge'), 'size': 1 << 62},
        {'path': image, 'filters': 'delay'},
        {'path': image, 'block_size': 4 * MIB},
    ):
        refusal(description)
    held = store.open_store({'path': image})
    refusal({'path': image, 'size': 2 * MIB}, [held])
    refusal({'path': image})
    held.close()
    held.close()
    assert descriptors.count_open() == before


# -- claims ----------------------------------------------------------------------------------------


def test_a_file_is_claimed_as_long_as_a_worker_has_it_open(image):
    first = store.open_store({'path': image})
    workers = first.store()
    assert 'is in use' in refusal({'path': image})
    assert 'is in use' in refusal({'path': image, 'read_only': True})
    first.close()
    assert 'is in use' in refusal({'path': image})
    workers.close()
    store.open_store({'path': image}).close()


def test_several_read_only_servers_may_share_a_file(image, opened):
    opened({'path': image, 'read_only': True})
    opened({'path': image, 'read_only': True})
    assert 'is in use' in refusal({'path': image})


def test_a_file_system_without_flock_is_served(image, opened, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, 'flock', refuse)
    assert opened({'path': image}).size == MIB


@pytest.mark.parametrize('again', [{}, {'read_only': True}, {'direct': True, 'block_size': 4096}])
def test_a_medium_claimed_by_this_process_is_shared_and_not_in_use(image, opened, again):
    first = opened({'path': image})
    try:
        second = opened(dict(again, path=image), [first])
    except store.StoreError as e:
        pytest.skip(str(e)) if 'direct' in str(e) else pytest.fail(str(e))
    assert second.key == first.key
    first.close()
    assert 'is in use' in refusal({'path': image})
    with second.store() as medium:
        assert bytes(medium.read(0, 4096)) == bytes(4096)
    second.close()
    store.open_store({'path': image}).close()


def test_sharing_a_read_only_claim_allows_writing(image, opened):
    first = opened({'path': image, 'read_only': True})
    second = opened({'path': image}, [first])
    with second.store() as medium:
        medium.write(0, b'x' * 512, True)
        assert bytes(medium.read(0, 1)) == b'x'


# -- block devices ---------------------------------------------------------------------------------


@pytest.mark.parametrize('sector', [512, 4096])
def test_a_block_device_reports_its_properties(loop_device, opened, sector):
    device = loop_device(sector)
    made = opened({'path': device})
    assert (made.kind, made.size, made.block_size) == ('block', 8 * MIB, sector)
    assert made.physical_block_size >= sector and made.resize_check() == 8 * MIB
    capabilities = made.capabilities
    assert capabilities.unmap_granularity % sector == 0
    assert capabilities.unmap or not capabilities.zeroes_after_unmap
    assert json.loads(json.dumps(made.description())) == made.description()


def test_a_block_device_cannot_be_claimed_while_it_is_served(loop_device, opened):
    device = loop_device()
    first = opened({'path': device})
    text = refusal({'path': device})
    assert device in text and 'in use' in text and 'lsblk' in text
    worker = first.store()
    second = opened({'path': device, 'read_only': True}, [first])
    first.close()
    worker.close()
    assert 'in use' in refusal({'path': device})
    second.close()
    store.open_store({'path': device}).close()


def test_a_device_claimed_by_another_process_is_refused(loop_device):
    device = loop_device()
    other = os.open(device, os.O_RDWR | os.O_EXCL)
    try:
        assert 'in use' in refusal({'path': device})
        assert 'in use' in refusal({'path': device, 'read_only': True})
    finally:
        os.close(other)


def test_a_read_only_device_must_be_served_read_only(loop_device, opened):
    device = loop_device(512, 8 * MIB, None, '-r')
    assert 'readonly = yes' in refusal({'path': device})
    medium = opened({'path': device, 'read_only': True}).store()
    with pytest.raises(OSError) as caught:
        medium.write(0, bytes(512), False)
    assert caught.value.errno == errno.EROFS


def test_a_block_device_of_another_size_or_sector_is_refused(loop_device):
    device = loop_device(4096)
    assert str(8 * MIB) in refusal({'path': device, 'size': MIB})
    assert 'block-size = 4096' in refusal({'path': device, 'direct': True, 'block_size': 512})


def test_a_growing_device_is_detected(loop_device, opened, tmp_path):
    image = tmp_path / 'grows.img'
    device = loop_device(512, 8 * MIB, image)
    made = opened({'path': device})
    with made.store() as medium:
        os.truncate(str(image), 16 * MIB)
        subprocess.run(['losetup', '-c', device], check=True, timeout=60)
        assert medium.resize_check() == made.resize_check() == 16 * MIB


# -- the way to the worker -------------------------------------------------------------------------

WORKER = '''
import json, os, sys
from targetd import store
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
with store.from_descriptor(json.loads(sys.argv[1]), int(sys.argv[2])) as medium:
    medium.write(4096, b"written by nobody".ljust(4096), True)
    medium.unmap(0, 4096)
    medium.write_zeroes(8192, 4096, False)
    with medium.exclusive_range(0, 4096):
        text = bytes(medium.read(4096, 17)).decode()
        print(text, medium.size, medium.block_size, medium.capabilities.unmap)
'''


@pytest.mark.parametrize('kind', ['file', 'ram', 'block'])
def test_an_unprivileged_worker_needs_only_the_descriptor(kind, tmp_path, loop_device, opened):
    wanted = {'size': 8 * MIB, 'kind': kind}
    if kind != 'ram':
        wanted['path'] = loop_device() if kind == 'block' else str(tmp_path / 'disk.img')
    made = opened(wanted)
    ran = subprocess.run(
        [sys.executable, '-c', WORKER, json.dumps(made.description()), str(made.descriptor)],
        pass_fds=[made.descriptor],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=60,
        cwd=os.path.dirname(os.path.dirname(os.path.dirname(opening.__file__))),
    )
    said = 'written by nobody %d 512 %s\n' % (8 * MIB, made.capabilities.unmap)
    assert (ran.stdout.decode(), ran.stderr.decode()) == (said, '')
    assert bytes(made.store().read(4096, 17)) == b'written by nobody'


def test_read_only_applies_in_the_worker(image, opened):
    made = opened({'path': image, 'read_only': True})
    with made.store() as medium:
        assert medium.read_only
        for change in (
            lambda: medium.write(0, bytes(512), False),
            lambda: medium.write(0, bytes(512), True),
            lambda: medium.unmap(0, 512),
            lambda: medium.write_zeroes(0, 512, True),
            lambda: medium.copy(medium, 0, 512, 512),
        ):
            with pytest.raises(OSError) as caught:
                change()
            assert caught.value.errno == errno.EROFS
        medium.flush(0, MIB)
        assert bytes(medium.read(0, 512)) == bytes(512)
        with medium.exclusive_range(0, 512):
            pass


def test_the_masters_flush_reaches_the_medium(image, opened, monkeypatch):
    synced = []
    monkeypatch.setattr(os, 'fdatasync', synced.append)
    made = opened({'path': image})
    made.flush()
    opened({'kind': 'ram', 'size': MIB}).flush()
    opened({'kind': 'null', 'size': MIB}).flush()
    assert synced == [made.descriptor]


def test_allow_in_use_opens_a_device_that_is_claimed(loop_device, opened):
    device = loop_device(512)
    claim = os.open(device, os.O_RDWR | os.O_EXCL)
    try:
        assert 'in use' in refusal({'path': device})
        assert opened({'path': device, 'allow_in_use': True}).size == os.lseek(
            claim, 0, os.SEEK_END
        )
    finally:
        os.close(claim)
