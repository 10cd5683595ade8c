"""One iSCSI session in full feature phase (RFC 7143 4.2.2, 4.3): who it is, what was agreed,
command numbering. Pure.

Invariants
 1. ExpCmdSN only moves past a CmdSN whose command was given out to be acted upon; out of order ones wait in `held`.
 2. MaxCmdSN moves by one for each numbered command that was answered, so commands not yet answered never exceed the window.
 3. A task stands in `tasks` exactly while it is neither answered nor known to be quiet after an abort; commands that are
    executed and answered in one go (the hot path) never stand there.
"""

from targetd.iscsi.transfer import Limits

MASK = 0xFFFFFFFF

#: How many commands an initiator may have unanswered; the deepest queues seen in the field are 128
#: and 256.
WINDOW = 256


class Session(object):
    """`login`: the LoginNegotiation's result. Read by every thread of the worker; numbering is the connection thread's."""

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

    def __init__(self, login, window=WINDOW):
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
        self.held = {}  # CmdSN -> PDU that came before its turn: (fields, ahs, data, connection)
        self.tasks = {}  # ITT -> Task
        self.discarding = {}  # ITT of answered commands whose Data-Out may still come -> True
        self._ttt = 0

    def allot_ttt(self):
        """A target transfer tag; never FFFFFFFF. Unique while fewer than 2**31 are outstanding."""
        self._ttt = self._ttt + 1 & 0x7FFFFFFF
        return self._ttt

    def accept_command_number(self, cmd_sn, pdu):
        """True if the numbered command is the next one (ExpCmdSN moves on); else it is held for its
        turn, or, outside the window or a repetition, dropped without an answer (RFC 7143 4.2.2.1).
        """
        if cmd_sn == self.exp_cmd_sn:
            self.exp_cmd_sn = cmd_sn + 1 & MASK
            return True
        ahead = cmd_sn - self.exp_cmd_sn & MASK
        if ahead <= (self.max_cmd_sn - self.exp_cmd_sn & MASK) < 0x80000000:
            self.held.setdefault(cmd_sn, pdu)
        return False

    def held_bytes(self):
        """Data segments of the PDUs that wait for their turn, bytes."""
        return (
            sum(len(pdu[2]) for pdu in self.held.values() if pdu[2] is not None) if self.held else 0
        )

    def forget_held(self, connection):
        """PDUs that came on a connection which is over count as never received: they may be sent
        again on another one."""
        for cmd_sn in [cmd_sn for cmd_sn, pdu in self.held.items() if pdu[3] is connection]:
            del self.held[cmd_sn]

    def next_held(self):
        """The held PDU whose turn it is now, or None; it still has to be taken."""
        return self.held.pop(self.exp_cmd_sn, None)

    def discard_data_out(self, itt):
        """Data-Out that still comes for this ITT is dropped in silence. Bounded: the oldest are
        forgotten."""
        self.discarding[itt] = True
        while len(self.discarding) > 4 * WINDOW:
            self.discarding.pop(next(iter(self.discarding)))
