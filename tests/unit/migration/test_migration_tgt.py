"""targets.conf of tgt: its grammar, its numbers, and what has no counterpart."""

import pytest
from migrated import linux_name, loaded, notes

from targetd.migration import tgt
from targetd.migration.imported import LEFT_OUT, NOTE, WRONG, Unreadable

NAME = 'iqn.2026-11.com.example:t'


def parse(text, exists=lambda path: True):
    return tgt.parse('/etc/tgt/targets.conf', text, exists=exists)


def only(text, **more):
    imported = parse(text, **more)
    configuration, complaints = loaded(imported)
    assert complaints == []
    return imported, configuration.targets[NAME]


def test_a_plain_target():
    imported, target = only(
        'default-driver iscsi\n<target %s>\n  backing-store /srv/a.img # the disk\n'
        '  initiator-address 10.0.0.0/24\n  incominguser joe a=b\n</target>\n' % NAME
    )
    lun = target.luns[1]
    assert (lun.backing_store, lun.block_size, lun.write_cache) == ('/srv/a.img', 512, True)
    assert linux_name(lun) == '360000000000000000e00000000010001'
    assert target.initiator_addresses == ('10.0.0.0/24',) and target.accounts == (('joe', 'a=b'),)


def test_comments_joined_lines_and_here_documents():
    imported, target = only(
        '/* a comment\n  <target iqn.x:gone>\n*/\n<target "%s">\n  backing-store \\\n   /srv/a.img\n'
        '  product_id = <<END\nERP\nEND\n  vendor_id=A\\#B\n</target>\n' % NAME
    )
    assert target.luns[1].backing_store == '/srv/a.img' and target.luns[1].vendor_id == 'A#B'
    assert target.luns[1].product_id == 'ERP'


def test_luns_are_numbered_by_path_and_reserved_numbers_stay_free():
    imported, target = only(
        '<target %s>\n <backing-store /srv/b>\n </backing-store>\n <backing-store /srv/B>\n'
        ' </backing-store>\n <backing-store /srv/c>\n  lun 1\n </backing-store>\n'
        ' direct-store /srv/a\n</target>\n' % NAME
    )
    assert {n: lun.backing_store for n, lun in target.luns.items()} == {
        1: '/srv/c',
        2: '/srv/B',
        3: '/srv/b',
        4: '/srv/a',
    }


def test_blocks_of_one_name_are_merged_and_targets_are_numbered_by_name(tmp_path):
    (tmp_path / 'more.d').mkdir()
    (tmp_path / 'more.d' / 'a.conf').write_text(
        '<target iqn.2026-11.com.example:Z>\n backing-store /srv/z\n</target>\n'
        '<target %s>\n backing-store /srv/a\n</target>\n' % NAME
    )
    main = tmp_path / 'targets.conf'
    main.write_text('include more.d/*.conf\n<target %s>\n backing-store /srv/b\n</target>\n' % NAME)
    imported = tgt.parse(str(main), exists=lambda path: True)
    configuration, _ = loaded(imported)
    assert len(imported.files) == 2 and sorted(configuration.targets[NAME].luns) == [1, 2]
    serials = [t.luns[1].scsi_sn.strip() for t in configuration.targets.values()]
    assert serials == ['beaf11', 'beaf21']  # capital letters sort first


def test_a_store_that_is_gone_is_an_error():
    text = '<target %s>\n backing-store /srv/a\n backing-store /srv/b\n</target>\n' % NAME
    imported = parse(text, exists=lambda path: path == '/srv/b')
    assert notes(imported, WRONG) == [
        '/etc/tgt/targets.conf:2: error: /srv/a does not exist, so tgt skips it and gives its LUN '
        'number to the next one; restore it, or remove the line'
    ]
    assert [lun.number for lun in imported.targets[0].luns] == [1]
    elsewhere = parse(text, exists=lambda path: False)
    assert notes(elsewhere, WRONG) == [] and len(elsewhere.targets[0].luns) == 2
    assert 'no backing-store of the file exists on this host' in notes(elsewhere, NOTE)[0]


