"""Keeps old blocks of a unit before initiators write to it (the setting guard).

     a worker asks (store.guarding) --> job: guard_files.keep_heads --> answered: the worker writes
                                              | failed, or too late
                                              v
                                        refused: the write ends with DATA PROTECT, WRITE PROTECTED

FORMAT UNIT and SANITIZE are decided after such a job. A job of a unit that is running serves every request
that arrives meanwhile, since none of their writes is done before it ends.

The undo journal is written by the workers (store.undoing); they ask for each of its segments:

     a worker asks for a segment --> job: undo_files.new_segment --> answered with its descriptor

FORMAT UNIT records the whole medium before it begins, or that it is more than the journal holds
(keep_all); SANITIZE has erased the journal when it ends (erase_journal).
"""

import errno
import os
import time

from targetd import log
from targetd.config.scsi_kinds import Guards as Kind
from targetd.errors import StoreError
from targetd.master.state import guard_files, undo_files, undo_history
from targetd.master.units import transitions
from targetd.master.units.transitions import Malformed, Refusal
from targetd.scsi import errno_map, sam
from targetd.store.guarding import FIRST, LARGE, TABLE

OPERATION, SEGMENT = 'operation', 'segment'
REASONS = {
    FIRST: 'first write',
    TABLE: 'write to the partition table',
    LARGE: 'large UNMAP or WRITE SAME',
    OPERATION: 'FORMAT UNIT or SANITIZE',
}
#: Less than the time that a worker waits for an answer.
KEEP_SECONDS = 25.0
RESTORE_SECONDS = 60.0
#: A journal is read, put back or erased as a whole.
JOURNAL_SECONDS = 3600.0


def has_snapshot(lun):
    """True if the partition table and the heads of the file systems are kept."""
    return Kind.SNAPSHOT in dict(lun.guard)


def journal_bytes(lun):
    """The size of the undo journal of a Lun, 0 if it has none."""
    return dict(lun.guard).get(Kind.JOURNAL, 0)


