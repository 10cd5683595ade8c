"""Vital product data pages (SPC-4, SBC-3) of a disk, from its facts, the nexus and the ports of the
target. Pure.

Windows expects that page 00h lists exactly the pages that can be read, in ascending order, that
page B1h has 64 bytes and page B2h 8, and that page 83h contains a binary identifier.
"""

import struct
from typing import Callable, Dict, Sequence, Tuple

from targetd.scsi import modes, opcodes
from targetd.scsi.copy import copy_manager
from targetd.scsi.designators import (
    BINARY,
    PORT_GROUP,
    RELATIVE_PORT,
    SCSI_NAME,
    UNIT_GROUP,
    UTF8,
    name_string,
    serial_number,
    unit_designators,
)
from targetd.scsi.facts import UnitFacts
from targetd.scsi.sam import Nexus, Port
from targetd.scsi.sense import ILLEGAL_REQUEST, CheckCondition

HEADER = struct.Struct('>BBH')
# PROTOCOL IDENTIFIER and CODE SET, PIV, ASSOCIATION and TYPE, length
DESIGNATOR = struct.Struct('>BBxB')
LOGICAL_UNIT, TARGET_PORT, TARGET_DEVICE = 0, 1, 2  # ASSOCIATION
ISCSI = 5  # PROTOCOL IDENTIFIER
STORAGE_CONFIGURATION_SERVICE = 1  # SERVICE TYPE of page 85h
DISCOVERY_2016 = 0x0001  # SCSI FEATURE SET CODE of page 92h

# In blocks. No initiator unmaps more at once; the test suite of libiscsi rejects more than 2^20.
MAXIMUM_UNMAP_BLOCKS = 1 << 20


def page_codes(facts: UnitFacts) -> Tuple[int, ...]:
    """The codes of the pages that a unit with these facts has, in ascending order."""
    return tuple(
        sorted(
            code
            for code in TABLE
            if not (facts.device_type and code in OF_BLOCK_DEVICES)
            and (code not in NEEDS or getattr(facts, NEEDS[code]))
        )
    )


def page(code: int, facts: UnitFacts, nexus: Nexus, ports: Sequence[Port]) -> bytes:
    """The whole page; the caller cuts it at the allocation length. nexus: the nexus of the command;
    ports: the ports of the target. Raises CheckCondition 05/24/00 for a page that the unit does not
    have."""
    if code not in page_codes(facts):
        raise CheckCondition(ILLEGAL_REQUEST, 0x24, 0x00, field=(2, 7, True))
    body = TABLE[code](facts, nexus, ports)
    return HEADER.pack(facts.device_type, code, len(body)) + body


def _supported_pages(facts: UnitFacts, nexus: Nexus, ports: Sequence[Port]) -> bytes:
    """00h, SPC-4."""
    return bytes(page_codes(facts))


def _unit_serial_number(facts: UnitFacts, nexus: Nexus, ports: Sequence[Port]) -> bytes:
    """80h, SPC-4."""
    return serial_number(facts)


def _device_identification(facts: UnitFacts, nexus: Nexus, ports: Sequence[Port]) -> bytes:
    """83h, SPC-4. The designators of the unit come first: Windows reads 255 bytes only."""
    return designators_of_units(facts) + port_designators(facts, nexus, ports)


def port_designators(facts: UnitFacts, nexus: Nexus, ports: Sequence[Port]) -> bytes:
    """The designators of page 83h that follow those of the unit: the port of the nexus, its group, the group
    of the unit, and the target device."""
    designators = []
    for port in ports:
        if port.name == nexus.target_port:
            relative = struct.pack('>2xH', port.relative_identifier)
            designators.append(_designator(TARGET_PORT, RELATIVE_PORT, BINARY, relative))
            group = struct.pack('>2xH', port.target_port_group_tag)
            designators.append(_designator(TARGET_PORT, PORT_GROUP, BINARY, group))
    if facts.logical_unit_group:
        group = struct.pack('>2xH', facts.logical_unit_group)
        designators.append(_designator(LOGICAL_UNIT, UNIT_GROUP, BINARY, group))
    designators.append(_designator(TARGET_PORT, SCSI_NAME, UTF8, name_string(nexus.target_port)))
    designators.append(target_designator(nexus.target_name))
    return b''.join(designators)


def designators_of_units(facts: UnitFacts) -> bytes:
    """The designators of page 83h that identify a unit with these facts."""
    return b''.join(
        _designator(LOGICAL_UNIT, kind, code_set, content)
        for code_set, kind, content in unit_designators(facts)
    )


def _designator(association: int, kind: int, code_set: int, content: bytes) -> bytes:
    """A designator, SPC-4. Those of ports and target devices contain a protocol identifier."""
    protocol, piv = (ISCSI << 4, 0x80) if association else (0, 0)
    header = DESIGNATOR.pack(protocol | code_set, piv | association << 4 | kind, len(content))
    return header + content


