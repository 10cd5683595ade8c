"""Words, lists and quotes of a value."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targetd.config.words import FORBIDDEN, Unusable, counted, join, join_word, split

WORDS = st.text(
    st.characters(blacklist_characters=FORBIDDEN, blacklist_categories=('Cs',)), max_size=12
)
NASTY = st.text(st.sampled_from('ab"\',#; =$\\[]\t%\u00e4\u2028\x85\xa0'), max_size=8)


@pytest.mark.parametrize(
    'text, items',
    [
        ('', []),
        ('   # all comment', []),
        ('erp secret', [['erp', 'secret']]),
        ('a b, c d', [['a', 'b'], ['c', 'd']]),
        ('a,b', [['a'], ['b']]),
        ('a,', [['a']]),
        ('a b # why', [['a', 'b']]),
        ('a b#c', [['a', 'b#c']]),
        ('a,#c', [['a']]),
        ('erp "a, b # c"', [['erp', 'a, b # c']]),
        ("erp 'say \"when\"'", [['erp', 'say "when"']]),
        ('erp "it\'s ""so"""', [['erp', 'it\'s "so"']]),
        ("erp o'brien", [['erp', "o'brien"]]),
        ('erp a"b', [['erp', 'a"b']]),
        ('erp \\n$HOME%(x)s;x=y', [['erp', '\\n$HOME%(x)s;x=y']]),
        ('"" \'\'', [['', '']]),
        ('\ta\t b', [['a', 'b']]),
        ('"a","b"', [['a'], ['b']]),
    ],
)
def test_a_value_is_split_as_the_manual_page_says(text, items):
    assert split(text) == items


@pytest.mark.parametrize('text', ['"abc', "erp 'abc", '"a"b', 'a,,b', ',a', '"a""'])
def test_an_ambiguous_value_is_refused(text):
    with pytest.raises(Unusable) as caught:
        split(text)
    assert caught.value.remedy


@pytest.mark.parametrize('text', ['erp "hidden', 'erp "hidden"hidden'])
def test_a_complaint_does_not_quote_what_may_be_a_secret(text):
    with pytest.raises(Unusable) as caught:
        split(text)
    assert 'hidden' not in str(caught.value)


@settings(max_examples=100)
@given(st.lists(st.lists(WORDS | NASTY, min_size=1, max_size=3), max_size=3))
def test_what_is_written_is_read_back(items):
    assert split(join(items)) == items


@settings(max_examples=100)
@given(WORDS | NASTY)
def test_no_written_word_begins_with_three_quotes(word):
    written = join_word(word) + ' '
    assert not written.startswith(('"""', "'''"))


@pytest.mark.parametrize('word', ['a\nb', 'a\rb', 'a\0b'])
def test_a_line_end_cannot_be_written(word):
    with pytest.raises(ValueError):
        join_word(word)


@pytest.mark.parametrize('number, text', [(0, '0 LUNs'), (1, '1 LUN'), (2, '2 LUNs')])
def test_a_counted_noun_has_singular_and_plural(number, text):
    assert counted(number, 'LUN') == text
