"""PDUs: their bytes are those of the figures in RFC 7143 11, and encoding and decoding keep every
field."""

import struct

import pytest

from targetd.iscsi import const, pdu
from targetd.iscsi.errors import PduRejected

EVERY = sorted(
    list(pdu.FROM_INITIATOR.values()) + list(pdu.FROM_TARGET.values()), key=lambda cls: cls.__name__
)


#: (PDU, its header in hexadecimal as RFC 7143 11 shows it)
FIGURES = [
    (
        pdu.ScsiCommand(
            final=True,
            read=True,
            attribute=1,
            lun=0x0001000000000000,
            itt=0x10,
            edtl=0x200,
            cmd_sn=7,
            exp_stat_sn=8,
            cdb=bytes.fromhex('28000000000000000100') + bytes(6),
        ),
        '01c10000 00000000 0001000000000000 00000010 00000200 '
        '00000007 00000008 28000000 00000000 01000000 00000000',
    ),
    (
        pdu.ScsiResponse(
            status=2,
            underflow=True,
            itt=0x10,
            stat_sn=1,
            exp_cmd_sn=2,
            max_cmd_sn=3,
            exp_data_sn=4,
            residual_count=5,
        ),
        '21820002 00000000 0000000000000000 00000010 00000000 '
        '00000001 00000002 00000003 00000004 00000000 00000005',
    ),
    (
        pdu.TaskManagementRequest(
            immediate=True,
            function=const.ABORT_TASK,
            lun=1,
            itt=2,
            referenced_task_tag=3,
            cmd_sn=4,
            exp_stat_sn=5,
            ref_cmd_sn=6,
            exp_data_sn=7,
        ),
        '42810000 00000000 0000000000000001 00000002 00000003 '
        '00000004 00000005 00000006 00000007 00000000 00000000',
    ),
    (
        pdu.TaskManagementResponse(
            response=const.FUNCTION_NOT_SUPPORTED, itt=2, stat_sn=3, exp_cmd_sn=4, max_cmd_sn=5
        ),
        '22800500 00000000 0000000000000000 00000002 00000000 '
        '00000003 00000004 00000005 00000000 00000000 00000000',
    ),
    (
        pdu.DataOut(final=True, lun=1, itt=2, ttt=3, exp_stat_sn=4, data_sn=5, buffer_offset=6),
        '05800000 00000000 0000000000000001 00000002 00000003 '
        '00000000 00000004 00000000 00000005 00000006 00000000',
    ),
    (
        pdu.DataIn(
            final=True,
            has_status=True,
            underflow=True,
            itt=2,
            stat_sn=3,
            exp_cmd_sn=4,
            max_cmd_sn=5,
            data_sn=6,
            buffer_offset=7,
            residual_count=8,
        ),
        '25830000 00000000 0000000000000000 00000002 ffffffff '
        '00000003 00000004 00000005 00000006 00000007 00000008',
    ),
    (
        pdu.ReadyToTransfer(
            lun=1,
            itt=2,
            ttt=3,
            stat_sn=4,
            exp_cmd_sn=5,
            max_cmd_sn=6,
            r2t_sn=7,
            buffer_offset=8,
            desired_length=9,
        ),
        '31800000 00000000 0000000000000001 00000002 00000003 '
        '00000004 00000005 00000006 00000007 00000008 00000009',
    ),
    (
        pdu.AsyncMessage(
            event=const.ASYNC_LOGOUT_REQUESTED, stat_sn=1, exp_cmd_sn=2, max_cmd_sn=3, parameter3=10
        ),
        '32800000 00000000 0000000000000000 ffffffff 00000000 '
        '00000001 00000002 00000003 01000000 0000000a 00000000',
    ),
    (
        pdu.TextRequest(final=True, itt=1, cmd_sn=2, exp_stat_sn=3),
        '04800000 00000000 0000000000000000 00000001 ffffffff '
        '00000002 00000003 00000000 00000000 00000000 00000000',
    ),
    (
        pdu.TextResponse(continues=True, itt=1, ttt=2, stat_sn=3, exp_cmd_sn=4, max_cmd_sn=5),
        '24400000 00000000 0000000000000000 00000001 00000002 '
        '00000003 00000004 00000005 00000000 00000000 00000000',
    ),
    (
        pdu.LoginRequest(
            immediate=True,
            transit=True,
            csg=1,
            nsg=3,
            isid=bytes.fromhex('400001370000'),
            tsih=9,
            itt=1,
            cid=1,
            cmd_sn=2,
            exp_stat_sn=3,
        ),
        '43870000 00000000 4000013700000009 00000001 00010000 '
        '00000002 00000003 00000000 00000000 00000000 00000000',
    ),
    (
        pdu.LoginResponse(
            csg=1,
            continues=True,
            isid=bytes.fromhex('400001370000'),
            itt=1,
            stat_sn=2,
            exp_cmd_sn=3,
            max_cmd_sn=4,
            status_class=2,
            status_detail=3,
        ),
        '23440000 00000000 4000013700000000 00000001 00000000 '
        '00000002 00000003 00000004 02030000 00000000 00000000',
    ),
    (
        pdu.LogoutRequest(
            immediate=True, reason=const.CLOSE_CONNECTION, itt=1, cid=2, cmd_sn=3, exp_stat_sn=4
        ),
        '46810000 00000000 0000000000000000 00000001 00020000 '
        '00000003 00000004 00000000 00000000 00000000 00000000',
    ),
    (
        pdu.LogoutResponse(
            response=1, itt=1, stat_sn=2, exp_cmd_sn=3, max_cmd_sn=4, time2wait=5, time2retain=6
        ),
        '26800100 00000000 0000000000000000 00000001 00000000 '
        '00000002 00000003 00000004 00000000 00050006 00000000',
    ),
    (
        pdu.SnackRequest(kind=const.SNACK_STATUS, exp_stat_sn=1, beg_run=2, run_length=3),
        '10810000 00000000 0000000000000000 ffffffff ffffffff '
        '00000000 00000001 00000000 00000000 00000002 00000003',
    ),
    (
        pdu.Reject(
            reason=const.REJECT_PROTOCOL_ERROR, stat_sn=1, exp_cmd_sn=2, max_cmd_sn=3, data_sn=4
        ),
        '3f800400 00000000 0000000000000000 ffffffff 00000000 '
        '00000001 00000002 00000003 00000004 00000000 00000000',
    ),
    (
        pdu.NopOut(immediate=True, itt=1, cmd_sn=2, exp_stat_sn=3),
        '40800000 00000000 0000000000000000 00000001 ffffffff '
        '00000002 00000003 00000000 00000000 00000000 00000000',
    ),
    (
        pdu.NopIn(ttt=1, stat_sn=2, exp_cmd_sn=3, max_cmd_sn=4),
        '20800000 00000000 0000000000000000 ffffffff 00000001 '
        '00000002 00000003 00000004 00000000 00000000 00000000',
    ),
]


