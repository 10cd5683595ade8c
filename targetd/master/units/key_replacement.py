"""Replaces key files for CRYPTOGRAPHIC ERASE in a job, so that the master does not wait for their disk.

     replace() --> job: key_files.replace_key() --> done(key in force, error)
                    ^            |
                    +-- no answer in time, or the process died: again after RETRY_SECONDS

A job that gave no answer may have replaced the key, or may do so later. The unit stays erasing, so no
block is written meanwhile, and the key is replaced once more as soon as that process has ended.
"""

import errno

from targetd import log
from targetd.master.state import key_files

SECONDS = 300.0  # for a job: it syncs files ten times or so
RETRY_SECONDS = 5.0


class KeyReplacements(object):
    """jobs: Jobs; loop: Loop."""

    def __init__(self, jobs, loop):
        self.jobs = jobs
        self.loop = loop
        self._running = set()  # key files

    def replace(self, path, is_wanted, done):
        """Replace the key in this file; done(key in hex digits or '' if the old one is in force, OSError or
        None). is_wanted(): False if nobody waits for it any more; done() is not called then."""

        def answered(answer):
            self._running.discard(path)
            if 'key' in answer.values:
                if is_wanted():
                    done(answer.values['key'], _error_of(answer.values))
                return
            log.error(
                'the key in %s is not replaced yet: %s; trying again every %d seconds',
                path,
                answer.why,
                RETRY_SECONDS,
            )
            self.loop.call_later(RETRY_SECONDS, start)

        def start():
            if not is_wanted():
                return
            name = 'the key file %s' % path
            if path in self._running or self.jobs.is_stuck(name):
                self.loop.call_later(RETRY_SECONDS, start)
                return
            self._running.add(path)
            self.jobs.submit_job(name, lambda: _replaced(path), answered, seconds=SECONDS)

        # the start of the server waits for jobs, but not for this one
        self.loop.call_later(0, start)


def _error_of(values):
    if not values['errno']:
        return None
    error = OSError(values['errno'], values['error'])
    if values['key']:
        return key_files.KeyHalfReplaced(error, values['key'], values['is_lasting'])
    return error


# -- in the job ------------------------------------------------------------------------------------


def _replaced(path):
    values = {'key': '', 'errno': 0, 'error': '', 'is_lasting': True}
    try:
        values['key'] = key_files.replace_key(path)
    except OSError as e:
        values.update(errno=e.errno or errno.EIO, error=e.strerror or str(e))
        if isinstance(e, key_files.KeyHalfReplaced):
            values.update(key=e.digits, is_lasting=e.is_lasting)
    return values, ()
