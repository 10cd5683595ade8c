"""Mode pages: MODE SENSE data, changes by MODE SELECT, and the saved pages."""

import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targetd.scsi import modes
from targetd.scsi.facts import UnitFacts
from targetd.scsi.sense import CheckCondition

BLOCKS = 1 << 21
PLAIN = UnitFacts.from_message({})
THIN = UnitFacts.from_message(
    {'thin': True, 'unmap': True, 'threshold_exponent': 11, 'threshold_count': 0x1234}
)
CURRENT, CHANGEABLE, DEFAULT, SAVED = range(4)
CODES = [
    (0x01, 0),
    (0x02, 0),
    (0x03, 0),
    (0x04, 0),
    (0x07, 0),
    (0x08, 0),
    (0x0A, 0),
    (0x0A, 1),
    (0x1A, 0),
    (0x1C, 0),
    (0x1C, 2),
]


def sense(
    state,
    page,
    subpage=0,
    control=CURRENT,
    facts=PLAIN,
    dbd=True,
    long_header=False,
    llbaa=False,
    blocks=BLOCKS,
):
    return modes.mode_sense_data(
        state, facts, page, subpage, control, dbd, long_header, llbaa, blocks
    )


def split(data, long_header=False):
    """(medium type, device-specific parameter, LONGLBA, block descriptor, {(code, subpage): page
    with header})."""
    if long_header:
        length, medium, specific, long_lba, descriptors = struct.unpack_from('>HBBBxH', data)
        assert length == len(data) - 2
        offset = 8
    else:
        length, medium, specific, descriptors = struct.unpack_from('>BBBB', data)
        assert length == len(data) - 1
        offset, long_lba = 4, 0
    descriptor = data[offset : offset + descriptors]
    offset += descriptors
    pages = {}
    while offset < len(data):
        if data[offset] & 0x40:
            code, subpage, length = (
                data[offset] & 0x3F,
                data[offset + 1],
                4 + struct.unpack_from('>H', data, offset + 2)[0],
            )
        else:
            code, subpage, length = data[offset] & 0x3F, 0, 2 + data[offset + 1]
        pages[code, subpage] = data[offset : offset + length]
        offset += length
    assert offset == len(data)
    return medium, specific, long_lba, descriptor, pages


def only_page(state, code, subpage=0, control=CURRENT, facts=PLAIN, blocks=BLOCKS):
    pages = split(sense(state, code, subpage, control, facts, blocks=blocks))[4]
    assert list(pages) == [(code, subpage)]
    return pages[code, subpage]


def changed(page, offset, bits, on=True):
    """The page for MODE SELECT: PS 0, and these bits set or cleared."""
    data = bytearray(page)
    data[0] &= 0x7F
    data[offset] = data[offset] | bits if on else data[offset] & ~bits
    return bytes(data)


def select(state, *pages, **more):
    """The state after MODE SELECT(6) of these pages."""
    save = more.pop('save', False)
    arguments = modes.parse_select(
        state, more.pop('facts', PLAIN), bytes(4) + b''.join(pages), False, True, save, BLOCKS
    )
    return modes.apply_mode_select(state, json.loads(json.dumps(arguments)))


def refusal(data, state=None, long_header=False, pf=True, facts=PLAIN, rtd=False):
    with pytest.raises(CheckCondition) as caught:
        modes.parse_select(
            state or modes.initial(facts), facts, data, long_header, pf, False, BLOCKS, rtd
        )
    return (caught.value.key, caught.value.asc, caught.value.ascq), caught.value.field


def bad_list(offset, bit=None):
    return (5, 0x26, 0), (offset, bit, False)


LENGTH_ERROR = ((5, 0x1A, 0), None)


def with_cache(state, on, save=False):
    return select(state, changed(only_page(state, 0x08), 2, 0x04, on), save=save)


# -- MODE SENSE ------------------------------------------------------------------------------------