def distinct(cls):
    """A PDU with another value in each field, small enough for the narrowest."""
    filled = cls()
    for number, name in enumerate(cls.fields, 1):
        if name is not None:
            old = getattr(filled, name)
            setattr(filled, name, bytes([number]) * len(old) if isinstance(old, bytes) else number)
    return filled


def test_all_opcodes_have_a_class_and_a_name():
    assert set(pdu.FROM_INITIATOR) | set(pdu.FROM_TARGET) == set(const.OPCODE_NAMES)
    assert all(not opcode & 0x20 for opcode in pdu.FROM_INITIATOR)
    assert all(opcode & 0x20 for opcode in pdu.FROM_TARGET)


@pytest.mark.parametrize('cls', EVERY)
def test_every_field_is_decoded_as_it_was_encoded(cls):
    sent = distinct(cls)
    sent.immediate = True
    sent.ahs, sent.data = b'\0\5\2\0\0\0\0\1', b'data'
    bhs = sent.encode()
    assert len(bhs) == const.BHS_LENGTH
    assert bhs[0] == cls.opcode | 0x40
    assert bhs[4] == 2 and bhs[5:8] == b'\0\0\4'
    got = cls.decode(bhs, sent.ahs, sent.data)
    assert got.encode() == bhs
    assert got.immediate and got.flags == sent.flags
    assert [getattr(got, name) for name in cls.fields if name] == [
        getattr(sent, name) for name in cls.fields if name
    ]


@pytest.mark.clause('RFC 7143 11.1')
@pytest.mark.parametrize('cls', EVERY)
def test_only_reserved_bits_are_lost(cls):
    """A header of ones is encoded again as ones, except for the reserved bytes, which are zero."""
    bhs = bytes([0xC0 | cls.opcode]) + b'\xff' * 3 + b'\0\0\0\0' + b'\xff' * 40
    once = cls.decode(bhs).encode()
    assert cls.decode(once).encode() == once
    assert set(once[1:4] + once[8:]) <= {0x00, 0xFF}


@pytest.mark.parametrize('cls', EVERY)
def test_pdus_refuse_unknown_attributes(cls):
    with pytest.raises(AttributeError):
        cls().no_such_field = 1
    with pytest.raises(AttributeError):
        cls(no_such_field=1)


@pytest.mark.parametrize('cls', [cls for cls in EVERY if cls.opcode in pdu.FROM_TARGET])
def test_target_pdus_have_their_sequence_numbers_in_bytes_24_to_35(cls):
    stamped = cls(stat_sn=0x11223344, exp_cmd_sn=0x55667788, max_cmd_sn=0x99AABBCC)
    assert stamped.encode()[24:36] == bytes.fromhex('112233445566778899aabbcc')


