"""Media: bytes at offsets and OSError, without SCSI. This is the public interface of the package.

In the master, open_store(description, held) returns an OpenedStore, which owns the descriptor and
the claim on the medium; its description() is sent to the worker with the descriptor.
adopt_store(description, key, descriptors) returns the OpenedStore for a medium that a child process
has opened. In a worker, from_descriptor(description, descriptor) returns a Store, which has the
verbs (base.Store documents each). Atomic(store, …) on top of it supports all-or-nothing writes.
why_not_a_tape(read, size) looks at a file that is to be a tape. filter_settings describes and parses
the setting `filter`.
"""

from ..errors import StoreError
from . import journal, zeroes
from .atomic import Atomic
from .base import Capabilities, Store
from .opened_store import OpenedStore, adopt_store, from_descriptor
from .opening import open_store
from .tape import why_not_a_tape

__all__ = [
    'Atomic',
    'Capabilities',
    'OpenedStore',
    'Store',
    'StoreError',
    'adopt_store',
    'from_descriptor',
    'journal',
    'open_store',
    'zeroes',
    'why_not_a_tape',
]