def target_designator(target_name: str) -> bytes:
    """The designator of the target device in page 83h."""
    return _designator(TARGET_DEVICE, SCSI_NAME, UTF8, name_string(target_name))


def _management_network_addresses(facts: UnitFacts, nexus: Nexus, ports: Sequence[Port]) -> bytes:
    """85h, SPC-4: one URL, for the storage configuration service of the logical unit."""
    content = name_string(facts.management_url)
    return (
        struct.pack('>BxH', LOGICAL_UNIT << 5 | STORAGE_CONFIGURATION_SERVICE, len(content))
        + content
    )


def _extended_inquiry(facts: UnitFacts, nexus: Nexus, ports: Sequence[Port]) -> bytes:
    """86h, SPC-4: SIMPSUP, ORDSUP, HEADSUP; V_SUP, because the write cache is volatile; R_SUP."""
    return bytes([0, 0x07, 0x01, 0, 0x10 if facts.target_port_group_support else 0]).ljust(
        0x3C, b'\0'
    )


def _mode_page_policy(facts: UnitFacts, nexus: Nexus, ports: Sequence[Port]) -> bytes:
    """87h, SPC-4: all nexuses share all mode pages and subpages; logical units share none."""
    return bytes([modes.ALL_PAGES, modes.ALL_SUBPAGES, 0x00, 0x00])


def scsi_ports(facts: UnitFacts, nexus: Nexus, ports: Sequence[Port]) -> bytes:
    """88h, SPC-4."""
    return b''.join(_port_descriptor(port) for port in ports)


def _port_descriptor(port: Port) -> bytes:
    designator = _designator(TARGET_PORT, SCSI_NAME, UTF8, name_string(port.name))
    return struct.pack('>2xH2xH2xH', port.relative_identifier, 0, len(designator)) + designator


def _scsi_feature_sets(facts: UnitFacts, nexus: Nexus, ports: Sequence[Port]) -> bytes:
    """92h, SPC-5: Discovery 2016."""
    return bytes(4) + struct.pack('>H', DISCOVERY_2016)


def _third_party_copy(facts: UnitFacts, nexus: Nexus, ports: Sequence[Port]) -> bytes:
    """8Fh, SPC-4: descriptors in ascending order of their types."""
    commands = b''
    for opcode in (0x83, 0x84):
        actions = bytes(sorted(row.service_action for row in opcodes.TABLE if row.opcode == opcode))
        commands += bytes([opcode, len(actions)]) + actions
    return b''.join(
        [
            _token_limits(facts),
            _copy_descriptor(0x0001, bytes([len(commands)]) + commands),
            _copy_descriptor(
                0x0004,
                struct.pack(
                    '>4xHHII12x',
                    copy_manager.MAXIMUM_CSCDS,
                    copy_manager.MAXIMUM_SEGMENTS,
                    copy_manager.MAXIMUM_DESCRIPTOR_LIST,
                    0,
                ),
            ),
            _copy_descriptor(
                0x0008,
                bytes([len(copy_manager.DESCRIPTOR_TYPES)]) + bytes(copy_manager.DESCRIPTOR_TYPES),
            ),
            _copy_descriptor(0x000C, struct.pack('>HH', 2, 0xFFFF)),
            _token_features(),
            _copy_descriptor(
                0x8001,
                struct.pack(
                    '>IIIBB18x',
                    copy_manager.MAXIMUM_COPIES,
                    copy_manager.MAXIMUM_COPIES,
                    copy_manager.MAXIMUM_SEGMENT,
                    9,
                    0,
                ),
            ),
        ]
    )


def _token_limits(facts: UnitFacts) -> bytes:
    """Block device ROD limits (SBC-3), the first descriptor: Windows expects them there."""
    return _copy_descriptor(
        0x0000,
        struct.pack(
            '>6xHIIQQ',
            copy_manager.MAXIMUM_RANGES,
            copy_manager.MAXIMUM_TIMEOUT,
            copy_manager.DEFAULT_TIMEOUT,
            copy_manager.MAXIMUM_TRANSFER // facts.block_size,
            copy_manager.OPTIMAL_TRANSFER // facts.block_size,
        ),
    )


def _token_features() -> bytes:
    """ROD token features and the supported ROD types (SPC-4); TOKEN_OUT 1, TOKEN_IN 2."""
    block_device = struct.pack(
        '>BBHHHQQQQ8x',
        0,
        0,
        44,
        0,
        0,
        copy_manager.MAXIMUM_TRANSFER,
        copy_manager.OPTIMAL_TRANSFER,
        copy_manager.MAXIMUM_TRANSFER,
        copy_manager.OPTIMAL_TRANSFER,
    )
    features = struct.pack(
        '>B11xIII18xH', 0, 1, 0xFFFFFFFF, copy_manager.MAXIMUM_TIMEOUT, len(block_device)
    )
    kinds = [
        (kind, 0x03 if kind == copy_manager.VULNERABLE else 0x01) for kind in copy_manager.MADE_FOR
    ] + [(copy_manager.BLOCK_ZERO, 0x02)]
    types = b''.join(struct.pack('>IBxH56x', kind, flags, 0) for kind, flags in kinds)
    return _copy_descriptor(0x0106, features + block_device) + _copy_descriptor(
        0x0108, struct.pack('>2xH', len(types)) + types
    )


