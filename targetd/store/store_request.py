"""What the caller of open_store() asks for, checked as far as possible without the medium.

Imports filter_settings, null.
"""

import os
from typing import Any, Dict

from ..errors import StoreError
from .base import Capabilities
from .filter_settings import parse_filters, stack_filters
from .null import NullStore

KINDS = ('block', 'file', 'nbd', 'null', 'ram')

_PROPERTIES = (
    'kind',
    'path',
    'size',
    'read_only',
    'direct',
    'thin',
    'block_size',
    'filters',
    'cipher_key',
    'tape',
)


#: Properties that are not properties of the store.
_OF_THE_REQUEST = ('capabilities', 'allow_in_use', 'plan_only', 'is_served', 'grows_to')


class StoreRequest(object):
    """A description of a store, checked as far as possible without the medium. Raises StoreError."""

    def __init__(self, description: Dict[str, Any]) -> None:
        for word in description:
            if word not in _PROPERTIES + _OF_THE_REQUEST:
                raise StoreError('a store has no property "%s"' % word)
        self.kind = description.get('kind')
        self.path = description.get('path')
        self.size = description.get('size')
        self.read_only = bool(description.get('read_only'))
        self.direct = bool(description.get('direct'))
        self.thin = bool(description.get('thin'))
        self.block_size = description.get('block_size')
        self.allow_in_use = bool(description.get('allow_in_use'))
        self.plan_only = bool(description.get('plan_only'))
        self.grows_to = description.get('grows_to') or 0
        self.is_served = bool(description.get('is_served'))
        self.cipher_key = description.get('cipher_key') or ''
        self.tape = bool(description.get('tape'))
        self.name = self.path or self.kind
        if self.kind not in KINDS and self.kind is not None:
            raise StoreError(
                '%s: "%s" is not a type of store; the types are: %s'
                % (self.name, self.kind, ' '.join(sorted(KINDS)))
            )
        if self.kind in (None, 'file', 'block') and not self.path:
            raise StoreError(
                'the path of the store is missing; name a file or a block device, or write type = ram or '
                'type = null'
            )
        self._check_numbers()
        self.filters = self._filters(description.get('filters') or [])

    def _check_numbers(self):
        size, block_size = self.size, self.block_size
        if block_size is not None and (
            block_size < 512 or block_size > 65536 or block_size & (block_size - 1)
        ):
            raise StoreError(
                '%s: %s is not a valid block size; 512 and 4096 are usual' % (self.name, block_size)
            )
        if size is not None and (size <= 0 or size % (block_size or 512)):
            raise StoreError(
                '%s: size = %s is not valid; it must be a multiple of the block size, %d'
                % (self.name, size, block_size or 512)
            )

    def _filters(self, value):
        try:
            parsed = (
                parse_filters(value)
                if isinstance(value, str) or any(isinstance(f, str) for f in value)
                else value
            )
            stack_filters(NullStore({'kind': 'null', 'size': 0}, None), parsed)
        except (ValueError, TypeError) as e:
            raise StoreError('%s: %s' % (self.name, e))
        return [list(f) for f in parsed]

    def facts(
        self, kind: str, size: int, block_size: int, capabilities: Capabilities, **more: Any
    ) -> Dict[str, Any]:
        """Returns the facts of an OpenedStore. `more`: attributes of one kind. Raises StoreError if
        `size` is not a positive multiple of `block_size`."""
        if size >= self.grows_to:
            self._check_size(kind, size, block_size)
        return dict(
            more,
            kind=kind,
            path=self.path,
            size=size,
            read_only=self.read_only,
            direct=self.direct,
            thin=self.thin,
            block_size=block_size,
            filters=self.filters,
            cipher_key=self.cipher_key,
            tape=self.tape,
            capabilities=capabilities,
        )

    def _check_size(self, kind, size, block_size):
        if not size:
            raise StoreError(
                '%s is empty; %s'
                % (
                    self.name,
                    'insert a medium, or name another disk'
                    if kind == 'block'
                    else 'write a size, for example size = 10G, to extend it',
                )
            )
        if size % block_size:
            raise StoreError(
                '%s has %d bytes, which is not a multiple of the block size %d; %s'
                % (
                    self.name,
                    size,
                    block_size,
                    'write another block-size'
                    if kind == 'block'
                    else 'make it larger with "truncate -s %%%d %s"' % (block_size, self.name),
                )
            )

    def flags(self) -> int:
        """Returns the flags for open(2)."""
        return (
            (os.O_RDONLY if self.read_only else os.O_RDWR)
            | os.O_CLOEXEC
            | (os.O_DIRECT if self.direct else 0)
        )
