"""The *line* of a process to the keeper of an NBD export (master.exports.nbd_keeper): messages over
a socket pair.

Only the keeper makes connections to the server. Whoever uses the export has a line to it, asks for
a connection, and receives the descriptor of one on which the handshake is over:

    master --control: {'line': flag} and a descriptor--> keeper     (control: the store's descriptor)
    master --control: {'size': bytes} and a descriptor--> keeper --{'size': bytes} or {'why': …}--> master
    worker --{'connect': slot}--> keeper --{'why': …}--> … --{'export': …} and a descriptor--> worker
    job --{'connect': 0, 'unless_clean': True}--> keeper --as above, or at once {'clean': True}--> job
    worker --{'change': …}, its data, …, {'left': True}--> keeper     (what no flush has made durable)

Imports nothing of targetd. A message is a JSON object; the sockets keep their boundaries.
"""

import array
import errno
import json
import os
import select
import socket
import time
from typing import Any, Dict, Iterable, List, Optional, Tuple

#: Bytes of one message at most.
LONGEST = 16 << 10
#: Bytes of one message with a part of the data of a change.
PIECE = 64 << 10
#: Where in the memory file of an export its server notes the size of the medium, if that can change.
SIZE_PLACE = 4088
#: Where it notes with a byte that is 1 that it does not serve the medium any more: another client has it.
FENCED_PLACE = 4087
#: A worker waits so long for a keeper that does not take what it leaves.
LEAVE_SECONDS = 5.0


def pair() -> Tuple[socket.socket, socket.socket]:
    """Returns the two ends of a line, or of a control socket."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def open_line(control: int, flag: int, writes: bool = True) -> int:
    """Returns the descriptor of a new line to the keeper that has the other end of this control
    socket. flag: the number of the unit's failure flag; writes: False if it is for reading only.
    Never waits. Raises OSError, also if the keeper has ended."""
    ours, theirs = pair()
    try:
        with socket.socket(fileno=os.dup(control)) as sock:
            send(sock, {'line': flag, 'writes': writes}, (theirs.fileno(),), socket.MSG_DONTWAIT)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return ours.detach()


def order_size(control: int, size: int, may_shrink: bool = False) -> socket.socket:
    """Order the keeper to give the export this size (bytes) for all sessions: to have its image made larger,
    or to replace the connections that have another one. Returns the socket for received_size(). Never
    waits. Raises OSError."""
    ours, theirs = pair()
    try:
        with socket.socket(fileno=os.dup(control)) as sock:
            words = {'size': size, 'may_shrink': may_shrink}
            send(sock, words, (theirs.fileno(),), socket.MSG_DONTWAIT)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return ours


def received_size(reply: socket.socket, seconds: float) -> int:
    """Waits for the outcome of order_size(), and closes its socket. Returns the size of the export in bytes.
    Raises OSError, with a sentence without a subject."""
    with reply:
        reply.settimeout(seconds)
        try:
            answer = receive(reply)
        except socket.timeout:
            raise OSError(errno.ETIMEDOUT, 'does not answer in time')
    words = answer[0] if answer is not None else {'why': 'has no process that connects to it'}
    if 'why' in words:
        raise OSError(errno.EIO, str(words['why']))
    return int(words['size'])


def noted_size(memory: int) -> int:
    """Returns the size (bytes) that the server has noted in this memory file; 0 if it notes none."""
    return int.from_bytes(os.pread(memory, 8, SIZE_PLACE), 'big')


def was_fenced(memory: int) -> bool:
    """True if the server has noted that another client has the medium."""
    return os.pread(memory, 1, FENCED_PLACE) == b'\1'


def end_keepers(controls: Iterable[int], seconds: float) -> None:
    """Tell the keepers that have the other ends of these control sockets to end, and wait until they
    have, but not longer: a keeper ends its connections in order, and the server of a disk image, whose
    file is then closed. Closes the descriptors."""
    left = {control: socket.socket(fileno=control) for control in controls}
    for sock in left.values():
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass
    end = time.monotonic() + seconds
    poll = select.poll()
    for control in left:
        poll.register(control, 0)  # the end of the keeper is always reported
    while left and time.monotonic() < end:
        for control, _ in poll.poll(max(0.0, end - time.monotonic()) * 1000):
            poll.unregister(control)
            left.pop(control).close()
    for sock in left.values():
        sock.close()


def send(
    sock: socket.socket, words: Dict[str, Any], descriptors: Iterable[int] = (), flags: int = 0
) -> None:
    """Send a message. Raises OSError."""
    passed = array.array('i', descriptors)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)] if passed else []
    sock.sendmsg([json.dumps(words).encode('ascii')], ancillary, flags | socket.MSG_NOSIGNAL)


def receive(sock: socket.socket, flags: int = 0) -> Optional[Tuple[Dict[str, Any], List[int]]]:
    """Returns (message, the descriptors with it), or None at the end of the line. Raises OSError."""
    space = socket.CMSG_SPACE(array.array('i').itemsize)
    data, ancillary, _, _ = sock.recvmsg(LONGEST, space, flags | socket.MSG_CMSG_CLOEXEC)
    found = array.array('i')
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(content[: len(content) // found.itemsize * found.itemsize])
    if not data:
        return None
    return json.loads(data.decode('ascii')), list(found)


def leave(sock: socket.socket, changes: Iterable[Tuple[Any, ...]]) -> None:
    """Give the keeper changes (nbd_log) that it repeats when the server is there again. Raises OSError."""
    sock.settimeout(LEAVE_SECONDS)
    for _, command, flags, offset, length, data in changes:
        size = 0 if data is None else len(data)
        send(sock, {'change': [command, flags, offset, length, size]})
        for start in range(0, size, PIECE):
            sock.send(memoryview(data)[start : start + PIECE], socket.MSG_NOSIGNAL)
    send(sock, {'left': True})
