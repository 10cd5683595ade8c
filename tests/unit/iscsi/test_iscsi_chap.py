"""CHAP: known responses, both encodings, and the responses that must be refused."""

import base64
import hashlib

import pytest

from targetd.iscsi import chap, const

SECRET = b'secret-of-12-to-16'
ALL = chap.DEFAULT_ALGORITHMS


class Dice(object):
    """Replaces random_bytes with known results: 0x07, then always 0x41."""

    def __call__(self, count):
        return b'\x07' if count == 1 else b'\x41' * count


def begun(offered='5', accounts=(('erp', SECRET),), outgoing=None, algorithms=ALL):
    machine = chap.Chap(accounts, outgoing, algorithms, Dice())
    return machine, dict(machine.choose_algorithm(offered))


def response(sent, secret=SECRET):
    """Returns the correct CHAP response, computed independently of the target."""
    name = {'5': 'md5', '6': 'sha1', '7': 'sha256', '8': 'sha3_256'}[sent['CHAP_A']]
    return hashlib.new(
        name, bytes([int(sent['CHAP_I'])]) + secret + bytes.fromhex(sent['CHAP_C'][2:])
    ).digest()


def test_digest_is_that_of_rfc_1994():
    assert (
        chap.chap_response(const.CHAP_MD5, 1, b'abc', b'xyz') == hashlib.md5(b'\x01abcxyz').digest()
    )


@pytest.mark.clause('RFC 7143 12.1.3')
@pytest.mark.parametrize('number', ['5', '6', '7', '8'])
@pytest.mark.parametrize('as_base64', [False, True])
def test_correct_responses_are_accepted(number, as_base64):
    machine, sent = begun(number)
    assert sent['CHAP_A'] == number and sent['CHAP_I'] == '7' and len(sent['CHAP_C']) == 2 + 64
    answer = response(sent)
    value = '0b' + base64.b64encode(answer).decode() if as_base64 else '0X' + answer.hex().upper()
    assert machine.verify_response({'CHAP_N': 'erp', 'CHAP_R': value}) == []
    assert machine.account == 'erp'


@pytest.mark.clause('RFC 7143 12.1.3')
@pytest.mark.parametrize(
    'name, secret',
    [('erp', b'wrong'), ('nobody', SECRET), ('ERP', SECRET), ('erp', b''), ('second', SECRET)],
)
def test_wrong_responses_are_refused(name, secret):
    machine, sent = begun(accounts=[('erp', SECRET), ('second', b'another-secret')])
    with pytest.raises(chap.AuthenticationFailed) as refusal:
        machine.verify_response(
            {'CHAP_N': name, 'CHAP_R': chap.encode_binary(response(sent, secret))}
        )
    assert machine.account is None
    assert 'secret-of' not in str(refusal.value)


@pytest.mark.clause('RFC 7143 12.1.3')
def test_a_response_computed_with_another_algorithm_is_refused():
    machine, sent = begun('7')
    with pytest.raises(chap.AuthenticationFailed):
        machine.verify_response(
            {'CHAP_N': 'erp', 'CHAP_R': chap.encode_binary(response(dict(sent, CHAP_A='5')))}
        )


def test_any_of_several_accounts_is_accepted():
    machine, sent = begun(accounts=[('erp', SECRET), ('second', b'another-secret')])
    machine.verify_response(
        {'CHAP_N': 'second', 'CHAP_R': chap.encode_binary(response(sent, b'another-secret'))}
    )
    assert machine.account == 'second'


@pytest.mark.clause('RFC 7143 6.2.1', 'RFC 7143 12.1.3')
def test_the_first_algorithm_of_the_initiator_s_list_that_is_accepted_is_used():
    assert begun('5,6,7')[1]['CHAP_A'] == '5'
    assert begun('7,5')[1]['CHAP_A'] == '7'
    assert begun('8,6,5', algorithms=(const.CHAP_MD5, const.CHAP_SHA1))[1]['CHAP_A'] == '6'
    assert begun('7,6,5', algorithms=(const.CHAP_MD5, const.CHAP_SHA1))[1]['CHAP_A'] == '6'
    for offered in ('42', '7', '', '05', 'MD5'):
        with pytest.raises(chap.AuthenticationFailed):
            begun(offered, algorithms=(const.CHAP_MD5,))


# -- mutual ----------------------------------------------------------------------------------------


def mutual(challenge, identifier='0x11', outgoing=('back', b'another-secret')):
    machine, sent = begun(outgoing=outgoing)
    return sent, machine.verify_response(
        {
            'CHAP_N': 'erp',
            'CHAP_R': chap.encode_binary(response(sent)),
            'CHAP_I': identifier,
            'CHAP_C': challenge,
        }
    )


