"""The kinds of value that name hosts and initiators: portals, redirections, networks, name patterns;
and what is set for the connections of a portal.

May import config.kinds, config.words and the pure iscsi.names.
"""

import ipaddress
import re

from targetd.config.kinds import Choice, Kind, Listed
from targetd.config.words import Unusable
from targetd.iscsi import names

ALL = 'ALL'  # the word that admits every address or name
ISCSI_PORT = 3260
SCOPE = '%'  # separates an IPv6 address from its scope: fe80::1%eth0
DNS, MAC = 'dns:', 'mac:'  # begin the rules of Origin that need a look at this host or at DNS
#: A host name without its last dot (RFC 1123 2.1).
HOST_NAME = re.compile(r'(?=.{1,253}$)(?!-)[A-Za-z0-9-]{1,63}(?:\.(?!-)[A-Za-z0-9-]{1,63})*$')


def parsed_address(address):
    """The ipaddress object of a peer's address, without scope; an IPv4-mapped IPv6 address becomes
    an IPv4 address.

    Raises ValueError if the text is not an address.
    """
    parsed = ipaddress.ip_address(address.partition(SCOPE)[0])
    return getattr(parsed, 'ipv4_mapped', None) or parsed


def network_has(network, address):
    """True if the network contains this address of a peer."""
    try:
        peer = parsed_address(address)
    except ValueError:
        return False
    network = ipaddress.ip_network(network)
    return network.version == peer.version and peer in network


class Portal(Kind):
    """A numeric address and a port -> (address, port).

    port: the default port; of_others: True for an address of another host, which cannot be a
    wildcard.
    """

    def __init__(self, port=ISCSI_PORT, of_others=False):
        self.port, self.of_others = port, of_others
        self.says = 'an address and a port, like 10.0.0.1:%d, [2001:db8::1]:%d' % (port, port)
        if not of_others:
            self.says += ', 0.0.0.0 or [::] for every address of this host'

    def parse(self, text):
        address, number = self.split_port(text)
        plain, _, scope = address.partition(SCOPE)
        try:
            parsed = ipaddress.ip_address(plain)
        except ValueError:
            raise Unusable(
                '%r is not a valid address' % text,
                'write %s (numeric, not a host name)' % self.says,
            )
        if self.of_others and parsed.is_unspecified:
            raise Unusable('%s is not an address of another host' % parsed, 'write ' + self.says)
        return str(parsed) + (SCOPE + scope if scope else ''), number

    def split_port(self, text):
        """(address or host name, port) of a text; the default port if it contains none."""
        match = re.match(r'\[([^\]]*)\](?::([0-9]+))?$', text) or re.match(
            r'([^:\[\]]+)(?::([0-9]+))?$', text
        )
        if not match and text.count(':') > 1 and '[' not in text:
            raise Unusable(
                '%r does not separate the address from the port' % text,
                'write an IPv6 address in brackets, like [::1]:%d' % self.port,
            )
        address, port = match.groups() if match else (text, None)
        number = int(port) if port else self.port
        if not 1 <= number <= 65535:
            raise Unusable('port %s is out of range' % port, 'write a port from 1 to 65535')
        return address, number

    def write(self, value):
        return ('[%s]:%d' if ':' in value[0] else '%s:%d') % tuple(value)


class Advertised(Kind):
    """The portal that discovery reports, or the word none -> (address, port) or 'none'."""

    NONE = 'none'
    PORTAL = Portal(of_others=True)
    says = 'an address and a port, like 203.0.113.7:3260, or none'

    def parse(self, text):
        if text.lower() == self.NONE:
            return self.NONE
        address, _ = self.PORTAL.split_port(text)
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise Unusable(
                '%r is not a numeric address' % address,
                'write %s; a host name would be looked up by each initiator' % self.says,
            )
        return self.PORTAL.parse(text)

    def write(self, value):
        return value if value == self.NONE else self.PORTAL.write(value)


