"""Directories whose entries survive a power failure. Base: any module may import it."""

import os


def sync_directory(path: str) -> None:
    """Makes the creations, renames and removals in this directory durable. Raises OSError."""
    descriptor = os.open(path or '.', os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: str, mode: int) -> None:
    """Creates a directory and its parents, durably; does nothing if it exists. Raises OSError."""
    if os.path.isdir(path or '.'):
        return
    parent = os.path.dirname(path.rstrip('/'))
    make_directory(parent, mode)
    try:
        os.mkdir(path, mode)
    except FileExistsError:  # another process has created it
        pass
    sync_directory(parent)
