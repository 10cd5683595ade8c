"""The helper process for states of units that are objects in a pool (unit-state = rados:POOL): a program that
reads and writes them, as one client of the cluster.

It is started with one argument, a JSON object with pool, namespace, conf and user, and gets one request in
each line of standard input, to which it writes one line:

     {"do": "read", "object": …}                      {"version": 7, "text": …}, or {"version": 0, "text": ""}
     {"do": "write", "object": …, "version": 7, "text": …}    {} or {"changed": true}: it has another version
     a failure                                         {"failed": sentence, "errno": …}

The version counts the writes. It is compared in the operation that writes: the state of a client that
was suspended for a while, and the write of a process that was killed, never replace a newer one. So the
server that was replaced need not be fenced here. What is answered is durable.
"""

import errno
import json
import os
import sys

from targetd.ceph.rbd_server import PACKAGES, begin, drop_privileges, leave

VERSION, TEXT = 'version', 'document'


class States(object):
    """pool: rados.Ioctx; library: the module rados."""

    def __init__(self, pool, library):
        self._pool = pool
        self._library = library

    def read(self, name):
        """Returns (version, text) of an object; (0, '') if there is none."""
        try:
            with self._library.ReadOpCtx() as operation:
                rows, _ = self._pool.get_omap_vals_by_keys(operation, (VERSION, TEXT))
                self._pool.operate_read_op(operation, name)
                found = dict(rows)
        except self._library.ObjectNotFound:
            return 0, ''
        return int(found[VERSION]), found[TEXT].decode('utf-8')

    def write(self, name, version, text):
        """Replace the text if the object has this version (0: does not exist). Returns False if not."""
        library = self._library
        with library.WriteOpCtx() as operation:
            if version:
                operation.omap_cmp(VERSION, str(version), library.LIBRADOS_CMPXATTR_OP_EQ)
            else:
                operation.new(library.LIBRADOS_CREATE_EXCLUSIVE)
            values = str(version + 1).encode('ascii'), text.encode('utf-8')
            self._pool.set_omap(operation, (VERSION, TEXT), values)
            try:
                self._pool.operate_write_op(operation, name)
            except (library.ObjectExists, library.ObjectNotFound):
                return False
            except library.Error as e:
                if abs(e.errno or 0) in (errno.ECANCELED, errno.ENODATA):
                    return False
                raise
        return True

    def answer(self, request):
        """The answer to a request, as a dict."""
        try:
            if request['do'] == 'read':
                version, text = self.read(request['object'])
                return {'version': version, 'text': text}
            written = self.write(request['object'], request['version'], request['text'])
            return {} if written else {'changed': True}
        except self._library.Error as e:
            return {'failed': str(e), 'errno': abs(getattr(e, 'errno', 0) or 0) or errno.EIO}


def main(argument):
    """Run the program."""
    begin(b'targetd-states')
    wanted = json.loads(argument)
    try:
        import rados
    except ImportError as e:
        _refuse('needs the package %s (%s has none: %s)' % (PACKAGES, sys.executable, e))
    from targetd.ceph import rbd_image

    try:
        cluster = rbd_image.connect(wanted)
        states = States(rbd_image.open_pool(cluster, wanted), rados)
    except rbd_image.Refused as e:
        _refuse(str(e))
    drop_privileges()
    for line in sys.stdin:
        print(json.dumps(states.answer(json.loads(line))), flush=True)
    os._exit(0)


def _refuse(why):
    """The cluster cannot be used: this is the answer to the first request."""
    print(json.dumps({'failed': why, 'errno': errno.EIO}), flush=True)
    leave(why, 1)


if __name__ == '__main__':
    main(sys.argv[1])
