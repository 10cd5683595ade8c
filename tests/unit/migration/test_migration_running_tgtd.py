"""What was imported, compared with the output of tgtadm."""

from migrated import notes

from targetd.migration import running_tgtd, tgt
from targetd.migration.imported import WRONG

NAME = 'iqn.2026-11.com.example:t'
SHOWN = (
    """Target 1: %s
    System information:
        Driver: iscsi
        State: ready
    I_T nexus information:
    LUN information:
        LUN: 0
            Type: controller
            SCSI ID: IET     00010000
            SCSI SN: beaf10
        LUN: 1
            Type: disk
            SCSI ID: IET     00010001
            SCSI SN: beaf11
            Size: 1 MB, Block size: 512
            Online: Yes
            Removable media: No
            Readonly: No
            Thin-provisioning: No
            Backing store type: rdwr
            Backing store path: /srv/a
            Backing store flags:
    Account information:
    ACL information:
        ALL
"""
    % NAME
)
FILE = '<target %s>\n  backing-store /srv/a\n</target>\n' % NAME


def differences(text, shown):
    imported = tgt.parse('targets.conf', text, exists=lambda path: True)
    running_tgtd.compare(imported, shown)
    return notes(imported, WRONG)


def test_a_file_that_is_running_has_no_difference():
    assert differences(FILE, SHOWN) == []


def test_another_order_of_luns_is_found():
    found = differences(FILE, SHOWN.replace('/srv/a', '/srv/b'))
    assert len(found) == 1 and 'targets.conf:2: error: LUN 1' in found[0]
    assert 'Backing store path is /srv/b in tgtd, and /srv/a in the file' in found[0]


def test_another_block_size_serial_and_readonly_are_found():
    shown = (
        SHOWN.replace('512', '4096')
        .replace('beaf11', 'S1')
        .replace('Readonly: No', 'Readonly: Yes')
    )
    found = ' '.join(differences(FILE, shown))
    assert 'has blocks of 4096 bytes in tgtd, and of 512' in found
    assert (
        'SCSI SN is S1 in tgtd, and beaf11' in found and 'Readonly is Yes in tgtd, and No' in found
    )


def test_luns_and_targets_that_only_one_side_has_are_found():
    second = FILE.replace('</target>', '  backing-store /srv/b\n</target>')
    assert 'LUN 2 of %s is in the file, but does not run' % NAME in differences(second, SHOWN)[0]
    more = SHOWN.replace(
        '    Account',
        SHOWN[SHOWN.index('        LUN: 1') :].split('    Account')[0].replace('LUN: 1', 'LUN: 2')
        + '    Account',
    )
    assert 'LUN 2 of %s (/srv/a) runs, but is not in the file' % NAME in differences(FILE, more)[0]
    other = differences(FILE, SHOWN.replace(NAME, NAME + '2'))
    assert len(other) == 2 and 'runs, but is not in the file' in other[0]
