"""The commands of a tape drive: what backup programs send, and the sense data that they expect."""

import struct

import pytest
from fake_store import do, error_of, make_unit, sense_of

from targetd import store as stores
from targetd.scsi import mmc_opcodes, modes, opcodes, ssc, ssc_opcodes
from targetd.scsi.dispatch import FUNCTIONS
from targetd.scsi.sam import Change, Task, Waits

SIZE = 4 << 20
FILEMARK, EOM, ILI = 0x80, 0x40, 0x20
REWIND, LIMITS, DENSITY = '01 00 000000 00', '05 00 000000 00', '44 00 0000000000 00ff 00'


@pytest.fixture
def tape(tmp_path):
    """make(size, **facts) -> LogicalUnit with a tape in a file."""
    made = []

    def make(size=SIZE, medium='ready', read_only=False, **facts):
        path = str(tmp_path / 'tape')
        with open(path, 'ab') as file:
            file.truncate(size)
        opened = stores.open_store(
            {'kind': 'file', 'path': path, 'tape': True, 'read_only': read_only, 'is_served': True}
        )
        made.extend([opened.store(), opened])
        return make_unit(
            made[-2], medium=medium, tape=True, removable=True, third_party_copy=False,
            read_only=read_only, **facts
        )  # fmt: skip

    yield make
    for each in made:
        each.close()


def cdb(digits):
    return bytes.fromhex(digits)


def write(unit, data, fixed=0):
    count = len(data) // fixed if fixed else len(data)
    do(unit, struct.pack('>BB', 0x0A, bool(fixed)) + count.to_bytes(3, 'big') + b'\0', data)


def read_cdb(count, flags=0):
    return bytes((0x08, flags)) + count.to_bytes(3, 'big') + b'\0'


def read(unit, count, flags=0):
    return bytes(do(unit, read_cdb(count, flags)))


def filemarks(unit, count=1, immediate=False):
    do(unit, bytes((0x10, immediate)) + count.to_bytes(3, 'big') + b'\0')


def space_cdb(code, count):
    return bytes((0x11, code)) + count.to_bytes(3, 'big', signed=True) + b'\0'


def position(unit):
    """(is it BOP?, first location), short form"""
    data = do(unit, cdb('34 00 0000000000 0000 00'))
    assert len(data) == 20
    return bool(data[0] & 0x80), struct.unpack_from('>I', data, 4)[0]


def found(unit, command, data=None):
    """(key, asc, ascq, stream bits, information, Data-In) of the CHECK CONDITION."""
    error = error_of(unit, command, data)
    assert error is not None
    fixed, descriptor = error.sense(False), error.sense(True)
    assert fixed[2] == error.key | error.stream
    if error.stream:
        at = descriptor.index(bytes((0x04, 0x02, 0x00, error.stream)), 8)
        assert at % 4 == 0
    if error.information is not None:
        assert fixed[0] == 0xF0 and struct.unpack_from('>i', fixed, 3)[0] == error.information
        assert struct.unpack_from('>q', descriptor, 12)[0] == error.information
    data = None if error.data is None else bytes(error.data)
    return error.key, error.asc, error.ascq, error.stream, error.information, data


def set_block_length(unit, length, buffered=0x10):
    data = struct.pack('>BBBB', 0, 0, buffered, 8) + struct.pack('>II', 0, length)
    change = do(unit, struct.pack('>BBHBB', 0x15, 0x10, 0, len(data), 0), data)
    assert isinstance(change, Change) and change.kind == 'mode-select'
    unit.replace_shared_state(modes=modes.apply_mode_select(unit.modes, change.arguments))


def written(unit):
    """Two files: blocks of 100 and 5000 bytes, a filemark, a block of 70000, two filemarks."""
    for data in (b'a' * 100, b'b' * 5000, None, b'c' * 70000, None, None):
        if data is None:
            filemarks(unit)
        else:
            write(unit, data)
    do(unit, cdb(REWIND))
    return unit


