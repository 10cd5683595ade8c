"""Every PDU of RFC 7143 11: its 48-byte layout, and a small class around it for both directions.

Pure; imports const, errors. The `struct.Struct` layouts are public because the hot path packs and
unpacks them directly. Their tuples are in the order of the classes' `fields`: opcode byte, flags byte,
then the fields, with the word of TotalAHSLength and DataSegmentLength at its position. Invariants:

* `Class.decode(bhs, ahs, data).encode()` equals `bhs`, except for bits that RFC 7143 reserves.
* encode() computes both lengths from `ahs` and `data`; the sender and the receiver handle padding and
  digests.
* A constructor accepts any field or bit by name and sets the others to 0 (tags: RESERVED_TAG; flags:
  the bits that the RFC shows as constant).
"""

import struct
from collections import namedtuple
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Sequence, Type, Union

from targetd.iscsi import const
from targetd.iscsi.errors import PduRejected

# Layouts: opcode B, flags B, …; the word at byte 4 is TotalAHSLength << 24 | DataSegmentLength.
NOP_OUT = struct.Struct('>BBxxIQIIII16x')  # lun itt ttt cmd_sn exp_stat_sn
SCSI_COMMAND = struct.Struct('>BBBxIQIIII16s')  # priority; lun itt edtl cmd_sn exp_stat_sn cdb
# lun itt referenced_task_tag cmd_sn exp_stat_sn ref_… exp_data_sn
TASK_MANAGEMENT_REQUEST = struct.Struct('>BBxxIQIIIIII8x')
# version_max version_min; isid tsih itt cid cmd_sn exp_stat_sn
LOGIN_REQUEST = struct.Struct('>BBBBI6sHIHxxII16x')
TEXT_REQUEST = struct.Struct('>BBxxIQIIII16x')  # lun itt ttt cmd_sn exp_stat_sn
DATA_OUT = struct.Struct('>BBxxIQII4xI4xII4x')  # lun itt ttt exp_stat_sn data_sn buffer_offset
LOGOUT_REQUEST = struct.Struct('>BBxxI8xIHxxII16x')  # itt cid cmd_sn exp_stat_sn
SNACK_REQUEST = struct.Struct('>BBxxIQII4xI8xII')  # lun itt ttt exp_stat_sn beg_run run_length

NOP_IN = struct.Struct('>BBxxIQIIIII12x')  # lun itt ttt stat_sn exp_cmd_sn max_cmd_sn
# response status; status_qualifier itt snack_tag, SNs …
SCSI_RESPONSE = struct.Struct('>BBBBIH6xIIIIIIII')
# response; additional_information itt, SNs
TASK_MANAGEMENT_RESPONSE = struct.Struct('>BBBxI3s5xI4xIII12x')
# version_max version_active; isid tsih itt, SNs, status
LOGIN_RESPONSE = struct.Struct('>BBBBI6sHI4xIIIBB10x')
TEXT_RESPONSE = struct.Struct('>BBxxIQIIIII12x')  # lun itt ttt, SNs
# status; lun itt ttt, SNs, data_sn buffer_offset residual_count
DATA_IN = struct.Struct('>BBxBIQIIIIIIII')
LOGOUT_RESPONSE = struct.Struct('>BBBxI8xI4xIII4xHH4x')  # response; itt, SNs, time2wait time2retain
# lun itt ttt, SNs, r2t_sn buffer_offset desired_length
READY_TO_TRANSFER = struct.Struct('>BBxxIQIIIIIIII')
# lun itt, SNs, event vendor_code parameter1..3
ASYNC_MESSAGE = struct.Struct('>BBxxIQI4xIIIBBHHH4x')
REJECT = struct.Struct('>BBBxI8xI4xIIII8x')  # reason; itt, SNs, data_sn


#: AHS or data of a PDU
BytesLike = Union[bytes, bytearray, memoryview]


class Bit(object):
    """A bit of the flags byte, read and written as a bool."""

    def __init__(self, mask: int) -> None:
        self.mask = mask

    def __get__(self, pdu: Any, owner: Any = None) -> Any:
        if pdu is None:
            return self
        return bool(pdu.flags & self.mask)

    def __set__(self, pdu: Any, value: Any) -> None:
        pdu.flags = pdu.flags | self.mask if value else pdu.flags & ~self.mask


