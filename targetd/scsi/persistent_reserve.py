"""The wire formats of PERSISTENT RESERVE IN and OUT, RESERVE and RELEASE: CDB and parameter list
become arguments, the state of the reservations becomes Data-In. Pure.

reservations.py describes the state and decides what the arguments change.
"""

import struct
from collections import OrderedDict
from typing import Any, Dict, List, Optional, Sequence, Tuple

from targetd.scsi import transport_id
from targetd.scsi.sam import Port
from targetd.scsi.sense import ILLEGAL_REQUEST, CheckCondition

# PERSISTENT RESERVE OUT service actions, SPC-4 table 206
(
    REGISTER,
    PR_RESERVE,
    PR_RELEASE,
    CLEAR,
    PREEMPT,
    PREEMPT_AND_ABORT,
    REGISTER_AND_IGNORE_EXISTING_KEY,
    REGISTER_AND_MOVE,
) = range(8)

# Types, SPC-4 table 202
WRITE_EXCLUSIVE = 1
EXCLUSIVE_ACCESS = 3
WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 5
EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 6
WRITE_EXCLUSIVE_ALL_REGISTRANTS = 7
EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 8
TYPES = frozenset([1, 3, 5, 6, 7, 8])
WRITE_EXCLUSIVE_TYPES = frozenset([1, 5, 7])
ALL_REGISTRANTS = frozenset([7, 8])
# Registrants Only and All Registrants: every registered nexus has access
REGISTRANTS = frozenset([5, 6, 7, 8])

ZERO = '0' * 16  # the reservation key that means: no key


# -- from CDB and parameter list to arguments ------------------------------------------------------

OUT_LIST = struct.Struct('>8s8s4xBxH')  # RESERVATION KEY, SERVICE ACTION RESERVATION KEY, flags
# …, flags, RELATIVE TARGET PORT IDENTIFIER, TRANSPORTID LENGTH
MOVE_LIST = struct.Struct('>8s8sxBHI')
LENGTH = struct.Struct('>I')
OUT_LENGTH = 24


def parse_out(cdb: bytes, data: bytes, ports: Sequence[Port] = ()) -> Dict[str, Any]:
    """The arguments (JSON-able) of a PERSISTENT RESERVE OUT for reservations.apply_command. data:
    its parameter list; ports: the ports of the target (for ALL_TG_PT and REGISTER AND MOVE).

    Raises CheckCondition: 05/24/00 unknown service action, 05/1A/00 list of the wrong length,
    05/26/00 with field pointer.
    """
    action = cdb[1] & 0x1F
    if action > REGISTER_AND_MOVE:
        raise CheckCondition(ILLEGAL_REQUEST, 0x24, 0x00, field=(1, 4, True))
    length = LENGTH.unpack_from(cdb, 5)[0]
    if length < OUT_LENGTH or len(data) < length:
        raise CheckCondition(ILLEGAL_REQUEST, 0x1A, 0x00)
    data = bytes(data[:length])
    arguments: Dict[str, Any] = {
        'service_action': action,
        'scope': cdb[2] >> 4,
        'type': cdb[2] & 0x0F,
        'all_tg_pt': False,
        'unregister': False,
        'transport_ids': None,
        'target_ports': [],
    }
    (_parse_move if action == REGISTER_AND_MOVE else _parse_basic)(arguments, data, ports)
    return arguments


def _parse_basic(arguments: Dict[str, Any], data: bytes, ports: Sequence[Port]) -> None:
    key, service_action_key, flags, _ = OUT_LIST.unpack_from(data)
    action = arguments['service_action']
    registers = action in (REGISTER, REGISTER_AND_IGNORE_EXISTING_KEY)
    arguments.update(
        key=key.hex(),
        service_action_key=service_action_key.hex(),
        aptpl=bool(registers and flags & 0x01),
    )
    if registers and flags & 0x04:
        arguments.update(all_tg_pt=True, target_ports=[port.name for port in ports])
    if flags & 0x08:  # SPEC_I_PT
        if action != REGISTER:
            raise list_error(20, 3)
        arguments['transport_ids'] = _parse_transport_ids(data)
    elif len(data) != OUT_LENGTH:
        raise CheckCondition(ILLEGAL_REQUEST, 0x1A, 0x00)


def _parse_transport_ids(data: bytes) -> List[str]:
    if len(data) < OUT_LENGTH + LENGTH.size:
        raise CheckCondition(ILLEGAL_REQUEST, 0x1A, 0x00)
    length = LENGTH.unpack_from(data, OUT_LENGTH)[0]
    if length % 4:
        raise list_error(OUT_LENGTH)
    offset = OUT_LENGTH + LENGTH.size
    end = offset + length
    if len(data) < end:
        raise CheckCondition(ILLEGAL_REQUEST, 0x1A, 0x00)
    names = []
    while offset < end:
        name, offset = transport_id.decode(data[:end], offset)
        names.append(name)
    return names


def _parse_move(arguments: Dict[str, Any], data: bytes, ports: Sequence[Port]) -> None:
    key, service_action_key, flags, relative, length = MOVE_LIST.unpack_from(data)
    if len(data) != OUT_LENGTH + length:
        raise CheckCondition(ILLEGAL_REQUEST, 0x1A, 0x00)
    name, end = transport_id.decode(data, OUT_LENGTH)
    # the name of an initiator device does not say to which port to move
    if end != len(data) or not transport_id.is_port(name):
        raise list_error(20 if end != len(data) else OUT_LENGTH)
    target_ports = [port.name for port in ports if port.relative_identifier == relative]
    if not target_ports:
        raise list_error(18)
    arguments.update(
        key=key.hex(),
        service_action_key=service_action_key.hex(),
        aptpl=bool(flags & 0x01),
        unregister=bool(flags & 0x02),
        transport_ids=[name],
        target_ports=target_ports,
    )


