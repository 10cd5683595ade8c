"""Who has locked a pid file, and who listens on a control socket."""

import fcntl
import os
import socket
import subprocess
import sys

from targetd.master import running

LOCK = (
    'import fcntl, sys; f = open(sys.argv[1], "r+"); fcntl.lockf(f, fcntl.LOCK_EX); print("x", flush=True); '
    'sys.stdin.read()'
)


def test_the_process_that_holds_the_lock_is_found_whatever_the_file_contains(tmp_path):
    path = tmp_path / 'pid'
    path.write_text('1\n')
    assert running.locking_process(str(path)) is None
    holder = subprocess.Popen(
        [sys.executable, '-c', LOCK, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline()
        assert running.running_process(str(path), str(tmp_path / 'sock')) == holder.pid
    finally:
        holder.communicate()
    assert running.locking_process(str(path)) is None
    assert running.locking_process(str(tmp_path / 'none')) is None


def test_the_lock_of_this_process_is_not_a_server_and_is_kept(tmp_path):
    path = str(tmp_path / 'pid')
    with open(path, 'w') as f:
        fcntl.flock(f, fcntl.LOCK_EX)  # another kind of lock
        assert running.locking_process(path) is None


def test_the_process_behind_the_control_socket_is_found_without_a_pid_file(tmp_path):
    path = str(tmp_path / 'sock')
    assert running.running_process(str(tmp_path / 'pid'), path) is None
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1)
    assert running.running_process(str(tmp_path / 'pid'), path) == os.getpid()
    listener.close()
    assert running.running_process(str(tmp_path / 'pid'), path) is None
