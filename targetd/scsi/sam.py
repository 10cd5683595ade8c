"""The words that SCSI and its transport share (SAM-5): statuses, nexus, task, and what running a
task can give.

Pure; imports nothing of targetd. iscsi/ and worker/ may import this module, and no other of scsi/
may be imported by iscsi/.
"""

from collections import namedtuple

# Status codes, SAM-5
GOOD = 0x00
CHECK_CONDITION = 0x02
CONDITION_MET = 0x04
BUSY = 0x08
RESERVATION_CONFLICT = 0x18
TASK_SET_FULL = 0x28
ACA_ACTIVE = 0x30
TASK_ABORTED = 0x40

# Task attributes as iSCSI numbers them, RFC 7143 11.3.1
UNTAGGED, SIMPLE, ORDERED, HEAD_OF_QUEUE, ACA = range(5)


class Nexus(namedtuple('Nexus', 'initiator_name isid target_name target_port_group_tag')):
    """An I_T nexus. `isid`: 12 lower-case hex digits; `target_port_group_tag`: int."""

    __slots__ = ()

    @property
    def initiator_port(self):
        """The SCSI initiator port name, RFC 7143 4.4.2: 'iqn.…,i,0x00023d000001'."""
        return '%s,i,0x%s' % (self.initiator_name, self.isid)

    @property
    def target_port(self):
        """The SCSI target port name, RFC 7143 4.4.2: 'iqn.…,t,0x0001'."""
        return '%s,t,0x%04x' % (self.target_name, self.target_port_group_tag)


class Port(namedtuple('Port', 'relative_identifier target_port_group_tag name')):
    """A SCSI target port of the device. `relative_identifier`: 1..65535 (SPC-4); `name`:
    'iqn.…,t,0x0001'."""

    __slots__ = ()


class Task(object):
    """One SCSI command in flight (SAM-5). Filled in by two hands:

    the session, from the PDU: itt, lun (8-byte field as int), cdb (bytes, 16 or more), attribute,
    edtl (expected data transfer length, bytes), expects_read, expects_write, cmd_sn, unit (what
    device.unit(lun) gave); the logical unit, in admit(): run, run_blocking (callables taking the
    task), data_out_length (bytes of Data-Out this CDB consumes, 0 if none), and for the command's
    own use offset, length (bytes), durable (bool), private (anything). The connection sets data_out
    (memoryview or bytes of data_out_length bytes, or shorter if the initiator's EDTL is shorter)
    before it calls run; `aborted` is set by task management from another thread and only ever
    becomes True.
    """

    __slots__ = (
        'itt',
        'lun',
        'cdb',
        'attribute',
        'edtl',
        'expects_read',
        'expects_write',
        'cmd_sn',
        'run',
        'run_blocking',
        'data_out_length',
        'offset',
        'length',
        'durable',
        'private',
        'data_out',
        'aborted',
        'unit',
        'transfer',
        'connection',
        'asked',
        'abort_status',
    )

    def __init__(self):
        self.attribute = SIMPLE
        self.data_out_length = 0
        self.data_out = None
        self.aborted = False
        self.transfer = None
        self.asked = False
        self.abort_status = None


class _WouldBlock(object):
    def __repr__(self):
        return 'WOULD_BLOCK'


#: What task.run(task) returns when task.run_blocking(task) must do it in an executor thread.
WOULD_BLOCK = _WouldBlock()


class Change(namedtuple('Change', 'kind arguments')):
    """What task.run(task) returns when the answer is the master's to give: a change of state that
    sessions share.

    kind: a word of the catalogue in channel.py ('persistent-reserve-out', 'reserve', 'release',
    'mode-select', …); arguments: a JSON-able dict, bytes as hex. The master's answer has the
    status, sense and data that end the task.
    """

    __slots__ = ()
