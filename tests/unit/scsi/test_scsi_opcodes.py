import ast
import glob
import os

import pytest
from fake_store import EVERY_COMMAND, NEXUS, OTHER, do, error_of, make_unit, status_of

from targetd.scsi import opcodes, reservation_classes, reservations
from targetd.scsi.cdb import length
from targetd.scsi.device import AbsentUnit
from targetd.scsi.dispatch import FUNCTIONS
from targetd.scsi.facts import UnitFacts
from targetd.scsi.spc import ABSENT

CLASSES = {
    reservation_classes.ALWAYS,
    reservation_classes.STATUS,
    reservation_classes.READ,
    reservation_classes.WRITE,
    reservation_classes.RESERVE,
    reservation_classes.PR_IN,
    reservation_classes.PR_OUT,
    reservation_classes.START_STOP,
    reservation_classes.PREVENT,
}
IDS = ['%02X-%s' % (row.opcode, row.service_action) for row in opcodes.TABLE]
IDS_OF_WRITES = [
    '%02X-%s' % (row.opcode, row.service_action) for row in opcodes.TABLE if row.writes
]


@pytest.mark.parametrize('row', opcodes.TABLE, ids=IDS)
def test_a_row_is_complete(row):
    assert len(row.mask) == length(row.opcode)
    assert row.reservation in CLASSES
    assert callable(FUNCTIONS[row.function])
    assert not row.needs or hasattr(UnitFacts, row.needs)
    assert not row.mask[-1], 'NACA and the vendor bits of CONTROL are refused by every command'


@pytest.mark.parametrize('row', opcodes.TABLE, ids=IDS)
def test_usage_data_contain_opcode_and_service_action_by_value(row):
    assert row.usage[0] == row.opcode
    assert len(row.usage) == len(row.mask)
    if row.service_action is not None:
        assert row.usage[1] & 0x1F == row.service_action


def test_no_command_is_in_the_table_twice():
    seen = [(row.opcode, row.service_action) for row in opcodes.TABLE]
    assert len(set(seen)) == len(seen)
    with_actions = {opcode for opcode, action in seen if action is not None}
    assert not with_actions & {opcode for opcode, action in seen if action is None}


def test_exactly_the_commands_of_sam_are_exempt_from_unit_attention():
    assert {row.name for row in opcodes.TABLE if row.exempt} == {
        'INQUIRY',
        'REPORT LUNS',
        'REQUEST SENSE',
    }


# Each may be executed only with type 2 protection enabled: SBC-3 5.14; SBC-5 5.19, 5.39,
# 5.43, 5.47, 5.54.
NEED_TYPE_2_PROTECTION = {
    'READ(32)': 0x0009,
    'VERIFY(32)': 0x000A,
    'WRITE(32)': 0x000B,
    'WRITE AND VERIFY(32)': 0x000C,
    'WRITE SAME(32)': 0x000D,
}


@pytest.mark.parametrize('name', sorted(NEED_TYPE_2_PROTECTION))
def test_commands_of_32_bytes_are_refused_where_there_is_no_protection_information(name):
    unit = make_unit(**EVERY_COMMAND)
    assert not do(unit, bytes.fromhex('12 00 00 00FF 00'))[5] & 0x01, 'PROTECT'
    assert (
        not do(unit, bytes.fromhex('9E 10') + bytes(8) + bytes.fromhex('00000020 0000'))[12] & 0x01
    ), 'PROT_EN'
    cdb = bytearray(32)
    cdb[0], cdb[7], cdb[9] = 0x7F, 0x18, NEED_TYPE_2_PROTECTION[name]
    error = error_of(unit, bytes(cdb))
    assert (error.key, error.asc, error.ascq) == (5, 0x20, 0x00)


