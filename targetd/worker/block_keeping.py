"""Has the master keep old blocks before the first write of a session to a unit (store.guarding), and gets
the segments of its undo journal (store.undoing).

May import scsi, store and the questions to the master.
"""

import errno
import os

from targetd import log
from targetd.scsi.faults import RefusedBeforeWrite
from targetd.scsi.sense import CheckCondition, StatusReturned
from targetd.store import undoing
from targetd.worker.copy import ask_master


def keeper(worker, unit_id):
    """Returns the function keep(reason) of a Guarded store. It raises OSError that is not
    a fault of the medium. [executor]"""

    def keep(reason):
        try:
            ask_master.wait_for_answer(worker, 'guard', unit=unit_id, kind=reason)
        except (CheckCondition, StatusReturned):
            raise RefusedBeforeWrite(errno.EROFS, 'the old blocks cannot be kept; the log says why')

    return keep


def journal(worker, unit_id):
    """Returns the undoing.Journal of an Undoable store. [executor]"""

    def new_segment():
        try:
            answer = ask_master.wait_for_answer(worker, 'guard', unit=unit_id, kind='segment')
        except (CheckCondition, StatusReturned):
            raise OSError(errno.EROFS, 'there is no segment of the undo journal; the log says why')
        segment, lock = answer['descriptors']
        try:
            return undoing.Segment(segment, answer['capacity']), lock
        except BaseException:
            os.close(lock)
            raise

    def refused(error):
        if error.errno not in (errno.EROFS, errno.ETIMEDOUT):
            log.error(
                'unit %s: a write is refused, because its undo journal cannot be written: %s',
                unit_id,
                error.strerror or error,
            )
        # a range that another command has locked for long is not the initiator's affair: it tries again
        number = errno.ETIMEDOUT if error.errno == errno.ETIMEDOUT else errno.EROFS
        return RefusedBeforeWrite(number, error.strerror or str(error))

    return undoing.Journal(new_segment, refused)
