"""The target as one nexus sees it: its logical units by LUN, and the units that answer for LUNs
without one. Pure.

Threads: the control thread adds and removes units; connection threads look them up. Every change
makes new dicts and puts them in place with one assignment, so neither thread waits for the other.
"""

from typing import Any, Dict, List, Optional, Sequence, Tuple

from targetd.scsi import attention, opcodes, sense, spc
from targetd.scsi.dispatch import FUNCTIONS, refuse_unused_bits
from targetd.scsi.facts import UnitFacts
from targetd.scsi.lu import LogicalUnit
from targetd.scsi.sam import Nexus, Port, Task
from targetd.scsi.sense import CheckCondition

#: LUN addressing: how REPORT LUNS lists the LUNs from 256 on
FLAT = 'flat'
PERIPHERAL = 'peripheral'


def lun_of(lun_field: int) -> Optional[int]:
    """The LUN number of an 8-byte LUN field, or None if the field does not use single-level
    peripheral or flat space addressing (SAM-5).

    libiscsi, QEMU and iPXE send a LUN from 256 on as the plain number, which is peripheral
    addressing with a bus identifier. No other unit has such an address.
    """
    first, rest = lun_field >> 48, lun_field & 0xFFFFFFFFFFFF
    return None if rest or first >> 15 else first & 0x3FFF


def lun_fields(lun: int) -> Tuple[int, int]:
    """The LUN fields that address this LUN number: the plain number, flat space addressing."""
    return lun << 48, (0x4000 | lun) << 48


class Device(object):
    """The logical units that one nexus finds at the target, by LUN.

    nexus: sam.Nexus; ports: the sam.Port rows of the target; addressing: FLAT or PERIPHERAL, how
    LUNs from 256 on are reported; luns: {LUN number: LogicalUnit}, replaced as a whole, never changed
    in place.
    """

    def __init__(self, nexus: Nexus, ports: Sequence[Port] = (), addressing: str = FLAT) -> None:
        self._reports_flat = addressing == FLAT
        self.nexus = nexus
        self.ports = tuple(ports)
        self.luns: Dict[int, LogicalUnit] = {}
        self._units: Dict[int, LogicalUnit] = {}  # by LUN field; replaced as a whole
        self._report_luns = ReportLunsUnit(self)

    def unit(self, lun_field: int) -> Any:
        """The LogicalUnit with this 8-byte LUN field (an int), or the AbsentUnit that answers in
        its place. Hot."""
        return self._units.get(lun_field) or self._other_unit(lun_field)

    def _other_unit(self, lun_field: int) -> 'AbsentUnit':
        if lun_field == ReportLunsUnit.LUN_FIELD:
            return self._report_luns
        return AbsentUnit(self, spc.ABSENT_LUN_0 if lun_of(lun_field) == 0 else spc.ABSENT)

    def add(self, lun: int, unit: LogicalUnit) -> None:
        """Put the unit at this LUN, 0..16383; it replaces the unit that was there. [control]"""
        self.add_units({lun: unit})

    def add_units(self, units: Dict[int, LogicalUnit]) -> None:
        """As add(), for {LUN: unit}: one step, however many units there are. [control]"""
        for lun, unit in units.items():
            unit.lun = lun
        luns = dict(self.luns)
        luns.update(units)
        self.luns = luns
        fields = dict(self._units)
        fields.update((field, unit) for lun, unit in units.items() for field in lun_fields(lun))
        self._units = fields

    def remove(self, lun: int) -> Optional[LogicalUnit]:
        """Remove the unit with this LUN and return it; None if there is none. Its running tasks
        continue. [control]"""
        luns = dict(self.luns)
        unit = luns.pop(lun, None)
        self.luns = luns
        fields = dict(self._units)
        for field in lun_fields(lun):
            fields.pop(field, None)
        self._units = fields
        return unit

    def raise_attention(self, asc: int, ascq: int) -> None:
        """Raise this unit attention of every unit for the nexus. [control]"""
        for unit in list(self.luns.values()):
            unit.raise_attention(asc, ascq)

    def lun_fields(self, select_report: int) -> Optional[List[int]]:
        """The LUN fields that REPORT LUNS lists (SPC-4 6.33), or None for a SELECT REPORT that is
        not supported."""
        units = [lun_fields(lun)[lun > 255 and self._reports_flat] for lun in sorted(self.luns)]
        well_known = [ReportLunsUnit.LUN_FIELD]
        listed = {0x00: units, 0x01: well_known, 0x02: well_known + units, 0x10: [], 0x11: units}
        return listed.get(select_report)

    def luns_reported(self) -> None:
        """Drop pending unit attentions 3F/0E: REPORT LUNS has reported the LUNs (SPC-4 6.33). Any
        thread."""
        for unit in list(self.luns.values()):
            unit.drop_attention(*attention.LUNS_CHANGED)


class AbsentUnit(object):
    """The unit that answers for a LUN without a logical unit: it supports INQUIRY, REPORT LUNS and
    REQUEST SENSE, and refuses all other commands with 05/25/00 (SAM-5).

    qualifier: INQUIRY byte 0. LUN 0 gets peripheral qualifier 001b: initiators that stop at 011b
    would not find the other LUNs.
    """

    lun = None
    is_sequential = False
    facts = UnitFacts.from_message({})
    ROWS = dict((row.opcode, row) for row in opcodes.TABLE if row.exempt)

    def __init__(self, device: Device, qualifier: int) -> None:
        self.device = device
        self.qualifier = qualifier

    def admit(self, task: Task) -> None:
        """As LogicalUnit.admit."""
        row = self.ROWS.get(task.cdb[0])
        if row is None:
            raise sense.unit_not_supported()
        refuse_unused_bits(row, task.cdb)
        task.run_blocking = None
        FUNCTIONS[row.function](self, task)

    def vpd_page(self, code: int) -> bytes:
        """VPD page 00h, the only one, which lists itself: Windows reads it from LUN 0 even if LUN 0
        has no disk. Raises CheckCondition 05/24/00 for other pages."""
        if code:
            raise sense.invalid_field_in_cdb(2)
        return bytes((self.qualifier, 0, 0, 1, 0))

    def sense(self, error: CheckCondition) -> bytes:
        """The sense data of this CheckCondition."""
        return error.sense(False)

    def take_sense(self) -> Optional[CheckCondition]:
        """What REQUEST SENSE, with status GOOD, reports: LOGICAL UNIT NOT SUPPORTED."""
        return sense.unit_not_supported()

    def luns_reported(self) -> None:
        """REPORT LUNS has reported the LUNs to this nexus."""
        self.device.luns_reported()


class ReportLunsUnit(AbsentUnit):
    """The REPORT LUNS well-known logical unit (SPC-4), which always exists."""

    LUN_FIELD = 0xC101 << 48
    ROWS = dict(
        (row.opcode, row)
        for row in opcodes.TABLE
        if row.exempt or row.opcode == opcodes.TEST_UNIT_READY
    )

    def __init__(self, device: Device) -> None:
        super(ReportLunsUnit, self).__init__(device, spc.WELL_KNOWN)

    def take_sense(self) -> Optional[CheckCondition]:
        return None
