"""Compares what was imported with the running tgtd, as `tgtadm --op show --mode target` shows it.

May import config.words and migration.imported. The file alone is not reliable: LUN numbers depend on
the paths that existed when tgt-admin ran, and changes by tgtadm are in no file.
"""

import re
import subprocess
from collections import OrderedDict

from targetd.config.words import split
from targetd.migration.imported import Place, Unreadable

COMMAND = ('tgtadm', '--lld', 'iscsi', '--op', 'show', '--mode', 'target')


def show():
    """The output of tgtadm. Raises Unreadable."""
    try:
        done = subprocess.run(
            COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=30, check=False
        )
    except (OSError, subprocess.SubprocessError) as e:
        raise Unreadable(None, 'tgtadm cannot be run: %s' % e, 'import without --running')
    if done.returncode:
        raise Unreadable(
            None,
            'tgtadm failed: %s' % done.stderr.decode('utf-8', 'replace').strip(),
            'start tgtd, or import without --running',
        )
    return done.stdout.decode('utf-8', 'replace')


def parse(text):
    """{target name: {LUN: {what: value}}} of the output of tgtadm; LUNs of controllers are left out."""
    targets, luns, lun = OrderedDict(), None, None
    for line in text.split('\n'):
        target = re.match(r'Target \d+: (.+)$', line)
        number = re.match(r'\s+LUN: (\d+)$', line)
        pair = re.match(r'\s+([A-Z][^:]*): ?(.*)$', line)
        if target:
            luns = targets.setdefault(target.group(1).lower(), OrderedDict())
            lun = None
        elif number and luns is not None:
            lun = luns.setdefault(int(number.group(1)), {})
        elif pair and lun is not None:
            lun[pair.group(1)] = pair.group(2)
    for luns in targets.values():
        for number in [n for n, lun in luns.items() if lun.get('Type') == 'controller']:
            del luns[number]
    return targets


def compare(imported, text):
    """Record each difference between an Imported and the output of tgtadm as an error."""
    running = parse(text)
    by_name = {target.name: target for target in imported.targets}
    for name in running:
        if name not in by_name:
            imported.wrong(
                Place('tgtadm', None),
                'target %s runs, but is not in the file' % name,
                'write it too',
            )
    for name, target in by_name.items():
        if name not in running:
            imported.wrong(target.place, 'target %s is in the file, but does not run' % name)
            continue
        mine = {lun.number: lun for lun in target.luns}
        for number, seen in running[name].items():
            if number in mine:
                _compare_lun(imported, name, mine[number], seen)
            else:
                imported.wrong(
                    target.place,
                    'LUN %d of %s (%s) runs, but is not in the file'
                    % (number, name, seen.get('Backing store path')),
                    'write [[lun %d]] for it' % number,
                )
        for number, lun in mine.items():
            if number not in running[name]:
                imported.wrong(
                    lun.place, 'LUN %d of %s is in the file, but does not run' % (number, name)
                )


def _compare_lun(imported, name, lun, seen):
    def mine(setting):
        texts = lun.get(setting)
        return ' '.join(split(texts[0])[0]) if texts else ''

    def flag(setting):
        return 'Yes' if mine(setting) == 'yes' else 'No'

    for what, ours in (
        ('Backing store path', mine('backing-store')),
        ('SCSI SN', mine('scsi-sn').strip()),
        ('SCSI ID', ' '.join(split(lun.get('t10')[0])[0][1:2]) if lun.get('t10') else ''),
        ('Readonly', flag('readonly')),
        ('Thin-provisioning', flag('thin')),
    ):
        theirs = seen.get(what, ours)
        if theirs.strip() != ours.strip():
            imported.wrong(
                lun.place,
                'LUN %d of %s: %s is %s in tgtd, and %s in the file'
                % (lun.number, name, what, theirs.strip() or 'empty', ours.strip() or 'empty'),
                'correct the new configuration',
            )
    size = re.search(r'Block size: (\d+)', seen.get('Size', ''))
    if size and size.group(1) != mine('block-size'):
        imported.wrong(
            lun.place,
            'LUN %d of %s has blocks of %s bytes in tgtd, and of %s in the file'
            % (lun.number, name, size.group(1), mine('block-size')),
            'write block-size = %s: with another one the data cannot be read' % size.group(1),
        )