# -- the unit --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'facts, tpgs', [({}, 0), ({'implicit_alua': True}, 1), ({'explicit_alua': True}, 2)]
)
def test_the_tape_reports_target_port_groups_if_inquiry_data_say_so(tape, facts, tpgs):
    unit = tape(**facts)
    assert do(unit, bytes.fromhex('12 00 00 0060 00'))[5] >> 4 & 3 == tpgs
    assert bool(tpgs) == (0x0A in unit.commands[0xA3])
    assert (tpgs == 2) == (0x0A in unit.commands[0xA4])


@pytest.mark.parametrize('row', ssc_opcodes.TABLE, ids=lambda row: row.name)
def test_a_row_has_a_function_and_a_mask_of_the_length_of_its_cdb(row):
    assert callable(FUNCTIONS[row.function])
    assert len(row.mask) == (6, 10, 10, 0, 16, 12)[row.opcode >> 5]


def test_a_disk_has_no_command_of_a_tape_and_a_tape_none_of_a_disk(tape):
    own = {row.opcode for row in ssc_opcodes.TABLE} - {row.opcode for row in opcodes.TABLE}
    assert {0x01, 0x05, 0x10, 0x11, 0x19, 0x2B, 0x92} <= own
    for opcode in sorted(own):
        assert sense_of(make_unit(), bytes([opcode])) == (5, 0x20, 0)
    for opcode in (0x04, 0x25, 0x28, 0x2A, 0x35, 0x41, 0x42, 0x48, 0x83, 0x88, 0x9E):
        assert sense_of(tape(), bytes([opcode])) == (5, 0x20, 0)


def test_names_of_commands():
    names = {code: mmc_opcodes.name_of(code) for code in (0x01, 0x10, 0x34, 0x42, 0x2B, 0x92, 0xFE)}
    assert names[0x01] == 'REWIND' and names[0x10] == 'WRITE FILEMARKS(6)'
    assert names[0x34] == 'PRE-FETCH(10)' and names[0x42] == 'READ SUB-CHANNEL'
    assert (
        names[0x2B] == 'SEEK(10)' and names[0x92] == 'LOCATE(16)' and names[0xFE] == 'command FEh'
    )


def test_its_commands_are_executed_one_after_the_other(tape):
    unit, task = tape(), Task()
    task.cdb, task.unit, task.edtl = bytes(16), unit, 0
    with pytest.raises(Waits):
        unit.admit(task)
    unit.raise_attention(0x29, 0x00)
    with pytest.raises(Waits):
        unit.admit(task)


def test_inquiry_and_its_pages(tape):
    data = bytes(do(tape(), cdb('12 00 00 0060 00')))
    assert data[0] == 0x01 and data[1] == 0x80
    assert struct.unpack_from('>5H', data, 58) == (0xA0, 0x960, 0x460, 0x400, 0)
    data = bytes(do(tape(), cdb('12 01 00 00ff 00')))
    assert data == cdb('01 00 0006 00 80 83 86 87 88')


def test_limits_and_density(tape):
    unit = tape()
    assert bytes(do(unit, cdb(LIMITS))) == struct.pack('>IH', 8 << 20, 1)
    assert len(do(unit, cdb('05 01 000000 00'))) == 20
    data = bytes(do(unit, cdb(DENSITY)))
    assert len(data) == 56 and struct.unpack_from('>H', data)[0] == 54 and data[6] == 0xA0
    assert sense_of(unit, cdb('44 02 0000000000 00ff 00')) == (5, 0x24, 0)


# -- READ and WRITE --------------------------------------------------------------------------------


