"""Vital product data pages, parsed as by an initiator."""

import struct

import pytest

from targetd.scsi import vpd
from targetd.scsi.facts import UnitFacts
from targetd.scsi.sam import Nexus, Port
from targetd.scsi.sense import CheckCondition

PORTS = [
    Port(1, 1, 'iqn.2026-11.com.example:erp,t,0x0001'),
    Port(2, 7, 'iqn.2026-11.com.example:erp,t,0x0007'),
]
NEXUS = Nexus('iqn.1991-05.com.microsoft:host', '400001370001', 'iqn.2026-11.com.example:erp', 7)
IDENTITY = {
    'serial': 'WD-12345',
    'naa': '6001405' + 'a' * 25,
    'eui': '0011223344556677',
    'scsi_name': 'iqn.2026-11.com.example:erp,l,0x0001',
}


def page(code, ports=PORTS, nexus=NEXUS, **facts):
    data = vpd.page(code, UnitFacts.from_message(facts), nexus, ports)
    kind, shown, length = struct.unpack_from('>BBH', data)
    assert (kind, shown, length) == (0, code, len(data) - 4)
    return data


def designators(data, offset=4):
    """[(association, type, code set, protocol or None, content) …]."""
    found = []
    while offset < len(data):
        code_set, kind, length = struct.unpack_from('>BBxB', data, offset)
        protocol = code_set >> 4 if kind & 0x80 else None
        found.append(
            (
                kind >> 4 & 3,
                kind & 0x0F,
                code_set & 0x0F,
                protocol,
                data[offset + 4 : offset + 4 + length],
            )
        )
        offset += 4 + length
    assert offset == len(data)
    return found


def of(association, kind, data):
    return [content for a, k, _, _, content in designators(data) if (a, k) == (association, kind)]


@pytest.mark.parametrize('facts', [{}, {'thin': True, 'unmap': True}], ids=['thick', 'thin'])
def test_listed_pages_are_ascending_and_can_be_read(facts):
    listed = list(page(0x00, **facts)[4:])
    assert listed == sorted(set(listed)) and listed[0] == 0x00
    assert {0x00, 0x80, 0x83, 0x86, 0x87, 0x88, 0xB0, 0xB1, 0xB2} <= set(listed)
    assert tuple(listed) == vpd.page_codes(UnitFacts.from_message(facts))
    for code in listed:
        page(code, **facts)


def test_other_pages_cannot_be_read():
    listed = set(page(0x00)[4:])
    for code in set(range(256)) - listed:
        with pytest.raises(CheckCondition) as caught:
            page(code)
        error = caught.value
        assert (error.key, error.asc, error.ascq, error.field) == (5, 0x24, 0, (2, 7, True))


def test_serial_number():
    assert page(0x80, serial='WD-12345')[4:] == b'WD-12345'
    assert page(0x80, serial='Z')[4:] == b'Z'
    assert page(0x80)[4:] == b'    '
    assert page(0x80, serial='a\u00e9\tb')[4:] == b'a??b'


def test_the_unit_is_identified_by_naa_first():
    found = designators(page(0x83, **IDENTITY))
    assert found[0] == (0, 3, 1, None, bytes.fromhex(IDENTITY['naa']))
    assert found[1] == (0, 2, 1, None, bytes.fromhex(IDENTITY['eui']))
    assert [f[0] for f in found] == sorted(f[0] for f in found), (
        'what names the unit comes before ports and device'
    )


def test_the_t10_designator_begins_with_the_vendor():
    data = page(0x83, vendor='ACME', product='Disk', **IDENTITY)
    assert of(0, 1, data) == [b'ACME    ' + b'Disk'.ljust(16) + b'WD-12345']
    assert [f[2] for f in designators(data) if f[1] == 1] == [2]


def test_the_unit_name_is_a_padded_string():
    (name,) = of(0, 8, page(0x83, **IDENTITY))
    assert (
        name.rstrip(b'\0') == IDENTITY['scsi_name'].encode()
        and name.endswith(b'\0')
        and len(name) % 4 == 0
    )


