"""A disk with the content of a Linux host is served writable for the first time only when that is
confirmed (the setting content)."""

import json
import subprocess

import pytest
from daemon import TARGET, eventually

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path, loop_device):
    """disk(*command) -> a loop device on which the command has put content."""

    def attach(*command):
        image = str(tmp_path / 'disk.img')
        with open(image, 'wb') as file:
            file.truncate(64 * MIB)
        if command:
            subprocess.run(
                command + (image,),
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=60,
            )
        return loop_device(image)

    return attach


def state_of(daemon):
    return daemon.units()[0]['state']


def serve(daemon, device, *more):
    daemon.target(TARGET, luns={0: ['backing-store = %s' % device] + list(more)})


EXT4 = ('mkfs.ext4', '-q', '-F')


def test_a_file_system_of_a_host_must_be_confirmed_once(daemon, disk, ready):
    serve(daemon, disk(*EXT4))
    code, text = daemon.check()
    assert code == 5 and 'it contains ext4' in text and 'content = keep' in text
    daemon.start()
    assert 'is not served yet, because it contains ext4' in state_of(daemon)
    lines = daemon.text.targets[TARGET][1][0]
    lines.append('content = keep')
    daemon.reload('reload: change')
    eventually(lambda: state_of(daemon) == 'ready', 30)
    ready(daemon).write(0, b'x' * 512)
    # confirmed once: from now on it is known as the disk of this LUN
    records = daemon.directory + '/state/media.json'
    eventually(lambda: 'loop' in open(records).read(), 30, 'the record of the disk')
    lines.remove('content = keep')
    assert daemon.stop() == 0
    daemon.start()
    assert state_of(daemon) == 'ready'


@pytest.mark.parametrize(
    'command, more',
    [
        ((), []),
        (('mkfs.vfat',), []),
        (EXT4, ['readonly = yes']),
        (EXT4, ['content = keep']),
        (EXT4, ['allow-in-use = yes']),
    ],
)
def test_what_needs_no_confirmation_is_served(daemon, disk, command, more):
    serve(daemon, disk(*command), *more)
    daemon.start()
    assert state_of(daemon) == 'ready'


def test_the_guard_works_on_a_disk_and_with_direct_access(daemon, disk, ready):
    device = disk('mkfs.vfat')
    with open(device, 'rb') as medium:
        before = medium.read()
    serve(daemon, device, 'guard = first-write-snapshot', 'direct-io = yes')
    session = ready(daemon.start())
    session.write(0, b'I' * MIB)
    session.logout()
    eventually(lambda: daemon.units()[0]['sessions'] == 0, 30, 'the end of the session')
    rows = json.loads(daemon.control('--json', 'guard', 'list'))
    assert 'FAT' in rows[0]['contents']
    daemon.control('guard', 'restore', TARGET + '/0', '1')
    assert daemon.stop() == 0
    with open(device, 'rb') as medium:
        assert medium.read() == before


def test_an_imported_disk_is_served_as_before(daemon, disk, tmp_path, ready):
    device = disk(*EXT4)
    source, made = tmp_path / 'targets.conf', tmp_path / 'targetd.conf'
    source.write_text('<target %s>\n  backing-store %s\n</target>\n' % (TARGET, device))
    code, text = daemon.targetdctl('import', str(source), '--output', str(made))
    assert code == 0, text
    assert TARGET + '/1: %s contains ext4' % device in text
    lun = made.read_text().split('[[lun 1]]')[1]
    assert 'content = keep' in lun
    daemon.target(TARGET, luns={1: [line.strip() for line in lun.splitlines() if line.strip()]})
    daemon.start()
    assert daemon.units()[1]['state'] == 'ready'
