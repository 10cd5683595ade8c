"""Imports LIO: saveconfig.json of targetcli-fb (rtslib-fb).

May import config.identities, migration.imported, migration.mapped_luns and migration.files. JSON has no
comments and its values no lines, so a note names the line of the object that it is about.
"""

from collections import OrderedDict

from targetd.config import identities
from targetd.migration import files
from targetd.migration.imported import (
    Imported,
    Lun,
    Place,
    Target,
    add_identity,
    add_passthrough,
    admit,
    admit_all,
    from_object,
)
from targetd.migration.mapped_luns import Seen, write_maps

MODELS = {'fileio': 'FILEIO', 'block': 'IBLOCK', 'ramdisk': 'RAMDISK-MCP'}
#: ALUA access state -> the word of alua-state; 0 is optimized.
STATES = {1: 'nonoptimized', 2: 'standby', 3: 'unavailable', 14: 'offline'}
#: Text keys and their values when nothing was changed; they are not written then.
DEFAULTS = {
    'DataDigest': 'CRC32C,None',
    'HeaderDigest': 'CRC32C,None',
    'DefaultTime2Retain': '20',
    'DefaultTime2Wait': '2',
    'ErrorRecoveryLevel': '0',
    'FirstBurstLength': '65536',
    'ImmediateData': 'Yes',
    'InitialR2T': 'Yes',
    'MaxBurstLength': '262144',
    'MaxConnections': '1',
    'MaxOutstandingR2T': '1',
    'MaxRecvDataSegmentLength': '8192',
}


def parse(path, text):
    """The Imported of a saveconfig.json. Raises Unreadable."""
    return from_object(_Importer, path, text, 'LIO', 'save it again with targetcli saveconfig')


def _flag(value):
    """Numbers, booleans and strings are mixed in these files."""
    return value not in (None, False, 0, '0', '', 'false', 'False')


def _listed(luns):
    return ', '.join(
        'LUN %d %s%s' % (n, seen.store.split('/')[-1], ' read-only' if seen.read_only else '')
        for n, seen in sorted(luns.items())
    )


def _holders(tpg):
    """[(ACL, or TPG in demo mode; True if authentication is demanded)]."""
    attributes = tpg.get('attributes', {})
    demands = _flag(attributes.get('authentication'))
    found = []
    for acl in tpg.get('node_acls', ()):
        own = int(acl.get('attributes', {}).get('authentication', -1))
        found.append((acl, demands if own < 0 else own > 0))
    return found + ([(tpg, demands)] if _flag(attributes.get('generate_node_acls')) else [])


