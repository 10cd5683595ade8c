"""The reservation classes of commands, and which of them a reservation refuses. Pure.

A class says which reservations refuse a command. Each row of opcodes.py has one; a row without a
class conflicts whenever anything is reserved against the nexus (fail closed). Every worker computes
refused_classes() once for each change of the reservations (scsi.reservations describes their
state), so commands that nothing refuses cost nothing.
"""

from typing import Any, Dict, FrozenSet, Optional, Tuple

from targetd.scsi.persistent_reserve import (
    REGISTER,
    REGISTER_AND_IGNORE_EXISTING_KEY,
    REGISTRANTS,
    WRITE_EXCLUSIVE_TYPES,
)
from targetd.scsi.sam import Nexus

# The rows of SPC-4 tables 70 and 71 and SBC-3 table 13 that differ, and SPC-2 5.5.1 for
# RESERVE(6/10).
# Never refused: INQUIRY, REPORT LUNS, REQUEST SENSE, READ CAPACITY, LOG SENSE, RTPG, RELEASE …
ALWAYS = 'always'
# Refused by an SPC-2 reservation only: TEST UNIT READY, REPORT REFERRALS, REPORT TIMESTAMP …
STATUS = 'status'
# Refused where the medium may not be read: READ, VERIFY, PRE-FETCH, GET LBA STATUS, MODE SENSE …
READ = 'read'
# Refused where it may not be written: WRITE, UNMAP, SYNCHRONIZE CACHE, MODE SELECT, LOG SELECT …
WRITE = 'write'
RESERVE = 'reserve'  # RESERVE(6/10)
PR_IN = 'pr-in'  # PERSISTENT RESERVE IN
PR_REGISTER = 'pr-register'  # PERSISTENT RESERVE OUT: REGISTER, REGISTER AND IGNORE EXISTING KEY
PR_REGISTERED = 'pr-registered'  # PERSISTENT RESERVE OUT: every other service action
# Classes that depend on the CDB; conflicts() turns them into one of the above.
PR_OUT = 'pr-out'  # by the SERVICE ACTION field
# START STOP UNIT: START=1 without power condition is ALWAYS, all others are WRITE
START_STOP = 'start-stop'
PREVENT = 'prevent'  # PREVENT ALLOW MEDIUM REMOVAL: to allow is ALWAYS, to prevent is WRITE

NOTHING: FrozenSet[str] = frozenset()
SPC2_HOLDER = frozenset([PR_IN, PR_REGISTER, PR_REGISTERED])
SPC2_OTHERS = SPC2_HOLDER | frozenset([STATUS, READ, WRITE, RESERVE])


def port_names(nexus: Nexus) -> Tuple[str, str]:
    """(initiator port name, target port name): how reservations identify a nexus."""
    return (nexus.initiator_port, nexus.target_port)


def refused_classes(state: Dict[str, Any], nexus: Nexus) -> FrozenSet[str]:
    """The reservation classes that the reservations `state` refuse to this nexus; empty if no
    command needs to be checked.

    PERSISTENT RESERVE OUT from a registered nexus is never refused here: the master refuses what it
    must. So a registrant of a Registrants Only reservation (a node of a Windows cluster) pays
    nothing for its commands.
    """
    who = port_names(nexus)
    if state['reserved_by'] is not None:
        return SPC2_HOLDER if tuple(state['reserved_by']) == who else SPC2_OTHERS
    kind = state['type']
    if not kind:
        return NOTHING
    registered = any((r['initiator_port'], r['target_port']) == who for r in state['registrations'])
    if registered and (kind in REGISTRANTS or tuple(state['holder']) == who):
        return NOTHING
    refused = [WRITE, RESERVE]
    if kind not in WRITE_EXCLUSIVE_TYPES:
        refused.append(READ)
    if not registered:
        refused.append(PR_REGISTERED)
    return frozenset(refused)


def conflicts(refused: FrozenSet[str], reservation_class: Optional[str], cdb: bytes) -> bool:
    """Does the set `refused` (of refused_classes) refuse this command? A class of None is refused
    unless the set is empty."""
    if not refused:
        return False
    if reservation_class == PR_OUT:
        registers = cdb[1] & 0x1F in (REGISTER, REGISTER_AND_IGNORE_EXISTING_KEY)
        reservation_class = PR_REGISTER if registers else PR_REGISTERED
    elif reservation_class == START_STOP:
        reservation_class = ALWAYS if cdb[4] & 0xF1 == 0x01 else WRITE
    elif reservation_class == PREVENT:
        reservation_class = WRITE if cdb[4] & 0x03 else ALWAYS
    return reservation_class is None or reservation_class in refused
