"""Names of media that an NBD server serves: NBD URIs, which say where a server is and which of its exports is
meant, and the names of images in a Ceph cluster, which a server of ours serves.

nbd://HOST[:PORT]/EXPORT
nbd+unix:///EXPORT?socket=PATH
rbd:POOL[/NAMESPACE]/IMAGE[@SNAPSHOT]

The schemes with TLS (nbds, nbds+unix) and with vsock are refused.
"""

import re
from collections import namedtuple

#: Port of a server whose URI has none (IANA).
PORT = 10809

#: Bytes of an export name at most (proto.md, "Values", NBD_OPT_GO).
LONGEST_NAME = 4096

#: Bytes of the path of a Unix socket at most.
LONGEST_SOCKET_PATH = 107

#: host: name or address, '' for a Unix socket; port: number; path: of the Unix socket, '' for TCP;
#: export: the name of the export, '' for the default one.
Address = namedtuple('Address', 'host port path export')

#: An image in a Ceph cluster. namespace, snapshot: '' if there is none.
Image = namedtuple('Image', 'pool namespace image snapshot')

RBD = 'rbd:'
_SCHEME = re.compile(r'(nbds?(?:\+[a-z]+)?)://', re.IGNORECASE)
_AUTHORITY = re.compile(r'(\[[0-9A-Fa-f:.]+\]|[^\[\]:@/?#]*)(?::([0-9]+))?$')
_ESCAPE = re.compile('%([0-9A-Fa-f]{2})?')


def is_uri(text):
    """Returns True if a text begins as an NBD URI or the name of an image, also one that this module
    refuses."""
    return text.startswith(RBD) or _SCHEME.match(text) is not None


def parse_uri(text):
    """Returns the Address or Image that a URI means. Raises ValueError with a sentence that names the mistake
    and the remedy."""
    if text.startswith(RBD):
        return _image(text)
    match = _SCHEME.match(text)
    if match is None:
        raise ValueError('%s is not an NBD URI; write for example nbd://HOST/EXPORT' % text)
    scheme = match.group(1).lower()
    if scheme not in ('nbd', 'nbd+unix'):
        raise ValueError(
            '%s: targetd cannot use %s; write nbd:// or nbd+unix://, and protect the network between the '
            'two hosts (IPsec, a VLAN, a tunnel)' % (text, scheme)
        )
    rest, _, fragment = text[match.end() :].partition('#')
    rest, _, query = rest.partition('?')
    authority, _, export = rest.partition('/')
    if fragment:
        raise ValueError('%s: an NBD URI has no part after #; write %%23 for a # in a name' % text)
    export = _decoded(text, export)
    if len(export.encode('utf-8', 'surrogateescape')) > LONGEST_NAME:
        raise ValueError('the export name of %s... is too long' % text[:60])
    if scheme == 'nbd':
        return _tcp(text, authority, query, export)
    return _unix(text, authority, query, export)


def _image(text):
    place, at, snapshot = text[len(RBD) :].partition('@')
    parts = place.split('/')
    names = parts + [snapshot] if at else parts
    if not 2 <= len(parts) <= 3 or not all(names) or '@' in snapshot or '/' in snapshot:
        raise ValueError(
            '%s does not name an image; write rbd:POOL/IMAGE, rbd:POOL/NAMESPACE/IMAGE or '
            'rbd:POOL/IMAGE@SNAPSHOT' % text
        )
    return Image(parts[0], parts[1] if len(parts) == 3 else '', parts[-1], snapshot)


def _tcp(text, authority, query, export):
    match = _AUTHORITY.match(authority)
    if match is None or not match.group(1):
        raise ValueError('%s does not name a host; write nbd://HOST[:PORT]/EXPORT' % text)
    if query:
        raise ValueError('%s: nbd:// has no part after ?; remove it' % text)
    port = int(match.group(2) or PORT)
    if not 0 < port < 65536:
        raise ValueError('%s: %d is not a port; write a number from 1 to 65535' % (text, port))
    return Address(_decoded(text, match.group(1).strip('[]')), port, '', export)


def _unix(text, authority, query, export):
    key, _, path = query.partition('=')
    if authority:
        raise ValueError(
            '%s: nbd+unix has no host; write nbd+unix:///%s?socket=PATH' % (text, export)
        )
    if key != 'socket' or not path or '&' in path:
        raise ValueError('%s does not name a socket; write nbd+unix:///EXPORT?socket=PATH' % text)
    path = _decoded(text, path)
    if not path.startswith('/'):
        raise ValueError('%s: %s is not an absolute path; write the path from / on' % (text, path))
    if len(path.encode('utf-8', 'surrogateescape')) > LONGEST_SOCKET_PATH:
        raise ValueError(
            '%s: the path of a Unix socket has at most %d bytes; use a shorter one'
            % (text, LONGEST_SOCKET_PATH)
        )
    return Address('', 0, path, export)


def _decoded(text, part):
    """The text without percent-encoding. Raises ValueError."""

    def byte(match):
        if not match.group(1) or match.group(1) == '00':
            raise ValueError('%s: "%%" must be followed by two hex digits, not 00' % text)
        return bytes([int(match.group(1), 16)]).decode('latin-1')

    raw = part.encode('utf-8', 'surrogateescape').decode('latin-1')
    return _ESCAPE.sub(byte, raw).encode('latin-1').decode('utf-8', 'surrogateescape')
