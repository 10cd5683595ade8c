"""LUNs on NBD servers in a configuration: URIs, and the settings that do not fit."""

import pytest

from targetd.config import loader
from targetd.errors import ConfigError

HEAD = '[target iqn.2026-11.test:t]\ninitiator-address = 10.0.0.1\n'
URI = 'nbd+unix:///disk?socket=/run/nbd.sock'
LUN = '[[lun 0]]\nbacking-store = "%s"\n' % URI


@pytest.fixture
def load(tmp_path):
    def load_(text):
        (tmp_path / 'main.conf').write_text(HEAD + text)
        return loader.load(str(tmp_path / 'main.conf'))

    return load_


def complaints(load, text):
    with pytest.raises(ConfigError) as caught:
        load(text)
    return [str(found) for found in caught.value.complaints]


def test_a_uri_is_kept_as_it_is_written(load):
    for uri in (URI, 'nbd://192.0.2.9/vm%207', 'nbd://[2001:db8::9]:10810/'):
        (target,) = load('[[lun 0]]\nbacking-store = "%s"\n' % uri).targets.values()
        assert target.luns[0].backing_store == uri


@pytest.mark.parametrize(
    'uri, text',
    [
        ('nbds://192.0.2.9/x', 'targetd cannot use nbds'),
        ('nbd:///x', 'does not name a host'),
        ('nbd+unix:///x', 'does not name a socket'),
        ('nbd://192.0.2.9:70000/x', '70000 is not a port'),
    ],
)
def test_a_uri_that_cannot_be_used_is_refused_with_the_remedy(load, uri, text):
    (found,) = complaints(load, '[[lun 0]]\nbacking-store = "%s"\n' % uri)
    assert text in found and 'write' in found


@pytest.mark.parametrize(
    'line, remedy',
    [
        ('type = file', 'remove type'),
        ('type = cd', 'remove type'),
        ('size = 1G', 'the server decides the size'),
        ('direct-io = yes', 'start the server with it'),
        ('atomic-writes = yes', 'write atomic-writes = no'),
        ('guard = first-write-snapshot', 'write guard = off'),
        ('health-interval = 1h', 'write health-interval = 0'),
        ('allow-in-use = yes', 'remove allow-in-use'),
    ],
)
def test_settings_of_disks_and_files_are_refused(load, line, remedy):
    name = line.split(' ')[0]
    found = complaints(load, LUN + line + '\n')
    assert any(
        'a lun on an NBD server cannot have %s' % name in each and remedy in each for each in found
    )


def test_direct_store_is_refused(load):
    found = complaints(load, LUN.replace('backing-store', 'direct-store'))
    assert any('cannot have direct-store' in each for each in found)


def test_one_export_twice_is_refused_however_it_is_written(load):
    text = '[[lun 0]]\nbacking-store = nbd://192.0.2.9/x\n[[lun 1]]\nbacking-store = %s\n'
    (found,) = complaints(load, text % 'NBD://192.0.2.9:10809/%78')
    assert 'which lun 0' in found
    load(text % 'nbd://192.0.2.9/y')