class Bits(object):
    """Adjacent bits of the flags byte, read and written as an int."""

    def __init__(self, mask: int, shift: int = 0) -> None:
        self.mask = mask
        self.shift = shift

    def __get__(self, pdu: Any, owner: Any = None) -> Any:
        if pdu is None:
            return self
        return pdu.flags >> self.shift & self.mask

    def __set__(self, pdu: Any, value: int) -> None:
        if value & ~self.mask:
            raise ValueError('%d does not fit into the field' % value)
        pdu.flags = pdu.flags & ~(self.mask << self.shift) | value << self.shift


class Pdu(object):
    """Base class of all PDUs. A subclass has `opcode`, `layout`, `fields` (names in the layout's
    order without the opcode and flags bytes, None for the length word) and `initial` (fields whose
    initial value is not 0).

    `immediate`: the I bit; `flags`: byte 1 of the header; `ahs`, `data`: bytes-like, without padding.
    """

    __slots__ = ('flags', 'immediate', 'ahs', 'data')

    opcode: Any = None
    layout: Any = None
    fields: Sequence[Optional[str]] = ()
    initial: Dict[str, Any] = {}
    constant_flags = 0
    final = Bit(const.FINAL)

    def __init__(self, **values: Any) -> None:
        self.flags = self.constant_flags
        self.immediate = False
        self.ahs: BytesLike = b''
        self.data: BytesLike = b''
        for name in self.fields:
            if name is not None:
                setattr(self, name, self.initial.get(name, 0))
        for name, value in values.items():
            setattr(self, name, value)

    if TYPE_CHECKING:  # the attributes are those that `fields` names

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

    @classmethod
    def decode(
        cls, bhs: BytesLike, ahs: Optional[BytesLike] = b'', data: Optional[BytesLike] = b''
    ) -> Any:
        """Return the PDU of a 48-byte header with this class's opcode. ahs, data: bytes-like, or
        None, as a Framer returns them."""
        pdu = cls.__new__(cls)
        values = cls.layout.unpack(bhs)
        pdu.immediate = bool(values[0] & const.IMMEDIATE)
        pdu.flags = values[1]
        pdu.ahs = b'' if ahs is None else ahs
        pdu.data = b'' if data is None else data
        for name, value in zip(cls.fields, values[2:]):
            if name is not None:
                setattr(pdu, name, value)
        return pdu

    def encode(self) -> bytes:
        """Return the 48-byte header. Raises struct.error if a field does not fit."""
        lengths = len(self.ahs) // const.AHS_UNIT << 24 | len(self.data)
        return self.layout.pack(
            self.opcode | (const.IMMEDIATE if self.immediate else 0),
            self.flags,
            *[lengths if name is None else getattr(self, name) for name in self.fields],
        )

    def __repr__(self) -> str:
        shown = ['%s=%r' % (name, getattr(self, name)) for name in self.fields if name is not None]
        return '<%s flags=%02X %s, %d bytes>' % (
            type(self).__name__,
            self.flags,
            ' '.join(shown),
            len(self.data),
        )


# -- initiator to target ---------------------------------------------------------------------------


class NopOut(Pdu):
    """RFC 7143 11.18."""

    __slots__ = ('lun', 'itt', 'ttt', 'cmd_sn', 'exp_stat_sn')
    opcode = const.NOP_OUT
    layout = NOP_OUT
    fields = (None,) + __slots__
    initial = {'itt': const.RESERVED_TAG, 'ttt': const.RESERVED_TAG}
    constant_flags = const.FINAL


class ScsiCommand(Pdu):
    """RFC 7143 11.3. `cdb`: the 16 bytes in the header; a longer CDB continues in an AHS
    (`whole_cdb`)."""

    __slots__ = ('priority', 'lun', 'itt', 'edtl', 'cmd_sn', 'exp_stat_sn', 'cdb')
    opcode = const.SCSI_COMMAND
    layout = SCSI_COMMAND
    fields = ('priority', None) + __slots__[1:]
    initial = {'cdb': bytes(16)}
    read = Bit(const.COMMAND_READ)
    write = Bit(const.COMMAND_WRITE)
    attribute = Bits(const.ATTRIBUTE_MASK)

    def whole_cdb(self) -> bytes:
        """Return the CDB including an extended CDB AHS (RFC 7143 11.2.2.3). Raises PduRejected."""
        return bytes(self.cdb) + decode_ahs(self.ahs).extended_cdb


