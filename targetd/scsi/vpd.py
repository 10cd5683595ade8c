"""Vital product data pages (SPC-4, SBC-3) of a disk, from its facts, the nexus and the target's
ports. Pure.

Windows: page 00 must list, ascending, exactly what can be read; B1 must be 64 bytes long, B2 8; 83
needs a binary identifier.
"""

import struct

from targetd.scsi import modes, opcodes
from targetd.scsi.copy import copy_manager
from targetd.scsi.sense import ILLEGAL_REQUEST, CheckCondition

HEADER = struct.Struct('>BBH')
# PROTOCOL IDENTIFIER and CODE SET, PIV, ASSOCIATION and TYPE, length
DESIGNATOR = struct.Struct('>BBxB')
BINARY, ASCII, UTF8 = 1, 2, 3  # CODE SET
LOGICAL_UNIT, TARGET_PORT, TARGET_DEVICE = 0, 1, 2  # ASSOCIATION
# DESIGNATOR TYPE
T10_VENDOR, EUI_64, NAA, RELATIVE_PORT, PORT_GROUP, UNIT_GROUP, SCSI_NAME = 1, 2, 3, 4, 5, 6, 8
ISCSI = 5  # PROTOCOL IDENTIFIER
STORAGE_CONFIGURATION_SERVICE = 1  # SERVICE TYPE of page 85h
DISCOVERY_2016 = 0x0001  # SCSI FEATURE SET CODE of page 92h

# Blocks. More than any initiator asks for at once; libiscsi's test takes more than 2^20 for a
# mistake.
MAXIMUM_UNMAP_BLOCKS = 1 << 20


def pages(facts):
    """The codes of the pages that a unit with these facts has, ascending."""
    return tuple(sorted(code for code in TABLE if code not in NEEDS or getattr(facts, NEEDS[code])))


def page(code, facts, nexus, ports, blocks):
    """The whole page as bytes; the caller clips to the allocation length. nexus: the sam.Nexus that
    asks; ports: the target's sam.Port rows; blocks: the capacity. Raises CheckCondition 05/24/00
    for a page that is not there."""
    if code not in pages(facts):
        raise CheckCondition(ILLEGAL_REQUEST, 0x24, 0x00, field=(2, 7, True))
    body = TABLE[code](facts, nexus, ports)
    return HEADER.pack(0x00, code, len(body)) + body


def text(value, length):
    """Left-aligned ASCII of exactly `length` bytes, SPC-4."""
    return bytes(c if 0x20 <= c < 0x7F else 0x3F for c in value.encode('latin-1', 'replace'))[
        :length
    ].ljust(length)


def _supported_pages(facts, nexus, ports):
    """00h, SPC-4."""
    return bytes(pages(facts))


def _unit_serial_number(facts, nexus, ports):
    """80h, SPC-4. A unit without a number answers with blanks."""
    return text(facts.serial, max(len(facts.serial), 4))


def unit_designators(facts):
    """[(CODE SET, DESIGNATOR TYPE, content)] of what names the unit, the most telling one first."""
    found = []
    if facts.naa:
        found.append((BINARY, NAA, bytes.fromhex(facts.naa)))
    if facts.eui:
        found.append((BINARY, EUI_64, bytes.fromhex(facts.eui)))
    found.append(
        (
            ASCII,
            T10_VENDOR,
            text(facts.vendor, 8) + text(facts.product, 16) + text(facts.serial, len(facts.serial)),
        )
    )
    if facts.scsi_name:
        found.append((UTF8, SCSI_NAME, _name_string(facts.scsi_name)))
    return found


def _device_identification(facts, nexus, ports):
    """83h, SPC-4: what names the unit first, so that the 255 bytes that Windows asks for have all
    of that."""
    designators = [
        _designator(LOGICAL_UNIT, kind, code_set, content)
        for code_set, kind, content in unit_designators(facts)
    ]
    for port in ports:
        if port.name == nexus.target_port:
            designators.append(
                _designator(
                    TARGET_PORT,
                    RELATIVE_PORT,
                    BINARY,
                    struct.pack('>2xH', port.relative_identifier),
                )
            )
            designators.append(
                _designator(
                    TARGET_PORT, PORT_GROUP, BINARY, struct.pack('>2xH', port.target_port_group_tag)
                )
            )
    if facts.logical_unit_group:
        designators.append(
            _designator(
                LOGICAL_UNIT, UNIT_GROUP, BINARY, struct.pack('>2xH', facts.logical_unit_group)
            )
        )
    designators.append(_designator(TARGET_PORT, SCSI_NAME, UTF8, _name_string(nexus.target_port)))
    designators.append(target_designator(nexus.target_name))
    return b''.join(designators)


def _designator(association, kind, code_set, content):
    """A designator, SPC-4. Designators of ports and devices say which protocol they are of."""
    protocol, identifies = (ISCSI << 4, 0x80) if association else (0, 0)
    return (
        DESIGNATOR.pack(protocol | code_set, identifies | association << 4 | kind, len(content))
        + content
    )


def target_designator(target_name):
    """The designator of a target device, as page 83h has it."""
    return _designator(TARGET_DEVICE, SCSI_NAME, UTF8, _name_string(target_name))


