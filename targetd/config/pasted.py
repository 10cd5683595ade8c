"""Lines of other targets' configurations that were pasted into targetd.conf: the remedy from the first
word.

May import config.kinds, config.tgt_settings and the table of settings. A line has the form of another
language (`<target NAME>`, `Lun 0 Path=...`, `enabled 1`), so its first word says what was meant.
"""

import re

from targetd.config import settings
from targetd.config.kinds import nearest
from targetd.config.tgt_settings import FORMER

IMPORT = 'or import the whole file: targetdctl import FILE'
_SETTINGS = {row.name.lower(): row.name for row in settings.TABLE}
_TARGET = 'write [target NAME]'
_LUN = 'write a section [[lun N]] with backing-store = PATH'
_GROUP = 'write [portal-group TAG] with portal = ADDRESS'
_ACCESS = 'write initiator-name and initiator-address in the target'

#: First word of a line, folded, without digits at its end -> (language, remedy).
# fmt: off
WORDS = {
    'handler': ('SCST', _LUN),
    'device': ('SCST', _LUN),
    'filename': ('SCST', 'write backing-store = PATH in the lun'),
    'target-driver': ('SCST', 'remove it: targetd supports iSCSI only'),
    'group': ('SCST', _ACCESS),
    'initiator': ('SCST', 'write initiator-name = NAME in the target'),
    'enabled': ('SCST', 'write state = ready or state = offline in the target'),
    'rel-tgt-id': ('SCST', 'remove it: it follows from the portal group'),
    'setup-id': ('SCST', 'write identity = scst device=NAME setup_id=... in the lun'),
    'usn': ('SCST', 'write scsi-sn = NUMBER in the lun'),
    't10-dev-id': ('SCST', 'write identity = scst device=NAME t10_dev_id=... in the lun'),
    'naa-id': ('SCST', 'write naa = DIGITS in the lun'),
    'eui-id': ('SCST', 'write eui = DIGITS in the lun'),
    'write-through': ('SCST', 'write write-cache = off in the lun for 1, on for 0'),
    'nv-cache': ('SCST', 'remove it: targetd never ignores a flush'),
    'allowed-portal': ('SCST', _GROUP),
    'rotational': ('SCST', 'write rotation-rate = 1 in the lun for 0'),
    'blocksize': ('SCST or ctld', 'write block-size = BYTES in the lun'),
    'target': ('IET or SCST', _TARGET),
    'lun': ('another target', 'write [[lun N]], and settings such as backing-store = PATH below it'),
    'wthreads': ('IET', 'remove it, or write executor-threads in [server]'),
    'queuedcommands': ('IET', 'remove it: the worker process determines the command window'),
    'nopinterval': ('IET', 'write nop-interval'),
    'noptimeout': ('IET', 'write nop-count in [server]'),
    'maxsessions': ('IET', 'write max-sessions in the target'),
    'isnsserver': ('IET', 'write isns-server = ADDRESS in [server]'),
    'auth-group': ('ctld', 'write incominguser, initiator-name and initiator-address in the target'),
    'listen': ('ctld', 'write portal = ADDRESS in [portal-group TAG]'),
    'discovery-auth-group': ('ctld', 'write incomingdiscoveryuser in [server]'),
    'auth-type': ('ctld', 'remove it: without incominguser no CHAP is required'),
    'chap': ('ctld', 'write incominguser = NAME SECRET in the target'),
    'chap-mutual': ('ctld', 'write incominguser and outgoinguser in the target'),
    'initiator-portal': ('ctld', 'write initiator-address = NETWORK in the target'),
    'serial': ('ctld', 'write scsi-sn = NUMBER in the lun'),
    'device-id': ('ctld', 'write t10 = ascii TEXT in the lun'),
    'option': ('ctld', 'write the option as a setting, such as vendor-id or naa'),
    'path': ('ctld', 'write backing-store = PATH in the lun'),
    'global': ('istgt', 'write [server]'),
    'unitcontrol': ('istgt', 'remove it: see control-socket in targetd.conf(5)'),
    'portalgroup': ('istgt', _GROUP),
    'initiatorgroup': ('istgt', _ACCESS),
    'authgroup': ('istgt', 'write incominguser = NAME SECRET in the target'),
    'logicalunit': ('istgt', _TARGET),
    'targetname': ('istgt', _TARGET),
    'targetalias': ('istgt', 'write alias = TEXT in the target'),
    'mapping': ('istgt', 'write portal-group and initiator-name in the target'),
    'authmethod': ('istgt', 'remove it: CHAP is required if incominguser is written'),
    'auth': ('istgt', 'write incominguser = NAME SECRET in the target'),
    'unittype': ('istgt', 'remove it: targetd serves disks only'),
    'unitinquiry': ('istgt', 'write vendor-id, product-id, product-rev and scsi-sn in the lun'),
    'nodebase': ('istgt', 'write the whole name in [target NAME]'),
    'initiatorname': ('istgt', 'write initiator-name = NAME in the target'),
    'netmask': ('istgt', 'write initiator-address = NETWORK in the target'),
    'storage-objects': ('LIO', 'write [target NAME] with [[lun N]]'),
    'fabric-modules': ('LIO', 'write [target NAME] with [[lun N]]'),
    'create': ('targetcli', 'write [target NAME] with [[lun N]]'),
    'block-pools': ('the other program called targetd', 'use saveconfig.json of LIO, which has its exports'),
    'fs-pools': ('the other program called targetd', 'use saveconfig.json of LIO, which has its exports'),
}
# fmt: on