class TaskManagementRequest(Pdu):
    """RFC 7143 11.5."""

    __slots__ = (
        'lun',
        'itt',
        'referenced_task_tag',
        'cmd_sn',
        'exp_stat_sn',
        'ref_cmd_sn',
        'exp_data_sn',
    )
    opcode = const.TASK_MANAGEMENT_REQUEST
    layout = TASK_MANAGEMENT_REQUEST
    fields = (None,) + __slots__
    initial = {'referenced_task_tag': const.RESERVED_TAG}
    constant_flags = const.FINAL
    function = Bits(const.FUNCTION_MASK)


class LoginRequest(Pdu):
    """RFC 7143 11.12. `isid`: 6 bytes."""

    __slots__ = (
        'version_max',
        'version_min',
        'isid',
        'tsih',
        'itt',
        'cid',
        'cmd_sn',
        'exp_stat_sn',
    )
    opcode = const.LOGIN_REQUEST
    layout = LOGIN_REQUEST
    fields = ('version_max', 'version_min', None) + __slots__[2:]
    initial = {'isid': bytes(6)}
    transit = Bit(const.TRANSIT)
    continues = Bit(const.CONTINUE)
    csg = Bits(3, 2)
    nsg = Bits(3)


class TextRequest(Pdu):
    """RFC 7143 11.10."""

    __slots__ = ('lun', 'itt', 'ttt', 'cmd_sn', 'exp_stat_sn')
    opcode = const.TEXT_REQUEST
    layout = TEXT_REQUEST
    fields = (None,) + __slots__
    initial = {'ttt': const.RESERVED_TAG}
    continues = Bit(const.CONTINUE)


class DataOut(Pdu):
    """RFC 7143 11.7."""

    __slots__ = ('lun', 'itt', 'ttt', 'exp_stat_sn', 'data_sn', 'buffer_offset')
    opcode = const.DATA_OUT
    layout = DATA_OUT
    fields = (None,) + __slots__
    initial = {'ttt': const.RESERVED_TAG}


class LogoutRequest(Pdu):
    """RFC 7143 11.14."""

    __slots__ = ('itt', 'cid', 'cmd_sn', 'exp_stat_sn')
    opcode = const.LOGOUT_REQUEST
    layout = LOGOUT_REQUEST
    fields = (None,) + __slots__
    constant_flags = const.FINAL
    reason = Bits(const.FUNCTION_MASK)


class SnackRequest(Pdu):
    """RFC 7143 11.16. `ttt`: the Target Transfer Tag of a DataACK, the SNACK Tag of an R-Data
    SNACK."""

    __slots__ = ('lun', 'itt', 'ttt', 'exp_stat_sn', 'beg_run', 'run_length')
    opcode = const.SNACK_REQUEST
    layout = SNACK_REQUEST
    fields = (None,) + __slots__
    initial = {'itt': const.RESERVED_TAG, 'ttt': const.RESERVED_TAG}
    constant_flags = const.FINAL
    kind = Bits(const.SNACK_TYPE_MASK)


# -- target to initiator ----------------------------------------------------------------------------

#: Fields that the sender sets just before encode().
STAMPED = ('stat_sn', 'exp_cmd_sn', 'max_cmd_sn')


class NopIn(Pdu):
    """RFC 7143 11.19."""

    __slots__ = ('lun', 'itt', 'ttt') + STAMPED
    opcode = const.NOP_IN
    layout = NOP_IN
    fields = (None,) + __slots__
    initial = {'itt': const.RESERVED_TAG, 'ttt': const.RESERVED_TAG}
    constant_flags = const.FINAL


