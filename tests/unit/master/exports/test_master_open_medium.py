"""What a LUN reports about its medium."""

from types import SimpleNamespace

import pytest

from targetd.master.exports.open_medium import rotation_rate
from targetd.store.base import NO_CAPABILITIES


@pytest.mark.parametrize(
    'configured, rotational, reported',
    [
        (None, False, 1),  # also a file on an SSD
        (None, True, 0),  # the speed of the disk is not known
        (None, None, 0),
        (7200, False, 7200),
        (0, False, 0),
        (1, True, 1),
    ],
)
def test_the_rotation_rate_of_page_b1_is_not_reported_unless_it_is_known(
    configured, rotational, reported
):
    capabilities = NO_CAPABILITIES._replace(rotational=rotational)
    assert rotation_rate(SimpleNamespace(rotation_rate=configured), capabilities) == reported
