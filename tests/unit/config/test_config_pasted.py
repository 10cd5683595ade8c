"""Lines of other targets' configurations in targetd.conf get the remedy that their first word asks
for."""

import pytest

from targetd.config import loader, pasted, settings
from targetd.errors import ConfigError

LINES = [
    (
        '<target iqn.x:y>',
        'write [target iqn.x:y]; or import the whole file: targetdctl import FILE',
    ),
    ('<backing-store /srv/a>', 'write [[lun N]], and below it backing-store = /srv/a'),
    ('</backing-store>', 'sections have no end mark: remove the line'),
    ('default-driver iscsi', 'remove it: targetd supports iSCSI only'),
    ('iSNSServerIP 10.0.0.9', 'write isns-server = ADDRESS'),
    ('bs-type rdwr', 'write type = file, block, ram or null'),
    ('HANDLER vdisk_fileio {', 'this is a word of SCST: write a section [[lun N]]'),
    ('TARGET_DRIVER iscsi {', 'this is a word of SCST'),
    ('TARGET iqn.2026-11.com.example:scst {', 'write [target iqn.2026-11.com.example:scst]'),
    ('enabled 1', 'write state = ready or state = offline'),
    ('t10_dev_id ERP-1', 'identity = scst device=NAME t10_dev_id='),
    ('LUN 0 disk1', 'write [[lun N]]'),
    ('Target iqn.2026-11.com.example:iet', 'write [target iqn.2026-11.com.example:iet]'),
    ('Lun 0 Path=/srv/a,Type=fileio', 'write [[lun N]]'),
    ('Wthreads 8', 'this is a word of IET'),
    ('auth-group ag0 {', 'this is a word of ctld: write incominguser'),
    ('portal-group pg0 {', 'write [portal-group TAG] with portal = ADDRESS'),
    ('listen 0.0.0.0', 'write portal = ADDRESS in [portal-group TAG]'),
    ('chap joe secret', 'write incominguser = NAME SECRET'),
    ('}', 'sections have no end mark'),
    ('TargetName disk1', 'this is a word of istgt: write [target NAME]'),
    ('LUN0 Storage /srv/a Auto', 'write [[lun N]]'),
    ('UnitType Disk', 'this is a word of istgt'),
    ('"storage_objects": [', 'this is a word of LIO'),
    ('<?xml version="1.0"?>', 'this is XML of Microsoft'),
]


def complaint(tmp_path, text):
    path = tmp_path / 'targetd.conf'
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        loader.load(str(path))
    return list(caught.value.complaints)


@pytest.mark.parametrize('line, remedy', LINES)
@pytest.mark.parametrize('inside', [True, False])
def test_a_line_of_another_language(tmp_path, line, remedy, inside):
    head = '[target iqn.2026-11.com.example:t]\n' if inside else ''
    found = complaint(tmp_path, head + line + '\n')
    assert any(remedy in c.remedy and c.line == (2 if inside else 1) for c in found), found


@pytest.mark.parametrize(
    'line',
    [line for line, _ in LINES if '=' not in line and line[0] not in '<}"' and '{' not in line],
)
def test_the_same_line_with_an_equals_sign(tmp_path, line):
    word, _, rest = line.partition(' ')
    found = complaint(tmp_path, '[target iqn.2026-11.com.example:t]\n%s = %s\n' % (word, rest))
    remedy = [remedy for text, remedy in LINES if text == line][0]
    if word.lower() == 'target':
        remedy = 'write [target NAME]'
    assert any(remedy in c.remedy for c in found), found


@pytest.mark.parametrize('name', ['LogicalUnit3', 'PortalGroup1', 'InitiatorGroup1', 'AuthGroup2'])
def test_a_section_of_istgt(tmp_path, name):
    (found,) = complaint(tmp_path, '[%s]\n' % name)
    assert found.remedy.startswith('this is a word of istgt: write ')


def test_a_setting_without_an_equals_sign_keeps_its_remedy(tmp_path):
    (found,) = complaint(tmp_path, '[target iqn.x:y]\nbacking-store /srv/a\n')
    assert found.remedy == 'write backing-store = ...'
    (found,) = complaint(tmp_path, '[target iqn.x:y]\nbacking-store /srv/a=b\n')
    assert found.remedy == 'write backing-store = ...'
    (found,) = complaint(tmp_path, '[target iqn.x:y]\nincominguser joe Secret=word\n')
    assert 'Secret' not in str(found) and found.remedy == 'write incominguser = ...'


def test_no_word_of_another_language_is_a_setting_of_the_same_meaning():
    for word in pasted.WORDS:
        assert word not in {row.name.lower() for row in settings.TABLE}, word


def test_a_key_of_the_other_targetd_in_a_section(tmp_path):
    found = complaint(tmp_path, '[target iqn.2026-11.com.example:t]\nblock_pools:\n')
    assert any('the other program called targetd' in c.remedy and c.line == 2 for c in found), found
