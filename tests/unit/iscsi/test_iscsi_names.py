"""iSCSI names: names are equal regardless of case, and invalid names are refused with a reason."""

import pytest

from targetd.iscsi import names


@pytest.mark.clause('RFC 7143 4.2.7')
@pytest.mark.parametrize(
    'name',
    [
        'iqn.2026-11.com.example:erp',
        'iqn.1991-05.com.microsoft:server.corp.example.com',
        'iqn.1993-08.org.debian:01:abcdef012345',
        'iqn.2026-11.example',
        'iqn.2001-04.com.example:storage:tape1.sys1.xyz',
        'eui.02004567A425678D',
        'naa.52004567BA64678D',
        'naa.62004567BA64678D0123456789ABCDEF',
        'iqn.2026-11.com.example:büro',
        'IQN.2026-11.COM.EXAMPLE:X',
        'iqn.2026-11.com.example:' + 'x' * 199,
    ],
)
def test_valid_names_are_accepted(name):
    assert names.name_error(name) is None
    assert names.name_error(name, lenient=True) is None


@pytest.mark.clause('RFC 7143 4.2.7')
@pytest.mark.parametrize(
    'name, word',
    [
        ('', 'begin'),
        ('disk1', 'begin'),
        ('iqn.', 'year-month'),
        ('iqn.2026.com.example', 'year-month'),
        ('iqn.2026-11.', 'year-month'),
        ('iqn.2026-13.com.example', '13 is not a valid month'),
        ('iqn.2026-00.com.example', '00 is not a valid month'),
        ('iqn.2026-11.com..example', 'domain'),
        ('iqn.2026-11.-com.example', 'domain'),
        ('iqn.2026-11.com.example:a_b', '"_"'),
        ('iqn.2026-11.com.example:a b', 'a blank'),
        ('iqn.2026-11.com.example:a/b', '"/"'),
        ('iqn.2026-11.com.example:\x07', 'U+0007'),
        ('iqn.2026-11.com.example:\u200b', 'U+200B'),
        ('eui.0200', '16 hexadecimal'),
        ('eui.02004567A425678G', '16 hexadecimal'),
        ('naa.123', '16 or 32'),
        ('iqn.2026-11.com.example:' + 'x' * 200, '223 bytes'),
        ('iqn.2026-11.com.example:' + 'ü' * 100, '223 bytes'),
    ],
)
def test_invalid_names_are_refused_with_the_reason(name, word):
    assert word in names.name_error(name)


def test_a_url_as_initiator_name_is_refused_with_a_hint():
    """pyscsi sends its URL as InitiatorName."""
    for lenient in (True, False):
        flaw = names.name_error('iscsi://127.0.0.1/iqn.2026-11.com.example:disk/0', lenient)
        assert 'URL' in flaw or '"/"' in flaw
    assert 'URL' in names.name_error('iscsi://127.0.0.1/iqn.2026-11.com.example:disk/0', True)


def test_names_that_are_used_are_checked_less_strictly():
    assert names.name_error('iqn.2026-11.com.example:host_1', lenient=True) is None
    assert names.name_error('iqn.anything/goes', lenient=True) is None
    assert names.name_error('iqn.', lenient=True)
    assert names.name_error('iqn.a b', lenient=True)
    assert names.name_error('host_1', lenient=True)
    assert names.name_error('eui.12', lenient=True)


@pytest.mark.clause('RFC 7143 4.2.7')
@pytest.mark.parametrize(
    'one, other',
    [
        ('IQN.2026-11.Com.Example:Disk', 'iqn.2026-11.com.example:disk'),
        (
            'iqn.2026-11.com.example:\uff24isk',
            'iqn.2026-11.com.example:disk',
        ),  # a full-width letter
        ('iqn.2026-11.com.example:Stra\xdfe', 'iqn.2026-11.com.example:strasse'),
        ('EUI.02004567A425678D', 'eui.02004567a425678d'),
    ],
)
def test_names_that_differ_only_in_spelling_are_equal(one, other):
    assert names.fold(one) == names.fold(other) == names.fold(names.fold(one))


@pytest.mark.parametrize(
    'pattern, name, matched',
    [
        ('iqn.1991-05.com.microsoft:*', 'iqn.1991-05.com.microsoft:host', True),
        ('iqn.1991-05.com.microsoft:*', 'IQN.1991-05.COM.MICROSOFT:HOST', True),
        ('IQN.1991-05.com.microsoft:*', 'iqn.1991-05.com.microsoft:', True),
        ('iqn.1991-05.com.microsoft:*', 'iqn.1993-08.org.debian:host', False),
        ('iqn.1991-05.com.microsoft', 'iqn.1991-05xcom.microsoft', False),  # a dot is a dot
        ('iqn.2026-11.com.example:host?', 'iqn.2026-11.com.example:host1', True),
        ('iqn.2026-11.com.example:host?', 'iqn.2026-11.com.example:host', False),
        ('iqn.2026-11.com.example:host?', 'iqn.2026-11.com.example:host12', False),
        (
            'iqn.2026-11.com.example:[a]',
            'iqn.2026-11.com.example:a',
            False,
        ),  # brackets are no wildcard
        ('iqn.2026-11.com.example:a', 'iqn.2026-11.com.example:a\n', False),
        ('*', 'iqn.2026-11.com.example:a', True),
        ('ALL', 'iqn.2026-11.com.example:a', True),
        ('all', 'iqn.x', False),
    ],
)
def test_patterns(pattern, name, matched):
    assert names.matches_pattern(pattern, name) is matched


def test_one_matching_pattern_of_several_admits():
    assert names.matches_any(('iqn.a:*', 'iqn.b:*'), 'iqn.b:1')
    assert not names.matches_any(('iqn.a:*', 'iqn.b:*'), 'iqn.c:1')
    assert not names.matches_any((), 'iqn.c:1')
