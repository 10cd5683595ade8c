"""Imports ceph-iscsi: its gateway.conf object (JSON).

May import config.identities, migration.imported, migration.mapped_luns and migration.files. The data is
in Ceph: the new disk must be written for each LUN, so every LUN is an error until a path is given.
"""

from collections import OrderedDict

from targetd.config import identities
from targetd.migration import files
from targetd.migration.imported import (
    Imported,
    Lun,
    Place,
    Target,
    account_without_secret,
    add_identity,
    admit,
    admit_all,
    from_object,
)
from targetd.migration.mapped_luns import Seen, write_maps


def parse(path, text):
    """The Imported of a gateway.conf object. Raises Unreadable."""
    return from_object(
        _Importer, path, text, 'ceph-iscsi', 'read it again with rados get gateway.conf'
    )


def _upgraded(content):
    """The object of version 3 in the form of the newer ones: one target with everything."""
    if 'targets' in content:
        return content
    clients = {}
    for name, client in content.get('clients', {}).items():
        user, _, password = client.get('auth', {}).get('chap', '').partition('/')
        luns = {key.replace('.', '/', 1): value for key, value in client.get('luns', {}).items()}
        clients[name] = dict(client, auth={'username': user, 'password': password}, luns=luns)
    disks = {key.replace('.', '/', 1): value for key, value in content.get('disks', {}).items()}
    gateways = {
        name: value
        for name, value in content.get('gateways', {}).items()
        if isinstance(value, dict)
    }
    target = {
        'clients': clients,
        'groups': content.get('groups', {}),
        'disks': {key: {} for key in disks},
        'portals': {
            name: {'portal_ip_addresses': [value['portal_ip_address']]}
            for name, value in gateways.items()
            if value.get('portal_ip_address')
        },
    }
    return {'disks': disks, 'targets': {content['gateways']['iqn']: target}}


class _Importer(object):
    def __init__(self, path, text):
        self.imported = Imported('ceph-iscsi')
        self.imported.files = [path]
        self._path, self._text = path, text
        content = _upgraded(files.parse_json(text, path))
        self._disks = content.get('disks', {})
        self._accounts(
            self.imported.server,
            content.get('discovery_auth', {}),
            'incomingdiscoveryuser',
            'outgoingdiscoveryuser',
            'discovery',
        )
        for name in sorted(content['targets']):
            self._target(name, content['targets'][name])

    def _place(self, word):
        at = self._text.find('"%s"' % word)
        return Place(self._path, self._text.count('\n', 0, at) + 1 if at >= 0 else None)

    def _accounts(self, section, auth, incoming, outgoing, who):
        """Write the accounts of one `auth` object; returns True if there is one."""
        found = False
        for setting, prefix in ((incoming, ''), (outgoing, 'mutual_')):
            user, password = auth.get(prefix + 'username'), auth.get(prefix + 'password')
            if not user:
                continue
            found = True
            if auth.get(prefix + 'password_encryption_enabled'):
                account_without_secret(
                    self.imported,
                    section,
                    setting,
                    user,
                    self._place(user),
                    'the secret (of %s) is encrypted with a key of the gateways' % who,
                )
            elif not section.get(setting) or setting == 'incominguser':
                section.add_words(setting, user, password)
        return found

    def _target(self, name, target):
        made = Target(name.lower(), self._place(name))
        self.imported.targets.append(made)
        for _, value in sorted(target.get('portals', {}).items()):
            portals = [
                ('[%s]:3260' if ':' in address else '%s:3260') % address
                for address in value.get('portal_ip_addresses', ())
            ]
            if portals:
                made.add('portal-group', str(self.imported.add_portal_group(portals)))
        self.imported.note(
            made.place,
            'every gateway of %s is a portal group with ALUA; one targetd serves them all from one host'
            % name,
            'keep only the portals whose addresses this host has',
        )
        clients = target.get('clients', {})
        if target.get('acl_enabled', True):
            admit(self.imported, made, [], [(each.lower(), made.place) for each in sorted(clients)])
            maps = OrderedDict(
                (each.lower(), self._luns_of(clients[each], target)) for each in sorted(clients)
            )
        else:
            admit_all(self.imported, made, 'its access list is not enabled')
            disks = enumerate(sorted(target.get('disks', {}).items()))
            everyone = {int(value.get('lun_id', n)): Seen(key, False) for n, (key, value) in disks}
            maps = {'ALL': everyone}
        for client in sorted(clients):
            auth = clients[client].get('auth', {})
            self._accounts(made, auth, 'incominguser', 'outgoinguser', client)
            if auth.get('username'):  # in ceph-iscsi an account belongs to one client
                made.add_words('incominguser-for', auth['username'], client.lower())
        for key, (number, _) in write_maps(self.imported, made, maps).items():
            self._lun(made, number, key)

    @staticmethod
    def _luns_of(client, target):
        luns = dict(client.get('luns', {}))
        group = target.get('groups', {}).get(client.get('group_name') or '', {})
        luns.update(group.get('disks', {}) if isinstance(group.get('disks'), dict) else {})
        return {
            int(value.get('lun_id', 0)): Seen(key, False) for key, value in sorted(luns.items())
        }

    def _lun(self, made, number, key):
        disk = self._disks.get(key, {})
        place = self._place(key)
        lun = Lun(number, place)
        made.luns.append(lun)
        self.imported.wrong(
            place,
            'LUN %d of %s is the RADOS image %s, of which the file has neither path nor size'
            % (number, made.name, key),
            'copy it to a file or disk, or map it with rbd, and write backing-store',
        )
        lun.add('block-size', '512')
        lun.add('rotation-rate', '0')
        if disk.get('wwn'):
            add_identity(lun, identities.ceph(disk['wwn'], key))
