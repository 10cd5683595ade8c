"""NBD URIs."""

import pytest

from targetd.nbd.uri import Address, is_uri, parse_uri


@pytest.mark.parametrize(
    'text, address',
    [
        ('nbd://store/disk', Address('store', 10809, '', 'disk')),
        ('NBD://store:5000/', Address('store', 5000, '', '')),
        ('nbd://store', Address('store', 10809, '', '')),
        ('nbd://[fe80::1]:7/a/b', Address('fe80::1', 7, '', 'a/b')),
        ('nbd://10.0.0.1/%C3%BC%20x', Address('10.0.0.1', 10809, '', '\u00fc x')),
        ('nbd+unix:///disk?socket=/run/nbd', Address('', 0, '/run/nbd', 'disk')),
        ('nbd+unix:///?socket=/run/a%23b', Address('', 0, '/run/a#b', '')),
    ],
)
def test_a_uri_names_a_server_and_an_export(text, address):
    assert is_uri(text)
    assert parse_uri(text) == address


@pytest.mark.parametrize(
    'text, words',
    [
        ('nbds://store/disk', 'cannot use nbds'),
        ('nbd+vsock://2/disk', 'cannot use nbd+vsock'),
        ('nbd:///disk', 'does not name a host'),
        ('nbd://store:0/disk', 'is not a port'),
        ('nbd://store:70000/disk', 'is not a port'),
        ('nbd://user@store/disk', 'does not name a host'),
        ('nbd://store/disk?tls=1', 'no part after ?'),
        ('nbd://store/disk#1', 'no part after #'),
        ('nbd://store/%zz', 'two hex digits'),
        ('nbd://store/%00', 'two hex digits'),
        ('nbd://store/' + 'x' * 5000, 'too long'),
        ('nbd+unix:///disk', 'does not name a socket'),
        ('nbd+unix:///disk?socket=', 'does not name a socket'),
        ('nbd+unix://host/disk?socket=/a', 'has no host'),
        ('nbd+unix:///disk?socket=run/a', 'not an absolute path'),
        ('nbd+unix:///disk?socket=/' + 'a' * 107, 'at most 107 bytes'),
        ('/dev/sda', 'not an NBD URI'),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(text, words):
    with pytest.raises(ValueError) as caught:
        parse_uri(text)
    assert words in str(caught.value)


def test_a_path_is_not_a_uri():
    assert not is_uri('/nbd://x')
    assert not is_uri('serial:nbd')


@pytest.mark.parametrize(
    'text, image',
    [
        ('rbd:disks/erp', ('disks', '', 'erp', '')),
        ('rbd:disks/tests/erp', ('disks', 'tests', 'erp', '')),
        ('rbd:disks/tests/erp@monday', ('disks', 'tests', 'erp', 'monday')),
    ],
)
def test_the_name_of_an_image(text, image):
    assert is_uri(text) and parse_uri(text) == image


@pytest.mark.parametrize(
    'text', ['rbd:', 'rbd:erp', 'rbd:disks/', 'rbd:a/b/c/d', 'rbd:a/b@', 'rbd:a/b@c@d', 'rbd:a//b']
)
def test_what_is_not_the_name_of_an_image(text):
    with pytest.raises(ValueError) as caught:
        parse_uri(text)
    assert 'rbd:POOL/IMAGE' in str(caught.value)