@pytest.mark.parametrize('code, subpage', CODES)
@pytest.mark.parametrize('control', range(4))
def test_each_page_alone(code, subpage, control):
    page = only_page(modes.initial(THIN), code, subpage, control, THIN)
    lengths = {
        0x01: 12,
        0x02: 16,
        0x03: 24,
        0x04: 24,
        0x07: 12,
        0x08: 20,
        0x0A: 12,
        0x1A: 40,
        0x1C: 12,
    }
    assert len(page) == ({0x0A: 32, 0x1C: 32}[code] if subpage else lengths[code])


def test_all_pages():
    state = modes.initial(THIN)
    assert list(split(sense(state, 0x3F, facts=THIN))[4]) == [c for c in CODES if not c[1]]
    assert list(split(sense(state, 0x3F, 0xFF, facts=THIN))[4]) == CODES
    assert list(split(sense(state, 0x0A, 0xFF, facts=THIN))[4]) == [(0x0A, 0), (0x0A, 1)]
    assert list(split(sense(state, 0x1C, 0xFF))[4]) == [(0x1C, 0)]


def test_all_pages_fit_the_buffers_of_windows_and_mode_sense_6():
    assert len(sense(modes.initial(THIN), 0x3F, facts=THIN, dbd=False)) <= 192
    assert len(sense(modes.initial(THIN), 0x3F, 0xFF, facts=THIN, dbd=False)) <= 256


def test_page_00_is_empty():
    data = sense(modes.initial(PLAIN), 0x00, dbd=False)
    assert len(data) == 12 and split(data)[4] == {}


@pytest.mark.parametrize(
    'page, subpage, field',
    [
        (0x05, 0, (2, 5, True)),
        (0x1D, 0xFF, (2, 5, True)),
        (0x00, 1, (2, 5, True)),
        (0x08, 1, (3, 7, True)),
        (0x0A, 2, (3, 7, True)),
        (0x3F, 1, (3, 7, True)),
        (0x1C, 2, (3, 7, True)),
    ],
)
def test_unsupported_pages_are_refused(page, subpage, field):
    with pytest.raises(CheckCondition) as caught:
        sense(modes.initial(PLAIN), page, subpage)
    assert (caught.value.key, caught.value.asc, caught.value.ascq, caught.value.field) == (
        5,
        0x24,
        0,
        field,
    )


@pytest.mark.parametrize(
    'read_only, swp', [(False, False), (True, False), (False, True), (True, True)]
)
def test_write_protection_and_dpofua(read_only, swp):
    facts = UnitFacts.from_message({'read_only': read_only})
    state = modes.initial(facts)
    if swp:
        state = select(state, changed(only_page(state, 0x0A), 4, 0x08), facts=facts)
    assert modes.parameters(state).swp is swp
    for long_header in (False, True):
        medium, specific = split(
            sense(state, 0x3F, facts=facts, long_header=long_header), long_header
        )[:2]
        assert (medium, specific) == (0, 0x10 | (0x80 if read_only or swp else 0))


@pytest.mark.parametrize('block_size', [512, 4096])
def test_block_descriptors(block_size):
    facts = UnitFacts.from_message({'block_size': block_size})
    state = modes.initial(facts)
    for control in range(4):
        for long_header in (False, True):
            descriptor = split(sense(state, 8, 0, control, facts, False, long_header), long_header)[
                3
            ]
            assert descriptor == struct.pack('>II', BLOCKS, block_size)
    assert split(sense(state, 8, facts=facts, dbd=True))[3] == b''
    big = 1 << 33
    assert split(sense(state, 8, facts=facts, dbd=False, blocks=big))[3] == struct.pack(
        '>II', 0xFFFFFFFF, block_size
    )
    data = sense(state, 8, facts=facts, dbd=False, long_header=True, llbaa=True, blocks=big)
    assert split(data, True)[2:4] == (1, struct.pack('>QII', big, 0, block_size))
    data = sense(state, 8, facts=facts, dbd=True, long_header=True, llbaa=True)
    assert split(data, True)[2:4] == (0, b'')


