"""The states of a logical unit's medium, and the sense data of commands that cannot use it. Pure.

       READY ──STOP──► STOPPED ──eject──► EJECTED
         │ ▲─────START────┘  ▲              │
         │ └──────────────load──────────────┘
         ├──the medium is smaller than before──► SHRUNK ──the administrator resumes it──► READY
         └──acknowledged data may be lost──► FAILED ──the administrator resumes it──► READY

While a FORMAT UNIT or a SANITIZE runs, and after it has failed, the state is one of
scsi.operations instead. The states are words of the messages between master and worker.
"""

from typing import Dict, Optional, Tuple

from targetd.scsi import operations
from targetd.scsi.sense import NOT_READY, CheckCondition

READY, STOPPED, EJECTED, FAILED, SHRUNK = 'ready', 'stopped', 'ejected', 'failed', 'shrunk'

#: Whether the medium answers, beside its state: it does; commands wait for it for long, and no
#: command runs in a connection's thread; an aborted command may still change the medium, and every
#: command that needs the medium ends with BUSY until that command has returned.
ANSWERS, HANGS, FENCED = 0, 1, 2

#: The states in which the data can be read. FAILED refuses writes and flushes only.
READABLE = frozenset((READY, FAILED))

#: {state: (sense key, ASC, ASCQ) of every command that needs the medium, None where there is none}
NOT_READY_SENSE: Dict[str, Optional[Tuple[int, int, int]]] = dict(operations.SENSE)
NOT_READY_SENSE[READY] = NOT_READY_SENSE[FAILED] = None
# INITIALIZING COMMAND REQUIRED: START STOP UNIT with START
NOT_READY_SENSE[STOPPED] = (NOT_READY, 0x04, 0x02)
NOT_READY_SENSE[EJECTED] = (NOT_READY, 0x3A, 0x00)
MANUAL_INTERVENTION_REQUIRED = (NOT_READY, 0x04, 0x03)
# a part of the data is gone
NOT_READY_SENSE[SHRUNK] = MANUAL_INTERVENTION_REQUIRED
#: The same for a state that this version does not know.
UNKNOWN_STATE_SENSE = MANUAL_INTERVENTION_REQUIRED


def is_ready(state: str) -> bool:
    """Do commands that need the medium run in this state? (Writes are refused while it is FAILED.)"""
    return NOT_READY_SENSE.get(state, UNKNOWN_STATE_SENSE) is None


def fenced() -> CheckCondition:
    """What REQUEST SENSE reports of a medium that is FENCED: it is in process of becoming ready."""
    return CheckCondition(NOT_READY, 0x04, 0x01)


def not_ready(state: str, progress: int = 0) -> Optional[CheckCondition]:
    """The CheckCondition of a command that needs the medium, None if the medium is ready.
    progress: PROGRESS INDICATION (SPC-4), 0..65535, reported while an operation runs."""
    found = NOT_READY_SENSE.get(state, UNKNOWN_STATE_SENSE)
    if found is None:
        return None
    key, asc, ascq = found
    return CheckCondition(
        key, asc, ascq, progress=progress if operations.is_running(state) else None
    )
