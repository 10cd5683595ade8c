"""Tests of EXTENDED COPY between units of two targets of one server with the real daemon: which
initiators may use it, and what aborts it."""

import struct

import pytest
from copies import extended_copy
from daemon import TARGET, eventually
from initiator import CHECK_CONDITION, GOOD, LOGICAL_UNIT_RESET, RESERVATION_CONFLICT, Chap, pattern

TEST_UNIT_READY = bytes(6)
OTHER = 'iqn.2026-11.test.targetd:other'
ONE, TWO = 'iqn.2026-11.test:one', 'iqn.2026-11.test:two'
ISID_TWO = b'\x80\0\0\0\0\2'
BLOCKS = 64
NOT_REACHABLE = (0x0A, 0x0D, 0x02)
AN_END_FAILED = (0x0A, 0x0D, 0x01)
REVOKED = (5, 0x23, 0x06)
ALL = ('initiator-address = ALL',)
NAA = '60014050000000000000000000000003'  # of the unit of OTHER


def serve(daemon, other=ALL, mine=ALL, rows=(), size=8 << 20):
    daemon.target(TARGET, mine, size=size)
    image = 'backing-store = %s' % daemon.image('other.img', size)
    daemon.target(OTHER, other, luns={3: [image, 'naa = %s' % NAA] + list(rows)})
    return daemon.start()


def naa_of(session, lun):
    page = session.inquiry(lun, 0x83)
    assert page[4:8] == b'\x01\x03\x00\x10'
    return page[8:24]


def copy(session, *more, **words):
    cdb, body = extended_copy(*more, **words)
    return session.run(cdb, out=body)


def code(result):
    assert result.status == CHECK_CONDITION, result
    return result.sense[2] & 15, result.sense[12], result.sense[13]


@pytest.fixture
def both(sessions):
    """both(daemon, **login) -> (a session of ONE at TARGET, one of TWO at OTHER), and the names of
    their disks."""

    def connect(daemon, **login):
        one = sessions(daemon, name=ONE, **login)
        two = sessions(daemon, OTHER, name=TWO, isid=ISID_TWO)
        one.clear_attentions(0)
        two.clear_attentions(3)
        return one, two, naa_of(one, 0), naa_of(two, 3)

    return connect


def test_data_is_copied_to_a_unit_of_another_target_and_back(daemon, both):
    one, two, mine, others = both(serve(daemon))
    data = pattern(1, BLOCKS * 512)
    one.write(0, data)
    assert copy(one, mine, others).status == GOOD
    assert two.read(100, BLOCKS, lun=3) == data
    changed = pattern(2, BLOCKS * 512)
    two.write(500, changed, lun=3)
    assert copy(one, others, mine, lba=500, to=1000).status == GOOD
    assert one.read(1000, BLOCKS) == changed
    assert copy(one, others, others, lba=500, to=2000).status == GOOD
    assert two.read(2000, BLOCKS, lun=3) == changed
    for _ in range(20):  # nothing is left behind that a further one would stumble over
        assert copy(one, mine, others).status == GOOD


@pytest.mark.parametrize(
    'other',
    [
        ('initiator-name = %s' % TWO,),
        ('initiator-address = 192.0.2.0/24', 'initiator-name = %s' % TWO),
        ('initiator-address = ALL', 'incominguser = erp secret-of-16-chr'),
    ],
)
def test_a_unit_of_a_target_that_refuses_this_initiator_is_not_accessible(daemon, sessions, other):
    serve(daemon, other)
    one = sessions(daemon, name=ONE)
    one.clear_attentions(0)
    naa = bytes.fromhex(NAA)
    assert code(copy(one, naa_of(one, 0), naa)) == NOT_REACHABLE
    assert code(copy(one, naa, naa_of(one, 0))) == NOT_REACHABLE


@pytest.mark.parametrize(
    'mine, reached',
    [
        ('erp secret-of-16-chr', True),
        ('erp another-of-16-ch', False),
        ('crm secret-of-16-chr', False),
    ],
)
def test_a_target_with_chap_is_accessible_with_the_authenticated_account(
    daemon, sessions, mine, reached
):
    serve(
        daemon, ALL + ('incominguser = erp secret-of-16-chr',), ALL + ('incominguser = %s' % mine,)
    )
    one = sessions(daemon, name=ONE, chap=Chap(*mine.split()))
    one.clear_attentions(0)
    result = copy(one, naa_of(one, 0), bytes.fromhex(NAA))
    assert result.status == GOOD if reached else code(result) == NOT_REACHABLE


def test_a_unit_with_third_party_copies_disabled_is_not_accessible(daemon, both):
    one, _, mine, others = both(serve(daemon, rows=['third-party-copy = no']))
    assert code(copy(one, others, mine)) == NOT_REACHABLE


def test_a_read_only_unit_can_only_be_the_source(daemon, both):
    one, two, mine, others = both(serve(daemon, rows=['readonly = yes']))
    assert copy(one, others, mine).status == GOOD
    assert code(copy(one, mine, others)) == AN_END_FAILED


