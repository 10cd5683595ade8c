"""Real SCSI devices in a configuration: the settings that do not fit."""

import pytest

from targetd.config import explain, lint, loader
from targetd.errors import ConfigError

HEAD = '[target iqn.2026-11.test:t]\ninitiator-address = 10.0.0.1\n'
LUN = '[[lun 0]]\ntype = passthrough\nbacking-store = /dev/sg3\n'


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


def test_a_device_and_what_its_type_implies(load):
    configuration = load(LUN)
    ((target,),) = [configuration.targets.values()]
    lun = target.luns[0]
    assert lun.type == 'passthrough' and lun.command_filter and not lun.third_party_copy
    assert 'a real SCSI device' in explain._lun(lun)
    (warning,) = [each for each in lint.warnings(configuration) if '/dev/sg3' in str(each)]
    assert 'another device after a boot' in str(warning) and 'serial:' in str(warning)


@pytest.mark.parametrize(
    'line',
    [
        'size = 1G', 'thin = on', 'block-size = 4096', 'physical-block-size = 4096', 'removable = on',
        'rotation-rate = 7200', 'vendor-id = X', 'product-id = X', 'product-rev = X', 'scsi-sn = X',
        'naa = 6001405123456789012345678901abcd', 'eui = 0014051234567890', 'scsi-name = x',
        'write-cache = off', 'sense-format = descriptor', 'direct-io = on', 'atomic-writes = on',
        'encryption-key-file = /etc/key', 'guard = first-write-snapshot', 'filter = delay ms=1',
        'unit-state = /srv/state', 'health-interval = 1h', 'spin-down = 1h', 'mode-page = 1c 0',
        'optimal-transfer-length = 1M', 'management-url = http://a.example',
    ],
)  # fmt: skip
def test_what_the_device_itself_has_or_has_not_is_refused(load, line):
    name = line.split()[0]
    found = complaints(load, LUN + line + '\n')
    assert any('cannot have %s:' % name in each or name in each for each in found), found
    assert any('remove ' + name in each or name in each for each in found)


def test_the_filter_belongs_to_real_devices(load):
    (found,) = complaints(load, '[[lun 0]]\nbacking-store = /srv/x.img\ncommand-filter = off\n')
    assert 'no commands of a real device' in found and 'remove command-filter' in found
    (found,) = complaints(load, '[[lun 0]]\nbacking-store = /srv/x.img\ndevice-reset = on\n')
    assert 'remove device-reset' in found
    (target,) = load(LUN + 'command-filter = off\n').targets.values()
    assert 'every command is forwarded' in explain._lun(target.luns[0])


def test_a_device_needs_a_node(load):
    (found,) = complaints(load, '[[lun 0]]\ntype = passthrough\n')
    assert 'no backing-store' in found
