"""Removes secrets from the memory that a process has inherited.

A worker is forked from the master, and with it every copy that the master has of an encryption key,
in use or freed. forget() overwrites all of them in this process, before it receives any data. It
searches the memory itself, so no copy has to be known.
"""

import ctypes

from targetd import log

_libc = ctypes.CDLL(None, use_errno=True)
_libc.memmem.restype = ctypes.c_void_p
_libc.memmem.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t]


def forget(secrets):
    """Overwrite every copy of these texts, and of the bytes whose hex digits they are, in the private
    memory of this process. The texts themselves are overwritten too. Call it in a process with one
    thread."""
    needles = [ctypes.create_string_buffer(text.encode('ascii')) for text in secrets]
    keys = [bytes.fromhex(text) for text in secrets]
    needles += [ctypes.create_string_buffer(key) for key in keys if any(key)]
    own = [(ctypes.addressof(needle), len(needle) - 1) for needle in needles]
    if own:
        for start, end in _writable_regions():
            for address, length in own:
                _overwrite(start, end, address, length, own)
        for address, length in own:
            ctypes.memset(address, 0, length)


def _overwrite(start, end, needle, length, own):
    """Overwrite each copy of the needle, except in the needles themselves."""
    while start < end:
        found = _libc.memmem(start, end - start, needle, length)
        if found is None:
            return
        if not any(address <= found < address + size for address, size in own):
            ctypes.memset(found, 0, length)
        start = found + 1


def _writable_regions():
    """[(start, end) …] of the private memory that this process can write."""
    try:
        with open('/proc/self/maps') as file:
            lines = file.read().splitlines()
    except OSError as e:
        log.error('encryption keys cannot be removed from the memory of a worker: %s', e.strerror)
        return []
    regions = []
    for line in lines:
        bounds, mode = line.split()[:2]
        if mode.startswith('rw') and mode.endswith('p'):
            start, end = bounds.split('-')
            regions.append((int(start, 16), int(end, 16)))
    return regions