#: The configuration of the daemon of the same name, and what to do with it.
OTHER_TARGETD = (
    'this is the YAML configuration of the other program called targetd, the remote control of LIO, and '
    'not of an iSCSI target'
)
OTHER_REMEDY = 'import saveconfig.json of LIO, which holds its exports: targetdctl import FILE'
_OTHER_KEYS = 'block_pools|zfs_block_pools|fs_pools|pool_name|target_name|portal_addresses'
_OTHER_FIRST_KEYS = _OTHER_KEYS + '|user|password|log_level|ssl|ssl_cert|ssl_key|allow_access'


def is_of_other_targetd(text):
    """True if this file is a configuration of the other program called targetd: it has one of its own keys,
    or begins with one of its keys."""
    return bool(
        re.search(r'^(%s)\s*:' % _OTHER_KEYS, text, re.MULTILINE)
        or re.match(r'(\s*(#.*|---)?\n)*(%s)\s*:\s' % _OTHER_FIRST_KEYS, text)
    ) and not re.search(r'^\s*\[', text, re.MULTILINE)


def first_word(text):
    """The first word of a line, without the punctuation of other languages around it."""
    return re.split(r'[\s={]', text.strip().strip('"\'<'), maxsplit=1)[0].strip('"\':,>')


def _folded(word):
    word = word.lower().replace('_', '-')
    return word if word in WORDS else re.sub(r'[-0-9]+$', '', word)


def remedy_of(line):
    """The remedy for a line of another language, or '' if its first word is not known. line: as
    written, with or without an equals sign; the remedy contains no word behind the first but names and
    paths of targets and stores."""
    line = line.strip()
    block = re.match(r'<\s*(target|backing-store|direct-store)\s+"?([^">]+)', line, re.IGNORECASE)
    if block:
        kind, name = block.group(1).lower(), block.group(2).strip()
        if kind == 'target':
            return 'write [target %s]; %s' % (name, IMPORT)
        return 'write [[lun N]], and below it %s = %s; %s' % (kind, name, IMPORT)
    if re.match(r'</[a-z]|\}\s*$', line, re.IGNORECASE):
        return 'sections have no end mark: remove the line'
    if line.startswith(('<?xml', '<iSCSI')):
        return 'this is XML of Microsoft; import it: targetdctl import FILE'
    if line.startswith(('{', '/backstores', '/iscsi')):
        return 'this is of LIO; import saveconfig.json: targetdctl import FILE'
    word = first_word(line)
    name = re.match(r'target\s+((?:iqn|eui|naa)\.[^\s{]+)', line, re.IGNORECASE)
    if name:
        return 'write [target %s]; %s' % (name.group(1), IMPORT)
    if line.endswith('{') and word.lower() == 'portal-group':
        return '%s; %s' % (_GROUP, IMPORT)
    row = WORDS.get(_folded(word))
    if row:
        return 'this is a word of %s: %s; %s' % (row + (IMPORT,))
    if _folded(word) in FORMER:
        return FORMER[_folded(word)]
    return ''


def without_equals(line):
    """(text of the complaint or None, remedy) for a line that has no equals sign. They do not repeat
    what stands behind the first word, which may be a secret."""
    word = line.partition(' ')[0]
    exact = _SETTINGS.get(word.lower().replace('_', '-'))
    if exact is None or line.rstrip().endswith('{'):
        remedy = remedy_of(line)
        if remedy:
            return None, remedy
    near = exact or nearest(word, list(_SETTINGS.values()) + ['include'])
    if not near:
        return None, ''
    return '%s without an equals sign' % near, 'write %s = ...' % near