def other_reserves_write_exclusive():
    key = '00000000000000aa'
    return dict(
        reservations.initial(),
        type=1,
        holder=[OTHER.initiator_port, OTHER.target_port],
        registrations=[
            {
                'initiator_port': OTHER.initiator_port,
                'target_port': OTHER.target_port,
                'key': key,
                'all_tg_pt': False,
            }
        ],
    )


@pytest.mark.parametrize(
    'row', [row for row in opcodes.TABLE if row.writes], ids=lambda row: row.name
)
def test_every_command_that_writes_conflicts_with_write_exclusive_of_another_nexus(row):
    unit = make_unit(**EVERY_COMMAND)
    unit.replace_shared_state(reservations=other_reserves_write_exclusive())
    cdb = bytearray(len(row.mask))
    cdb[0], cdb[1] = row.opcode, row.service_action or 0
    assert status_of(unit, bytes(cdb)) == 0x18


@pytest.mark.parametrize('row', [row for row in opcodes.TABLE if row.writes], ids=IDS_OF_WRITES)
def test_commands_that_change_the_medium_have_the_write_class(row):
    assert row.reservation == reservation_classes.WRITE and row.medium


def test_a_row_without_a_class_conflicts():
    """Fail closed: a command without a class must not bypass the reservation of another host."""
    refused = reservation_classes.refused_classes(other_reserves_write_exclusive(), NEXUS)
    assert reservation_classes.conflicts(refused, None, bytes(16))


def empty_cdb(row):
    cdb = bytearray(len(row.mask))
    cdb[0], cdb[1] = row.opcode, row.service_action or 0
    return cdb


@pytest.mark.parametrize('row', opcodes.TABLE, ids=IDS)
def test_report_supported_operation_codes_returns_every_row(row):
    unit = make_unit(**EVERY_COMMAND)
    option = 1 if row.service_action is None else 2
    cdb = (
        bytes((0xA3, 0x0C, option, row.opcode))
        + (row.service_action or 0).to_bytes(2, 'big')
        + bytes((0, 0, 1, 0, 0, 0))
    )
    data = do(unit, cdb)
    assert (
        data[1] & 7 == 3
        and data[4:] == row.usage
        and len(row.usage) == int.from_bytes(data[2:4], 'big')
    )


@pytest.mark.parametrize('row', opcodes.TABLE, ids=IDS)
def test_an_unused_bit_is_refused_with_a_field_pointer(row):
    """Each unused bit of each CDB: 05/24/00, and a field pointer to that byte, at or above that
    bit."""
    unit = make_unit(**EVERY_COMMAND)
    for offset in range(1, len(row.mask)):
        for bit in range(8):
            if not (row.mask[offset] | row.ignored(offset)) >> bit & 1:
                cdb = empty_cdb(row)
                cdb[offset] |= 1 << bit
                error = error_of(unit, bytes(cdb), b'')
                assert (error.key, error.asc, error.ascq) == (5, 0x24, 0), (offset, bit)
                assert error.field[0] == offset and error.field[1] >= bit and error.field[2]


@pytest.mark.parametrize('bits', [0x20, 0x40, 0x80, 0xE0])
def test_the_lun_that_old_initiators_write_into_the_cdb_is_ignored(bits):
    """NetBSD sets bits 7 to 5 of byte 1 of INQUIRY, and lost every LUN but 0."""
    unit = make_unit(removable=True)
    for cdb in (
        '00 00 0000 00 00',  # TEST UNIT READY
        '03 00 0000 12 00',  # REQUEST SENSE
        '12 00 00 0024 00',  # INQUIRY
        '12 01 00 0024 00',
        '08 00 0000 01 00',  # READ(6)
        '1a 00 3f 00 ff 00',  # MODE SENSE(6)
        '1b 00 00 00 01 00',  # START STOP UNIT
        '1e 00 0000 00 00',  # PREVENT ALLOW MEDIUM REMOVAL
        '16 00 00 0000 00',  # RESERVE(6)
        '25 00 00000000 0000 00 00',  # READ CAPACITY(10)
        '35 00 00000000 00 0000 00',  # SYNCHRONIZE CACHE(10)
    ):
        plain = bytes.fromhex(cdb)
        assert do(unit, bytes([plain[0], plain[1] | bits]) + plain[2:]) == do(unit, plain)
    absent = AbsentUnit(unit.device, ABSENT)
    assert do(absent, bytes([0x12, bits, 0, 0, 36, 0]))[0] == ABSENT


