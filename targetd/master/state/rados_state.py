"""The state of a unit as an object in a pool of a Ceph cluster (unit-state = rados:POOL[/NAMESPACE]): a
unit_state.UnitState without files and without locks.

     read: document, version --> decide --> write, if the version is still the same --changed--> once more

A helper process of ours (ceph.state_objects) talks to the cluster, for the process that uses this: a saver
keeps it, a job ends with it.
"""

import contextlib
import errno
import json
import os
import re
import subprocess

from targetd.master.processes import outside
from targetd.master.state import state_directory
from targetd.master.state.unit_state import UnitState, require_holder

PREFIX = 'rados:'
ATTEMPTS = 5
#: 'rados:USER@CONF:POOL[/NAMESPACE]', which takes the place of the path of a directory.
_PLACE = re.compile('rados:([^@]*)@(.*):([^:/]+)(?:/([^/]+))?$')

_helpers = {}  # (process id, place) -> Helper


class Changed(Exception):
    """Another server has written in the meantime."""


def place_text(unit_state, conf, user):
    """Returns the place that a value of the setting unit-state means."""
    return '%s%s@%s:%s' % (PREFIX, user, conf, unit_state[len(PREFIX) :])


class RadosState(UnitState):
    """path: the place, from place_text(); node: the Node of this server; journal_directory: where the
    journals of atomic writes are looked for."""

    def __init__(self, path, node, journal_directory=''):
        super(RadosState, self).__init__(path, node)
        user, conf, pool, namespace = _PLACE.match(path).groups()
        self.name = PREFIX + '/'.join(filter(None, (pool, namespace)))
        self.journal_directory = journal_directory
        self._wanted = {'user': user, 'conf': conf, 'pool': pool, 'namespace': namespace or ''}
        self._versions = {}  # key -> the version that was read

    def take(self, *arguments):
        """See UnitState.take()."""
        return self._again(super(RadosState, self).take, *arguments)

    def release(self, key):
        """See UnitState.release()."""
        self._again(super(RadosState, self).release, key)

    def save(self, key, state, medium=None):
        """See UnitState.save()."""
        self._again(super(RadosState, self).save, key, state, medium)

    @staticmethod
    def _again(call, *arguments):
        for _ in range(ATTEMPTS):
            try:
                return call(*arguments)
            except Changed:
                pass
        raise OSError(errno.EBUSY, 'another server writes it again and again')

    @contextlib.contextmanager
    def _locked(self, key):
        yield

    def _require_directory(self):
        """The pool is opened by the helper."""

    def _object(self, key):
        return 'targetd.' + state_directory.file_name(key)

    def _read(self, key):
        def document():
            answer = self._ask({'do': 'read', 'object': self._object(key)})
            self._versions[key] = answer['version']
            if not answer['version']:
                raise OSError(errno.ENOENT, 'there is none')
            return json.loads(answer['text'])

        return state_directory.checked_document(self.file_of(key), document, require_holder)

    def _store(self, key, document):
        words = {'do': 'write', 'object': self._object(key), 'text': json.dumps(document)}
        if self._ask(dict(words, version=self._versions[key])).get('changed'):
            raise Changed()

    def _ask(self, request):
        """Returns the answer of the helper. Raises OSError."""
        which = os.getpid(), self.path
        if which not in _helpers:
            _helpers[which] = Helper(self._wanted)
        try:
            answer = _helpers[which].ask(request)
        except (OSError, ValueError):
            _helpers.pop(which).end()
            raise OSError(errno.EIO, 'the process that uses the Ceph cluster has ended')
        if 'failed' in answer:
            _helpers.pop(which).end()  # the next one connects anew
            raise OSError(answer['errno'], answer['failed'])
        return answer


class Helper(object):
    """The helper process of one process and pool. Its end is the end of its standard input, or of this
    process. Raises OSError."""

    def __init__(self, wanted):
        self._process = subprocess.Popen(
            outside.words('state_objects', json.dumps(wanted)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd='/',
        )

    def ask(self, request):
        """Returns the answer to a request (ceph.state_objects). Raises OSError, ValueError."""
        self._process.stdin.write(json.dumps(request).encode('ascii') + b'\n')
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline().decode('utf-8'))

    def end(self):
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        with contextlib.suppress(OSError):
            self._process.stdin.close()
