"""The PDUs of a session as sentences, for `targetdctl trace`. Pure; may import iscsi.const, iscsi.pdu,
scsi.mmc_opcodes, scsi.sense."""

import time

from targetd import pcapng
from targetd.iscsi import const, pdu
from targetd.iscsi.errors import PduRejected
from targetd.scsi.mmc_opcodes import name_of
from targetd.scsi.sense import KEYS, describe

#: Operation codes whose CDB has an LBA and a number of blocks -> (position and length of each).
_RANGES = {6: ((1, 3), (4, 1)), 10: ((2, 4), (7, 2)), 12: ((2, 4), (6, 4)), 16: ((2, 8), (10, 4))}
_RANGE_COMMANDS = frozenset(
    (0x08, 0x0A, 0x28, 0x2A, 0x2E, 0x2F, 0x34, 0x35, 0x41, 0x88, 0x8A, 0x8E, 0x8F, 0x91, 0x93)
    + (0xA8, 0xAA, 0xAE, 0xAF)
)
_LENGTHS = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}

_STATUS = {
    0x00: 'GOOD',
    0x02: 'CHECK CONDITION',
    0x04: 'CONDITION MET',
    0x08: 'BUSY',
    0x18: 'RESERVATION CONFLICT',
    0x28: 'TASK SET FULL',
    0x30: 'ACA ACTIVE',
    0x40: 'TASK ABORTED',
}


def _number(data, at, length):
    return int.from_bytes(data[at : at + length], 'big')


def _lun(header):
    first = header[8]
    return _number(header, 8, 2) & 0x3FFF if first >> 6 in (0, 1) else _number(header, 8, 8)


def command_text(cdb):
    """'READ(10) of 8 blocks from LBA 128', 'INQUIRY'."""
    name = name_of(cdb[0])
    size = _LENGTHS.get(cdb[0] >> 5)
    if cdb[0] in _RANGE_COMMANDS and size:
        (lba_at, lba_length), (blocks_at, blocks_length) = _RANGES[size]
        lba, blocks = _number(cdb, lba_at, lba_length), _number(cdb, blocks_at, blocks_length)
        if size == 6:
            lba, blocks = lba & 0x1FFFFF, blocks or 256
        return '%s of %d blocks from LBA %d' % (name, blocks, lba)
    return name


class Tracer(object):
    """Remembers the commands whose answers are to come."""

    def __init__(self):
        self._commands = {}  # (source, ITT) -> (text, microseconds)
        self._peers = {}

    def lines(self, source, record):
        """The sentences for a Record."""
        if record.kind == pcapng.LOST:
            return ['%d PDUs were lost, because they came too quickly' % record.length]
        clock = time.strftime('%H:%M:%S', time.localtime(record.microseconds // 1000000))
        stamp = '%s.%03d' % (clock, record.microseconds // 1000 % 1000)
        if record.kind == pcapng.CONNECTION:
            return []
        header = record.data
        if len(header) < const.BHS_LENGTH:
            return []
        is_request = record.kind == pcapng.RECEIVED
        text = self._text(source, header, record, is_request)
        return ['%s %s %s' % (stamp, '>' if is_request else '<', text)] if text else []

    def _text(self, source, header, record, is_request):
        opcode, tag = header[0] & 0x3F, _number(header, 16, 4)
        length = _number(header, 5, 3)
        if opcode == const.SCSI_COMMAND:
            text = '%s (LUN %d, tag %08x)' % (command_text(header[32:48]), _lun(header), tag)
            self._commands[source, tag] = text, record.microseconds
            extra = ', with %d bytes of data' % length if length else ''
            return text + extra
        if opcode == const.SCSI_RESPONSE:
            return self._response(source, header, record, tag)
        if opcode == const.DATA_IN:
            text = '%d bytes of data for tag %08x' % (length, tag)
            if header[1] & 1:  # with status
                text += ', ' + self._end(source, record, tag, header[3])
            return text
        if opcode == const.DATA_OUT:
            return '%d bytes of data for tag %08x' % (length, tag)
        if opcode == const.READY_TO_TRANSFER:
            return 'ready to receive %d bytes for tag %08x' % (_number(header, 44, 4), tag)
        return self._other(opcode, header, record, is_request)

    def _end(self, source, record, tag, status):
        command, began = self._commands.pop((source, tag), ('', None))
        text = '%s' % _STATUS.get(status, 'status %02Xh' % status)
        if began is not None:
            text += ' after %.1f ms' % ((record.microseconds - began) / 1000.0)
        return text

    def _response(self, source, header, record, tag):
        text = 'tag %08x: %s' % (tag, self._end(source, record, tag, header[3]))
        sense = record.data[const.BHS_LENGTH + header[4] * 4 :][2:]
        if header[3] == 2 and len(sense) >= 4:
            if sense[0] & 0x7F >= 0x72:
                key, asc, ascq = sense[1] & 0xF, sense[2], sense[3]
            elif len(sense) >= 14:
                key, asc, ascq = sense[2] & 0xF, sense[12], sense[13]
            else:
                return text
            text += ': %s' % (describe(key, asc, ascq) or KEYS[key])
        return text

    @staticmethod
    def _other(opcode, header, record, is_request):
        length = _number(header, 5, 3)
        start = const.BHS_LENGTH + header[4] * 4
        pairs = record.data[start : start + length].split(b'\0')
        keys = ', '.join(p.decode('utf-8', 'replace') for p in pairs if p)
        if opcode in (const.LOGIN_REQUEST, const.LOGIN_RESPONSE):
            text = 'login request' if is_request else 'login response'
            if not is_request and header[36]:
                text += ' that refuses it with %02x%02x' % (header[36], header[37])
            return '%s: %s' % (text, keys) if keys else text
        if opcode in (const.TEXT_REQUEST, const.TEXT_RESPONSE):
            return '%s: %s' % ('text request' if is_request else 'text response', keys)
        if opcode in (const.NOP_OUT, const.NOP_IN):
            is_asking = _number(header, 16 if is_request else 20, 4) != const.RESERVED_TAG
            return 'ping' if is_asking else 'answer to a ping'
        if opcode == const.TASK_MANAGEMENT_REQUEST:
            return 'task management: %s for LUN %d' % (
                const.TASK_MANAGEMENT_NAMES.get(header[1] & 0x7F, 'an unknown function'),
                _lun(header),
            )
        try:
            name = type(pdu.decode(bytes(header[:48]), b'', b'')).__name__
        except (PduRejected, ValueError):
            name = 'a PDU with opcode %02Xh' % opcode
        return {
            'LogoutRequest': 'logout request',
            'LogoutResponse': 'logout response',
            'TaskManagementResponse': 'answer to task management: %d' % header[2],
            'AsyncMessage': 'asynchronous message, event %d' % header[36],
            'Reject': 'a PDU is rejected, reason %02Xh' % header[2],
        }.get(name, name)