@pytest.mark.parametrize('opcode', sorted(opcodes.HIGH_BITS_HAVE_A_MEANING - {0xA3, 0x48, 0x1D}))
def test_rdprotect_and_the_other_meanings_of_these_bits_are_refused(opcode):
    unit = make_unit(**EVERY_COMMAND)
    row = next(row for row in opcodes.TABLE if row.opcode == opcode)
    cdb = empty_cdb(row)
    cdb[1] |= 0x80
    error = error_of(unit, bytes(cdb), b'')
    assert (error.key, error.asc, error.field[0]) == (5, 0x24, 1)


def refusals_without_a_place(text):
    """[line …] of CheckCondition(…ILLEGAL_REQUEST, 0x24 or 0x26, …) without field=."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Call)
            and getattr(node.func, 'id', getattr(node.func, 'attr', '')) == 'CheckCondition'
        ):
            words = [ast.dump(each) for each in node.args]
            if (
                len(words) > 1
                and 'ILLEGAL_REQUEST' in words[0]
                and ('=36' in words[1] or '=38' in words[1])
                and not any(keyword.arg == 'field' for keyword in node.keywords)
            ):
                found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    'path',
    sorted(glob.glob(os.path.join(os.path.dirname(opcodes.__file__), '*.py'))),
    ids=os.path.basename,
)
def test_every_invalid_field_error_has_a_field_pointer(path):
    with open(path, encoding='utf-8') as file:
        assert refusals_without_a_place(file.read()) == []


def test_an_invalid_field_error_without_field_pointer_is_found():
    assert refusals_without_a_place(
        'raise CheckCondition(ILLEGAL_REQUEST, 0x24, 0)\nCheckCondition(sense.ILLEGAL_REQUEST, '
        '0x26, 4)\nCheckCondition(ILLEGAL_REQUEST, 0x26, 4, field=None)'
    ) == [1, 2]


def test_reads_do_not_conflict_with_it():
    unit = make_unit()
    unit.replace_shared_state(reservations=other_reserves_write_exclusive())
    assert status_of(unit, bytes.fromhex('28 00 00000000 00 0001 00')) == 0
    assert status_of(unit, bytes.fromhex('00 00 0000 00 00')) == 0


@pytest.mark.parametrize(
    'cdb, where',
    [
        # the reserved bits above GROUP NUMBER count as one field
        ('28 00 00000000 20 0001 00', (6, 7)),
        ('28 20 00000000 00 0001 00', (1, 7)),  # RDPROTECT 1 is an error of the three-bit field
        ('28 01 00000000 00 0001 00', (1, 0)),
        ('28 00 00000000 00 0001 04', (9, 2)),
        ('12 02 00 0024 00', (1, 7)),
    ],
)
def test_the_pointer_names_the_most_significant_bit_of_the_field(cdb, where):
    data = bytes.fromhex(cdb)
    row = next(row for row in opcodes.TABLE if row.opcode == data[0])
    assert row.first_refused_bit(data) == where


def test_a_valid_cdb_has_no_refused_bit():
    for row in opcodes.TABLE:
        assert row.first_refused_bit(row.mask) is None


def test_commands_that_a_unit_cannot_do_are_not_offered():
    plain = opcodes.by_opcode(UnitFacts.from_message({}))
    assert 0x42 not in plain and 0x9C not in plain and 0x89 in plain
    thin = opcodes.by_opcode(UnitFacts.from_message({'unmap': True, 'maximum_atomic_length': 4096}))
    assert 0x42 in thin and 0x9C in thin