def test_a_reservation_of_the_other_targets_unit_is_honoured(daemon, both):
    one, two, mine, others = both(serve(daemon))
    register = struct.pack('>BB3xIx', 0x5F, 0x00, 24)
    assert two.run(register, 3, out=struct.pack('>QQ8x', 0, 0xA1)).status == GOOD
    reserve = struct.pack('>BBB2xIx', 0x5F, 0x01, 0x01, 24)  # Write Exclusive
    assert two.run(reserve, 3, out=struct.pack('>QQ8x', 0xA1, 0)).status == GOOD
    assert copy(one, others, mine).status == GOOD
    result = copy(one, mine, others)
    assert code(result) == AN_END_FAILED and RESERVATION_CONFLICT in result.sense[18:]
    assert (
        two.run(
            struct.pack('>BBB2xIx', 0x5F, 0x02, 0x01, 24), 3, out=struct.pack('>QQ8x', 0xA1, 0)
        ).status
        == GOOD
    )
    assert copy(one, mine, others).status == GOOD


def test_a_copy_revokes_the_tokens_of_what_it_overwrites(daemon, both):
    one, two, mine, others = both(serve(daemon))
    ranges = struct.pack('>QI4x', 96, 8)
    body = struct.pack('>HBxII2xH', 14 + len(ranges), 0, 0, 0, len(ranges)) + ranges
    assert (
        two.run(struct.pack('>BB4xIIBB', 0x83, 0x10, 1, len(body), 0, 0), 3, out=body).status
        == GOOD
    )
    reported = two.run(struct.pack('>BBI4xIBB', 0x84, 0x07, 1, 1024, 0, 0), 3, read=1024).data
    token = reported[32 + reported[13] + 6 :][:512]

    def use():
        ranges = struct.pack('>QI4x', 4000, 8)
        data = (
            struct.pack('>HB5xQ', 534 + len(ranges), 0, 0)
            + token
            + struct.pack('>6xH', len(ranges))
            + ranges
        )
        return two.run(struct.pack('>BB4xIIBB', 0x83, 0x11, 2, len(data), 0, 0), 3, out=data)

    assert copy(one, mine, others, to=104).status == GOOD and use().status == GOOD
    assert copy(one, mine, others).status == GOOD
    assert code(use()) == REVOKED


def test_a_standby_path_is_not_used_for_a_copy(daemon, both):
    one, two, mine, others = both(serve(daemon, ALL + ('alua = both',)))
    states = struct.pack('>4xBxH', 0x02, 1)
    assert two.run(struct.pack('>BB4xI2x', 0xA4, 0x0A, len(states)), 3, out=states).status == GOOD
    assert code(copy(one, mine, others)) == AN_END_FAILED
    assert code(copy(one, others, mine)) == AN_END_FAILED


@pytest.mark.parametrize('name', [TARGET, OTHER])
def test_a_reset_at_the_destination_ends_the_copy_before_it_is_answered(daemon, sessions, name):
    """The destination is a unit of another target, or another unit of the same target."""
    lun = 3
    slow = [
        'backing-store = %s' % daemon.image('slow.img', 256 << 20),
        'filter = delay write=100ms',
    ]
    fast = ['backing-store = %s' % daemon.image('fast.img', 256 << 20)]
    daemon.target(TARGET, luns={0: fast, lun: slow} if name == TARGET else {0: fast})
    if name == OTHER:
        daemon.target(OTHER, luns={lun: slow})
    daemon.start()
    one, two = sessions(daemon, name=ONE), sessions(daemon, name, name=TWO, isid=ISID_TWO)
    one.clear_attentions(0)
    two.clear_attentions(lun)
    cdb, body = extended_copy(naa_of(one, 0), naa_of(two, lun), blocks=65535, to=0)
    cdb = cdb[:10] + struct.pack('>I', len(body) + 3 * 28) + cdb[14:]
    body = body[:8] + struct.pack('>I', 4 * 28) + body[12:] + body[-28:] * 3  # 128 MiB: seconds
    one.write(0, pattern(1, 65536))
    running = one.submit(cdb, out=body)
    eventually(lambda: two.read(0, 8, lun=lun) == pattern(1, 4096))
    assert two.manage(LOGICAL_UNIT_RESET, lun=lun) == 0
    # a step of the copy that takes longer than the answer may wait keeps the unit BUSY until it ends
    eventually(lambda: two.run(TEST_UNIT_READY, lun=lun).status == GOOD)
    two.write(0, bytes(4096), lun=lun)
    result = one.wait(running)
    assert code(result)[0] == 0x0A
    assert two.read(0, 8, lun=lun) == bytes(4096)


def test_a_removed_lun_is_no_longer_accessible(daemon, both):
    serve(daemon)
    daemon.text.targets[OTHER][1][4] = ['backing-store = %s' % daemon.image('more.img', 1 << 20)]
    daemon.reload('reload: add')
    one, two, mine, others = both(daemon)
    assert copy(one, mine, others).status == GOOD
    del daemon.text.targets[OTHER][1][3]
    daemon.reload('reload: remove')
    eventually(lambda: copy(one, mine, others).status == CHECK_CONDITION)
    assert code(copy(one, mine, others)) == NOT_REACHABLE