class _Importer(object):
    def __init__(self, path, text):
        self.imported = Imported('LIO')
        self.imported.files = [path]
        self._path, self._text = path, text
        content = files.parse_json(text, path)
        self._stores = {}
        for store in content.get('storage_objects', ()):
            key = '/backstores/%s/%s' % (store['plugin'], store['name'])
            self._stores[key] = store
        self._discovery(content.get('fabric_modules', ()))
        for target in content.get('targets', ()):
            if target.get('fabric') != 'iscsi':
                self.imported.left_out(
                    self._place(target.get('wwn', '')),
                    'target %s is of %s, not of iSCSI' % (target.get('wwn'), target.get('fabric')),
                )
                continue
            self._target(target)
        if self.imported.targets:
            self.imported.note(
                Place(path, None),
                'relative port ids of LIO are not in the file; initiators see those of the portal groups',
            )

    def _place(self, word):
        at = self._text.find('"%s"' % word)
        return Place(self._path, self._text.count('\n', 0, at) + 1 if at >= 0 else None)

    def _discovery(self, modules):
        for module in modules:
            if module.get('name') != 'iscsi' or not _flag(module.get('discovery_enable_auth')):
                continue
            server = self.imported.server
            for setting, user, password in (
                ('incomingdiscoveryuser', 'discovery_userid', 'discovery_password'),
                ('outgoingdiscoveryuser', 'discovery_mutual_userid', 'discovery_mutual_password'),
            ):
                if module.get(user) and module.get(password):
                    server.add_words(setting, module[user], module[password])

    def _target(self, target):
        place = self._place(target['wwn'])
        tpgs = [tpg for tpg in target.get('tpgs', ()) if _flag(tpg.get('enable'))]
        for tpg in target.get('tpgs', ()):
            if tpg not in tpgs:
                self.imported.left_out(
                    place,
                    'TPG %s of %s is not enabled, so it is not served'
                    % (tpg['tag'], target['wwn']),
                )
        if not tpgs:
            return
        made = Target(target['wwn'].lower(), place)
        self.imported.targets.append(made)
        self._portals(made, tpgs)
        self._parameters(made, tpgs)
        names = self._access(made, tpgs)
        maps = self._maps(made, tpgs, names)
        if maps is None:
            return self.imported.targets.remove(made)
        self._accounts(made, tpgs)
        for key, (number, is_protected) in write_maps(self.imported, made, maps).items():
            self._lun(made, number, key, is_protected)

    def _portals(self, made, tpgs):
        tags, states = [], []
        for tpg in tpgs:
            portals = []
            for portal in tpg.get('portals', ()):
                address = portal['ip_address'].strip('[]')
                address = '[%s]' % address if ':' in address else address
                portals.append('%s:%d' % (address, int(portal['port'])))
                for word in ('iser', 'offload'):
                    if _flag(portal.get(word)):
                        self.imported.left_out(made.place, '%s has no counterpart' % word)
            if not portals:
                self.imported.wrong(
                    made.place,
                    'TPG %s of %s has no portal' % (tpg['tag'], made.name),
                    'add a portal',
                )
                continue
            tag = int(tpg['tag'])
            if self.imported.groups.get(tag, portals) != portals:
                tag = self.imported.add_portal_group(portals)
            self.imported.groups[tag] = portals
            tags.append(tag)
            state = self._alua(tpg)
            if state:
                states.append('%d %s' % (tag, state))
        made.add('portal-group', ', '.join(str(tag) for tag in tags))
        if states:
            made.add('alua-state', ', '.join(states))
            self.imported.note(
                made.place,
                'the ALUA groups of LIO are the portal groups in targetd: alua-state = %s' % states,
            )

    def _alua(self, tpg):
        states = set()
        for lun in tpg.get('luns', ()):
            store = self._stores.get(lun.get('storage_object'), {})
            for group in store.get('alua_tpgs', ()):
                if group.get('name') == lun.get('alua_tg_pt_gp_name'):
                    states.add(int(group.get('alua_access_state', 0)))
        return STATES.get(states.pop()) if len(states) == 1 else None

    def _parameters(self, made, tpgs):
        for tpg in tpgs[:1]:
            parameters = tpg.get('parameters', {})
            alias = parameters.get('TargetAlias')
            if alias and alias != 'LIO Target':
                made.add_words('alias', alias)
            for key in sorted(DEFAULTS):
                if str(parameters.get(key, DEFAULTS[key])) != DEFAULTS[key]:
                    made.add(key, str(parameters[key]).replace(',', ', '))

    def _access(self, made, tpgs):
        """Write who may log in; returns {name of an initiator, or None for everyone: [(TPG, ACL)]}."""
        found = OrderedDict()
        for tpg in tpgs:
            for holder in self._without_account(tpg):
                self.imported.wrong(
                    made.place,
                    'authentication is demanded of %s, but it has no account, so nobody can log in as it; '
                    'it is left out' % holder.get('node_wwn', 'the whole TPG'),
                    'write incominguser, and initiator-name',
                )
        is_open = [
            tpg
            for tpg in tpgs
            if _flag(tpg.get('attributes', {}).get('generate_node_acls'))
            and tpg not in self._without_account(tpg)
        ]
        for tpg in tpgs:
            barred = self._without_account(tpg)
            for acl in tpg.get('node_acls', ()):
                if acl in barred:
                    continue
                if not acl.get('mapped_luns') and not is_open:
                    self.imported.left_out(
                        self._place(acl['node_wwn']),
                        'initiator %s may log in to %s, but has no LUN'
                        % (acl['node_wwn'], made.name),
                    )
                    continue
                found.setdefault(acl['node_wwn'].lower(), []).append((tpg, acl))
        if is_open:
            found[None] = [(tpg, None) for tpg in is_open]
            admit_all(self.imported, made, 'generate_node_acls 1 (demo mode) admits everyone')
            return found
        admit(self.imported, made, [], [(name, made.place) for name in found])
        for name, acls in found.items():
            if len(acls) < len(tpgs):
                self.imported.note(
                    made.place,
                    'TPG %s admits %s, and the other TPGs of %s do not; a target of targetd has one access '
                    'list for all portal groups' % (acls[0][0]['tag'], name, made.name),
                    'write two targets if that matters',
                )
        return found

    def _maps(self, made, tpgs, names):
        """{whom a map is for: {number: Seen}} of all initiators; None if a TPG shows other LUNs to one of
        them than another TPG."""
        maps = OrderedDict()
        for name, pairs in names.items():
            lists = [self._mapped(made, tpg, acl) for tpg, acl in pairs]
            if any(luns != lists[0] for luns in lists):
                self.imported.wrong(
                    made.place,
                    'the TPGs of %s show other LUNs to %s: %s'
                    % (made.name, name or 'everyone', '; '.join(map(_listed, lists))),
                    'a map of targetd is for all portal groups: decide on one target, with its own name, for '
                    'each list',
                )
                return None
            maps[name or 'ALL'] = lists[0]
        return maps

    def _mapped(self, made, tpg, acl):
        """{number: Seen} of one initiator; acl: None for everyone."""
        by_index = {lun['index']: lun['storage_object'] for lun in tpg.get('luns', ())}
        if acl is not None:
            return {
                int(each['index']): Seen(
                    by_index[each['tpg_lun']], _flag(each.get('write_protect'))
                )
                for each in acl.get('mapped_luns', ())
            }
        is_protected = _flag(tpg.get('attributes', {}).get('demo_mode_write_protect', 1))
        if is_protected:
            self.imported.note(
                made.place,
                'demo_mode_write_protect 1: initiators without an access list of their own may read %s, and '
                'may not write' % made.name,
            )
        return {int(n): Seen(key, is_protected) for n, key in by_index.items()}

    def _accounts(self, made, tpgs):
        incoming, outgoing, owners = [], [], OrderedDict()
        for tpg in tpgs:
            for holder, is_on in _holders(tpg):
                count = len(incoming)
                self._account(made, holder, is_on, incoming, outgoing)
                for user, _ in incoming[count:]:
                    owners.setdefault(user, []).append(holder.get('node_wwn', 'ALL').lower())
        for account in OrderedDict.fromkeys(incoming):
            made.add_words('incominguser', *account)
        for user, names in owners.items():
            if 'all' not in names:  # in LIO an account belongs to one initiator name
                for name in OrderedDict.fromkeys(names):
                    made.add_words('incominguser-for', user, name)
        for account in list(OrderedDict.fromkeys(outgoing))[:1]:
            made.add_words('outgoinguser', *account)
        if outgoing and len(outgoing) < len(incoming) or len(set(outgoing)) > 1:
            self.imported.note(
                made.place,
                'mutual CHAP belongs to one initiator in LIO; targetd has one outgoinguser for %s, which '
                'it uses when an initiator asks for it' % made.name,
            )

    def _without_account(self, tpg):
        """The ACLs, and in demo mode the TPG, of which authentication is demanded without an account."""
        return [
            holder
            for holder, is_on in _holders(tpg)
            if is_on and not (holder.get('chap_userid') and holder.get('chap_password'))
        ]

    def _account(self, made, holder, is_on, incoming, outgoing):
        user, password = holder.get('chap_userid'), holder.get('chap_password')
        who = holder.get('node_wwn', 'the TPG')
        if not user or not password:
            return
        if not is_on:
            return self.imported.note(
                made.place,
                'the account %s of %s is left out: authentication is 0, and writing it would demand CHAP'
                % (user, who),
                'write incominguser to demand it',
            )
        incoming.append((user, password))
        mutual = holder.get('chap_mutual_userid'), holder.get('chap_mutual_password')
        if all(mutual):
            outgoing.append(mutual)

    def _lun(self, made, number, key, is_protected):
        store = self._stores.get(key)
        place = self._place(store['wwn']) if store and store.get('wwn') else made.place
        if store is not None and store['plugin'] == 'pscsi' and store.get('dev'):
            lun = Lun(int(number), place)
            made.luns.append(lun)
            lun.add_words('backing-store', store['dev'])
            return add_passthrough(self.imported, lun, store['dev'], is_protected)
        if store is None or store['plugin'] not in MODELS:
            return self.imported.wrong(
                place,
                'LUN %d of %s is %s, which cannot be served' % (number, made.name, key),
                'copy its data to a file or disk',
            )
        lun = Lun(int(number), place)
        made.luns.append(lun)
        attributes = store.get('attributes', {})
        self._medium(lun, store, attributes)
        if is_protected or _flag(store.get('readonly')):
            lun.add('readonly', 'yes')
        if _flag(attributes.get('emulate_tpu')) or _flag(attributes.get('emulate_tpws')):
            lun.add('thin', 'yes')
        lun.add('block-size', str(int(attributes.get('block_size', 512))))
        rotates = store['plugin'] != 'ramdisk' and not _flag(attributes.get('is_nonrot'))
        lun.add('rotation-rate', '0' if rotates else '1')
        product = MODELS[store['plugin']]
        if _flag(attributes.get('emulate_model_alias')):
            product = store['name']
        if not store.get('wwn'):
            return self.imported.wrong(
                place,
                '%s has no wwn in the file; LIO makes a new one at each restore' % store['name'],
                'read vpd_unit_serial of the running target, and write identity = lio wwn=...',
            )
        add_identity(lun, identities.lio(store['wwn'], product))

    def _medium(self, lun, store, attributes):
        if store['plugin'] == 'ramdisk':
            lun.add('type', 'null' if _flag(store.get('nullio')) else 'ram')
            lun.add('size', str(int(store['size'])))
            self.imported.note(
                lun.place, '%s is a RAM disk: its contents are lost at a restart' % store['name']
            )
            lun.add('write-cache', 'no')
            return
        lun.add_words('backing-store', store['dev'])
        if store['plugin'] == 'block':
            self.imported.note(
                lun.place,
                '%s is a block backstore: LIO shows the write cache of the disk, which is not in the file; '
                'write-cache = yes is written' % store['name'],
                'write write-cache = no if the disk has no write cache',
            )
            lun.add('write-cache', 'yes')
            return
        if not store['dev'].startswith('/dev/'):
            lun.add('size', str(int(store['size'])))
        is_back, is_shown = (
            _flag(store.get('write_back')),
            _flag(attributes.get('emulate_write_cache')),
        )
        if is_back and not is_shown:
            self.imported.note(
                lun.place,
                '%s has write_back, but shows no write cache: LIO may lose acknowledged data; write-cache '
                '= no is written' % store['name'],
            )
        lun.add_flag('write-cache', is_back and is_shown)
        if 'buffered_mode' in store:
            self.imported.note(
                lun.place,
                'buffered_mode has no effect when LIO restores the file: writes are durable',
            )
