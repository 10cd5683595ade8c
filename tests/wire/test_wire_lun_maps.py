"""Maps of LUNs (lun-map): which LUNs of a target each initiator sees, under which numbers, and what it may
do."""

import json
import struct

import pytest
from copies import extended_copy
from daemon import TARGET, eventually
from initiator import Chap, LoginFailed, connect, pattern

pytestmark = pytest.mark.wire

ONE, TWO, THREE = ('iqn.2026-11.test:' + word for word in ('one', 'two', 'three'))
OTHER = 'iqn.2026-11.test.targetd:other'
PROTECTED = (7, 0x27, 0)
NO_SUCH_LUN = (5, 0x25, 0)
LUNS_CHANGED = (6, 0x3F, 0x0E)
MODE_CHANGED = (6, 0x2A, 0x01)
NOT_AUTHORIZED = 0x0202
SECRETS = {'erp': '12-to-16-chars', 'backup': 'another-secret'}


def serve(daemon, *maps, count=4, more=(), target=TARGET):
    word = target.rsplit(':', 1)[-1]
    luns = {
        n: ['backing-store = %s' % daemon.image('%s%d.img' % (word, n), 8 << 20)]
        for n in range(count)
    }
    daemon.target(target, ['initiator-address = ALL'] + list(more) + lines(maps), luns)


def lines(maps):
    return ['lun-map = %s' % each for each in maps]


def remap(daemon, *maps, target=TARGET):
    """Reloads with other maps."""
    settings = daemon.text.targets[target][0]
    settings[:] = [line for line in settings if not line.startswith('lun-map')] + lines(maps)
    daemon.write_config()
    return daemon.control('reload')


def is_write_protected(session, lun=0):
    """The WP bit of MODE SENSE(6), SPC-4 6.13."""
    data = session.run(struct.pack('>BBBBBB', 0x1A, 8, 0x3F, 0, 252, 0), lun, read=252).good().data
    return bool(data[2] & 0x80)


def write(session, lun):
    return session.run(struct.pack('>BBQIBB', 0x8A, 0, 0, 1, 0, 0), lun, out=bytes(512))


def read(session, lun):
    return session.run(struct.pack('>BBQIBB', 0x88, 0, 0, 1, 0, 0), lun, read=512)


def naa(session, lun):
    page = session.inquiry(lun, 0x83)
    return page[page.index(b'\x01\x03\x00\x10') + 4 :][:16]


def status(daemon, name, user=None):
    """0, or the login status."""
    try:
        chap = Chap(user, SECRETS[user]) if user else None
        connect(daemon.address, TARGET, name=name, chap=chap).close()
    except LoginFailed as e:
        return e.status
    return 0


def discovered(daemon, name):
    with connect(daemon.address, None, name=name) as session:
        found = session.send_targets('All')
        assert session.logout() == 0
        return sorted(dict(found))


def test_each_initiator_sees_the_luns_of_its_map_under_its_numbers(daemon, ready):
    serve(daemon, '%s 0=2 5=1' % ONE, '%s 0' % TWO, '%s 7=3:read-only' % TWO, 'ALL none')
    daemon.start()
    one, two = ready(daemon, name=ONE), ready(daemon, name=TWO)
    assert one.report_luns() == [0, 5] and two.report_luns() == [0, 7]
    three = connect(daemon.address, TARGET, name=THREE)
    assert three.report_luns() == []
    three.close()
    one.clear_attentions(5)
    two.clear_attentions(7)
    one.write(0, pattern(2, 4096))
    one.write(0, pattern(1, 4096), lun=5)
    two.write(0, pattern(3, 4096))
    assert read(one, 1).key == NO_SUCH_LUN and write(two, 2).key == NO_SUCH_LUN
    assert write(two, 7).key == PROTECTED
    assert is_write_protected(two, 7) and not is_write_protected(two)
    for number, seed in ((2, 2), (1, 1), (0, 3)):
        with open(daemon.image('disk%d.img' % number, 8 << 20), 'rb') as file:
            assert file.read(4096) == pattern(seed, 4096), number
    rows = {
        row['initiator_name']: row
        for row in json.loads(daemon.control('--json', 'show', 'sessions'))
    }
    assert rows[ONE]['lun_map'] == ONE
    found = json.loads(daemon.control('--json', 'show', 'luns'))
    assert [(r['initiator_name'], r['number'], r['lun'], r['access']) for r in found] == [
        (ONE, 0, 2, 'read-write'),
        (ONE, 5, 1, 'read-write'),
        (TWO, 0, 0, 'read-write'),
        (TWO, 7, 3, 'read-only'),
    ]


