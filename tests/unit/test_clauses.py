"""The committed table of clauses and tests is rendered from the markers."""

import clauses
import pytest

pytestmark = pytest.mark.source

STANDARDS = {'RFC 7143', 'RFC 7144', 'SAM-5', 'SPC-4', 'SBC-3'}


def test_the_committed_table_is_the_rendered_one():
    with open(clauses.TABLE, encoding='utf-8') as file:
        assert file.read() == clauses.render(clauses.collect()), (
            'run: python3 tests/clauses.py write'
        )


def test_every_marker_names_a_known_clause():
    named = set(clauses.collect())
    assert {clause.rpartition(' ')[0] for clause in named} <= STANDARDS
    assert named == {
        subject if ' ' in subject else clauses.RFC + subject for subject in clauses.SUBJECTS
    }


def test_markers_are_found_and_sorted_by_number():
    text = (
        "import pytest\n@pytest.mark.clause('RFC 7143 11.10', 'RFC 7143 9.1')\n"
        "@pytest.mark.parametrize('a', [1])\n"
        "def test_one(a):\n    pass\n\n\ndef test_two():\n    pass\n"
    )
    assert clauses.marked(text) == [('test_one', ['RFC 7143 11.10', 'RFC 7143 9.1'])]
    assert sorted(
        ['RFC 7143 C', 'RFC 7143 11.10', 'RFC 7143 11.2', 'RFC 7143 9.1', 'RFC 7143 11'],
        key=clauses.order,
    ) == ['RFC 7143 9.1', 'RFC 7143 11', 'RFC 7143 11.2', 'RFC 7143 11.10', 'RFC 7143 C']
