"""A selection of combinations of negotiated parameters in which each pair of values occurs; all of them
are tested by `python3 -m tests.longrun matrix`."""

import itertools

import matrix
import pytest

pytestmark = pytest.mark.wire


def test_the_selection_has_every_pair_of_values():
    chosen = matrix.pairwise()
    found = {pair for c in chosen for pair in itertools.combinations(sorted(c.items()), 2)}
    assert found == matrix.allowed_pairs() and len(chosen) < 60


@pytest.mark.clause('RFC 7143 13', 'RFC 7143 11.7', 'RFC 7143 11.8')
def test_each_pair_of_negotiated_values_writes_and_reads_back(daemon):
    matrix.serve(daemon)
    for number, combination in enumerate(matrix.pairwise()):
        try:
            matrix.check(daemon, combination, number)
        except Exception as e:
            raise AssertionError('%r: %s %s' % (combination, type(e).__name__, e))
