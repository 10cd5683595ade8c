"""LUN addressing, the units of a target, and LUNs without a unit."""

import struct

import pytest
from fake_store import NEXUS, PORTS, cdb_10, do, error_of, make_unit, sense_of, status_of

from targetd.scsi.device import AbsentUnit, Device, ReportLunsUnit, lun_of

TEST_UNIT_READY = bytes(6)
INQUIRY = bytes.fromhex('12 00 00 0060 00')


@pytest.mark.parametrize(
    'field, lun',
    [
        (0x0000 << 48, 0),
        (0x0005 << 48, 5),
        (0x4005 << 48, 5),
        (0x4000 << 48, 0),
        (0x4100 << 48, 256),
        (0x7FFF << 48, 0x3FFF),
        (0x012C << 48, 300),
        (0x3FFF << 48, 0x3FFF),
        (0x8005 << 48, None),
        (0xC101 << 48, None),
        ((0x0005 << 48) | 1, None),
        ((0x0005 << 48) | (1 << 32), None),
    ],
)
def test_lun_of_single_level_addresses(field, lun):
    assert lun_of(field) == lun


def test_a_unit_is_found_by_both_addressing_methods():
    device = Device(NEXUS, PORTS)
    small, large = make_unit(), make_unit()
    device.add(5, small)
    device.add(300, large)
    assert device.unit(5 << 48) is small and device.unit(0x4005 << 48) is small
    assert device.unit(0x412C << 48) is large
    assert small.lun == 5
    assert device.unit(300 << 48) is large, 'as libiscsi, QEMU and iPXE write it'
    assert isinstance(device.unit(301 << 48), AbsentUnit)


@pytest.mark.parametrize('addressing, listed', [('flat', 0x412C), ('peripheral', 0x012C)])
def test_report_luns_lists_a_lun_above_255_as_the_addressing_says(addressing, listed):
    device = Device(NEXUS, PORTS, addressing)
    device.add_units({300: make_unit(), 5: make_unit()})
    assert device.lun_fields(0) == [5 << 48, listed << 48]


def test_units_are_added_replaced_and_removed():
    device = Device(NEXUS, PORTS)
    first, second = make_unit(), make_unit()
    device.add(1, first)
    device.add(1, second)
    assert device.unit(1 << 48) is second
    assert device.remove(1) is second and device.remove(1) is None
    assert sense_of(device.unit(1 << 48), TEST_UNIT_READY) == (5, 0x25, 0)


def test_a_device_wide_attention_reaches_every_unit():
    device = Device(NEXUS, PORTS)
    units = [make_unit(), make_unit()]
    for lun, unit in enumerate(units):
        device.add(lun, unit)
    device.raise_attention(0x3F, 0x0E)
    assert [sense_of(unit, TEST_UNIT_READY) for unit in units] == [(6, 0x3F, 0x0E)] * 2


# -- LUNs without a unit ------------------------------------------------------------------------------


def absent(lun, *present):
    device = Device(NEXUS, PORTS)
    for each in present:
        device.add(each, make_unit())
    return device.unit(lun << 48)


def test_absent_lun_0_has_peripheral_qualifier_001b():
    """Peripheral qualifier 011b at LUN 0 makes old Windows skip the whole target."""
    data = do(absent(0, 3), INQUIRY)
    assert data[0] == 0x3F and len(data) == 96


def test_other_absent_luns_have_peripheral_qualifier_011b():
    assert do(absent(7), INQUIRY)[0] == 0x7F
    assert do(Device(NEXUS, PORTS).unit((5 << 48) | 99), INQUIRY)[0] == 0x7F


def test_absent_luns_have_vpd_page_00_only():
    assert do(absent(0), bytes.fromhex('12 01 00 00ff 00')) == b'\x3f\0\0\1\0'
    assert sense_of(absent(0), bytes.fromhex('12 01 83 00ff 00')) == (5, 0x24, 0)


def test_request_sense_at_an_absent_lun_reports_lun_not_supported():
    data = do(absent(4), bytes.fromhex('03 00 0000 12 00'))
    assert data[2] == 5 and data[12:14] == b'\x25\0'


def test_report_luns_works_at_every_lun():
    data = do(absent(0, 3), bytes.fromhex('a0 00 00 000000 00000100 00 00'))
    assert data == struct.pack('>I4xQ', 8, 3 << 48)


@pytest.mark.parametrize(
    'cdb',
    ['00 00000000 00', '28 00 00000000 00 0001 00', 'ff 0000000000', '25 00 00000000 000000 00'],
)
def test_absent_luns_refuse_all_other_commands(cdb):
    assert sense_of(absent(4), bytes.fromhex(cdb)) == (5, 0x25, 0)


def test_absent_luns_refuse_unused_cdb_bits():
    assert sense_of(absent(0), bytes.fromhex('12 04 00 0024 00')) == (5, 0x24, 0)
    unit = absent(0)
    assert unit.sense(error_of(unit, TEST_UNIT_READY))[:1] == b'\x70'


def test_report_luns_well_known_unit():
    device = Device(NEXUS, PORTS)
    device.add(2, make_unit())
    unit = device.unit(0xC101 << 48)
    assert do(unit, INQUIRY)[0] == 0x1E
    assert status_of(unit, TEST_UNIT_READY) == 0
    assert do(unit, bytes.fromhex('a0 00 00 000000 00000100 00 00'))[8:] == struct.pack(
        '>Q', 2 << 48
    )
    assert do(unit, bytes.fromhex('03 00 0000 12 00'))[2] == 0
    assert sense_of(unit, cdb_10(0x28, 0, 1)) == (5, 0x25, 0)
    assert isinstance(device.unit(0xC101 << 48), ReportLunsUnit)
