"""The PDUs that end a SCSI command outside the hot path: with a residual, sense data or a status
other than GOOD (RFC 7143 11.4, 11.7).

May import iscsi, scsi. Pure functions. [any]
"""

from targetd.iscsi import pdu
from targetd.scsi import sam, spc
from targetd.scsi.sense import CheckCondition, StatusReturned


def reply_pdus(task, outcome, values):
    """Return the PDUs, in order, that answer a task. outcome: the result of running it: data, None,
    CheckCondition, StatusReturned or MasterAnswer."""
    status, sense, data = _status_sense_data(task, outcome)
    returned = len(data) if data is not None else 0
    if data is not None:
        data = memoryview(data)[: task.edtl if task.expects_read else 0]
    out = _data_in(task, data, values) if data else []
    overflow, underflow = _residual(task, returned)
    if out and status == sam.GOOD:
        last = out[-1]
        last.has_status = True
        last.final = True
        last.overflow, last.underflow = bool(overflow), bool(underflow)
        last.residual_count = overflow or underflow
    else:
        response = pdu.ScsiResponse(itt=task.itt, status=status, exp_data_sn=len(out))
        response.overflow, response.underflow = bool(overflow), bool(underflow)
        response.residual_count = overflow or underflow
        response.sense = sense
        out.append(response)
    return out


class MasterAnswer(object):
    """The master's answer to a Change: status, sense (bytes), data (bytes or None)."""

    __slots__ = ('status', 'sense', 'data')

    def __init__(self, status, sense, data):
        self.status = status
        self.sense = sense
        self.data = data

    @classmethod
    def of(cls, message):
        """The answer in a message of the master; without a status, BUSY."""
        sense, data = message.get('sense'), message.get('data')
        return cls(
            message.get('status', sam.BUSY),
            bytes.fromhex(sense) if sense else b'',
            bytes.fromhex(data) if data else None,
        )


def answer_to(task, change, message):
    """The MasterAnswer in the answer to a sam.Change of a task."""
    found = MasterAnswer.of(message)
    if change.kind == spc.REFRESH and found.status == sam.GOOD:
        found.data = spc.refreshed_data(task)
    return found


def _status_sense_data(task, outcome):
    """Return (status, sense bytes, data or None)."""
    if isinstance(outcome, CheckCondition):
        return sam.CHECK_CONDITION, task.unit.sense(outcome), outcome.data
    if isinstance(outcome, StatusReturned):
        return outcome.status, b'', None
    if isinstance(outcome, MasterAnswer):
        return outcome.status, outcome.sense, outcome.data
    return sam.GOOD, b'', outcome


def _residual(task, returned):
    """Return (overflow, underflow) in bytes; at least one of them is 0 (RFC 7143 11.4.5)."""
    if task.data_out_length or (task.expects_write and not returned):
        actual, expected = task.data_out_length, task.edtl if task.expects_write else 0
    else:
        actual, expected = returned, task.edtl if task.expects_read else 0
    return max(actual - expected, 0), max(expected - actual, 0)


def _data_in(task, data, values):
    """Return Data-In PDUs of at most MaxRecvDataSegmentLength bytes, with F at the end of each
    burst, without status."""
    segment, burst = values['MaxRecvDataSegmentLength'], values['MaxBurstLength']
    out = []
    offset = 0
    while offset < len(data):
        size = min(segment, burst - offset % burst, len(data) - offset)
        piece = pdu.DataIn(
            itt=task.itt, data_sn=len(out), buffer_offset=offset, data=data[offset : offset + size]
        )
        offset += size
        piece.final = offset % burst == 0 or offset == len(data)
        out.append(piece)
    return out
