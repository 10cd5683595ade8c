"""The terms that SCSI and its transport share (SAM-5): statuses, nexus, task, and what executing a
task can return.

Pure; imports nothing of targetd. It is the only module of scsi/ that iscsi/ may import.
"""

from collections import namedtuple
from typing import Any, Callable, Optional

# Status codes, SAM-5
GOOD = 0x00
CHECK_CONDITION = 0x02
CONDITION_MET = 0x04
BUSY = 0x08
RESERVATION_CONFLICT = 0x18
TASK_SET_FULL = 0x28
ACA_ACTIVE = 0x30
TASK_ABORTED = 0x40

# Task attributes by their iSCSI numbers, RFC 7143 11.3.1
UNTAGGED, SIMPLE, ORDERED, HEAD_OF_QUEUE, ACA = range(5)


class Nexus(namedtuple('Nexus', 'initiator_name isid target_name target_port_group_tag')):
    """An I_T nexus. `isid`: 12 lower-case hex digits; `target_port_group_tag`: int."""

    __slots__ = ()

    @property
    def initiator_port(self) -> str:
        """The SCSI initiator port name, RFC 7143 4.4.2: 'iqn.…,i,0x00023d000001'."""
        return '%s,i,0x%s' % (self.initiator_name, self.isid)

    @property
    def target_port(self) -> str:
        """The SCSI target port name, RFC 7143 4.4.2: 'iqn.…,t,0x0001'."""
        return '%s,t,0x%04x' % (self.target_name, self.target_port_group_tag)


class Port(namedtuple('Port', 'relative_identifier target_port_group_tag name')):
    """A SCSI target port of the target. `relative_identifier`: 1..65535 (SPC-4); `name`:
    'iqn.…,t,0x0001'."""

    __slots__ = ()


class Task(object):
    """One SCSI command that is being executed (SAM-5).

    The session sets, from the PDU:
      itt, cmd_sn            initiator task tag, CmdSN
      lun                    the 8-byte LUN field as an int
      cdb                    bytes, 16 or more
      attribute              task attribute
      edtl                   expected data transfer length, bytes
      expects_read, expects_write  bools, the directions of the data
      unit                   as returned by device.unit(lun)
      data_out               memoryview or bytes of data_out_length bytes, or fewer if EDTL is less;
                             set before run() is called
    The logical unit sets, in admit():
      run, run_blocking      callables that take the task, see WOULD_BLOCK
      data_out_length        bytes of Data-Out that the CDB consumes, 0 if none
      offset, length         bytes, for use by the command
      durable                bool, for use by the command
      private                anything, for use by the command
      unlimited_run, charged run() of a limited command, and the bytes that count (scsi.limits)
    The worker sets:
      transfer, connection   the iscsi.transfer.Transfer of the Data-Out, the connection of the task
      aborted                bool; task management sets it from another thread, it only becomes True
      started                monotonic time at which an executor thread began to run it, None before
      arrived                monotonic time at which it arrived if its latency is measured, else None
      sent_to_master         bool, the master executes the command now
      abort_reply            CheckCondition or StatusReturned that ends the task if it is aborted, or
                             None: it gets no reply
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
        'unlimited_run',
        'charged',
        'data_out',
        'aborted',
        'unit',
        'transfer',
        'connection',
        'sent_to_master',
        'started',
        'arrived',
        'abort_reply',
    )

    itt: int
    lun: int
    cdb: bytes
    attribute: int
    edtl: int
    expects_read: bool
    expects_write: bool
    cmd_sn: int
    run: Callable[['Task'], Any]
    run_blocking: Optional[Callable[['Task'], Any]]
    data_out_length: int
    offset: int
    length: int
    durable: bool
    private: Any
    unlimited_run: Callable[['Task'], Any]
    charged: int
    data_out: Any
    aborted: bool
    unit: Any
    transfer: Any
    connection: Any
    sent_to_master: bool
    started: Optional[float]
    arrived: Optional[float]
    abort_reply: Optional[Exception]

    def __init__(self) -> None:
        self.attribute = SIMPLE
        self.data_out_length = 0
        self.data_out = None
        self.aborted = False
        self.transfer = None
        self.sent_to_master = False
        self.started = None
        self.arrived = None
        self.abort_reply = None


class Waits(Exception):
    """Admission: the command has to wait for older commands of its task set, if there are any."""


class _WouldBlock(object):
    def __repr__(self) -> str:
        return 'WOULD_BLOCK'


#: What task.run(task) returns if an executor thread must call task.run_blocking(task) instead.
WOULD_BLOCK = _WouldBlock()


class Change(namedtuple('Change', 'kind arguments')):
    """What task.run(task) returns if the command changes state that all sessions share, so the
    master must execute it.

    kind: the name of a request in channel.py ('persistent-reserve-out', 'reserve', 'release',
    'mode-select', …); arguments: a JSON-able dict, bytes as hex digits. The answer of the master
    contains the status, sense data and Data-In of the task.
    """

    __slots__ = ()


#: The Change that needs no master: the data of the command is in the store's cache, and the worker ends
#: the task after a flush of the unit that begins after this was returned.
UNFLUSHED = Change('flush', None)

#: The Change that no one decides: the limits of the unit delay the command, and the worker calls its
#: run_blocking in an executor thread when they admit it (scsi.limits).
DELAYED = Change('delay', None)
