"""The store process of one image: an NBD server whose connections only the keeper of the export makes.

     opens the image --failed--> a sentence on standard error, status 1, or FENCED
          |
     serves --SIGTERM--> finishes what it has received, gives the lock back, status 0
          +--another client was given the image--> status FENCED, and nothing more is written

It is started with a listening socket as descriptor 3 (LISTEN_FDS), the memory file of the export as
descriptor 4, in which it notes the size of the image, and one argument, a JSON object: see
rbd_image.OpenImage.
"""

import ctypes
import errno
import json
import os
import pwd
import queue
import signal
import socket
import struct
import sys
import threading
import time
import traceback

from targetd.ceph import c_library, callback_operations, poll_operations
from targetd.ceph.event_loop import Loop
from targetd.nbd import numbers, server_side

LISTENER, MEMORY = 3, 4
#: The status after another server has taken the image.
FENCED = 9
STOP_SECONDS = 8.0
#: Interval at which the size and the holder of the image are looked at.
LOOK_SECONDS = 1.0
#: Where in the memory file the size is noted, as 8 bytes (store.nbd_line.noted_size).
SIZE_PLACE = 4088
#: Where it is noted that another client was given the image, as a byte that is 1 (store.nbd_line.was_fenced).
FENCED_PLACE = 4087
LONGEST = 4 << 20
#: librbd frees whole pieces of this size only (rbd_discard_granularity_bytes).
PREFERRED = 65536
_CHANGES = (numbers.CMD_WRITE, numbers.CMD_TRIM, numbers.CMD_WRITE_ZEROES)
#: Begins a line on standard error that is no failure.
NOTE = 'note: '
NO_POLL = (
    'librbd cannot be polled (%s), so each READ and WRITE of this image costs more processor time; install '
    'librbd1 and python3-rbd of Ceph 16 or later'
)
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_NO_NEW_PRIVS = 1, 15, 38

#: The place of the modules that this program imports from the distribution.
PACKAGES = 'python3-rados and python3-rbd'


class Server(object):
    """opened: rbd_image.OpenImage; operations: Operations of poll_operations or callback_operations; library:
    the module rbd; memory: descriptor."""

    def __init__(self, opened, operations, library, memory):
        self.image = opened.image
        self._opened = opened
        self._library = library
        self._memory = memory
        self.can_write = not (opened.read_only or opened.wanted['is_plan'])
        self.thick = getattr(library, 'RBD_WRITE_ZEROES_FLAG_THICK_PROVISION', 0)
        self._queue = queue.Queue()
        self._writes_zeroes = operations.writes_zeroes
        self._loop = Loop(self, operations)
        self.size = self.image.size()
        self._note_size()
        features = self.image.features()
        wanted = library.RBD_FEATURE_FAST_DIFF | library.RBD_FEATURE_OBJECT_MAP
        self._has_map = features & wanted == wanted

    # -- what a client uses ------------------------------------------------------------------------

    def offer(self):
        """Returns the server_side.Offer. FAST_ZERO is not offered: clearing a block costs a request to an
        OSD, and a TRIM of less than PREFERRED bytes nothing."""
        flags = numbers.HAS_FLAGS | numbers.SEND_FLUSH | numbers.CAN_MULTI_CONN | numbers.SEND_DF
        if self._opened.read_only:
            flags |= numbers.READ_ONLY
        else:
            flags |= numbers.SEND_FUA | numbers.SEND_TRIM
            if self._writes_zeroes:
                flags |= numbers.SEND_WRITE_ZEROES
        return server_side.Offer(self.size, flags, 1, PREFERRED, LONGEST, self._has_map)

    def why_not(self, command, offset, length):
        """Returns the errno that a request is refused with, or 0."""
        changes = command in _CHANGES
        if changes and not self.can_write:
            return errno.EPERM
        if command == numbers.CMD_FLUSH:
            return 0
        if offset + length > self.size or not length:
            return errno.ENOSPC if changes else errno.EINVAL
        return 0

    def later(self, function):
        """Have the thread for what blocks call a function."""
        self._queue.put(function)

    def extents(self, offset, length):
        """Returns [(length, is a hole)] of a range, of whole objects by the map of the image. May block."""
        found, end = [], offset + length

        def add(size, is_hole):
            if found and found[-1][1] == is_hole:
                found[-1] = (found[-1][0] + size, is_hole)
            elif size:
                found.append((size, is_hole))

        place = [offset]

        def has_data(start, size, exists):
            first, last = max(start, place[0]), min(start + size, end)
            if exists and last > first:
                add(first - place[0], True)
                add(last - first, False)
                place[0] = last

        self.image.diff_iterate(offset, length, None, has_data, True, True)
        add(end - place[0], True)
        return found

    def failed(self, error):
        """A request has failed with this errno. A client that was blocklisted, or has lost the lock, is
        replaced: it does nothing more."""
        if error == errno.ESHUTDOWN or error == errno.EROFS and self.can_write:
            self.fenced('was fenced: another client was given the image')

    def fenced(self, why):
        """Tell the master, and end."""
        os.pwrite(self._memory, b'\1', FENCED_PLACE)
        leave(why, FENCED)

    # -- life --------------------------------------------------------------------------------------

    def run(self, listener):
        """Serve until stop()."""
        for function in (self._work, self._watch):
            threading.Thread(target=function, daemon=True).start()
        self._loop.run(listener)

    def stop(self):
        """[any] Wait until the clients have gone, for some seconds, and close the image."""
        self._loop.stop(STOP_SECONDS / 2)
        self._opened.close()

    def _work(self):
        while True:
            self._queue.get()()

    def _watch(self):
        """Other clients resize the image through the lock of this one; and one that was fenced must notice it
        without a request of an initiator."""
        while True:
            time.sleep(LOOK_SECONDS)
            try:
                size = self.image.size()
                if self.can_write and not self._opened.is_holder():
                    self.fenced('was fenced: another server has taken the image over')
            except self._library.Error as e:
                self.failed(abs(getattr(e, 'errno', 0) or 0))
                continue
            if size != self.size:
                self.size = size
                self._note_size()

    def _note_size(self):
        if not self._opened.wanted['is_plan']:
            os.pwrite(self._memory, struct.pack('>Q', self.size), SIZE_PLACE)


