"""Text: parsing of valid text of initiators, and refusal of invalid text."""

import pytest

from targetd.iscsi import text


@pytest.mark.clause('RFC 7143 6.1')
def test_pairs_keep_their_order_and_equals_signs_in_values():
    assert text.parse_text(b'B=2\0A=1\0CHAP_N=a=b\0X-com.example=\0') == [
        ('B', '2'),
        ('A', '1'),
        ('CHAP_N', 'a=b'),
        ('X-com.example', ''),
    ]


def test_parse_reverses_render():
    pairs = [('TargetAlias', 'Büro'), ('TargetPortalGroupTag', '1')]
    assert text.render_text(pairs) == 'TargetAlias=Büro\0TargetPortalGroupTag=1\0'.encode('utf-8')
    assert text.parse_text(text.render_text(pairs)) == pairs
    assert text.render_text([]) == b''


def test_a_missing_or_additional_nul_is_accepted():
    assert text.parse_text(b'A=1\0B=2') == [('A', '1'), ('B', '2')]
    assert text.parse_text(memoryview(b'A=1\0\0\0')) == [('A', '1')]
    assert text.parse_text(b'') == []


@pytest.mark.clause('RFC 7143 6.1')
@pytest.mark.parametrize(
    'data',
    [
        b'InitiatorName\0',
        b'=value\0',
        b'1A=b\0',
        b'A B=c\0',
        b'A=\xff\xfe\0',
        b'K\xc3\xa4se=1\0',
        b'A' * 64 + b'=1\0',
        b'A=' + b'v' * 256 + b'\0',
        b'A=x,' + b'v' * 256 + b'\0',
        b'CHAP_C=0x' + b'0' * 8191 + b'\0',
        b'A=' + b'v,' * 5000 + b'\0',
    ],
    ids=[
        'no-equals',
        'no-key',
        'digit',
        'blank',
        'not-utf8',
        'not-ascii',
        'long-key',
        'long-value',
        'long-item',
        'long-long',
        'long-list',
    ],
)
def test_invalid_text_is_refused(data):
    with pytest.raises(text.TextError) as error:
        text.parse_text(data)
    assert len(str(error.value)) < 120


@pytest.mark.parametrize(
    'data',
    [
        b'TargetName=a\nNov 23 root logged in\0',
        b'no\npair\0',
        'A=\u2028x'.encode('utf-8'),
        b'A=\x7f\0',
        b'a\nb=1\0',
    ],
)
def test_text_cannot_add_a_line_to_the_log(data):
    with pytest.raises(text.TextError) as error:
        text.parse_text(data)
    assert str(error.value).isprintable() or '\ufffd' in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.clause('RFC 7143 6.1')
def test_limits_are_inclusive():
    assert text.parse_text(b'A' * 63 + b'=' + b'v' * 255)
    assert text.parse_text(b'CHAP_C=0x' + b'0' * 2048)  # Windows' challenge of 1024 bytes
    assert text.parse_text(b'HeaderDigest=' + b','.join([b'v' * 255] * 32))


def test_split_returns_at_least_one_piece():
    assert text.split_text(b'', 512) == [b'']
    assert text.split_text(b'x' * 512, 512) == [b'x' * 512]
    assert text.split_text(b'x' * 513, 512) == [b'x' * 512, b'x']


@pytest.mark.clause('RFC 7143 6.2')
def test_the_collector_joins_the_pieces_of_a_text_and_can_be_used_again():
    collector = text.TextCollector(10)
    assert collector.is_empty
    assert collector.add_piece(memoryview(b'A='), True) is None
    assert not collector.is_empty
    assert collector.add_piece(b'1\0', False) == b'A=1\0'
    assert collector.is_empty
    assert collector.add_piece(b'0123456789', False) == b'0123456789'


def test_the_collector_keeps_no_more_than_its_limit():
    collector = text.TextCollector(10)
    collector.add_piece(b'x' * 10, True)
    with pytest.raises(text.TextError):
        collector.add_piece(b'x', True)
    assert collector.is_empty
