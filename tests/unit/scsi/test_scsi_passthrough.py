"""A real SCSI device behind a unit: what is forwarded, what comes back, and what the target does itself."""

import errno
import os
import struct
from collections import namedtuple

import pytest
from fake_store import OTHER, do, error_of, finish, make_task, make_unit, sense_of, status_of

from targetd.scsi import medium_state, passthrough, passthrough_opcodes, reservations, sam
from targetd.scsi.facts import UnitFacts
from targetd.scsi.lu import UnitServices
from targetd.scsi.sam import ORDERED, SIMPLE, Change, Waits
from targetd.scsi.sense import CheckCondition, StatusReturned

DISK, TAPE, OPTICAL, CHANGER = 0x00, 0x01, 0x05, 0x08
INQUIRY = bytes.fromhex('00 00 06 32 5b 19 10 02') + b'Linux   scsi_debug      0191' + bytes(60)
NAA = bytes.fromhex('01 03 00 08 3333333000002710')
PORT = bytes.fromhex('61 94 00 04 00000001')
PAGES = {
    0x00: bytes.fromhex('00 00 0006 00 80 83 88 8f b0'),
    0x80: b'\0\x80\0\x04' + b'2000',
    0x83: b'\0\x83\0\x14' + NAA + PORT,
    0x88: b'\0\x88\0\x00',
    0x8F: b'\0\x8f\0\x00',
    0xB0: b'\0\xb0\0\x3c' + struct.pack('>HHII', 1, 1, 0xFFFF, 0xFFFF).ljust(0x3C, b'\0'),
}
Outcome = namedtuple('Outcome', 'status host driver sense residual data')
READ_CAPACITY = '25 00 00000000 0000 00 00'


class Device(object):
    """Takes the place of store.sg_device.SgDevice. answers: Outcomes or OSErrors in order; then GOOD."""

    size = 1 << 20
    block_size = 512

    def __init__(self, *answers):
        self.answers = list(answers)
        self.commands = []

    def execute(self, cdb, data, length, seconds):
        self.commands.append((bytes(cdb).hex(), bytes(data), length, seconds))
        answer = self.answers.pop(0) if self.answers else good(b'\x5a' * length)
        if isinstance(answer, OSError):
            raise answer
        return answer


def good(data=b'', residual=0):
    return Outcome(0, 0, 0, b'', residual, memoryview(bytearray(data)))


def check(sense, data=b'', residual=0):
    return Outcome(2, 0, 8, bytes.fromhex(sense), residual, memoryview(bytearray(data)))


class Services(UnitServices):
    def __init__(self):
        self.shared = []

    def share_attention(self, asc, ascq):
        self.shared.append((asc, ascq))


def real(device=None, kind=DISK, **more):
    facts = {
        'passthrough': True,
        'peripheral_type': kind,
        'third_party_copy': False,
        'inquiry': (bytes([kind]) + INQUIRY[1:]).hex(),
        'vital_pages': ' '.join('%02x:%s' % (code, page.hex()) for code, page in PAGES.items()),
        'transfer_block': 512 if kind == DISK else 0,
        'maximum_transfer_length': 1 << 20,
    }
    unit = make_unit(device or Device(), **dict(facts, **more))
    unit.services = Services()
    return unit


def cdb(text):
    return bytes.fromhex(text)


# -- forwarding ------------------------------------------------------------------------------------


def test_a_read_is_forwarded_with_the_length_of_its_cdb():
    unit = real()
    assert bytes(do(unit, cdb('28 00 00000007 00 0002 00'), edtl=1024)) == b'\x5a' * 1024
    assert unit.store.commands == [('28000000000700000200', b'', 1024, passthrough_opcodes.NORMAL)]


def test_a_write_is_forwarded_with_its_data():
    unit = real()
    assert do(unit, cdb('2a 00 00000007 00 0002 00'), b'\x77' * 1024) is None
    assert unit.store.commands[0][:3] == ('2a000000000700000200', b'\x77' * 1024, 0)


@pytest.mark.parametrize(
    'text, data, edtl',
    [
        (
            '2a 00 00000000 00 0002 00',
            bytes(512),
            None,
        ),  # the device would write what it did not get
        ('2a 00 00000000 00 0002 00', None, 0),
        ('28 00 00000000 00 0002 00', bytes(1024), None),  # the initiator sends what is not taken
        ('00 00 0000 00 00', bytes(4), None),
        ('15 10 0000 18 00', bytes(8), None),
    ],
)
def test_data_that_does_not_fit_the_cdb_is_refused_before_anything_is_sent(text, data, edtl):
    unit = real()
    assert sense_of(unit, cdb(text), data, edtl) == (5, 0x0E, 0x03)
    assert unit.store.commands == []