def test_changeable_bits_are_reported_and_savable():
    state = modes.initial(PLAIN)
    pages = split(sense(state, 0x3F, 0xFF, CHANGEABLE))[4]
    assert pages[0x08, 0] == b'\x88\x12\x04' + bytes(17)
    assert pages[0x0A, 0] == b'\x8a\x0a\x04\x00\x08\x40' + bytes(6)
    for code, page in pages.items():
        header = 4 if code[1] else 2
        assert bool(page[0] & 0x80) == any(page[header:])


@pytest.mark.parametrize('write_cache, expected', [(True, True), (False, False)])
def test_the_write_cache_is_as_configured(write_cache, expected):
    facts = UnitFacts.from_message({'write_cache': write_cache})
    for state in (
        modes.initial(facts),
        modes.initial({'write_cache': write_cache}),
        modes.initial(PLAIN, write_cache),
    ):
        assert modes.parameters(state).wce is expected
        assert bool(only_page(state, 0x08)[2] & 0x04) is expected


def test_descriptor_sense_is_as_configured():
    state = modes.initial(UnitFacts.from_message({'descriptor_sense': True}))
    assert modes.parameters(state).d_sense and only_page(state, 0x0A)[2] & 0x04
    assert not modes.parameters(modes.initial(PLAIN)).d_sense


def test_the_control_page_is_one_that_libiscsi_accepts():
    page = only_page(modes.initial(PLAIN), 0x0A)
    assert page[2] >> 5 == 1, 'a task set for each nexus'
    assert page[3] >> 4 == 1 and page[3] >> 1 & 3 == 0
    assert page[4] >> 4 & 3 == 0 and page[5] & 7 == 0
    assert struct.unpack_from('>H', page, 8)[0] > 0


def test_failure_prediction_is_disabled():
    assert only_page(modes.initial(PLAIN), 0x1C)[2] & 0x08


@pytest.mark.parametrize(
    'blocks, cylinders', [(1, 1), (16065 * 100, 100), (16065 * 100 + 5, 100), (1 << 45, 0xFFFFFF)]
)
def test_the_geometry_pages_report_a_geometry(blocks, cylinders):
    facts = UnitFacts.from_message({'block_size': 4096, 'rotation_rate': 7200})
    state = modes.initial(facts)
    page = only_page(state, 0x04, facts=facts, blocks=blocks)
    assert (
        int.from_bytes(page[2:5], 'big') == cylinders
        and page[5] == 255
        and page[20:22] == struct.pack('>H', 7200)
    )
    page = only_page(state, 0x03, facts=facts, blocks=blocks)
    assert struct.unpack_from('>HHH', page, 10) == (63, 4096, 1) and page[20] == 0x40
    assert only_page(modes.initial(PLAIN), 0x04)[20:22] == b'\0\0'


# -- MODE SELECT -----------------------------------------------------------------------------------


def test_switching_the_write_cache_changes_current_values_only():
    old = modes.initial(PLAIN)
    new = with_cache(old, True)
    assert modes.parameters(new).wce and not modes.parameters(old).wce
    assert [only_page(new, 8, control=c)[2] & 4 for c in (CURRENT, DEFAULT, SAVED)] == [4, 0, 0]
    assert with_cache(new, True) is new


def test_switching_with_sp_is_saved():
    state = with_cache(modes.initial(PLAIN), True, save=True)
    assert [only_page(state, 8, control=c)[2] & 4 for c in (CURRENT, DEFAULT, SAVED)] == [4, 0, 4]
    assert json.loads(json.dumps(state)) == state


@pytest.mark.clause('SPC-4 6.11')
def test_sp_saves_the_other_pages_too():
    state = select(modes.initial(PLAIN), changed(only_page(modes.initial(PLAIN), 0x0A), 5, 0x40))
    assert modes.parameters(state).tas and not modes.saved(state)
    state = with_cache(state, True, save=True)
    assert modes.parameters(modes.reset(state)).tas


@pytest.mark.parametrize(
    'offset, bits, question',
    [
        (2, 0x04, lambda state: modes.parameters(state).d_sense),
        (4, 0x08, lambda state: modes.parameters(state).swp),
        (5, 0x40, lambda state: modes.parameters(state).tas),
    ],
)
def test_the_control_page_can_be_changed(offset, bits, question):
    old = modes.initial(PLAIN)
    new = select(old, changed(only_page(old, 0x0A), offset, bits))
    assert question(new) and not question(old)
    back = select(new, changed(only_page(new, 0x0A), offset, bits, False))
    assert not question(back) and back == old


