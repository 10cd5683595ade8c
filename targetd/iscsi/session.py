"""One iSCSI session in full feature phase (RFC 7143 4.2.2, 4.3): its names, its negotiated values and
its command numbering. Pure.

Invariants
 1. ExpCmdSN passes a CmdSN only when its command was accepted for execution; commands that arrive out of
    order wait in `held`.
 2. MaxCmdSN increases by one for each numbered command that was answered, so the number of unanswered
    commands never exceeds the window.
 3. A task is in `tasks` from its start until it is answered or, after an abort, known to be quiet.
    Commands that are executed and answered at once (the hot path) are never in `tasks`.
"""

from typing import Any, Dict, Optional, Tuple

from targetd.iscsi import const, serial
from targetd.iscsi.login_result import LoginResult
from targetd.iscsi.transfer import Limits

MASK = 0xFFFFFFFF

#: Number of commands that an initiator may have outstanding; the deepest queues of known initiators
#: are 128 and 256.
WINDOW = 256


#: (fields, ahs, data, connection)
HeldPdu = Tuple[Any, Optional[bytes], Any, Any]

#: Takes the place of a command that was aborted before its turn: its CmdSN counts as received.
ABORTED: HeldPdu = (None, None, None, None)


class Session(object):
    """The state that all connections of one session share.

    login: the LoginResult of its first connection; window: number of commands that the initiator may
    have outstanding. Every thread of the worker may read it; only the connection thread changes the
    numbering.
    """

    __slots__ = (
        'login',
        'initiator_name',
        'initiator_alias',
        'isid',
        'tsih',
        'target_name',
        'portal_group_tag',
        'account',
        'is_discovery',
        'values',
        'limits',
        'exp_cmd_sn',
        'max_cmd_sn',
        'held',
        'tasks',
        'discarding',
        '_ttt',
    )

    def __init__(self, login: LoginResult, window: int = WINDOW) -> None:
        self.login = login
        self.initiator_name = login.initiator_name
        self.initiator_alias = login.initiator_alias
        self.isid = login.isid
        self.tsih = login.tsih
        self.target_name = login.target_name
        self.portal_group_tag = login.portal_group_tag
        self.account = login.account
        self.is_discovery = login.session_type == 'Discovery'
        self.values = login.values
        self.limits = None if self.is_discovery else Limits.of(login.values)
        self.exp_cmd_sn = login.cmd_sn
        self.max_cmd_sn = (login.cmd_sn + window - 1) & MASK
        self.held: Dict[
            int, HeldPdu
        ] = {}  # CmdSN -> (fields, ahs, data, connection) of a PDU that arrived too early
        self.tasks: Dict[int, Any] = {}  # ITT -> Task
        self.discarding: Dict[
            int, bool
        ] = {}  # ITT of an answered command whose Data-Out may still arrive -> True
        self._ttt = 0

    def allot_ttt(self) -> int:
        """Return a new target transfer tag, never FFFFFFFFh. It is unique while fewer than 2**31 tags
        are outstanding."""
        self._ttt = self._ttt + 1 & 0x7FFFFFFF
        return self._ttt

    def accept_command_number(self, cmd_sn: int, pdu: HeldPdu) -> bool:
        """Return True if this numbered command is the next one; ExpCmdSN then increases.

        Otherwise the command is held until its turn. A repetition, or a command outside the window,
        is dropped without an answer (RFC 7143 4.2.2.1). pdu: (fields, ahs, data, connection). Hot.
        """
        if cmd_sn == self.exp_cmd_sn:
            self.exp_cmd_sn = cmd_sn + 1 & MASK
            return True
        ahead = cmd_sn - self.exp_cmd_sn & MASK
        if ahead <= (self.max_cmd_sn - self.exp_cmd_sn & MASK) < 0x80000000:
            self.held.setdefault(cmd_sn, pdu)
        return False

    def held_bytes(self) -> int:
        """Return the bytes of data in the PDUs that are held."""
        return (
            sum(len(pdu[2]) for pdu in self.held.values() if pdu[2] is not None) if self.held else 0
        )

    def forget_held(self, connection: Any) -> None:
        """Drop the held PDUs of a connection that has ended. They count as never received: the
        initiator may send them again on another connection."""
        for cmd_sn in [cmd_sn for cmd_sn, pdu in self.held.items() if pdu[3] is connection]:
            del self.held[cmd_sn]

    def next_held(self) -> Optional[HeldPdu]:
        """Remove and return the held PDU whose CmdSN is next, or None. The caller still has to call
        accept_command_number for it. ExpCmdSN passes the commands that were aborted."""
        held = self.held.pop(self.exp_cmd_sn, None)
        while held is ABORTED:
            self.exp_cmd_sn = self.exp_cmd_sn + 1 & MASK
            held = self.held.pop(self.exp_cmd_sn, None)
        return held

    def abort_before_its_turn(self, itt: int, ref_cmd_sn: int, cmd_sn: int) -> bool:
        """Consider a command received that ABORT TASK names and that has not been executed (RFC 7143
        11.6.1): it is held, or it never arrived.

        itt, ref_cmd_sn: of the command; cmd_sn: of the ABORT TASK. Returns False if the CmdSN is not
        within the command window, not before that of the ABORT TASK, or of another command.
        """
        ahead = ref_cmd_sn - self.exp_cmd_sn & MASK
        if ahead > (self.max_cmd_sn - self.exp_cmd_sn & MASK) or not serial.lt(ref_cmd_sn, cmd_sn):
            return False
        held = self.held.get(ref_cmd_sn)
        if held is ABORTED or held is not None and held[0][5] != itt:
            return False
        self.held[ref_cmd_sn] = ABORTED
        return True

    def abort_held(self, lun: int, cmd_sn: int) -> int:
        """Abort the held SCSI commands for this LUN field with a CmdSN before `cmd_sn`; returns their
        number."""
        found = [
            number
            for number, pdu in self.held.items()
            if pdu is not ABORTED
            and pdu[0][0] & 0x3F == const.SCSI_COMMAND
            and pdu[0][4] == lun
            and serial.lt(number, cmd_sn)
        ]
        self.held.update(dict.fromkeys(found, ABORTED))
        return len(found)

    def discard_data_out(self, itt: int) -> None:
        """Drop later Data-Out for this ITT without an answer. Only the newest 4 * WINDOW such ITTs
        are kept."""
        self.discarding[itt] = True
        while len(self.discarding) > 4 * WINDOW:
            self.discarding.pop(next(iter(self.discarding)))
