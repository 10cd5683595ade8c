"""encryption-key-file in a configuration: where it is allowed, and the complaints and warnings about it."""

import pytest

from targetd import xts
from targetd.config import explain, lint, loader
from targetd.errors import ConfigError

HEAD = '[target iqn.2026-11.test:t]\ninitiator-address = 10.0.0.1\n'
LUN = '[[lun %d]]\nbacking-store = disk%d.img\nsize = 1M\nencryption-key-file = %s\n'


@pytest.fixture
def load(tmp_path, monkeypatch):
    """load(text, why_not=''): the Configuration of a file with this text; why_not: the reason why
    this host cannot encrypt."""

    def load_(text, why_not=''):
        monkeypatch.setattr(xts, 'why_not', lambda: why_not)
        (tmp_path / 'main.conf').write_text(HEAD + text)
        return loader.load(str(tmp_path / 'main.conf'))

    return load_


def complaint(load, *arguments):
    with pytest.raises(ConfigError) as caught:
        load(*arguments)
    (found,) = caught.value.complaints
    return str(found)


def test_the_path_is_taken_from_the_directory_of_the_file(load, tmp_path):
    (target,) = load(LUN % (0, 0, 'disk0.key')).targets.values()
    assert target.luns[0].encryption_key_file == str(tmp_path / 'disk0.key')
    assert load('backing-store = disk.img').targets[target.name].luns[0].encryption_key_file == ''


def test_without_encryption_the_setting_is_refused_with_the_remedy(load):
    said = complaint(load, LUN % (0, 0, 'a.key'), 'the package is missing; install it: so')
    assert said.endswith(
        ':6: encryption is not available on this host; the package is missing; install it: so'
    )
    load('backing-store = disk.img', 'the package is missing')


def test_a_key_belongs_to_one_disk(load):
    said = complaint(load, LUN % (0, 0, 'a.key') + LUN % (1, 1, 'a.key'))
    assert (
        'lun 1 of iqn.2026-11.test:t has the encryption-key-file of lun 0' in said
        and 'a different key file' in said
    )
    assert 'write it in [[lun N]]' in complaint(
        load, 'encryption-key-file = a.key\nbacking-store = a.img'
    )
    both = [(LUN % (number, 0, 'a.key')) + 'readonly = yes\n' for number in (0, 1)]
    assert len(load(''.join(both)).targets['iqn.2026-11.test:t'].luns) == 2


@pytest.mark.parametrize('kind', ['ram', 'null'])
def test_a_store_without_a_medium_cannot_be_encrypted(load, kind):
    said = complaint(load, '[[lun 0]]\ntype = %s\nsize = 1M\nencryption-key-file = a.key\n' % kind)
    assert 'cannot be encrypted' in said


def test_the_explanation_names_the_file_and_a_missing_one_is_a_warning(load, tmp_path):
    configuration = load(LUN % (0, 0, 'a.key'))
    assert 'encrypted with %s' % (tmp_path / 'a.key') in explain.explained(configuration)
    (said,) = [str(each) for each in lint.missing_keys(configuration)]
    assert 'its encryption-key-file %s does not exist' % (tmp_path / 'a.key') in said
    (tmp_path / 'a.key').write_text('')
    assert lint.missing_keys(configuration) == []


def test_an_encrypted_disk_has_no_journal(load):
    assert 'journal' in complaint(load, LUN % (0, 0, 'a.key') + 'atomic-writes = yes\n')
    assert load(LUN % (0, 0, 'a.key') + 'atomic-writes = no\n')