def test_parameters_reflect_the_current_pages():
    state = with_cache(modes.initial(PLAIN), True)
    assert modes.parameters(state) == (True, False, False, False) and modes.parameters(state).wce


@pytest.mark.parametrize('long_header', [False, True])
@pytest.mark.parametrize('llbaa', [False, True])
@pytest.mark.parametrize('dbd', [False, True])
def test_mode_sense_data_can_be_sent_back(long_header, llbaa, dbd):
    for facts in (PLAIN, THIN):
        state = modes.initial(facts)
        for control in (CURRENT, DEFAULT, SAVED):
            data = modes.mode_sense_data(
                state, facts, 0x3F, 0xFF, control, dbd, long_header, llbaa, BLOCKS
            )
            arguments = modes.parse_select(
                state, facts, memoryview(data), long_header, True, True, BLOCKS
            )
            assert modes.apply_mode_select(state, arguments) is state


def test_windows_writes_the_cache_page_with_its_block_descriptor():
    state = modes.initial(PLAIN)
    data = bytearray(sense(state, 0x08, dbd=False))
    data[0], data[12], data[14] = 0, data[12] & 0x7F, data[14] | 0x04
    arguments = modes.parse_select(state, PLAIN, data, False, True, True, BLOCKS)
    assert (
        modes.parameters(modes.apply_mode_select(state, arguments)).wce
        and arguments['save'] is True
    )


def test_an_empty_list_and_a_list_without_pages_change_nothing():
    state = modes.initial(PLAIN)
    for data in (b'', bytes(4), bytes(3) + b'\x08' + bytes(8)):
        for pf in (False, True):
            arguments = modes.parse_select(state, PLAIN, data, False, pf, False, BLOCKS)
            assert modes.apply_mode_select(state, arguments) is state


@pytest.mark.clause('SPC-4 6.11')
def test_pages_without_pf_are_refused():
    page = changed(only_page(modes.initial(PLAIN), 8), 2, 4)
    assert refusal(bytes(4) + page, pf=False) == ((5, 0x24, 0), (1, 4, True))


@pytest.mark.parametrize('length', [1, 2, 3])
def test_a_truncated_header_is_a_length_error(length):
    assert refusal(bytes(length)) == LENGTH_ERROR
    assert refusal(bytes(length + 4), long_header=True) == LENGTH_ERROR


def test_a_truncated_block_descriptor_is_a_length_error():
    assert refusal(bytes(3) + b'\x08' + bytes(7)) == LENGTH_ERROR
    assert (
        refusal(bytes(4) + b'\x01' + bytes(2) + b'\x10' + bytes(15), long_header=True)
        == LENGTH_ERROR
    )


def test_a_medium_type_is_refused():
    assert refusal(b'\0\x01\0\0') == bad_list(1)
    assert refusal(b'\0\0\x01' + bytes(5), long_header=True) == bad_list(2)


@pytest.mark.parametrize('length', [1, 7, 9, 16, 255])
def test_block_descriptors_of_wrong_length_are_refused(length):
    assert refusal(bytes(3) + bytes([length]) + bytes(length)) == bad_list(3)
    if length != 16:
        assert refusal(
            bytes(4) + b'\x01\0' + struct.pack('>H', length) + bytes(length), long_header=True
        ) == bad_list(6)
    assert refusal(bytes(7) + bytes([length]) + bytes(length), long_header=True) == bad_list(6)


@pytest.mark.parametrize('number', [0, 0xFFFFFFFF, BLOCKS])
@pytest.mark.parametrize('size', [0, 512, 0xAB000200])
def test_block_descriptors_without_a_change_are_accepted(number, size):
    state = modes.initial(PLAIN)
    data = bytes(3) + b'\x08' + struct.pack('>II', number, size)
    assert modes.parse_select(state, PLAIN, data, False, True, False, BLOCKS)['pages'] == {}


