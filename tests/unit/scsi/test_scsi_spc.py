import struct

import pytest
from fake_store import (
    EVERY_COMMAND,
    NEXUS,
    OTHER,
    PORTS,
    MemoryStore,
    do,
    error_of,
    make_unit,
    sense_of,
    status_of,
)

from targetd.scsi import modes, opcodes, persistent_reserve
from targetd.scsi.device import Device
from targetd.scsi.lu import LogicalUnit
from targetd.scsi.sam import Change, Port


def inquiry(unit, page=None, allocation=255):
    return do(unit, struct.pack('>BBBHB', 0x12, page is not None, page or 0, allocation, 0))


# -- INQUIRY ---------------------------------------------------------------------------------------


@pytest.mark.clause('SPC-4 6.6')
def test_standard_inquiry():
    data = inquiry(make_unit(vendor='ACME', product='Disk of 16 chars and more', revision='12'))
    assert len(data) == 96 and data[4] == 91
    assert data[0] == 0x00 and data[1] == 0x00
    assert data[2] == 0x06  # SPC-4
    assert data[3] == 0x12  # HISUP, response data format 2
    assert data[6] == 0 and data[7] == 0x02  # one port; CMDQUE
    assert data[8:16] == b'ACME    '
    assert data[16:32] == b'Disk of 16 chars'
    assert data[32:36] == b'12  '


def test_standard_inquiry_lists_version_descriptors():
    claimed = struct.unpack_from('>8H', inquiry(make_unit()), 58)
    assert {0x0960, 0x0460, 0x04C0, 0x00A0} <= set(claimed)


def test_inquiry_never_sends_a_byte_that_is_not_ascii():
    data = inquiry(make_unit(product='D\xfcsseldorf'))
    assert data[16:26] == b'D?sseldorf'


def test_removable_and_multiport_bits():
    unit = make_unit(removable=True)
    assert inquiry(unit)[1] == 0x80
    device = Device(NEXUS, PORTS + (Port(2, 2, 'iqn.2026-11.com.example:disk,t,0x0002'),))
    two_ports = LogicalUnit(unit.facts, MemoryStore(4096), NEXUS, device)
    assert inquiry(two_ports)[6] & 0x10


@pytest.mark.parametrize('allocation', [0, 5, 36, 66, 96, 65535])
@pytest.mark.clause('SPC-4 6.6')
def test_inquiry_is_cut_at_the_allocation_length(allocation):
    whole = inquiry(make_unit(), allocation=255)
    assert inquiry(make_unit(), allocation=allocation) == whole[:allocation]


@pytest.mark.clause('SPC-4 6.6')
def test_a_page_code_without_evpd_is_refused_at_that_byte():
    error = error_of(make_unit(), bytes.fromhex('12 00 83 00ff 00'))
    assert (error.key, error.asc, error.field) == (5, 0x24, (2, None, True))


@pytest.mark.clause('SPC-4 6.6')
def test_inquiry_returns_vpd_pages():
    unit = make_unit(serial='SN-1')
    supported = inquiry(unit, 0x00)
    assert supported[1] == 0x00 and 0x80 in supported[4:] and 0x83 in supported[4:]
    assert b'SN-1' in inquiry(unit, 0x80)
    for page in supported[4:]:
        assert inquiry(unit, page)[1] == page
    assert sense_of(unit, bytes.fromhex('12 01 7f 00ff 00')) == (5, 0x24, 0)


# -- REQUEST SENSE ---------------------------------------------------------------------------------


@pytest.mark.clause('SPC-4 6.39')
def test_request_sense_reports_and_clears_the_pending_attention():
    unit = make_unit()
    unit.raise_attention(0x2A, 0x09)
    first = do(unit, bytes.fromhex('03 00 0000 fc 00'))
    assert first[2] == 6 and first[12:14] == b'\x2a\x09'
    second = do(unit, bytes.fromhex('03 00 0000 fc 00'))
    assert second[2] == 0 and second[12:14] == b'\0\0'
    assert status_of(unit, bytes(6)) == 0


@pytest.mark.clause('SPC-4 6.39')
def test_request_sense_in_descriptor_format():
    unit = make_unit()
    unit.raise_attention(0x29, 0x00)
    data = do(unit, bytes.fromhex('03 01 0000 fc 00'))
    assert data[:4] == bytes([0x72, 6, 0x29, 0])


@pytest.mark.clause('SPC-4 6.39')
def test_request_sense_reports_why_the_unit_is_not_ready():
    data = do(make_unit(medium='ejected'), bytes.fromhex('03 00 0000 12 00'))
    assert data[2] == 2 and data[12:14] == b'\x3a\x00'


