"""How initiators share a LUN, by its settings."""

import pytest

from targetd.config.model import Lun
from targetd.config.sharing_rules import sharing_of


@pytest.mark.parametrize(
    'settings, expected',
    [
        ({}, 'exclusive'),
        ({'readonly': True}, 'cluster'),
        ({'readonly': True, 'sharing': 'exclusive'}, 'exclusive'),
        ({'sharing': 'readers'}, 'readers'),
    ],
)
def test_a_lun_is_for_one_initiator_unless_it_is_readonly_or_something_else_is_written(
    settings, expected
):
    assert sharing_of(Lun(0, **settings)) == expected