def test_block_descriptors_with_a_change_are_refused():
    assert refusal(bytes(3) + b'\x08' + struct.pack('>II', BLOCKS - 1, 512)) == bad_list(4)
    assert refusal(bytes(3) + b'\x08' + struct.pack('>II', BLOCKS, 520)) == bad_list(9)
    long_header = bytes(4) + b'\x01\0\0\x10'
    assert refusal(
        long_header + struct.pack('>QII', BLOCKS + 1, 0, 512), long_header=True
    ) == bad_list(8)
    assert refusal(
        long_header + struct.pack('>QII', BLOCKS, 0, 4096), long_header=True
    ) == bad_list(20)
    state = modes.initial(PLAIN)
    data = long_header + struct.pack('>QII', (1 << 64) - 1, 0, 512)
    assert modes.parse_select(state, PLAIN, data, True, True, False, BLOCKS)['pages'] == {}


def test_an_unsupported_page_is_refused():
    assert refusal(bytes(4) + b'\x05\x1e' + bytes(30)) == bad_list(4, 5)
    assert refusal(bytes(4) + b'\x3f\x00') == bad_list(4, 5)
    assert refusal(bytes(4) + b'\x48\x01\0\x10' + bytes(16)) == bad_list(4, 5)
    # page 08 does not have this format
    assert refusal(bytes(4) + b'\x48\x00\0\x10' + bytes(16)) == bad_list(4, 5)
    # provisioning, of a unit that is thick
    assert refusal(bytes(4) + b'\x5c\x02\0\x0c' + bytes(12)) == bad_list(4, 5)


def test_a_page_of_wrong_length_is_refused():
    assert refusal(bytes(4) + b'\x08\x0a' + bytes(10)) == bad_list(5)
    assert refusal(bytes(4) + b'\x4a\x01\0\x1d' + bytes(29)) == bad_list(6)


@pytest.mark.parametrize('cut', [1, 2, 10, 19])
def test_a_truncated_page_is_a_length_error(cut):
    assert (
        refusal(bytes(4) + changed(only_page(modes.initial(PLAIN), 8), 2, 4)[:cut]) == LENGTH_ERROR
    )


@pytest.mark.parametrize('cut', [1, 2, 3, 4, 31])
def test_a_truncated_subpage_is_a_length_error(cut):
    assert (
        refusal(bytes(4) + changed(only_page(modes.initial(PLAIN), 0x0A, 1), 0, 0)[:cut])
        == LENGTH_ERROR
    )


@pytest.mark.parametrize('code, subpage', CODES)
def test_no_other_bit_can_be_changed(code, subpage):
    state = modes.initial(THIN)
    page = only_page(state, code, subpage, facts=THIN)
    mask = only_page(state, code, subpage, CHANGEABLE, THIN)
    first = 4 if subpage else 2
    for offset in range(first, len(page)):
        for bit in range(8):
            sent = bytes(4) + changed(page, offset, 1 << bit, not page[offset] >> bit & 1)
            if (code, subpage, offset, bit) == (0x1C, 0, 3, 2):  # MRIE 4h, which no unit has
                assert refusal(sent, state, facts=THIN) == bad_list(4 + offset, 3)
            elif mask[offset] >> bit & 1:
                modes.parse_select(state, THIN, sent, False, True, False, BLOCKS)
            else:
                assert refusal(sent, state, facts=THIN) == bad_list(4 + offset, bit)


def test_the_field_pointer_is_in_the_page_in_error():
    state = modes.initial(PLAIN)
    good, bad = changed(only_page(state, 8), 2, 4), changed(only_page(state, 0x0A), 3, 0x80)
    assert refusal(bytes(4) + good + bad) == bad_list(4 + 20 + 3, 7)


def test_reverting_to_the_defaults():
    state = with_cache(modes.initial(PLAIN), True, save=True)
    arguments = modes.parse_select(state, PLAIN, b'', False, True, False, BLOCKS, True)
    assert modes.apply_mode_select(state, arguments)['current'] == state['default'] and modes.saved(
        modes.apply_mode_select(state, arguments)
    )
    arguments = modes.parse_select(state, PLAIN, b'', False, True, True, BLOCKS, True)
    assert modes.apply_mode_select(state, arguments) == modes.initial(PLAIN)
    assert refusal(bytes(4), rtd=True) == ((5, 0x24, 0), (1, 1, True))


