"""Disks with the content of a Linux host in an imported configuration."""

import pytest
from migrated import notes

from targetd.host.signatures import Signature
from targetd.migration import contents
from targetd.migration.imported import Imported, Lun, Place, Target

EXT4 = Signature('ext4', 'host', 1080, 0, 'data')
LVM = Signature('LVM physical volume', 'host', 512, 2, '')
NTFS = Signature('NTFS', 'client', 3, 1, '')
GPT = Signature('GPT partition table', 'either', 512, 0, '')


def imported_with(*settings):
    """An Imported with one LUN, 7, that has these settings."""
    imported = Imported('tgt')
    target = Target('iqn.2026-11.test:a', Place('targets.conf', 1))
    lun = Lun(7, Place('targets.conf', 3))
    for setting, text in settings:
        lun.add(setting, text)
    target.luns.append(lun)
    imported.targets.append(target)
    return imported, lun


DISK = ('backing-store', '/dev/sdb')


def confirm(imported, found, disk='/dev/sdb'):
    contents.confirm(imported, lambda path: path == disk, lambda path: found)


def test_a_disk_with_the_content_of_a_host_is_kept_and_the_note_says_which_and_why():
    imported, lun = imported_with(DISK)
    confirm(imported, [GPT, EXT4, LVM])
    assert lun.get('content') == ['keep']
    (note,) = notes(imported)
    assert note.startswith(
        'targets.conf:3: iqn.2026-11.test:a/7: /dev/sdb contains ext4 "data", LVM'
    )
    assert 'so content = keep is written' in note and 'GPT' not in note


@pytest.mark.parametrize(
    'settings, found',
    [
        ([DISK], [NTFS, GPT]),  # of initiators: targetd does not ask
        ([DISK], []),
        ([DISK, ('readonly', 'yes')], [EXT4]),
        ([DISK, ('content', 'ask')], [EXT4]),
        ([DISK, ('allow-in-use', 'yes')], [EXT4]),
        ([('backing-store', '/srv/a.img')], [EXT4]),  # not a block device
        ([('type', 'ram'), ('size', '1G')], [EXT4]),
    ],
)
def test_nothing_is_written_where_targetd_does_not_ask(settings, found):
    imported, lun = imported_with(*settings)
    confirm(imported, found)
    assert ('content', 'keep') not in lun.settings
    assert notes(imported) == []


def test_a_name_with_blanks_is_read_as_it_is_written():
    imported, lun = imported_with(('direct-store', '"/dev/disk/by-id/a b"'))
    confirm(imported, [EXT4], '/dev/disk/by-id/a b')
    assert lun.get('content') == ['keep']


def test_a_disk_that_cannot_be_read_is_named():
    imported, lun = imported_with(DISK)

    def examine(path):
        raise PermissionError(13, 'Permission denied')

    contents.confirm(imported, lambda path: True, examine)
    assert lun.get('content') == []
    (note,) = notes(imported)
    assert '/dev/sdb cannot be read (Permission denied)' in note and 'import as root' in note
