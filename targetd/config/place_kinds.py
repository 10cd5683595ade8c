"""The kinds of settings that name a medium or the place of its state: see kinds."""

import re

from targetd.config.kinds import Path, nearest
from targetd.config.words import Unusable
from targetd.host import disks
from targetd.nbd import uri


class StorePath(Path):
    """A backing store: a path, serial:…, wwn:… or another selector of host.disks, the URI of an NBD export or
    the name of an image in a Ceph cluster -> str."""

    SELECTOR = re.compile('([a-z][a-z-]*):(?!//)(.*)$', re.DOTALL)
    says = (
        'a path, a selector of a disk (serial:NUMBER, wwn:0xNUMBER, by-id:NAME or model:NAME), or '
        'nbd://HOST/EXPORT, or rbd:POOL/IMAGE'
    )

    def parse(self, text):
        match = self.SELECTOR.match(super(StorePath, self).parse(text))
        if uri.is_uri(text):
            try:
                uri.parse_uri(text)
            except ValueError as e:
                what, _, remedy = str(e).partition('; ')
                raise Unusable(what, remedy)
            return text
        if match and match.group(1) not in disks.KEYS:
            near = nearest(match.group(1), disks.KEYS)
            raise Unusable(
                '%s: is not a selector of disks' % match.group(1),
                'did you mean %s:?' % near
                if near
                else 'selectors are %s' % ', '.join(key + ':' for key in disks.KEYS),
            )
        if match and not match.group(2).strip():
            raise Unusable('the value after %s: is missing' % match.group(1), 'write ' + self.says)
        return text

    def resolve(self, value, directory):
        if self.SELECTOR.match(value) or uri.is_uri(value):
            return value
        return super(StorePath, self).resolve(value, directory)


class StatePlace(Path):
    """A directory, or a pool of a Ceph cluster: rados:POOL[/NAMESPACE] -> str."""

    POOL = re.compile(r'rados:[^/:@\s]+(?:/[^/:@\s]+)?$')
    says = 'a directory, or rados:POOL[/NAMESPACE]'

    def parse(self, text):
        if text.startswith('rados:') and not self.POOL.match(text):
            raise Unusable(
                '%s does not name a pool' % text, 'write rados:POOL or rados:POOL/NAMESPACE'
            )
        return super(StatePlace, self).parse(text)

    def resolve(self, value, directory):
        if value.startswith('rados:'):
            return value
        return super(StatePlace, self).resolve(value, directory)
