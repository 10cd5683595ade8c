"""Persistent reservations (SPC-4 5.12) and SPC-2 reservations as values. Pure.

One logical unit's reservations are one JSON-able dict, never changed in place; the master applies changes, every worker reads a
replica.

The reservation class of a command says when another's reservation refuses it; opcodes.py names one in each row. A row without
a class conflicts whenever anything is reserved against the nexus (fail closed).
"""

from collections import namedtuple

# Reservation classes, from SPC-4 tables 70 and 71, SBC-3 table 13, and SPC-2 5.5.1 for RESERVE and RELEASE.
ALWAYS = 'always'                # never refused: INQUIRY, REPORT LUNS, REQUEST SENSE, READ CAPACITY, LOG SENSE, RELEASE, RTPG …
STATUS = 'status'                # refused by an SPC-2 reservation only: TEST UNIT READY, REPORT REFERRALS …
READ = 'read'                    # refused where the medium may not be read: READ, VERIFY, PRE-FETCH, MODE SENSE, RSOC …
WRITE = 'write'                  # refused where it may not be written: WRITE, UNMAP, SYNCHRONIZE CACHE, MODE SELECT …
RESERVE = 'reserve'              # RESERVE(6/10)
PR_IN = 'pr-in'                  # PERSISTENT RESERVE IN
PR_REGISTER = 'pr-register'      # PERSISTENT RESERVE OUT: REGISTER, REGISTER AND IGNORE EXISTING KEY
PR_REGISTERED = 'pr-registered'  # PERSISTENT RESERVE OUT: RELEASE, CLEAR, PREEMPT, PREEMPT AND ABORT
PR_HOLDER = 'pr-holder'          # PERSISTENT RESERVE OUT: RESERVE, REGISTER AND MOVE
# Classes that depend on the CDB; `conflicts` turns them into one of the above.
PR_OUT = 'pr-out'                # by the SERVICE ACTION field
START_STOP = 'start-stop'        # START STOP UNIT: START=1 without power condition is ALWAYS, the rest WRITE
PREVENT = 'prevent'              # PREVENT ALLOW MEDIUM REMOVAL: allowing is ALWAYS, preventing WRITE


class Outcome(namedtuple('Outcome', 'state status error attentions aborts persist')):
    """What `apply` decided.

    state: the new state (the old object itself if nothing changed); status: GOOD, RESERVATION_CONFLICT or CHECK_CONDITION;
    error: CheckCondition or None; attentions: [((initiator_port, target_port), asc, ascq) …] owed to those nexuses;
    aborts: [(initiator_port, target_port) …] whose tasks PREEMPT AND ABORT ends; persist: the new state must be on stable
    storage before the command completes (APTPL).
    """

    __slots__ = ()


def conflicts(refused, reservation_class, cdb):
    """Does the set `refused` (see refused_classes) refuse this command? A class of None is refused by any non-empty set."""
    raise NotImplementedError