def test_blocks_of_any_length_are_read_back(tape):
    unit = written(tape())
    assert read(unit, 100) == b'a' * 100
    assert read(unit, 5000) == b'b' * 5000
    assert found(unit, read_cdb(4096)) == (0, 0, 1, FILEMARK, 4096, None)
    assert read(unit, 70000) == b'c' * 70000
    assert found(unit, read_cdb(1))[:4] == (0, 0, 1, FILEMARK)
    assert found(unit, read_cdb(1))[:4] == (0, 0, 1, FILEMARK)
    assert found(unit, read_cdb(10)) == (8, 0, 5, 0, 10, None)
    assert position(unit) == (False, 6)
    assert do(unit, read_cdb(0)) is None and position(unit) == (False, 6)


def test_a_block_of_another_length_is_read_in_part_or_with_a_residual(tape):
    unit = written(tape())
    assert found(unit, read_cdb(4096)) == (0, 0, 0, ILI, 3996, b'a' * 100)
    assert found(unit, read_cdb(4096)) == (0, 0, 0, ILI, -904, b'b' * 4096)
    assert position(unit) == (False, 2)
    do(unit, cdb(REWIND))
    assert read(unit, 4096, flags=2) == b'a' * 100  # SILI
    assert read(unit, 4096, flags=2) == b'b' * 4096
    set_block_length(unit, 512)
    do(unit, cdb(REWIND))
    assert read(unit, 4096, flags=2) == b'a' * 100
    assert found(unit, read_cdb(4096, 2)) == (0, 0, 0, ILI, -904, b'b' * 4096)


def test_fixed_blocks(tape):
    unit = tape()
    assert sense_of(unit, read_cdb(1, 1)) == (5, 0x24, 0)  # no length is selected
    set_block_length(unit, 512)
    write(unit, b'1' * 512 + b'2' * 512 + b'3' * 512, fixed=512)
    filemarks(unit)
    write(unit, b'4' * 512 + b'5' * 300)
    do(unit, cdb(REWIND))
    assert position(unit) == (True, 0)
    assert read(unit, 2, 1) == b'1' * 512 + b'2' * 512
    assert found(unit, read_cdb(4, 1)) == (0, 0, 1, FILEMARK, 3, b'3' * 512)
    assert found(unit, read_cdb(4, 1)) == (0, 0, 0, ILI, 4, b'')
    assert found(unit, read_cdb(4, 1)) == (8, 0, 5, 0, 4, b'')
    assert sense_of(unit, read_cdb(1, 3)) == (5, 0x24, 0)


def test_a_write_needs_all_its_data_and_a_possible_length(tape):
    unit = tape()
    write_600 = cdb('0a 00 000258 00')
    assert sense_of(unit, write_600, b'x' * 599) == (5, 0x0E, 3)
    assert sense_of(unit, cdb('0a 00 800001 00'), b'x') == (5, 0x24, 0)
    assert sense_of(unit, read_cdb(0x800001)) == (5, 0x24, 0)
    assert position(unit) == (True, 0)


def test_a_write_ends_the_data(tape):
    unit = written(tape())
    read(unit, 100)
    write(unit, b'new')
    assert found(unit, read_cdb(10))[:3] == (8, 0, 5)
    do(unit, cdb(REWIND))
    assert [read(unit, 100), read(unit, 3)] == [b'a' * 100, b'new']


def test_the_end_is_announced_and_then_reached(tape):
    unit = tape(size=1 << 20, early_warning=300000)
    block = bytes(range(250)) * 400
    for _ in range(7):
        write(unit, block)
    warned = found(unit, cdb('0a 00 0186a0 00'), block)
    assert warned == (0, 0, 2, EOM, 0, None)
    assert do(unit, cdb('34 00 0000000000 0000 00'))[0] & 0x40  # EOP
    assert found(unit, cdb('0a 00 0186a0 00'), block)[:4] == (0, 0, 2, EOM)
    assert found(unit, cdb('0a 00 0186a0 00'), block) == (0xD, 0, 2, EOM, 100000, None)
    assert found(unit, cdb('10 00 000002 00')) == (0, 0, 2, EOM, 0, None)  # written all the same
    assert found(unit, cdb('10 00 ffffff 00')) == (0xD, 0, 2, EOM, 0xFFFFFF, None)
    filemarks(unit, 0)  # a flush is not warned
    do(unit, cdb(REWIND))
    for _ in range(9):
        assert read(unit, len(block)) == block
    assert found(unit, read_cdb(1))[3] == FILEMARK and found(unit, read_cdb(1))[3] == FILEMARK
    assert found(unit, read_cdb(1))[0] == 8


