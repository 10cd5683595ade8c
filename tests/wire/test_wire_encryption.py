"""A disk with encryption-key-file on the real daemon: the content of the image, which key is
refused, CRYPTOGRAPHIC ERASE in two sessions and through kill -9, and that no key leaves the
server's own processes."""

import os
import signal
import struct
import subprocess

import pytest
from copies import populate, token_of, write_using
from daemon import TARGET, eventually
from initiator import CHECK_CONDITION, GOOD, LoginFailed
from test_wire_copy import cscd

from targetd import xts
from targetd.master.state import key_files

pytestmark = [
    pytest.mark.wire,
    pytest.mark.skipif(bool(xts.why_not()), reason=xts.why_not() or 'it is there'),
]

ONE, TWO = 'iqn.2026-11.test:one', 'iqn.2026-11.test:two'
SIZE = 24 << 20
SANITIZING = (2, 0x04, 0x1B)
ERASE, ERASE_AT_ONCE = (
    bytes.fromhex('48 03 0000000000 0000 00'),
    bytes.fromhex('48 83 0000000000 0000 00'),
)
TEXT = b'payroll of November '


def path_of(daemon, name):
    return os.path.join(daemon.directory, name)


def configure(daemon, *more):
    daemon.target(
        luns={
            0: [
                'backing-store = %s' % path_of(daemon, 'disk.img'),
                'size = 24M',
                'encryption-key-file = %s' % path_of(daemon, 'disk.key'),
            ]
            + list(more)
        }
    )


@pytest.fixture
def encrypted(daemon):
    """A daemon with a thin, encrypted disk; it creates the image and the key."""
    configure(daemon, 'thin = yes')
    return daemon.start()


def image(daemon):
    with open(path_of(daemon, 'disk.img'), 'rb') as file:
        return file.read()


