"""The log pages that only a tape drive has: Sequential-Access Device and TapeAlert (SSC-3), and Tape
Capacity, as LTO drives have it. Pure; logs makes the pages.

A function takes the unit and returns the parameters: [(code, value)]. It may wait for the store.
"""

from typing import TYPE_CHECKING, List, Tuple

from targetd.scsi import ssc
from targetd.scsi.medium_state import FAILED, READABLE

if TYPE_CHECKING:
    from targetd.scsi.lu import LogicalUnit

Parameters = List[Tuple[int, bytes]]
_MIB = 1 << 20
#: TapeAlert flags, SSC-3: hard error; write protect of a tape that was to be written is not counted.
_FLAGS, _HARD_ERROR = 64, 3


def _sequential_access(unit: 'LogicalUnit') -> Parameters:
    """Bytes of blocks that came from the initiator and went to the tape, and the other way round, since
    this session or this loading began. Nothing is compressed, so they are the same."""
    with ssc.loaded_tape(unit) as tape:
        counts = [tape.written_bytes] * 2 + [tape.read_bytes] * 2
    return [(code, count.to_bytes(8, 'big')) for code, count in enumerate(counts)]


def _tape_alert(unit: 'LogicalUnit') -> Parameters:
    is_failing = unit.medium == FAILED or bool(unit.restriction)
    return [(n, bytes((n == _HARD_ERROR and is_failing,))) for n in range(1, _FLAGS + 1)]


def _capacity(unit: 'LogicalUnit') -> Parameters:
    """What is left behind the data, and what the tape has, in MiB; of another partition, nothing."""
    left = size = 0
    if unit.medium in READABLE:
        with ssc.loaded_tape(unit) as tape:
            size, left = tape.size, tape.size - tape.end.offset
    values = (left // _MIB, 0, size // _MIB, 0)
    return [(code, value.to_bytes(4, 'big')) for code, value in enumerate(values, 1)]


#: (page code, name, function, do its parameters count?)
PAGES = (
    (0x0C, 'Sequential-Access Device', _sequential_access, True),
    (0x2E, 'TapeAlert', _tape_alert, False),
    (0x31, 'Tape Capacity', _capacity, False),
)
#: Codes of the pages of logs.TABLE that a tape drive has too.
SHARED = frozenset((0x02, 0x03, 0x10, 0x2F))