class Interface(Kind):
    """The name of a network interface, or an empty value for any -> str."""

    says = 'the name of a network interface, like eth0 or wg0'
    LONGEST = 15

    def parse(self, text):
        if len(text.encode('utf-8', 'replace')) > self.LONGEST or re.search(r'[\s/:]', text):
            raise Unusable(
                '%r cannot be the name of a network interface' % text,
                'write %s ("ip link" shows them)' % self.says,
            )
        return text


class CongestionControl(Kind):
    """The name of a TCP congestion control, or an empty value for that of the host -> str."""

    says = 'the name of a TCP congestion control, like cubic or bbr'

    def parse(self, text):
        if not re.match(r'[a-z0-9_-]{0,15}$', text):
            raise Unusable(
                '%r cannot be the name of a TCP congestion control' % text,
                'write %s ("sysctl net.ipv4.tcp_available_congestion_control" shows them)'
                % self.says,
            )
        return text


class Dscp(Kind):
    """A differentiated services code point by number or name (RFC 2474, 2597, 3246, 8622) -> int."""

    NAMES = {'EF': 46, 'LE': 1}
    NAMES.update(('CS%d' % n, 8 * n) for n in range(8))
    NAMES.update(
        ('AF%d%d' % (n, drop), 8 * n + 2 * drop) for n in range(1, 5) for drop in (1, 2, 3)
    )
    says = 'a number from 0 to 63, or CS0 to CS7, AF11 to AF43, EF or LE'

    def parse(self, text):
        if text.upper() in self.NAMES:
            return self.NAMES[text.upper()]
        if not re.match('[0-9]{1,2}$', text) or int(text) > 63:
            raise Unusable(
                '%r is not a differentiated services code point' % text, 'write ' + self.says
            )
        return int(text)


class Redirection(Kind):
    """The word temporary or permanent, and an address or host name -> (permanent: bool, address,
    port)."""

    says = (
        'temporary or permanent, and an address and port like 10.0.0.2:3260 or storage2.example.com'
    )
    WORDS = Choice('temporary', 'permanent')
    PORTAL = Portal(of_others=True)

    def read(self, items):
        if len(items) > 1:
            raise Unusable(
                'there is a portal group tag or a second address after a comma',
                'write one address without a tag: a redirect has none (RFC 7143 13.8)',
            )
        if len(items[0]) != 2:
            raise Unusable(
                'two words are expected, but there are %d' % len(items[0]), 'write ' + self.says
            )
        word = self.WORDS.parse(items[0][0])
        host, port = self.PORTAL.split_port(items[0][1])
        if not HOST_NAME.match(host) or re.match(r'[0-9.]+$', host) or items[0][1].startswith('['):
            host, port = self.PORTAL.parse(items[0][1])
        return word == 'permanent', host.lower(), port

    def show(self, value):
        permanent, host, port = value
        return '%s %s' % (
            'permanent' if permanent else 'temporary',
            self.PORTAL.write((host, port)),
        )


class Network(Kind):
    """An address, a network, or ALL -> the canonical text of the network, or 'ALL'."""

    says = 'an address like 10.0.5.7, a network like 10.0.5.0/24 or 2001:db8::/64, or ALL'

    def parse(self, text):
        if text.upper() == ALL:
            return ALL
        try:
            return self.write(ipaddress.ip_network(text))
        except ValueError:
            pass
        try:
            net = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise Unusable('%r is neither an address nor a network' % text, 'write ' + self.says)
        raise Unusable(
            '%s has host bits set after its prefix' % text,
            'write %s for the network or %s for the single address' % (net, text.split('/')[0]),
        )

    def write(self, value):
        if value == ALL:
            return ALL
        value = ipaddress.ip_network(value)
        return str(value.network_address) if value.prefixlen == value.max_prefixlen else str(value)


