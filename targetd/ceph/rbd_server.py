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
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_NO_NEW_PRIVS = 1, 15, 38

#: The place of the modules that this program imports from the distribution.
PACKAGES = 'python3-rados and python3-rbd'


class Server(object):
    """opened: rbd_image.OpenImage; library: the module rbd; memory: descriptor."""

    def __init__(self, opened, library, memory):
        self.image = opened.image
        self._opened = opened
        self._library = library
        self._memory = memory
        self.can_write = not (opened.read_only or opened.wanted['is_plan'])
        self.thick = getattr(library, 'RBD_WRITE_ZEROES_FLAG_THICK_PROVISION', 0)
        self._queue = queue.Queue()
        self._threads = set()
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
            if hasattr(self.image, 'aio_write_zeroes'):
                flags |= numbers.SEND_WRITE_ZEROES
        return server_side.Offer(self.size, flags, 1, PREFERRED, LONGEST, self._has_map)

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

    def run(self, listener, new_client):
        """Serve for ever. new_client(socket, server): returns a Client."""
        for function in (self._work, self._watch):
            threading.Thread(target=function, daemon=True).start()
        while True:
            sock = listener.accept()[0]
            client = new_client(sock, self)
            thread = threading.Thread(target=client.run, daemon=True)
            self._threads = {each for each in self._threads if each.is_alive()} | {thread}
            thread.start()

    def stop(self):
        """Wait until the clients have gone, for some seconds, and close the image."""
        end = time.monotonic() + STOP_SECONDS / 2
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
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
        import rados  # noqa: F401
        import rbd
    except ImportError as e:
        leave('needs the package %s (%s has none: %s)' % (PACKAGES, sys.executable, e), 1)
    from targetd.ceph import nbd_client, rbd_image

    try:
        opened = rbd_image.OpenImage(json.loads(argument))
    except rbd_image.Refused as e:
        leave(str(e), 1)
    except rbd_image.Fenced as e:
        os.pwrite(MEMORY, b'\1', FENCED_PLACE)
        leave('was taken over by %s' % e, FENCED)
    drop_privileges()
    if os.getppid() != parent:
        os._exit(0)
    holder.append(Server(opened, rbd, MEMORY))
    os.write(1, (json.dumps({'address': opened.address}) + '\n').encode('ascii'))
    holder[0].run(socket.socket(fileno=LISTENER), nbd_client.Client)


if __name__ == '__main__':
    main(sys.argv[1])