# -- what the master does --------------------------------------------------------------------------


def test_other_keys_of_the_arguments_are_ignored():
    state = modes.initial(PLAIN)
    arguments = modes.parse_select(
        state, PLAIN, bytes(4) + changed(only_page(state, 8), 2, 4), False, True, False, BLOCKS
    )
    assert modes.parameters(
        modes.apply_mode_select(state, dict(arguments, ask='mode-select', id=4, unit='u'))
    ).wce


def test_concurrent_changes_of_different_bits():
    state = modes.initial(PLAIN)
    one = modes.parse_select(
        state, PLAIN, bytes(4) + changed(only_page(state, 8), 2, 4), False, True, False, BLOCKS
    )
    two = modes.parse_select(
        state,
        PLAIN,
        bytes(4) + changed(only_page(state, 0x0A), 5, 0x40),
        False,
        True,
        False,
        BLOCKS,
    )
    both = modes.apply_mode_select(modes.apply_mode_select(state, one), two)
    assert modes.parameters(both).wce and modes.parameters(both).tas


@pytest.mark.parametrize(
    'pages',
    [
        None,
        [],
        {'09-00': '00'},
        {'1c-02': '00' * 16},
        {'08-00': None},
        {'08-00': 'zz' * 20},
        {'08-00': '0812'},
        {'08-00': '08120400ffff0000ffffffff00000000000000001'},
        {'08-00': '08120500ffff0000ffffffff0000000000000000'},
        {'08-00': '08130400ffff0000ffffffff0000000000000000'},
    ],
    ids=str,
)
def test_invalid_pages_of_a_worker_are_refused(pages):
    with pytest.raises(ValueError):
        modes.apply_mode_select(modes.initial(PLAIN), {'pages': pages, 'save': False})


def test_a_reset_restores_the_saved_pages():
    state = with_cache(modes.initial(PLAIN), True, save=True)
    assert modes.reset(state) is state
    changed_since = with_cache(state, False)
    assert not modes.parameters(changed_since).wce
    assert modes.reset(changed_since) == state
    assert modes.reset(with_cache(modes.initial(PLAIN), True)) == modes.initial(PLAIN)


def test_saved_pages_persist_through_a_restart():
    state = with_cache(modes.initial(THIN), True, save=True)
    kept = json.loads(json.dumps(modes.saved(state)))
    assert list(kept) == ['08-00']
    assert modes.restore(THIN, kept) == state
    assert modes.saved(modes.initial(THIN)) == {}
    for nothing in (None, {}):
        assert modes.restore(THIN, nothing) == modes.initial(THIN)


def test_a_saved_page_does_not_restore_unchangeable_bits():
    kept = {
        '08-00': 'ff' * 20,
        '0a-00': '0a0a0010000000000032' + '0000',
        '1c-02': '00' * 16,
        '99-00': 'whatever',
    }
    state = modes.restore(PLAIN, kept)
    assert changed(only_page(state, 8), 2, 0) == changed(
        only_page(modes.initial(PLAIN), 8), 2, 4
    ), 'WCE alone was taken'
    assert only_page(state, 0x0A)[2] & 0x02, 'GLTSD cannot be changed'


def test_the_configured_write_cache_is_used_until_a_value_is_saved():
    assert modes.parameters(modes.restore(PLAIN, {}, write_cache=True)).wce
    off = modes.saved(with_cache(modes.initial(PLAIN, True), False, save=True))
    assert not modes.parameters(modes.restore(PLAIN, off, write_cache=True)).wce


@pytest.mark.parametrize(
    'kept', [[], 'text', {'08-00': 7}, {'08-00': '08'}, {'08-00': 'gg' * 20}], ids=str
)
def test_damaged_saved_state_is_an_error(kept):
    with pytest.raises(ValueError):
        modes.restore(PLAIN, kept)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80), st.booleans(), st.booleans())
