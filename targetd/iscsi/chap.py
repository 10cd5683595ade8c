"""CHAP (RFC 1994, RFC 7143 12.1.3 and 9.2.1): challenges, responses and their encodings. Pure;
imports const.

Invariants: secrets are compared in constant time; the target's own challenge is refused when the
initiator sends it back (reflection); the target never authenticates itself with the secret that the
initiator has just used; an unknown name and a wrong secret cause the same error.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections import OrderedDict
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from targetd.iscsi import const

MAXIMUM_CHALLENGE = 1024  # bytes, RFC 7143 12.1.3
CHALLENGE_BYTES = 32  # length of the target's challenges; Windows accepts up to 1024
DEFAULT_ALGORITHMS = (const.CHAP_SHA3_256, const.CHAP_SHA256, const.CHAP_SHA1, const.CHAP_MD5)

HASHES = OrderedDict(
    (
        (const.CHAP_MD5, 'md5'),
        (const.CHAP_SHA1, 'sha1'),
        (const.CHAP_SHA256, 'sha256'),
        (const.CHAP_SHA3_256, 'sha3_256'),
    )
)

#: Algorithm numbers by the names that the configuration accepts.
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
    """A value that the initiator sent is malformed. The message is one plain sentence."""


class AuthenticationFailed(ChapError):
    """The initiator failed to authenticate, or requested an authentication of the target that is not
    allowed."""


def new_hash(algorithm: int, data: bytes) -> Any:
    """Return the hash object of a CHAP algorithm number. Raises ValueError if this host does not
    support the algorithm.

    On a host in FIPS mode MD5 and SHA-1 are available only with usedforsecurity=False (Python 3.9).
    """
    name = HASHES[algorithm]
    try:
        return hashlib.new(name, data)
    except ValueError:
        try:
            return hashlib.new(name, data, usedforsecurity=False)
        except TypeError:
            raise ValueError('this host does not support %s' % name)


def chap_response(algorithm: int, identifier: int, secret: bytes, challenge: bytes) -> bytes:
    """Return the response (RFC 1994 4.1) to a challenge. identifier: 0..255; secret, challenge:
    bytes."""
    digest = new_hash(algorithm, bytes((identifier,)))
    # not joined before: a secret may be a view of memory that is unmapped soon
    digest.update(secret)
    digest.update(challenge)
    return bytes(digest.digest())


def available_algorithms(algorithms: Sequence[int]) -> Tuple[int, ...]:
    """Return the algorithm numbers that this host supports, in the same order."""
    usable = []
    for algorithm in algorithms:
        try:
            new_hash(algorithm, b'')
        except ValueError:
            continue
        usable.append(algorithm)
    return tuple(usable)


# -- encodings, RFC 7143 6.1 -----------------------------------------------------------------------


def encode_binary(data: bytes, as_base64: bool = False) -> str:
    """Return a binary value as text: 0x… (hexadecimal), or 0b… (base64). data: at least one byte."""
    if as_base64:
        return '0b' + base64.b64encode(data).decode('ascii')
    return '0x' + binascii.hexlify(data).decode('ascii')


def decode_binary(value: str, maximum: int) -> bytes:
    """Return the bytes of a binary value in hexadecimal, base64 or decimal form. maximum: the
    longest result, bytes. Raises ChapError."""
    if _HEX.match(value):
        digits = value[2:]
        data = binascii.unhexlify('0' * (len(digits) % 2) + digits)
    elif _BASE64.match(value) and len(value) % 4 == 2:
        data = base64.b64decode(value[2:])
    elif _DECIMAL.match(value):
        number = int(value)
        data = number.to_bytes((number.bit_length() + 7) // 8 or 1, 'big')
    else:
        raise ChapError('a value is neither hexadecimal, base64 nor decimal')
    if len(data) > maximum:
        raise ChapError('a value has %d bytes, and at most %d are allowed' % (len(data), maximum))
    return data


# -- the target's side of an authentication --------------------------------------------------------


class Chap(object):
    """The target's side of one CHAP authentication.

    choose_algorithm(CHAP_A) returns the pairs of the challenge, then verify_response(values) returns
    the pairs of the last answer. accounts: [(user, secret bytes)], one of which the initiator must
    know; outgoing: (user, secret bytes) with which the target authenticates itself, or None;
    algorithms: CHAP algorithm numbers that the target accepts; random_bytes: callable(count) ->
    bytes. `proved` is the account that authenticated, None until then; `account` is its user.

    Accounts may have labels in place of secrets; then `secret_of` of verify_response() returns the
    secret of a label.
    """

    __slots__ = (
        'proved',
        '_accounts',
        '_outgoing',
        '_algorithms',
        '_random_bytes',
        '_algorithm',
        '_identifier',
        '_challenge',
    )

    def __init__(
        self,
        accounts: Sequence[Tuple[str, Any]],
        outgoing: Optional[Tuple[str, Any]],
        algorithms: Sequence[int],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self.proved: Optional[Tuple[str, Any]] = None
        self._accounts = accounts
        self._outgoing = outgoing
        self._algorithms = available_algorithms(algorithms)
        self._random_bytes = random_bytes
        self._algorithm: Any = None

    @property
    def account(self) -> Optional[str]:
        """The user that authenticated, or None."""
        return self.proved[0] if self.proved else None

    def choose_algorithm(self, offered: str) -> List[Tuple[str, str]]:
        """Return [(key, value)] that answers CHAP_A: algorithm, identifier, challenge. The first
        algorithm of the initiator's list that the target accepts is chosen (RFC 7143 6.2.1).
        offered: algorithm numbers separated by commas. Raises AuthenticationFailed if the target
        accepts none of them."""
        accepted = {str(number): number for number in self._algorithms}
        for word in offered.split(','):
            if word in accepted:
                self._algorithm = accepted[word]
                break
        else:
            raise AuthenticationFailed(
                'the target accepts none of the CHAP algorithms %s' % offered
            )
        self._identifier = self._random_bytes(1)[0]
        self._challenge = self._random_bytes(CHALLENGE_BYTES)
        return [
            ('CHAP_A', str(self._algorithm)),
            ('CHAP_I', str(self._identifier)),
            ('CHAP_C', encode_binary(self._challenge)),
        ]

    def verify_response(
        self, values: Dict[str, str], secret_of: Callable[[Any], Any] = lambda secret: secret
    ) -> List[Tuple[str, str]]:
        """Check the initiator's response. Returns [(key, value)] that authenticates the target if the
        initiator requested it, else []. values: {key: value} from the initiator: CHAP_N and CHAP_R, and
        for mutual authentication CHAP_I and CHAP_C. Raises ChapError, AuthenticationFailed."""
        response = decode_binary(values['CHAP_R'], MAXIMUM_CHALLENGE)
        found = self._authenticate(values['CHAP_N'], response, secret_of)
        pairs = []
        if 'CHAP_C' in values:
            secret = secret_of(found[1])
            pairs = self._mutual_response(values['CHAP_I'], values['CHAP_C'], secret, secret_of)
        self.proved = found
        return pairs

    def _authenticate(self, name, response, secret_of):
        found = None
        wanted = name.encode('utf-8')
        for account in self._accounts:
            user, secret = account[0], secret_of(account[1])
            right = chap_response(self._algorithm, self._identifier, secret, self._challenge)
            # Every account takes the same time, so that timing does not reveal which names exist.
            if hmac.compare_digest(right, response) & hmac.compare_digest(
                user.encode('utf-8'), wanted
            ):
                found = account
        if found is None:
            raise AuthenticationFailed('the CHAP name "%s" or its secret is wrong' % name)
        return found

    def _mutual_response(self, identifier, challenge, secret, secret_of):
        number = decode_binary(identifier, 1)[0]
        challenge = decode_binary(challenge, MAXIMUM_CHALLENGE)
        if challenge == self._challenge:
            raise AuthenticationFailed("the initiator sent the target's own CHAP challenge back")
        if self._outgoing is None:
            raise AuthenticationFailed(
                'the initiator requests mutual authentication, and the target has no account for it'
            )
        user, own = self._outgoing[0], secret_of(self._outgoing[1])
        if hmac.compare_digest(own, secret):
            raise AuthenticationFailed('the secrets of both directions are the same')
        return [
            ('CHAP_N', user),
            ('CHAP_R', encode_binary(chap_response(self._algorithm, number, own, challenge))),
        ]