def test_one_disk_is_the_same_disk_under_every_number(daemon, ready):
    serve(daemon, '%s 0=2' % ONE, '%s 4=2' % TWO)
    daemon.start()
    one, two = ready(daemon, name=ONE), ready(daemon, name=TWO, lun=4)
    assert naa(one, 0) == naa(two, 4)


def test_an_initiator_without_a_map_is_refused_and_not_told_of_the_target(daemon):
    serve(daemon, '%s 0' % ONE)
    daemon.target(OTHER)
    daemon.start()
    assert status(daemon, ONE) == 0 and status(daemon, TWO) == NOT_AUTHORIZED
    assert discovered(daemon, ONE) == [TARGET, OTHER] and discovered(daemon, TWO) == [OTHER]
    assert 'shows no LUN to %s' % TWO in daemon.control('why', TWO)
    assert 'matches none of lun-map = %s' % ONE in daemon.log


def test_the_most_specific_map_alone_counts(daemon, sessions):
    accounts = ['incominguser = %s %s' % account for account in sorted(SECRETS.items())]
    serve(
        daemon,
        'ALL 0',
        '127.0.0.0/8 1',
        'iqn.2026-11.test:t* 2',
        'account:backup all:read-only',
        '%s 3' % ONE,
        more=accounts,
    )
    daemon.start()

    def seen(name, user):
        session = sessions(daemon, name=name, chap=Chap(user, SECRETS[user]))
        found = session.report_luns()
        assert session.logout() == 0
        return found

    assert seen(ONE, 'backup') == [3]
    assert seen(TWO, 'backup') == [0, 1, 2, 3]
    assert seen(TWO, 'erp') == [2]
    assert seen('iqn.2026-11.test:someone', 'erp') == [1]


def test_a_map_for_an_account_needs_the_account(daemon):
    accounts = ['incominguser = %s %s' % account for account in sorted(SECRETS.items())]
    serve(daemon, 'account:backup 0', more=accounts)
    daemon.start()
    assert status(daemon, ONE, 'backup') == 0
    assert status(daemon, ONE, 'erp') == NOT_AUTHORIZED
    assert 'with the account erp' in daemon.log
    assert discovered(daemon, ONE) == [TARGET]  # it may have the account


def test_a_copy_to_an_unmapped_or_read_only_lun_of_another_target_fails(daemon, ready):
    serve(daemon, '%s 0 1:read-only' % TWO, 'ALL 0 1 2', target=OTHER)
    serve(daemon)
    daemon.start()
    owner = ready(daemon, target=OTHER, name=ONE)
    for lun in (1, 2):
        owner.clear_attentions(lun)
    owner.write(0, pattern(1, 4096), lun=2)
    names = {lun: naa(owner, lun) for lun in (0, 1, 2)}
    thief = ready(daemon, name=TWO)
    for lun in (1, 2):
        cdb, body = extended_copy(naa(thief, 0), names[lun])
        assert thief.run(cdb, out=body).status == 2
        cdb, body = extended_copy(names[lun], naa(thief, 0))
        assert thief.run(cdb, out=body).status == 2
    cdb, body = extended_copy(names[0], naa(thief, 0))
    assert thief.run(cdb, out=body).status == 0


