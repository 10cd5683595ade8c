import pytest

from targetd.scsi import sense
from targetd.scsi.sense import COPY_ABORTED, MEDIUM_ERROR, CheckCondition, CopyFailure


def test_fixed_format_of_a_medium_error_names_the_block():
    data = CheckCondition(sense.MEDIUM_ERROR, 0x11, 0x00, information=0x1234).sense()
    assert len(data) == 18
    assert data[0] == 0xF0  # VALID, current, fixed
    assert data[2] == 3
    assert data[3:7] == bytes.fromhex('00001234')
    assert data[7] == 10  # ADDITIONAL SENSE LENGTH
    assert data[12:14] == b'\x11\x00'


def test_fixed_format_leaves_valid_off_when_the_information_does_not_fit():
    data = CheckCondition(sense.MEDIUM_ERROR, 0x11, 0x00, information=1 << 32).sense()
    assert data[0] == 0x70
    assert data[3:7] == bytes(4)


def test_fixed_format_points_at_the_field():
    data = sense.invalid_field_in_cdb(7, 3).sense()
    assert data[2] == 5 and data[12:14] == b'\x24\x00'
    assert data[15:18] == bytes([0x80 | 0x40 | 0x08 | 3, 0, 7])


def test_a_field_of_the_parameter_list_is_not_one_of_the_cdb():
    data = sense.invalid_field_in_parameter_list(300).sense()
    assert data[12:14] == b'\x26\x00'
    assert data[15:18] == bytes([0x80, 300 >> 8, 300 & 0xFF])


def test_descriptor_format_carries_64_bits_of_information_and_the_field_pointer():
    data = CheckCondition(
        sense.ILLEGAL_REQUEST, 0x24, 0, information=1 << 40, field=(9, None, True)
    ).sense(True)
    assert data[:4] == bytes([0x72, 5, 0x24, 0])
    assert data[7] == len(data) - 8 == 12 + 8
    assert data[8:12] == bytes([0x00, 0x0A, 0x80, 0])
    assert int.from_bytes(data[12:20], 'big') == 1 << 40
    assert data[20:22] == bytes([0x02, 0x06])
    assert data[24:27] == bytes([0xC0, 0, 9])


def test_descriptor_format_of_plain_sense_is_eight_bytes():
    assert CheckCondition(sense.NO_SENSE, 0, 0).sense(True) == bytes([0x72, 0, 0, 0, 0, 0, 0, 0])


def test_progress_is_reported_in_both_formats():
    error = CheckCondition(sense.NOT_READY, 0x04, 0x04, progress=0x8000)
    assert error.sense()[15:18] == b'\x80\x80\x00'
    assert error.sense(True)[12:15] == b'\x80\x80\x00'


@pytest.mark.parametrize(
    'error, words',
    [
        (sense.invalid_opcode(), 'ILLEGAL REQUEST: invalid command operation code (5/20/00)'),
        (sense.lba_out_of_range(), 'ILLEGAL REQUEST: logical block address out of range (5/21/00)'),
        (sense.miscompare(3), 'MISCOMPARE: miscompare during verify operation (E/1D/00)'),
        (sense.unit_not_supported(), 'ILLEGAL REQUEST: logical unit not supported (5/25/00)'),
        (
            sense.parameter_list_length_error(),
            'ILLEGAL REQUEST: parameter list length error (5/1A/00)',
        ),
        (
            sense.invalid_field_in_information_unit(),
            'ILLEGAL REQUEST: invalid field in command information unit (5/0E/03)',
        ),
    ],
)
def test_describe_returns_readable_text(error, words):
    assert sense.describe(error.key, error.asc, error.ascq) == words


def test_describe_contains_the_numbers_of_an_unknown_code():
    assert sense.describe(4, 0x80, 0x01).endswith('(4/80/01)')


def test_a_failed_copy_has_a_segment_pointer_and_forwarded_sense_data():
    said = CheckCondition(MEDIUM_ERROR, 0x11, 0x00).sense()
    error = CheckCondition(
        COPY_ABORTED, 0x0D, 0x01, field=(12, None, True), copy=CopyFailure(3, True, 0x02, said)
    )
    fixed = error.sense()
    assert fixed[2] == COPY_ABORTED and fixed[8:12] == bytes([18, 0, 0, 3])
    assert fixed[15:18] == b'\xa0\x00\x0c'  # SKSV and SD, not C/D
    assert fixed[18] == 0x02 and fixed[19:] == said and fixed[7] == len(fixed) - 8
    descriptors = error.sense(True)
    assert descriptors[7] == len(descriptors) - 8
    assert b'\x01\x0a\x00\x00' + (3).to_bytes(8, 'big') in descriptors
    assert bytes([0x0C, 2 + len(said), 1, 0x02]) + said in descriptors


def test_a_copy_without_a_failed_command_has_only_its_segment():
    fixed = CheckCondition(COPY_ABORTED, 0x08, 0x04, copy=CopyFailure(7)).sense()
    assert len(fixed) == 18 and fixed[8:12] == bytes([0, 0, 0, 7])
