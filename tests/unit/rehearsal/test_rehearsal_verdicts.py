"""What Windows makes of the answers of a disk (targetd.rehearsal.verdicts)."""

import struct

import pytest

from targetd.rehearsal import verdicts
from targetd.rehearsal.walk import Disk

NAA = bytes.fromhex('60014051234567890000000000000001')
GIB = 1 << 30


def disk(lun=0, blocks=1 << 21, size=512, exponent=3, serial=b'S1', naa=NAA):
    """A disk about which Windows has no complaint."""
    found = Disk(lun, lun << 48)
    found.inquiry = b'\x00\x00\x06\x12\x3d\x00\x00\x02TARGETD VIRTUAL-DISK    0001' + bytes(30)
    found.pages[0] = bytes([0, 0, 0, 6, 0, 0x80, 0x83, 0xB0, 0xB1, 0xB2])
    found.pages[0x80] = bytes([0, 0x80, 0, len(serial)]) + serial
    naa = bytes([1, 3, 0, len(naa)]) + naa
    found.pages[0x83] = bytes([0, 0x83, 0, len(naa)]) + naa
    found.pages[0xB0] = (
        b'\x00\xb0\x00\x3c' + bytes(16) + struct.pack('>III', 1 << 22, 64, 2048) + bytes(32)
    )
    found.pages[0xB1] = b'\x00\xb1\x00\x3c\x00\x01' + bytes(58)
    found.pages[0xB2] = bytes([0, 0xB2, 0, 4, 0, 0, 0, 0])
    found.capacity_10 = struct.pack('>II', min(blocks - 1, 0xFFFFFFFF), size)
    found.capacity_16 = struct.pack('>QIBB18x', blocks - 1, size, 0, exponent)
    found.modes[8] = bytes([8, 18]) + bytes(18), bytes(20)
    found.header = bytes([23, 0, 0x10, 0])
    found.sectors = [bytes(size), bytes(size)]
    found.keys, found.holder = bytes(8), bytes(8)
    return found


def texts(found, is_trouble=True):
    return [each.text for each in found if each.is_trouble == is_trouble]


def test_a_disk_without_complaint():
    assert verdicts.of_disk(disk()) == []
    shown = verdicts.shown(disk(), 0)
    assert shown['size_shown'] == '1.00 GB' and shown['sectors'] == '512e (physical 4096)'
    assert shown['medium'] == 'SSD' and shown['unique_id'] == NAA.hex()


@pytest.mark.parametrize(
    'blocks, limit',
    [((1 << 32) - 1, 'MBR or GPT'), (1 << 32, 'MBR or GPT'), ((1 << 32) + 1, 'GPT only')],
)
def test_the_limit_of_the_mbr_is_2_tib(blocks, limit):
    assert verdicts.shown(disk(blocks=blocks), 0)['limit'] == limit


def test_a_capacity_that_read_capacity_10_hides():
    found = disk(blocks=(1 << 32) + 1)
    found.capacity_10 = struct.pack('>II', 1, 512)
    assert texts(verdicts.of_disk(found)) == ['READ CAPACITY(10) hides the true size']


@pytest.mark.parametrize(
    'change, wanted',
    [
        (lambda d: d.pages.__setitem__(0, b'\x00\x00\x00\x03\x00\x83\x80'), 'not ascending'),
        (
            lambda d: d.pages.__setitem__(0xB1, b'\x00\xb1\x00\x08' + bytes(8)),
            'B1h has not the length',
        ),
        (lambda d: d.pages.__setitem__(0x80, bytes(4)), 'no serial number'),
        (
            lambda d: d.pages.__setitem__(0x83, bytes([0, 0x83, 0, 5, 2, 0, 0, 1, 65])),
            'no identifier',
        ),
        (lambda d: d.pages.__setitem__(0xB0, b'\x00\xb0\x00\x3c' + bytes(60)), 'does not trim'),
        (lambda d: d.modes.clear(), 'no Caching mode page'),
        (lambda d: setattr(d, 'keys', None), 'cannot use the disk in a cluster'),
        (lambda d: setattr(d, 'slowest', (7.0, 'READ(10)')), 'READ(10) took 7 seconds'),
        (lambda d: d.failures.append(('READ(10)', 'BUSY')), 'READ(10) fails: BUSY'),
        (lambda d: setattr(d, 'ready', 'NOT READY'), 'TEST UNIT READY ends with'),
        (lambda d: setattr(d, 'inquiry', d.inquiry[:7] + b'\x00' + d.inquiry[8:]), 'CmdQue is 0'),
        (lambda d: setattr(d, 'inquiry', d.inquiry[:2] + b'\x02' + d.inquiry[3:]), 'before SPC-2'),
        (lambda d: setattr(d, 'inquiry', d.inquiry[:5] + b'\x30' + d.inquiry[6:]), 'explicit ALUA'),
    ],
)
def test_complaints(change, wanted):
    found = disk()
    found.pages[0xB2] = bytes([0, 0xB2, 0, 4, 0, 0x80, 2, 0])
    change(found)
    assert any(wanted in text for text in texts(verdicts.of_disk(found)))


def test_windows_has_luns_up_to_255():
    assert texts(verdicts.of_disk(disk(lun=255))) == []
    assert 'LUNs 0 to 255' in texts(verdicts.of_disk(disk(lun=256)))[0]


def test_clashes_of_identity():
    one, same, other = disk(0), disk(1), disk(2, serial=b'S2', naa=NAA[:-1] + b'\x02')
    assert texts(verdicts.of_clashes([one, other])) == []
    found = verdicts.of_clashes([one, same])
    assert [each.about for each in found] == ['LUN 1', 'LUN 1']
    assert 'of LUN 0: Windows takes them for one disk' in found[0].text


@pytest.mark.parametrize('length, is_fine', [(11, False), (12, True), (16, True), (17, False)])
def test_secrets_of_12_to_16_bytes(length, is_fine):
    assert (verdicts.of_secret(('user', 'x' * length), 'secret') == []) == is_fine


def test_a_reservation_and_paths():
    found = disk()
    found.holder = struct.pack('>II8s5xB2x', 1, 16, b'\0' * 7 + b'\x09', 5)
    found.inquiry = found.inquiry[:5] + b'\x10' + found.inquiry[6:]
    found.groups = struct.pack('>IBxHxxxBHH', 12, 2, 3, 1, 0, 1)
    notes = texts(verdicts.of_disk(found), False)
    assert any('key 0000000000000009, type 5' in text for text in notes)
    assert any('portal group 3 is standby' in text for text in notes)
    assert verdicts.groups(found) == [(3, 2)]


def test_partition_tables():
    found = disk()
    assert verdicts.partitions(found) == 'Not Initialized'
    found.sectors[1] = b'EFI PART' + bytes(504)
    assert verdicts.partitions(found) == 'GPT'
    found.sectors = [bytes(450) + b'\x07' + bytes(59) + b'\x55\xaa', bytes(512)]
    assert verdicts.partitions(found) == 'MBR'