class ScsiResponse(Pdu):
    """RFC 7143 11.4. The data segment is a 2-byte sense length and the sense data: `sense` reads
    and writes it."""

    __slots__ = (
        ('response', 'status', 'status_qualifier', 'itt', 'snack_tag')
        + STAMPED
        + ('exp_data_sn', 'bidi_residual_count', 'residual_count')
    )
    opcode = const.SCSI_RESPONSE
    layout = SCSI_RESPONSE
    fields = ('response', 'status', None) + __slots__[2:]
    constant_flags = const.FINAL
    overflow = Bit(const.OVERFLOW)
    underflow = Bit(const.UNDERFLOW)
    bidi_overflow = Bit(const.BIDI_OVERFLOW)
    bidi_underflow = Bit(const.BIDI_UNDERFLOW)

    @property
    def sense(self) -> bytes:
        """The sense data, b'' if there is none (RFC 7143 11.4.7)."""
        if len(self.data) < 2:
            return b''
        length = int.from_bytes(self.data[:2], 'big')
        return bytes(self.data[2 : 2 + length])

    @sense.setter
    def sense(self, sense: bytes) -> None:
        self.data = len(sense).to_bytes(2, 'big') + sense if sense else b''


class TaskManagementResponse(Pdu):
    """RFC 7143 11.6. `additional_information`: 3 bytes, RFC 7144 6.2."""

    __slots__ = ('response', 'additional_information', 'itt') + STAMPED
    opcode = const.TASK_MANAGEMENT_RESPONSE
    layout = TASK_MANAGEMENT_RESPONSE
    fields = ('response', None) + __slots__[1:]
    initial = {'additional_information': bytes(3)}
    constant_flags = const.FINAL


class LoginResponse(Pdu):
    """RFC 7143 11.13. `isid`: 6 bytes."""

    __slots__ = (
        ('version_max', 'version_active', 'isid', 'tsih', 'itt')
        + STAMPED
        + ('status_class', 'status_detail')
    )
    opcode = const.LOGIN_RESPONSE
    layout = LOGIN_RESPONSE
    fields = ('version_max', 'version_active', None) + __slots__[2:]
    initial = {'isid': bytes(6)}
    transit = Bit(const.TRANSIT)
    continues = Bit(const.CONTINUE)
    csg = Bits(3, 2)
    nsg = Bits(3)

    @property
    def status(self) -> Any:
        """(class, detail), as in `const`."""
        return self.status_class, self.status_detail


class TextResponse(Pdu):
    """RFC 7143 11.11."""

    __slots__ = ('lun', 'itt', 'ttt') + STAMPED
    opcode = const.TEXT_RESPONSE
    layout = TEXT_RESPONSE
    fields = (None,) + __slots__
    initial = {'ttt': const.RESERVED_TAG}
    continues = Bit(const.CONTINUE)


class DataIn(Pdu):
    """RFC 7143 11.7. `status` and `residual_count` are valid only with `has_status`, the S bit."""

    __slots__ = (
        ('status', 'lun', 'itt', 'ttt') + STAMPED + ('data_sn', 'buffer_offset', 'residual_count')
    )
    opcode = const.DATA_IN
    layout = DATA_IN
    fields = ('status', None) + __slots__[1:]
    initial = {'ttt': const.RESERVED_TAG}
    acknowledge = Bit(const.ACKNOWLEDGE)
    overflow = Bit(const.OVERFLOW)
    underflow = Bit(const.UNDERFLOW)
    has_status = Bit(const.STATUS)


class LogoutResponse(Pdu):
    """RFC 7143 11.15. `time2wait`, `time2retain`: seconds."""

    __slots__ = ('response', 'itt') + STAMPED + ('time2wait', 'time2retain')
    opcode = const.LOGOUT_RESPONSE
    layout = LOGOUT_RESPONSE
    fields = ('response', None) + __slots__[1:]
    constant_flags = const.FINAL


class ReadyToTransfer(Pdu):
    """RFC 7143 11.8. `stat_sn` is the next StatSN, which the PDU does not use up."""

    __slots__ = ('lun', 'itt', 'ttt') + STAMPED + ('r2t_sn', 'buffer_offset', 'desired_length')
    opcode = const.READY_TO_TRANSFER
    layout = READY_TO_TRANSFER
    fields = (None,) + __slots__
    constant_flags = const.FINAL


class AsyncMessage(Pdu):
    """RFC 7143 11.9. The data segment of event 0 has the form of a SCSI Response: sense length,
    sense data."""

    __slots__ = (
        ('lun', 'itt')
        + STAMPED
        + ('event', 'vendor_code', 'parameter1', 'parameter2', 'parameter3')
    )
    opcode = const.ASYNC_MESSAGE
    layout = ASYNC_MESSAGE
    fields = (None,) + __slots__
    initial = {'itt': const.RESERVED_TAG}
    constant_flags = const.FINAL


