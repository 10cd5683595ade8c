"""Media: bytes at offsets and OSError, nothing of SCSI. The door of the room.

The master: open_store(description, held) -> OpenedStore, which owns the descriptor and the claim on
the medium, and whose description() travels to the worker beside the descriptor;
adopted(description, key, descriptors) -> the same, of what a child has opened. The worker:
from_descriptor(description, descriptor) -> Store, which has the verbs (base.Store says what each
promises); Atomic(store, …) stands on top of it where writes can be all or nothing. The setting
`filter` is explained, and parsed, in filters.
"""

from ..errors import StoreError
from . import journal
from .atomic import Atomic
from .base import Capabilities, Store
from .opening import OpenedStore, adopted, from_descriptor, open_store

__all__ = [
    'Atomic',
    'Capabilities',
    'OpenedStore',
    'Store',
    'StoreError',
    'adopted',
    'from_descriptor',
    'journal',
    'open_store',
]
