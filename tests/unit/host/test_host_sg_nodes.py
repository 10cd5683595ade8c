"""Finding a SCSI device by any of its nodes."""

import os
import struct

import pytest
from fake_host import FakeHost

from targetd.admin import disk_answers
from targetd.errors import StoreError
from targetd.host import sg_nodes

NAA = '600140512345678901234567890abcde'
PLACE = 'devices/pci0000:00/host%d/target%d:0:0/%d:0:0:0'


@pytest.fixture
def host(tmp_path):
    return FakeHost(tmp_path)


def add(host, number, kind, vendor='HP', model='Ultrium 6-SCSI', serial='HU1', naa='', **drivers):
    """Adds a SCSI device with sgN; drivers: class in /sys -> name. Returns the path of its sg node."""
    place = os.path.join(host.sys, PLACE % (number, number, number))
    inquiry = (
        bytes([kind, 0x80, 6, 2, 31, 0, 0, 0])
        + vendor.ljust(8).encode()
        + model.ljust(16).encode()
        + b'J5SS'
    )
    host.write(place + '/type', '%d\n' % kind)
    host.write(place + '/scsi_level', '7\n')
    host.write(place + '/inquiry', inquiry)
    if serial:
        host.write(
            place + '/vpd_pg80', b'\x01\x80' + struct.pack('>H', len(serial)) + serial.encode()
        )
    if naa:
        host.write(place + '/wwid', 'naa.%s\n' % naa)
    for kind_of_node, name in [('scsi_generic', 'sg%d' % number)] + sorted(drivers.items()):
        node = 21 if kind_of_node == 'scsi_generic' else 9
        directory = '%s/%s/%s' % (place, kind_of_node, name)
        host.write(directory + '/dev', '%d:%d\n' % (node, number))
        host.link(directory + '/device', place)
        host.link('sys/class/%s/%s' % (kind_of_node, name), directory)
        host.link('sys/dev/char/%d:%d' % (node, number), directory)
        host.write('dev/' + name, '%d:%d' % (node, number))
    return host.node('sg%d' % number)


def add_disk(host, number, name, **more):
    node = add(host, number, 0, 'ATA', 'WDC WD40', **more)
    place = PLACE % (number, number, number)
    host.disk(name, place=place + '/block', size=4 * 1000**4)
    host.link('%s/%s/block/%s/device' % (host.sys, place, name), os.path.join(host.sys, place))
    return node


def test_a_tape_drive_by_its_nodes_and_links(host):
    node = add(host, 3, 1, scsi_tape='nst0')
    host.link('dev/tape/by-id/scsi-HU1', host.node('nst0'))
    for path in (node, host.node('nst0'), host.node('tape/by-id/scsi-HU1')):
        device = sg_nodes.find_device(path, host)
        assert (device.name, device.node, device.number) == ('sg3', node, (21, 3))
        assert (device.device_type, device.tape, device.block) == (1, host.node('nst0'), '')
        assert (device.vendor, device.model, device.revision) == ('HP', 'Ultrium 6-SCSI', 'J5SS')
    assert device.shown == '%s, tape drive, HP Ultrium 6-SCSI, serial HU1' % node
    assert not device.is_disk
    assert sg_nodes.stable_key(device) == 'serial:Ultrium 6-SCSI:HU1'


def test_a_disk_by_its_block_device(host):
    add_disk(host, 0, 'sda', naa=NAA)
    device = sg_nodes.find_device(host.node('sda'), host)
    assert (device.name, device.block, device.size) == (
        'sg0',
        host.node('sda'),
        4 * 1000**4 // 512 * 512,
    )
    assert device.is_disk and sg_nodes.stable_key(device) == 'naa.' + NAA
    assert sg_nodes.find_device(host.node('sg0'), host) == device


def test_a_name_that_does_not_change(host):
    add(host, 3, 1)
    add(host, 4, 8, serial='', model='changer')
    add_disk(host, 5, 'sda', naa=NAA)
    listed = sg_nodes.list_devices(host)
    assert [device.device_type for device in listed] == [1, 8]
    assert [sg_nodes.persistent_name(each) for each in listed] == ['serial:HU1', host.node('sg4')]
    assert sg_nodes.stable_key(listed[1]).startswith('device:')


@pytest.mark.parametrize(
    'text, name', [('serial:LIB1', 'sg4'), ('wwn:0x' + NAA.upper(), 'sg5'), ('serial:HU1', 'sg3')]
)
def test_by_serial_number_and_wwn(host, text, name):
    add(host, 3, 1)
    add(host, 4, 8, serial='LIB1')
    add_disk(host, 5, 'sda', serial='', naa=NAA)
    assert sg_nodes.resolve_device(text, host).name == name
    assert sg_nodes.resolve_device(host.node('sg3'), host).name == 'sg3'


def test_what_names_no_device(host):
    add(host, 3, 1)
    add(host, 4, 1)
    host.write('dev/null', '1:3')
    host.disk('vda', place='devices/virtio0/block')
    add_disk(host, 5, 'sda')
    part = host.partition('sda', 1)
    for text, why in (
        ('serial:HU1', '3 SCSI devices'),
        ('serial:none', 'no SCSI device'),
        (host.node('sg9'), 'does not exist'),
        (host.node('null'), 'is no SCSI device'),
        (host.node('vda'), 'is no SCSI device'),
        (part, 'is a partition'),
    ):
        with pytest.raises(StoreError) as refused:
            sg_nodes.resolve_device(text, host)
        assert why in str(refused.value), text


def test_without_the_sg_driver_the_remedy_is_named(host):
    place = os.path.join(host.sys, PLACE % (1, 1, 1))
    host.write(place + '/scsi_level', '7\n')
    host.disk('sdb', place=PLACE % (1, 1, 1) + '/block')
    host.link('%s/%s/block/sdb/device' % (host.sys, PLACE % (1, 1, 1)), place)
    with pytest.raises(StoreError) as refused:
        sg_nodes.find_device(host.node('sdb'), host)
    assert 'modprobe sg' in str(refused.value)


def test_targetdctl_disks_lists_what_is_no_disk(host, monkeypatch):
    add(host, 3, 1)
    add_disk(host, 5, 'sda')
    listed = sg_nodes.list_devices(host)
    monkeypatch.setattr(sg_nodes, 'list_devices', lambda: listed)
    (row,) = disk_answers._other_devices()
    assert (row['transport'], row['model']) == ('tape drive', 'HP Ultrium 6-SCSI')
    assert row['backing_store'] == 'serial:HU1' and row['path'] == host.node('sg3')


def test_a_device_that_was_removed(host):
    node = add(host, 3, 1)
    device = sg_nodes.find_device(node, host)
    assert sg_nodes.is_attached(device.number, host)
    os.unlink(os.path.join(host.sys, 'dev', 'char', '21:3'))
    os.unlink(os.path.join(host.sys, 'class', 'scsi_generic', 'sg3'))
    assert not sg_nodes.is_attached(device.number, host)
    with pytest.raises(StoreError):
        sg_nodes.describe_device('sg3', host)
