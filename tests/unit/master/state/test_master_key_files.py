"""Tests of key files: which files are refused, that a replaced key is erased at whatever point the
machine crashes, and which disk is served with which key."""

import os
import stat

import pytest

from targetd import store, xts
from targetd.config.model import Lun
from targetd.errors import StoreError
from targetd.master.state import key_files

SIZE = 1 << 20

pytestmark = pytest.mark.skipif(bool(xts.why_not()), reason=xts.why_not() or 'it is there')


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / 'disk.key')


def text(path):
    with open(path, 'rb') as file:
        return file.read()


# -- the file --------------------------------------------------------------------------------------


def test_a_created_key_is_loaded_again_and_its_file_is_private(path):
    digits = key_files.make_key(path)
    assert key_files.load_key(path) == digits and len(bytes.fromhex(digits)) == 64
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert b'keep a copy' in text(path)
    assert key_files.make_key(path + '2') != digits


def test_make_key_never_overwrites_a_file(path):
    digits = key_files.make_key(path)
    with pytest.raises(StoreError) as caught:
        key_files.make_key(path)
    assert 'never overwritten' in str(caught.value) and key_files.load_key(path) == digits


def test_a_missing_directory_is_refused(path):
    with pytest.raises(StoreError):
        key_files.make_key(os.path.join(path, 'no', 'such'))
    with pytest.raises(key_files.MissingKeyFile):
        key_files.load_key(path)


@pytest.mark.parametrize('mode', [0o640, 0o604, 0o660, 0o610])
def test_a_file_accessible_to_other_users_is_refused(path, mode):
    key_files.make_key(path)
    os.chmod(path, mode)
    with pytest.raises(StoreError) as caught:
        key_files.load_key(path)
    assert 'chmod 600 %s' % path in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can change the owner of a file')
def test_a_file_of_another_user_is_refused(path):
    key_files.make_key(path)
    os.chown(path, 65534, 65534)
    with pytest.raises(StoreError) as caught:
        key_files.load_key(path)
    assert 'another user' in str(caught.value)


def changed(content, old, new):
    assert old in content
    return content.replace(old, new, 1)


@pytest.mark.parametrize(
    'change, said',
    [
        (lambda content: b'', 'not a key file'),
        (lambda content: b'password\n', 'not a key file'),
        (
            lambda content: changed(content, b'targetd-disk-key 1', b'targetd-disk-key 2'),
            'not a key file',
        ),
        (lambda content: content[:-20], 'not a key file'),
        (lambda content: changed(content, b'sum ', b'sum 0'), 'damaged'),
        (
            lambda content: content.replace(content.split(b'\n')[3][:1], b'g'),
            'not a key file|damaged',
        ),
        (
            lambda content: b'\n'.join(content.split(b'\n')[:3] + content.split(b'\n')[4:]),
            'not a key file|damaged',
        ),
        (lambda content: os.urandom(300), 'not a key file'),
    ],
)
def test_a_malformed_key_file_is_refused_and_its_content_is_not_shown(path, change, said):
    digits = key_files.make_key(path)
    content = change(text(path))
    with open(path, 'wb') as file:
        file.write(content)
    with pytest.raises(StoreError) as caught:
        key_files.load_key(path)
    assert any(word in str(caught.value) for word in said.split('|'))
    assert digits[:16] not in str(caught.value) and digits[64:80] not in str(caught.value)


def test_blanks_comments_and_capital_letters_are_accepted(path):
    digits = key_files.make_key(path)
    lines = text(path).decode().split('\n')
    with open(path, 'w') as file:
        file.write(
            '# mine\r\n\r\n'
            + '\r\n'.join(
                line.upper() if set(line) <= set('0123456789abcdef') else line + '  '
                for line in lines
            )
        )
    assert key_files.load_key(path) == digits


def test_a_directory_is_not_a_valid_key_file(tmp_path):
    with pytest.raises(StoreError) as caught:
        key_files.load_key(str(tmp_path))
    assert 'not a regular file' in str(caught.value)


# -- replacing -------------------------------------------------------------------------------------

CALLS = ('open', 'link', 'rename', 'unlink', 'fsync', 'pwrite')


class MachineCrashed(BaseException):
    """Simulates a crash of the machine."""