def test_a_unit_without_identifiers_still_has_its_t10_designator():
    data = page(0x83, serial='1')
    assert of(0, 1, data) and not of(0, 3, data) and not of(0, 2, data) and not of(0, 8, data)


def test_the_port_is_the_one_of_the_nexus():
    data = page(0x83, **IDENTITY)
    assert of(1, 4, data) == [b'\0\0\0\x02'] and of(1, 5, data) == [b'\0\0\0\x07']
    (port,) = of(1, 8, data)
    assert port.rstrip(b'\0') == PORTS[1].name.encode()
    (device,) = of(2, 8, data)
    assert device.rstrip(b'\0') == NEXUS.target_name.encode()
    assert all(protocol == 5 for association, _, _, protocol, _ in designators(data) if association)


def test_an_unknown_port_has_no_relative_identifier():
    data = page(0x83, ports=PORTS[:1], **IDENTITY)
    assert not of(1, 4, data) and not of(1, 5, data) and of(1, 8, data)


def test_the_identifiers_of_the_unit_are_the_same_on_every_path():
    other = NEXUS._replace(target_port_group_tag=1, isid='000000000001')
    assert [d for d in designators(page(0x83, **IDENTITY)) if d[0] == 0] == [
        d for d in designators(page(0x83, nexus=other, **IDENTITY)) if d[0] == 0
    ]


def test_a_very_long_name_fits_a_designator():
    nexus = NEXUS._replace(target_name='iqn.2026-11.com.example:' + 'x' * 230)
    for name in (
        content for _, kind, _, _, content in designators(page(0x83, nexus=nexus)) if kind == 8
    ):
        assert len(name) <= 252 and name.endswith(b'\0')


def test_extended_inquiry_is_64_bytes():
    data = page(0x86)
    assert len(data) == 64 and data[5] & 0x07 == 0x07 and data[6] & 0x01
    assert not any(data[7:])


def test_mode_page_policy_is_shared():
    assert page(0x87)[4:] == b'\x3f\xff\x00\x00'


def test_scsi_ports_lists_every_target_port():
    data, offset, found = page(0x88), 4, []
    while offset < len(data):
        relative, initiators, length = struct.unpack_from('>2xH2xH2xH', data, offset)
        ((association, kind, _, protocol, name),) = designators(
            data[: offset + 12 + length], offset + 12
        )
        assert (initiators, association, kind, protocol) == (0, 1, 8, 5)
        found.append((relative, name.rstrip(b'\0').decode()))
        offset += 12 + length
    assert found == [(port.relative_identifier, port.name) for port in PORTS]


LIMITS = (
    'flags compare_and_write granularity maximum optimal prefetch unmap unmap_descriptors '
    'unmap_granularity alignment write_same atomic'
).split()


def limits(**facts):
    data = page(0xB0, **facts)
    assert len(data) == 64 and not any(data[48:])
    return dict(zip(LIMITS, struct.unpack_from('>BBHIIIIIIIQI', data, 4)))


@pytest.mark.parametrize('block_size', [512, 4096])
def test_block_limits_are_counted_in_blocks(block_size):
    found = limits(
        block_size=block_size,
        physical_block_size=4096,
        maximum_transfer_length=8 << 20,
        optimal_transfer_length=1 << 20,
        maximum_write_same_length=1 << 25,
        maximum_atomic_length=1 << 16,
        maximum_compare_and_write_length=1 << 14,
        unmap=True,
        maximum_unmap_length=1 << 24,
        maximum_unmap_descriptors=64,
        unmap_granularity=1 << 20,
        unmap_alignment=1 << 15,
    )
    assert found == {
        'flags': 0,
        'compare_and_write': (1 << 14) // block_size,
        'granularity': 4096 // block_size,
        'maximum': (8 << 20) // block_size,
        'optimal': (1 << 20) // block_size,
        'prefetch': 0,
        'unmap': (1 << 24) // block_size,
        'unmap_descriptors': 64,
        'unmap_granularity': (1 << 20) // block_size,
        'alignment': 0x80000000 | (1 << 15) // block_size,
        'write_same': (1 << 25) // block_size,
        'atomic': (1 << 16) // block_size,
    }