def test_decode_accepts_none_for_absent_data():
    got = pdu.NopOut.decode(pdu.NopOut().encode(), None, None)
    assert got.ahs == b'' and got.data == b''


@pytest.mark.parametrize('sent, text', FIGURES)
def test_bytes_are_those_of_the_figures(sent, text):
    assert sent.encode().hex() == text.replace(' ', '')


def test_flags_are_set_and_cleared_individually():
    command = pdu.ScsiCommand(final=True, write=True, attribute=3)
    assert (command.final, command.read, command.write, command.attribute) == (True, False, True, 3)
    command.write = False
    command.attribute = 0
    assert command.flags == const.FINAL
    response = pdu.ScsiResponse(bidi_overflow=True, bidi_underflow=True, overflow=True)
    assert response.flags == 0x9C and response.bidi_overflow and not response.underflow
    assert pdu.DataIn(acknowledge=True).flags == 0x40
    with pytest.raises(ValueError):
        command.attribute = 8


def test_flag_attributes_of_the_class_have_mask_and_shift():
    assert pdu.ScsiCommand.read.mask == const.COMMAND_READ
    assert pdu.LoginRequest.csg.shift == 2


def test_a_field_that_does_not_fit_is_an_error():
    with pytest.raises(struct.error):
        pdu.NopIn(itt=1 << 32).encode()


def test_login_status_reads_as_a_pair():
    refusal = pdu.LoginResponse(status_class=2, status_detail=1)
    assert refusal.status == const.AUTHENTICATION_FAILURE
    assert const.login_status_name(*refusal.status) == '0201 authentication failure'
    assert const.login_status_name(9, 9) == '0909 unknown login status'


def test_sense_data_follows_its_length():
    response = pdu.ScsiResponse(status=2)
    assert response.sense == b''
    response.sense = b'\x70' + bytes(17)
    assert response.data == b'\x00\x12\x70' + bytes(17)
    assert pdu.ScsiResponse.decode(
        response.encode(), b'', response.data + b'extra'
    ).sense == b'\x70' + bytes(17)
    response.sense = b''
    assert response.data == b''


def test_repr_names_fields_and_not_the_data():
    shown = repr(pdu.NopOut(itt=5, data=b'secret'))
    assert 'NopOut' in shown and 'itt=5' in shown and '6 bytes' in shown and 'secret' not in shown


def test_decode_picks_the_class_by_opcode():
    got = pdu.decode(pdu.LogoutRequest(immediate=True, itt=3).encode())
    assert type(got) is pdu.LogoutRequest and got.itt == 3
    assert type(pdu.decode(pdu.Reject().encode(), classes=pdu.FROM_TARGET)) is pdu.Reject


@pytest.mark.parametrize('opcode', [0x07, 0x1C, 0x20, 0x3E])
def test_unknown_opcodes_are_rejected(opcode):
    with pytest.raises(PduRejected) as refusal:
        pdu.decode(bytes([opcode]) + bytes(47))
    assert refusal.value.reason == const.REJECT_COMMAND_NOT_SUPPORTED


# -- additional header segments --------------------------------------------------------------------


@pytest.mark.clause('RFC 7143 11.2.2')
def test_extended_cdb_and_read_length():
    ahs = pdu.encode_ahs(b'\x01\x02\x03', 0x1000)
    assert ahs == bytes.fromhex('00040100 01020300'.replace(' ', '')) + bytes.fromhex(
        '0005020000001000'
    )
    assert pdu.decode_ahs(ahs) == (b'\x01\x02\x03', 0x1000)
    command = pdu.ScsiCommand(cdb=b'\x7f' + bytes(15), ahs=pdu.encode_ahs(b'\xaa' * 16))
    assert command.whole_cdb() == b'\x7f' + bytes(15) + b'\xaa' * 16
    assert command.encode()[4] == 5
    assert pdu.ScsiCommand(cdb=bytes(16)).whole_cdb() == bytes(16)
    assert pdu.decode_ahs(b'') == (b'', None)
    assert pdu.encode_ahs() == b''


@pytest.mark.clause('RFC 7143 11.2.2')
@pytest.mark.parametrize(
    'ahs',
    [
        '0005',  # cut short in its header
        '0000010000000000',  # length 0
        '0009010000000000',  # longer than what there is
        '0001010000000000',  # an extended CDB of nothing
        '0005020000000100 0005020000000100',  # two read lengths
        '00020100aa000000 00020100aa000000',  # two extended CDBs
        '0003020000000000',  # a read length of two bytes
        '0005030000000000',  # an unknown type
    ],
)
def test_broken_additional_headers_are_rejected(ahs):
    with pytest.raises(PduRejected) as refusal:
        pdu.decode_ahs(bytes.fromhex(ahs.replace(' ', '')))
    assert refusal.value.reason == const.REJECT_INVALID_PDU_FIELD