class Origin(Network):
    """What an initiator's address is compared with: as Network, or a host name or a MAC address -> the
    canonical text: that of Network, 'dns:name' in lower case, or 'mac:00:11:22:aa:bb:cc'."""

    says = (
        'an address like 10.0.5.7, a network like 10.0.5.0/24 or 2001:db8::/64, dns:HOST-NAME, '
        'mac:ADDRESS, or ALL'
    )
    ETHERNET = re.compile('(?:[0-9a-f]{2}[:-]){5}[0-9a-f]{2}$')

    def parse(self, text):
        folded = text.lower()
        if folded.startswith(DNS):
            return DNS + self._host_name(folded[len(DNS) :])
        if folded.startswith(MAC):
            return MAC + self._mac(folded[len(MAC) :])
        try:
            return super(Origin, self).parse(text)
        except Unusable as e:
            if self.ETHERNET.match(folded):
                raise Unusable('%r is a MAC address' % text, 'write mac:%s' % text)
            if '.' in text and HOST_NAME.match(text) and re.search('[a-z]', folded.split('.')[-1]):
                raise Unusable('%r is a host name' % text, 'write dns:%s' % text)
            raise Unusable(e.text, e.remedy)

    def _host_name(self, name):
        plain = name[:-1] if name.endswith('.') else name
        if not HOST_NAME.match(plain) or re.match('[0-9.]+$', plain):
            raise Unusable(
                '%r is not a host name' % name,
                'write dns: and a name like host1.example.com, an international one in its ASCII form '
                '(xn--…); an address has no dns: before it',
            )
        return name

    def _mac(self, address):
        if not self.ETHERNET.match(address):
            raise Unusable(
                '%r is not a MAC address' % address,
                'write mac: and six bytes in hexadecimal, like mac:00:11:22:aa:bb:cc',
            )
        if int(address[:2], 16) & 1:
            raise Unusable(
                '%s is a multicast address, which no host has' % address,
                'write the address of the network card, which "ip link" shows on the initiator',
            )
        return address.replace('-', ':')

    def write(self, value):
        if isinstance(value, str) and value.startswith((DNS, MAC)):
            return value
        return super(Origin, self).write(value)


class ProxyNetwork(Network):
    """An address or network of proxies, which are trusted to name their clients -> as Network."""

    says = 'an address like 127.0.0.1 or a network like 10.0.5.0/24'

    def parse(self, text):
        value = super(ProxyNetwork, self).parse(text)
        if value == ALL or ipaddress.ip_network(value).prefixlen == 0:
            raise Unusable(
                '%s would let everyone claim any address' % text, 'write the address of each proxy'
            )
        return value


class NamePattern(Kind):
    """A pattern of iSCSI names with the wildcards * and ?, or ALL -> the case-folded pattern, or
    'ALL'."""

    says = 'an iSCSI name, in which * matches any characters and ? matches one, or ALL'

    def parse(self, text):
        if text.upper() == ALL:
            return ALL
        folded = names.fold(text)
        literal = re.split('[*?]', folded)[0]
        if literal == folded:
            flaw = names.name_error(folded, lenient=True)
        elif not any(kind.startswith(literal[:4]) for kind in ('iqn.', 'eui.', 'naa.')):
            flaw = 'it does not begin with iqn., eui. or naa.'
        else:
            flaw = (
                None
                if folded.isprintable() and ' ' not in folded
                else 'it contains a blank or an unprintable character'
            )
        if flaw:
            raise Unusable('%r is not an iSCSI name: %s' % (text, flaw), 'write ' + self.says)
        return folded


class AccountNames(Listed):
    """Accounts and the initiators that may use them -> tuple of (user, name pattern)."""

    def __init__(self):
        super(AccountNames, self).__init__(NamePattern())
        self.says = (
            'the name of an account and %s; separate several by commas, or repeat the setting'
            % NamePattern.says
        )

    def item(self, words):
        if len(words) != 2:
            # no word is shown: it may be a secret that belongs to incominguser
            raise Unusable(
                'two words are expected, but there are %d' % len(words),
                'write the name of an account and an iSCSI name, without the secret',
            )
        return words[0], self.kind.parse(words[1])

    def written(self, item):
        return list(item)