def test_more_data_than_the_host_can_transfer_is_refused_at_the_field():
    unit = real()
    error = error_of(unit, cdb('28 00 00000000 00 ffff 00'), edtl=0xFFFF * 512)
    assert (error.key, error.asc, error.field) == (5, 0x24, (7, None, True))


def test_an_allocation_length_beyond_the_limit_is_shortened():
    unit = real(kind=CHANGER)
    assert len(do(unit, cdb('b8 10 0000 ffff 00 ffffff 00 00'), edtl=8192)) == 1 << 20
    assert unit.store.commands == [('b8100000ffff001000000000', b'', 1 << 20, 900)]
    assert sense_of(unit, cdb('b8 10 0000 ffff 00 ffffff 00 00'), edtl=1 << 21) == (5, 0x24, 0)


def test_a_tape_transfers_what_the_initiator_says():
    unit = real(kind=TAPE)
    assert len(do(unit, cdb('08 01 000003 00'), edtl=3 * 10240)) == 3 * 10240
    do(unit, cdb('0a 01 000001 00'), bytes(10240))
    lengths = [(len(data), length) for _, data, length, _ in unit.store.commands]
    assert lengths == [(0, 30720), (10240, 0)]


def test_long_commands_get_more_time():
    unit = real(kind=TAPE)
    for text in ('01 00 0000 00 00', '19 01 0000 00 00', '00 00 0000 00 00'):
        do(unit, cdb(text), edtl=0)
    assert [seconds for _, _, _, seconds in unit.store.commands] == [900, 86400, 60]


def test_residuals_of_both_directions():
    unit = real(Device(good(bytes(100), 412), good(residual=24)), kind=TAPE)
    assert len(do(unit, cdb('08 00 000200 00'), edtl=512)) == 100
    task = make_task(unit, cdb('0a 00 000200 00'), bytes(512))
    unit.admit(task)
    finish(task, bytes(512))
    assert task.data_out_length == 488  # the reply has the difference to EDTL as its residual


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'text',
    ['f0000300001234 0a 00000000 1100 00 8000fe', '720311000000000c 000a8000 0000000000001234'],
)
def test_the_sense_data_of_the_device_is_not_changed(text):
    unit = real(Device(check(text, b'\1' * 100)))
    error = error_of(unit, cdb('28 00 00001230 00 0008 00'), edtl=4096)
    assert (error.key, error.asc, error.ascq) == (3, 0x11, 0)
    assert unit.sense(error) == bytes.fromhex(text)
    assert bytes(error.data) == b'\1' * 100
    assert unit.counters.errors == 1


@pytest.mark.parametrize('status', [0x04, 0x08, 0x18, 0x28])
def test_other_statuses_of_the_device_are_those_of_the_command(status):
    unit = real(Device(Outcome(status, 0, 0, b'', 0, memoryview(b''))))
    with pytest.raises(StatusReturned) as returned:
        do(unit, cdb('2f 00 00000000 00 0001 00'), edtl=0)
    assert returned.value.status == status


@pytest.mark.parametrize(
    'answer, kind, expected',
    [
        (Outcome(0, 0x01, 0, b'', 0, memoryview(b'')), DISK, (4, 0x3E, 0x01)),  # DID_NO_CONNECT
        (Outcome(0, 0x03, 0, b'', 0, memoryview(b'')), DISK, (0xB, 0x3E, 0x02)),  # DID_TIME_OUT
        (
            Outcome(0, 0x03, 0, b'', 0, memoryview(b'')),
            TAPE,
            (4, 0x3E, 0x02),
        ),  # must not be repeated
        (Outcome(0, 0x07, 0, b'', 0, memoryview(b'')), DISK, (0xB, 0x08, 0x00)),  # DID_ERROR
        (OSError(errno.ENODEV, ''), DISK, (4, 0x3E, 0x01)),
        (OSError(errno.EINVAL, ''), DISK, (5, 0x24, 0x00)),
        (OSError(errno.ENOMEM, ''), DISK, (0xB, 0x55, 0x03)),
        (Outcome(2, 0, 0, b'', 0, memoryview(b'')), DISK, (4, 0x44, 0x00)),
    ],
)
def test_a_device_that_does_not_answer(answer, kind, expected):
    assert sense_of(real(Device(answer), kind), cdb('00 00 0000 00 00'), edtl=0) == expected


