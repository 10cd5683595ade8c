"""Opens an image of a Ceph cluster with the modules rados and rbd, and holds its exclusive lock.

     connect --> pool --> open --> who else has it open? --no client--> lock --> note the holder
                                          |another client                          in its metadata
                                          +--> refused; or blocklisted, if it is a former process of this
                                               server, or by order

The lock is the explicit one: the usual lock of an image is handed to any client that writes, and protects
nothing. A client that has not written holds no lock, so the list of watchers counts. One image has one
librados client, since a blocklist entry is for all that a client does.

Nothing is kept in a cache here: what is acknowledged is durable. Where a pool is full, or at its quota,
a client waits until it is not; with the flag FULL_TRY the cluster answers ENOSPC or EDQUOT instead.
"""

import json
import os

import rados
import rbd

#: The key of the image's metadata that names who serves it.
HOLDER = 'targetd.holder'
#: A monitor that does not answer for so long is away.
MOUNT_SECONDS = 5
#: A client that was fenced stays so for this time. The default, an hour, is too short for a host that was
#: suspended.
BLOCKLIST_SECONDS = 7 * 86400

_SETTINGS = {
    'client_mount_timeout': str(MOUNT_SECONDS),
    'rados_mon_op_timeout': '10',
    'rbd_cache': 'false',
    'admin_socket': '',
    'log_to_stderr': 'false',
    'err_to_stderr': 'false',
}


class Refused(Exception):
    """The image cannot be served; the message is a sentence without a subject, with the remedy."""


class Fenced(Exception):
    """Another server has had the image since this one had it."""


def name_of(wanted):
    """Returns the name of the image that `rbd` understands."""
    names = [wanted['pool'], wanted['namespace'], wanted['image']]
    return '/'.join(name for name in names if name)


def connect(wanted, make_cluster=rados.Rados):
    """Returns a connected Rados. wanted: has `conf` and `user`; make_cluster: rados.Rados or
    c_image.Library.make_cluster. Raises Refused."""
    conf, user = wanted['conf'], wanted['user']
    if not os.access(conf, os.R_OK):
        raise Refused('needs the file %s, which does not exist; correct ceph-conf' % conf)
    try:
        cluster = make_cluster(rados_id=user, conffile=conf, conf=_SETTINGS)
    except rados.Error as e:
        raise Refused('cannot use %s: %s; correct ceph-conf' % (conf, e))
    try:
        cluster.connect()
    except rados.ObjectNotFound:
        why = 'there is no keyring for the user client.%s: %s' % (user, _give_keyring(wanted))
    except rados.PermissionError:
        why = 'the cluster refuses the key of client.%s: %s' % (user, _give_keyring(wanted))
    except rados.TimedOut:
        why = (
            'no monitor of the cluster answered within %d seconds, or they have no quorum; check '
            '"ceph -c %s -s" and the network' % (MOUNT_SECONDS, conf)
        )
    except rados.Error as e:
        why = 'the cluster cannot be used: %s' % e
    else:
        return cluster
    raise Refused('cannot be opened: ' + why)


def _give_keyring(wanted):
    return (
        "ceph auth get-or-create client.{user} mon 'profile rbd' osd 'profile rbd pool={pool}' "
        '-o /etc/ceph/ceph.client.{user}.keyring'.format(**wanted)
    )


def open_pool(cluster, wanted):
    """Returns the Ioctx of the pool and namespace. Raises Refused."""
    try:
        pool = cluster.open_ioctx(wanted['pool'])
    except rados.ObjectNotFound:
        raise Refused(
            'cannot be opened: there is no pool %s in the cluster; correct the name, or create it: ceph osd '
            'pool create %s' % (wanted['pool'], wanted['pool'])
        )
    pool.set_namespace(wanted['namespace'])
    full_try = getattr(pool, 'set_pool_full_try', None) or pool.set_osdmap_full_try
    full_try()
    return pool


def fence(cluster, addresses):
    """Blocklist these clients; returns when no OSD takes a request of theirs any more. Raises Refused."""
    for address in sorted(addresses):
        words = {
            'prefix': 'osd blocklist',
            'blocklistop': 'add',
            'addr': address,
            'expire': float(BLOCKLIST_SECONDS),
        }
        number, _, text = cluster.mon_command(json.dumps(words), b'')
        if number:
            raise Refused(
                'cannot be taken over: the cluster does not let client.%s blocklist %s (%s); give it the '
                'capability mon "profile rbd"'
                % (cluster.rados_id, address, text or os.strerror(-number))
            )
    cluster.wait_for_latest_osdmap()