def _name_string(name):
    """UTF-8, ended by a null and padded with nulls to a multiple of 4, at most 252 bytes (SPC-4)."""
    content = name.encode('utf-8')[:251] + b'\0'
    return content + bytes(-len(content) % 4)


def _management_network_addresses(facts, nexus, ports):
    """85h, SPC-4: one URL, of the storage configuration service of the logical unit."""
    content = _name_string(facts.management_url)
    return (
        struct.pack('>BxH', LOGICAL_UNIT << 5 | STORAGE_CONFIGURATION_SERVICE, len(content))
        + content
    )


def _extended_inquiry(facts, nexus, ports):
    """86h, SPC-4: SIMPSUP, ORDSUP, HEADSUP; V_SUP, for what the write cache holds is lost with the
    power; R_SUP."""
    return bytes([0, 0x07, 0x01, 0, 0x10 if facts.target_port_group_support else 0]).ljust(
        0x3C, b'\0'
    )


def _mode_page_policy(facts, nexus, ports):
    """87h, SPC-4: every page and subpage is shared by all nexuses, and no page by several units."""
    return bytes([modes.ALL_PAGES, modes.ALL_SUBPAGES, 0x00, 0x00])


def _scsi_ports(facts, nexus, ports):
    """88h, SPC-4."""
    return b''.join(_port_descriptor(port) for port in ports)


def _port_descriptor(port):
    designator = _designator(TARGET_PORT, SCSI_NAME, UTF8, _name_string(port.name))
    return struct.pack('>2xH2xH2xH', port.relative_identifier, 0, len(designator)) + designator


def _scsi_feature_sets(facts, nexus, ports):
    """92h, SPC-5: Discovery 2016."""
    return bytes(4) + struct.pack('>H', DISCOVERY_2016)


def _third_party_copy(facts, nexus, ports):
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


def _token_limits(facts):
    """Block device ROD limits (SBC-3): Windows looks for them in the first place."""
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


def _token_features():
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
    types = [
        (kind, 0x03 if kind == copy_manager.VULNERABLE else 0x01) for kind in copy_manager.MADE_FOR
    ] + [(copy_manager.BLOCK_ZERO, 0x02)]
    types = b''.join(struct.pack('>IBxH56x', kind, flags, 0) for kind, flags in types)
    return _copy_descriptor(0x0106, features + block_device) + _copy_descriptor(
        0x0108, struct.pack('>2xH', len(types)) + types
    )


def _copy_descriptor(kind, content):
    content += bytes(-len(content) % 4)
    return struct.pack('>HH', kind, len(content)) + content


def _block_limits(facts, nexus, ports):
    """B0h, SBC-3."""

    def in_blocks(length, most=0xFFFFFFFF):
        return min(length // facts.block_size, most)

    unmap_blocks, unmap_descriptors, granularity, alignment = 0, 0, 0, 0
    if facts.unmap:
        unmap_blocks = max(in_blocks(facts.maximum_unmap_length, MAXIMUM_UNMAP_BLOCKS), 1)
        unmap_descriptors = max(facts.maximum_unmap_descriptors, 1)
        granularity = in_blocks(facts.unmap_granularity)
        alignment = in_blocks(facts.unmap_alignment, 0x7FFFFFFF) | 0x80000000 if granularity else 0
    maximum, optimal = (
        in_blocks(facts.maximum_transfer_length),
        in_blocks(facts.optimal_transfer_length),
    )
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


def _block_device_characteristics(facts, nexus, ports):
    """B1h, SBC-3. WABEREQ, WACEREQ 01b: reading goes on after a block erase, a cryptographic erase;
    VBULS: VERIFY compares unmapped blocks like any."""
    return struct.pack(
        '>HBBB',
        facts.rotation_rate,
        0,
        (0x40 if facts.block_erase else 0x00) | (0x10 if facts.encrypted else 0x00),
        0x01 if facts.unmap else 0x00,
    ).ljust(0x3C, b'\0')


def _referrals(facts, nexus, ports):
    """B3h, SBC-3: USER DATA SEGMENT SIZE and MULTIPLIER 0, there is one segment (REPORT REFERRALS)."""
    return bytes(12)


def _logical_block_provisioning(facts, nexus, ports):
    """B2h, SBC-3: LBPU, LBPWS, LBPWS10, LBPRZ; PROVISIONING TYPE 2 thin, 1 resource, 0 fully
    provisioned."""
    flags = 0xE0 | (0x04 if facts.zeroes_after_unmap else 0) if facts.unmap else 0
    return bytes([facts.threshold_exponent, flags, 2 if facts.thin else 1 if facts.unmap else 0, 0])


#: {page code: function of (facts, nexus, ports) giving what follows the 4-byte header}
# fmt: off
TABLE = {
    0x00: _supported_pages,
    0x80: _unit_serial_number,
    0x83: _device_identification,
    0x85: _management_network_addresses,
    0x86: _extended_inquiry,
    0x87: _mode_page_policy,
    0x88: _scsi_ports,
    0x8F: _third_party_copy,
    0x92: _scsi_feature_sets,
    0xB0: _block_limits,
    0xB1: _block_device_characteristics,
    0xB2: _logical_block_provisioning,
    0xB3: _referrals,
}
# fmt: on

#: {page code: the fact without which a unit does not have the page}
NEEDS = {0x85: 'management_url', 0x8F: 'third_party_copy', 0xB3: 'target_port_group_support'}
