"""The discovery's answer and the arguments of the rehearsal (targetd.rehearsal.rehearse, .places)."""

import pytest

from targetd.errors import TargetdError
from targetd.rehearsal import places, rehearse

ONE, TWO = 'iqn.2026-11.test:one', 'iqn.2026-11.test:two'


def test_the_addresses_of_a_target():
    pairs = [
        ('TargetName', TWO),
        ('TargetAddress', '10.0.0.9:3260,1'),
        ('TargetName', ONE),
        ('TargetAddress', '10.0.0.1:3260,1'),
        ('TargetAddress', '[fe80::1]:3261,2'),
    ]
    assert rehearse.addresses_of(pairs, ONE) == [('10.0.0.1', 3260), ('fe80::1', 3261)]
    assert rehearse.addresses_of(pairs[:2], ONE) is None
    assert rehearse.addresses_of([('TargetName', ONE)], ONE) == []


def test_the_scratch_area():
    assert rehearse.parse_area('3:2048+1024') == (3, 2048, 1024)
    for text in ('', '3', '3:2048', 'a:1+1', '3:1-2'):
        with pytest.raises(TargetdError, match='LUN:FIRST'):
            rehearse.parse_area(text)


@pytest.mark.parametrize(
    'text, wanted',
    [
        ('10.0.0.1', ('10.0.0.1', 3260)),
        ('10.0.0.1:3261', ('10.0.0.1', 3261)),
        ('[fe80::1]:3261', ('fe80::1', 3261)),
        ('fe80::1', ('fe80::1', 3260)),
        ('storage.example.com', ('storage.example.com', 3260)),
    ],
)
def test_a_portal(text, wanted):
    asked = places.Asked(ONE, None, text, None, None, None, False)
    found = places.request(asked, None, None, None)
    assert found.portals == [wanted] and found.name.startswith(rehearse.MICROSOFT)
