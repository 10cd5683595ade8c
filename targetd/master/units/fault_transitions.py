"""Transitions of a unit's shared state after a note of a worker (a fault of the medium, a self-test,
blocks that were rewritten) and after the administrator's acknowledgement. Pure; see transitions.
"""

from targetd.master.processes.worker_messages import VALUE_ERRORS
from targetd.master.units.shared_state import ORDERED
from targetd.master.units.transitions import WHEN_POSSIBLE, Decision, Malformed, Others, nexus_ports
from targetd.scsi import attention, faults, health, records

#: The unit attention conditions when a restriction begins or ends.
ATTENTIONS = {
    faults.READ_ONLY: attention.MODE_PARAMETERS_CHANGED,  # the WP bit of the mode parameter header
    faults.OFFLINE: attention.MEDIUM_MAY_HAVE_CHANGED,
}


def noted(shared, nexus, message, on_error, at, acknowledged_at=0):
    """A worker reports a note. on_error: the setting of the LUN; at: milliseconds since 1970;
    acknowledged_at: when the administrator last acknowledged, microseconds of CLOCK_MONOTONIC. Returns
    a Decision. Raises Malformed.

    The Decision persists if it changes more than counts: the first fault of its kind, the first bad
    block, a restriction, a self-test."""
    try:
        kind, note = message['kind'], message['note']
        if (
            kind not in records.NOTE_KINDS
            or kind == 'self-test'
            and tuple(note['by']) != nexus_ports(nexus)
        ):
            raise ValueError('it may not report this')
        if kind == 'error':
            note = dict(note, by=nexus.initiator_name, at=at)
        new, _ = records.apply_change(shared.records, kind, note)
        is_forgotten = kind == 'error' and _was_acknowledged(note, acknowledged_at)
    except VALUE_ERRORS as e:
        raise Malformed('note: %s' % e)
    restriction, attentions = shared.restriction, []
    if is_forgotten:
        new['faults'] = shared.records['faults']
    elif (
        kind == 'error'
        and on_error in faults.RESTRICTIONS
        and faults.is_of_the_medium(note['errno'])
    ):
        restriction = faults.stricter(restriction, on_error)
    if restriction != shared.restriction and restriction == faults.READ_ONLY:
        attentions = [(Others(None),) + ATTENTIONS[restriction]]
    is_lasting = (
        kind == 'self-test'
        or restriction != shared.restriction
        or set(new['faults']) != set(shared.records['faults'])
        or bool(new['bad_blocks']) != bool(shared.records['bad_blocks'])
    )
    return Decision(
        shared._replace(records=new, restriction=restriction),
        attentions,
        persist=WHEN_POSSIBLE if is_lasting else False,
    )


def _was_acknowledged(note, acknowledged_at):
    """True for errors that a worker had collected when the administrator acknowledged: the first of their
    kind was known by then. Other reports are never forgotten: nobody has heard of them before."""
    return 'seen' in note and faults.check_number(note['seen']) < acknowledged_at


def state_ordered(shared, state):
    """The setting `state` of the LUN is in force from now on. A Decision, with unit attentions for all
    nexuses if the restriction changes; None if nothing changes."""
    new = shared._replace(ordered=ORDERED[state])
    if new == shared:
        return None
    kinds = set()
    if new.in_force != shared.in_force:
        kinds = {shared.in_force} | ({new.in_force} & {faults.READ_ONLY})
    kinds.discard(faults.NONE)
    return Decision(new, [(Others(None),) + ATTENTIONS[kind] for kind in sorted(kinds)])


def health_found(shared, found):
    """The disk was asked about its health (scsi.health). A Decision. All nexuses get one unit attention
    5D/xx when it predicts a failure, if the mode parameters select that; only a change of what it
    predicts is saved at once."""
    new = dict(shared.records, health=found)
    before = health.failure(shared.records)
    code = health.attention(shared.modes, new)
    is_new = health.failure(new) != before
    return Decision(
        shared._replace(records=new),
        [(Others(None),) + code] if code and is_new else (),
        persist=WHEN_POSSIBLE if is_new else False,
    )


def is_degraded(shared):
    """True if there were faults since the administrator last acknowledged, or a restriction is in
    force."""
    return bool(shared.records['faults'] or shared.restriction)


def acknowledged(shared, decision=None):
    """The administrator acknowledges the faults: they are forgotten and the restriction ends. Bad
    blocks stay recorded until they are rewritten. decision: what the acknowledgement changes besides.
    Returns a Decision."""
    after = decision or Decision(shared, persist=True)
    attentions = list(after.attentions)
    if shared.restriction:
        attentions.append((Others(None),) + ATTENTIONS[shared.restriction])
    new = after.shared._replace(
        restriction=faults.NONE, records=dict(after.shared.records, faults={})
    )
    return after._replace(shared=new, attentions=tuple(attentions))
