"""Imports tgt: targets.conf with the files that it includes, and the output of `tgt-admin --dump`.

May import config.identities, migration.config_general and migration.imported.
"""

import os
from collections import OrderedDict

from targetd.config import identities
from targetd.migration.config_general import Entry, Reading
from targetd.migration.imported import (
    Imported,
    Lun,
    Place,
    Target,
    Unreadable,
    account_without_secret,
    add_identity,
    add_passthrough,
    admit,
    admit_all,
    network_of,
)

MASKED = 'PLEASE_CORRECT_THE_PASSWORD'

GLOBAL_WORDS = (
    'default-driver ignore-errors control-port iSNS iSNSServerIP iSNSServerPort iSNSAccessControl '
    'incomingdiscoveryuser outgoingdiscoveryuser include target'
).split()
#: Text keys of a target that targetd has too.
TEXT_KEYS = (
    'MaxRecvDataSegmentLength HeaderDigest DataDigest InitialR2T MaxOutstandingR2T ImmediateData '
    'FirstBurstLength MaxBurstLength ErrorRecoveryLevel DefaultTime2Wait DefaultTime2Retain '
    'MaxConnections'
).split()
WITHOUT_COUNTERPART = (
    'MaxXmitDataSegmentLength DataPDUInOrder DataSequenceInOrder IFMarker OFMarker IFMarkInt OFMarkInt '
    'MaxQueueCmd RSPTime nop_interval nop_count bsopts device-type'
).split()
#: Settings of a LUN that may also be written in the target, for all its LUNs.
SHARED = (
    'scsi_id scsi_sn vendor_id product_id product_rev sense_format removable online readonly lbppbe la_lba '
    'optimal_xfer_gran optimal_xfer_len write-cache mode_page params bs-type bsoflags bsopts device-type '
    'allow-in-use'
).split()
OF_TARGET = (
    'backing-store direct-store initiator-address initiator-name incominguser outgoinguser driver '
    'controller_tid lun state path block-size'
).split()


def parse(path, text=None, more=(), exists=os.path.exists):
    """The Imported of a targets.conf. more: paths of further files, read as if it included them; exists:
    function of a path of a store. Raises Unreadable."""
    return _Importer(path, text, more, exists).imported


# -- the meaning -----------------------------------------------------------------------------------