def open_image(wanted, rados, rbd):
    """Returns (rbd_image.OpenImage, Operations of it); rados, rbd: the modules. Prints a line with NOTE if
    librbd cannot be polled. Raises rbd_image.Refused, rbd_image.Fenced."""
    from targetd.ceph import c_image, rbd_image

    opened = None
    try:
        library = c_image.Library(rados, rbd)
        opened = rbd_image.OpenImage(wanted, library.make_cluster, library.make_image)
        return opened, poll_operations.Operations(library.rbd, opened.image.handle)
    except (c_library.Missing, OSError) as e:
        why = str(e)
        if opened is not None:
            opened.close()
    print(NOTE + NO_POLL % why, file=sys.stderr, flush=True)
    opened = rbd_image.OpenImage(wanted, rados.Rados, rbd.Image)
    return opened, callback_operations.Operations(opened.image)


def leave(why, status):
    """End at once, with this sentence on standard error."""
    try:
        os.write(2, (why + '\n').encode('utf-8', 'replace'))
    finally:
        os._exit(status)


def begin(name):
    """What a program does first: it has this name (15 bytes at most), and ends with its parent process."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NAME, name, 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def drop_privileges():
    """Become the user nobody, if root; the connection to the cluster is made."""
    libc = ctypes.CDLL(None)
    if os.geteuid() == 0:
        try:
            nobody = pwd.getpwnam('nobody')
        except KeyError:
            return
        os.setgroups([])
        os.setgid(nobody.pw_gid)
        os.setuid(nobody.pw_uid)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # the change of the user has ended it


def main(argument):
    """Run the program."""
    parent = os.getppid()
    begin(b'targetd-rbd')
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    holder = []  # the Server, as soon as there is one

    def obey():
        signal.sigwait({signal.SIGTERM})
        if holder:
            timer = threading.Timer(STOP_SECONDS, lambda: os._exit(1))
            timer.daemon = True
            timer.start()
            holder[0].stop()
        os._exit(0)

    threading.Thread(target=obey, daemon=True).start()
    try:
        import rados
        import rbd
    except ImportError as e:
        leave('needs the package %s (%s has none: %s)' % (PACKAGES, sys.executable, e), 1)
    from targetd.ceph import rbd_image

    try:
        opened, operations = open_image(json.loads(argument), rados, rbd)
    except rbd_image.Refused as e:
        leave(str(e), 1)
    except rbd_image.Fenced as e:
        os.pwrite(MEMORY, b'\1', FENCED_PLACE)
        leave('was taken over by %s' % e, FENCED)
    drop_privileges()
    if os.getppid() != parent:
        os._exit(0)
    holder.append(Server(opened, operations, rbd, MEMORY))
    os.write(1, (json.dumps({'address': opened.address}) + '\n').encode('ascii'))
    try:
        holder[0].run(socket.socket(fileno=LISTENER))
    except Exception as e:
        traceback.print_exc()
        leave('has failed: %s: %s' % (type(e).__name__, e), 1)
    threading.Event().wait()  # the thread that was told to stop ends the process


if __name__ == '__main__':
    main(sys.argv[1])
