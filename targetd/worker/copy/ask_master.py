"""Questions to the master for whose answer an executor thread waits.

Closing a descriptor drops the POSIX locks that this process holds on the same file
(store.base.ExclusiveRange). So descriptors are closed only while no thread holds such a lock.
"""

import os
import threading

from targetd.scsi import sam
from targetd.scsi.sense import HARDWARE_ERROR, CheckCondition, StatusReturned
from targetd.store.base import ExclusiveRange

#: Longer than the master takes to fence a worker that does not acknowledge.
ANSWER_SECONDS = 30.0


def wait_for_answer(worker, what, arrived=None, too_late=None, limit=ANSWER_SECONDS, **words):
    """Ask the master and return its answer, with descriptors; limit: seconds. [executor]

    arrived(answer) is called in the control thread when the answer arrives; so is too_late(answer)
    if this function has already timed out. Raises CheckCondition, StatusReturned."""
    answers, waited, lock = [], threading.Event(), threading.Lock()

    def answered(message):
        if arrived is not None:
            arrived(message)
        with lock:
            answers.append(message)
            is_late = waited.is_set()
            waited.set()
        if is_late:
            (too_late or close_all)(message)

    worker.ask_master(what, answered, **words)
    waited.wait(limit)
    with lock:
        waited.set()
    if not answers:
        raise CheckCondition(HARDWARE_ERROR, 0x44, 0x00)
    answer = answers[0]
    if answer['status'] == sam.GOOD:
        return answer
    close_all(answer)
    raise _refusal(answer)


def close_all(answer):
    """Close the descriptors of an answer."""
    for descriptor in answer['descriptors']:
        with ExclusiveRange(-1, 0, 0, local=True):
            os.close(descriptor)


def close_store(opened):
    """Close a store while no thread holds a POSIX lock."""
    with ExclusiveRange(-1, 0, 0, local=True):
        opened.close()


def _refusal(answer):
    """Return the exception for an answer that is not GOOD; its sense data has fixed format."""
    if not answer.get('sense'):
        return StatusReturned(answer['status'])
    sense = bytes.fromhex(answer['sense'])
    return CheckCondition(sense[2] & 0x0F, sense[12], sense[13])
