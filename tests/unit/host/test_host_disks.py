"""Tests that disks are found by their serial number, WWN and other persistent names, independent of
the order in which the kernel found them."""

import os

import pytest
from fake_host import FakeHost

from targetd.errors import StoreError
from targetd.host import disks

RED = dict(
    device__model='WDC WD40EFRX-68W\n',
    device__vendor='ATA     \n',
    device__rev='0A82\n',
    device__vpd_pg80=b'\0\x80\0\x14     WD-WCC4E0123456',
    device__wwid='naa.50014ee2b1234567\n',
    queue__logical_block_size='512\n',
    queue__physical_block_size='4096\n',
    removable='0\n',
)


@pytest.fixture
def host(tmp_path):
    return FakeHost(tmp_path)


def refusal(text, host):
    with pytest.raises(StoreError) as caught:
        disks.resolve_backing_store(text, host)
    return str(caught.value)


# -- description -----------------------------------------------------------------------------------


def test_the_description_of_a_sata_disk(host):
    node = host.disk('sda', size=4000787030016, **RED)
    disk = disks.describe_disk(node, host)
    assert disk.path == node and disk.kind == 'disk' and disk.size == 4000787030016
    assert (disk.vendor, disk.model, disk.revision) == ('ATA', 'WDC WD40EFRX-68W', '0A82')
    assert disk.serial == 'WD-WCC4E0123456' and disk.wwn == 'naa.50014ee2b1234567'
    assert (
        disk.rotational is True
        and disk.transport == 'sata'
        and not disk.removable
        and not disk.read_only
    )
    assert (disk.logical_sector, disk.physical_sector) == (512, 4096)


def test_the_full_model_of_an_ata_disk_comes_from_vpd_page_89(host):
    page = bytearray(60 + 512)
    name = b'WDC WD40EFRX-68WT0N0'.ljust(40)
    page[60 + 54 : 60 + 94] = b''.join(
        name[i + 1 : i + 2] + name[i : i + 1] for i in range(0, 40, 2)
    )
    node = host.disk('sda', device__vpd_pg89=bytes(page), **RED)
    assert disks.describe_disk(node, host).model == 'WDC WD40EFRX-68WT0N0'


def test_nvme_and_virtio_disks_have_a_serial_file_of_another_path(host):
    nvme = host.disk(
        'nvme0n1',
        'devices/pci0000:00/0000:01:00.0/nvme/nvme0',
        device__model='Samsung SSD 980  \n',
        device__serial='S64DNL0T  \n',
        device__firmware_rev='3B4QFXO7\n',
        wwid='eui.002538d111a1b2c3\n',
        queue__rotational='0\n',
    )
    virtio = host.disk(
        'vda',
        'devices/pci0000:00/0000:00:04.0/virtio1/block',
        serial='data-1',
        device__vendor='0x1af4\n',
    )
    found = disks.describe_disk(nvme, host)
    assert (found.serial, found.model, found.revision) == (
        'S64DNL0T',
        'Samsung SSD 980',
        '3B4QFXO7',
    )
    assert (found.wwn, found.transport, found.rotational) == ('eui.002538d111a1b2c3', 'nvme', False)
    found = disks.describe_disk(virtio, host)
    assert (found.serial, found.vendor, found.transport) == ('data-1', '', 'virtio')


def test_a_usb_disk_has_the_serial_of_its_usb_device(host):
    place = 'devices/pci0000:00/usb2/2-1/2-1:1.0/host6/target6:0:0/6:0:0:0'
    host.write('sys/devices/pci0000:00/usb2/2-1/idVendor', '0bc2')
    host.write('sys/devices/pci0000:00/usb2/2-1/serial', 'NA8ABCDE\n')
    node = host.disk('sdc', place + '/block', removable='1\n')
    host.link('sys/%s/block/sdc/device' % place, os.path.join(host.sys, place))
    disk = disks.describe_disk(node, host)
    assert disk.serial == 'NA8ABCDE' and disk.transport == 'usb' and disk.removable


def test_udev_properties_are_used_when_sysfs_has_no_vpd_pages(host):
    node = host.disk('sda')
    host.write(
        'run/udev/data/b' + host.number('sda'),
        'S:disk/by-id/x\nE:ID_SERIAL_SHORT=WD-9\nE:ID_WWN=0x50014ee2b1234567\n'
        'E:ID_MODEL_ENC=WDC\\x20WD10\\x20\\x20\n',
    )
    disk = disks.describe_disk(node, host)
    assert (disk.serial, disk.wwn, disk.model) == ('WD-9', 'naa.50014ee2b1234567', 'WDC WD10')


