"""Key files: what is refused, that a replaced key is gone wherever the machine stops, which disk is
served with which key."""

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


def test_what_is_made_is_what_is_loaded_and_nobody_else_reads_it(path):
    digits = key_files.make(path)
    assert key_files.load(path) == digits and len(bytes.fromhex(digits)) == 64
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert b'keep a copy' in text(path)
    assert key_files.make(path + '2') != digits


def test_a_key_is_never_overwritten_by_making_one(path):
    digits = key_files.make(path)
    with pytest.raises(StoreError) as caught:
        key_files.make(path)
    assert 'never overwritten' in str(caught.value) and key_files.load(path) == digits


def test_a_directory_that_is_not_there(path):
    with pytest.raises(StoreError):
        key_files.make(os.path.join(path, 'no', 'such'))
    with pytest.raises(key_files.Missing):
        key_files.load(path)


@pytest.mark.parametrize('mode', [0o640, 0o604, 0o660, 0o610])
def test_others_may_not_use_it(path, mode):
    key_files.make(path)
    os.chmod(path, mode)
    with pytest.raises(StoreError) as caught:
        key_files.load(path)
    assert 'chmod 600 %s' % path in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can give files away')
def test_it_belongs_to_root_or_to_us(path):
    key_files.make(path)
    os.chown(path, 65534, 65534)
    with pytest.raises(StoreError) as caught:
        key_files.load(path)
    assert 'another user' in str(caught.value)


def changed(content, old, new):
    assert old in content
    return content.replace(old, new, 1)


@pytest.mark.parametrize(
    'change, said',
    [
        (lambda content: b'', 'no key file'),
        (lambda content: b'password\n', 'no key file'),
        (
            lambda content: changed(content, b'targetd-disk-key 1', b'targetd-disk-key 2'),
            'no key file',
        ),
        (lambda content: content[:-20], 'no key file'),
        (lambda content: changed(content, b'sum ', b'sum 0'), 'damaged'),
        (lambda content: content.replace(content.split(b'\n')[3][:1], b'g'), 'no key file|damaged'),
        (
            lambda content: b'\n'.join(content.split(b'\n')[:3] + content.split(b'\n')[4:]),
            'no key file|damaged',
        ),
        (lambda content: os.urandom(300), 'no key file'),
    ],
)
def test_what_is_no_whole_key_is_refused_without_being_shown(path, change, said):
    digits = key_files.make(path)
    content = change(text(path))
    with open(path, 'wb') as file:
        file.write(content)
    with pytest.raises(StoreError) as caught:
        key_files.load(path)
    assert any(word in str(caught.value) for word in said.split('|'))
    assert digits[:16] not in str(caught.value) and digits[64:80] not in str(caught.value)


def test_blanks_comments_and_capitals_of_a_copy_that_was_typed_in(path):
    digits = key_files.make(path)
    lines = text(path).decode().split('\n')
    with open(path, 'w') as file:
        file.write(
            '# mine\r\n\r\n'
            + '\r\n'.join(
                line.upper() if set(line) <= set('0123456789abcdef') else line + '  '
                for line in lines
            )
        )
    assert key_files.load(path) == digits


def test_a_directory_is_no_key(tmp_path):
    with pytest.raises(StoreError) as caught:
        key_files.load(str(tmp_path))
    assert 'no regular file' in str(caught.value)


# -- replacing -------------------------------------------------------------------------------------

CALLS = ('open', 'link', 'rename', 'unlink', 'fsync', 'pwrite')


class Dead(BaseException):
    """The machine stopped."""


def stop_at(monkeypatch, number):
    """From its so-manyth call on, no call of CALLS does anything any more; gives the list of those
    that did."""
    done = []

    def dying(name):
        real = getattr(os, name)

        def call(*arguments, **more):
            if len(done) >= number:
                raise Dead(name)
            done.append(name)
            return real(*arguments, **more)

        return call

    for name in CALLS:
        monkeypatch.setattr(key_files.os, name, dying(name))
    return done


def test_a_replaced_key_is_another_and_the_old_one_is_overwritten(path, tmp_path):
    digits = key_files.make(path)
    copy = str(tmp_path / 'same.key')
    os.link(path, copy)
    new = key_files.replace(path)
    assert key_files.load(path) == new != digits
    assert not any(text(copy)) and sorted(os.listdir(str(tmp_path))) == ['disk.key', 'same.key']
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_wherever_the_machine_stops_the_file_is_whole_and_the_next_run_ends_the_old_key(
    tmp_path, monkeypatch
):
    number, ended = 0, False
    while not ended:
        directory = tmp_path / str(number)
        directory.mkdir()
        path = str(directory / 'disk.key')
        digits = key_files.make(path)
        witness = str(directory / 'witness')
        os.link(path, witness)  # shows what becomes of the old file's bytes
        with monkeypatch.context() as patched:
            done = stop_at(patched, number)
            try:
                key_files.replace(path)
                ended = True
            except Dead:
                pass
        found = key_files.load(path)
        assert found == digits or done.index('rename') < len(done)
        last = key_files.replace(path)
        assert key_files.load(path) == last not in (found, digits)
        assert not any(text(witness)), 'stopped after %r' % done
        assert sorted(os.listdir(str(directory))) == ['disk.key', 'witness']
        number += 1
    assert number > 12