def test_a_removable_device_that_is_gone_has_no_medium():
    unit = real(Device(OSError(errno.ENODEV, '')), removable=True)
    assert sense_of(unit, cdb('00 00 0000 00 00'), edtl=0) == (2, 0x3A, 0)
    assert bytes(do(unit, cdb('12 00 00 0024 00')))[8:13] == b'Linux'


@pytest.mark.parametrize(
    'answer, status',
    [(OSError(errno.EDOM, ''), 0x28), (Outcome(0, 0x0D, 0, b'', 0, memoryview(b'')), 0x08)],
)
def test_a_command_that_was_not_sent_may_be_repeated(answer, status):
    assert status_of(real(Device(answer)), cdb('00 00 0000 00 00')) == status


def test_an_aborted_command_is_not_sent():
    unit = real()
    task = make_task(unit, cdb('01 00 0000 00 00'), edtl=0)
    task = make_task(unit, cdb('28 00 00000000 00 0001 00'), edtl=512)
    unit.admit(task)
    task.aborted = True
    assert finish(task, None) is None and unit.store.commands == []


# -- what concerns several nexuses -----------------------------------------------------------------


def test_a_unit_attention_of_the_device_is_one_of_every_nexus():
    unit = real(Device(check('70000600000000 0a 00000000 2800 00 000000')))
    assert sense_of(unit, cdb('00 00 0000 00 00'), edtl=0) == (6, 0x28, 0)
    assert unit.services.shared == [(0x28, 0)]
    assert sense_of(unit, cdb('00 00 0000 00 00'), edtl=0) is None


@pytest.mark.parametrize(
    'kind, text, data, code',
    [
        (DISK, '15 10 0000 04 00', bytes(4), (0x2A, 0x01)),
        (TAPE, '55 10 0000000000 0008 00', bytes(8), (0x2A, 0x01)),
        (DISK, '4c 00 00 00 000000 0004 00', bytes(4), (0x2A, 0x02)),
        (TAPE, '1b 00 0000 01 00', None, (0x28, 0x00)),
        (DISK, '1b 00 0000 03 00', None, (0x28, 0x00)),
    ],
)
def test_what_a_command_changes_for_the_others(kind, text, data, code):
    unit = real(kind=kind)
    do(unit, cdb(text), data, None if data else 0)
    assert unit.services.shared == [code]


def test_starting_and_unloading_change_nothing_for_the_others():
    unit = real()
    do(unit, cdb('1b 00 0000 01 00'), edtl=0)
    do(unit, cdb('1b 00 0000 02 00'), edtl=0)
    assert unit.services.shared == []


def test_reservations_are_the_targets_own():
    unit = real()
    assert isinstance(do(unit, cdb('16 00 0000 00 00'), edtl=0), Change)
    assert isinstance(do(unit, cdb('5f 00 00 0000 00000018 00'), bytes(24)), Change)
    assert bytes(do(unit, cdb('5e 00 0000000000 0008 00')))[:4] == bytes(4)
    assert unit.store.commands == []


def test_a_reservation_of_another_host_refuses_what_changes_or_moves():
    state = reservations.initial()
    state = dict(state, reserved_by=(OTHER.initiator_port, OTHER.target_port))
    for kind, texts in (
        (DISK, ('28', '2a', '15')),
        (TAPE, ('01', '11', '0a')),
        (CHANGER, ('a5', 'b8')),
    ):
        unit = real(kind=kind)
        unit.replace_shared_state(reservations=state)
        for text in texts:
            assert status_of(unit, cdb(text)) == 0x18, text
        assert unit.store.commands == []


def test_one_prevention_of_the_removal_for_all():
    unit = real(removable=True)
    assert do(unit, cdb('1e 00 0000 01 00'), edtl=0) == Change('prevent', {'prevent': True})
    assert unit.store.commands == [('1e0000000100', b'', 0, 60)]
    # the master tells the device when no nexus prevents it any more
    assert do(unit, cdb('1e 00 0000 00 00'), edtl=0) == Change('prevent', {'prevent': False})
    assert len(unit.store.commands) == 1
    unit = real(Device(check('70000500000000 0a 00000000 2000 00 000000')))
    assert sense_of(unit, cdb('1e 00 0000 01 00'), edtl=0) == (5, 0x20, 0)


