"""What a LUN reports about its medium."""

from types import SimpleNamespace

import pytest

from targetd.master.exports.open_medium import rotation_rate
from targetd.store.base import NO_CAPABILITIES


@pytest.mark.parametrize(
    'configured, of_the_disk, reported',
    [
        (None, 1, 1),  # also a file on an SSD
        (None, 7200, 7200),
        (None, 0, 0),  # not known
        (7200, 1, 7200),
        (0, 1, 0),
        (1, 0, 1),
    ],
)
def test_the_rotation_rate_of_page_b1_is_not_reported_unless_it_is_known(
    configured, of_the_disk, reported
):
    capabilities = NO_CAPABILITIES._replace(rotation_rate=of_the_disk)
    assert rotation_rate(SimpleNamespace(rotation_rate=configured), capabilities) == reported