def test_the_logical_unit_designator_of_page_83_is_used_not_the_port_designator(host):
    port = b'\x61\x93\0\x08' + b'\x51' * 8
    text = b'\x02\x01\0\x08ATA     '
    unit = b'\x01\x03\0\x08' + b'\x50\x01\x4e\xe2\xb1\x23\x45\x67'
    page = b'\0\x83\0' + bytes([len(port + text + unit)]) + port + text + unit
    assert (
        disks.describe_disk(host.disk('sda', device__vpd_pg83=page), host).wwn
        == 'naa.50014ee2b1234567'
    )


@pytest.mark.parametrize(
    'page',
    [b'', b'\0', b'\0\x83\xff\xff', b'\0\x83\0\x08\x01\x03\0\xff\x50', b'\0\x83\0\x02\x01\x03'],
)
def test_a_malformed_page_83_has_no_designator(host, page):
    assert disks.describe_disk(host.disk('sda', device__vpd_pg83=page), host).wwn in ('', 'naa.50')


def test_a_partition_has_its_disks_description_and_its_own_size(host):
    host.disk('sda', **RED)
    disk = disks.describe_disk(host.partition('sda', 2, size=512 * 1000), host)
    assert disk.kind == 'partition' and disk.size == 512000 and disk.serial == 'WD-WCC4E0123456'
    assert disk.physical_sector == 4096 and disk.name == 'sda2'


def test_a_file_is_described_and_a_directory_is_refused(host, tmp_path):
    path = host.write('images/erp.img', b'x' * 1024)
    assert disks.describe_disk(path, host)[1:4] == (path, 'file', 1024)
    with pytest.raises(StoreError, match='neither a block device nor a file'):
        disks.describe_disk(os.path.dirname(path), host)
    with pytest.raises(StoreError, match='No such file'):
        disks.describe_disk(path + '2', host)


def test_drives_without_a_medium_and_partitions_are_not_listed(host):
    host.disk('sda', **RED)
    host.partition('sda', 1)
    host.disk('sr0', 'devices/pci0000:00/ata2/host1/block', size=0)
    host.disk('cciss!c0d0', 'devices/pci0000:00/cciss0')
    assert [disk.path for disk in disks.list_disks(host)] == [
        host.node('cciss!c0d0'),
        host.node('sda'),
    ]
    assert host.node('cciss!c0d0').endswith('/cciss/c0d0')


# -- names -----------------------------------------------------------------------------------------


@pytest.fixture
def two(host):
    host.disk('sda', size=4000787030016, **RED)
    host.disk(
        'sdb',
        'devices/pci0000:00/ata2/host1/target/block',
        size=4000787030016,
        **dict(
            RED,
            device__vpd_pg80=b'\0\x80\0\x0fWD-WCC4E0999999',
            device__wwid='naa.50014ee2b7654321\n',
        ),
    )
    host.disk(
        'sdc',
        'devices/pci0000:00/ata3/host2/target/block',
        size=500107862016,
        device__model='ST500DM002\n',
    )
    return host


@pytest.mark.parametrize(
    'text, name',
    [
        ('serial:WD-WCC4E0999999', 'sdb'),
        ('serial:wd-wcc4e0123456', 'sda'),
        ('wwn:0x50014ee2b7654321', 'sdb'),
        ('wwn:50014EE2B1234567', 'sda'),
        ('wwn:naa.50014ee2b1234567', 'sda'),
        ('wwn:50:01:4e:e2:b1:23:45:67', 'sda'),
        ('model:ST500DM002', 'sdc'),
        ('model:st500', 'sdc'),
        ('size:500107862016', 'sdc'),
        ('size:500G', 'sdc'),
        ('size:0.5T', 'sdc'),
        ('model:WDC_WD40EFRX+serial:WD-WCC4E0123456', 'sda'),
        ('model:ATA WDC WD40EFRX+size:4T+serial:WD-WCC4E0999999', 'sdb'),
    ],
)
def test_a_disk_is_found_by_its_name(two, text, name):
    assert disks.resolve_backing_store(text, two) == two.node(name)


