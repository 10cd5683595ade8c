"""Tests that disks keep their identity when targets, LUNs and paths change, and that two servers
never show the same identity."""

import os
import re
import uuid

import pytest
from fake_host import FakeHost

from targetd.errors import TargetdError
from targetd.host import identity


@pytest.fixture
def host(tmp_path):
    return FakeHost(tmp_path / 'host')


def test_an_naa_designator_is_of_type_6_with_a_company_id():
    name = identity.naa6('server', 'file:/srv/a')
    assert re.match(r'^6001405[0-9a-f]{25}$', name)


@pytest.mark.parametrize('make', [identity.naa6, identity.eui64, identity.serial])
def test_names_depend_on_the_server_and_the_key_and_do_not_change(make):
    assert make('one', 'a') == make('one', 'a')
    assert len({make('one', 'a'), make('two', 'a'), make('one', 'b'), make('on', 'ea')}) == 4


def test_formats_of_eui64_and_serial():
    assert re.match(r'^[0-9A-F]{16}$', identity.serial('s', 'k'))
    assert re.match(r'^001405[0-9a-f]{10}$', identity.eui64('s', 'k'))


def test_direct_store_shows_the_identity_of_the_disk(host):
    node = host.disk(
        'sda',
        device__vendor='SEAGATE \n',
        device__model='ST4000NM0034    \n',
        device__rev='E005\n',
        device__vpd_pg80=b'\0\x80\0\x08Z4F0ABCD',
        device__wwid='naa.5000c50083a1b2c3\n',
    )
    assert identity.disk_identity(node, host) == (
        'SEAGATE',
        'ST4000NM0034',
        'E005',
        'Z4F0ABCD',
        '5000c50083a1b2c3',
    )


def test_names_fit_their_fields_and_are_ascii(host):
    node = host.disk(
        'nvme0n1',
        'devices/pci0000:00/nvme/nvme0',
        device__model='Very long model name of a disk\xb5\n',
        device__firmware_rev='3B4QFXO7\n',
        wwid='eui.002538d111a1b2c3\n',
    )
    found = identity.disk_identity(node, host)
    assert (found.vendor, found.product, found.revision, found.naa) == (
        'NVME',
        'Very long model',
        '3B4Q',
        '',
    )


def test_a_partition_has_an_identity_different_from_its_disk(host):
    host.disk('sda', serial='S1', device__wwid='naa.5000c50083a1b2c3\n')
    part = host.partition('sda', 2)
    assert identity.disk_identity(part, host)[3:] == ('S1-part2', '')
    assert identity.stable_key(part, host) != identity.stable_key(host.node('sda'), host)


def test_the_key_of_a_disk_moves_with_the_disk(tmp_path):
    facts = dict(device__model='X\n', serial='S1')
    keys = set()
    for letter in 'ab':
        host = FakeHost(tmp_path / letter)
        keys.add(identity.stable_key(host.disk('sd' + letter, **facts), host))
    assert len(keys) == 1


def test_the_key_of_a_logical_volume_is_its_dm_uuid(host):
    host.mapped('dm-0', 'vg-a', 'LVM-abc')
    host.mapped('dm-1', 'vg-b', 'LVM-def')
    assert identity.stable_key(host.node('dm-0'), host) != identity.stable_key(
        host.node('dm-1'), host
    )


def test_a_file_on_a_loop_device_has_the_key_of_the_file(host):
    node = host.disk('loop0', 'devices/virtual/block', loop__backing_file='/srv/erp.img\n')
    assert (
        identity.stable_key(node, host)
        == identity.stable_key('/srv/erp.img', host)
        == 'file:/srv/erp.img'
    )


# -- the server's own name -------------------------------------------------------------------------


def test_the_server_id_does_not_change(tmp_path):
    state = str(tmp_path / 'state')
    first = identity.server_id(state)
    assert uuid.UUID(first) and identity.server_id(state) == first
    assert os.listdir(state) == ['server-id']


def test_two_servers_have_different_ids(tmp_path):
    assert identity.server_id(str(tmp_path / 'a')) != identity.server_id(str(tmp_path / 'b'))


def test_a_damaged_server_id_file_is_refused_and_kept(tmp_path):
    (tmp_path / 'server-id').write_text('')
    with pytest.raises(TargetdError, match='server-id does not contain a UUID'):
        identity.server_id(str(tmp_path))
    assert (tmp_path / 'server-id').read_text() == ''


def test_the_error_names_a_state_directory_that_cannot_be_used(tmp_path):
    (tmp_path / 'file').write_text('x')
    with pytest.raises(
        TargetdError, match='cannot be saved in .*file/state/server-id: Not a directory'
    ):
        identity.server_id(str(tmp_path / 'file' / 'state'))


def test_the_first_server_id_written_is_used_by_both(tmp_path, monkeypatch):
    """Two servers that start at the same time on one state directory use the same id."""
    monkeypatch.setattr(identity.os.path, 'lexists', lambda path: False)
    first = identity.server_id(str(tmp_path))
    assert identity.server_id(str(tmp_path)) == first


def test_a_partly_written_server_id_is_never_visible(tmp_path, monkeypatch):
    def broken(descriptor):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(identity.os, 'fsync', broken)
    with pytest.raises(TargetdError, match='No space left'):
        identity.server_id(str(tmp_path))
    assert os.listdir(str(tmp_path)) == []


def test_a_file_system_without_hard_links_is_supported(tmp_path, monkeypatch):
    def no_links(old, new):
        raise OSError(1, 'Operation not permitted')

    monkeypatch.setattr(identity.os, 'link', no_links)
    first = identity.server_id(str(tmp_path))
    assert identity.server_id(str(tmp_path)) == first and os.listdir(str(tmp_path)) == ['server-id']