def stop_at(monkeypatch, number):
    """Makes the calls of CALLS fail from number `number` on; returns the list of those that were
    executed."""
    done = []

    def dying(name):
        real = getattr(os, name)

        def call(*arguments, **more):
            if len(done) >= number:
                raise MachineCrashed(name)
            done.append(name)
            return real(*arguments, **more)

        return call

    for name in CALLS:
        monkeypatch.setattr(key_files.os, name, dying(name))
    return done


def test_a_replaced_key_is_different_and_the_old_one_is_overwritten(path, tmp_path):
    digits = key_files.make_key(path)
    copy = str(tmp_path / 'same.key')
    os.link(path, copy)
    new = key_files.replace_key(path)
    assert key_files.load_key(path) == new != digits
    assert not any(text(copy)) and sorted(os.listdir(str(tmp_path))) == ['disk.key', 'same.key']
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_after_a_crash_at_any_call_the_file_is_complete_and_the_next_run_erases_the_old_key(
    tmp_path, monkeypatch
):
    number, ended = 0, False
    while not ended:
        directory = tmp_path / str(number)
        directory.mkdir()
        path = str(directory / 'disk.key')
        digits = key_files.make_key(path)
        witness = str(directory / 'witness')
        os.link(path, witness)  # shows what becomes of the old file's bytes
        with monkeypatch.context() as patched:
            done = stop_at(patched, number)
            try:
                key_files.replace_key(path)
                ended = True
            except MachineCrashed:
                pass
        found = key_files.load_key(path)
        assert found == digits or done.index('rename') < len(done)
        last = key_files.replace_key(path)
        assert key_files.load_key(path) == last not in (found, digits)
        assert not any(text(witness)), 'stopped after %r' % done
        assert sorted(os.listdir(str(directory))) == ['disk.key', 'witness']
        number += 1
    assert number > 12


def test_a_symbolic_link_is_followed_and_kept(path, tmp_path):
    digits = key_files.make_key(path)
    link = str(tmp_path / 'link.key')
    os.symlink(path, link)
    new = key_files.replace_key(link)
    assert key_files.load_key(path) == key_files.load_key(link) == new != digits and os.path.islink(
        link
    )


def test_the_old_key_is_overwritten_on_a_file_system_without_hard_links(
    path, tmp_path, monkeypatch
):
    key_files.make_key(path)
    witness = str(tmp_path / 'witness')
    os.link(path, witness)

    def no_links(*arguments):
        raise PermissionError(1, 'Operation not permitted')

    monkeypatch.setattr(key_files.os, 'link', no_links)
    key_files.replace_key(path)
    assert not any(text(witness))


@pytest.mark.parametrize(
    'name, number, half',
    [
        ('rename', 1, None),
        ('fsync', 1, None),
        ('fsync', 2, None),
        ('link', 1, None),
        ('fsync', 3, False),
        ('pwrite', 1, True),
        ('fsync', 4, True),
        ('unlink', 2, True),
        ('fsync', 6, True),
    ],
)
def test_an_io_error_leaves_a_complete_key_and_reports_which(path, monkeypatch, name, number, half):
    digits = key_files.make_key(path)
    real, calls = getattr(os, name), []

    def no(*arguments, **more):
        calls.append(arguments)
        if len(calls) == number:
            raise OSError(5, 'Input/output error')
        return real(*arguments, **more)

    with monkeypatch.context() as patched:
        patched.setattr(key_files.os, name, no)
        with pytest.raises(OSError) as caught:
            key_files.replace_key(path)
    assert isinstance(caught.value, key_files.KeyHalfReplaced) == (half is not None)
    if half is None:
        assert key_files.load_key(path) == digits
    else:
        assert (
            key_files.load_key(path) == caught.value.digits != digits
            and caught.value.is_lasting == half
        )


# -- which disk, which key -------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path, path):
    """disk(saved={}, key=path, block_size=512, **words) -> (check, OpenedStore) of a 1 MiB image;
    disk.write(data) writes the image, disk.image is its path."""

    class Disk(object):
        image = str(tmp_path / 'disk.img')
        opened = []

        def write(self, data, offset=0):
            with open(self.image, 'r+b') as file:
                file.seek(offset)
                file.write(data)

        def take(self, saved=(), key=path, **words):
            self.opened.append(
                store.open_store(dict({'path': self.image, 'size': SIZE}, **words), self.opened)
            )
            lun = Lun(0, backing_store=self.image, encryption_key_file=key)
            return key_files.set_store_key(
                lun, self.opened[-1], dict(saved), '/state/units/1.json'
            ), self.opened[-1]

    made = Disk()
    with open(made.image, 'wb') as file:
        file.truncate(SIZE)
    yield made
    for each in made.opened:
        each.close()