def test_request_sense_has_what_is_pending_here_first():
    unit = real(Device(good(b'\x70\0\2\0\0\0\0\x0a\0\0\0\0\x04\x01\0\0\0\0')))
    unit.raise_attention(0x2A, 0x01)
    assert bytes(do(unit, cdb('03 00 0000 12 00')))[12:14] == b'\x2a\x01'
    assert unit.store.commands == []
    assert bytes(do(unit, cdb('03 00 0000 12 00')))[12:14] == b'\x04\x01'


def test_a_unit_attention_that_request_sense_reports_is_shared():
    unit = real(Device(good(b'\x70\0\6\0\0\0\0\x0a\0\0\0\0\x29\x00\0\0\0\0')))
    do(unit, cdb('03 00 0000 12 00'))
    assert unit.services.shared == [(0x29, 0)]


# -- order, limits, states -------------------------------------------------------------------------


@pytest.mark.parametrize(
    'kind, waits', [(DISK, False), (TAPE, True), (OPTICAL, True), (CHANGER, True), (0x14, True)]
)
def test_commands_of_devices_with_a_position_are_executed_in_their_order(kind, waits):
    unit = real(kind=kind)
    task = make_task(unit, cdb('00 00 0000 00 00'), edtl=0)
    task.attribute = SIMPLE
    if waits:
        with pytest.raises(Waits):
            unit.admit(task)
        task.attribute = ORDERED
    unit.admit(task)
    assert unit.may_still_write(task) is waits


def test_reads_and_writes_are_counted():
    unit = real()
    do(unit, cdb('28 00 00000000 00 0004 00'), edtl=2048)
    do(unit, cdb('8a 00 0000000000000000 00000001 00 00'), bytes(512))
    do(unit, cdb(READ_CAPACITY), edtl=8)
    do(unit, cdb('1a 00 3f 00 ff 00'), edtl=255)
    assert (unit.counters.reads, unit.counters.writes, unit.counters.others) == ([1, 4], [1, 1], 2)


def test_a_fenced_device_is_busy():
    unit = real()
    unit.replace_shared_state(hanging=medium_state.FENCED)
    assert status_of(unit, cdb('28 00 00000000 00 0001 00')) == sam.BUSY
    assert status_of(unit, cdb('12 00 00 0024 00')) == 0


def test_an_unusual_command_is_patient():
    unit = real(kind=TAPE)
    task = make_task(unit, cdb('01 00 0000 00 00'), edtl=0)
    assert not passthrough.is_patient(task)
    unit.admit(task)
    assert passthrough.is_patient(task)
    task = make_task(unit, cdb('00 00 0000 00 00'), edtl=0)
    unit.admit(task)
    assert not passthrough.is_patient(task)


@pytest.mark.parametrize(
    'text, where', [('28 00 00000000 00 0001 04', (9, 2)), ('00 00 0000 00 01', (5, 0))]
)
def test_aca_and_linked_commands_are_refused(text, where):
    error = error_of(real(), cdb(text))
    assert (error.asc, error.field) == (0x24, where + (True,))


# -- the filter ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'kind, refused',
    [
        (DISK, '3b 1d 48 83 84 85 a1 c1 e5 ff 07 7f a4 b5'),
        (TAPE, '3b 1d 2a 83 c0 a5 28'),
        (OPTICAL, '3b 1d 83 c0 a3 85'),
        (CHANGER, '3b 1d 83 28 0a 10'),
        (0x0D, '3b 1d 28 2a'),
    ],
)
def test_the_filter_refuses_what_is_not_harmless_for_the_type(kind, refused):
    unit = real(kind=kind)
    for code in refused.split():
        assert sense_of(unit, bytes.fromhex(code)) == (5, 0x20, 0), code
    assert unit.store.commands == []


def test_without_the_filter_everything_is_forwarded_but_what_is_the_targets():
    unit = real(command_filter=False)
    do(unit, cdb('c1 00 00000000 00 0000 00'), edtl=100)
    do(unit, cdb('3b 02 00 000000 000004 00'), bytes(4))
    do(unit, cdb('9e 1f') + bytes(14), edtl=0)
    sent = [(code[:4], len(data), length) for code, data, length, _ in unit.store.commands]
    assert sent == [('c100', 0, 100), ('3b02', 4, 0), ('9e1f', 0, 0)]
    assert sense_of(unit, cdb('5e 1f 0000000000 0008 00')) == (5, 0x24, 0)
    assert len(unit.store.commands) == 3


