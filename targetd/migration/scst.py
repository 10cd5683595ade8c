"""Imports SCST: scst.conf of scstadmin.

May import config.identities, migration.imported and migration.mapped_luns.
"""

from collections import OrderedDict, namedtuple

from targetd.config import identities
from targetd.migration.imported import (
    Imported,
    Lun,
    Place,
    Target,
    Unreadable,
    account_without_secret,
    add_identity,
    admit,
    admit_all,
)
from targetd.migration.mapped_luns import Seen, write_maps

#: Whom a map of LUNs is for, besides names and patterns.
ALL = 'ALL'

#: `WORDS` or `WORDS { … }`. block: [Statement] or None.
Statement = namedtuple('Statement', 'words place block')

VENDORS = {'vdisk_fileio': 'SCST_FIO', 'vdisk_blockio': 'SCST_BIO', 'vdisk_nullio': 'SCST_FIO'}
TEXT_KEYS = (
    'MaxConnections InitialR2T ImmediateData MaxRecvDataSegmentLength MaxBurstLength FirstBurstLength '
    'DefaultTime2Wait DefaultTime2Retain MaxOutstandingR2T ErrorRecoveryLevel HeaderDigest DataDigest'
).split()
SILENT = 'enabled rel_tgt_id per_portal_acl allowed_portal cpu_mask io_grouping_type'.split()
OF_DEVICE = (
    'filename blocksize thin_provisioned usn t10_dev_id naa_id eui64_id write_through nv_cache read_only '
    'rotational t10_vend_id prod_id prod_rev_lvl vend_specific_id removable size size_mb o_direct '
    'inq_vend_specific cluster_mode active threads_num threads_pool_type tst expl_alua dif_mode'
).split()


def parse(path, text):
    """The Imported of a scst.conf. Raises Unreadable."""
    if any(line.lstrip().startswith('[HANDLER') for line in text.split('\n')):
        raise Unreadable(
            Place(path, None),
            'this is a scst.conf of the old form ([HANDLER ...])',
            'write it again with scstadmin -write_config',
        )
    return _Importer(path, read(path, text)).imported


# -- the grammar -----------------------------------------------------------------------------------


def read(path, text):
    """[Statement] of the text. Raises Unreadable."""
    stack = [[]]
    opened = []
    for number, line in enumerate(text.split('\n'), 1):
        place, words = Place(path, number), []
        for token, is_quoted in _tokens(line, place):
            if token == '{' and not is_quoted:
                statement = Statement(words, place, [])
                stack[-1].append(statement)
                stack.append(statement.block)
                opened.append(place)
                words = []
            elif token == '}' and not is_quoted:
                if words:
                    stack[-1].append(Statement(words, place, None))
                words = []
                if not opened:
                    raise Unreadable(place, 'there is a } without a {', 'remove it')
                stack.pop()
                opened.pop()
            else:
                words.append(token)
        if words:
            stack[-1].append(Statement(words, place, None))
    if opened:
        raise Unreadable(opened[-1], 'the { is never closed', 'copy the whole file')
    return stack[0]


def _tokens(line, place):
    """[(token, was it quoted)] of a line. # begins a comment unless a backslash stands before it."""
    found, at = [], 0
    while at < len(line):
        character = line[at]
        if character.isspace():
            at += 1
        elif character == '#':
            break
        elif character in '{}':
            found.append((character, False))
            at += 1
        elif character == '"':
            end = line.find('"', at + 1)
            if end < 0:
                raise Unreadable(place, 'the quote is never closed', 'close it on the same line')
            found.append((line[at + 1 : end].replace('\\#', '#'), True))
            at = end + 1
        else:
            end = at
            while end < len(line) and not line[end].isspace() and line[end] not in '{}':
                if line[end] == '#' and line[end - 1] != '\\':
                    break
                end += 1
            found.append((line[at:end].replace('\\#', '#'), False))
            at = end
    return found


def _values(block):
    """{word: (text, Place)} of the attributes of a block."""
    return OrderedDict(
        (each.words[0], (' '.join(each.words[1:]), each.place))
        for each in block or ()
        if each.block is None
    )


def _of(block, word):
    return [each for each in block or () if each.words and each.words[0] == word]


# -- the meaning -----------------------------------------------------------------------------------