class OpenImage(object):
    """An image that is open, and locked if it is writable.

    wanted: pool, namespace, image, snapshot, conf, user; read_only; is_plan: look only, take no lock; node,
    host: id and name of this server; boot: of its kernel; fences: blocklist whoever has it; is_again: this
    server has served it, and has lost its process. make_cluster, make_image: the classes of the modules, or
    functions of c_image.Library. Raises Refused, Fenced."""

    def __init__(self, wanted, make_cluster=rados.Rados, make_image=rbd.Image):
        self.wanted = wanted
        self.read_only = wanted['read_only']
        self._make_image = make_image
        self.cluster = connect(wanted, make_cluster)
        self.pool = self.image = None
        try:
            self._open()
        except BaseException as e:
            self.close()  # or the cluster would count this process as a client for 30 seconds
            if isinstance(e, rados.TimedOut):
                raise Refused('cannot be opened: the monitors do not answer; check "ceph -s"')
            if isinstance(e, (rados.Error, rbd.Error)):
                raise Refused('cannot be opened: %s' % e)
            raise

    def _open(self):
        self.pool = open_pool(self.cluster, self.wanted)
        self.image = self._image()
        wanted = self.wanted['snapshot']
        if wanted:
            try:
                self.image.set_snap(wanted)
            except rbd.ImageNotFound:
                raise Refused(
                    'cannot be opened: the image has no snapshot %s; "rbd snap ls %s" shows those that it '
                    'has' % (wanted, name_of(self.wanted))
                )
        self._require_no_cache()
        if not (self.read_only or self.wanted['is_plan']):
            self._lock()

    def _require_no_cache(self):
        """What is acknowledged must be durable; an image or pool can have settings of its own that override
        those of this client."""
        values = {each['name']: each['value'] for each in self.image.config_list()}
        if values.get('rbd_cache') == 'true' or 'pwl_cache' in values.get('rbd_plugins', ''):
            raise Refused(
                'is not opened: its own configuration, or that of its pool, has a cache (rbd_cache or '
                'rbd_plugins), so that acknowledged writes could be lost; rbd config image remove %s '
                'rbd_cache' % name_of(self.wanted)
            )

    @property
    def address(self):
        """The address and nonce of this client, as in the list of watchers."""
        return self.cluster.get_addrs()

    def _image(self):
        wanted, name = self.wanted, name_of(self.wanted)
        try:
            is_plan = wanted['is_plan']
            return self._make_image(self.pool, wanted['image'], read_only=self.read_only or is_plan)
        except rbd.ImageNotFound:
            raise Refused(
                'cannot be opened: there is no image %s in the cluster; correct the name, or create it: rbd '
                'create --size SIZE %s' % (name, name)
            )
        except rbd.PermissionError:
            raise Refused(
                'cannot be opened: client.%s may not use the pool; give it the capability osd "profile rbd '
                'pool=%s"' % (wanted['user'], wanted['pool'])
            )

    # -- the lock ----------------------------------------------------------------------------------

    def _lock(self):
        name = name_of(self.wanted)
        if not self.image.features() & rbd.RBD_FEATURE_EXCLUSIVE_LOCK:
            raise Refused(
                'cannot be opened for writing: the image has not the feature exclusive-lock, so nothing '
                'keeps other clients from writing to it; rbd feature enable %s exclusive-lock'
                % name
            )
        holder = self._holder()
        if self.wanted['is_again'] and holder.get('node') != self.wanted['node']:
            raise Fenced(holder.get('host', 'another server'))
        others = {each['addr'] for each in self.image.watchers_list()} - {self.address}
        fenced = others if self.wanted['fences'] else others & self._own_former(holder)
        self._require_free(others - fenced, holder)
        if fenced:
            fence(self.cluster, fenced)
        for owner in self.image.lock_get_owners():
            if owner['owner'] in fenced:
                self.image.lock_break(rbd.RBD_LOCK_MODE_EXCLUSIVE, owner['owner'])
        try:
            self.image.lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)
        except rbd.ReadOnlyImage:
            owners = {each['owner'] for each in self.image.lock_get_owners()}
            self._require_free(owners or {'an unknown address'}, holder)
        self.image.metadata_set(HOLDER, json.dumps(self._mark(), sort_keys=True))

    def _holder(self):
        """What the last server noted; {} if none did."""
        try:
            found = json.loads(self.image.metadata_get(HOLDER))
        except (KeyError, rbd.ImageNotFound, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def is_holder(self):
        """False if another server has noted itself since. Raises rbd.Error, also if this client was
        fenced."""
        return self._holder().get('address') == self.address

    def _mark(self):
        pid = os.getpid()
        return {
            'node': self.wanted['node'],
            'host': self.wanted['host'],
            'boot': self.wanted['boot'],
            'pid': pid,
            'started': _start_of(pid),
            'address': self.address,
        }

    def _own_former(self, holder):
        """The addresses of processes of this server that have ended: they cannot write any more, but the
        cluster has requests of theirs, and notices their end only after 30 seconds."""
        if holder.get('node') != self.wanted['node']:
            return set()
        lives = holder.get('boot') == self.wanted['boot'] and (
            _start_of(holder.get('pid')) == holder.get('started')
        )
        return set() if lives else {holder.get('address')}

    def _require_free(self, others, holder):
        """Raises Refused if there are `others`, addresses of clients that have the image."""
        if not others:
            return
        address = sorted(others)[0]
        whose = ''
        if holder.get('address') == address:
            whose = ' (targetd of the server %s)' % holder.get('host')
        raise Refused(
            'is not opened for writing: the client %s%s has it open, and two would overwrite each other; end '
            'that client, or write readonly = yes; after a crash the cluster forgets it in 30 seconds'
            % (address, whose)
        )

    def close(self):
        """Give the lock back, and disconnect."""
        if self.image is not None:
            self.image.close()
        if self.pool is not None:
            self.pool.close()
        self.cluster.shutdown()


def _start_of(pid):
    """When a process of this host started, in the kernel's clock ticks; None if it has ended."""
    try:
        with open('/proc/%d/stat' % pid) as f:
            fields = f.read().rpartition(')')[2].split()
    except (OSError, TypeError, ValueError):
        return None
    return None if fields[0] in 'ZX' else int(fields[19])
