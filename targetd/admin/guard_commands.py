"""The rows of the commands about kept blocks (the setting guard): see commands. Pure."""

from targetd.admin.command_rows import Argument, columns, command

_UNIT = Argument('unit', 'text', True, 'TARGET/LUN, or the first column of "guard list"')

# fmt: off
TABLE = (
    command('guard list', 'list what was kept before initiators wrote to a LUN',
            'One line per time that the setting guard has kept the partition table and the heads of the '
            'file systems of a LUN: before which command of which initiator, and what was on the disk. Of an '
            'undo journal, one line per time that an initiator has written without a pause of a minute: '
            'TIME is when it began, and BYTES is what it overwrote; such a line has no NUMBER.',
            arguments=[Argument('unit', 'text', False, 'only of this unit: TARGET/LUN')],
            columns=columns(('unit', 'UNIT'), ('number', 'NUMBER'), ('time', 'TIME'),
                            ('reason', 'BEFORE'), ('initiator_name', 'INITIATOR'),
                            ('contents', 'CONTENT'), ('size', 'BYTES', 'bytes'), ('state', 'STATE')),
            empty='nothing is kept', seconds=60, records=True),
    command('guard restore', 'give a LUN the old content that the setting guard has kept',
            'No session may use the LUN: log out its initiators first. With a number, the partition table '
            'and the heads of the file systems are written; files that were overwritten since are not '
            'restored, so run the check of the file system afterwards (chkdsk, fsck). What is overwritten '
            'is kept as a new number, so that the restore can be undone. With a time and an undo journal, '
            'the whole LUN gets the content that it had before the first write at that time or later, as '
            'after a power failure: run the check of the file system as well. What is overwritten goes to '
            'the journal, so that this restore can be undone by one of a later time.',
            arguments=[_UNIT,
                       Argument('point', 'text', True, 'the number or the time in "guard list": 3, '
                                                       '"2026-11-28 17:20:11", or 17:20 of today')],
            seconds=3600),
    command('guard remove', 'remove what was kept of a LUN',
            'One number, or with --all everything that was kept of the LUN, with its undo journal.',
            arguments=[_UNIT,
                       Argument('number', 'number', False, 'the number in "guard list"'),
                       Argument('all', 'flag', False, 'remove everything of this LUN')],
            seconds=60),
)
# fmt: on
