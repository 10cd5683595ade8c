"""The target as one nexus sees it: its Device, the LogicalUnits behind it, and what stands where
none is. Pure.

The dispatch table is the admission state (ARCHITECTURE D10). A unit keeps two tables of 256 admission functions: `open`, made
anew whenever a replica changes, in which each entry already knows whether its command is reserved away, write protected or
without a medium; and `owed`, in force while a unit attention is pending, whose entries report it unless the command is exempt.
`unit.dispatch` is the one in force, and `unit.admit(task)` one subscription and one call.

Threads: connection threads call admit() and what it sets; the worker's control thread calls
update(), raise_attention() and resized(). Neither waits for the other: every change makes a new
object and puts it in place with one assignment, and _select() looks again after its own.
"""

from targetd.scsi import alua as access_rules
from targetd.scsi import (
    atomic_commands,
    attention,
    buffers,
    diagnostics,
    errno_map,
    hot,
    identifying,
    logs,
    opcodes,
    operations,
    provisioning,
    sanitize,
    sbc,
    sense,
    spc,
    vpd,
)
from targetd.scsi import modes as mode_pages
from targetd.scsi import records as record_rules
from targetd.scsi import reservations as reservation_rules
from targetd.scsi.copy import copy_manager, extended_copy, rod_commands, rod_tokens
from targetd.scsi.facts import UnitFacts
from targetd.scsi.sam import RESERVATION_CONFLICT
from targetd.scsi.sense import (
    DATA_PROTECT,
    HARDWARE_ERROR,
    NO_SENSE,
    NOT_READY,
    UNIT_ATTENTION,
    CheckCondition,
    StatusReturned,
)

__all__ = ('AbsentUnit', 'Device', 'LogicalUnit', 'ReportLunsUnit', 'UnitFacts')

MODULES = {
    'spc': spc,
    'sbc': sbc,
    'provisioning': provisioning,
    'atomic': atomic_commands,
    'sanitize': sanitize,
    'copies': copy_manager,
    'third_party': extended_copy,
    'rods': rod_commands,
    'logs': logs,
    'buffers': buffers,
    'diagnostics': diagnostics,
    'identifying': identifying,
}
FUNCTIONS = dict(
    (row.function, getattr(MODULES[row.function.split('.')[0]], row.function.split('.')[1]))
    for row in opcodes.TABLE
)

NO_LIMIT = 1 << 64
LOCALIZE_STEP = 1 << 16  # bytes; how finely a failed read is first taken apart

#: medium -> sense of every command that needs it. 'ready' and 'failed' serve reads.
NOT_READY_SENSE = dict(
    operations.SENSE,
    **{
        'stopped': (
            NOT_READY,
            0x04,
            0x02,
        ),  # INITIALIZING COMMAND REQUIRED: START STOP UNIT with START
        'ejected': (NOT_READY, 0x3A, 0x00),
        'ready': None,
        'failed': None,
    },
)
UNKNOWN_MEDIUM = (NOT_READY, 0x04, 0x03)  # MANUAL INTERVENTION REQUIRED


def lun_of(lun_field):
    """The LUN number of an 8-byte LUN field, or None if it is not single-level peripheral (bus 0)
    or flat space addressing (SAM-5)."""
    first, rest = lun_field >> 48, lun_field & 0xFFFFFFFFFFFF
    if rest:
        return None
    if first >> 8 == 0x00:
        return first
    return first & 0x3FFF if first >> 14 == 1 else None


def lun_fields(lun):
    """The LUN fields that name this LUN, the one to report first: peripheral below 256, flat space
    from there on."""
    flat = (0x4000 | lun) << 48
    return (lun << 48, flat) if lun < 256 else (flat,)


