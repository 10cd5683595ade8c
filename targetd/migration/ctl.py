"""Imports FreeBSD's ctld: /etc/ctl.conf, in its own grammar and in UCL (ctld -u).

May import config.identities and migration.imported. The two grammars are read by one tolerant reader: a
statement is words, perhaps a list, perhaps a block.
"""

import re

from targetd.config import identities
from targetd.migration.imported import (
    Imported,
    Lun,
    Place,
    Target,
    Unreadable,
    add_identity,
    admit,
    admit_all,
    network_of,
)

TOKEN = re.compile(
    r'(?P<space>[ \t\r]+)|(?P<comment>#[^\n]*|/\*.*?\*/)|(?P<line>\n)|"(?P<quoted>[^"\n]*)"'
    r'|(?P<list>\[(?=\s|"|\{))|(?P<mark>[{};,=\]])|(?P<word>(?:\[[0-9a-fA-F:.]*\]|[^\s{};,="\[\]])+)',
    re.DOTALL,
)
NAMES = ('auth-group', 'portal-group', 'target', 'lun')
GLOBAL_WORDS = (
    'debug timeout maxproc pidfile isns-period isns-timeout transport-group controller'.split()
)
OF_LUN = 'path size blocksize serial device-id backend option options ctl-lun device-type'.split()
SIZES = {'': 0, 'k': 10, 'm': 20, 'g': 30, 't': 40, 'p': 50}


class Node(object):
    """One statement: words, a block ([Node] or None) and a list ([word or Node])."""

    def __init__(self, place):
        self.words, self.block, self.items, self.place = [], None, [], place

    def values(self):
        """The values behind the first word, and those of the list."""
        return self.words[1:] + [each for each in self.items if not isinstance(each, Node)]


def parse(path, text):
    """The Imported of a ctl.conf. Raises Unreadable."""
    try:
        return _Importer(path, read(path, text)).imported
    except (IndexError, ValueError) as e:
        raise Unreadable(
            Place(path, None), 'a statement is not complete: %s' % e, 'correct the file'
        )


# -- the grammar -----------------------------------------------------------------------------------


def read(path, text):
    """[Node] of the text. Raises Unreadable."""
    tokens, at, line = [], 0, 1
    while at < len(text):
        match = TOKEN.match(text, at)
        place = Place(path, line)
        if not match:
            raise Unreadable(
                place, 'a quote or bracket is never closed', 'close it on the same line'
            )
        kind = match.lastgroup
        if kind not in ('space', 'comment'):
            tokens.append((kind, match.group(kind), place))
        line += match.group().count('\n')
        at = match.end()
    reader = _Reader(tokens)
    nodes = reader.statements(None)
    return nodes


class _Reader(object):
    def __init__(self, tokens):
        self._tokens, self._at = tokens, 0

    def statements(self, opened):
        """[Node] up to the } of the block that was opened at this Place, or to the end."""
        nodes, node = [], None
        while self._at < len(self._tokens):
            kind, text, place = self._tokens[self._at]
            self._at += 1
            if kind == 'mark' and text == '{':
                node = node or (nodes.pop() if nodes and nodes[-1].block is None else Node(place))
                node.block = self.statements(place)
                nodes.append(node)
                node = None
            elif kind == 'mark' and text == '}':
                if opened is None:
                    raise Unreadable(place, 'there is a } without a {', 'remove it')
                return nodes + ([node] if node else [])
            elif kind == 'list':
                node = node or Node(place)
                node.items = self._list(place)
            elif kind == 'line' or kind == 'mark' and text in ';,':
                nodes += [node] if node else []
                node = None
            elif kind in ('word', 'quoted'):
                node = node or Node(place)
                if kind == 'word' and not node.words and text.endswith(':') and len(text) > 1:
                    text = text[:-1]
                node.words.append(text)
        if opened is not None:
            raise Unreadable(opened, 'the { is never closed', 'copy the whole file')
        return nodes + ([node] if node else [])

    def _list(self, opened):
        items = []
        while self._at < len(self._tokens):
            kind, text, place = self._tokens[self._at]
            self._at += 1
            if kind == 'mark' and text == ']':
                return items
            if kind == 'mark' and text == '{':
                node = Node(place)
                node.block = self.statements(place)
                items.append(node)
            elif kind in ('word', 'quoted'):
                items.append(text)
        raise Unreadable(opened, 'the [ is never closed', 'copy the whole file')


def _named(nodes, word):
    """[(name, Node with the settings)] of the top-level objects of a kind, in both grammars."""
    found = []
    for node in nodes:
        if node.words[:1] == [word] and len(node.words) > 1:
            found.append((' '.join(node.words[1:]), node))
        elif node.words == [word]:
            found += [(' '.join(each.words), each) for each in node.block or ()]
    return found


