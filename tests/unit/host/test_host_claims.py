"""Tests that disks on which this host relies are refused, by records of this host only and not by
anything that an initiator may have written."""

import os
import struct

import pytest
from fake_host import FakeHost

from targetd.host import claims, signatures

SIZE = 8 << 20
PV = 'k3LAxPoIdtL6Jh3JFVz5gPqW2nd70xC6'
PV_NAME = 'k3LAxP-oIdt-L6Jh-3JFV-z5gP-qW2n-d70xC6'
UUID = bytes(range(1, 17))


@pytest.fixture
def host(tmp_path):
    host = FakeHost(tmp_path)
    host.disk('sdb')
    host.partition('sdb', 1)
    host.disk('sdc')
    return host


@pytest.fixture
def said(host, tmp_path):
    """said((offset, bytes), …) writes these bytes to sdb and returns the sentences about it."""

    def said(*pieces):
        path = str(tmp_path / 'content')
        with open(path, 'wb') as f:
            f.truncate(SIZE)
            for offset, data in pieces:
                f.seek(offset)
                f.write(data)
        with open(path, 'rb') as f:
            found = signatures.find_signatures(f.fileno(), SIZE)
            assert bool(found) == bool(pieces)
            return claims.find_claims(host.node('sdb'), found, f.fileno(), host)

    return said


def lvm():
    return 512, b'LABELONE' + bytes(16) + b'LVM2 001' + PV.encode()


def md(name=b'storage1:0'):
    block = bytearray(64)
    struct.pack_into('<II', block, 0, 0xA92B4EFC, 1)
    block[16:32] = UUID
    block[32 : 32 + len(name)] = name
    return 4096, bytes(block)


def xdr(name, kind, value):
    padded = name + bytes(-len(name) % 4)
    return struct.pack('>III', 0, 0, len(name)) + padded + struct.pack('>II', kind, 1) + value


def zfs(host=b'storage1', state=0):
    pairs = [
        xdr(b'name', 9, struct.pack('>I', 4) + b'tank'),
        xdr(b'state', 8, struct.pack('>Q', state)),
        xdr(b'pool_guid', 8, struct.pack('>Q', 4711 << 40)),
        xdr(b'hostname', 9, struct.pack('>I', len(host)) + host + bytes(-len(host) % 4)),
    ]
    return [(16 << 10, b''.join(pairs)), (128 << 10, b'\x0c\xb1\xba\0\0\0\0\0')]


@pytest.fixture(autouse=True)
def name_of_this_host(monkeypatch):
    monkeypatch.setattr(
        claims.os, 'uname', lambda: os.uname_result(('Linux', 'storage1.example', '', '', ''))
    )


def test_an_empty_disk_and_initiator_formats_are_not_claimed(said):
    assert said() == []
    assert said((3, b'NTFS    ')) == []
    assert said(lvm()) == [] and said(md(b'client:0')) == [] and said(*zfs(b'client')) == []


@pytest.mark.parametrize(
    'line, expected',
    [
        ('{dev}/sdb1 /data ext4 defaults 0 2', 'to be mounted on /data'),
        ('UUID=1234-abcd /data ext4 defaults 0 2', 'to be mounted on /data'),
        ('UUID="1234-abcd" none swap sw 0 0', 'as swap space'),
        ('{dev}/sdb1 /data ext4 noauto,user 0 2', None),
        ('# {dev}/sdb1 /data ext4 defaults 0 2', None),
        ('{dev}/sdc /data ext4 defaults 0 2', None),
        ('nas:/data /data nfs defaults 0 0', None),
        ('{dev}/sdb1', None),
    ],
)
def test_a_device_listed_in_fstab_is_claimed(host, said, line, expected):
    host.link('dev/disk/by-uuid/1234-abcd', host.node('sdb1'))
    host.write('etc/fstab', 'proc /proc proc\n' + line.format(dev=host.dev) + '\n')
    sentences = said()
    assert len(sentences) == bool(expected)
    if expected:
        assert sentences[0].startswith(
            '%s is listed in /etc/fstab %s; ' % (host.node('sdb1'), expected)
        )


def test_a_device_listed_in_crypttab_is_claimed(host, said):
    host.write('etc/crypttab', 'secret %s none luks\n' % host.node('sdb'))
    assert 'is listed in /etc/crypttab as secret' in said()[0]
    host.write('etc/crypttab', 'secret %s none luks,noauto\n' % host.node('sdb'))
    assert said() == []


def test_a_volume_group_of_this_host_is_claimed(host, said):
    host.write('etc/lvm/backup/data', 'physical_volumes {\n pv0 {\n id = "%s"\n}}' % PV_NAME)
    host.write('etc/lvm/backup/other', 'id = "xxxxxx"')
    (sentence,) = said(lvm())
    assert (
        'is a physical volume of the volume group data of this host' in sentence
        and 'vgexport data' in sentence
    )


def test_an_array_of_this_host_is_claimed(host, said):
    assert 'the array 0, which this host created' in said(md())[0]
    host.write(
        'etc/mdadm/mdadm.conf',
        'DEVICE partitions\nARRAY /dev/md0 metadata=1.2 UUID=%s:%s:%s:%s\n'
        % tuple(UUID[i : i + 4].hex() for i in (0, 4, 8, 12)),
    )
    assert 'mdadm.conf has its UUID' in said(md(b'client:0'))[0]


def test_a_zfs_pool_in_the_cache_of_this_host_is_claimed(host, said):
    host.write('etc/zfs/zpool.cache', b'..' + struct.pack('>Q', 4711 << 40) + b'..')
    (sentence,) = said(*zfs(b'client'))
    assert 'the ZFS pool "tank" of this host' in sentence


def test_an_active_zfs_pool_of_this_host_name_is_claimed_and_an_exported_one_is_not(said):
    assert 'zpool export tank' in said(*zfs(b'storage1.example'))[0]
    assert said(*zfs(b'storage1.example', state=1)) == []


def test_a_file_is_not_claimed(host, tmp_path):
    assert claims.find_claims(str(tmp_path), [], None, host) == []
