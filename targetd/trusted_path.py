"""Files whose path no other user can redirect. Base: any module may import it.

A symbolic link is followed only in a directory that no other user can write, however the path leads
there. Each component is opened relative to the one before, so that nothing changes between the check
and the use.
"""

import errno
import os
import stat

MAXIMUM_LINKS = 40
_COMPONENT = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def others_can_write(status: os.stat_result) -> bool:
    """True if users other than root and this one can write the file or directory."""
    return bool(status.st_mode & 0o022) or status.st_uid not in (0, os.geteuid())


def open_trusted(path: str, flags: int, mode: int = 0o600) -> int:
    """Opens a file and returns its descriptor. Raises OSError, with ELOOP for a symbolic link that
    another user may have put there."""
    directory, name = _walk(path)
    try:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=directory)
    finally:
        os.close(directory)


def open_trusted_directory(path: str) -> int:
    """Opens the directory, for its entries (`dir_fd`) and for fsync. Raises OSError as open_trusted()
    does."""
    return open_trusted(path or '.', os.O_RDONLY | os.O_DIRECTORY)


def _walk(path):
    """(descriptor of the directory, name) of the file that the path leads to; it may not exist, and is
    not a symbolic link."""
    directory = os.open('/', _COMPONENT)
    try:
        parts = os.path.abspath(path).strip('/').split('/')[::-1]
        links = 0
        while True:
            name = parts.pop() or '.'
            target = _link_target(name, directory)
            if target is not None:
                links += 1
                if links > MAXIMUM_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                parts += [part for part in target.split('/') if part][::-1]
                if target.startswith('/'):
                    directory = _step('/', directory)
                if not parts:
                    parts = ['.']
            elif parts:
                directory = _step(name, directory)
            else:
                return directory, name
    except BaseException:
        os.close(directory)
        raise


def _step(name, directory):
    deeper = os.open(name, _COMPONENT, dir_fd=directory)
    os.close(directory)
    return deeper


def _link_target(name, directory):
    """The text of the symbolic link; None if the file is not one or does not exist."""
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISLNK(status.st_mode):
        return None
    if others_can_write(os.stat(directory)):
        raise OSError(
            errno.ELOOP, 'it is a symbolic link in a directory that other users can write', name
        )
    return os.readlink(name, dir_fd=directory)


__all__ = ('open_trusted', 'open_trusted_directory', 'others_can_write')