class _Importer(object):
    def __init__(self, path, statements):
        self.imported = Imported('SCST')
        self.imported.files = [path]
        self._devices = {}
        self._places = {}  # (name of a target, of a device): the Place of its first LUN
        self._setup_id = '0'
        for each in statements:
            word = each.words[0]
            if word == 'setup_id':
                self._setup_id = each.words[1]
            elif word == 'HANDLER':
                self._handler(each)
        for each in statements:
            word = each.words[0]
            if word == 'TARGET_DRIVER' and each.words[1:] == ['iscsi']:
                self._driver(each)
            elif word == 'TARGET_DRIVER' and each.words[1:] != ['copy_manager']:
                self.imported.left_out(each.place, 'the driver %s is not iSCSI' % each.words[1])
            elif word == 'DEVICE_GROUP':
                self._device_group(each)
            elif word not in ('setup_id', 'HANDLER', 'TARGET_DRIVER'):
                self.imported.left_out(each.place, '%s has no counterpart' % word)

    def _handler(self, handler):
        name = handler.words[1]
        for each in _of(handler.block, 'DEVICE'):
            if name not in VENDORS:
                self.imported.left_out(
                    each.place,
                    'device %s: the handler %s has no counterpart' % (each.words[1], name),
                    'write a lun of type = passthrough with its node (lsscsi -g)'
                    if name.startswith('dev_')
                    else '',
                )
                continue
            self._devices[each.words[1]] = (name, each)
            for word, (_, place) in _values(each.block).items():
                if word not in OF_DEVICE:
                    self.imported.left_out(place, '%s has no counterpart' % word)

    def _device_group(self, group):
        states = {
            _values(each.block).get('state', ('active', None))[0]
            for each in _of(group.block, 'TARGET_GROUP')
        }
        if states - {'active'}:
            self.imported.left_out(
                group.place,
                'DEVICE_GROUP %s: its ALUA states were left out' % group.words[1],
                'write alua-state in the target',
            )

    def _driver(self, driver):
        values = _values(driver.block)
        is_on = values.get('enabled', ('0', None))[0] == '1'
        for each in driver.block or ():
            word = each.words[0]
            if word.startswith(('IncomingUser', 'OutgoingUser')):
                setting = 'incoming' if word.startswith('In') else 'outgoing'
                self._account(self.imported.server, setting + 'discoveryuser', each)
            elif word == 'iSNSServer':
                self.imported.server.add('isns-server', each.words[1])
            elif word == 'TARGET':
                self._target(each, is_on)
            elif word not in SILENT:
                self.imported.left_out(each.place, '%s has no counterpart' % word)

    def _account(self, section, setting, statement):
        words = ' '.join(statement.words[1:]).split(None, 1)
        if len(words) != 2:
            return account_without_secret(
                self.imported,
                section,
                setting,
                words[0] if words else '?',
                statement.place,
                'it has no secret',
            )
        section.add_words(setting, *words)

    def _target(self, statement, driver_is_on):
        target = Target(statement.words[1].lower(), statement.place)
        self.imported.targets.append(target)
        values = _values(statement.block)
        if not driver_is_on or values.get('enabled', ('0', None))[0] != '1':
            target.add('state', 'offline')
            self.imported.note(
                statement.place, 'target %s is not enabled: state = offline' % target.name
            )
        for each in statement.block or ():
            word = each.words[0]
            if word.startswith('IncomingUser'):
                self._account(target, 'incominguser', each)
            elif word.startswith('OutgoingUser'):
                target.replace('outgoinguser', None)
                self._account(target, 'outgoinguser', each)
            elif word in TEXT_KEYS:
                target.add(word, ', '.join(each.words[1].split(',')))
            elif word == 'alias':
                target.add_words('alias', ' '.join(each.words[1:]))
            elif word not in SILENT + ['LUN', 'GROUP']:
                self.imported.left_out(each.place, '%s has no counterpart' % word)
            if word == 'rel_tgt_id':
                self.imported.note(
                    each.place, 'rel_tgt_id: targetd makes relative port ids of the portal groups'
                )
        self._portals(target, statement)
        self._groups(target, statement)

    def _portals(self, target, statement):
        portals = []
        for each in _of(statement.block, 'allowed_portal'):
            address = each.words[1]
            if any(character in address for character in '*?![') and ':' not in address:
                self.imported.left_out(
                    each.place, 'allowed_portal %s is a pattern' % address, 'write portals'
                )
            else:
                portals.append('%s:3260' % ('[%s]' % address if ':' in address else address))
        if portals:
            target.add('portal-group', str(self.imported.add_portal_group(portals)))

    def _groups(self, target, statement):
        """The LUNs of a TARGET, and those of its GROUPs: the first GROUP that has the initiator counts, and
        the LUNs of the TARGET itself for initiators that no GROUP has."""
        plain, groups = _of(statement.block, 'LUN'), _of(statement.block, 'GROUP')
        maps, names = OrderedDict(), []
        for group in groups:
            found = self._names(group, maps)
            if found is None:
                return self.imported.targets.remove(target)
            names += found
            luns = self._seen(target, _of(group.block, 'LUN'))
            for name, _ in found:
                maps.setdefault(name, luns)
        if plain:
            maps.setdefault(ALL, self._seen(target, plain))
        if ALL in maps:
            why = (
                'LUNs directly in a TARGET are for everyone'
                if plain
                else 'INITIATOR ! admits others'
            )
            admit_all(self.imported, target, why)
        else:
            admit(self.imported, target, [], names)
        if len(maps) > 1 and any('*' in name or '?' in name for name in maps):
            self.imported.note(
                target.place,
                'target %s has groups with patterns of names: in SCST the first group that matches counts, '
                'in targetd the exact name, then the longest pattern' % target.name,
                'check the lines lun-map',
            )
        for name, (number, is_protected) in write_maps(self.imported, target, maps).items():
            lun = Lun(number, self._places[target.name, name])
            target.luns.append(lun)
            self._lun(lun, name, is_protected)

    def _names(self, group, maps):
        """[(name or pattern, or ALL, Place)] of a GROUP; None if it cannot be said. maps: of the GROUPs
        before."""
        names = []
        for each in _of(group.block, 'INITIATOR'):
            name, _, portal = each.words[1].lower().partition('#')
            if name.startswith('!') and name[1:] in maps:
                name = ALL  # those that it excludes have a map already
            elif name.startswith('!'):
                self.imported.wrong(
                    each.place,
                    'INITIATOR %s: targetd cannot refuse single names' % each.words[1],
                    'write the names that may log in',
                )
                return None
            if portal:
                self.imported.note(
                    each.place,
                    'INITIATOR %s: the portal %s after # is left out' % (name, portal),
                    'write portal-group with that portal only',
                )
            names.append((name, each.place))
        return names

    def _seen(self, target, statements):
        """{number: Seen} of LUN statements; a store is the name of a device."""
        found = {}
        for each in statements:
            number, name = int(each.words[1], 0), each.words[2]
            if number in found or name not in self._devices:
                self.imported.wrong(
                    each.place,
                    'LUN %d of %s is written twice' % (number, target.name)
                    if number in found
                    else 'there is no device %s that could be served' % name,
                    'correct the line',
                )
                continue
            is_read_only = _values(each.block).get('read_only', ('0', None))[0] == '1'
            self._places.setdefault((target.name, name), each.place)
            found[number] = Seen(name, is_read_only)
        return found

    def _lun(self, lun, name, is_protected):
        handler, device = self._devices[name]
        found = {word: text for word, (text, _) in _values(device.block).items()}
        if handler == 'vdisk_nullio':
            lun.add('type', 'null')
            size = found.get('size') or (
                str(int(found['size_mb']) << 20) if 'size_mb' in found else None
            )
            if size is None:
                self.imported.wrong(
                    device.place, 'the size of %s is not in the file' % name, 'write size'
                )
            lun.add('size', size)
        else:
            lun.add_words('backing-store', found.get('filename', ''))
        if is_protected or found.get('read_only') == '1':
            lun.add('readonly', 'yes')
        if found.get('thin_provisioned') == '1':
            lun.add('thin', 'yes')
        is_cached = found.get('write_through') != '1' and found.get('nv_cache') != '1'
        lun.add_flag('write-cache', is_cached)
        if found.get('nv_cache') == '1' and found.get('write_through') != '1':
            self.imported.note(
                device.place,
                'nv_cache 1: SCST ignores flushes of %s; targetd never does, and makes every write '
                'durable' % name,
            )
        if found.get('o_direct') == '1':
            lun.add('direct-io', 'yes')
        if found.get('removable') == '1':
            lun.add('removable', 'yes')
        lun.add('block-size', found.get('blocksize', '512'))
        lun.add('rotation-rate', '1' if found.get('rotational') == '0' else '0')
        if not found.get('prod_rev_lvl'):
            self.imported.note(
                device.place,
                'the default revision of %s is the version of SCST, which is not in the file'
                % name,
            )
        add_identity(
            lun,
            identities.scst(
                name,
                self._setup_id,
                found.get('t10_vend_id', VENDORS[handler]),
                found.get('prod_id', ''),
                found.get('prod_rev_lvl', ''),
                found.get('usn', ''),
                found.get('t10_dev_id', ''),
                found.get('vend_specific_id', ''),
                found.get('naa_id', ''),
                found.get('eui64_id', ''),
            ),
        )