def test_fixed_blocks_at_the_end_that_fit_are_written(tape):
    unit = tape(size=1 << 20)
    set_block_length(unit, 100000)
    data = b'x' * 1200000
    assert found(unit, cdb('0a 01 00000c 00'), data) == (0xD, 0, 2, EOM, 3, None)
    assert position(unit) == (False, 9)


def test_the_early_warning_is_two_percent_by_default(tape):
    unit = tape(size=1000 << 10)
    assert ssc.early_warning(unit) == 980 << 10


def test_a_protected_tape_is_read_only(tape):
    written(tape())
    unit = tape(read_only=True)
    assert read(unit, 100) == b'a' * 100
    for command, data in (
        ('0a 00 000001 00', b'x'),
        ('10 00 000001 00', None),
        ('19 00 000000 00', None),
    ):
        assert sense_of(unit, cdb(command), data) == (7, 0x27, 0)
    assert bytes(do(unit, cdb('1a 00 00 00 ff 00')))[2] == 0x90
    do(unit, cdb(REWIND))
    assert do(unit, cdb('1b 00 0000 00 00')).arguments == {'action': 'eject'}


def test_flushes(tape):
    unit = tape()
    calls = []
    real = unit.store.store.flush
    unit.store.store.flush = lambda offset, length: calls.append(1) or real(offset, length)
    write(unit, b'x')
    begun = len(calls)  # the first write makes a tape of the file
    write(unit, b'x')
    filemarks(unit, 1, immediate=True)
    assert len(calls) == begun
    extended = bytes(do(unit, cdb('34 08 0000000000 0020 00')))
    assert struct.unpack('>BBHIQQQ', extended) == (0, 0, 28, 3, 3, 0, 3 * 72 + 2)
    filemarks(unit, 0)
    assert len(calls) == begun + 1
    extended = bytes(do(unit, cdb('34 08 0000000000 0020 00')))
    assert struct.unpack('>BBHIQQQ', extended)[3:] == (0, 3, 3, 0)
    set_block_length(unit, 0, buffered=0)
    write(unit, b'x')
    assert len(calls) == begun + 2
    set_block_length(unit, 0)
    unit.store.unflushed_limit = 1000
    write(unit, b'x' * 1000)
    assert len(calls) == begun + 3
    write(unit, b'x')
    do(unit, cdb('01 01 000000 00'))
    assert len(calls) == begun + 3
    do(unit, cdb(REWIND))
    assert len(calls) == begun + 4


def test_errors_of_the_medium(tape):
    unit = written(tape())
    with open(unit.store.path, 'r+b') as file:
        file.seek(16384 + 72 + 50)
        file.write(b'?')
    assert sense_of(unit, read_cdb(100)) == (3, 0x10, 0)
    assert read(unit, 5000) == b'b' * 5000
    set_block_length(unit, 100)
    do(unit, cdb(REWIND))
    error = error_of(unit, read_cdb(3, 1))
    assert (error.key, error.information, error.data) == (3, 3, b'')
    reported = []
    unit.services.data_lost = reported.append

    def fails(offset, length):
        raise OSError(5, 'gone')

    unit.store.store.flush = fails
    do(unit, cdb('11 03 000000 00'))
    assert sense_of(unit, cdb('10 00 000001 00')) == (3, 0x0C, 0)


# -- positions -------------------------------------------------------------------------------------