def parse_reserve(cdb: bytes) -> Dict[str, Any]:
    """The arguments of RESERVE or RELEASE(6/10): an empty dict. Raises CheckCondition 05/24/00 for
    third-party reservations and extents: both are optional (SPC-2 5.5.1), and third-party device
    identifiers are not defined for iSCSI."""
    if cdb[1] & 0x10:
        raise CheckCondition(ILLEGAL_REQUEST, 0x24, 0x00, field=(1, 4, True))
    if cdb[1] & 0x01:
        raise CheckCondition(ILLEGAL_REQUEST, 0x24, 0x00, field=(1, 0, True))
    return {}


def list_error(offset: int, bit: Optional[int] = None) -> CheckCondition:
    """05/26/00 with a field pointer to this byte of the parameter list."""
    return CheckCondition(ILLEGAL_REQUEST, 0x26, 0x00, field=(offset, bit, False))


# -- PERSISTENT RESERVE IN -------------------------------------------------------------------------
# The functions return all of the data, with the ADDITIONAL LENGTH of all of it; the caller cuts it at
# the allocation length.

IN_HEADER = struct.Struct('>II')
RESERVATION = struct.Struct('>8s4xxBxx')
FULL_STATUS = struct.Struct('>8s4xBB4xHI')
CAPABILITIES = struct.Struct('>HBBBBxx')
# CRH, SIP_C, ATP_C, PTPL_C
CAPABLE = 0x10 | 0x08 | 0x04 | 0x01
# TMV; ALLOW COMMANDS 011b: every type allows TEST UNIT READY, Write Exclusive also allows MODE SENSE,
# READ BUFFER, REPORT SUPPORTED OPERATION CODES and other commands (SPC-4 6.15)
TYPE_MASK_VALID = 0x80 | 0x30
# WR_EX_AR, EX_AC_RO, WR_EX_RO, EX_AC, WR_EX; EX_AC_AR
TYPE_MASK = (0x80 | 0x40 | 0x20 | 0x08 | 0x02, 0x01)


def holds(state: Dict[str, Any], who: Tuple[str, str]) -> bool:
    """Is the nexus `who`, (initiator_port, target_port), the persistent reservation holder, or one
    of them?"""
    if state['type'] in ALL_REGISTRANTS:
        return any((r['initiator_port'], r['target_port']) == who for r in state['registrations'])
    return state['holder'] is not None and tuple(state['holder']) == who


def read_keys(state: Dict[str, Any]) -> bytes:
    """READ KEYS, SPC-4 6.15."""
    keys = b''.join(bytes.fromhex(r['key']) for r in state['registrations'])
    return IN_HEADER.pack(state['generation'], len(keys)) + keys


def read_reservation(state: Dict[str, Any]) -> bytes:
    """READ RESERVATION, SPC-4 6.15; the key is 0 if all registrants hold the reservation. Every
    nexus gets the data, registered or not: Windows cluster validation reads it from all nodes."""
    if not state['type']:
        return IN_HEADER.pack(state['generation'], 0)
    key = ZERO
    for r in state['registrations']:
        if [r['initiator_port'], r['target_port']] == state['holder']:
            key = r['key']
    return IN_HEADER.pack(state['generation'], RESERVATION.size) + RESERVATION.pack(
        bytes.fromhex(key), state['type']
    )


def report_capabilities(state: Dict[str, Any]) -> bytes:
    """REPORT CAPABILITIES, SPC-4 6.15."""
    return CAPABILITIES.pack(
        CAPABILITIES.size, CAPABLE, TYPE_MASK_VALID | (0x01 if state['aptpl'] else 0), *TYPE_MASK
    )


def read_full_status(state: Dict[str, Any], ports: Sequence[Port] = ()) -> bytes:
    """READ FULL STATUS, SPC-4 6.15. ports: the ports of the target, for the relative identifiers (0
    for a target port that does not exist any more). An initiator port that registered for all
    target ports, and is still registered at each of them, gets one descriptor with ALL_TG_PT."""
    relative = dict((port.name, port.relative_identifier) for port in ports)
    registrations = OrderedDict(
        ((r['initiator_port'], r['target_port']), (r['key'], r['all_tg_pt']))
        for r in state['registrations']
    )
    descriptors = []
    reported: set = set()
    for who, (key, all_tg_pt) in registrations.items():
        if who in reported:
            continue
        holder = holds(state, who)
        group = [other for other in registrations if other[0] == who[0]]
        whole = (
            all_tg_pt
            and set(target for _, target in group) >= set(relative)
            and all(
                registrations[other] == (key, True) and holds(state, other) == holder
                for other in group
            )
        )
        reported.update(group if whole else [who])
        identifier = transport_id.encode(who[0])
        descriptors.append(
            FULL_STATUS.pack(
                bytes.fromhex(key),
                (0x02 if whole else 0) | (0x01 if holder else 0),
                state['type'] if holder else 0,
                0 if whole else relative.get(who[1], 0),
                len(identifier),
            )
            + identifier
        )
    data = b''.join(descriptors)
    return IN_HEADER.pack(state['generation'], len(data)) + data
