"""Keeps old blocks of a unit before an initiator writes to it for the first time (the setting guard).

     a worker asks (store.guarding) --> job: guard_files.keep_heads --> answered: the worker writes
                                              | failed, or too late
                                              v
                                        refused: the write ends with DATA PROTECT, WRITE PROTECTED

FORMAT UNIT and SANITIZE are decided after such a job. A job of a unit that is running serves every request
that arrives meanwhile, since none of their writes is done before it ends.
"""

import errno

from targetd import log
from targetd.master.state import guard_files
from targetd.master.units import transitions
from targetd.master.units.transitions import Malformed, Refusal
from targetd.scsi import errno_map, sam
from targetd.store.guarding import FIRST, LARGE, TABLE

OPERATION = 'operation'
OFF = 'off'
REASONS = {
    FIRST: 'first write',
    TABLE: 'write to the partition table',
    LARGE: 'large UNMAP or WRITE SAME',
    OPERATION: 'FORMAT UNIT or SANITIZE',
}
#: Less than the time that a worker waits for an answer.
KEEP_SECONDS = 25.0
RESTORE_SECONDS = 60.0


class Guards(object):
    """jobs: Jobs; directory: the path of state-dir/guards."""

    def __init__(self, jobs, directory):
        self.jobs = jobs
        self.directory = directory
        self._waiting = {}  # unit -> functions of the JobResult, while its job runs

    def on_guard(self, unit, worker, message, answer):
        """`ask guard`: the session of the worker is about to write. Raises Malformed."""
        if message.get('kind') not in (FIRST, TABLE, LARGE):
            raise Malformed('guard: an unknown kind')
        self.keep(unit, worker, message['kind'], answer)

    def keep(self, unit, worker, reason, answer):
        """Keep the old blocks, then answer(Refusal): GOOD, or why the command is refused."""
        if unit.lun.guard == OFF or unit.store.descriptor is None:
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

    # -- the administrator -------------------------------------------------------------------------

    def list_files(self, units, done):
        """done(JobResult) with the rows of `guard list`."""
        keys = {unit.key: unit.id for unit in units}
        self._submit('guard list', lambda: guard_files.rows(self.directory, keys), done)

    def remove_files(self, name, number, done):
        """done(JobResult) with the number of files that were removed. name: as in the rows."""
        self._submit('guard remove', lambda: guard_files.remove(self.directory, name, number), done)

    def _submit(self, name, work, done):
        self.jobs.submit_job((name,), work, done)

    def restore(self, unit, same_medium, number, by, done):
        """Put old blocks back. No session gets the unit, or another one of its medium, meanwhile.
        done(JobResult) when it has ended; the caller has checked that no session uses them."""
        units = [unit] + list(same_medium)
        medium = guard_files.Medium(unit.store.description(), unit.store.descriptor)
        words = self._words(unit, by, guard_files.RESTORE)

        def ended(result):
            for each in units:
                each.is_restoring = False
            log.warning(
                'unit %s: the restore of number %d %s',
                unit.id,
                number,
                'FAILED: ' + result.why if result.why else 'is done',
            )

        def answered(result):
            if not result.is_late:
                ended(result)
            done(result)

        for each in units:
            each.is_restoring = True
        self.jobs.submit_job(
            ('guard restore', unit.id),
            lambda: guard_files.restore(self.directory, unit.key, number, medium, words),
            answered,
            [unit.store.descriptor],
            RESTORE_SECONDS,
            late=ended,
        )
