"""The answers to the commands of image_commands: what the client asks the server before it touches a file.

May import base, config.kinds and admin.
"""

import glob
import os
import stat

from targetd.admin import image_files
from targetd.admin.protocol import default_socket, send_request
from targetd.config.kinds import Size
from targetd.config.words import Unusable
from targetd.errors import TargetdError

BY_ADMINISTRATOR = ' (set by the administrator)'


def answer_create(parsed):
    """The reply of `create`."""
    try:
        size = Size(1 << 20, 1 << 60, multiple=512).parse(parsed.size)
    except Unusable as e:
        raise TargetdError(str(e))
    directory = os.path.dirname(parsed.file)
    if not os.path.isdir(directory):
        raise TargetdError('there is no directory %s; create it first' % directory)
    if parsed.dry_run:
        if os.path.lexists(parsed.file):
            raise TargetdError('%s exists already; write another name' % parsed.file)
        return {'ok': True, 'message': '%s would be created with %d bytes' % (parsed.file, size)}
    image_files.create(parsed.file, size, parsed.full)
    text = '%s has %s; serve it with: targetdctl lun add TARGET %s'
    return {'ok': True, 'message': text % (parsed.file, Size().write(size), parsed.file)}


def _unit(parsed):
    """The row of `show units` of the unit, which is a file. Raises TargetdError."""
    rows = send_request(parsed.socket or default_socket(), {'command': 'show-units'})['rows']
    for row in rows:
        if parsed.unit in (row['unit'], '%s/%s' % (row['target_name'], row['lun'])):
            break
    else:
        raise TargetdError('there is no unit %s; targetdctl show units lists them' % parsed.unit)
    try:
        is_file = stat.S_ISREG(os.stat(row['path']).st_mode)
    except OSError as e:
        raise TargetdError('%s cannot be read: %s' % (row['path'], e.strerror))
    if not is_file:
        raise TargetdError(
            '%s is not a file but a disk; make snapshots of it with LVM or the storage system'
            % row['path']
        )
    return row


def _tell(parsed, name, **words):
    """Send a request of image_commands.REQUESTS. Raises TargetdError."""
    request = dict(words, command=name, unit=parsed.unit, name=parsed.name)
    send_request(parsed.socket or default_socket(), request, 60)


def _done(parsed, action, text):
    """The reply after a snapshot was made or restored, which the history is told of."""
    try:
        _tell(parsed, 'image-end', action=action, outcome=text)
    except TargetdError as e:
        return {'ok': True, 'message': text, 'messages': [str(e)]}
    return {'ok': True, 'message': text}


def _is(row, *states):
    return not row['sessions'] or row['state'].startswith(
        tuple(state + BY_ADMINISTRATOR for state in states)
    )


def answer_snapshot(parsed):
    """The reply of `snapshot`."""
    row = _unit(parsed)
    target = image_files.snapshot_path(row['path'], parsed.name)
    may_copy = ''
    if not _is(row, 'read-only', 'offline'):
        may_copy = (
            'the file system of %s cannot share blocks, so the snapshot is a copy, and nothing may write '
            'meanwhile; run "targetdctl lun readonly %s" first, and "targetdctl lun online" afterwards'
            % (row['path'], parsed.unit)
        )
    if may_copy and row.get('atomic_writes'):
        raise TargetdError(
            'an atomic write may be in progress; run "targetdctl lun readonly %s" first'
            % parsed.unit
        )
    if parsed.dry_run:
        if os.path.lexists(target):
            raise TargetdError('the snapshot %s exists already; write another name' % target)
        return {'ok': True, 'message': 'the snapshot would be %s' % target}
    is_shared = image_files.take_snapshot(row['path'], target, may_copy)
    how = 'shares the blocks of %s' if is_shared else 'is a copy of %s'
    return _done(parsed, 'snapshot', 'the snapshot %s %s' % (target, how % row['path']))


def answer_restore(parsed):
    """The reply of `restore`."""
    row = _unit(parsed)
    source = image_files.snapshot_path(row['path'], parsed.name)
    if not os.path.exists(source):
        start = row['path'] + image_files.INFIX
        known = [path[len(start) :] for path in sorted(glob.glob(glob.escape(start) + '*'))]
        raise TargetdError(
            'there is no snapshot %s of %s; there is %s'
            % (parsed.name, parsed.unit, ', '.join(known) or 'none')
        )
    if not _is(row, 'offline'):
        raise TargetdError(
            'unit %s is in use by %s session%s, which would read a mixture of old and new data; run '
            '"targetdctl lun offline %s" first'
            % (parsed.unit, row['sessions'], '' if row['sessions'] == 1 else 's', parsed.unit)
        )
    if parsed.dry_run:
        return {'ok': True, 'message': '%s would get the content of %s' % (row['path'], source)}
    begun = []

    def begin():
        _tell(parsed, 'image-begin')
        begun.append(True)

    try:
        image_files.restore(source, row['path'], begin)
    except TargetdError as e:
        if begun:
            _done(parsed, 'restore', str(e))
        raise
    reply = _done(parsed, 'restore', '%s has the content of %s' % (row['path'], source))
    reply['message'] += '; use it again with: targetdctl lun online %s' % parsed.unit
    return reply


#: Words of a command -> function of the parsed arguments that returns the reply.
ANSWERS = {'create': answer_create, 'snapshot': answer_snapshot, 'restore': answer_restore}
