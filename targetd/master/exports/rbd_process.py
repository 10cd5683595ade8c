"""The server of one image of a Ceph cluster: the store process (ceph.rbd_server), a child process of the
keeper of its export (nbd_keeper), like the server of a disk image (image_server).

     stopped --begin() or connect()--> opening --the greeting came--> serves --dies--> stopped
                                                                        +--fenced--> never started again

It is run by the interpreter of the distribution (processes.outside). It opens the image as root, whose
keyrings are readable, and serves it as nobody.

May import ceph, nbd. Used by one thread of one process.
"""

import json
import os

from targetd.ceph import rbd_server
from targetd.master.exports import nbd_connecting
from targetd.master.exports.image_server import ImageServer
from targetd.master.processes import outside
from targetd.nbd import uri


class RbdServer(ImageServer):
    """path: the name of the image, rbd:…; ceph: {conf, user, node, host, boot}; memory: the descriptor of
    the memory file of the export; is_plan: look only; fences: blocklist whoever has the image, at the
    first start; is_again: the image was served before."""

    PACKAGE = 'python3'

    def __init__(self, path, ceph, read_only, memory, is_plan=False, fences=False, is_again=False):
        super(RbdServer, self).__init__(path, 'rbd', read_only, outside.interpreter())
        self._ways = ['']
        self._memory = memory
        image = uri.parse_uri(path)
        self._wanted = dict(
            ceph,
            pool=image.pool,
            namespace=image.namespace,
            image=image.image,
            snapshot=image.snapshot,
            read_only=read_only or bool(image.snapshot),
            is_plan=is_plan,
            fences=fences,
            is_again=is_again,
        )

    def begin(self):
        """Start the process, which takes the lock of the image. What is wrong is told by connect()."""
        try:
            self._start()
        except nbd_connecting.Unavailable:
            pass

    def tend(self):
        """Start the process if it does not run: the image is to be locked, and its size noted, also while no
        initiator uses it. It may have found the image in use when it was started."""
        if not self._is_running():
            self.begin()

    def connect(self, _, seconds):
        """As ImageServer.connect()."""
        try:
            return super(RbdServer, self).connect(_, seconds)
        except nbd_connecting.Unavailable as e:
            if e.is_final or not self._is_running():
                raise
            raise nbd_connecting.Unavailable(
                'cannot be opened: the Ceph cluster does not answer; check "ceph -c %s -s", its OSDs and '
                'the network' % self._wanted['conf']
            )

    @property
    def notes(self):
        """The sentences that the process has printed and that are no failures."""
        length = len(rbd_server.NOTE)
        return [
            line[length:]
            for line in super(RbdServer, self)._printed()
            if line.startswith(rbd_server.NOTE)
        ]

    def _printed(self):
        lines = super(RbdServer, self)._printed()
        return [line for line in lines if not line.startswith(rbd_server.NOTE)]

    def _start(self):
        if os.WIFEXITED(self.status) and os.WEXITSTATUS(self.status) == rbd_server.FENCED:
            raise nbd_connecting.Unavailable(
                '%s; the LUN is served again when that client has closed the image, or, with unit-state, '
                'by order: targetdctl takeover' % self._message(),
                is_final=True,
            )
        super(RbdServer, self)._start()
        # the next one takes the place of this one
        self._wanted.update(is_again=not self._wanted['is_plan'], fences=False)

    def _why(self):
        if os.WIFEXITED(self.status) and os.WEXITSTATUS(self.status) == rbd_server.FENCED:
            return self._message()
        return self._message() or 'cannot be opened: its server has ended without a message'

    def _words(self):
        return outside.words('rbd_server', json.dumps(self._wanted))

    def _descriptors(self):
        found = super(RbdServer, self)._descriptors()
        found[rbd_server.MEMORY] = self._memory
        return found

    def _take_user(self):
        """It changes its user by itself, when it has opened the image."""
