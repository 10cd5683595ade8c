"""Has the master keep old blocks before the first write of a session to a unit (store.guarding).

May import scsi and the questions to the master.
"""

import errno

from targetd.scsi.faults import RefusedBeforeWrite
from targetd.scsi.sense import CheckCondition, StatusReturned
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
