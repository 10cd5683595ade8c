"""An open medium in the process that claimed it, and how a worker process makes a Store from its
description and descriptor.

Imports base, failure_flags, linux, nbd_line, fenced, filters, filter_settings, encrypting, guarding, tape,
undoing and the classes of stores.
"""

import os
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Set, Tuple

from . import failure_flags, filters, linux, nbd_line
from .base import Capabilities, Store
from .block import BlockStore
from .encrypting import Encrypting
from .fenced import Fenced
from .file import FileStore
from .filter_settings import stack_filters
from .guarding import Guarded
from .nbd_store import NbdStore
from .null import NullStore
from .ram import RamStore
from .sg_device import SgDevice
from .sleeping import Sleep, Sleeping
from .tape import Tape
from .undoing import Journal, Undoable

STORE_CLASSES: Dict[str, Callable[..., Store]] = {
    'file': FileStore,
    'block': BlockStore,
    'ram': RamStore,
    'null': NullStore,
    'nbd': NbdStore,
    'passthrough': SgDevice,
}


#: The encryption keys that this process has had, and '': a worker must not inherit them.
KEYS: Set[str] = set()


class OpenedStore(object):
    """A medium that this process has opened and claimed.

    descriptor: int, or None (kind null); of kind nbd it is the control socket of the keeper, and a
    store has a line to the keeper in place of it. Attributes from the description: kind, path, size,
    block_size, read_only, direct, thin, capabilities (Capabilities), filters (from parse_filters),
    cipher_key: hex digits, '' if the medium is not encrypted; it is passed to the worker in the
    description and appears in no other text. key: equal for two stores on the same medium. claims:
    additional descriptors that hold the claim; spares: open file descriptions that no process uses
    yet; is_reopening: more of them are being opened; tape: its Store is a Tape.
    """

    def __init__(
        self,
        facts: Dict[str, Any],
        descriptor: Optional[int],
        key: Tuple[Any, ...],
        claims: Iterable[int] = (),
    ) -> None:
        self._facts = facts
        KEYS.add(facts.get('cipher_key') or '')
        self.descriptor = descriptor
        self.key = key
        self.claims = list(claims)
        self.spares: List[int] = []
        self.is_reopening = False
        self.flag = failure_flags.NO_FLAG

    def __getattr__(self, name: str) -> Any:
        if name.startswith('_') or name not in self._facts:
            raise AttributeError(name)
        return self._facts[name]

    @property
    def fence(self) -> str:
        """The key (hex digits) with which this server has reserved the disk; '' if it has not."""
        return str(self._facts.get('fence') or '')

    @property
    def fenced_by(self) -> str:
        """What keeps another server from writing to the medium, in words; '' if nothing does."""
        if self.fence:
            return 'the reservation of its disk (key 0x%s)' % self.fence
        return 'the Ceph cluster' if self._facts.get('ceph') else ''

    def set_fence(self, key: str) -> None:
        """The disk is reserved with this key (hex digits)."""
        self._facts['fence'] = key

    @property
    def physical_block_size(self) -> int:
        return self.capabilities.physical_block_size

    def description(self) -> Dict[str, Any]:
        """Returns the JSON-able dict that from_descriptor() needs in the worker, together with the
        descriptor."""
        return dict(self._facts, capabilities=dict(self.capabilities._asdict()), flag=self.flag)

    def store(self) -> Store:
        """Returns a Store in this process, on a duplicate of the descriptor. Raises OSError."""
        if self.kind == 'nbd':
            descriptor: Optional[int] = nbd_line.open_line(self.descriptor or -1, self.flag)
            return from_descriptor(self.description(), descriptor, os.dup(self.claims[0]))
        descriptor = None if self.descriptor is None else os.dup(self.descriptor)
        return from_descriptor(self.description(), descriptor)

    def resize_check(self) -> int:
        """Returns the current size of the medium in bytes. Raises OSError."""
        if self._facts.get('ceph') and self.claims:  # its server notes the size
            return nbd_line.noted_size(self.claims[0]) or self.size
        if self.descriptor is None or self.kind in ('nbd', 'passthrough'):
            return self.size
        if self.kind == 'block':
            return linux.device_size(self.descriptor)
        return os.fstat(self.descriptor).st_size

    def flush(self) -> None:
        """Make durable all data that any process wrote to the medium, through any descriptor.
        Raises OSError."""
        if self.descriptor is not None and self.kind in ('file', 'block') and not self.read_only:
            failure_flags.sync(self.descriptor, self.flag, False)

    def renew_flag(self, flag: int, spares: Iterable[int] = ()) -> None:
        """Use this failure flag in later descriptions, and these spare descriptions. The earlier ones
        are closed, because the kernel would report an error to them that was reported before."""
        self.flag = flag
        spares, self.spares = self.spares, list(spares)
        for descriptor in spares:
            os.close(descriptor)

    @property
    def claim(self) -> Optional[int]:
        """A descriptor that holds the claim, or None."""
        return self.claims[0] if self.claims else self.descriptor

    def set_cipher_key(self, cipher_key: str) -> None:
        """Use this key (hex digits, '' for no encryption) in later descriptions and stores."""
        self._facts['cipher_key'] = cipher_key
        KEYS.add(cipher_key)

    def set_size(self, size: int) -> None:
        """Use this size (bytes) in later descriptions."""
        self._facts['size'] = size
        if self._facts.get('offered'):
            self._facts['offered'] = [size] + list(self._facts['offered'][1:])

    def descriptors(self) -> List[int]:
        """Returns every descriptor that this object owns: the medium's, those that hold the claim,
        and spare ones."""
        own = [] if self.descriptor is None else [self.descriptor]
        return own + self.claims + self.spares

    def close(self) -> None:
        """Close all descriptors. The claim ends when the workers have closed theirs too. Closing
        twice is harmless."""
        owned, self.claims, self.spares, self.descriptor = self.descriptors(), [], [], None
        for descriptor in owned:
            os.close(descriptor)

    def __enter__(self) -> 'OpenedStore':
        return self

    def __exit__(self, *failure):
        self.close()

    def __repr__(self):
        return '<OpenedStore %s %s %d bytes>' % (self.kind, self.path, self.size)


