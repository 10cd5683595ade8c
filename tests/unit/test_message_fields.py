"""The checks of the fields of messages between master and worker."""

import pytest

from targetd.message_fields import complaint_about, is_list, is_number, is_object, is_text

FIELDS = {'id': is_number, '?why': is_text, '?more': None}


@pytest.mark.parametrize(
    'message, expected',
    [
        ({'id': 1}, ''),
        ({'id': 1, 'why': 'x', 'more': [], 'other': 1}, ''),
        ({'why': 'x'}, 'ended without id'),
        ({'id': True}, 'ended with a malformed id: True'),
        ({'id': 1, 'why': None}, 'ended with a malformed why: None'),
    ],
)
def test_a_message_has_the_fields_of_its_kind(message, expected):
    assert complaint_about('ended', message, FIELDS) == expected


def test_each_check_accepts_its_own_kind_only():
    values = [1, 'text', {}, []]
    for check, own in ((is_number, 1), (is_text, 'text'), (is_object, {}), (is_list, [])):
        assert [value for value in values if check(value)] == [own]
    assert not is_number(True)