def test_a_link_is_followed_and_stays(path, tmp_path):
    digits = key_files.make(path)
    link = str(tmp_path / 'link.key')
    os.symlink(path, link)
    new = key_files.replace(link)
    assert key_files.load(path) == key_files.load(link) == new != digits and os.path.islink(link)


def test_without_links_the_old_key_is_overwritten_too(path, tmp_path, monkeypatch):
    key_files.make(path)
    witness = str(tmp_path / 'witness')
    os.link(path, witness)

    def no_links(*arguments):
        raise PermissionError(1, 'Operation not permitted')

    monkeypatch.setattr(key_files.os, 'link', no_links)
    key_files.replace(path)
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
def test_a_disk_that_says_no_leaves_a_whole_key_and_it_is_said_which(
    path, monkeypatch, name, number, half
):
    digits = key_files.make(path)
    real, calls = getattr(os, name), []

    def no(*arguments, **more):
        calls.append(arguments)
        if len(calls) == number:
            raise OSError(5, 'Input/output error')
        return real(*arguments, **more)

    with monkeypatch.context() as patched:
        patched.setattr(key_files.os, name, no)
        with pytest.raises(OSError) as caught:
            key_files.replace(path)
    assert isinstance(caught.value, key_files.HalfReplaced) == (half is not None)
    if half is None:
        assert key_files.load(path) == digits
    else:
        assert (
            key_files.load(path) == caught.value.digits != digits
            and caught.value.is_lasting == half
        )


# -- which disk, which key -------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path, path):
    """take(saved={}, key=path, block_size=512, **words) -> (check, OpenedStore) of a 1 MiB image;
    .write(data), .image."""

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
            return key_files.take(
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
    """What is logged as a warning."""
    said = []
    monkeypatch.setattr(key_files.log, 'warning', lambda text, *words: said.append(text % words))
    return said


def refusal(disk, *arguments, **more):
    with pytest.raises(StoreError) as caught:
        disk.take(*arguments, **more)
    return str(caught.value)


def test_an_empty_disk_gets_a_key_at_its_first_use(disk, path, warnings):
    check, opened = disk.take()
    (said,) = warnings
    assert opened.cipher_key == key_files.load(path) and check == key_files.check_of(
        opened.cipher_key, 512
    )
    assert 'Keep a copy' in said and opened.cipher_key[:12] not in said
    assert disk.take({'key_check': check})[1].cipher_key == opened.cipher_key


@pytest.mark.parametrize('offset', [0, SIZE // 2, SIZE - 1])
def test_a_disk_that_holds_something_gets_none(disk, path, offset):
    disk.write(b'x', offset)
    said = refusal(disk)
    assert (
        'the key of %s is missing' % disk.image in said
        and 'without it nothing on the disk can be read' in said
    )
    assert 'targetd --make-key %s' % path in said and not os.path.exists(path)


def test_zeroes_that_were_written_are_nothing(disk):
    disk.write(bytes(SIZE))
    assert disk.take()[0]


def test_a_disk_that_had_a_key_gets_no_other_though_it_is_empty(disk, path):
    check, _ = disk.take()
    os.rename(path, path + '.away')
    assert 'is missing' in refusal(disk, {'key_check': check}) and not os.path.exists(path)


def test_a_disk_that_cannot_be_written_gets_none(disk, path):
    assert 'is missing' in refusal(disk, read_only=True, size=None) and not os.path.exists(path)


def test_a_large_disk_is_not_looked_through(disk, monkeypatch):
    disk.write(bytes(SIZE))
    monkeypatch.setattr(key_files, 'BLANK_BYTES', SIZE // 2)
    assert 'is missing' in refusal(disk)


def test_the_wrong_key_is_refused_unless_there_is_nothing_to_lose(disk, path, tmp_path):
    check, _ = disk.take()
    other = str(tmp_path / 'other.key')
    key_files.make(other)
    assert disk.take({'key_check': check}, other)[0] != check
    disk.write(b'x')
    said = refusal(disk, {'key_check': check}, other)
    assert (
        '%s is not the key of %s' % (other, disk.image) in said
        and 'remove /state/units/1.json' in said
    )
    assert disk.take({'key_check': check})[0] == check


def test_another_block_size_is_refused_like_another_key(disk):
    check, _ = disk.take()
    disk.write(b'x')
    assert 'the block size is another' in refusal(disk, {'key_check': check}, block_size=4096)


def test_while_the_key_is_being_replaced_either_is_right(disk, tmp_path):
    check, _ = disk.take()
    disk.write(b'x')
    other = str(tmp_path / 'other.key')
    digits = key_files.make(other)
    saved = {'key_check': check, 'operation': {'kind': 'sanitize', 'method': 'key'}}
    assert disk.take(saved, other)[1].cipher_key == digits and disk.take(saved)[0] == check


def test_a_setting_that_got_lost_is_noticed(disk):
    check, _ = disk.take()
    assert disk.take({'key_check': check}, '')[0] == ''
    disk.write(b'x')
    said = refusal(disk, {'key_check': check}, '')
    assert (
        'is encrypted, and no encryption-key-file' in said and 'remove /state/units/1.json' in said
    )
    assert disk.take({}, '')[1].cipher_key == ''


def test_a_key_made_before_may_be_used_for_what_held_something(disk, path, warnings):
    disk.write(b'x')
    key_files.make(path)
    assert disk.take()[0]
    assert 'for the first time' in warnings[0]


def test_filters_do_not_hide_what_the_disk_holds(disk):
    disk.write(b'x')
    assert 'is missing' in refusal(disk, filters='error read, delay 1s')