def test_a_copy_does_not_reach_an_unmapped_lun_of_its_own_target(daemon, ready):
    serve(daemon, '%s 0 1' % ONE, '%s 0' % TWO)
    daemon.start()
    one, two = ready(daemon, name=ONE), ready(daemon, name=TWO)
    one.clear_attentions(1)
    cdb, body = extended_copy(naa(one, 1), naa(one, 0))
    assert two.run(cdb, out=body).status == 2 and one.run(cdb, out=body).status == 0


def test_a_reset_of_the_target_ends_only_sessions_with_a_common_lun(daemon, ready):
    serve(daemon, '%s 0' % ONE, '%s 0=1' % TWO, '%s 1 2' % THREE)
    daemon.start()
    one, two, three = (
        ready(daemon, name=name, lun=lun) for name, lun in ((ONE, 0), (TWO, 0), (THREE, 1))
    )
    assert two.manage(6) == 0  # TARGET WARM RESET
    assert (6, 0x29, 2) in three.clear_attentions(1) and three.clear_attentions(2) is not None
    assert one.clear_attentions() == []
    two.submit(bytes(6))
    two.manage(7)  # TARGET COLD RESET
    three.wait_closed()
    assert one.clear_attentions() == []


# -- reload ----------------------------------------------------------------------------------------


def test_a_reload_takes_gives_and_renumbers_luns_of_a_session(daemon, ready):
    serve(daemon, '%s 0 1 2' % ONE)
    daemon.start()
    one = ready(daemon, name=ONE)
    one.clear_attentions(1)
    one.clear_attentions(2)
    one.write(0, pattern(1, 4096), lun=1)
    third = naa(one, 2)
    assert 'lun-map from' in remap(daemon, '%s 0 1=2 4=3' % ONE)
    assert LUNS_CHANGED in one.clear_attentions()
    assert one.report_luns() == [0, 1, 4]
    assert read(one, 2).key == NO_SUCH_LUN
    one.clear_attentions(1)
    one.clear_attentions(4)
    assert naa(one, 1) == third
    one.write(0, pattern(2, 4096), lun=4)
    remap(daemon, '%s 0 1' % ONE)
    one.clear_attentions()
    one.clear_attentions(1)
    assert one.report_luns() == [0, 1]
    assert one.read(0, 8, lun=1) == pattern(1, 4096)


def test_a_reload_makes_a_lun_read_only_and_writable_again(daemon, ready):
    serve(daemon, '%s 0' % ONE, '%s 0' % TWO)
    daemon.start()
    one, two = ready(daemon, name=ONE), ready(daemon, name=TWO)
    remap(daemon, '%s 0:read-only' % ONE, '%s 0' % TWO)
    assert MODE_CHANGED in one.clear_attentions()
    assert is_write_protected(one) and write(one, 0).key == PROTECTED and read(one, 0).status == 0
    assert two.clear_attentions() == []
    two.write(0, pattern(1, 4096))
    remap(daemon, '%s 0' % ONE, '%s 0' % TWO)
    assert MODE_CHANGED in one.clear_attentions()
    assert not is_write_protected(one)
    one.write(0, pattern(2, 4096))


def test_a_lun_moves_from_one_initiator_to_another(daemon, ready):
    serve(daemon, '%s 0' % ONE, '%s 1' % TWO, more=['sharing = exclusive'])
    daemon.start()
    one, two = ready(daemon, name=ONE), ready(daemon, name=TWO, lun=1)
    one.write(0, pattern(1, 4096))
    remap(daemon, '%s 2' % ONE, '%s 0 1' % TWO)
    assert LUNS_CHANGED in two.clear_attentions(1)
    two.clear_attentions()
    assert two.report_luns() == [0, 1] and two.read(0, 8) == pattern(1, 4096)
    two.write(0, pattern(2, 4096))
    assert one.report_luns() == [2] and write(one, 0).key == NO_SUCH_LUN