def _copy_descriptor(kind: int, content: bytes) -> bytes:
    content += bytes(-len(content) % 4)
    return struct.pack('>HH', kind, len(content)) + content


def _block_limits(facts: UnitFacts, nexus: Nexus, ports: Sequence[Port]) -> bytes:
    """B0h, SBC-3."""

    def in_blocks(length: int, most: int = 0xFFFFFFFF) -> int:
        return min(length // facts.block_size, most)

    unmap_blocks, unmap_descriptors, granularity, alignment = 0, 0, 0, 0
    if facts.unmap:
        unmap_blocks = max(in_blocks(facts.maximum_unmap_length, MAXIMUM_UNMAP_BLOCKS), 1)
        unmap_descriptors = max(facts.maximum_unmap_descriptors, 1)
        granularity = in_blocks(facts.unmap_granularity)
        alignment = in_blocks(facts.unmap_alignment, 0x7FFFFFFF) | 0x80000000 if granularity else 0
    maximum = in_blocks(facts.maximum_transfer_length)
    optimal = in_blocks(facts.optimal_transfer_length)
    if maximum:
        optimal = min(optimal, maximum)
    atomic = in_blocks(facts.maximum_atomic_length)
    return struct.pack(
        '>BBHIIIIIIIQIIIII',
        0x01 if facts.write_same_zero_refused else 0x00,
        in_blocks(facts.maximum_compare_and_write_length, 0xFF),
        in_blocks(facts.optimal_transfer_granularity, 0xFFFF),
        maximum,
        optimal,
        0,
        unmap_blocks,
        unmap_descriptors,
        granularity,
        alignment,
        facts.maximum_write_same_length // facts.block_size,
        atomic,
        0,
        0,
        0,
        0,
    )


def _block_device_characteristics(facts: UnitFacts, nexus: Nexus, ports: Sequence[Port]) -> bytes:
    """B1h, SBC-3. WABEREQ, WACEREQ 01b: blocks can be read after a block erase or a cryptographic
    erase; VBULS: VERIFY compares unmapped blocks like all others."""
    return struct.pack(
        '>HBBB',
        facts.rotation_rate,
        0,
        (0x40 if facts.block_erase else 0x00) | (0x10 if facts.encrypted else 0x00),
        0x01 if facts.unmap else 0x00,
    ).ljust(0x3C, b'\0')


def _referrals(facts: UnitFacts, nexus: Nexus, ports: Sequence[Port]) -> bytes:
    """B3h, SBC-3: USER DATA SEGMENT SIZE and MULTIPLIER 0: there is one segment (REPORT REFERRALS)."""
    return bytes(12)


def _logical_block_provisioning(facts: UnitFacts, nexus: Nexus, ports: Sequence[Port]) -> bytes:
    """B2h, SBC-3: LBPU, LBPWS, LBPWS10, LBPRZ; PROVISIONING TYPE 2 thin, 1 resource, 0 fully
    provisioned."""
    flags = 0xE0 | (0x04 if facts.zeroes_after_unmap else 0) if facts.unmap else 0
    return bytes([facts.threshold_exponent, flags, 2 if facts.thin else 1 if facts.unmap else 0, 0])


#: {page code: function of (facts, nexus, ports) that returns the page without its 4-byte header}
# fmt: off
TABLE: Dict[int, Callable[[UnitFacts, Nexus, Sequence[Port]], bytes]] = {
    0x00: _supported_pages,
    0x80: _unit_serial_number,
    0x83: _device_identification,
    0x85: _management_network_addresses,
    0x86: _extended_inquiry,
    0x87: _mode_page_policy,
    0x88: scsi_ports,
    0x8F: _third_party_copy,
    0x92: _scsi_feature_sets,
    0xB0: _block_limits,
    0xB1: _block_device_characteristics,
    0xB2: _logical_block_provisioning,
    0xB3: _referrals,
}
# fmt: on

#: Pages of disks (SBC-3; Discovery 2016), which optical and tape drives do not have.
OF_BLOCK_DEVICES = frozenset((0x92, 0xB0, 0xB1, 0xB2, 0xB3))
#: {page code: name of the fact without which a unit does not have the page}
NEEDS = {0x85: 'management_url', 0x8F: 'third_party_copy', 0xB3: 'target_port_group_support'}
