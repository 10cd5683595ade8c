"""Values of JSON that another program wrote, of the expected type and of others."""

import pytest

from targetd.host.json_values import dict_of, number_of, rows_of, text_of

OTHERS = [None, True, 'x', 7, 1.5, [], {}, [1], {'a': 1}]


@pytest.mark.parametrize('value', OTHERS)
def test_only_the_expected_type_is_returned(value):
    said = {'key': value}
    assert dict_of(said, 'key') == (value if isinstance(value, dict) else {})
    assert rows_of(said, 'key') == []
    assert text_of(said, 'key') == (value if isinstance(value, str) else '')
    assert number_of(said, 'key') == (7 if value == 7 else None)


def test_missing_keys_are_empty():
    assert (dict_of({}, 'a'), rows_of({}, 'a'), text_of({}, 'a'), number_of({}, 'a')) == (
        {},
        [],
        '',
        None,
    )


def test_rows_texts_and_numbers_have_limits():
    assert rows_of({'a': [{'b': 1}, 2, {'b': 3}]}, 'a') == [{'b': 1}, {'b': 3}]
    assert text_of({'a': ' one\n\ttwo\0 ' + 'x' * 200}, 'a', 10) == 'one two xx'
    assert number_of({'a': 256}, 'a', 255) is None and number_of({'a': -1}, 'a') is None