@pytest.mark.parametrize(
    'line, level, words',
    [
        ('colour blue', LEFT_OUT, ':3: left out: colour is not a word of tgt'),
        (
            'MaxXmitDataSegmentLength 8192',
            LEFT_OUT,
            ':3: left out: MaxXmitDataSegmentLength has no',
        ),
        ('initiator-address 10.0.0.1/32', LEFT_OUT, 'never matches in tgt'),
        ('initiator-address 10.0.0.1/24', LEFT_OUT, 'never matches in tgt'),
        ('incominguser joe\tsecret', WRONG, ':3: error: incominguser joe: tgt-admin splits'),
        ('incominguser joe PLEASE_CORRECT_THE_PASSWORD', WRONG, 'its secret is not in the file'),
        ('bs-type rbd', WRONG, ':3: error: bs-type rbd is not a file or disk of this host'),
        ('block-size 4096', NOTE, ':3: tgt ignores block-size here'),
        ('initiator-name iqn.x:y', NOTE, 'without initiator-address tgt admits everyone'),
    ],
)
def test_what_has_no_counterpart_is_listed(line, level, words):
    imported = parse('<target %s>\n backing-store /srv/a\n %s\n</target>\n' % (NAME, line))
    assert [text for text in notes(imported, level) if words in text]


def test_a_real_device_keeps_its_own_identity_and_commands():
    """tgt's bs-type sg; a block size beside it would be refused by the check."""
    imported, target = only(
        '<target %s>\n <backing-store /dev/sg3>\n  bs-type sg\n  device-type pt\n  block-size 4096\n'
        '  readonly 1\n </backing-store>\n</target>\n' % NAME
    )
    lun = target.luns[1]
    assert (lun.type, lun.backing_store, lun.readonly) == ('passthrough', '/dev/sg3', True)
    assert [text for text in notes(imported, NOTE) if '/dev/sg3 with its own commands' in text]


def test_an_account_without_a_secret_admits_nobody():
    """Without the account the target would be open to everyone."""
    imported = parse(
        '<target %s>\n backing-store /srv/a\n incominguser joe PLEASE_CORRECT_THE_PASSWORD\n</target>\n'
        % NAME
    )
    _, complaints = loaded(imported)
    assert 'the account has only one word' in complaints[0].text


def test_address_or_name_becomes_both():
    imported, target = only(
        '<target %s>\n backing-store /srv/a\n initiator-address 10.0.0.5\n'
        ' initiator-name iqn.x:Node\n</target>\n' % NAME
    )
    assert target.initiator_names == ('iqn.x:node',) and target.initiator_addresses == ('10.0.0.5',)
    assert [text for text in notes(imported) if 'in targetd both must match' in text]


@pytest.mark.parametrize(
    'text, words',
    [
        ('<target a>\n backing-store /srv/a\n', 'the block <target a> is never closed'),
        ('</target>\n', 'has no start'),
        (
            '<target a>\n <backing-store /srv/a>\n lun x\n</backing-store>\n</target>\n',
            'not a number',
        ),
    ],
)
def test_a_damaged_file_cannot_be_read(text, words):
    with pytest.raises(Unreadable) as caught:
        parse(text)
    assert words in str(caught.value) and caught.value.note.place.line


def test_two_luns_of_one_number_are_an_error():
    imported = parse(
        '<target %s>\n <backing-store /srv/a>\n lun 3\n </backing-store>\n <backing-store /srv/b>\n'
        ' lun 3\n </backing-store>\n</target>\n' % NAME
    )
    assert 'LUN 3 of %s is written twice; the other place is' % NAME in notes(imported, WRONG)[0]


def test_an_include_that_does_not_exist_is_an_error(tmp_path):
    (tmp_path / 'targets.conf').write_text('include gone.conf\ninclude none/*.conf\n')
    imported = tgt.parse(str(tmp_path / 'targets.conf'))
    assert len(notes(imported, WRONG)) == 1
    assert 'targets.conf:1: error: the file gone.conf that it includes' in notes(imported, WRONG)[0]