def test_limits_are_capped_to_their_field():
    found = limits(
        maximum_compare_and_write_length=1 << 20,
        optimal_transfer_granularity=1 << 30,
        maximum_transfer_length=1 << 50,
        unmap=True,
        maximum_unmap_length=1 << 50,
    )
    assert (found['compare_and_write'], found['granularity'], found['maximum']) == (
        0xFF,
        0xFFFF,
        0xFFFFFFFF,
    )
    assert found['unmap'] == 1 << 20


def test_unlimited_values_are_consistent():
    assert limits(maximum_transfer_length=0, optimal_transfer_length=1 << 20)['optimal'] == 2048
    found = limits(maximum_transfer_length=1 << 16, optimal_transfer_length=1 << 20)
    assert found['optimal'] == found['maximum'] == 128
    assert limits(write_same_zero_refused=True)['flags'] == 1


def test_a_unit_without_unmap_reports_no_unmap_limits():
    found = limits(unmap=False, unmap_granularity=1 << 20, unmap_alignment=512)
    assert not (
        found['unmap']
        or found['unmap_descriptors']
        or found['unmap_granularity']
        or found['alignment']
    )


def test_a_unit_with_unmap_accepts_at_least_one_block():
    found = limits(unmap=True, maximum_unmap_length=0, maximum_unmap_descriptors=0)
    assert (found['unmap'], found['unmap_descriptors']) == (1, 1)
    assert found['alignment'] == 0, 'no granularity, no alignment'


def test_block_device_characteristics_are_64_bytes():
    data = page(0xB1, rotation_rate=7200)
    assert len(data) == 64 and struct.unpack_from('>H', data, 4) == (7200,) and not any(data[6:])
    assert page(0xB1, rotation_rate=1, unmap=True)[4:9] == b'\0\x01\0\0\x01'


@pytest.mark.parametrize(
    'facts, expected',
    [
        ({}, '00000000'),
        ({'zeroes_after_unmap': True}, '00000000'),
        ({'unmap': True}, '00e00100'),
        ({'unmap': True, 'zeroes_after_unmap': True}, '00e40100'),
        ({'thin': True, 'unmap': True}, '00e00200'),
        ({'thin': True, 'unmap': True, 'zeroes_after_unmap': True}, '00e40200'),
        ({'thin': True}, '00000200'),
    ],
)
def test_logical_block_provisioning(facts, expected):
    assert page(0xB2, **facts)[4:].hex() == expected


# -- pages that not every unit has -----------------------------------------------------------------


def test_management_addresses():
    assert 0x85 not in page(0x00)[4:]
    data = page(0x85, management_url='https://storage/lun?0')
    assert data[4:8] == struct.pack('>BxH', 0x01, 24)
    assert data[8:] == b'https://storage/lun?0\0\0\0'
    assert 0x85 in page(0x00, management_url='https://x')[4:]


def test_feature_sets():
    assert page(0x92)[4:] == bytes(4) + b'\0\1'


def test_referrals_exist_with_target_port_groups_only():
    assert {0xB3} & set(page(0x00)[4:]) == set() and page(0x86)[8] == 0
    assert (
        page(0xB3, implicit_alua=True)[4:] == bytes(12)
        and page(0x86, explicit_alua=True)[8] == 0x10
    )


def test_the_threshold_exponent():
    assert page(0xB2, thin=True, unmap=True, threshold_exponent=11)[4] == 11
    assert page(0xB2, thin=True, unmap=True)[4] == 0


def test_a_logical_unit_group_is_reported_if_configured():
    assert of(0, 6, page(0x83, **IDENTITY)) == []
    assert of(0, 6, page(0x83, logical_unit_group=5, **IDENTITY)) == [struct.pack('>HH', 0, 5)]
