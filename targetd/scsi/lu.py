"""A logical unit as one nexus sees it. Pure.

The dispatch table is the admission state (ARCHITECTURE D10). A unit keeps two tables of 256
admission functions. The first is rebuilt whenever the shared state changes: each of its entries
already knows whether its command is refused by a reservation, write protected or without a medium.
The second is in force while a unit attention is pending: its entries report the unit attention,
except for the commands that are exempt. `unit.dispatch` is the table in force, so
`unit.admit(task)` costs one subscription and one call.

Threads: connection threads call admit() and what it sets; the worker's control thread calls
replace_shared_state(), raise_attention() and resized(). Neither waits for the other: every change
makes a new object and puts it in place with one assignment, and _select_table() checks again after
its own assignment.
"""

from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Sequence, Tuple

from targetd.scsi import (
    alua,
    attention,
    buffers,
    counters,
    faults,
    health,
    hot,
    limits,
    medium_errors,
    medium_state,
    opcodes,
    operations,
    reservation_classes,
    sbc,
    sense,
    vpd,
)
from targetd.scsi import modes as mode_pages
from targetd.scsi import records as unit_records
from targetd.scsi import reservations as unit_reservations
from targetd.scsi.copy import copy_manager, extended_copy, rod_commands, rod_tokens
from targetd.scsi.dispatch import FUNCTIONS, commands_of, refuse_unused_bits
from targetd.scsi.facts import UnitFacts
from targetd.scsi.medium_state import FAILED, READY
from targetd.scsi.sam import BUSY, ORDERED, RESERVATION_CONFLICT, Nexus, Task, Waits
from targetd.scsi.sense import (
    DATA_PROTECT,
    HARDWARE_ERROR,
    NO_SENSE,
    UNIT_ATTENTION,
    CheckCondition,
    StatusReturned,
)

if TYPE_CHECKING:
    from targetd.scsi.device import Device

NO_LIMIT = 1 << 64

#: what replace_shared_state() accepts
SHARED_STATE = frozenset(
    (
        'reservations',
        'modes',
        'medium',
        'access',
        'records',
        'watched',
        'progress',
        'restriction',
        'hanging',
    )
)


class UnitServices(object):
    """What a LogicalUnit uses of the process that holds it. This class is for a unit outside a
    worker process, as in tests; targetd.worker.replica has a subclass.

    started_at:   when the unit was created, in milliseconds() of its clock
    rod_tokens:   creates and resolves ROD tokens (worker.copy.rod_tokens.UnitRodTokens), or None
    copy_guests:  object that finds units of other targets for copies (extended_copy.NoCopyGuests)
    sleep:        store.sleeping.Sleep, None if the disk never sleeps
    """

    started_at = 0
    rod_tokens: Any = None
    copy_guests: Any = extended_copy.NoCopyGuests
    sleep: Any = None

    def milliseconds(self) -> int:
        """The clock: milliseconds since 1970."""
        return 0

    def monotonic_seconds(self) -> float:
        """A clock that only measures intervals."""
        return 0.0

    def run_in_thread(self, work: Callable[[Any], None], argument: Any) -> None:
        """Run work(argument) in another thread."""
        work(argument)

    def note(self, kind: str, message: Dict[str, Any]) -> None:
        """Distribute a record to all nexuses; kind: one of scsi.records.NOTE_KINDS. Any thread."""

    def share_attention(self, asc: int, ascq: int) -> None:
        """Establish a unit attention condition for the other nexuses. Any thread."""

    def data_lost(self, text: str) -> None:
        """The store has lost data that it had acknowledged. Called once, by any thread, until the
        medium is READY again."""


class _TablesOnDemand(object):
    """Takes the place of a unit's dispatch table until its first command."""

    __slots__ = ('_unit',)

    def __init__(self, unit: 'LogicalUnit') -> None:
        self._unit = unit

    def __getitem__(self, opcode: int) -> Callable[[Task], None]:
        self._unit.make_tables()
        return self._unit.dispatch[opcode]


def _in_order(admit: Callable[[Task], None]) -> Callable[[Task], None]:
    """The admission function of a unit whose commands are executed one after the other."""

    def admit_in_order(task):
        if task.attribute != ORDERED:
            raise Waits
        admit(task)

    return admit_in_order