def test_a_session_for_which_no_map_is_left_is_ended(daemon, ready):
    serve(daemon, 'ALL 0')
    daemon.start()
    one, two = ready(daemon, name=ONE), ready(daemon, name=TWO)
    remap(daemon, '%s 0' % ONE)
    two.wait_closed()
    assert 'session' in daemon.log and 'shows no LUN to %s' % TWO in daemon.log
    one.write(0, pattern(1, 4096))


def test_maps_come_to_and_leave_a_target_with_sessions(daemon, ready):
    serve(daemon)
    daemon.start()
    one = ready(daemon, name=ONE)
    remap(daemon, 'ALL 3=0')
    assert one.report_luns() == [3]
    one.clear_attentions(3)
    remap(daemon)
    one.clear_attentions()
    assert one.report_luns() == [0, 1, 2, 3]


def test_a_lun_is_added_and_removed_beside_the_map(daemon, ready):
    serve(daemon, '%s 0 5=1' % ONE, 'ALL 0', count=2)
    daemon.start()
    one, two = ready(daemon, name=ONE), ready(daemon, name=TWO)
    luns = daemon.text.targets[TARGET][1]
    luns[2] = ['backing-store = %s' % daemon.image('new.img', 8 << 20)]
    remap(daemon, '%s 0 5=1 6=2' % ONE, 'ALL 0')
    assert LUNS_CHANGED in one.clear_attentions()
    assert one.report_luns() == [0, 5, 6] and two.report_luns() == [0]
    del luns[1]
    remap(daemon, '%s 0 5=2' % ONE, 'ALL 0')
    one.clear_attentions(5)
    assert one.report_luns() == [0, 5]
    one.write(0, pattern(1, 4096), lun=5)
    assert two.clear_attentions() == []


def test_a_reservation_goes_with_the_lun_and_a_registration_stays(daemon, ready):
    serve(daemon, 'ALL 0 1')
    daemon.start()
    one, two = ready(daemon, name=ONE), ready(daemon, name=TWO)
    for session in (one, two):
        session.clear_attentions(1)
    register = struct.pack('>BBB4xH', 0x5F, 0, 0, 24) + bytes(1)
    assert one.run(register, 1, out=struct.pack('>QQ8x', 0, 0xAB)).status == 0
    assert one.run(bytes((0x16, 0, 0, 0, 0, 0))).status == 0  # RESERVE(6)
    assert write(two, 0).status == 0x18
    remap(daemon, '%s none' % ONE, 'ALL 0 1')
    eventually(lambda: write(two, 0).status == 0, 10, 'the end of the reservation')
    keys = two.run(struct.pack('>BB5xHB', 0x5E, 0, 64, 0), 1, read=64).good().data
    assert keys[7] == 8 and keys[15] == 0xAB


def test_an_upgrade_keeps_the_numbers_and_the_rights(daemon, ready):
    serve(daemon, '%s 3=0 4=1:read-only' % ONE)
    daemon.start()
    one = ready(daemon, name=ONE, lun=3)
    one.clear_attentions(4)
    daemon.control('upgrade')
    assert one.report_luns() == [3, 4] and write(one, 4).key == PROTECTED
    one.write(0, pattern(1, 4096), lun=3)
    del daemon.text.targets[TARGET][1][0]
    remap(daemon, '%s 4=1' % ONE)
    assert read(one, 3).key == NO_SUCH_LUN
    one.clear_attentions(4)
    one.write(0, pattern(1, 4096), lun=4)


def test_writes_in_flight_end_before_another_initiator_gets_the_lun(daemon, ready):
    """The first initiator writes all the time; nothing that it has written arrives after the second one
    has written."""
    serve(daemon, '%s 0' % ONE, '%s 1' % TWO, more=['sharing = exclusive'])
    daemon.start()
    one, two = ready(daemon, name=ONE), ready(daemon, name=TWO, lun=1)
    commands = [
        one.submit(struct.pack('>BBQIBB', 0x8A, 0, n, 1, 0, 0), 0, out=pattern(n, 512))
        for n in range(16)
    ]
    remap(daemon, '%s 2' % ONE, '%s 0 1' % TWO)
    results = [one.wait(command) for command in commands]
    assert all(result.status == 0 or result.key == NO_SUCH_LUN for result in results)
    two.clear_attentions()
    two.write(0, pattern(99, 8192))
    assert two.read(0, 16) == pattern(99, 8192)