def test_any_list_is_parsed_or_refused(data, long_header, pf):
    state = modes.initial(THIN)
    try:
        arguments = modes.parse_select(state, THIN, data, long_header, pf, False, BLOCKS)
    except CheckCondition as e:
        assert (e.key, e.asc, e.ascq) in ((5, 0x1A, 0), (5, 0x26, 0), (5, 0x24, 0))
        assert e.asc != 0x26 or e.field[0] < len(data)
    else:
        modes.apply_mode_select(state, arguments)


# -- thresholds ------------------------------------------------------------------------------------


def test_the_threshold_of_available_space_is_as_configured_and_the_other_is_off():
    page = only_page(modes.initial(THIN), 0x1C, 2, facts=THIN)
    assert page[16:] == bytes.fromhex('8001 0000 00001234 0102 0000 00000000')
    assert modes.thresholds(modes.initial(THIN)) == [
        modes.Threshold(0, modes.AVAILABLE, False, 0x1234)
    ]
    assert modes.thresholds(modes.initial(PLAIN)) == []


def test_an_initiator_sets_thresholds():
    page = bytearray(only_page(modes.initial(THIN), 0x1C, 2, facts=THIN))
    page[0] &= 0x7F
    page[16] = 0
    page[24:32] = bytes.fromhex('8102 0000 00000777')
    state = select(modes.initial(THIN), bytes(page), facts=THIN)
    assert modes.thresholds(state) == [modes.Threshold(1, modes.USED, True, 0x777)]


def test_no_threshold_is_enabled_without_lbpere():
    state = modes.initial(THIN)
    page = only_page(state, 0x01, facts=THIN)
    assert page[3] & 0x80 and not only_page(modes.initial(PLAIN), 0x01)[3] & 0x80
    assert modes.thresholds(select(state, changed(page, 3, 0x80, on=False), facts=THIN)) == []


# -- pages that the configuration writes -----------------------------------------------------------

WRITTEN = UnitFacts.from_message(
    {
        'mode_pages': '08-00:08120400ffff0000ffffffff8014000000000000,02-00:020e8080000a%s,'
        '20-00:2003010203,0a-05:4a050001aa,03-00:0316%s' % ('00' * 10, '11' * 22)
    }
)


def test_configured_pages_are_reported_as_configured():
    state = modes.initial(WRITTEN)
    pages = split(sense(state, 0x3F, 0xFF, facts=WRITTEN))[4]
    assert list(pages) == sorted(pages)
    assert pages[0x02, 0] == bytes.fromhex('020e8080000a') + bytes(10)
    assert pages[0x20, 0] == bytes.fromhex('2003010203') and pages[0x0A, 5] == bytes.fromhex(
        '4a050001aa'
    )
    assert pages[0x03, 0] == bytes([0x03, 22]) + b'\x11' * 22
    assert pages[0x08, 0][12:14] == b'\x80\x14' and modes.parameters(state).wce
    assert only_page(state, 0x20, control=CHANGEABLE, facts=WRITTEN) == b'\x20\x03\0\0\0'


def test_configured_pages_have_the_same_changeable_bits():
    state = modes.initial(WRITTEN)
    page = changed(only_page(state, 8, facts=WRITTEN), 2, 4, on=False)
    new = select(state, page, facts=WRITTEN)
    assert not modes.parameters(new).wce
    unknown = only_page(state, 0x20, facts=WRITTEN)
    assert (
        modes.parse_select(state, WRITTEN, bytes(4) + unknown, False, True, True, BLOCKS)['pages']
        == {}
    )
    assert refusal(bytes(4) + changed(unknown, 2, 0x80), state, facts=WRITTEN) == bad_list(4 + 2, 7)
    with pytest.raises(ValueError):
        modes.apply_mode_select(state, {'pages': {'20-00': '2003010203'}, 'save': False})


def test_a_configured_page_of_wrong_length_is_refused():
    with pytest.raises(ValueError):
        modes.initial(UnitFacts.from_message({'mode_pages': '08-00:080a' + '00' * 10}))