class Device(object):
    """What one nexus finds at the target: units by LUN field.

    nexus: sam.Nexus; ports: the target's sam.Port rows. The control thread adds and removes; the
    connection looks up.
    """

    def __init__(self, nexus, ports=()):
        self.nexus = nexus
        self.ports = tuple(ports)
        self.luns = {}  # LUN number -> LogicalUnit
        self._units = {}  # LUN field -> unit; replaced, never changed
        self._report_luns = ReportLunsUnit(self)

    def unit(self, lun_field):
        """The LogicalUnit with this 8-byte LUN field (an int), or the AbsentUnit that answers in
        its place. Hot."""
        return self._units.get(lun_field) or self._elsewhere(lun_field)

    def has_unit(self, lun_field):
        """Is there a logical unit, well-known ones included?"""
        return lun_field in self._units or lun_field == ReportLunsUnit.LUN_FIELD

    def _elsewhere(self, lun_field):
        if lun_field == ReportLunsUnit.LUN_FIELD:
            return self._report_luns
        return AbsentUnit(self, spc.ABSENT_LUN_0 if lun_of(lun_field) == 0 else spc.ABSENT)

    def add(self, lun, unit):
        """Put the unit at this LUN, 0..16383, in place of what was there."""
        unit.lun = lun
        luns = dict(self.luns)
        luns[lun] = unit
        self.luns = luns
        self._index()

    def remove(self, lun):
        """Take the unit away; returns it, or None. Its running tasks go on."""
        luns = dict(self.luns)
        unit = luns.pop(lun, None)
        self.luns = luns
        self._index()
        return unit

    replace = add

    def _index(self):
        self._units = dict(
            (field, unit) for lun, unit in self.luns.items() for field in lun_fields(lun)
        )

    def raise_attention(self, asc, ascq):
        """Owe the nexus this unit attention from every unit."""
        for unit in list(self.luns.values()):
            unit.raise_attention(asc, ascq)

    def lun_fields(self, select_report):
        """The LUN fields that REPORT LUNS lists (SPC-4 6.33), or None for a SELECT REPORT that is
        not defined here."""
        units = [lun_fields(lun)[0] for lun in sorted(self.luns)]
        well_known = [ReportLunsUnit.LUN_FIELD]
        return {0x00: units, 0x01: well_known, 0x02: well_known + units, 0x10: [], 0x11: units}.get(
            select_report
        )

    def luns_reported(self):
        """REPORT LUNS has told what 3F/0E would have told (SPC-4 6.33)."""
        for unit in list(self.luns.values()):
            unit.drop_attention(*attention.LUNS_CHANGED)


class AbsentUnit(object):
    """A LUN without a unit: INQUIRY, REPORT LUNS and REQUEST SENSE are answered, the rest is
    05/25/00 (SAM-5).

    qualifier: INQUIRY byte 0. LUN 0 gets 001b, so that initiators which look no further than 011b
    find the other LUNs.
    """

    lun = None
    facts = UnitFacts.from_message({})
    ROWS = dict((row.opcode, row) for row in opcodes.TABLE if row.exempt)

    def __init__(self, device, qualifier):
        self.device = device
        self.qualifier = qualifier

    def admit(self, task):
        """As LogicalUnit.admit."""
        row = self.ROWS.get(task.cdb[0])
        if row is None:
            raise sense.unit_not_supported()
        refuse_unused_bits(row, task.cdb)
        task.run_blocking = None
        FUNCTIONS[row.function](self, task)

    def vpd_page(self, code):
        """Only page 00h, which lists itself: Windows asks for it at LUN 0 though there is no disk."""
        if code:
            raise sense.invalid_field_in_cdb(2)
        return bytes((self.qualifier, 0, 0, 1, 0))

    def sense(self, error):
        """The sense data of this CheckCondition, as bytes."""
        return error.sense(False)

    def take_sense(self):
        """REQUEST SENSE is GOOD, and its data say that there is no unit."""
        return sense.unit_not_supported()

    def luns_reported(self):
        """The inventory has been told to this nexus."""
        self.device.luns_reported()


class ReportLunsUnit(AbsentUnit):
    """The REPORT LUNS well-known logical unit (SPC-4): there whatever else is."""

    LUN_FIELD = 0xC101 << 48
    ROWS = dict(
        (row.opcode, row)
        for row in opcodes.TABLE
        if row.exempt or row.opcode == opcodes.TEST_UNIT_READY
    )

    def __init__(self, device):
        super(ReportLunsUnit, self).__init__(device, spc.WELL_KNOWN)

    def take_sense(self):
        return None


def refuse_unused_bits(row, cdb):
    """Raise 05/24/00 with its field pointer if a bit is set that the row does not use."""
    refused = row.first_refused_bit(cdb)
    if refused:
        raise sense.invalid_field_in_cdb(*refused)


def ignore_failure(text):
    """The on_failure of a unit whose owner does not want to know."""


def ignore_note(kind, message):
    """The on_note of such a unit."""


