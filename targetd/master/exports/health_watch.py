"""Asks the physical disks behind the units about their health, every health-interval of a LUN.

     tick --> a job per file system or disk runs smartctl --> answers --> the unit's records: log pages,
                                                                    |     5D/xx
                                                                    --> the log, the event `health`

Only jobs run smartctl: it may wait for a disk as long as the disk likes. While a job of a group runs, no
second one is started for it.
"""

import functools
import os
import time

from targetd import events, log
from targetd.errors import StoreError
from targetd.host import smart
from targetd.host.beneath import disks_beneath
from targetd.host.roots import ROOTS
from targetd.master import service_notices
from targetd.master.processes import child
from targetd.master.units import fault_transitions
from targetd.store.sleeping import ROTATES

FIRST_SECONDS = 2.0  # after a start or a reload
JOB_SECONDS = 90.0
ASKING_SECONDS = 60.0  # no disk is asked later than this in a job
RUNNING = 4  # jobs at the same time
WATCHED_KINDS = ('file', 'block')

#: The states of a unit's disks about which the log says something, the most important first.
_WORST = (smart.FAILING, smart.HOT, smart.UNKNOWN, smart.ASLEEP, smart.HEALTHY)


class HealthWatch(object):
    """units: logical_units.Units; jobs: Jobs."""

    def __init__(self, loop, units, jobs):
        self.loop = loop
        self.units = units
        self.jobs = jobs
        self.answers = {}  # unit id -> [the latest answer of each disk, with its `node`]
        self._known = {}  # unit id -> {node: the latest answer in which the disk told its health}
        self._said = {}  # unit id -> (state, why) that the log has said
        self._due = {}  # unit id -> time of the loop's clock
        self._running = set()  # names of the jobs that have not answered
        self._timer = None

    def reconsider(self):
        """Units or their settings may have changed: look soon which disks are to be asked."""
        self._schedule(FIRST_SECONDS)

    def close(self):
        """Cancels the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self, seconds):
        self.close()
        self._timer = self.loop.call_later(seconds, self._tick)

    def _watched(self):
        return [
            unit
            for unit in self.units.by_id.values()
            if unit.lun.health_interval and unit.store.kind in WATCHED_KINDS
        ]

    def _tick(self):
        self._timer = None
        now, watched = self.loop.clock(), self._watched()
        for table in (self.answers, self._known, self._said, self._due):
            for gone in set(table) - {unit.id for unit in watched}:
                del table[gone]
        groups = {}
        for unit in watched:
            if self._due.get(unit.id, now) > now:
                continue
            if unit.sleep != ROTATES:  # it was stopped by this server, and would be woken
                self._postpone([unit])
            else:
                groups.setdefault(_group_of(unit), []).append(unit)
        for group, units in groups.items():
            name = ('health', group)
            if name in self._running or self.jobs.is_stuck(name):
                self._postpone(units)
            elif len(self._running) < RUNNING:
                self._ask(name, units)
        if watched:
            soonest = min(self._due.get(unit.id, now) for unit in watched)
            self._schedule(max(soonest - now, 1.0))

    def _postpone(self, units):
        for unit in units:
            self._due[unit.id] = self.loop.clock() + unit.lun.health_interval

    def _ask(self, name, units):
        self._running.add(name)
        self._postpone(units)
        wanted = [(unit.id, unit.store.path, unit.lun.health_device) for unit in units]
        self.jobs.submit_job(
            name,
            lambda: ask_disks(wanted),
            lambda result: self._answered(name, units, result),
            seconds=JOB_SECONDS,
        )

    # -- answers -----------------------------------------------------------------------------------

    def _answered(self, name, units, result):
        self._running.discard(name)
        found = result.values.get('found', {})
        for unit in units:
            if self.units.by_id.get(unit.id) is not unit:
                continue
            silent = dict(smart.no_answer(result.why or 'it was not asked'), node='')
            self._note(unit, found.get(unit.id) or [silent])

    def _note(self, unit, answers):
        known = self._known.setdefault(unit.id, {})
        for answer in answers:
            if answer['state'] in smart.KNOWN:
                known[answer['node']] = answer
        self.answers[unit.id] = answers
        before = unit.shared.records.get('health') or {}
        told = [known.get(answer['node'], answer) for answer in answers]
        health = smart.combined(told, int(time.time() * 1000), before)
        if health is not before:
            self.units.replication.apply_decision(
                unit, fault_transitions.health_found(unit.shared, health)
            )
        self._say(unit, told)

    def _say(self, unit, answers):
        """One line and one event for each change; nothing about a disk that is well from the start."""
        worst = worst_of(answers)
        now = worst['state'], worst['why']
        before = self._said.get(unit.id)
        self._said[unit.id] = now
        state = worst['state']
        if before is not None and before[0] == state:
            return
        disk = ' '.join(filter(None, (worst['node'], worst['model'], worst['serial'])))
        if state in (smart.UNKNOWN, smart.ASLEEP):
            log.info('unit %s: the health of its disk %s is not known: %s', unit.id, disk, now[1])
            return
        if state == smart.HEALTHY and (
            before is None or before[0] not in (smart.FAILING, smart.HOT)
        ):
            return
        events.emit(
            'health',
            unit=unit.id,
            path=unit.lun.backing_store,
            disk=disk,
            state=state,
            why=worst['why'],
            temperature='' if worst.get('temperature') is None else worst['temperature'],
        )
        if state == smart.FAILING:
            log.error('unit %s: the disk %s is FAILING: %s; replace it', unit.id, disk, now[1])
        elif state == smart.HOT:
            log.warning('unit %s: the disk %s is too hot: %s', unit.id, disk, now[1])
        else:
            log.info('unit %s: its disks are healthy again', unit.id)

    def state(self, unit):
        """The worst state (host.smart) of the disks behind a unit, '' if they were not asked."""
        worst = worst_of(self.answers.get(unit.id) or ())
        return worst['state'] if worst else ''

    def described(self, unit):
        """What `show units` says about the health: 'failing: …', 'hot: …' or ''."""
        worst = worst_of(self.answers.get(unit.id) or ())
        if worst is None or worst['state'] not in (smart.FAILING, smart.HOT):
            return ''
        return '%s: %s: %s' % (worst['state'], worst['node'], worst['why'])

    def rows(self, unit):
        """The rows of `show disks` about the disks behind a unit."""
        known = self._known.get(unit.id) or {}
        return [
            dict(
                dict.fromkeys(ROW), unit=unit.id, **_row(known.get(answer['node'], answer), answer)
            )
            for answer in self.answers.get(unit.id) or ()
        ]

    @staticmethod
    def empty_row(unit, name):
        """A row about a disk (kernel name) that is not asked about its health."""
        return dict(dict.fromkeys(ROW), unit=unit.id, node='/dev/' + name if name else '')


#: What `show disks` says of each disk: keys of its answer (host.smart).
ROW = (
    'node', 'model', 'serial', 'firmware', 'transport', 'state', 'why', 'temperature', 'limit', 'hours',
    'wear', 'reallocated', 'pending',
)  # fmt: skip


def _row(told, answer):
    """told: the latest answer that tells the health; answer: the latest one."""
    row = {key: told.get(key) for key in ROW}
    return dict(row, node=answer['node'], state=answer['state'], why=answer['why'])


def worst_of(answers):
    """The answer with the worst state, or None if there is none."""
    return min(answers, key=lambda answer: _WORST.index(answer['state']), default=None)


def _group_of(unit):
    """The units that one job asks for: those of a file system, which may hang together."""
    key = unit.store.key
    return key[:2] if unit.store.kind == 'file' else tuple(key)


# -- in the job ------------------------------------------------------------------------------------


def ask_disks(wanted, ask=smart.ask, clock=time.monotonic):
    """Runs in a child process. wanted: [(unit id, path, ((smartctl's type, device), …) or ())]. Returns
    ({'found': {unit id: [answer with `node`]}}, ())."""
    asked, found, end = {}, {}, clock() + ASKING_SECONDS
    environment = service_notices.of_children()
    prepare = functools.partial(child.die_with, os.getpid())
    for unit_id, path, devices in wanted:
        try:
            devices = devices or [('', ROOTS.node(name)) for name in disks_beneath(path)]
        except StoreError as e:
            found[unit_id] = [dict(smart.no_answer(str(e)), node='')]
            continue
        for kind, node in devices:
            if (kind, node) not in asked:
                late = smart.no_answer('other disks took too long to answer')
                answer = ask(node, kind, environment, prepare) if clock() < end else late
                asked[kind, node] = dict(answer, node='%s@%s' % (kind, node) if kind else node)
        found[unit_id] = [asked[tuple(device)] for device in devices] or [
            dict(smart.no_answer('the disk behind it cannot be told'), node='')
        ]
    return {'found': found}, ()
