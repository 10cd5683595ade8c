"""The store process of a Ceph image, where it cannot serve: it says why, and is not started again once it was
fenced. (tests/client/test_client_ceph.py has those that serve.)"""

import os
import sys

import pytest
from daemon import eventually

from targetd import compat
from targetd.ceph import rbd_server
from targetd.master.exports import rbd_process
from targetd.master.exports.nbd_connecting import Unavailable
from targetd.master.processes import outside

CEPH = {'conf': '/nowhere/ceph.conf', 'user': 'nobody', 'node': 'n', 'host': 'h', 'boot': 'b'}


@pytest.fixture
def server(tmp_path, monkeypatch):
    """An RbdServer whose interpreter is that of the tests, which has no module rados."""
    memory = compat.memory_file('test', 4096)
    interpreter = str(tmp_path / 'python3')
    with open(interpreter, 'w') as f:
        f.write('#!/bin/sh\nexec "%s" "$@"\n' % sys.executable)
    os.chmod(interpreter, 0o755)
    monkeypatch.setattr(outside, 'INTERPRETERS', (interpreter,))
    made = rbd_process.RbdServer('rbd:disks/one', CEPH, False, memory)
    yield made
    made.stop()
    os.close(memory)


def test_python_without_the_modules_names_the_packages(server):
    with pytest.raises(Unavailable) as caught:
        server.connect(None, 10)
    assert 'python3-rados and python3-rbd' in str(caught.value)


def test_a_process_that_has_ended_is_started_again_without_a_request(server, tmp_path, monkeypatch):
    """The image was in use when it was opened first, or the process was killed."""
    log = str(tmp_path / 'starts')
    program = 'import os; open("%s", "a").write("x"); os.read(%%s, 1)' % log
    ours, theirs = os.pipe()
    monkeypatch.setattr(server, '_descriptors', lambda: {2: server._errors.fileno(), 9: ours})
    monkeypatch.setattr(outside, 'PROGRAM', program % 9)

    def starts():
        with open(log, 'a+') as f:
            f.seek(0)
            return len(f.read())

    server.begin()
    eventually(lambda: starts() == 1, 20, 'the first start')
    pid = server.pid
    server.tend()
    assert server.pid == pid  # it runs
    os.write(theirs, b'x')
    eventually(lambda: server.tend() or starts() == 2, 20, 'the second start')
    os.close(ours)
    os.close(theirs)


def test_what_the_process_notes_is_no_failure(server, monkeypatch):
    program = 'import os; os.write(2, b"note: slow\\ncannot be opened: no pool\\nnote: more\\n"); os._exit(1)'
    monkeypatch.setattr(outside, 'PROGRAM', program)
    with pytest.raises(Unavailable) as caught:
        server.connect(None, 10)
    assert str(caught.value) == 'cannot be opened: no pool'
    assert server.notes == ['slow', 'more']


def test_a_process_that_was_fenced_is_not_started_again(server, monkeypatch):
    program = 'import os; os.write(2, b"was taken over by two\\n"); os._exit(%d)'
    monkeypatch.setattr(outside, 'PROGRAM', program % rbd_server.FENCED)
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            server.connect(None, 10)
        assert 'was taken over by two' in str(caught.value)
    assert 'when that client has closed the image' in str(caught.value)
