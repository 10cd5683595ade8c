"""The text of a map of LUNs, and back."""

import pytest

from targetd.config.map_kinds import LunMaps
from targetd.config.words import Unusable, split

KIND = LunMaps()


@pytest.mark.parametrize(
    'text, shown',
    [
        ('iqn.2026-11.Test:WEB1 0 1=4 2=5:read-only', None),
        ('ALL all', 'ALL all'),
        ('all none', 'ALL none'),
        ('all ALL:RO', 'ALL all:read-only'),
        ('account:Erp 0x10:readonly', 'account:Erp 16:read-only'),
        ('10.0.5.0/24 3=3', '10.0.5.0/24 3'),
        ('10.0.5.7/32 3', '10.0.5.7 3'),
        ('2001:db8::/32 0', '2001:db8::/32 0'),
        ('fe80::1 0, eui.0123456789abcdef 1', 'fe80::1 0, eui.0123456789abcdef 1'),
        ('iqn.2026-11.test:* 0, ALL 1', 'iqn.2026-11.test:* 0, ALL 1'),
    ],
)
def test_a_map_is_read_and_shown(text, shown):
    value = KIND.read(split(text))
    assert KIND.show(value) == (shown or text.lower())
    assert KIND.read(split(KIND.show(value))) == value


@pytest.mark.parametrize(
    'text, words',
    [
        ('ALL', 'an initiator and the LUNs'),
        ('ALL 0:rw', 'does not end with :read-only'),
        ('ALL x', 'is not a LUN'),
        ('ALL 1=', 'is not a LUN'),
        ('ALL 16384', 'is not a LUN'),
        ('ALL all 3', 'not combined'),
        ('ALL 3 none', 'not combined'),
        ('ALL none:read-only', 'is not a LUN'),
        ('account: 3', 'the name of the account is missing'),
        ('10.0.5.1/24 3', 'host bits'),
        ('web1 3', 'is not an iSCSI name'),
    ],
)
def test_what_cannot_be_a_map_is_refused(text, words):
    with pytest.raises(Unusable) as e:
        KIND.read(split(text))
    assert words in str(e.value)


def test_the_example_is_valid():
    assert KIND.show(KIND.read(split(LunMaps.EXAMPLE))) == LunMaps.EXAMPLE