class Guards(object):
    """jobs: Jobs; directory: the path of state-dir/guards."""

    def __init__(self, jobs, directory):
        self.jobs = jobs
        self.directory = directory
        self._waiting = {}  # unit -> functions of the JobResult, while its job runs

    def on_guard(self, unit, worker, message, answer):
        """`ask guard`: the session of the worker is about to write. Raises Malformed."""
        if message.get('kind') == SEGMENT:
            self._new_segment(unit, worker, answer)
            return
        if message.get('kind') not in (FIRST, TABLE, LARGE):
            raise Malformed('guard: an unknown kind')
        self.keep(unit, worker, message['kind'], answer)

    def keep(self, unit, worker, reason, answer):
        """Keep the old blocks, then answer(Refusal): GOOD, or why the command is refused."""
        if not has_snapshot(unit.lun) or unit.store.descriptor is None:
            answer(Refusal(sam.GOOD))
            return
        waiting = self._waiting.get(unit)
        if waiting is not None:
            waiting.append(answer)
            return
        self._waiting[unit] = [answer]
        words = self._words(unit, worker.session.nexus.initiator_name, REASONS[reason])
        medium = guard_files.Medium(unit.store.description(), unit.store.descriptor)
        self.jobs.submit_job(
            ('guard', unit.id),
            lambda: guard_files.keep_heads(self.directory, unit.key, medium, words),
            lambda result: self._kept(unit, words, result),
            [unit.store.descriptor],
            KEEP_SECONDS,
        )

    def _words(self, unit, by, reason):
        return {
            'unit': '%s/%d' % (unit.target_name, unit.lun.number),
            'by': by,
            'reason': reason,
            'key_check': unit.shared.key_check,
        }

    def _kept(self, unit, words, result):
        outcome = Refusal(sam.GOOD)
        if result.why:
            log.error(
                'unit %s: a write of %s is refused, because the blocks that it could overwrite cannot be '
                'kept: %s; correct that, or write guard = off',
                unit.id,
                words['by'],
                result.why,
            )
            outcome = transitions.refusal(
                unit.shared, errno_map.write_failure(OSError(errno.EROFS, ''))
            )
        elif result.values['is_new']:
            log.info(
                'unit %s: its partition table and the heads of its file systems are kept as number %d '
                '(%s of %s)',
                unit.id,
                result.values['number'],
                words['reason'],
                words['by'],
            )
        for answer in self._waiting.pop(unit):
            answer(outcome)

    # -- the undo journal --------------------------------------------------------------------------

    def _new_segment(self, unit, worker, answer):
        """Answer with the next segment of the unit's journal for this worker."""
        path, capacity = undo_files.path_of(self.directory, unit.key), journal_bytes(unit.lun)
        by = worker.session.nexus.initiator_name
        words = self._words(unit, by, Kind.JOURNAL)

        def made(result):
            if result.why or len(result.descriptors) != 2:
                self._refuse_segment(unit, by, result, answer)
            else:
                answer(Refusal(sam.GOOD), {'capacity': capacity}, result.descriptors)
            for descriptor in result.descriptors:  # the message has its own
                os.close(descriptor)

        if not capacity:  # the setting has changed, and the session has not logged in again yet
            self._refuse_segment(unit, by, None, answer)
            return
        self.jobs.submit_job(
            ('guard segment', unit.id),
            lambda: undo_files.new_segment(path, capacity, words),
            made,
            seconds=KEEP_SECONDS,
        )

    def _refuse_segment(self, unit, by, result, answer):
        log.error(
            'unit %s: a write of %s is refused, because its undo journal cannot be written: %s; correct '
            'that, or write another guard',
            unit.id,
            by,
            result.why if result else 'it has none now',
        )
        answer(transitions.refusal(unit.shared, errno_map.write_failure(OSError(errno.EROFS, ''))))

    def keep_all(self, unit, by, done):
        """Record the whole medium before FORMAT UNIT; done('' or why that failed). No other worker writes
        meanwhile."""
        capacity = journal_bytes(unit.lun)
        if not capacity or unit.store.descriptor is None:
            done('')
            return
        path = undo_files.path_of(self.directory, unit.key)
        words = self._words(unit, by, REASONS[OPERATION])
        medium = guard_files.Medium(unit.store.description(), unit.store.descriptor)
        self.jobs.submit_job(
            ('guard operation', unit.id),
            lambda: undo_history.keep_all(path, medium, capacity, words),
            lambda result: done(result.why),
            [unit.store.descriptor],
            JOURNAL_SECONDS,
        )

    def erase_journal(self, unit, done):
        """SANITIZE: erase what the journal has of the unit, also if it is not used now; done('' or why that
        failed)."""
        path = undo_files.path_of(self.directory, unit.key)
        if not os.path.isdir(path):
            done('')
            return

        def erased(result):
            if not result.why:
                log.info('unit %s: its undo journal is erased', unit.id)
            done(result.why)

        self.jobs.submit_job(
            ('guard erase', unit.id), lambda: undo_files.erase(path), erased, (), JOURNAL_SECONDS
        )

    def interrupt_journal(self, unit, why, done):
        """The content of the medium is about to change without a session; why: a sentence. done('' or why
        that cannot be noted in the undo journal)."""
        self._journal_job(unit, lambda: undo_files.interrupt(self.directory, unit.key, why), done)

    def begin_journal_anew(self, unit, done):
        """The content of the medium has changed, and the undo journal records what follows; done('' or why
        it does not)."""
        if not journal_bytes(unit.lun):
            done('')
            return
        self._journal_job(unit, lambda: undo_files.resume(self.directory, unit.key), done)

    def _journal_job(self, unit, work, done):
        def in_child():
            try:
                work()
            except StoreError as e:
                return {'failed': str(e)}, ()
            return {}, ()

        self.jobs.submit_job(
            ('guard journal', unit.id),
            in_child,
            lambda result: done(result.why),
            (),
            JOURNAL_SECONDS,
        )

    # -- the administrator -------------------------------------------------------------------------

    def list_files(self, units, done):
        """done(JobResult) with the rows of `guard list`."""
        keys = {unit.key: unit.id for unit in units}

        def work():
            heads, descriptors = guard_files.rows(self.directory, keys)
            if 'rows' in heads:
                heads['rows'] = sorted(
                    heads['rows'] + undo_history.rows(self.directory, keys), key=lambda r: r['unit']
                )
            return heads, descriptors

        self._submit('guard list', work, done)

    def remove_files(self, names, number, done):
        """done(JobResult) with the number of files that were removed. names: as in the rows of one unit;
        number: None for all, with the journal."""

        def work():
            removed = 0
            for name in sorted(names):
                found = [guard_files.remove(self.directory, name, number)[0]]
                if number is None:
                    path = os.path.join(self.directory, name + '.undo')
                    found.append(undo_files.erase(path, False)[0])
                for each in found:
                    if 'failed' in each:
                        return each, ()
                    removed += each['removed']
            return {'removed': removed}, ()

        self._submit('guard remove', work, done)

    def _submit(self, name, work, done):
        self.jobs.submit_job((name,), work, done, (), JOURNAL_SECONDS)

    def restore(self, unit, same_medium, number, by, done):
        """Put the kept heads with this number back; done(JobResult) as for _restore."""
        path, capacity = undo_files.path_of(self.directory, unit.key), journal_bytes(unit.lun)
        medium = guard_files.Medium(unit.store.description(), unit.store.descriptor)
        words = self._words(unit, by, guard_files.RESTORE)
        journal = undo_files.own_journal(path, capacity, words) if capacity else None
        self._restore(
            unit,
            same_medium,
            'number %d' % number,
            lambda: guard_files.restore(self.directory, unit.key, number, medium, words, journal),
            RESTORE_SECONDS,
            done,
        )

    def go_back(self, unit, same_medium, since, by, done):
        """Give the unit the content that it had at a time, in seconds since 1970; done(JobResult) as for
        _restore."""
        path, capacity = undo_files.path_of(self.directory, unit.key), journal_bytes(unit.lun)
        medium = guard_files.Medium(unit.store.description(), unit.store.descriptor)
        words = self._words(unit, by, guard_files.RESTORE)
        self._restore(
            unit,
            same_medium,
            'the content of ' + time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(since)),
            lambda: undo_history.restore(path, since * 1000000000, medium, capacity, words),
            JOURNAL_SECONDS,
            done,
        )

    def _restore(self, unit, same_medium, what, work, seconds, done):
        """Put old blocks back. No session gets the unit, or another one of its medium, meanwhile.
        done(JobResult) when it has ended; the caller has checked that no session uses them."""
        units = [unit] + list(same_medium)

        def ended(result):
            for each in units:
                each.is_restoring = False
            log.warning(
                'unit %s: the restore of %s %s',
                unit.id,
                what,
                'FAILED: ' + result.why if result.why else 'is done',
            )

        def answered(result):
            if not result.is_late:
                ended(result)
            done(result)

        for each in units:
            each.is_restoring = True
        self.jobs.submit_job(
            ('guard restore', unit.id), work, answered, [unit.store.descriptor], seconds, late=ended
        )


class NoGuards(object):
    """The part of Guards that operations use, where nothing is kept."""

    def keep_all(self, unit, by, done):
        done('')

    def erase_journal(self, unit, done):
        done('')