def test_an_ambiguous_name_is_refused_and_the_candidates_are_named(two):
    text = refusal('model:WDC WD40EFRX+size:4T', two)
    assert (
        'matches 2 disks' in text
        and 'serial WD-WCC4E0123456' in text
        and 'serial WD-WCC4E0999999' in text
    )
    assert two.node('sda') in text and '4.0 TB' in text


def test_a_name_without_a_match_is_refused_and_the_disks_are_listed(two):
    text = refusal('serial:WD-1', two)
    assert (
        'serial:WD-1 matches no disk' in text and 'WD-WCC4E0999999' in text and 'ST500DM002' in text
    )


def test_a_part_of_a_serial_does_not_match(two):
    assert 'matches no disk' in refusal('serial:WD-WCC4E', two)


def test_a_partition_is_selected_with_part(two):
    node = two.partition('sdb', 3)
    assert disks.resolve_backing_store('serial:WD-WCC4E0999999+part:3', two) == node
    assert 'has no partition 4' in refusal('serial:WD-WCC4E0999999+part:4', two)
    assert 'does not name one disk' in refusal('part:3', two)


def test_a_mistyped_keyword_is_refused_with_a_suggestion(two):
    assert 'did you mean serial:?' in refusal('seral:WD-1', two)
    assert 'did you mean model:' in refusal('modle:X+size:4T', two)
    assert 'the value after serial: is missing' in refusal('serial:', two)
    assert 'is not a valid size' in refusal('size:huge', two)


def test_the_by_id_link_is_matched_when_the_disk_has_no_serial(host):
    node = host.disk('sda')
    host.link('dev/disk/by-id/ata-WDC_WD40EFRX_WD-5', node)
    assert disks.resolve_backing_store('serial:WD-5', host) == node
    assert 'matches no disk' in refusal('serial:D-5', host)


def test_by_id_finds_disks_and_partitions(host):
    host.disk('sda')
    part = host.partition('sda', 1)
    host.link('dev/disk/by-id/ata-X-part1', part)
    assert disks.resolve_backing_store('by-id:ata-X-part1', host) == part
    assert 'similar names are ata-X-part1' in refusal('by-id:ata-X-part2', host)
    assert 'there is no' in refusal('by-id:../../sda', host)


def test_several_paths_to_one_disk_resolve_to_the_multipath_device(host):
    for i, name in enumerate(('sda', 'sdb')):
        host.disk(
            name,
            'devices/pci0000:00/host%d/rport-0:0-%d/block' % (i, i),
            device__wwid='naa.600a098000aabbcc',
        )
    assert 'matches 2 disks' in refusal('wwn:600a098000aabbcc', host)
    host.mapped('dm-0', 'mpatha', 'mpath-3600a098000aabbcc', 'sda', 'sdb')
    assert disks.resolve_backing_store('wwn:600a098000aabbcc', host) == host.node('dm-0')


# -- paths -----------------------------------------------------------------------------------------


def test_symbolic_links_of_a_path_are_resolved(host):
    node = host.disk('sdb')
    assert disks.resolve_backing_store(host.link('dev/disk/by-path/pci-1', node), host) == node


def test_a_file_need_not_exist_yet(host):
    path = os.path.join(host.top, 'srv', 'erp.img')
    assert disks.resolve_backing_store(path, host) == path


def test_a_missing_device_is_refused_with_similar_names(host):
    host.disk('sdb')
    assert 'does not exist; similar names are sdb' in refusal(os.path.join(host.dev, 'sdc'), host)
    host.link('dev/disk/by-id/gone', os.path.join(host.dev, 'sdz'))
    assert 'does not exist' in refusal(os.path.join(host.dev, 'disk/by-id/gone'), host)


def test_a_relative_path_is_refused(host):
    assert 'neither an absolute path' in refusal('erp.img', host)


def test_the_persistent_name_resolves_to_the_disk(two):
    for disk in disks.list_disks(two):
        assert disks.resolve_backing_store(disks.persistent_name(disk), two) == disk.path


@pytest.mark.parametrize(
    'size, text',
    [(999, '999 bytes'), (4000787030016, '4.0 TB'), (64 << 20, '67.1 MB'), (10**18, '1000.0 PB')],
)
def test_sizes_are_written_with_decimal_units(size, text):
    assert disks.human_size(size) == text
