"""What only the running server knows, for `targetdctl export`: whether its configuration is that of the
file, ALUA states that were set at run time, and the identities that it derived.

May import config.words and migration.imported. The rows are those of the server's replies
(admin.commands).
"""

from targetd.config.words import join
from targetd.migration.imported import LEFT_OUT

CONFIGURATION = 'configuration'  # of SET-BY in `show alua`


def add_plan(imported, rows):
    """Note every change of the file that is not in force. rows: of `reload --plan`."""
    for row in rows:
        imported.note(
            None,
            'the file has a change that is not in force: %s' % row['step'],
            'run targetdctl reload, or undo the change in the file',
            LEFT_OUT,
        )


def add_alua(imported, rows):
    """Write the ALUA states that were set by the administrator or by initiators. rows: of `show
    alua`."""
    for target in imported.targets:
        mine = [row for row in rows if row['target_name'] == target.name]
        if all(row['set_by'] == CONFIGURATION for row in mine):
            continue
        states = {}
        for row in mine:
            states.setdefault(int(row['group']), set()).add(row['access'])
        for tag, found in sorted(states.items()):
            if len(found) > 1:
                imported.left_out(
                    target.place,
                    'portal group %d of %s has a different ALUA state for each LUN'
                    % (tag, target.name),
                    'set them again with targetdctl alua',
                )
        chosen = [
            [str(tag), next(iter(found))]
            for tag, found in sorted(states.items())
            if len(found) == 1 and found != {'optimized'}
        ]
        target.replace('alua-state', join(chosen) if chosen else None)


def add_identities(imported, rows):
    """Write the identities that the server derived, so that they remain on another host. rows: of
    `show units`."""
    seen = {(row['target_name'], row['lun']): row for row in rows}
    for target in imported.targets:
        for lun in target.luns:
            row = seen.get((target.name, lun.number))
            if row is None or lun.get('direct-store'):
                continue
            if not lun.get('scsi-sn') and row.get('serial'):
                lun.add_words('scsi-sn', row['serial'])
            if not lun.get('naa') and row.get('naa'):
                lun.add('naa', ', '.join(row['naa'].split()))