# -- REPORT LUNS -----------------------------------------------------------------------------------


def report_luns(device_unit, select=0, allocation=1024):
    data = do(device_unit, struct.pack('>BBBBBBIBB', 0xA0, 0, select, 0, 0, 0, allocation, 0, 0))
    return struct.unpack('>I', data[:4])[0], [data[n : n + 8].hex() for n in range(8, len(data), 8)]


def device_with(*luns):
    device = Device(NEXUS, PORTS)
    unit = make_unit()
    for lun in luns:
        device.add(lun, LogicalUnit(unit.facts, MemoryStore(4096), NEXUS, device))
    return device


@pytest.mark.clause('SPC-4 6.33')
def test_luns_are_listed_in_order_with_peripheral_addressing():
    device = device_with(300, 0, 5)
    assert report_luns(device.unit(0)) == (
        24,
        ['0000000000000000', '0005000000000000', '412c000000000000'],
    )


@pytest.mark.clause('SPC-4 6.33')
def test_the_list_length_is_whole_even_when_the_data_are_cut():
    device = device_with(0, 1, 2)
    assert report_luns(device.unit(0), allocation=16) == (24, ['0000000000000000'])


@pytest.mark.clause('SPC-4 6.33')
def test_report_luns_refuses_an_allocation_length_below_16():
    error = error_of(make_unit(), bytes.fromhex('a0 00 00 000000 0000000f 00 00'))
    assert (error.asc, error.field) == (0x24, (6, None, True))


def test_well_known_units_are_listed_if_selected():
    device = device_with(1)
    assert report_luns(device.unit(1 << 48), select=1) == (8, ['c101000000000000'])
    assert report_luns(device.unit(1 << 48), select=2) == (
        16,
        ['c101000000000000', '0001000000000000'],
    )
    assert report_luns(device.unit(1 << 48), select=0x10) == (0, [])
    assert sense_of(device.unit(1 << 48), bytes.fromhex('a0 00 05 000000 00000400 00 00')) == (
        5,
        0x24,
        0,
    )


def test_report_luns_clears_luns_changed():
    device = device_with(0, 1)
    for lun in (0, 1):
        device.luns[lun].take_sense()
    device.raise_attention(0x3F, 0x0E)
    report_luns(device.unit(0))
    assert status_of(device.unit(1 << 48), bytes(6)) == 0


# -- modes -----------------------------------------------------------------------------------------


@pytest.mark.clause('SPC-4 6.13', 'SPC-4 6.14')
def test_mode_sense_in_both_lengths():
    unit = make_unit(write_cache=True)
    short = do(unit, bytes.fromhex('1a 00 08 00 c0 00'))
    assert short[0] + 1 == len(short) and short[3] == 8
    assert short[12] & 0x3F == 0x08 and short[14] & 0x04
    long = do(unit, bytes.fromhex('5a 08 08 00 000000 00ff 00'))
    assert struct.unpack('>H', long[:2])[0] + 2 == len(long)
    assert long[8] & 0x3F == 0x08


@pytest.mark.clause('SPC-4 6.14')
def test_mode_sense_10_returns_long_lba_descriptors_with_llbaa():
    assert do(make_unit(), bytes.fromhex('5a 10 08 00 000000 00ff 00'))[4] & 1
    assert not do(make_unit(), bytes.fromhex('5a 00 08 00 000000 00ff 00'))[4] & 1


@pytest.mark.clause('SPC-4 6.13')
def test_mode_sense_is_cut_at_the_allocation_length():
    assert len(do(make_unit(), bytes.fromhex('1a 00 3f 00 04 00'))) == 4
    assert do(make_unit(), bytes.fromhex('1a 00 3f 00 00 00')) == b''


def mode_select_data(unit, wce):
    page = bytearray(do(unit, bytes.fromhex('1a 08 08 00 c0 00')))
    page[0] = 0
    page[2] = 0
    page[4] &= 0x7F
    page[6] = page[6] & ~0x04 | (0x04 if wce else 0)
    return bytes(page)


@pytest.mark.clause('SPC-4 6.11')
def test_mode_select_is_executed_by_the_master_and_affects_writes():
    unit = make_unit(write_cache=False)
    data = mode_select_data(unit, wce=True)
    change = do(unit, bytes([0x15, 0x11, 0, 0, len(data), 0]), data)
    assert isinstance(change, Change) and change.kind == 'mode-select' and change.arguments['save']
    unit.replace_shared_state(modes=modes.apply_mode_select(unit.modes, change.arguments))
    do(unit, bytes.fromhex('2a 00 00000000 00 0001 00'), bytes(512))
    assert unit.store.calls[-1] == ('write', 0, 512, False)


