"""The PROXY protocol, versions 1 and 2: the first bytes of a connection that a proxy (stunnel, haproxy)
forwards, which name the client. Pure.

      version 1    PROXY TCP4 203.0.113.7 10.0.0.1 51234 3260 CR LF
      version 2    signature (12 bytes), version and command, family, length, addresses, TLVs
"""

import ipaddress
import struct

FIRST_LINE = b'PROXY '
LONGEST_LINE = 107  # with CR LF
SIGNATURE = b'\r\n\r\n\0\r\nQUIT\n'
BINARY = struct.Struct('>12sBBH')
LOCAL, PROXY = 0x20, 0x21  # version 2 and the command
ADDRESSES = {
    0x11: struct.Struct('>4s4sHH'),
    0x21: struct.Struct('>16s16sHH'),
}  # TCP over IPv4, IPv6
#: More bytes than this are not peeked; a header with its TLVs has some hundred.
LONGEST = 4096
#: So many bytes are enough to tell a header from an iSCSI login.
SHORTEST = 6


class NotProxied(ValueError):
    """The bytes are not a valid header; the text says why."""


def is_header(data):
    """True if these first bytes of a connection begin a header of either version."""
    return data[:SHORTEST] in (FIRST_LINE, SIGNATURE[:SHORTEST])


def parse(data):
    """Returns (length of the header, (address, port) of the client), or None if more bytes are needed.
    The client is None if the proxy made the connection itself, for example to check that the port
    answers. Raises NotProxied."""
    if SIGNATURE.startswith(data[: len(SIGNATURE)]):
        return _parse_binary(data)
    if FIRST_LINE.startswith(data[: len(FIRST_LINE)]):
        return _parse_line(data)
    raise NotProxied('there is no PROXY header')


def _parse_line(data):
    end = data.find(b'\r\n', 0, LONGEST_LINE)
    if end < 0:
        if len(data) >= LONGEST_LINE:
            raise NotProxied('the PROXY line has no end within %d bytes' % LONGEST_LINE)
        return None
    words = data[:end].split(b' ')
    if words[1] == b'UNKNOWN':
        return end + 2, None
    if len(words) != 6 or words[1] not in (b'TCP4', b'TCP6'):
        raise NotProxied('the PROXY line does not have the form of version 1')
    try:
        numbers = [int(word) for word in words[4:] if word.isdigit()]
        source, target = (ipaddress.ip_address(word.decode('ascii')) for word in words[2:4])
    except ValueError:
        raise NotProxied('the PROXY line has an address that is not numeric')
    version = 4 if words[1] == b'TCP4' else 6
    if source.version != version or target.version != version:
        raise NotProxied('the PROXY line has an address of another family')
    if len(numbers) != 2 or not all(0 <= number <= 65535 for number in numbers):
        raise NotProxied('the PROXY line has a port that is out of range')
    return end + 2, (str(source), numbers[0])


def _parse_binary(data):
    if len(data) < BINARY.size:
        return None
    _, command, family, length = BINARY.unpack_from(data)
    if command not in (LOCAL, PROXY):
        raise NotProxied('the PROXY header has version and command %02Xh' % command)
    end = BINARY.size + length
    if end > LONGEST:
        raise NotProxied('the PROXY header has %d bytes' % end)
    if len(data) < end:
        return None
    if command == LOCAL:
        return end, None
    layout = ADDRESSES.get(family)
    if layout is None:
        raise NotProxied('the PROXY header has family %02Xh, which is not TCP' % family)
    if length < layout.size:
        raise NotProxied('the PROXY header is too short for its addresses')
    source, _, port, _ = layout.unpack_from(data, BINARY.size)
    return end, (str(ipaddress.ip_address(source)), port)
