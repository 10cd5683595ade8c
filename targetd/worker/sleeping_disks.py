"""Has the master wake the disk of a unit before an access (store.sleeping), and tells it when no write is in
progress any more.

May import scsi.sense, store and the questions to the master.
"""

import errno
import threading
import time

from targetd.scsi.sense import CheckCondition, StatusReturned
from targetd.store.sleeping import FALLING, Sleep
from targetd.worker.copy import ask_master

#: Longer than the master waits for a disk that spins down and up again.
WAKE_SECONDS = 240.0
LOOK_SECONDS = 0.01  # while a write is in progress


def sleep_of(worker, message):
    """Returns the Sleep of the unit in this message (channel.py), None if its disk never sleeps."""
    if message.get('sleep') is None:
        return None
    return Sleep(message['sleep'], waker(worker, message['unit']))


def waker(worker, unit_id):
    """Returns the function wake() of a Sleep. It raises OSError. [executor]"""

    def wake():
        try:
            ask_master.wait_for_answer(worker, 'wake', limit=WAKE_SECONDS, unit=unit_id)
        except (CheckCondition, StatusReturned):
            raise OSError(errno.EIO, 'the disk sleeps, and was not woken')

    return wake


def apply(unit, state, acknowledge):
    """The master says how the disk of the unit is (store.sleeping; None: it says nothing); acknowledge() when
    that is in force: before the disk is stopped, no write may be in progress. [control]"""
    sleep = unit.services.sleep if unit is not None and state is not None else None
    if sleep is None:
        acknowledge()
        return
    sleep.state = state
    if state != FALLING or not sleep.has_writes():
        acknowledge()
        return
    arguments = (sleep, acknowledge)
    threading.Thread(target=_wait_for_writes, args=arguments, daemon=True).start()


def _wait_for_writes(sleep, acknowledge):
    while sleep.has_writes() and sleep.state == FALLING:
        time.sleep(LOOK_SECONDS)
    acknowledge()