def test_a_vendor_specific_command_conflicts_with_every_reservation():
    unit = real(command_filter=False)
    state = dict(reservations.initial(), reserved_by=(OTHER.initiator_port, OTHER.target_port))
    unit.replace_shared_state(reservations=state)
    assert status_of(unit, cdb('c1')) == 0x18


def test_a_read_only_unit_refuses_what_writes_and_says_so_in_mode_sense():
    unit = real(Device(good(bytes(4)), good(bytes(8))), read_only=True)
    assert bytes(do(unit, cdb('1a 00 3f 00 ff 00'), edtl=255))[2] == 0x80
    assert bytes(do(unit, cdb('5a 00 3f 00000000 00ff 00'), edtl=255))[3] == 0x80
    assert sense_of(unit, cdb('2a 00 00000000 00 0001 00'), bytes(512)) == (7, 0x27, 0)
    unit = real(kind=TAPE, read_only=True)
    for text in ('0a', '10', '19'):
        assert sense_of(unit, cdb(text)) == (7, 0x27, 0)
    do(unit, cdb('01 00 0000 00 00'), edtl=0)
    assert sense_of(real(command_filter=False, read_only=True), cdb('c1')) == (7, 0x27, 0)


@pytest.mark.parametrize('kind', [DISK, TAPE, OPTICAL, CHANGER, 0x0D, 0x14])
@pytest.mark.parametrize('is_filtered', [True, False])
def test_every_command_that_is_offered_has_an_admission_function(kind, is_filtered):
    facts = UnitFacts.from_message(
        {
            'passthrough': True,
            'peripheral_type': kind,
            'command_filter': is_filtered,
            'implicit_alua': True,
        }
    )
    commands = passthrough_opcodes.commands_of(facts)
    for opcode, rows in commands.rows.items():
        assert None not in rows or len(rows) == 1
        for service_action, row in rows.items():
            assert (row.opcode, row.service_action) == (opcode, service_action)
            assert (
                callable(getattr(passthrough, row.function.split('.')[1], None))
                or 'spc' in row.function
            )
    own = {0xA0, 0x12, 0x03, 0x16, 0x5E, 0x5F}
    assert own <= set(commands.rows)
    assert is_filtered == (len(commands.rows) < 256 - len(passthrough_opcodes.NEVER))


# -- INQUIRY ---------------------------------------------------------------------------------------


def test_inquiry_is_that_of_the_device_without_what_the_target_lacks():
    data = bytes(do(real(), cdb('12 00 00 0060 00')))
    assert data[8:36] == INQUIRY[8:36] and len(data) == 96
    assert data[0] == 0 and data[2] == 6
    assert data[3] == 0x12  # HISUP, and no ACA
    assert data[5] == 0x00  # no third-party copy, no protection information, TPGS 0
    assert bytes(do(real(implicit_alua=True), cdb('12 00 00 0060 00')))[5] == 0x10
    assert sense_of(real(), cdb('12 00 80 0060 00')) == (5, 0x24, 0)


def test_the_pages_are_those_of_the_device_with_the_ports_of_the_target():
    unit = real()
    codes = bytes(do(unit, cdb('12 01 00 00ff 00')))
    assert codes[4:] == bytes.fromhex('00 80 83 88 b0')
    for code in codes[4:]:
        page = bytes(do(unit, bytes([0x12, 1, code, 0, 255, 0])))
        assert page[1] == code and len(page) == 4 + int.from_bytes(page[2:4], 'big')
    assert bytes(do(unit, cdb('12 01 80 00ff 00'))) == PAGES[0x80]
    page = bytes(do(unit, cdb('12 01 83 00ff 00')))
    assert page[4 : 4 + len(NAA)] == NAA
    assert PORT not in page and b'iqn.2026-11.com.example:disk' in page
    assert sense_of(unit, cdb('12 01 8f 00ff 00')) == (5, 0x24, 0)


def test_the_block_limits_page_has_the_limit_of_the_host():
    page = bytes(do(real(), cdb('12 01 b0 00ff 00')))
    assert struct.unpack_from('>II', page, 8) == (2048, 2048)
    page = bytes(do(real(maximum_transfer_length=1 << 30), cdb('12 01 b0 00ff 00')))
    assert struct.unpack_from('>II', page, 8) == (0xFFFF, 0xFFFF)