def test_space(tape):
    unit = written(tape())
    assert do(unit, space_cdb(0, 2)) is None and position(unit) == (False, 2)
    assert found(unit, space_cdb(0, 5)) == (0, 0, 1, FILEMARK, 5, None)
    assert position(unit) == (False, 3)
    assert found(unit, space_cdb(0, -2)) == (0, 0, 1, FILEMARK, 2, None)
    assert position(unit) == (False, 2)
    assert do(unit, space_cdb(0, -2)) is None and position(unit) == (True, 0)
    assert found(unit, space_cdb(0, -1)) == (0, 0, 4, EOM, 1, None)
    assert do(unit, space_cdb(1, 2)) is None and position(unit) == (False, 5)
    assert found(unit, space_cdb(1, 3)) == (8, 0, 5, 0, 2, None)
    assert do(unit, space_cdb(1, -2)) is None and position(unit) == (False, 4)
    assert found(unit, space_cdb(1, -4)) == (0, 0, 4, EOM, 3, None)
    assert do(unit, space_cdb(3, 0)) is None and position(unit) == (False, 6)
    assert do(unit, space_cdb(0, 0)) is None and position(unit) == (False, 6)
    assert sense_of(unit, space_cdb(2, 1)) == (5, 0x24, 0)
    do(unit, cdb('91 01 0000 fffffffffffffffd 0000 00 00'))
    assert position(unit) == (False, 2)


def test_locate_and_the_forms_of_read_position(tape):
    unit = written(tape())
    do(unit, cdb('2b 00 00 00000003 00 00 00'))
    assert position(unit) == (False, 3)
    assert bytes(do(unit, cdb('34 06 0000000000 0000 00'))) == struct.pack('>IIQQQ', 0, 0, 3, 1, 0)
    do(unit, cdb('92 08 00 00 0000000000000002 000000 00'))
    assert position(unit) == (False, 5)
    do(unit, cdb('92 18 00 00 0000000000000000 000000 00'))
    assert position(unit) == (False, 6)
    do(unit, cdb('92 00 00 00 0000000000000001 000000 00'))
    assert position(unit) == (False, 1)
    assert found(unit, cdb('2b 00 00 00000063 00 00 00'))[:3] == (8, 0, 5)
    assert position(unit) == (False, 6)
    for refused in (
        '2b 02 00 00000000 00 01 00',
        '92 02 00 01 0000000000000000 000000 00',
        '92 20 00 00 0000000000000000 000000 00',
        '34 02 0000000000 0000 00',
        '34 00 0000000000 0014 00',
    ):
        assert sense_of(unit, cdb(refused)) == (5, 0x24, 0), refused


def test_erase(tape):
    unit = written(tape())
    do(unit, space_cdb(0, 1))
    do(unit, cdb('19 01 000000 00'))
    assert position(unit) == (False, 1)
    assert found(unit, read_cdb(1))[0] == 8


def test_another_loading_begins_at_the_beginning_and_the_same_one_does_not(tape):
    unit = written(tape())
    read(unit, 100)
    again = tape()  # of the next session
    assert position(again) == (False, 1)
    assert do(again, cdb('1b 00 0000 00 00')) == Change('start-stop', {'action': 'eject'})
    assert position(again) == (True, 0)
    read(again, 100)
    again.replace_shared_state(records=dict(again.records, loads=again.records['loads'] + 1))
    assert position(again) == (True, 0)


def test_load_unload(tape):
    unit = written(tape())
    read(unit, 100)
    assert do(unit, cdb('1b 00 0000 01 00')) is None and position(unit) == (True, 0)
    assert sense_of(unit, cdb('1b 00 0000 05 00')) == (5, 0x24, 0)
    unit.replace_shared_state(medium='ejected')
    assert sense_of(unit, cdb(REWIND)) == (2, 0x3A, 0) == sense_of(unit, bytes(6))
    assert do(unit, cdb('1b 00 0000 01 00')) == Change('start-stop', {'action': 'load'})
    assert do(unit, cdb('1b 00 0000 00 00')) is None
    assert bytes(do(unit, cdb('1a 00 10 00 ff 00')))