class LogicalUnit(object):
    """One logical unit, for one nexus.

    facts: UnitFacts; store: the medium, see targetd.store; device: the Device it belongs to;
    services: UnitServices. modes, reservations, access, records: replicas of the shared state
    (None: the initial one); medium: a state of scsi.medium_state; progress: of an operation
    (scsi.operations), 0..65535; watched: the byte ranges that ROD tokens represent; restriction: one
    of faults.RESTRICTIONS; unflushed: bytes of durable writes that wait for a flush; flush_seconds:
    what the last flush for them took; hanging: of medium_state. A new unit starts with unit
    attention 29/00 pending, and 5D/xx if its disk predicts a failure (health).

    The connection sets task.unit before it calls admit().
    is_sequential: its commands are admitted as ORDERED ones only, which sam.Waits requests.
    Every thread may read lun, blocks, block_size, medium, read_only, write_through, descriptor_sense and
    task_aborted_status.
    """

    def __init__(
        self,
        facts: UnitFacts,
        store: Any,
        nexus: Nexus,
        device: 'Device',
        modes: Optional[Dict[str, Any]] = None,
        reservations: Optional[Dict[str, Any]] = None,
        medium: str = READY,
        lun: Optional[int] = None,
        access: Optional[Dict[str, Any]] = None,
        records: Optional[Dict[str, Any]] = None,
        watched: Sequence[Sequence[int]] = (),
        progress: int = 0,
        restriction: str = faults.NONE,
        hanging: int = medium_state.ANSWERS,
        services: Optional[UnitServices] = None,
    ) -> None:
        self.facts = facts
        self.qualifier = facts.device_type
        self.store = store
        self.nexus = nexus
        self.device = device
        self.services = services or UnitServices()
        self.lun = lun
        self.block_size = facts.block_size
        self.blocks = store.size // facts.block_size
        self.maximum_blocks = facts.maximum_transfer_length // facts.block_size or NO_LIMIT
        self.commands = commands_of(facts)
        self.is_sequential = facts.is_sequential
        # shared by all nexuses, replaced by replace_shared_state()
        self.modes = modes or mode_pages.initial(facts)
        self.reservations = reservations or unit_reservations.initial()
        self.access = access or alua.initial([port.target_port_group_tag for port in device.ports])
        self.records = records or unit_records.initial()
        self.medium = medium
        self.progress = progress
        self.hanging = hanging
        self.unflushed = 0
        self.flush_seconds = float('inf')
        self.watched = watched or []
        self.restriction = restriction
        # of this nexus
        predicted = health.attention(self.modes, self.records)
        self.attention = attention.Queue(
            [attention.POWER_ON_OR_RESET] + ([predicted] if predicted else [])
        )
        self.buffers = buffers.Buffers()
        self.counters = counters.Counters()
        self.copies = copy_manager.CopyOperations()
        self.copy_writes: List[Tuple[int, int]] = []  # (offset, length) that copies are writing
        self.self_test = None  # diagnostics.SelfTest that runs in the background
        self.power: Optional[Tuple[int, int]] = None  # sense of a low power condition
        self.reported_medium = False  # of an optical drive: is there one? (mmc.get_event_status)
        self.throttle: Any = None  # worker.throttling.Throttle, if the unit has limits
        self._failure_reported = False
        self.dispatch: Any = _TablesOnDemand(self)
        self._tables: Any = None  # (normal, pending), once a command has arrived
        self._rebuild_tables()

    # -- connection threads ------------------------------------------------------------------------

    def admit(self, task: Task) -> None:
        """Check everything that does not need data; set task.run, run_blocking and data_out_length.
        Raises CheckCondition or StatusReturned. Hot."""
        self.dispatch[task.cdb[0]](task)

    def sense(self, error: CheckCondition) -> bytes:
        """The sense data of this CheckCondition, in the format that D_SENSE selects, for the reply to
        a command."""
        if error.key in counters.ERROR_KEYS:
            self.counters.errors += 1
        return error.sense(self.descriptor_sense)

    def take_sense(self) -> Optional[CheckCondition]:
        """Returns what REQUEST SENSE reports, or None: the next unit attention, which this call removes
        from the queue, or why the unit is not ready, or the power condition, or a predicted failure."""
        pending = self._take_attention()
        if pending:
            return CheckCondition(UNIT_ATTENTION, *pending)
        found = alua.refusal(self._access_state()) or self.not_ready()
        if found is None and self.power:
            found = CheckCondition(NO_SENSE, *self.power)
        predicted = health.on_request(self.modes, self.records)
        return CheckCondition(NO_SENSE, *predicted) if found is None and predicted else found

    def not_ready(self) -> Optional[CheckCondition]:
        """Why the medium is not ready, or None."""
        if self.hanging == medium_state.FENCED:
            return medium_state.fenced()
        found = medium_state.not_ready(self.medium, self.progress)
        if found is None and self.restriction == faults.OFFLINE:
            found = CheckCondition(*medium_state.MANUAL_INTERVENTION_REQUIRED)
        return found

    def vpd_page(self, code: int) -> bytes:
        """The vital product data page. Raises CheckCondition 05/24/00 if the unit does not have it."""
        return vpd.page(code, self.facts, self.nexus, self.device.ports)

    def luns_reported(self) -> None:
        """REPORT LUNS has reported the LUNs to this nexus."""
        self.device.luns_reported()

    # -- control thread ----------------------------------------------------------------------------

    def raise_attention(self, asc: int, ascq: int) -> None:
        """Make this unit attention pending for the nexus."""
        self.attention.add(asc, ascq)
        self._select_table()

    def drop_attention(self, asc: int, ascq: int) -> None:
        """Make this unit attention no longer pending. Any thread."""
        self.attention.drop(asc, ascq)
        self._select_table()

    def replace_shared_state(self, **parts: Any) -> None:
        """Put new parts of the shared state in force; their names are those in SHARED_STATE. They
        hold for commands that are admitted from now on. Raises TypeError for other names."""
        for name in parts:
            if name not in SHARED_STATE:
                raise TypeError('the shared state of a LogicalUnit has no %s' % name)
        for name, value in parts.items():
            setattr(self, name, value)
        if parts.get('medium') == READY:
            self._failure_reported = False
        if set(parts) != {'progress'}:
            self._rebuild_tables()

    def resized(self, size: int) -> None:
        """The medium has `size` bytes now. The caller has resized the store, and establishes
        the unit attention."""
        self.blocks = size // self.block_size
        self._rebuild_tables()

    def limit(self, throttle: Any) -> None:
        """Commands that are admitted from now on have these limits; None: no limits."""
        if throttle is not self.throttle:
            self.throttle = throttle
            self._rebuild_tables()

    # -- dispatch tables ---------------------------------------------------------------------------

    def _rebuild_tables(self) -> None:
        """Make the tables for the present state. Another thread may do this at the same time: a
        thread whose tables may be of an older state makes them again."""
        self._version = object()
        if self._tables is None:
            self._note_state()
            return
        while True:
            version = self._version
            self._tables = self._new_tables()
            if self._version is version:
                break
        self._select_table()

    def make_tables(self) -> None:
        """The first command for this nexus has arrived. A session may have thousands of units and use
        few. [any]"""
        if self._tables is None:
            self._tables = ()  # from now on, _rebuild_tables() makes them in other threads too
        self._rebuild_tables()

    def _note_state(self) -> None:
        current = mode_pages.parameters(self.modes)
        self.write_through = not current.wce
        self.descriptor_sense = current.d_sense
        self.task_aborted_status = current.tas
        is_restricted = self.restriction == faults.READ_ONLY
        self.read_only = self.facts.read_only or is_restricted or current.swp
        self.refused = reservation_classes.refused_classes(self.reservations, self.nexus)

    def _new_tables(self) -> Tuple[List[Callable[[Task], None]], List[Callable[[Task], None]]]:
        """(the admission functions, those while a unit attention is pending)"""
        self._note_state()
        normal: List[Callable[[Task], None]] = [self._refuse_opcode] * 256
        for opcode in self.commands:
            normal[opcode] = self._admit
        for opcode, admit in (
            ()
            if self.facts.passthrough or self.is_sequential
            else hot.bind(self, self._admit).items()
        ):
            if opcode in self.commands and self._is_plain(self.commands[opcode][None]):
                normal[opcode] = admit
        if self._access_state() in alua.ALLOWED:
            for opcode in self.commands:
                normal[opcode] = self._admit_if_accessible
        if self.throttle is not None:
            for opcode, admit in limits.bound(self, dict(enumerate(normal))).items():
                normal[opcode] = admit
        pending: List[Callable[[Task], None]] = [self._report_attention] * 256
        for rows in self.commands.values():
            for row in rows.values():
                if row.exempt:
                    pending[row.opcode] = normal[row.opcode]
        if self.is_sequential:
            return [_in_order(admit) for admit in normal], [_in_order(admit) for admit in pending]
        return normal, pending

    def _access_state(self) -> int:
        """The asymmetric access state of the target port group through which the nexus came."""
        return alua.state_of(self.access, self.nexus.target_port_group_tag)

    def path_refusal(self) -> Optional[CheckCondition]:
        """The CheckCondition of a READ or a WRITE on the path of the nexus, None if the path is
        active."""
        return alua.refusal(self._access_state())

    def _admit_if_accessible(self, task: Task) -> None:
        """Admission while the path is not active: refuse what its state does not allow."""
        opcode, state = task.cdb[0], self._access_state()
        service_action = None if None in self.commands[opcode] else task.cdb[1] & 0x1F
        refusal = alua.refusal(state)
        if refusal and not alua.allows(state, opcode, service_action):
            raise refusal
        self._admit(task)

    def _is_plain(self, row: opcodes.Row) -> bool:
        """May this command skip the general admission?"""
        is_refused = reservation_classes.conflicts(self.refused, row.reservation, b'\0' * 16)
        is_offline = self.restriction == faults.OFFLINE
        if self.power or is_refused or is_offline or not medium_state.is_ready(self.medium):
            return False
        if self.hanging == medium_state.FENCED:
            return False
        needs_checks = self.watched or self.records['bad_blocks']
        return not (row.writes and (self.read_only or self.medium == FAILED or needs_checks))

    def _select_table(self) -> None:
        """Put in force the table that fits the attention queue; check again afterwards, another
        thread may have changed the queue or the tables."""
        while self._tables:
            normal, pending = self._tables
            wanted = pending if len(self.attention) else normal
            if self.dispatch is wanted:
                return
            self.dispatch = wanted

    def _take_attention(self) -> Optional[Tuple[int, int]]:
        pending = self.attention.take()
        self._select_table()
        return pending

    def _report_attention(self, task: Task) -> None:
        pending = self._take_attention()
        if pending:
            raise CheckCondition(UNIT_ATTENTION, *pending)
        # another connection of the session has reported it meanwhile
        self._tables[0][task.cdb[0]](task)

    def _refuse_opcode(self, task: Task) -> None:
        raise sense.invalid_opcode()

    def _admit(self, task: Task) -> None:
        """The general admission: opcode row, CDB usage bits, reservation, medium. The function of
        the command checks LBA and lengths."""
        cdb = task.cdb
        rows = self.commands[cdb[0]]
        row = rows[None] if None in rows else rows.get(cdb[1] & 0x1F)
        if row is None:
            raise sense.invalid_field_in_cdb(1, 4)
        refuse_unused_bits(row, cdb)
        if self.refused and reservation_classes.conflicts(self.refused, row.reservation, cdb):
            raise StatusReturned(RESERVATION_CONFLICT)
        if row.medium and self.hanging == medium_state.FENCED:
            raise StatusReturned(BUSY)
        if row.medium or self.medium in operations.SENSE:
            self._refuse_medium(row, cdb)
            if self.power and row.opcode != opcodes.TEST_UNIT_READY:
                self.set_power(None)
        task.run_blocking = None
        FUNCTIONS[row.function](self, task)
        self.counters.count_admitted(row.function, task, self.block_size)
        if self.watched and row.writes:
            rod_commands.revoke_tokens_before(self, row, task)
        if row.writes and self.records['bad_blocks']:
            medium_errors.note_rewrite(self, row, task)

    def may_still_write(self, task: Task) -> bool:
        """May this command of the unit, which an executor thread runs, still change a medium?"""
        rows = self.commands.get(task.cdb[0]) or {}
        row = rows[None] if None in rows else rows.get(task.cdb[1] & 0x1F)
        changes = row is not None and (row.writes or row.opcode == opcodes.EXTENDED_COPY)
        return changes or self.is_sequential  # any command can move a tape

    def guard_from_new_tokens(self, task: Task) -> Optional[Tuple[int, int]]:
        """Tokens were created after this command was admitted.

        A command that still waits for its data will revoke them before it writes. For a command
        that is being executed, returns (offset, length) of what it may be writing, else None. The
        caller holds `working`."""
        if getattr(task, 'run', None) is None:
            return None  # it is not admitted yet
        rows = self.commands[task.cdb[0]]
        row = rows[None] if None in rows else rows.get(task.cdb[1] & 0x1F)
        if task.transfer is None:
            return rod_commands.written_range(self, row, task)
        rod_commands.revoke_tokens_before(self, row, task)
        return None

    def make_durable(self, task: Task) -> bool:
        """The write cache was disabled after this command was admitted: make it durable. Returns True
        if it is too late, because the command is being executed. The caller holds `working`."""
        if getattr(task, 'run', None) is None or getattr(task, 'durable', True):
            return False  # it is not admitted yet, or is durable anyway
        rows = self.commands[task.cdb[0]]
        row = rows[None] if None in rows else rows.get(task.cdb[1] & 0x1F)
        if row is None or row.function not in sbc.BLOCKS_WRITTEN_AT:
            return False
        task.durable = True
        if task.transfer is None:
            return True
        if task.run is sbc.run_write:
            task.run, task.run_blocking = sbc.would_block, sbc.run_write
        elif task.run is limits.run_limited and task.unlimited_run is sbc.run_write:
            task.unlimited_run, task.run_blocking = sbc.would_block, sbc.run_write
        return False

    def before_write(self, offset: int, length: int) -> None:
        """These bytes are about to change: revoke the tokens that represent them. Executor threads.
        Raises CheckCondition."""
        if rod_tokens.overlaps(self.watched, offset, length):
            self.services.rod_tokens.revoke(offset, length)

    def _refuse_medium(self, row: opcodes.Row, cdb: bytes) -> None:
        not_ready = self.not_ready()
        if not_ready and not self._runs_anyway(row):
            raise not_ready
        if row.writes:
            if self.read_only and not sbc.may_pass_write_protection(self, row, cdb):
                raise self.write_protect_error()
            self.refuse_if_failed()

    def write_protect_error(self) -> CheckCondition:
        """The CheckCondition of a write to a unit that is read_only: 07/27/02 for SWP alone, else
        07/27/00."""
        is_medium = self.facts.read_only or self.restriction == faults.READ_ONLY
        return CheckCondition(DATA_PROTECT, 0x27, 0x00 if is_medium else 0x02)

    def _runs_anyway(self, row: opcodes.Row) -> bool:
        """May this command run although an operation is running, or has failed?"""
        medium = self.medium
        if operations.is_running(medium):
            return row.during_operation
        if operations.is_failed(medium):
            return not row.medium or row.opcode in opcodes.AFTER_FAILURE[medium]
        return False

    def set_power(self, code: Optional[Tuple[int, int]]) -> None:
        """Set the (ASC, ASCQ) of the low power condition that this nexus has selected, which
        REQUEST SENSE reports; None: active, or the nexus has used the medium (SPC-4). Connection
        threads."""
        if self.power != code:
            self.power = code
            self._rebuild_tables()

    # -- records for all nexuses -------------------------------------------------------------------

    def note(self, kind: str, message: Dict[str, Any]) -> None:
        """Apply a record to the replica here at once, and distribute it. Any thread."""
        self.records = unit_records.apply_change(self.records, kind, message)[0]
        self.services.note(kind, message)

    # -- failures of the store ---------------------------------------------------------------------

    def refuse_if_failed(self) -> None:
        """Raise CheckCondition 04/44/00 for writes and flushes after data was lost: GOOD could be
        wrong until the administrator has checked the medium."""
        if self.medium == FAILED:
            raise CheckCondition(HARDWARE_ERROR, 0x44, 0x00)

    def flush(self, offset: int, length: int) -> None:
        """store.flush for commands; counts a failure and reports it to services.data_lost. Raises
        medium_errors.FlushFailed."""
        try:
            self.store.flush(offset, length)
        except OSError as e:
            self._report_failure('flush', e)
            medium_errors.note_fault(self, faults.FLUSH, e, offset, length, False)
            raise medium_errors.FlushFailed(e.errno, e.strerror or str(e))

    def write_failure(self, error: OSError, task: Task) -> CheckCondition:
        """The CheckCondition for an OSError of a write. Reports to services.data_lost if the store
        may have lost data."""
        if getattr(self.store, 'lost', None) is not None:
            self._report_failure('write', error)
        return medium_errors.write_failure(self, error, task)

    def _report_failure(self, verb: str, error: OSError) -> None:
        if not self._failure_reported and faults.is_loss(error):
            self._failure_reported = True
            self.services.data_lost('%s failed: %s' % (verb, error.strerror or error))

    def read_failure(self, error: OSError, task: Task) -> CheckCondition:
        """The CheckCondition for an OSError of a read, with the first block that cannot be read if
        it can be found. Executor threads."""
        return medium_errors.read_failure(self, error, task)
