"""Finds the running server of a pid file and a control socket. The lock of the pid file is the truth, and
not its content or a command line; without the file, the process behind the control socket is found.
"""

import fcntl
import os
import socket
import struct

FLOCK = struct.Struct('@hhqqi0q')  # struct flock of fcntl(2)
CREDENTIALS = struct.Struct('3i')  # struct ucred of unix(7)
CONNECT_SECONDS = 2.0
UNKNOWN = -1  # a process that has no id here: of another host or PID namespace


def running_process(pid_file, control_socket):
    """The process id of the server, UNKNOWN, or None if no server runs."""
    return locking_process(pid_file) or listening_process(control_socket)


def locking_process(path):
    """The process that has locked this file, UNKNOWN, or None."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        asked = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    except OSError:
        return None
    finally:
        os.close(descriptor)
    if kind == fcntl.F_UNLCK:
        return None
    return pid if pid > 0 else UNKNOWN


def listening_process(path):
    """The process that listens on this Unix socket, UNKNOWN, or None."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.settimeout(CONNECT_SECONDS)
        probe.connect(path)
        found = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    except OSError:
        return None
    finally:
        probe.close()
    return CREDENTIALS.unpack(found)[0] or UNKNOWN