def _all(node, word):
    return [each for each in node.block or () if each.words[:1] == [word]]


def _text(node, word, default=''):
    found = _all(node, word)
    return ' '.join(found[-1].values()) if found else default


# -- the meaning -----------------------------------------------------------------------------------


class _Importer(object):
    def __init__(self, path, nodes):
        self.imported = Imported('FreeBSD ctld')
        self.imported.files = [path]
        self._auth = dict(_named(nodes, 'auth-group'))
        self._portals = dict(_named(nodes, 'portal-group'))
        self._luns = dict(_named(nodes, 'lun'))
        self._tags = {}
        self._warned = False
        for node in nodes:
            word = node.words[0] if node.words else ''
            if word == 'isns-server':
                self.imported.server.add('isns-server', ' '.join(node.values()))
            elif word in GLOBAL_WORDS:
                if word not in ('debug', 'timeout', 'pidfile', 'maxproc'):
                    self.imported.left_out(node.place, '%s has no counterpart' % word)
            elif word not in NAMES:
                self.imported.left_out(
                    node.place, '%s is not a word of ctld' % word, 'check its spelling'
                )
        for name, node in _named(nodes, 'target'):
            self._target(name, node)

    def _target(self, name, node):
        target = Target(name.lower(), node.place)
        self.imported.targets.append(target)
        if _text(node, 'alias'):
            target.add_words('alias', _text(node, 'alias'))
        group = _text(node, 'auth-group')
        for each in _all(node, 'portal-group'):
            values = each.values()
            portal_group = values[0] if values else _text(each, 'name')
            group = values[1] if len(values) > 1 else _text(each, 'auth-group-name', group)
            tag = self._portal_group(portal_group, each.place)
            target.add('portal-group', str(tag) if tag else None)
        if _text(node, 'redirect'):
            target.add('redirect', 'temporary ' + _text(node, 'redirect'))
        own = any(
            _all(node, word)
            for word in ('chap', 'chap-mutual', 'initiator-name', 'initiator-portal', 'auth-type')
        )
        self._access(target, node if own else self._auth.get(group), group)
        for each in _all(node, 'lun'):
            self._lun_statement(target, name, each)

    def _portal_group(self, name, place):
        """The tag of a portal group; None for the default one."""
        node = self._portals.get(name)
        if node is None:
            if name != 'default':
                self.imported.wrong(place, 'there is no portal-group %s' % name, 'write it')
            return None
        if name not in self._tags:
            portals = []
            for each in _all(node, 'listen'):
                for text in each.values():
                    bare = ':' not in text or text.endswith(']')
                    portals.append(text + ':3260' if bare else text)
            if _all(node, 'discovery-auth-group'):
                group = _text(node, 'discovery-auth-group')
                if group not in ('no-authentication', 'default'):
                    self._discovery(self._auth.get(group), place)
            tag = int(_text(node, 'tag', '0'))
            if tag:
                self.imported.groups[tag] = portals
            self._tags[name] = tag or self.imported.add_portal_group(portals)
        return self._tags[name]

    def _discovery(self, node, place):
        if node is None:
            return self.imported.wrong(place, 'discovery-auth-group names no group', 'write it')
        for words in _chap(node):
            self.imported.server.add_words('incomingdiscoveryuser', *words[:2])

    def _access(self, target, node, group):
        if node is None:
            if group == 'no-authentication':
                return admit_all(self.imported, target, 'no-authentication admits everyone')
            self.imported.note(
                target.place,
                'target %s: the auth-group %s admits nobody' % (target.name, group or 'default'),
            )
            return None
        accounts = _chap(node)
        addresses, names = [], []
        for each in _all(node, 'initiator-name'):
            names += [(text.lower(), each.place) for text in each.values()]
        for each in _all(node, 'initiator-portal'):
            for text in each.values():
                value = network_of(text)
                if value is None:
                    self.imported.wrong(each.place, '%s is not a network' % text, 'correct it')
                else:
                    addresses.append((value, each.place))
        kind = _text(node, 'auth-type')
        if kind == 'deny' or not accounts and kind != 'none':
            return self.imported.note(
                target.place,
                'target %s: its auth-group has no account and admits nobody' % target.name,
            )
        if not addresses and not names:
            admit_all(
                self.imported, target, 'its auth-group has no initiator-name or initiator-portal'
            )
        else:
            admit(self.imported, target, addresses, names)
        for words in accounts:
            target.add_words('incominguser', *words[:2])
        mutual = [words[2:] for words in accounts if len(words) > 3]
        for words in mutual[:1]:
            target.add_words('outgoinguser', *words)
        if mutual and (len(mutual) < len(accounts) or len(set(map(tuple, mutual))) > 1):
            self.imported.note(
                target.place,
                'chap-mutual belongs to one user in ctld; targetd has one outgoinguser for %s'
                % target.name,
            )

    # -- LUNs --------------------------------------------------------------------------------------

    def _lun_statement(self, target, name, node):
        """lun N { … }, lun N NAME, lun = [ { number = N, name = NAME } ] or lun { N = NAME }."""
        pairs = []
        values = node.values()
        if values:
            shared = self._luns.get(values[1]) if len(values) > 1 else None
            pairs.append((values[0], node if shared is None else shared, shared is None))
        for each in [each for each in node.items if isinstance(each, Node)]:
            pairs.append((_text(each, 'number'), self._luns.get(_text(each, 'name')), False))
        if not values:
            for each in node.block or ():
                if len(each.words) > 1:
                    pairs.append((each.words[0], self._luns.get(each.words[1]), False))
                else:
                    pairs.append((each.words[0], each, True))
        for number, settings, is_own in pairs:
            if settings is None or settings.block is None:
                self.imported.wrong(
                    node.place, 'LUN %s of %s is not defined' % (number, name), 'write it'
                )
            elif int(number, 0) in [lun.number for lun in target.luns]:
                self.imported.wrong(
                    node.place,
                    'LUN %s of %s is written twice' % (number, name),
                    'remove one of the two',
                )
            else:
                self._lun(target, name, int(number, 0), settings, is_own)

    def _lun(self, target, name, number, node, is_own):
        lun = Lun(number, node.place)
        target.luns.append(lun)
        options = _options(node)
        path = _text(node, 'path') or options.get('file', '')
        if _text(node, 'backend') == 'ramdisk' or not path:
            lun.add('type', 'ram')
        else:
            lun.add_words('backing-store', path)
            if path.startswith('/dev/'):
                self.imported.note(
                    node.place,
                    '%s is a path of FreeBSD' % path,
                    'write the path of the disk on this host',
                )
        size = _text(node, 'size')
        if size and not path.startswith('/dev/'):
            lun.add('size', str(_size(size)))
        if options.get('readonly') in ('on', 'true', '1', 'yes'):
            lun.add('readonly', 'yes')
        if options.get('unmap') in ('on', 'true', '1', 'yes'):
            lun.add('thin', 'yes')
        lun.add_flag('write-cache', options.get('writecache', 'on') != 'off')
        lun.add('block-size', _text(node, 'blocksize', '512'))
        if options.get('pblocksize'):
            lun.add('physical-block-size', options['pblocksize'])
        lun.add('rotation-rate', options.get('rpm', '0'))
        serial, device_id = _text(node, 'serial')[:16], _text(node, 'device-id')
        for text, what in ((serial, 'serial'), (device_id, 'device-id')):
            if not text:
                self.imported.note(
                    node.place,
                    '%s of LUN %d of %s is not in the file; CTL counts it up when it makes the LUN'
                    % (what, number, name),
                    'read it with ctladm devlist -v on the old host, and write %s'
                    % ('scsi-sn' if what == 'serial' else 't10'),
                )
        for word in node.block or ():
            if word.words and word.words[0] not in OF_LUN:
                self.imported.left_out(word.place, '%s has no counterpart' % word.words[0])
        add_identity(
            lun,
            identities.ctl(
                serial,
                device_id,
                '%s,lun,%d' % (name, number) if is_own else '',
                options.get('naa', ''),
                options.get('eui', ''),
                options.get('vendor', 'FREEBSD'),
                options.get('product', 'CTLDISK'),
                options.get('revision', '0001'),
            ),
        )


def _chap(node):
    """[[user, secret, mutual user, mutual secret]] of an auth-group; the last two may be missing."""
    found = []
    for word in ('chap', 'chap-mutual'):
        for each in _all(node, word):
            blocks = [each] if each.block else [one for one in each.items if isinstance(one, Node)]
            for block in blocks:
                words = [
                    _text(block, 'user') or _text(block, 'username'),
                    _text(block, 'secret'),
                    _text(block, 'mutual-user'),
                    _text(block, 'mutual-secret'),
                ]
                found.append([text for text in words if text])
            if each.values():
                found.append(each.values())
    return found


def _options(node):
    found = {}
    for each in _all(node, 'option'):
        values = each.values()
        if len(values) > 1:
            found[values[0]] = ' '.join(values[1:])
    for each in _all(node, 'options'):
        for option in each.block or ():
            found[option.words[0]] = ' '.join(option.values())
    return found


def _size(text):
    match = re.match(r'(\d+|0x[0-9a-f]+)([kmgtp]?)b?$', text.lower())
    if not match:
        raise ValueError('%s is not a size' % text)
    return int(match.group(1), 0) << SIZES[match.group(2)]