@pytest.mark.clause('SPC-4 6.12')
def test_mode_select_10():
    unit = make_unit()
    page = mode_select_data(unit, wce=True)[4:]
    data = bytes(8) + page
    change = do(unit, struct.pack('>BB5xHB', 0x55, 0x10, len(data), 0), data)
    assert change.kind == 'mode-select' and not change.arguments['save']


def test_mode_select_without_a_list_changes_nothing():
    assert do(make_unit(), bytes.fromhex('15 10 0000 00 00')) is None


def test_mode_select_with_less_data_than_announced_is_a_length_error():
    unit = make_unit()
    data = mode_select_data(unit, True)
    assert sense_of(unit, bytes([0x15, 0x10, 0, 0, len(data), 0]), data[:10]) == (5, 0x1A, 0)


@pytest.mark.clause('SPC-4 6.11')
def test_mode_select_of_unchangeable_bits_is_refused_without_the_master():
    unit = make_unit()
    data = bytearray(mode_select_data(unit, True))
    data[6] |= 0x01  # RCD
    assert sense_of(unit, bytes([0x15, 0x10, 0, 0, len(data), 0]), bytes(data)) == (5, 0x26, 0)


def test_descriptor_sense_follows_d_sense():
    unit = make_unit(descriptor_sense=True)
    error = error_of(unit, bytes.fromhex('28 00 ffffffff 00 0001 00'))
    assert unit.sense(error)[0] == 0x72
    assert make_unit().sense(error)[0] in (0x70, 0xF0)


# -- reservations ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'opcode, kind', [(0x16, 'reserve'), (0x56, 'reserve'), (0x17, 'release'), (0x57, 'release')]
)
def test_reserve_and_release_are_executed_by_the_master(opcode, kind):
    change = do(make_unit(), bytes([opcode]) + bytes(9))
    assert isinstance(change, Change) and change.kind == kind


def test_third_party_reservations_are_refused():
    error = error_of(make_unit(), bytes.fromhex('16 10 00 0000 00'))
    assert (error.key, error.asc) == (5, 0x24) and error.field[0] == 1


def test_persistent_reserve_in_reads_the_replica():
    unit = make_unit()
    state = dict(
        unit.reservations,
        generation=7,
        type=5,
        holder=[OTHER.initiator_port, OTHER.target_port],
        registrations=[
            {
                'initiator_port': OTHER.initiator_port,
                'target_port': OTHER.target_port,
                'key': '00000000000000aa',
                'all_tg_pt': False,
            }
        ],
    )
    unit.replace_shared_state(reservations=state)
    keys = do(unit, bytes.fromhex('5e 00 0000000000 0100 00'))
    assert keys == struct.pack('>II', 7, 8) + bytes.fromhex('00000000000000aa')
    assert do(unit, bytes.fromhex('5e 00 0000000000 0008 00')) == struct.pack('>II', 7, 8)
    reservation = do(unit, bytes.fromhex('5e 01 0000000000 0018 00'))
    assert reservation == persistent_reserve.read_reservation(state) and len(reservation) == 24
    assert do(unit, bytes.fromhex('5e 02 0000000000 0008 00'))[:2] == b'\0\x08'
    assert OTHER.initiator_name.encode() in do(unit, bytes.fromhex('5e 03 0000000000 0400 00'))
    assert sense_of(unit, bytes.fromhex('5e 04 0000000000 0400 00')) == (5, 0x24, 0)


def test_persistent_reserve_out_is_executed_by_the_master():
    data = struct.pack('>8s8s4xBxxx', b'', b'\0' * 7 + b'\x0a', 0)
    change = do(make_unit(), bytes.fromhex('5f 06 05 0000 00000018 00'), data)
    assert change.kind == 'persistent-reserve-out'
    assert change.arguments['service_action'] == 6
    assert change.arguments['service_action_key'] == '000000000000000a'


@pytest.mark.parametrize('announced, sent', [(24, 23), (16, 16), (0, 0), (1 << 24, 24)])
def test_persistent_reserve_out_with_a_list_of_the_wrong_length(announced, sent):
    cdb = struct.pack('>BBBxxIB', 0x5F, 0, 0, announced, 0)
    assert sense_of(make_unit(), cdb, bytes(sent)) == (5, 0x1A, 0)


# -- what is reported from the table ---------------------------------------------------------------


def rsoc(unit, options, opcode=0, service_action=0, timeouts=False, allocation=65535):
    return do(
        unit,
        struct.pack(
            '>BBBBHIBB',
            0xA3,
            0x0C,
            options | (0x80 if timeouts else 0),
            opcode,
            service_action,
            allocation,
            0,
            0,
        ),
    )