# -- mode and log pages ----------------------------------------------------------------------------


def test_mode_pages_and_the_block_descriptor(tape):
    unit = tape()
    data = bytes(do(unit, cdb('1a 00 3f 00 ff 00')))
    assert data[:4] == bytes((len(data) - 1, 0, 0x10, 8)) and data[4:12] == bytes(8)
    pages, at = [], 12
    while at < len(data):
        pages.append(data[at] & 0x3F)
        at += 2 + data[at + 1]
    assert at == len(data) and pages == [0x01, 0x02, 0x0A, 0x1C, 0x0F, 0x10]
    assert bytes(do(unit, cdb('1a 08 10 00 ff 00')))[4:] == cdb(
        '10 0e 0000 0000 0000 40 00 10 000000 00 00'
    )
    set_block_length(unit, 10240)
    assert bytes(do(unit, cdb('1a 00 0f 00 ff 00')))[4:12] == struct.pack('>II', 0, 10240)
    assert bytes(do(unit, cdb('5a 00 0f 00 000000 00ff 00')))[3:16] == cdb(
        '10 0000 0008 00000000 00002800'
    )
    assert bytes(do(unit, cdb('1a 00 8f 00 ff 00')))[4:12] == bytes(8)  # the default
    unit.replace_shared_state(modes=modes.reset(unit.modes))
    assert bytes(do(unit, cdb('1a 00 0f 00 ff 00')))[4:12] == bytes(8)


def test_what_mode_select_refuses(tape):
    unit = tape()
    for digits, at in (
        ('00 00 20 08 00 000000 00 000000', 2),  # buffered mode 2
        ('00 00 10 08 42 000000 00 000000', 4),  # density
        ('00 00 10 08 00 000001 00 000000', 5),  # number of blocks
        ('00 00 10 08 00 000000 00 ffffff', 9),
    ):
        data = cdb(digits)
        error = error_of(unit, struct.pack('>BBHBB', 0x15, 0x10, 0, len(data), 0), data)
        assert (error.key, error.asc) == (5, 0x26) and error.field[0] == at, digits
    data = cdb('00 00 10 00')
    assert do(unit, struct.pack('>BBHBB', 0x15, 0x10, 0, 4, 0), data).kind == 'mode-select'


def test_a_disk_has_no_page_of_a_tape():
    for page in (0x0F, 0x10, 0x40):
        assert (
            sense_of(make_unit(), bytes((0x1A, 8, page & 0x3F, 0, 255, 0))) == (5, 0x24, 0)
            or page == 0x40
        )
    assert '40-00' not in make_unit().modes['current']


def log_page(unit, page):
    data = bytes(do(unit, bytes((0x4D, 0, 0x40 | page)) + bytes(4) + cdb('ffff 00')))
    found, at = {}, 4
    while at < len(data):
        code, _, length = struct.unpack_from('>HBB', data, at)
        found[code] = int.from_bytes(data[at + 4 : at + 4 + length], 'big')
        at += 4 + length
    assert data[0] & 0x3F == page and at == len(data)
    return found


def test_log_pages(tape):
    unit = written(tape())
    assert bytes(do(unit, cdb('4d 00 40 00 000000 00ff 00')))[4:] == cdb('00 02 03 0c 10 2e 2f 31')
    read(unit, 100)
    assert log_page(unit, 0x0C) == {0: 75100, 1: 75100, 2: 100, 3: 100}
    assert log_page(unit, 0x31) == {1: 3, 2: 0, 3: 4, 4: 0}
    assert set(log_page(unit, 0x2E)) == set(range(1, 65)) and not any(log_page(unit, 0x2E).values())
    unit.replace_shared_state(medium='failed')
    assert [n for n, flag in log_page(unit, 0x2E).items() if flag] == [3]
    unit.replace_shared_state(medium='ejected')
    assert log_page(unit, 0x31) == {1: 0, 2: 0, 3: 0, 4: 0}
