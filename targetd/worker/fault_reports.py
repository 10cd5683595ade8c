"""Reports of faults of a medium to the master, collected, so that a full or broken disk that fails
thousands of commands a second does not occupy the master.

The first fault of a kind (access and errno) is sent at once. Those of the next COLLECT_SECONDS are sent
as one, with their number and the time of the latest, because the administrator may acknowledge the
faults before the report; a fault that names a bad block is always sent at once. When the session
ends, at most the number of the faults of its last COLLECT_SECONDS is lost.
"""

import threading
import time

COLLECT_SECONDS = 0.5


class FaultReports(object):
    """Of one unit. send(note): reports a note of scsi.records to the master. [any]"""

    def __init__(self, send):
        self._send = send
        self._lock = threading.Lock()
        self._collected = {}  # (access, errno) -> the latest note with `count`, `seen`; None: none yet

    def add(self, note):
        """Send this note of kind 'error', or collect it. [any]"""
        key = note['kind'], note['errno']
        with self._lock:
            if not note['is_exact'] and key in self._collected:
                earlier = self._collected[key]
                count = earlier['count'] + 1 if earlier else 1
                self._collected[key] = dict(note, count=count, seen=int(time.monotonic() * 1e6))
                return
            if not note['is_exact']:
                self._collected[key] = None
                timer = threading.Timer(COLLECT_SECONDS, self.send_collected, (key,))
                timer.daemon = True
                timer.start()
        self._send(note)

    def send_collected(self, key):
        """The time for faults of this kind is over. [any: a timer's thread]"""
        with self._lock:
            note = self._collected.pop(key)
        if note is not None:
            self._send(note)