class _Importer(object):
    def __init__(self, path, text, more, exists):
        self.imported = Imported('tgt')
        self._exists = exists
        reading = Reading()
        reading.read(path, text)
        reading.finish()
        for each in more:
            reading.read(each)
            reading.finish()
        self.imported.files = reading.paths
        for pattern, place in reading.missing:
            self.imported.wrong(
                place, 'the file %s that it includes does not exist' % pattern, 'copy it too'
            )
        self._is_dump = any(MASKED in entry.value for entry in _flat(reading.entries))
        self._globals([entry for entry in reading.entries if entry.key != 'target'])
        targets = [entry for entry in reading.entries if entry.key == 'target' and entry.block]
        stores = [
            each.value
            for target in targets
            for each in target.block
            if each.key in ('backing-store', 'direct-store')
        ]
        self._is_elsewhere = bool(stores) and not any(exists(path) for path in stores)
        if self._is_elsewhere:
            self.imported.note(
                Place(path, None),
                'no backing-store of the file exists on this host; the LUNs are numbered as if all exist '
                'on the other host',
                'import there, or compare with "tgtadm --op show --mode target"',
            )
        self._targets(targets)
        self._final_notes(Place(path, None))

    def _final_notes(self, place):
        if self._is_dump:
            self.imported.note(
                place,
                'this is the output of tgt-admin --dump, which has no secrets, LUN numbers, identities, '
                'write cache, block size or read-only; the LUNs are those that tgt assigns when it '
                'reads the dump',
                'import targets.conf itself, or compare with targetdctl import --running while tgtd runs',
            )
        if self.imported.targets:
            self.imported.note(
                place,
                'the identities of tgt depend on positions (the rank of the target name, the LUN); they '
                'are written out, so that initiators see the same disks',
            )
            self.imported.note(
                place,
                'LUN 0 of every target of tgt is a controller, not a disk; it has no counterpart',
            )

    # -- global words ------------------------------------------------------------------------------

    def _globals(self, entries):
        isns = {}
        for entry in entries:
            if entry.key in ('incomingdiscoveryuser', 'outgoingdiscoveryuser'):
                self._account(self.imported.server, entry)
            elif entry.key.startswith('iSNS') and entry.key in GLOBAL_WORDS:
                isns[entry.key] = entry
            elif entry.key in ('default-driver', 'driver'):
                if entry.value != 'iscsi':
                    self.imported.left_out(
                        entry.place, '%s %s: targetd supports iSCSI only' % (entry.key, entry.value)
                    )
            elif entry.key == 'control-port':
                self.imported.left_out(
                    entry.place,
                    'control-port has no counterpart',
                    'see control-socket in targetd.conf(5)',
                )
            elif entry.key not in GLOBAL_WORDS:
                self._unknown(entry)
        self._isns(isns)

    def _isns(self, isns):
        access = isns.get('iSNSAccessControl')
        if access is not None:
            self.imported.left_out(access.place, 'iSNSAccessControl has no counterpart')
        server = isns.get('iSNSServerIP')
        if server is None or isns.get('iSNS', Entry('', 'Off', None, None)).value.lower() != 'on':
            return
        port = isns['iSNSServerPort'].value if 'iSNSServerPort' in isns else '3205'
        address = '[%s]' % server.value if ':' in server.value else server.value
        self.imported.server.add('isns-server', '%s:%s' % (address, port))

    def _unknown(self, entry):
        self.imported.left_out(
            entry.place,
            '%s is not a word of tgt, which ignores it without a message' % entry.key,
            'check its spelling: words are case-sensitive in tgt',
        )

    def _account(self, section, entry):
        words = entry.value.split(' ')
        if len(words) != 2 or not all(words) or '\t' in entry.value:
            why = 'tgt-admin splits name and secret at one blank, and stops at this line'
        elif words[1] == MASKED:
            why = 'its secret is not in the file'
        else:
            return section.add_words(entry.key, *words)
        name = entry.value.split()[0] if entry.value.split() else '?'
        account_without_secret(self.imported, section, entry.key, name, entry.place, why)

    # -- targets -----------------------------------------------------------------------------------

    def _targets(self, entries):
        tid = 0
        for entry in sorted(entries, key=lambda entry: entry.value.encode('utf-8')):
            numbers = [each for each in entry.block if each.key == 'controller_tid']
            tid = tid + 1
            if numbers:
                try:
                    tid = int(numbers[0].value)
                except ValueError:
                    self.imported.wrong(
                        numbers[0].place, 'controller_tid %r is not a number' % numbers[0].value
                    )
            self._target(entry, tid)

    def _target(self, entry, tid):
        target = Target(entry.value.lower(), entry.place)
        self.imported.targets.append(target)
        self._access(target, entry.block)
        outgoing = [each for each in entry.block if each.key == 'outgoinguser']
        for each in entry.block:
            if each.key in ('incominguser', 'outgoinguser'):
                if each in outgoing[1:]:
                    self.imported.left_out(
                        each.place, 'tgt uses only the first outgoinguser, and ignores this one'
                    )
                else:
                    self._account(target, each)
            elif each.key == 'state':
                target.add('state', 'offline' if each.value == 'offline' else 'ready')
            elif each.key in TEXT_KEYS:
                if not target.get(each.key):
                    target.add(each.key, each.value)
            elif each.key in WITHOUT_COUNTERPART:
                self.imported.left_out(each.place, '%s has no counterpart' % each.key)
            elif each.key == 'block-size':
                self.imported.note(
                    each.place,
                    'tgt ignores block-size here; the LUNs have blocks of 512 bytes, and stay so',
                )
            elif each.key not in SHARED and each.key not in OF_TARGET:
                self._unknown(each)
        self._luns(target, entry, tid)

    def _access(self, target, entries):
        addresses, names, is_open = [], [], True
        for each in entries:
            if each.key == 'initiator-address':
                is_open = False
                self._address(addresses, each)
            elif each.key == 'initiator-name':
                if self._is_dump and (each.value == 'ALL' or network_of(each.value)):
                    is_open = False
                    self.imported.note(
                        each.place,
                        'initiator-name %s was an initiator-address; tgt-admin --dump mistakes it'
                        % each.value,
                    )
                    self._address(addresses, each)
                else:
                    names.append((each.value.lower(), each.place))
        if is_open and names:
            addresses.insert(0, ('ALL', target.place))
        if is_open and not names:
            return admit_all(
                self.imported,
                target,
                'it has neither initiator-address nor initiator-name, and tgt admits everyone',
            )
        if is_open:
            self.imported.note(
                target.place,
                'target %s: without initiator-address tgt admits everyone, whatever its initiator-name; '
                'in targetd only these names are admitted now' % target.name,
                'write initiator-name = ALL if every initiator should be admitted',
            )
            return admit(self.imported, target, addresses, names)
        admit(self.imported, target, addresses, names, either=True)

    def _address(self, addresses, entry):
        """Add an address rule, unless it never matches in tgt."""
        value = network_of(entry.value)
        if entry.value == 'ALL':
            addresses.append(('ALL', entry.place))
        elif value is None or value.endswith(('/32', '/128')):
            self.imported.left_out(
                entry.place,
                'initiator-address %s never matches in tgt%s'
                % (entry.value, '' if value is None else ', because of its prefix length'),
                'write initiator-address = %s if it should match now'
                % (value.split('/')[0] if value else 'ADDRESS'),
            )
        else:
            addresses.append((value, entry.place))

    # -- LUNs --------------------------------------------------------------------------------------

    def _luns(self, target, entry, tid):
        stores = self._stores(entry)
        common = [each for each in entry.block if each.key in SHARED]
        whole = [each for each in entry.block if each.key == 'lun']
        reserved = {
            _number(each) for store in stores for each in store.block or () if each.key == 'lun'
        }
        used = {}
        for store in stores:
            own = [each for each in store.block or () if each.key == 'lun']
            if not self._is_elsewhere and not self._exists(store.value):
                self.imported.wrong(
                    store.place,
                    '%s does not exist, so tgt skips it and gives its LUN number to the next one'
                    % store.value,
                    'restore it, or remove the line',
                )
                continue
            number = _number(own[0] if own else whole[0]) if own or whole else None
            if number is None:
                number = next(n for n in range(1, 1 << 14) if n not in reserved and n not in used)
            if number in used:
                self.imported.wrong(
                    store.place,
                    'LUN %d of %s is written twice; the other place is %s:%d'
                    % ((number, target.name) + used[number]),
                    'write another lun',
                )
                continue
            used[number] = store.place
            lun = Lun(number, store.place)
            target.luns.append(lun)
            self._lun(lun, store, common, tid)

    def _stores(self, entry):
        """The Entries of the stores in the order in which tgt-admin numbers them."""
        found = []
        for key in ('backing-store', 'direct-store'):
            mine = OrderedDict()
            for each in entry.block:
                if each.key == key and each.value in mine:
                    self.imported.note(
                        each.place, '%s is written twice and is one LUN' % each.value
                    )
                elif each.key == key:
                    mine[each.value] = each
            if len({each.block is None for each in mine.values()}) > 1:
                self.imported.wrong(
                    entry.place,
                    'target %s has %s both as a line and as a block, so tgt refuses the whole file'
                    % (entry.value, key),
                    'write all of them as blocks',
                )
            found += sorted(mine.values(), key=lambda each: each.value.encode('utf-8'))
        return found

    def _lun(self, lun, store, common, tid):
        words = self._words_of_lun(store, common)
        path = words['path'][0].value if 'path' in words else store.value
        lun.add_words('backing-store', path)
        parameters = _parameters(words)
        if 'bs-type' in words and words['bs-type'][0].value == 'sg':
            return add_passthrough(
                self.imported, lun, path, parameters.get('readonly', '') not in ('', '0', 'no')
            )
        block = int(words['block-size'][0].value) if 'block-size' in words else 512
        lun.add('block-size', str(block))

        def value(name, default=''):
            return parameters.get(name, default)

        self._cache(lun, words)
        if value('readonly') not in ('', '0', 'no'):
            lun.add('readonly', 'yes')
        if value('removable') not in ('', '0', 'no'):
            lun.add('removable', 'yes')
        if value('sense_format') == '1':
            lun.add('sense-format', 'descriptor')
        if value('thin_provisioning') not in ('', '0'):
            lun.add('thin', 'yes')
        lun.add('rotation-rate', value('rotation_rate') or '0')
        # without lbppbe, tgt reports physical blocks of at least 4096 bytes
        physical = block << int(value('lbppbe')) if value('lbppbe') else max(block, 4096)
        lun.add('physical-block-size', str(physical))
        if value('la_lba') not in ('', '0'):
            lun.add('lowest-aligned-block', value('la_lba'))
        for name, setting in (
            ('optimal_xfer_len', 'optimal-transfer-length'),
            ('optimal_xfer_gran', 'optimal-transfer-granularity'),
        ):
            if value(name) not in ('', '0'):
                lun.add(setting, '%d' % (int(value(name)) * block))
        for each in words.get('mode_page', ()):
            lun.add('mode-page', each.value)
        if value('online') in ('0', 'no'):
            self.imported.left_out(store.place, 'online 0 has no counterpart for one LUN')
        if words.get('allow-in-use', (Entry('', 'no', None, None),))[0].value == 'yes':
            lun.add('allow-in-use', 'yes')
        self._identity(lun, store, tid, parameters)

    def _words_of_lun(self, store, common):
        """{word: [Entry]} of a LUN: its own words, and those of the target that it does not have."""
        words = OrderedDict()
        for each in store.block or ():
            words.setdefault(each.key, []).append(each)
        for each in common:
            if (
                each.key in ('mode_page', 'params')
                or each.key not in words
                or (words[each.key][0] in common)
            ):
                words.setdefault(each.key, []).append(each)
        for key, entries in words.items():
            if key in WITHOUT_COUNTERPART and entries[0] not in common:
                self.imported.left_out(entries[0].place, '%s has no counterpart' % key)
            elif key == 'bs-type' and entries[0].value not in ('rdwr', 'aio', 'sg'):
                self.imported.wrong(
                    entries[0].place,
                    'bs-type %s is not a file or disk of this host' % entries[0].value,
                    'copy the data to a file or disk first',
                )
            elif key not in SHARED and key not in OF_TARGET:
                self._unknown(entries[0])
        return words

    def _cache(self, lun, words):
        entry = words['write-cache'][0] if 'write-cache' in words else None
        is_on = entry is None or entry.value != 'off'
        flags = words['bsoflags'][0] if 'bsoflags' in words else None
        if flags is not None and 'sync' in flags.value and is_on:
            is_on = False
            self.imported.note(
                flags.place,
                'bsoflags sync makes every write durable, although tgt shows a write cache: write-cache = '
                'off is written, and initiators see that there is none',
            )
        if flags is not None and 'direct' in flags.value:
            lun.add('direct-io', 'yes')
        lun.add_flag('write-cache', is_on)

    def _identity(self, lun, store, tid, parameters):
        names = {
            ours: parameters[theirs]
            for theirs, ours in (
                ('scsi_id', 'scsi_id'),
                ('scsi_sn', 'scsi_sn'),
                ('vendor_id', 'vendor'),
                ('product_id', 'product'),
                ('product_rev', 'revision'),
            )
            if parameters.get(theirs)
        }
        if store.key == 'direct-store':
            self.imported.note(
                store.place,
                'tgt-admin copies vendor, product, revision and serial number of a direct-store from the '
                'disk when it runs; they are not in the file, and the defaults of tgt are written',
                'compare with sg_inq on an initiator, and correct them',
            )
        add_identity(lun, identities.tgt(tid, lun.number, **names))


def _parameters(words):
    """{name: value} of the parameters of a LUN; those of `params` come last, as in tgt-admin."""
    found = {
        key: entries[0].value
        for key, entries in words.items()
        if key not in ('params', 'mode_page')
    }
    for entry in words.get('params', ()):
        for part in entry.value.split(','):
            name, _, value = part.partition('=')
            found[name.strip()] = value.strip().strip('"')
    return found


def _number(entry):
    try:
        return int(entry.value)
    except ValueError:
        raise Unreadable(
            entry.place, 'lun %r is not a number' % entry.value, 'write a number from 1 to 16383'
        )


def _flat(entries):
    for entry in entries:
        yield entry
        for each in _flat(entry.block or ()):
            yield each