class Reject(Pdu):
    """RFC 7143 11.17. The data segment is the rejected PDU's header."""

    __slots__ = ('reason', 'itt') + STAMPED + ('data_sn',)
    opcode = const.REJECT
    layout = REJECT
    fields = ('reason', None) + __slots__[1:]
    initial = {'itt': const.RESERVED_TAG}
    constant_flags = const.FINAL


FROM_INITIATOR = {
    cls.opcode: cls
    for cls in (
        NopOut,
        ScsiCommand,
        TaskManagementRequest,
        LoginRequest,
        TextRequest,
        DataOut,
        LogoutRequest,
        SnackRequest,
    )
}
FROM_TARGET = {
    cls.opcode: cls
    for cls in (
        NopIn,
        ScsiResponse,
        TaskManagementResponse,
        LoginResponse,
        TextResponse,
        DataIn,
        LogoutResponse,
        ReadyToTransfer,
        AsyncMessage,
        Reject,
    )
}


def decode(
    bhs: BytesLike,
    ahs: Optional[BytesLike] = b'',
    data: Optional[BytesLike] = b'',
    classes: Mapping[int, Type[Pdu]] = FROM_INITIATOR,
) -> Any:
    """Return the PDU of the class that the header's opcode selects. Raises PduRejected (command not
    supported) for an opcode that is not in `classes`."""
    cls = classes.get(bhs[0] & const.OPCODE_MASK)
    if cls is None:
        raise PduRejected(
            const.REJECT_COMMAND_NOT_SUPPORTED,
            'opcode %02Xh is not known' % (bhs[0] & const.OPCODE_MASK),
        )
    return cls.decode(bhs, ahs, data)


# -- additional header segments, RFC 7143 11.2.2 ---------------------------------------------------


class AdditionalHeaders(namedtuple('AdditionalHeaders', 'extended_cdb read_length')):
    """The contents of the additional header segments. extended_cdb: the CDB bytes after the 16 bytes
    in the header, b'' if none; read_length: bidirectional read data length in bytes, None if absent."""

    __slots__ = ()


NO_ADDITIONAL_HEADERS = AdditionalHeaders(b'', None)


def _invalid(why):
    return PduRejected(const.REJECT_INVALID_PDU_FIELD, why)


def decode_ahs(ahs: BytesLike) -> AdditionalHeaders:
    """Return the AdditionalHeaders of the bytes that TotalAHSLength counts. Raises PduRejected
    (invalid PDU field)."""
    if not ahs:
        return NO_ADDITIONAL_HEADERS
    extended_cdb = b''
    read_length = None
    position = 0
    while position < len(ahs):
        if position + 3 > len(ahs):
            raise _invalid('an additional header segment is truncated')
        length = int.from_bytes(ahs[position : position + 2], 'big')
        kind = ahs[position + 2] & 0x3F
        end = position + 3 + length
        if end > len(ahs) or length == 0:
            raise _invalid('an additional header segment has length %d' % length)
        content = bytes(ahs[position + 4 : end])
        if kind == const.AHS_EXTENDED_CDB and not extended_cdb and content:
            extended_cdb = content
        elif (
            kind == const.AHS_BIDIRECTIONAL_READ_LENGTH
            and read_length is None
            and len(content) == 4
        ):
            read_length = int.from_bytes(content, 'big')
        else:
            raise _invalid(
                'an additional header segment of type %d with length %d is not allowed here'
                % (kind, length)
            )
        position = end + -end % const.AHS_UNIT
    return AdditionalHeaders(extended_cdb, read_length)


def encode_ahs(extended_cdb: bytes = b'', read_length: Optional[int] = None) -> bytes:
    """Return the bytes of the additional header segments, with padding."""
    segments = b''
    if extended_cdb:
        segments += (
            struct.pack('>HBx', len(extended_cdb) + 1, const.AHS_EXTENDED_CDB) + extended_cdb
        )
        segments += bytes(-len(segments) % const.AHS_UNIT)
    if read_length is not None:
        segments += struct.pack('>HBxI', 5, const.AHS_BIDIRECTIONAL_READ_LENGTH, read_length)
    return segments