# -- the configuration -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    'maps, words',
    [
        (['ALL 0 9'], 'the map for ALL has lun 9, which the target does not have'),
        (['ALL 0=1', 'ALL 0=2'], 'number 0 twice'),
        (['ALL 1 2=1'], 'lun 1 twice'),
        (['ALL all', 'ALL 1'], 'two maps for ALL'),
        (['account:nobody 0'], 'an account that the target does not have'),
        (['ALL 0:writable'], 'does not end with :read-only'),
        (['ALL'], 'an initiator and the LUNs'),
        (['iqn.x all 1'], 'not combined'),
    ],
)
def test_a_map_that_contradicts_itself_is_refused(daemon, maps, words):
    serve(daemon)
    daemon.start()
    settings = daemon.text.targets[TARGET][0]
    settings += lines(maps)
    daemon.write_config()
    code, output = daemon.targetdctl('reload')
    assert code and words in output
    assert status(daemon, ONE) == 0


def test_the_check_says_who_sees_what_and_warns_of_a_lun_that_nobody_sees(daemon):
    serve(
        daemon,
        '%s 0 5=1:read-only' % ONE,
        'account:erp all',
        more=['incominguser = erp ' + SECRETS['erp']],
    )
    code, output = daemon.check()
    assert code == 0
    assert 'shows %s: lun 0, lun 1 as 5 read-only' % ONE in output, output
    assert 'shows the account erp: all LUNs' in output
    settings = daemon.text.targets[TARGET][0]
    settings.remove('lun-map = account:erp all')
    code, output = daemon.check()
    assert 'lun 2 of %s is shown to no initiator' % TARGET in output


def test_targetdctl_changes_maps(daemon, ready):
    serve(daemon, '%s 0' % ONE)
    daemon.start()
    one = ready(daemon, name=ONE)
    assert 'lun-map' in daemon.control('map', 'set', TARGET, ONE, '0,3=1:read-only')
    assert one.report_luns() == [0, 3]
    daemon.control('map', 'set', TARGET, TWO, 'all')
    two = ready(daemon, name=TWO)
    assert two.report_luns() == [0, 1, 2, 3]
    code, output = daemon.targetdctl('lun', 'remove', TARGET + '/1')
    assert code and 'the map for %s has lun 1' % ONE in output
    daemon.control('map', 'remove', TARGET, TWO)
    two.wait_closed()
    code, output = daemon.targetdctl('map', 'remove', TARGET, ONE)
    assert code and 'the last lun-map' in output
    daemon.control('map', 'remove', TARGET, ONE, '--all-luns')
    assert one.report_luns() == [0, 1, 2, 3]


def test_targetdctl_moves_a_lun_between_two_maps_that_are_written_by_hand(daemon, ready):
    serve(daemon, '%s 0 1' % ONE, '%s 0=2' % TWO, more=['sharing = exclusive'])
    daemon.start()
    one, two = ready(daemon, name=ONE), ready(daemon, name=TWO)
    one.clear_attentions(1)
    one.write(0, pattern(1, 4096), lun=1)
    daemon.control('map', 'set', TARGET, ONE, '0')
    assert LUNS_CHANGED in one.clear_attentions()
    assert one.report_luns() == [0] and write(one, 1).key == NO_SUCH_LUN
    daemon.control('map', 'set', TARGET, TWO, '0=2,9=1')
    assert LUNS_CHANGED in two.clear_attentions()
    assert two.report_luns() == [0, 9]
    two.clear_attentions(9)
    assert two.read(0, 8, lun=9) == pattern(1, 4096)
    two.write(0, pattern(2, 4096), lun=9)
