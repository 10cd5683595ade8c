"""CHAP (RFC 1994, RFC 7143 12.1.3 and 9.2.1): challenges, responses and their encodings. Pure;
imports const.

Invariants: secrets are compared in constant time; a challenge of ours that comes back is refused
(reflection), and so is a proof of ours with the secret that the initiator has just used; an unknown
name and a wrong secret give the same error.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections import OrderedDict

from targetd.iscsi import const

MAXIMUM_CHALLENGE = 1024  # bytes, RFC 7143 12.1.3
CHALLENGE_BYTES = 32  # of ours; Windows takes up to 1024
DEFAULT_ALGORITHMS = (const.CHAP_SHA3_256, const.CHAP_SHA256, const.CHAP_SHA1, const.CHAP_MD5)

HASHES = OrderedDict(
    (
        (const.CHAP_MD5, 'md5'),
        (const.CHAP_SHA1, 'sha1'),
        (const.CHAP_SHA256, 'sha256'),
        (const.CHAP_SHA3_256, 'sha3_256'),
    )
)

#: Algorithm numbers by what people call them.
ALGORITHM_NUMBERS = {
    'MD5': const.CHAP_MD5,
    'SHA1': const.CHAP_SHA1,
    'SHA-1': const.CHAP_SHA1,
    'SHA-256': const.CHAP_SHA256,
    'SHA256': const.CHAP_SHA256,
    'SHA3-256': const.CHAP_SHA3_256,
}

_HEX = re.compile(r'0[xX][0-9a-fA-F]+\Z')
_BASE64 = re.compile(r'0[bB][A-Za-z0-9+/]+={0,2}\Z')
_DECIMAL = re.compile(r'[0-9]{1,20}\Z')


class ChapError(Exception):
    """What the initiator sent is malformed. The message is one plain sentence."""


class AuthenticationFailed(ChapError):
    """The initiator could not prove who it is, or may not be given the proof that it asks for."""


def new_hash(algorithm, data):
    """The hash object of a CHAP algorithm number. Raises ValueError where the host does not have
    it.

    MD5 and SHA-1 are asked for as 'not used for security' (Python 3.9) where a FIPS host would
    refuse them otherwise.
    """
    name = HASHES[algorithm]
    try:
        return hashlib.new(name, data)
    except ValueError:
        try:
            return hashlib.new(name, data, usedforsecurity=False)
        except TypeError:
            raise ValueError('this host does not have %s' % name)


def chap_response(algorithm, identifier, secret, challenge):
    """The response of RFC 1994 4.1 to a challenge. identifier: 0..255; secret, challenge: bytes."""
    return new_hash(algorithm, bytes((identifier,)) + secret + challenge).digest()


def available_algorithms(algorithms):
    """Those of the algorithm numbers that this host can compute, in the same order."""
    usable = []
    for algorithm in algorithms:
        try:
            new_hash(algorithm, b'')
        except ValueError:
            continue
        usable.append(algorithm)
    return tuple(usable)


# -- encodings, RFC 7143 6.1 -------------------------------------------------------------------------------------------


def encode_binary(data, as_base64=False):
    """A binary value as text: 0x…, or 0b… if wished. data: one byte at least."""
    if as_base64:
        return '0b' + base64.b64encode(data).decode('ascii')
    return '0x' + binascii.hexlify(data).decode('ascii')


def decode_binary(value, maximum):
    """The bytes of a binary value (hex, base64, or a decimal number). maximum: bytes. Raises
    ChapError."""
    if _HEX.match(value):
        digits = value[2:]
        data = binascii.unhexlify('0' * (len(digits) % 2) + digits)
    elif _BASE64.match(value) and len(value) % 4 == 2:
        data = base64.b64decode(value[2:])
    elif _DECIMAL.match(value):
        number = int(value)
        data = number.to_bytes((number.bit_length() + 7) // 8 or 1, 'big')
    else:
        raise ChapError('a value is neither hexadecimal nor base64')
    if len(data) > maximum:
        raise ChapError('a value has %d bytes where %d are allowed' % (len(data), maximum))
    return data


# -- the target's side -------------------------------------------------------------------------------------------------


class Chap(object):
    """One authentication: choose(CHAP_A) → pairs to send, then verify(pairs) → pairs to send.

    accounts: [(user, secret bytes)] of which the initiator must know one; outgoing: (user, secret
    bytes) that proves the target, or None; algorithms: numbers, the preferred first; random_bytes:
    a function of a count. `account` is the user that proved itself, None until then.
    """

    __slots__ = (
        'account',
        '_accounts',
        '_outgoing',
        '_algorithms',
        '_random_bytes',
        '_algorithm',
        '_identifier',
        '_challenge',
    )

    def __init__(self, accounts, outgoing, algorithms, random_bytes):
        self.account = None
        self._accounts = accounts
        self._outgoing = outgoing
        self._algorithms = available_algorithms(algorithms)
        self._random_bytes = random_bytes
        self._algorithm = None

    def choose_algorithm(self, offered):
        """[(key, value)] that answers CHAP_A: algorithm, identifier, challenge. Raises ChapError.

        Our order of preference decides among what the initiator offers.
        """
        words = offered.split(',')
        for number in self._algorithms:
            if str(number) in words:
                self._algorithm = number
                break
        else:
            raise AuthenticationFailed('none of the CHAP algorithms %s is accepted here' % offered)
        self._identifier = self._random_bytes(1)[0]
        self._challenge = self._random_bytes(CHALLENGE_BYTES)
        return [
            ('CHAP_A', str(self._algorithm)),
            ('CHAP_I', str(self._identifier)),
            ('CHAP_C', encode_binary(self._challenge)),
        ]

    def verify_response(self, values):
        """[(key, value)] that proves the target if the initiator asked for it, else []. values:
        {key: value} of the initiator with CHAP_N and CHAP_R, perhaps CHAP_I and CHAP_C. Raises
        ChapError, AuthenticationFailed."""
        response = decode_binary(values['CHAP_R'], MAXIMUM_CHALLENGE)
        secret = self._authenticate(values['CHAP_N'], response)
        if 'CHAP_C' not in values:
            return []
        return self._mutual_response(values['CHAP_I'], values['CHAP_C'], secret)

    def _authenticate(self, name, response):
        found = None
        wanted = name.encode('utf-8')
        for user, secret in self._accounts:
            right = chap_response(self._algorithm, self._identifier, secret, self._challenge)
            # every account costs the same, so that time does not tell which names exist
            if hmac.compare_digest(right, response) & hmac.compare_digest(
                user.encode('utf-8'), wanted
            ):
                found = user, secret
        if found is None:
            raise AuthenticationFailed('the CHAP name "%s" or its secret is wrong' % name)
        self.account = found[0]
        return found[1]

    def _mutual_response(self, identifier, challenge, secret):
        number = decode_binary(identifier, 1)[0]
        challenge = decode_binary(challenge, MAXIMUM_CHALLENGE)
        if challenge == self._challenge:
            raise AuthenticationFailed('the initiator sent our own CHAP challenge back')
        if self._outgoing is None:
            raise AuthenticationFailed(
                'the initiator asks the target to prove itself, and the target has no account for that'
            )
        user, own = self._outgoing
        if hmac.compare_digest(own, secret):
            raise AuthenticationFailed('the secrets of both directions are the same')
        return [
            ('CHAP_N', user),
            ('CHAP_R', encode_binary(chap_response(self._algorithm, number, own, challenge))),
        ]