def no_clock():
    """The clock of a unit that was not given one."""
    return 0


def start_now(work, argument):
    """The start of a unit that has no threads."""
    work(argument)


class LogicalUnit(object):
    """One logical unit, for one nexus.

    facts: UnitFacts; store: its verbs; device: the Device it belongs to; modes, reservations, access, records: the replicas
    (None: as if nobody had changed anything); medium: a key of NOT_READY_SENSE; progress: of an operation (scsi.operations),
    0..65535, set by the control thread. A new unit owes 29/00.
    Its owner may set: clock() -> milliseconds since 1970, since: when the unit began, in that clock; start(work, argument): run
    it in another thread; on_note(kind, message): what all nexuses should know of (scsi.records.TOLD).
    rods: who makes and honours ROD tokens (worker.rods); watched: the byte ranges that tokens stand for; reach: who finds units
    of other targets for copies (third_party.NoReach).
    The connection sets task.unit before it calls admit. on_failure(text) is called, by any thread, once when the store has lost
    data it had taken; update(medium='ready') rearms it.
    Readable by anyone: lun, blocks, block_size, medium, read_only, write_through, descriptor_sense, task_aborted_status.
    """

    qualifier = spc.DISK

    def __init__(
        self,
        facts,
        store,
        nexus,
        device,
        modes=None,
        reservations=None,
        medium='ready',
        lun=None,
        access=None,
        records=None,
    ):
        self.facts = facts
        self.store = store
        self.nexus = nexus
        self.device = device
        self.lun = lun
        self.on_failure = ignore_failure
        self._failure_told = False
        self.attention = attention.Queue([attention.POWER_ON_OR_RESET])
        self.copies = copy_manager.Copies()
        self.rods = None
        self.reach = extended_copy.NoReach
        self.watched = []
        self.under_way = []
        self.block_size = facts.block_size
        self.maximum_blocks = facts.maximum_transfer_length // facts.block_size or NO_LIMIT
        self.commands = opcodes.by_opcode(facts)
        self.blocks = store.size // facts.block_size
        self.modes = modes or mode_pages.initial(facts)
        self.reservations = reservations or reservation_rules.initial()
        self.access = access or access_rules.initial(
            [port.target_port_group_tag for port in device.ports]
        )
        self.records = records or record_rules.initial()
        self.buffers = buffers.Buffers()
        self.clock = no_clock
        self.since = 0
        self.start = start_now
        self.on_note = ignore_note
        self.self_test = None  # diagnostics.SelfTest that runs in the background
        self.power = None  # (ASC, ASCQ) of a low power condition that this nexus asked for
        self.medium = medium
        self.progress = 0
        self.dispatch = ()
        self._rebuild()

    # -- connection threads ------------------------------------------------------------------------------------------

    def admit(self, task):
        """Check everything that needs no data; set task.run, run_blocking, data_out_length. Raises
        CheckCondition or StatusReturned. Hot."""
        self.dispatch[task.cdb[0]](task)

    def sense(self, error):
        """The sense data of this CheckCondition in the format that D_SENSE asks for, as bytes."""
        return error.sense(self.descriptor_sense)

    def take_sense(self):
        """What REQUEST SENSE reports, as a CheckCondition, or None: a unit attention, which is owed
        no more, or why the unit is not ready."""
        owed = self._take_attention()
        if owed:
            return CheckCondition(UNIT_ATTENTION, *owed)
        found = access_rules.refusal(self._access_state()) or self.not_ready()
        if found is None and self.power:
            found = CheckCondition(NO_SENSE, *self.power)
        return found

    def not_ready(self):
        """Why the medium is not ready, as a CheckCondition, or None."""
        not_ready = NOT_READY_SENSE.get(self.medium, UNKNOWN_MEDIUM)
        if not_ready is None:
            return None
        return CheckCondition(
            *not_ready, progress=self.progress if operations.is_running(self.medium) else None
        )

    def vpd_page(self, code):
        """The vital product data page. Raises CheckCondition if the unit does not have it."""
        return vpd.page(code, self.facts, self.nexus, self.device.ports, self.blocks)

    def luns_reported(self):
        """The inventory has been told to this nexus."""
        self.device.luns_reported()

    # -- the control thread ------------------------------------------------------------------------------------------

    def raise_attention(self, asc, ascq):
        """Owe the nexus this unit attention."""
        self.attention.add(asc, ascq)
        self._select()

    def drop_attention(self, asc, ascq):
        """Owe it no more. Any thread."""
        self.attention.drop(asc, ascq)
        self._select()

    def update(self, **replicas):
        """Put new replicas in force: any of reservations=, modes=, medium=, access=, records=,
        watched=. Commands that are admitted from now on see them."""
        for name in replicas:
            if name not in ('reservations', 'modes', 'medium', 'access', 'records', 'watched'):
                raise TypeError('a LogicalUnit has no replica %s' % name)
        for name, value in replicas.items():
            setattr(self, name, value)
        if replicas.get('medium') == 'ready':
            self._failure_told = False
        self._rebuild()

    def resized(self, size):
        """The medium has `size` bytes now. The store knows already; the unit attention comes from
        whoever resized."""
        self.blocks = size // self.block_size
        self._rebuild()

    # -- the dispatch table ------------------------------------------------------------------------------------------

    def _rebuild(self):
        current = mode_pages.parameters(self.modes)
        self.write_through = not current.wce
        self.descriptor_sense = current.d_sense
        self.task_aborted_status = current.tas
        self.read_only = self.facts.read_only or current.swp
        self.refused = reservation_rules.refused_classes(self.reservations, self.nexus)
        opened = [self._refuse_opcode] * 256
        for opcode in self.commands:
            opened[opcode] = self._admit
        for opcode, admit in hot.bind(self, self._admit).items():
            if self._is_plain(self.commands[opcode][None]):
                opened[opcode] = admit
        if self._access_state() in access_rules.ALLOWED:
            for opcode in self.commands:
                opened[opcode] = self._admit_if_accessible
        owed = [self._report_attention] * 256
        for row in opcodes.TABLE:
            if row.exempt:
                owed[row.opcode] = opened[row.opcode]
        self._tables = opened, owed
        self._select()

    def _access_state(self):
        """The asymmetric access state of the target port group that the nexus comes through."""
        return access_rules.state_of(self.access, self.nexus.target_port_group_tag)

    def path_refusal(self):
        """The CheckCondition for a READ or a WRITE by the path of the nexus, or None where it is
        active."""
        return access_rules.refusal(self._access_state())

    def _admit_if_accessible(self, task):
        """The admission while the path is in standby or the like: what the state does not let pass
        ends here."""
        opcode, state = task.cdb[0], self._access_state()
        service_action = None if None in self.commands[opcode] else task.cdb[1] & 0x1F
        if not access_rules.passes(state, opcode, service_action):
            raise access_rules.refusal(state)
        self._admit(task)

    def _is_plain(self, row):
        """May this command skip the general admission?"""
        return not (
            self.power
            or reservation_rules.conflicts(self.refused, row.reservation, b'\0' * 16)
            or NOT_READY_SENSE.get(self.medium, UNKNOWN_MEDIUM)
            or row.writes
            and (self.read_only or self.medium == 'failed' or self.watched)
        )

    def _select(self):
        """Put the table in force that the attention queue asks for; look again, another thread may
        have changed either."""
        while True:
            opened, owed = self._tables
            wanted = owed if len(self.attention) else opened
            if self.dispatch is wanted:
                return
            self.dispatch = wanted

    def _take_attention(self):
        owed = self.attention.take()
        self._select()
        return owed

    def _report_attention(self, task):
        owed = self._take_attention()
        if owed:
            raise CheckCondition(UNIT_ATTENTION, *owed)
        self._tables[0][task.cdb[0]](task)  # another connection of the session took it meanwhile

    def _refuse_opcode(self, task):
        raise sense.invalid_opcode()

    def _admit(self, task):
        """The general admission: opcode row, CDB usage bits, reservation, medium; LBA and lengths
        are the command's."""
        cdb = task.cdb
        rows = self.commands[cdb[0]]
        row = rows[None] if None in rows else rows.get(cdb[1] & 0x1F)
        if row is None:
            raise sense.invalid_field_in_cdb(1, 4)
        refuse_unused_bits(row, cdb)
        if self.refused and reservation_rules.conflicts(self.refused, row.reservation, cdb):
            raise StatusReturned(RESERVATION_CONFLICT)
        if row.medium or self.medium in operations.SENSE:
            self._refuse_medium(row, cdb)
            if self.power and row.opcode != opcodes.TEST_UNIT_READY:
                self.set_power(None)
        task.run_blocking = None
        FUNCTIONS[row.function](self, task)
        if self.watched and row.writes:
            rod_commands.guard(self, row, task)

    def heed(self, task):
        """A command was admitted, and then tokens were made. One that waits for its data will
        revoke them first. Of one that is being carried out, gives (offset, length) of what it may
        be writing, else None. `working` is held."""
        if getattr(task, 'run', None) is None:
            return None  # it will be admitted yet
        rows = self.commands[task.cdb[0]]
        row = rows[None] if None in rows else rows.get(task.cdb[1] & 0x1F)
        if task.transfer is None:
            return rod_commands.written(self, row, task)
        rod_commands.guard(self, row, task)
        return None

    def before_write(self, offset, length):
        """These bytes are about to change: revoke the tokens that stand for them. Executor threads.
        Raises CheckCondition."""
        if rod_tokens.touches(self.watched, offset, length):
            self.rods.revoke(offset, length)

    def _refuse_medium(self, row, cdb):
        not_ready = self.not_ready()
        if not_ready and not self._works_anyway(row):
            raise not_ready
        if row.writes:
            if self.read_only and not sbc.writes_nothing(self, row, cdb):
                raise self.protection()
            self.refuse_if_failed()

    def protection(self):
        """What a write to a unit ends with that is read_only: a CheckCondition that says who
        protects it."""
        return CheckCondition(DATA_PROTECT, 0x27, 0x00 if self.facts.read_only else 0x02)

    def _works_anyway(self, row):
        """May this command go on although an operation runs, or has failed?"""
        medium = self.medium
        if operations.is_running(medium):
            return (row.opcode, row.service_action) in opcodes.WHILE_OPERATING
        if operations.is_failed(medium):
            return not row.medium or row.opcode in opcodes.AFTER_FAILURE[medium]
        return False

    def set_power(self, code):
        """This nexus asked for a low power condition, REQUEST SENSE says so with this (ASC, ASCQ);
        None: for the active one, or it used the medium (SPC-4). Connection threads."""
        if self.power != code:
            self.power = code
            self._rebuild()

    # -- what all nexuses should know --------------------------------------------------------------------------------

    def note(self, kind, message):
        """Write it into the records here at once, and tell the owner. Any thread."""
        self.records = record_rules.apply(self.records, kind, message)[0]
        self.on_note(kind, message)

    def _note_error(self, error, kind):
        if error.errno in errno_map.LOCALIZED:
            self.note('error', {'kind': kind})

    # -- failures of the store ---------------------------------------------------------------------------------------

    def refuse_if_failed(self):
        """Raise 04/44/00 for writes and flushes once data was lost: GOOD would be a lie until the
        administrator has looked."""
        if self.medium == 'failed':
            raise CheckCondition(HARDWARE_ERROR, 0x44, 0x00)

    def flush(self, offset, length):
        """store.flush for commands; a failure is told to the owner. Raises OSError."""
        try:
            self.store.flush(offset, length)
        except OSError as e:
            self._tell_failure('flush', e)
            raise

    def write_failure(self, error, task):
        """The CheckCondition for an OSError of a write, whose owner is told if data may be lost."""
        if getattr(self.store, 'lost', None) is not None:
            self._tell_failure('write', error)
        self._note_error(error, 'write')
        lba = task.offset // self.block_size if task.length == self.block_size else None
        return errno_map.write_failure(error, lba)

    def _tell_failure(self, verb, error):
        if not self._failure_told:
            self._failure_told = True
            self.on_failure('%s failed: %s' % (verb, error.strerror or error))

    def read_failure(self, error, task):
        """The CheckCondition for an OSError of a read, with the first block that cannot be read if
        that can be found. Executor threads."""
        lba = None
        self._note_error(error, 'verify' if task.cdb[0] in opcodes.VERIFIES else 'read')
        if error.errno in errno_map.LOCALIZED and not task.aborted:
            lba = self._first_unreadable(task.offset, task.length)
        return errno_map.read_failure(error, lba)

    def _first_unreadable(self, offset, length):
        for step in (max(LOCALIZE_STEP, self.block_size), self.block_size):
            for start in range(offset, offset + length, step):
                count = min(step, offset + length - start)
                try:
                    self.store.read(start, count)
                except OSError:
                    offset, length = start, count
                    break
            else:
                return None  # it can be read now
        return offset // self.block_size