def test_a_device_without_pages_is_known_by_its_serial_number():
    unit = real(vital_pages='', vendor='OLD', product='CHANGER', serial='77')
    assert bytes(do(unit, cdb('12 01 00 00ff 00')))[4:] == bytes.fromhex('00 83 88')
    assert b'OLD     CHANGER         77' in bytes(do(unit, cdb('12 01 83 00ff 00')))


def test_read_block_limits_is_within_the_limit_of_the_host():
    unit = real(Device(good(bytes.fromhex('00 800000 0001'))), kind=TAPE)
    assert bytes(do(unit, cdb('05 00 0000 00 00'), edtl=6)) == bytes.fromhex('00 100000 0001')


# -- REPORT SUPPORTED OPERATION CODES --------------------------------------------------------------


def opcodes_of(*codes):
    rows = b''.join(
        struct.pack('>BxHxBH', code, action, 1 if action else 0, 10) for code, action in codes
    )
    return struct.pack('>I', len(rows)) + rows


def test_the_list_of_commands_has_those_that_are_forwarded_and_those_of_the_target():
    answer = opcodes_of((0x28, 0), (0x3B, 0), (0x9E, 0x10), (0x5E, 3), (0xC1, 0))
    unit = real(Device(good(answer)))
    data = bytes(do(unit, cdb('a3 0c 00 00 0000 00001000 00 00'), edtl=4096))
    found = [
        (data[at], int.from_bytes(data[at + 2 : at + 4], 'big')) for at in range(4, len(data), 8)
    ]
    assert len(data) == 4 + int.from_bytes(data[:4], 'big')
    assert {(0x28, 0), (0x9E, 0x10), (0x5F, 6), (0x16, 0), (0xA0, 0)} <= set(found)
    assert not {0x3B, 0xC1} & {code for code, _ in found} and found == sorted(found)
    assert unit.store.commands[0][0] == 'a30c000000000000fffc0000'


def test_one_command():
    unit = real(Device(good(bytes.fromhex('00 03 000a') + bytes(10))))
    assert bytes(do(unit, cdb('a3 0c 01 3b 0000 00000040 00 00'), edtl=64))[1] == 0x01
    assert bytes(do(unit, cdb('a3 0c 02 5f 0006 00000040 00 00'), edtl=64))[1] == 0x03
    assert unit.store.commands == []
    assert bytes(do(unit, cdb('a3 0c 01 28 0000 00000040 00 00'), edtl=64))[1] == 0x03
    assert len(unit.store.commands) == 1


def test_task_management_functions_are_those_of_the_target():
    unit = real()
    assert bytes(do(unit, cdb('a3 0d 00 00 0000 00000004 00 00')))[0] & 0x88 == 0x88
    assert unit.store.commands == []


@pytest.mark.parametrize(
    'text, block, expected',
    [
        ('28 00 00000000 00 0010 00', 4096, 65536),
        ('08 000000 00 00', 512, 256 * 512),
        ('a8 00 00000000 00000003 00 00', 2048, 6144),
        ('28 00 00000000 00 0010 00', 0, None),
        ('1a 00 3f 00 fc 00', 512, 252),
        ('25 00 00000000 0000 00 00', 512, 8),
        ('35 00 00000000 00 0000 00', 512, 0),
    ],
)
def test_the_length_that_a_cdb_says(text, block, expected):
    code = cdb(text)
    transfer = passthrough_opcodes.commands_of(real().facts).transfer_of(code)
    assert passthrough_opcodes.wanted_length(transfer, code, block) == expected


def test_the_length_of_a_cdb():
    lengths = {0x00: 6, 0x28: 10, 0x5A: 10, 0x88: 16, 0xA8: 12, 0xC1: 10}
    for opcode, length in lengths.items():
        assert passthrough_opcodes.cdb_length(bytes([opcode]) + bytes(15)) == length
    assert (
        passthrough_opcodes.cdb_length(bytes.fromhex('7f') + bytes(6) + b'\x18' + bytes(24)) == 32
    )


def test_an_error_of_the_host_names_the_errno():
    with pytest.raises(CheckCondition):
        do(real(Device(OSError(errno.EIO, os.strerror(errno.EIO)))), cdb('00'), edtl=0)