@pytest.mark.clause('RFC 7143 12.1.3')
@pytest.mark.parametrize('size', [1, 16, 1024])
@pytest.mark.parametrize('as_base64', [False, True])
def test_the_target_authenticates_itself(size, as_base64):
    challenge = b'\xa5' * size
    _, proof = mutual(chap.encode_binary(challenge, as_base64))
    assert proof == [
        ('CHAP_N', 'back'),
        ('CHAP_R', '0x' + hashlib.md5(b'\x11another-secret' + challenge).hexdigest()),
    ]


@pytest.mark.clause('RFC 7143 12.1.3', 'RFC 7143 6.1')
def test_a_challenge_of_odd_hex_digits_and_a_decimal_identifier():
    _, proof = mutual('0xabc', '17')
    assert dict(proof)['CHAP_R'] == '0x' + hashlib.md5(b'\x11another-secret\x0a\xbc').hexdigest()


@pytest.mark.clause('RFC 7143 9.2.1')
def test_reflection_is_refused():
    with pytest.raises(chap.AuthenticationFailed):
        mutual(chap.encode_binary(b'\x41' * chap.CHALLENGE_BYTES))


@pytest.mark.clause('RFC 7143 12.1.3')
def test_mutual_chap_without_an_outgoing_account_is_refused():
    with pytest.raises(chap.AuthenticationFailed):
        mutual('0x01', outgoing=None)


@pytest.mark.clause('RFC 7143 9.2.1')
def test_one_secret_for_both_directions_is_refused():
    with pytest.raises(chap.AuthenticationFailed):
        mutual('0x01', outgoing=('back', SECRET))


@pytest.mark.clause('RFC 7143 12.1.3')
@pytest.mark.parametrize(
    'identifier, challenge',
    [('256', '0x01'), ('0x0100', '0x01'), ('1', '0x' + '01' * 1025), ('1', '0x'), ('', '0x01')],
)
def test_values_that_are_too_long_or_empty(identifier, challenge):
    with pytest.raises(chap.ChapError):
        mutual(challenge, identifier)


# -- encodings -------------------------------------------------------------------------------------


@pytest.mark.clause('RFC 7143 6.1')
@pytest.mark.parametrize(
    'value', ['', '0x', '0b', '0xzz', '0b!!!!', '0bAAA', '0bA===', '-1', 'abc', '0x12 ', '0bQQ==\n']
)
def test_invalid_binary_values_are_refused(value):
    with pytest.raises(chap.ChapError):
        chap.decode_binary(value, 1024)


@pytest.mark.clause('RFC 7143 6.1')
@pytest.mark.parametrize(
    'value, data',
    [
        ('0x00', b'\0'),
        ('0XfF', b'\xff'),
        ('0bQQ==', b'A'),
        ('0BQUI=', b'AB'),
        ('0bQUJD', b'ABC'),
        ('0', b'\0'),
        ('255', b'\xff'),
        ('256', b'\1\0'),
    ],
)
def test_binary_values(value, data):
    assert chap.decode_binary(value, 1024) == data


# -- hosts without an algorithm --------------------------------------------------------------------


def test_md5_is_computed_on_a_fips_host_if_python_allows_it(monkeypatch):
    real = hashlib.new

    def new(name, data=b'', **more):
        if name == 'md5' and more != {'usedforsecurity': False}:
            raise ValueError('disabled for FIPS')
        return real(name, data)

    monkeypatch.setattr(chap.hashlib, 'new', new)
    assert chap.available_algorithms((5, 7)) == (5, 7)
    assert chap.chap_response(5, 1, b'abc', b'xyz') == real('md5', b'\x01abcxyz').digest()


def test_an_algorithm_that_the_host_lacks_is_never_chosen(monkeypatch):
    real = hashlib.new

    def new(name, data=b'', **more):
        if more:
            raise TypeError('no such argument')  # Python before 3.9
        if name == 'md5':
            raise ValueError('disabled for FIPS')
        return real(name, data)

    monkeypatch.setattr(chap.hashlib, 'new', new)
    assert chap.available_algorithms((5, 7)) == (7,)
    with pytest.raises(chap.AuthenticationFailed):
        begun('5')


def test_names_of_the_algorithms_in_the_configuration():
    assert [chap.ALGORITHM_NUMBERS[word] for word in ('MD5', 'SHA1', 'SHA-256', 'SHA3-256')] == [
        5,
        6,
        7,
        8,
    ]
    assert set(chap.ALGORITHM_NUMBERS.values()) == set(chap.HASHES) == set(const.CHAP_NAMES)