def from_descriptor(
    description: Dict[str, Any],
    descriptor: Optional[int],
    claim: Optional[int] = None,
    keep: Optional[Callable[[str], Any]] = None,
    sleep: Optional[Sleep] = None,
    journal: Optional[Journal] = None,
) -> Store:
    """Returns the Store, with its filters, for a description and a descriptor. Takes ownership of
    the descriptor and of the one that keeps the medium claimed, also when it raises. keep: as for
    guarding.Guarded, or None if nothing is kept before a write; sleep: None if the disk never sleeps;
    journal: of undoing.Undoable, or None.

    Opens no path. Raises KeyError or ValueError for a description that does not come from
    OpenedStore.description().
    """
    store: Optional[Store] = None
    try:
        store = STORE_CLASSES[description['kind']](description, descriptor)
        store.claim = claim
        if description['kind'] == 'passthrough':  # it has no blocks that the others could act on
            return store
        if description.get('fence'):
            store = Fenced(store)
        if sleep is not None:
            store = Sleeping(store, sleep)
        if journal is not None:
            store = Undoable(store, journal)
        if keep is not None:
            store = Guarded(store, keep)
        if description.get('cipher_key'):
            store = Encrypting(store, bytes.fromhex(description['cipher_key']))
        if store.read_only:
            store = filters.ReadOnly(store)
        store = stack_filters(store, description.get('filters') or ())
        return Tape(store) if description.get('tape') else store
    except Exception:
        if store is not None:
            store.close()
            raise
        for owned in (descriptor, claim):
            if owned is not None:
                os.close(owned)
        raise


def adopt_store(
    description: Dict[str, Any], key: Iterable[Any], descriptors: Sequence[int], spares: int = 0
) -> OpenedStore:
    """Returns the OpenedStore for a medium that another process has opened. description, key: from
    that process; descriptors: the medium's (none for kind null), then those that hold the claim, and
    `spares` spare ones."""
    facts = dict(description, capabilities=Capabilities(**description['capabilities']))
    del facts['flag']  # it belongs to the process that had opened the medium
    own = descriptors[0] if descriptors and description['kind'] != 'null' else None
    claims_end = len(descriptors) - spares
    opened = OpenedStore(facts, own, tuple(key), descriptors[1:claims_end])
    opened.spares = list(descriptors[claims_end:])
    return opened
