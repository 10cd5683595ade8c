"""Maps of LUNs: which map counts, what it shows, and which maps contradict each other."""

import pytest

from targetd.config import acl, lun_maps, model
from targetd.config.lun_maps import EVERY_LUN, Shown, choose, have_common_lun
from targetd.config.map_kinds import LunMaps

NAME, OTHER = 'iqn.2026-11.test:web1', 'iqn.2026-11.test:db'
KIND = LunMaps()


def maps(*texts):
    return tuple(KIND.item(text.split()) for text in texts)


def target(*texts, **fields):
    fields.setdefault('initiator_addresses', ('ALL',))
    return model.Target('iqn.2026-11.test:t', lun_map=maps(*texts), **fields)


ALL_KINDS = (
    'ALL 0',
    '10.0.0.0/8 1',
    '10.0.5.0/24 2',
    '2001:db8::/32 3',
    'iqn.2026-11.test:* 4',
    'iqn.2026-11.test:web? 5',
    'account:erp 6',
    NAME + ' 7',
)


@pytest.mark.parametrize(
    'name, address, accounts, who',
    [
        (NAME, '10.0.5.1', ['erp'], NAME),
        (NAME.upper(), '10.0.5.1', [], NAME),
        (OTHER, '10.0.5.1', ['erp'], 'account:erp'),
        (OTHER, '10.0.5.1', ['Erp'], 'iqn.2026-11.test:*'),
        ('iqn.2026-11.test:web2', '10.0.5.1', [], 'iqn.2026-11.test:web?'),
        ('iqn.x', '10.0.5.1', [], '10.0.5.0/24'),
        ('iqn.x', '::ffff:10.0.5.1', [], '10.0.5.0/24'),
        ('iqn.x', '10.0.6.1', [], '10.0.0.0/8'),
        ('iqn.x', '2001:db8::1%eth0', [], '2001:db8::/32'),
        ('iqn.x', '192.0.2.1', [], 'ALL'),
        ('iqn.x', 'no address', [], 'ALL'),
    ],
)
@pytest.mark.parametrize('texts', [ALL_KINDS, ALL_KINDS[::-1]])
def test_the_most_specific_map_counts(texts, name, address, accounts, who):
    assert choose(target(*texts), name, address, accounts).written == who


def test_without_maps_every_lun_is_shown_under_its_number():
    found = choose(target(), NAME, '10.0.0.1', [])
    assert found == EVERY_LUN and found.shown(5) == Shown(5, False)


def test_the_first_of_two_equal_patterns_counts():
    assert choose(target('iqn.a* 0', 'iqn.*a 1'), 'iqn.aa', '', []).who == 'iqn.a*'


def test_a_map_shows_what_it_has():
    (found,) = lun_maps.maps_of(target(NAME + ' 0 2=5:read-only', NAME + ' 7'))
    assert [found.shown(n) for n in (0, 5, 7)] == [Shown(0, False), Shown(2, True), Shown(7, False)]
    assert found.shown(2) is None
    (everything,) = maps('ALL all:read-only')
    assert everything.shown(9) == Shown(9, True)
    (nothing,) = maps('ALL none')
    assert nothing.shown(0) is None


def test_without_a_matching_map_the_sentence_names_the_maps():
    text = acl.refusal(target(NAME + ' 0', '10.0.5.0/24 1'), OTHER, '10.0.6.1')
    assert 'matches none of lun-map = %s, 10.0.5.0/24' % NAME in text
    assert acl.refusal(target(NAME + ' 0'), NAME, '10.0.6.1') is None


def test_before_the_login_a_map_of_an_account_may_match_who_may_use_it():
    accounts = (('erp', 'secret'), ('crm', 'secret'))
    one = target('account:erp 0', accounts=accounts, incominguser_for=(('erp', NAME),))
    assert acl.refusal(one, NAME, '10.0.0.1') is None
    assert 'account:erp' in acl.refusal(one, OTHER, '10.0.0.1')
    assert choose(one, NAME, '10.0.0.1', ['crm']) is None


@pytest.mark.parametrize(
    'one, other, expected',
    [
        ('ALL 0 1', 'ALL 5=1', True),
        ('ALL 0', 'ALL 0=1', False),
        ('ALL all:ro', 'ALL 3', True),
        ('ALL all', 'ALL all:ro', True),
        ('ALL none', 'ALL all', False),
        ('ALL none', 'ALL 1', False),
    ],
)
def test_two_maps_have_a_lun_in_common(one, other, expected):
    pair = maps(one, other)
    assert have_common_lun(*pair) is have_common_lun(*pair[::-1]) is expected


def test_a_map_that_is_not_known_may_have_any_lun():
    assert have_common_lun(None, maps('ALL 1')[0]) and have_common_lun(EVERY_LUN, maps('ALL 1')[0])


@pytest.mark.parametrize('text', ['ALL 0 2=5:read-only', 'account:Erp all', '10.0.0.0/8 none'])
def test_a_map_passes_over_in_an_upgrade(text):
    (one,) = maps(text)
    assert lun_maps.from_plain(lun_maps.as_plain(one)) == one
    assert lun_maps.from_plain(lun_maps.as_plain(None)) is None


@pytest.mark.parametrize(
    'texts, words',
    [
        (['ALL 0 1=0'], 'lun 0 twice'),
        (['ALL 0 1', NAME + ' 0', 'ALL 1=2'], 'number 1 twice'),
        (['ALL 7'], 'lun 7, which the target does not have'),
        (['ALL all', 'ALL 0'], 'two maps for ALL'),
        (['ALL none', 'ALL 0'], 'two maps for ALL'),
        (['account:no 0'], 'an account that the target does not have'),
    ],
)
def test_contradictions(texts, words):
    items = [(each, index) for index, each in enumerate(maps(*texts))]
    ((place, text, remedy),) = lun_maps.contradictions(items, {0: 0, 1: 1, 2: 2}, ['erp'])
    assert words in text and remedy and place == len(texts) - 1


def test_the_same_numbers_for_different_initiators_are_no_contradiction():
    items = [(each, None) for each in maps('ALL 0 1', NAME + ' 0 1=2', 'account:erp 0')]
    assert lun_maps.contradictions(items, {0: 0, 1: 1, 2: 2}, ['erp']) == []
