"""A question to the master whose answer an executor thread waits for. Executor threads only.

Closing a descriptor would drop the POSIX locks that this process holds on the same file
(store.base.Exclusive), so it is done while no thread holds any.
"""

import os
import threading

from targetd.scsi import sam
from targetd.scsi.sense import HARDWARE_ERROR, CheckCondition, StatusReturned
from targetd.store.base import Exclusive

#: Longer than the master needs to fence a worker that does not acknowledge.
ANSWER_SECONDS = 30.0


def ask(worker, what, arrived=None, too_late=None, **words):
    """The master's answer, with descriptors. arrived(answer): in the control thread, as soon as it
    is there; too_late(answer): likewise, when nobody waits for it any more. Raises CheckCondition,
    StatusReturned."""
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

    worker.ask(what, answered, **words)
    waited.wait(ANSWER_SECONDS)
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
        with Exclusive(-1, 0, 0, local=True):
            os.close(descriptor)


def close_store(opened):
    """Close a store."""
    with Exclusive(-1, 0, 0, local=True):
        opened.close()


def _refusal(answer):
    """The exception for an answer that is not GOOD; its sense data are in fixed format."""
    if not answer.get('sense'):
        return StatusReturned(answer['status'])
    sense = bytes.fromhex(answer['sense'])
    return CheckCondition(sense[2] & 0x0F, sense[12], sense[13])
