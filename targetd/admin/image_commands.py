"""The rows of the commands that work on image files: see commands. Pure. The client executes them itself
(image_files), so they need the rights to the files, and tells the server of it with the requests in REQUESTS,
which are not typed by hand.
"""

from targetd.admin.command_rows import Argument, command

_UNIT = Argument('unit', 'text', True, 'TARGET/LUN, or the first column of "show units --wide"')
_NAME = Argument('name', 'text', True, 'the name of the snapshot')

# fmt: off
TABLE = (
    command('create', 'create an image file',
            'The file is sparse; with --full all its blocks are allocated now, so that the file system '
            'cannot run out of space later. An existing file is not changed. The server need not be '
            'running.',
            arguments=[
                Argument('file', 'path', True, 'the path of the new file'),
                Argument('size', 'text', True, 'its size, such as 20G'),
                Argument('full', 'flag', False, 'allocate all blocks now'),
                Argument('dry-run', 'flag', False, 'only check')],
            local=True),
    command('snapshot', 'keep the present content of the file of a LUN',
            'The new file is beside the file of the LUN: FILE.snapshot-NAME. On a file system that can '
            'share blocks (btrfs, XFS with reflink) it is made in an instant, sessions continue, and it has '
            'every write that was completed before. Elsewhere the data is copied, holes stay holes; '
            'nothing may write meanwhile: "lun readonly" first. What initiators have in their caches is '
            'not in it.',
            arguments=[_UNIT, _NAME, Argument('dry-run', 'flag', False, 'only check')], local=True),
    command('restore', 'give the file of a LUN the content of a snapshot',
            'The LUN must be offline ("lun offline") or have no session; its present content is lost. '
            'Initiators are notified by "lun online" that the medium may have changed. The snapshot '
            'remains. An undo journal (guard) begins anew, since what it has does not lead to the content '
            'of the snapshot.',
            arguments=[_UNIT, _NAME, Argument('dry-run', 'flag', False, 'only check')], local=True),
)

REQUESTS = (
    command('image begin', 'say that the file of a LUN is about to get the content of a snapshot', '',
            arguments=[_UNIT, _NAME], seconds=60),
    command('image end', 'say that a snapshot was made or restored', '',
            arguments=[
                Argument('action', 'text', True, 'snapshot or restore'), _UNIT, _NAME,
                Argument('outcome', 'text', True, 'a sentence')],
            seconds=60),
)
# fmt: on
