"""The rows of the commands about kept blocks (the setting guard): see commands. Pure."""

from targetd.admin.command_rows import Argument, columns, command

_UNIT = Argument('unit', 'text', True, 'TARGET/LUN, or the first column of "guard list"')

# fmt: off
TABLE = (
    command('guard list', 'list what was kept before initiators wrote to a LUN',
            'One line per time that the setting guard has kept the partition table and the heads of the '
            'file systems of a LUN: before which command of which initiator, and what was on the disk.',
            arguments=[Argument('unit', 'text', False, 'only of this unit: TARGET/LUN')],
            columns=columns(('unit', 'UNIT'), ('number', 'NUMBER'), ('time', 'TIME'),
                            ('reason', 'BEFORE'), ('initiator_name', 'INITIATOR'),
                            ('contents', 'CONTENT'), ('size', 'BYTES', 'bytes'), ('state', 'STATE')),
            empty='nothing is kept', seconds=60, records=True),
    command('guard restore', 'give a LUN its old partition table and heads of file systems',
            'No session may use the LUN: log out its initiators first. Only what was kept is written, so '
            'files that were overwritten since are not restored; run the check of the file system '
            'afterwards (chkdsk, fsck). What is overwritten is kept as a new number, so that the restore '
            'can be undone.',
            arguments=[_UNIT,
                       Argument('number', 'number', True, 'the number in "guard list"')],
            seconds=120),
    command('guard remove', 'remove what was kept of a LUN',
            'One number, or with --all everything that was kept of the LUN.',
            arguments=[_UNIT,
                       Argument('number', 'number', False, 'the number in "guard list"'),
                       Argument('all', 'flag', False, 'remove everything of this LUN')],
            seconds=60),
)
# fmt: on
