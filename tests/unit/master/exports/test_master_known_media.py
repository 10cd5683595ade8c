"""Tests of the record of served media: another medium under the same name is refused until the
administrator accepts it."""

import pytest

from targetd.config import model
from targetd.errors import StoreError
from targetd.host import disks
from targetd.master.exports import known_media
from targetd.master.exports.known_media import KnownMedia, require_known

TARGET = model.Target(name='iqn.2026-11.test:disk')
SDB = model.Lun(number=0, backing_store='/dev/sdb')


@pytest.fixture
def plug(monkeypatch):
    """plug(key, size) makes every path refer to this disk from now on."""

    def plug(key, size=10**12, kind='disk'):
        disk = disks.Disk(
            'sdb',
            '/dev/sdb',
            kind,
            size,
            'MODEL',
            'MAKER',
            '',
            key,
            '',
            None,
            '',
            False,
            False,
            512,
            512,
        )
        monkeypatch.setattr(known_media.identity, 'stable_key', lambda path: key)
        monkeypatch.setattr(known_media.disks, 'describe_disk', lambda path: disk)
        monkeypatch.setattr(known_media.os.path, 'exists', lambda path: True)

    return plug


def test_the_recorded_disk_is_served_and_another_is_refused(plug):
    plug('naa.5000c500a1b2c3d4')
    known = known_media.describe_medium(SDB, '/dev/sdb')
    require_known(TARGET, SDB, '/dev/sdb', None)
    require_known(TARGET, SDB, '/dev/sdb', known)
    plug('naa.5000c500a1b2c3d4', 2 * 10**12)  # it has grown
    require_known(TARGET, SDB, '/dev/sdb', known)
    plug('naa.5000c500ffffffff')
    with pytest.raises(StoreError) as caught:
        require_known(TARGET, SDB, '/dev/sdb', known)
    assert '/dev/sdb is another disk than before' in str(caught.value)
    assert 'targetdctl accept iqn.2026-11.test:disk/0' in str(caught.value)
    assert 'serial naa.5000c500ffffffff) now, ' in str(
        caught.value
    ) and 'serial naa.5000c500a1b2c3d4' in str(caught.value)


def test_a_changed_backing_store_setting_accepts_another_disk(plug):
    plug('naa.5000c500a1b2c3d4')
    known = known_media.describe_medium(SDB, '/dev/sdb')
    plug('naa.5000c500ffffffff')
    require_known(TARGET, SDB._replace(backing_store='serial:WD-2'), '/dev/sdb', known)


def test_a_disk_without_a_persistent_name_is_identified_by_model_and_size(plug):
    plug('device:/dev/vdb')
    known = known_media.describe_medium(SDB, '/dev/vdb')
    plug('device:/dev/vdc')
    require_known(TARGET, SDB, '/dev/vdc', known)
    plug('device:/dev/vdb', 5 * 10**11)
    with pytest.raises(StoreError):
        require_known(TARGET, SDB, '/dev/vdb', known)


def test_a_moved_file_is_served_and_a_missing_one_is_not_created_again(plug, tmp_path, monkeypatch):
    path, moved = tmp_path / 'disk.img', tmp_path / 'moved.img'
    path.write_bytes(b'')
    lun = SDB._replace(backing_store='/srv/disk.img', size=1 << 20)
    plug('file:/srv/a.img', 1 << 20, 'file')
    known = known_media.describe_medium(lun, str(path))
    path.rename(moved)
    plug('file:/srv/b.img', 1 << 20, 'file')
    require_known(TARGET, lun, str(moved), known)
    monkeypatch.setattr(known_media.os.path, 'exists', lambda path: False)
    with pytest.raises(StoreError) as caught:
        require_known(TARGET, lun, '/srv/disk.img', known)
    assert '/srv/disk.img no longer exists; it had 1.0 MB' in str(
        caught.value
    ) and 'file system mounted' in str(caught.value)
    # opening it says what is wrong
    require_known(TARGET, lun._replace(size=None), '/srv/disk.img', known)


def test_another_or_a_shorter_file_is_refused(plug, tmp_path):
    path = tmp_path / 'disk.img'
    path.write_bytes(b'')
    lun = SDB._replace(backing_store=str(path))
    plug('file:%s' % path, 2 << 20, 'file')
    known = known_media.describe_medium(lun, str(path))
    plug('file:%s' % path, 1 << 20, 'file')
    with pytest.raises(StoreError) as caught:
        require_known(TARGET, lun, str(path), known)
    assert 'is shorter than when it was last served: 1048576 bytes now, 2097152 then' in str(
        caught.value
    )
    plug('file:%s' % path, 2 << 20, 'file')
    for part, other in (('inode', -1), ('device', -1)):
        with pytest.raises(StoreError) as caught:
            require_known(TARGET, lun, str(path), dict(known, **{part: other}))
        assert 'is another file than before' in str(caught.value)
    require_known(TARGET, lun, str(path), dict(known, device=-1, boot='another boot'))
    earlier = {name: known[name] for name in ('named', 'key', 'is_file', 'size', 'shown')}
    require_known(TARGET, lun, str(path), earlier)  # recorded by an earlier version


def test_the_records_are_kept_over_a_restart(tmp_path):
    path = str(tmp_path / 'state' / 'media.json')
    seen = {'named': '/dev/sdb', 'key': 'naa.1', 'is_file': False, 'size': 1, 'shown': 'it'}
    known = KnownMedia(path)
    known.load()
    assert known.get('a', 0) is None
    assert (
        known.note('a', 0, seen)
        and not known.note('a', 0, dict(seen, size=2))
        and known.note('a', 1, seen)
    )
    known.save()
    again = KnownMedia(path)
    again.load()
    assert again.get('a', 0)['size'] == 2
    assert again.note('a', 0, dict(seen, key='naa.2'))
    again.keep_only([('a', 0)])
    assert again.get('a', 1) is None and again.forget('a', 0) and not again.forget('a', 0)
    again.save()
    third = KnownMedia(path)
    third.load()
    assert third.get('a', 0) is None


@pytest.mark.parametrize(
    'content', ['', '{}', '[]', '{"version": 0, "media": []}', '{"version": 1, "media": [{}]}']
)
def test_a_damaged_file_is_logged_and_ignored(tmp_path, capfd, content):
    path = tmp_path / 'media.json'
    path.write_text(content)
    KnownMedia(str(path)).load()
    assert 'media.json cannot be read' in capfd.readouterr().err


def test_a_file_of_a_newer_version_is_refused(tmp_path):
    path = tmp_path / 'media.json'
    path.write_text('{"version": 2, "media": []}')
    with pytest.raises(StoreError, match='media.json was written by a newer version'):
        KnownMedia(str(path)).load()


def test_a_directory_that_is_not_writable_is_logged(tmp_path, capfd):
    (tmp_path / 'file').write_text('')
    known = KnownMedia(str(tmp_path / 'file' / 'media.json'))
    known.note('a', 0, {'named': '', 'key': ''})
    known.save()
    assert 'cannot be written' in capfd.readouterr().err
