"""What qemu-img says about a disk image, and which other files it makes the server of the image open.

     qemu-img info --output=json --> ImageInfo --> others: only below the directories that the setting names

An image can name other files, and addresses: the backing file of qcow2, its external data file, the extents
of VMDK. Whoever could write the image chooses them, so a server that opens them reads, and writes, any
file of this host. May import base and host.
"""

import json
import os
import re
import subprocess
from collections import namedtuple

from targetd.errors import StoreError

SECONDS = 10.0
LONGEST_CHAIN = 16

#: virtual_size: of the disk in the image, in bytes, or None if the image must be repaired first, which a
#: writable open does; allocated: bytes of the file; others: [Other]; is_dirty: it was not closed in order, or
#: another program has it open.
ImageInfo = namedtuple('ImageInfo', 'virtual_size allocated others is_dirty')

NOT_CLOSED = 'was not closed in order, or is open (a writable start repairs it)'

#: what: 'backing file', 'data file' or 'extent'; name: its absolute path, or an address as it is; format:
#: that of a backing file, None if the image does not say it.
Other = namedtuple('Other', 'what name format')

#: qemu-img refuses such an image unless it may write.
NEEDS_REPLAY = 'contains a log that needs to be replayed'
#: A name with a protocol: nbd://…, json:{…}, nfs:…
_PROTOCOL = re.compile('[A-Za-z][A-Za-z0-9+.-]*:')


def parse_info(text, path):
    """Returns the ImageInfo of what qemu-img printed about the image `path`. Raises ValueError."""
    try:
        document = json.loads(text)
        details = document.get('format-specific', {}).get('data', {})
        found = []
        backing = document.get('full-backing-filename') or document.get('backing-filename')
        if backing:
            kind = document.get('backing-filename-format')
            found.append(Other('backing file', _full(backing, path), kind))
        if details.get('data-file'):
            found.append(Other('data file', _full(details['data-file'], path), None))
        for extent in details.get('extents', ()):
            name = _full(extent['filename'], path)
            if name != os.path.realpath(path):
                found.append(Other('extent', name, None))
        return ImageInfo(
            int(document['virtual-size']),
            int(document.get('actual-size', 0)),
            found,
            bool(document.get('dirty-flag')),
        )
    except (KeyError, TypeError, AttributeError) as e:
        raise ValueError('qemu-img has printed something unknown: %r' % e)


def _full(name, path):
    if _PROTOCOL.match(name):
        return name
    return os.path.realpath(os.path.join(os.path.dirname(os.path.realpath(path)), name))


def inspect(path, kind, command=('qemu-img',), become=None):
    """Returns the ImageInfo of an image. kind: its format in the names of QEMU; become(): called in the
    child process before it executes the program. Blocks for SECONDS at most. Raises StoreError."""
    words = list(command) + ['info', '-U', '-f', kind, '--output=json', path]
    returncode, out, message = _run(words, path, become)
    if returncode and NEEDS_REPLAY in message:
        return ImageInfo(None, os.stat(path).st_blocks * 512, [], True)
    if returncode:
        raise StoreError(
            '%s cannot be used as an image in the format %s: %s; correct type, or restore the file'
            % (path, kind, message.splitlines()[-1] if message else 'qemu-img says nothing')
        )
    try:
        return parse_info(out, path)
    except ValueError as e:
        raise StoreError('%s: %s' % (path, e))


def resize(path, kind, size, may_shrink=False, become=None, command=('qemu-img',)):
    """Give the disk in an image that no program has open this size (bytes). kind, become: as for inspect();
    may_shrink: also a smaller one. Blocks for SECONDS at most. Raises StoreError."""
    words = list(command) + ['resize', '-q', '-f', kind] + (['--shrink'] if may_shrink else [])
    returncode, _, message = _run(words + [path, str(size)], path, become)
    if returncode:
        why = message.splitlines()[-1] if message else 'qemu-img says nothing'
        raise StoreError('%s cannot be resized to %d bytes: %s' % (path, size, why))


def become_owner(path):
    """Become the owner of this file, if this process is root's. Raises OSError."""
    status = os.stat(path)
    if os.geteuid() == 0 and status.st_uid:
        os.setgroups([])
        os.setgid(status.st_gid)
        os.setuid(status.st_uid)


def _run(words, path, become):
    """Returns (exit status, standard output, standard error) of qemu-img on the image `path`. Raises
    StoreError."""
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(os.environ, LC_ALL='C'),
            preexec_fn=become,
        )
    except (OSError, subprocess.SubprocessError) as e:
        raise StoreError(
            '%s: qemu-img cannot be executed (%s); install it (Debian: qemu-utils)' % (path, e)
        )
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()  # SIGTERM is not obeyed while an image is being opened
        process.communicate()
        raise StoreError('%s: qemu-img does not answer; see dmesg' % path)
    return (
        process.returncode,
        out.decode('utf-8', 'replace'),
        err.decode('utf-8', 'replace').strip(),
    )


def require_allowed(path, info, directories, look):
    """Raises StoreError if the image, or a backing file of it, names a file outside these directories,
    which have no symbolic links, or an address. look(path, format): inspect() of a backing file."""
    left = [(path, other) for other in info.others]
    count = 0
    while left:
        image, other = left.pop()
        count += 1
        if count > LONGEST_CHAIN:
            raise StoreError('%s names more than %d other files' % (path, LONGEST_CHAIN))
        _require_allowed(image, other, directories)
        if other.what == 'backing file' and other.format != 'raw':
            left += [(other.name, each) for each in look(other.name, other.format).others]


def _require_allowed(image, other, directories):
    is_address = not other.name.startswith('/')
    if is_address:
        raise StoreError(
            '%s names the address %s as its %s, which is never opened; convert the image with "qemu-img '
            'convert" into one that stands alone' % (image, other.name, other.what)
        )
    if not any(other.name.startswith(directory.rstrip('/') + '/') for directory in directories):
        raise StoreError(
            '%s names %s as its %s, and would have it opened; if that is intended, write allow-backing-file '
            '= %s' % (image, other.name, other.what, os.path.dirname(other.name))
        )
    if other.what == 'backing file' and not other.format:
        raise StoreError(
            '%s does not say which format its backing file %s has; write it into the image: qemu-img rebase '
            '-u -b %s -F FORMAT %s' % (image, other.name, other.name, image)
        )