@pytest.mark.parametrize('timeouts, size', [(False, 8), (True, 20)])
@pytest.mark.clause('SPC-4 6.35')
def test_all_commands_are_listed_and_each_can_be_queried(timeouts, size):
    unit = make_unit(**EVERY_COMMAND)
    data = rsoc(unit, 0, timeouts=timeouts)
    assert struct.unpack('>I', data[:4])[0] == len(data) - 4 == size * len(opcodes.TABLE)
    for n in range(4, len(data), size):
        opcode, service_action, flags, length = struct.unpack('>BxHxBH', data[n : n + 8])
        assert bool(flags & 2) == timeouts
        one = rsoc(unit, 2 if flags & 1 else 1, opcode, service_action)
        assert one[1] == 3 and struct.unpack('>H', one[2:4])[0] == length == len(one) - 4
        assert one[4] == opcode
        assert rsoc(unit, 3, opcode, service_action) == one
        wrong_option = 1 if flags & 1 else 2
        cdb = struct.pack('>BBBBHIBB', 0xA3, 0x0C, wrong_option, opcode, service_action, 100, 0, 0)
        assert sense_of(unit, cdb) == (5, 0x24, 0)


@pytest.mark.clause('SPC-4 6.35')
def test_a_command_without_a_row_is_reported_as_unsupported():
    unit = make_unit()
    assert rsoc(unit, 1, 0x42)[1] == 1
    assert rsoc(unit, 2, 0x9E, 0x1F)[1] == 1
    assert rsoc(unit, 1, 0xFF) == b'\0\x01\0\0'
    assert rsoc(unit, 3, 0x12, 1)[1] == 1


@pytest.mark.clause('SPC-4 6.35')
def test_one_command_with_timeouts():
    data = rsoc(make_unit(), 1, 0x28, timeouts=True)
    assert data[1] == 0x83
    assert data[4:14] == bytes.fromhex('28 1e ffffffff 1f ffff 00')
    assert struct.unpack('>H', data[14:16])[0] == 10 and len(data) == 26


@pytest.mark.clause('SPC-4 6.36')
def test_task_management_functions():
    short = do(make_unit(), bytes.fromhex('a3 0d 00 000000 00000010 00 00'))
    assert len(short) == 4
    assert short[0] == 0x80 | 0x40 | 0x10 | 0x08 | 0x02
    long = do(make_unit(), bytes.fromhex('a3 0d 80 000000 00000010 00 00'))
    assert long[0] == short[0] and long[3] == 12 and len(long) == 16


def test_an_unknown_service_action_has_a_field_pointer():
    error = error_of(make_unit(), bytes.fromhex('a3 1f 00 000000 00000010 00 00'))
    assert (error.asc, error.field) == (0x24, (1, 4, True))


# -- diagnostics -----------------------------------------------------------------------------------


def test_the_self_test_reads_both_ends_of_the_medium_and_its_middle():
    unit = make_unit()
    assert do(unit, bytes.fromhex('1d 04 00 0000 00')) is None
    assert [call[1] for call in unit.store.calls] == [
        0,
        unit.blocks // 2 * 512,
        (unit.blocks - 1) * 512,
    ]
    unit.store.bad = (unit.store.size - 1,)
    assert sense_of(unit, bytes.fromhex('1d 04 00 0000 00')) == (4, 0x3E, 0x03)


@pytest.mark.parametrize('cdb', ['1d 24 00 0000 00', '1d 80 00 0000 00', '1d 04 00 0004 00'])
def test_contradictory_self_test_fields_are_refused(cdb):
    assert sense_of(make_unit(), bytes.fromhex(cdb), bytes(4)) == (5, 0x24, 0)


def test_the_list_of_diagnostic_pages():
    unit = make_unit()
    assert do(unit, bytes.fromhex('1d 10 00 0004 00'), bytes(4)) is None
    assert do(unit, bytes.fromhex('1c 01 00 0010 00')) == b'\0\0\0\1\0'
    assert sense_of(unit, bytes.fromhex('1c 01 40 0010 00')) == (5, 0x24, 0)
    assert sense_of(unit, bytes.fromhex('1d 10 00 0004 00'), b'\x40\0\0\0') == (5, 0x26, 0)
    assert sense_of(unit, bytes.fromhex('1d 10 00 0002 00'), bytes(2)) == (5, 0x1A, 0)
    assert sense_of(unit, bytes.fromhex('1d 10 00 0004 00'), b'\0\0\0\1') == (5, 0x26, 0)