def write(session, lba, data):
    return session.run(struct.pack('>BBIBHB', 0x2A, 0, lba, 0, len(data) // 512, 0), out=data)


def read(session, lba, blocks):
    return (
        session.run(struct.pack('>BBIBHB', 0x28, 0, lba, 0, blocks, 0), read=blocks * 512)
        .good()
        .data
    )


def text(length):
    return (TEXT * (length // len(TEXT) + 1))[:length]


def state(session):
    result = session.run(bytes(6))
    return result.key if result.status == CHECK_CONDITION else result.status


def key_of(daemon):
    return key_files.load_key(path_of(daemon, 'disk.key'))


def refused(daemon, expression):
    """Checks that the target is not served, that the log has the reason, and that the daemon stops
    normally."""
    daemon.start()
    daemon.logged(r'targetd\[%d\] error: .*%s' % (daemon.process.pid, expression))
    daemon.logged(r'serving .*\(process %d\)' % daemon.process.pid)
    assert daemon.stop() == 0


# -- data ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'more',
    [[], ['write-cache = off'], ['direct-io = yes', 'block-size = 4096'], ['filter = trace']],
)
def test_the_image_does_not_contain_the_plain_text(daemon, ready, more):
    configure(daemon, *more)
    session = ready(daemon.start())
    blocks = 8 if 'block-size = 4096' in more else 1
    data = text(1 << 20)

    def run(opcode, lba, count, **words):
        return session.run(struct.pack('>BBIBHB', opcode, 0, lba, 0, count, 0), **words).good()

    for lba in (0, 4096 // blocks):
        run(0x2A, lba, len(data) // 512 // blocks, out=data)
    assert run(0x28, 0, len(data) // 512 // blocks, read=len(data)).data == data
    assert run(0x28, 4096 // blocks, 8 // blocks, read=4096).data == data[:4096]
    session.run(bytes.fromhex('35 00 00000000 00 0000 00')).good()
    on_disk = image(daemon)
    assert (
        TEXT not in on_disk
        and len(set(on_disk[at : at + 4096] for at in range(0, len(data), 4096)))
        == len(data) // 4096
    )
    assert on_disk[2 << 20 : (2 << 20) + 4096] != on_disk[:4096]


def test_the_data_is_readable_after_a_restart_and_the_key_is_never_shown(encrypted, ready):
    session = ready(encrypted)
    write(session, 8, text(4096)).good()
    session.close()
    targetdctl = [
        encrypted.python,
        '-m',
        'targetd.admin.cli',
        '-s',
        path_of(encrypted, 'targetd.sock'),
        '--json',
    ]
    shown = subprocess.run(
        targetdctl + ['show', 'units'],
        env=encrypted.environment(),
        stdout=subprocess.PIPE,
        timeout=30,
        check=True,
    ).stdout.decode()
    assert '"encrypted": true' in shown
    encrypted.reload('nothing changed')
    assert encrypted.stop() == 0
    encrypted.start()
    session = ready(encrypted)
    assert read(session, 8, 8) == text(4096) and not any(read(session, 0, 8))
    digits = key_of(encrypted)
    reported = encrypted.log + shown
    for directory, _, names in os.walk(path_of(encrypted, 'state')):
        for name in names:
            with open(os.path.join(directory, name)) as file:
                reported += file.read()
    assert not [at for at in range(0, 128, 16) if digits[at : at + 16] in reported]
    assert 'Keep a copy of that file' in encrypted.log


def test_thin_provisioning_and_verify_see_what_was_written(encrypted, ready):
    session = ready(encrypted)
    write(session, 0, text(1 << 20)).good()
    session.run(
        bytes.fromhex('42 00 00000000 00 0018 00'), out=struct.pack('>HH4xQI4x', 22, 16, 256, 256)
    ).good()
    assert read(session, 256, 256) == bytes(128 << 10) and read(session, 0, 256) == text(128 << 10)
    session.run(struct.pack('>BBIBHB', 0x2F, 2, 0, 0, 8, 0), out=text(4096)).good()
    status = session.run(struct.pack('>BBQIxx', 0x9E, 0x12, 256, 24), read=24).good().data
    assert struct.unpack('>QIB', status[8:21]) == (256, 256, 1)
    assert os.stat(path_of(encrypted, 'disk.img')).st_blocks * 512 < 2 << 20


@pytest.fixture
def three(daemon, ready):
    """A session with an encrypted LUN 0, a plain LUN 1, and LUN 2 encrypted with another key."""
    configure(daemon)
    luns = daemon.text.targets[TARGET][1]
    luns[1] = ['backing-store = %s' % daemon.image('plain.img', SIZE)]
    luns[2] = [line.replace('disk.', 'other.') for line in luns[0]]
    session = ready(daemon.start())
    for lun in (1, 2):
        session.clear_attentions(lun)
    return session


def copy(session, source, lba, destination, to, blocks):
    segment = struct.pack('>BBHHHxxHQQ', 0x02, 0, 0x18, 0, 1, blocks, lba, to)
    body = (
        struct.pack('>BBH4xII', 1, 0, 64, len(segment), 0)
        + cscd(session, source)
        + cscd(session, destination)
        + segment
    )
    session.run(struct.pack('>BB8xIxx', 0x83, 0, len(body)), out=body).good()


@pytest.mark.parametrize('source, destination', [(0, 0), (0, 1), (1, 0), (0, 2)])
def test_a_copy_is_encrypted_with_the_key_of_the_destination(daemon, three, source, destination):
    three.write(8, text(65536), lun=source)
    copy(three, source, 8, destination, 4096, 128)
    assert three.read(4096, 128, lun=destination) == text(65536)
    stored = {}
    for lun, name in enumerate(('disk.img', 'plain.img', 'other.img')):
        with open(path_of(daemon, name), 'rb') as file:
            stored[lun] = file.read()
    assert stored[destination][2 << 20 : (2 << 20) + 65536] != stored[source][4096 : 4096 + 65536]
    assert TEXT not in stored[0] and TEXT not in stored[2]


def test_a_token_of_an_encrypted_disk_is_valid_until_the_erase(three, ready):
    three.write(0, text(65536))
    assert populate(three, [(0, 128)]).status == GOOD
    token = token_of(three)
    assert write_using(three, token, [(64, 128)], lun=2).status == GOOD
    assert three.read(64, 128, lun=2) == text(65536)
    three.run(ERASE).good()
    assert write_using(three, token, [(512, 128)], lun=2).key[:2] == (5, 0x23)


def test_a_token_copies_an_encrypted_disk_to_another_target(daemon, ready):
    configure(daemon)
    daemon.target('iqn.2026-11.test.targetd:second')
    one, two = ready(daemon.start()), ready(daemon, 'iqn.2026-11.test.targetd:second')
    one.write(0, text(65536))
    assert populate(one, [(0, 128)]).status == GOOD
    assert write_using(two, token_of(one), [(64, 128)]).status == GOOD
    assert two.read(64, 128) == text(65536)


# -- keys that are refused -------------------------------------------------------------------------


def test_a_disk_with_a_missing_key_is_refused_until_the_key_is_restored(encrypted, ready):
    session = ready(encrypted)
    write(session, 0, text(512)).good()
    session.close()
    assert encrypted.stop() == 0
    key = path_of(encrypted, 'disk.key')
    os.rename(key, key + '.away')
    refused(
        encrypted, 'the key of .*disk.img is missing: .*without it nothing on the disk can be read'
    )
    assert not os.path.exists(key)
    os.rename(key + '.away', key)
    encrypted.start()
    assert read(ready(encrypted), 0, 1) == text(512)


def test_a_wrong_key_a_changed_block_size_and_a_removed_setting_are_refused(encrypted, ready):
    session = ready(encrypted)
    write(session, 0, text(512)).good()
    session.close()
    assert encrypted.stop() == 0
    key, before = path_of(encrypted, 'disk.key'), image(encrypted)
    os.rename(key, key + '.right')
    key_files.make_key(key)
    refused(encrypted, '%s is not the key of' % key)
    os.rename(key + '.right', key)
    configure(encrypted, 'block-size = 4096')
    refused(encrypted, 'the block size differs')
    encrypted.target(luns={0: ['backing-store = %s' % path_of(encrypted, 'disk.img')]})
    refused(encrypted, 'is encrypted, and no encryption-key-file is configured')
    os.chmod(key, 0o644)
    configure(encrypted)
    refused(encrypted, 'is accessible to users other than its owner')
    assert image(encrypted) == before
    os.chmod(key, 0o600)
    configure(encrypted)
    assert read(ready(encrypted.start()), 0, 1) == text(512)


def is_admitted(daemon, ready):
    try:
        return ready(daemon).logout() == 0
    except LoginFailed:
        return False


def test_a_reload_encrypts_a_blank_disk_and_refuses_to_disable_encryption_of_a_used_one(
    daemon, ready
):
    daemon.target(luns={0: ['backing-store = %s' % path_of(daemon, 'disk.img'), 'size = 24M']})
    daemon.start()
    configure(daemon)
    daemon.reload('reload: change lun 0')
    eventually(lambda: not daemon.units()[0]['pending'] and is_admitted(daemon, ready), 20)
    session = ready(daemon)
    write(session, 0, text(4096)).good()
    assert TEXT not in image(daemon)
    daemon.target(luns={0: ['backing-store = %s' % path_of(daemon, 'disk.img'), 'size = 24M']})
    daemon.reload('is encrypted, and no encryption-key-file is configured')
    assert 'nothing was changed' in daemon.log and read(session, 0, 8) == text(4096)
    session.logout()
    os.rename(path_of(daemon, 'disk.key'), path_of(daemon, 'moved.key'))
    configure(daemon)
    daemon.text.targets[TARGET][1][0][2] = 'encryption-key-file = %s' % path_of(daemon, 'moved.key')
    daemon.reload('reload: change lun 0')
    eventually(lambda: not daemon.units()[0]['pending'] and is_admitted(daemon, ready), 20)
    assert read(ready(daemon), 0, 8) == text(4096) and not os.path.exists(
        path_of(daemon, 'disk.key')
    )


def test_invalid_settings_are_refused_by_the_configuration_check(daemon):
    lines = ['encryption-key-file = %s' % path_of(daemon, 'disk.key'), 'size = 1M']
    daemon.target(
        luns={
            0: ['type = ram'] + lines,
            1: ['backing-store = a.img'] + lines,
            2: ['backing-store = b.img'] + lines,
        }
    )
    code, printed = daemon.check()
    assert code == 3
    assert 'a lun of type ram cannot be encrypted' in printed
    assert 'write a different key file for each disk' in printed


def test_make_key(daemon):
    path = path_of(daemon, 'new.key')
    daemon.target()

    def make():
        return subprocess.run(
            daemon.command('--make-key', path),
            env=daemon.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=30,
        )

    done = make()
    digits = key_files.load_key(path)
    assert (
        done.returncode == 0
        and b'Keep a copy' in done.stdout
        and digits[:16].encode() not in done.stdout
    )
    again = make()
    assert (
        again.returncode == 5
        and b'never overwritten' in again.stdout
        and key_files.load_key(path) == digits
    )


# -- CRYPTOGRAPHIC ERASE ---------------------------------------------------------------------------


def test_an_erase_is_effective_in_all_sessions(encrypted, ready):
    one, two = ready(encrypted, name=ONE), ready(encrypted, name=TWO)
    write(one, 0, text(65536)).good()
    write(two, 4096, text(65536)).good()
    before, old = read(two, 0, 128), key_of(encrypted)
    one.run(ERASE).good()
    assert key_of(encrypted) != old
    for session in (one, two):
        assert state(session) == GOOD
        for lba in (0, 4096):
            data = read(session, lba, 128)
            assert data != before and TEXT not in data
    assert read(one, 0, 128) == read(two, 0, 128) and not any(read(two, 8192, 8))
    write(one, 0, text(4096)).good()
    write(two, 8, text(4096)).good()
    assert read(one, 0, 16) == read(two, 0, 16) == 2 * text(4096)
    for session in (one, two):
        session.close()
    assert encrypted.stop() == 0
    again = ready(encrypted.start())
    assert read(again, 0, 16) == 2 * text(4096)
    names = [name for name in os.listdir(encrypted.directory) if name.startswith('disk.key')]
    assert names == ['disk.key']


def test_cryptographic_erase_is_supported_only_by_encrypted_disks(daemon, ready):
    configure(daemon)
    daemon.text.targets[TARGET][1][1] = ['backing-store = %s' % daemon.image('plain.img')]
    session = ready(daemon.start())
    session.clear_attentions(1)
    for lun, support in ((0, 3), (1, 1)):
        row = (
            session.run(bytes.fromhex('a3 0c 02 48 0003 00000014 00 00'), read=20, lun=lun)
            .good()
            .data
        )
        assert row[1] & 7 == support
        page = session.run(bytes.fromhex('12 01 b1 0040 00'), read=64, lun=lun).good().data
        assert page[7] >> 4 & 3 == (1 if support == 3 else 0)
    assert session.run(ERASE, lun=1).key == (5, 0x24, 0)


def test_overwrite_block_erase_and_format_work_on_encrypted_disks(encrypted, ready):
    session = ready(encrypted)
    write(session, 0, text(4096)).good()
    data = struct.pack('>BxH', 1, 1) + b'\xc3'
    session.run(struct.pack('>BB5xHB', 0x48, 0x01, len(data), 0), out=data).good()
    assert read(session, 0, 8) == b'\xc3' * 4096 and b'\xc3\xc3\xc3' not in image(encrypted)[:4096]
    session.run(bytes.fromhex('48 02 0000000000 0000 00')).good()
    assert not any(image(encrypted)) and not any(read(session, 0, 8))
    write(session, 0, text(4096)).good()
    session.run(bytes.fromhex('04 00 00 0000 00')).good()
    assert not any(read(session, 0, 8))


def test_concurrent_writes_are_either_refused_or_kept_after_an_erase(encrypted, ready):
    """A write of the other session is refused or executed; data written after the erase can be
    read, also after a restart."""
    one, two = ready(encrypted, name=ONE), ready(encrypted, name=TWO)
    numbers = iter(range(1, 1 << 20))
    commands, done = {}, {}

    def submit(count):
        for _ in range(count):
            n = next(numbers)
            data = struct.pack('>Q', n) * 512
            commands[n] = two.submit(
                struct.pack('>BBIBHB', 0x2A, 0, (n % 512) * 8, 0, 8, 0), out=data
            )

    submit(16)
    erase = one.submit(ERASE)
    submit(16)
    assert one.wait(erase).status == GOOD
    for n, command in commands.items():
        done[n] = two.wait(command)
    after = []
    for n in range(600, 632):
        data = struct.pack('>Q', n) * 512
        result = write(two, (n % 512) * 8, data)
        # a unit attention, of commands that were cleared, is pending once
        if result.status != GOOD:
            result = write(two, (n % 512) * 8, data)
        assert result.status == GOOD
        after.append((n, data))
    assert all(result.status in (GOOD, 0x40, CHECK_CONDITION) for result in done.values())
    for session in (one, two):
        for n, data in after:
            assert read(session, (n % 512) * 8, 8) == data
        session.close()
    encrypted.signal(signal.SIGKILL)
    encrypted.process.wait(10)
    again = ready(encrypted.start())
    assert [read(again, (n % 512) * 8, 8) == data for n, data in after] == [True] * len(after)


@pytest.mark.parametrize(
    'call, number',
    [
        ('fsync', 1),
        ('link', 1),
        ('rename', 1),
        ('fsync', 3),
        ('pwrite', 1),
        ('unlink', 1),
        ('unlink', 2),
    ],
)
def test_kill_9_during_an_erase(daemon, ready, sessions, call, number):
    """The master kills itself before this call of the key replacement; after the next start the
    erase is complete, with the old or the new key."""
    configure(daemon)
    with open(path_of(daemon, 'mortal.py'), 'w') as file:
        file.write(KILLED_DURING_REPLACE % (call, number))
    command, daemon.command = (
        daemon.command,
        lambda *words: [daemon.python, path_of(daemon, 'mortal.py')] + list(words),
    )
    session = ready(daemon.start())
    write(session, 0, text(65536)).good()
    old = key_of(daemon)
    daemon.workers()
    session.submit(ERASE)
    assert daemon.process.wait(20) == -signal.SIGKILL
    session.close()
    eventually(lambda: not daemon.survivors(), 5, 'workers that outlive their master')
    between = key_of(daemon)
    daemon.command = command
    daemon.start()
    daemon.logged('is resumed')
    again = sessions(daemon)
    eventually(lambda: state(again) == GOOD, 10, 'the end of the sanitize')
    assert key_of(daemon) not in (old, between) and TEXT not in read(again, 0, 128)
    write(again, 0, text(4096)).good()
    assert read(again, 0, 8) == text(4096)
    assert sorted(n for n in os.listdir(daemon.directory) if n.startswith('disk.key')) == [
        'disk.key'
    ]


#: A targetd whose key_files.replace_key(), which runs in a job, kills the server before call number N of
#: an os function.
KILLED_DURING_REPLACE = '''
import os, signal, sys
from targetd import cli
from targetd.master.state import key_files
call, left, replace_key = %r, [%d], key_files.replace_key
real = getattr(os, call)
def counted(*arguments, **more):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **more)
def armed(path):
    setattr(os, call, counted)
    return replace_key(path)
key_files.replace_key = armed
sys.exit(cli.main())
'''
