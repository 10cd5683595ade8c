"""Who may use a logical unit beside the initiator that uses it already (the setting `sharing`). Pure.

An initiator is its iSCSI name: the sessions of one name, such as the paths of MPIO, count as one. An
initiator *holds* a unit while a session of it, or a copy that it started, may write it. A session whose
lun-map has `read-only` never holds the unit.

     sharing      another initiator holds the unit
     exclusive    it is left out of the session's LUNs
     readers      the session sees it read-only
     cluster      the session may write it too

This is decided when a session is given the unit: at its login, or when the LUN is added. A session that
was left out gets the unit by a new login, and not by itself when the holder goes: otherwise the disk of a
host that restarts would move to any other host that is logged in to the target.

A tape is for one session, also if several are of one initiator.

LUNs that serve one medium under two names (allow-in-use) count as one unit; they share it only if
both have `cluster`.
"""

from targetd.config.sharing_rules import CLUSTER, READERS, sharing_of

#: Peripheral device type of a real tape drive (SPC-4).
TAPE_DRIVE = 0x01

#: What a session may do with a unit.
WRITE, READ, NOTHING = 'write', 'read', 'nothing'

#: In place of a holder: another session has the export of an NBD server without CAN_MULTI_CONN.
SINGLE = 'another session'

#: In place of a holder: the worker of the session was forked before the LUN was added, and cannot send SCSI
#: commands (processes.sandbox).
CONFINED = 'the sandbox of the session'

#: In place of a holder: the old blocks of the unit are being put back.
RESTORING = 'targetdctl guard restore'


def holders(unit):
    """The names of the initiators that hold a Unit, as a set."""
    using = {
        nexus.initiator_name
        for worker, nexus in unit.replica_holders()
        if worker not in unit.readers
    }
    return using.union(filter(None, unit.leaving.values()))


def is_single(unit):
    """True if only one session at a time can use a Unit: without CAN_MULTI_CONN, an NBD server
    promises nothing about what one connection sees of another."""
    return unit.store.kind == 'nbd' and not (unit.store.multi or unit.store.read_only)


def is_too_confined(unit, worker):
    """True if the worker of a session cannot use a Unit that is a real SCSI device."""
    rules = getattr(worker, 'rules', None)
    return bool(
        unit.facts.get('passthrough') and rules and rules.has_filter and not rules.may_command
    )


def access(unit, same_medium, initiator_name, worker=None):
    """(what a session of this initiator may do with the Unit, another initiator that holds it or '').

    same_medium: the other Units of its medium; worker: of the session, None for a copy from elsewhere.
    """
    if unit.is_restoring:
        return NOTHING, RESTORING
    if is_tape(unit):
        return _access_to_tape(unit, initiator_name, worker)
    wanted = sharing_of(unit.lun)
    others = set() if wanted == CLUSTER else holders(unit)
    for other in same_medium:
        if not (unit.lun.readonly or other.lun.readonly):
            others |= set() if wanted == sharing_of(other.lun) == CLUSTER else holders(other)
    others.discard(initiator_name)
    if not others:
        return WRITE, ''
    return READ if wanted == READERS else NOTHING, min(others)


def is_tape(unit):
    """A tape has one position, so it is for one session at a time, whatever the initiator."""
    is_device = unit.facts.get('passthrough') and unit.facts.get('peripheral_type') == TAPE_DRIVE
    return bool(unit.facts.get('tape') or is_device)


def _access_to_tape(unit, initiator_name, worker):
    others = [nexus.initiator_name for each, nexus in unit.replica_holders() if each is not worker]
    others += [name or 'a reader' for each, name in unit.leaving.items() if each is not worker]
    if worker is None or others:
        return NOTHING, min(others, default=initiator_name)
    return WRITE, ''


def why_left_out(unit, holder):
    """Why a session does not see a Unit that this initiator holds, and what to do."""
    if holder == CONFINED:
        return 'it is a real device, which was added after this session had begun; log in again'
    if is_tape(unit) and holder != RESTORING:
        return (
            '%s has a session that uses the tape, which is for one session at a time; log in again when that '
            'session has ended' % holder
        )
    if holder == RESTORING:
        return 'its old blocks are being restored; log in again when "%s" has ended' % RESTORING
    if holder == SINGLE:
        return (
            'another session uses it, and the NBD server does not offer CAN_MULTI_CONN, so two '
            'sessions would not see '
            'what the other one writes; log in again when that session has ended, or start the '
            'server so that it '
            'offers it (qemu-nbd: -e 0)'
        )
    return (
        '%s uses it, and two hosts that do not know each other destroy its file system; log in again when '
        'the sessions of that initiator have ended, or write sharing = cluster if both run cluster software'
        % holder
    )