@pytest.fixture
def warnings(monkeypatch):
    """Returns the list of logged warnings."""
    said = []
    monkeypatch.setattr(key_files.log, 'warning', lambda text, *words: said.append(text % words))
    return said


def refusal(disk, *arguments, **more):
    with pytest.raises(StoreError) as caught:
        disk.take(*arguments, **more)
    return str(caught.value)


def test_a_key_is_created_for_a_blank_disk_at_its_first_use(disk, path, warnings):
    check, opened = disk.take()
    (said,) = warnings
    assert opened.cipher_key == key_files.load_key(path) and check == key_files.key_check(
        opened.cipher_key, 512
    )
    assert 'Keep a copy' in said and opened.cipher_key[:12] not in said
    assert disk.take({'key_check': check})[1].cipher_key == opened.cipher_key


@pytest.mark.parametrize('offset', [0, SIZE // 2, SIZE - 1])
def test_no_key_is_created_for_a_disk_with_data(disk, path, offset):
    disk.write(b'x', offset)
    said = refusal(disk)
    assert (
        'the key of %s is missing' % disk.image in said
        and 'without it nothing on the disk can be read' in said
    )
    assert 'targetd --make-key %s' % path in said and not os.path.exists(path)


def test_a_disk_with_written_zeroes_is_blank(disk):
    disk.write(bytes(SIZE))
    assert disk.take()[0]


def test_no_new_key_is_created_for_a_blank_disk_that_had_one(disk, path):
    check, _ = disk.take()
    os.rename(path, path + '.away')
    assert 'is missing' in refusal(disk, {'key_check': check}) and not os.path.exists(path)


def test_no_key_is_created_for_a_read_only_disk(disk, path):
    assert 'is missing' in refusal(disk, read_only=True, size=None) and not os.path.exists(path)


def test_a_disk_with_more_than_blank_bytes_counts_as_not_blank(disk, monkeypatch):
    disk.write(bytes(SIZE))
    monkeypatch.setattr(key_files, 'BLANK_BYTES', SIZE // 2)
    assert 'is missing' in refusal(disk)


def test_a_wrong_key_is_refused_unless_the_disk_is_blank(disk, path, tmp_path):
    check, _ = disk.take()
    other = str(tmp_path / 'other.key')
    key_files.make_key(other)
    assert disk.take({'key_check': check}, other)[0] != check
    disk.write(b'x')
    said = refusal(disk, {'key_check': check}, other)
    assert (
        '%s is not the key of %s' % (other, disk.image) in said
        and 'remove /state/units/1.json' in said
    )
    assert disk.take({'key_check': check})[0] == check


def test_a_changed_block_size_is_refused_like_a_wrong_key(disk):
    check, _ = disk.take()
    disk.write(b'x')
    assert 'the block size differs' in refusal(disk, {'key_check': check}, block_size=4096)


def test_both_keys_are_accepted_while_the_key_is_being_replaced(disk, tmp_path):
    check, _ = disk.take()
    disk.write(b'x')
    other = str(tmp_path / 'other.key')
    digits = key_files.make_key(other)
    saved = {'key_check': check, 'operation': {'kind': 'sanitize', 'method': 'key'}}
    assert disk.take(saved, other)[1].cipher_key == digits and disk.take(saved)[0] == check


def test_a_removed_setting_is_refused(disk):
    check, _ = disk.take()
    assert disk.take({'key_check': check}, '')[0] == ''
    disk.write(b'x')
    said = refusal(disk, {'key_check': check}, '')
    assert (
        'is encrypted, and no encryption-key-file' in said and 'remove /state/units/1.json' in said
    )
    assert disk.take({}, '')[1].cipher_key == ''


def test_an_existing_key_may_be_used_for_a_disk_with_data(disk, path, warnings):
    disk.write(b'x')
    key_files.make_key(path)
    assert disk.take()[0]
    assert 'for the first time' in warnings[0]


def test_filters_do_not_hide_data_on_the_disk(disk):
    disk.write(b'x')
    assert 'is missing' in refusal(disk, filters='error read, delay 1s')
