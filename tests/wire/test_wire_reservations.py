"""Tests of reservations and other shared state, with two initiators served by two worker
processes."""

import glob
import json
import os
import struct

import pytest
from daemon import eventually
from initiator import CHECK_CONDITION, GOOD, LOGICAL_UNIT_RESET, RESERVATION_CONFLICT, pattern
from pdus import R2T

pytestmark = pytest.mark.wire

ONE, TWO, THREE = ('iqn.2026-11.test:%s' % word for word in ('one', 'two', 'three'))
REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT, REGISTER_AND_IGNORE = range(7)
WRITE_EXCLUSIVE, EXCLUSIVE_ACCESS, WE_REGISTRANTS, EA_REGISTRANTS, WE_ALL, EA_ALL = 1, 3, 5, 6, 7, 8
KEY_ONE, KEY_TWO = 0x1111222233334444, 0xAAAABBBBCCCCDDDD


def reserve_out(session, action, kind=0, key=0, action_key=0, flags=0):
    """Sends PERSISTENT RESERVE OUT (SPC-4 6.16) and returns the Result."""
    parameters = struct.pack('>QQ4xBxH', key, action_key, flags, 0)
    return session.run(
        struct.pack('>BBB2xIB', 0x5F, action, kind, len(parameters), 0), out=parameters
    )


def reserve_in(session, action):
    """Sends PERSISTENT RESERVE IN (SPC-4 6.15) and returns (generation, remaining bytes)."""
    data = session.run(struct.pack('>BB5xHB', 0x5E, action, 1024, 0), read=1024).good().data
    generation, length = struct.unpack_from('>II', data)
    assert length == len(data) - 8
    return generation, data[8:]


def keys_of(session):
    data = reserve_in(session, 0)[1]
    return sorted(struct.unpack('>%dQ' % (len(data) // 8), data))


def holder(session):
    """(key, type) of the reservation, or None."""
    data = reserve_in(session, 1)[1]
    if not data:
        return None
    return struct.unpack_from('>Q', data)[0], data[13] & 0xF


def write(session, blocks=1, lba=0):
    return session.run(
        struct.pack('>BBIBHB', 0x2A, 0, lba, 0, blocks, 0), out=pattern(1, blocks * 512)
    ).status


def read(session):
    return session.run(struct.pack('>BBIBHB', 0x28, 0, 0, 0, 1, 0), read=512).status


@pytest.fixture
def two(served, ready):
    """(daemon, one, two): two initiators, each served by a separate worker."""
    one, other = ready(served, name=ONE), ready(served, name=TWO)
    assert served.worker_of(one).pid != served.worker_of(other).pid
    return served, one, other


def register(session, key):
    assert reserve_out(session, REGISTER_AND_IGNORE, action_key=key).status == GOOD


@pytest.mark.clause('SPC-4 6.15')
def test_registered_keys_are_visible_to_all_initiators(two):
    _, one, other = two
    register(one, KEY_ONE)
    generation = reserve_in(other, 0)[0]
    register(other, KEY_TWO)
    assert keys_of(one) == keys_of(other) == [KEY_ONE, KEY_TWO]
    assert reserve_in(one, 0)[0] == generation + 1
    assert reserve_out(one, REGISTER, key=0xBAD, action_key=1).status == RESERVATION_CONFLICT
    assert reserve_out(one, REGISTER, key=KEY_ONE, action_key=0).status == GOOD
    assert keys_of(other) == [KEY_TWO]


@pytest.mark.parametrize(
    'kind, reads, writes, reads_registered, writes_registered',
    [
        (WRITE_EXCLUSIVE, GOOD, RESERVATION_CONFLICT, GOOD, RESERVATION_CONFLICT),
        (
            EXCLUSIVE_ACCESS,
            RESERVATION_CONFLICT,
            RESERVATION_CONFLICT,
            RESERVATION_CONFLICT,
            RESERVATION_CONFLICT,
        ),
        (WE_REGISTRANTS, GOOD, RESERVATION_CONFLICT, GOOD, GOOD),
        (EA_REGISTRANTS, RESERVATION_CONFLICT, RESERVATION_CONFLICT, GOOD, GOOD),
        (WE_ALL, GOOD, RESERVATION_CONFLICT, GOOD, GOOD),
        (EA_ALL, RESERVATION_CONFLICT, RESERVATION_CONFLICT, GOOD, GOOD),
    ],
)
@pytest.mark.clause('SPC-4 6.16')
def test_each_reservation_type_allows_the_commands_of_the_standard(
    two, kind, reads, writes, reads_registered, writes_registered
):
    """SPC-4 table 64 and SBC-3 table 13 for READ and WRITE, from a nexus that is not registered,
    then from one that is."""
    _, one, other = two
    register(one, KEY_ONE)
    assert reserve_out(one, RESERVE, kind, KEY_ONE).status == GOOD
    assert holder(other) == (KEY_ONE if kind < WE_ALL else 0, kind)
    assert (read(other), write(other)) == (reads, writes)
    assert (read(one), write(one)) == (GOOD, GOOD)
    register(other, KEY_TWO)
    assert (read(other), write(other)) == (reads_registered, writes_registered)
    assert reserve_out(other, RESERVE, WRITE_EXCLUSIVE, KEY_TWO).status == RESERVATION_CONFLICT
    assert reserve_out(one, RELEASE, kind, KEY_ONE).status == GOOD
    assert holder(one) is None
    if kind not in (WRITE_EXCLUSIVE, EXCLUSIVE_ACCESS):
        assert other.run(bytes(6)).key == (6, 0x2A, 4)  # reservations released
    assert (read(other), write(other)) == (GOOD, GOOD)


def test_a_conflicting_write_gets_no_r2t_and_changes_nothing(two, ready):
    served, one, _ = two
    one.write(0, pattern(5, 65536))
    register(one, KEY_ONE)
    assert reserve_out(one, RESERVE, WRITE_EXCLUSIVE, KEY_ONE).status == GOOD
    third = ready(served, name=THREE, keys={'ImmediateData': 'No'})
    seen, original = [], third._r2t
    third._r2t = lambda pdu: (seen.append(pdu), original(pdu))
    assert write(third, 128) == RESERVATION_CONFLICT
    assert seen == []
    assert one.read(0, 128) == pattern(5, 65536)


@pytest.mark.clause('SPC-4 6.16')
def test_preempt(two):
    _, one, other = two
    register(one, KEY_ONE)
    register(other, KEY_TWO)
    assert reserve_out(one, RESERVE, WE_REGISTRANTS, KEY_ONE).status == GOOD
    assert (
        reserve_out(other, PREEMPT, WE_REGISTRANTS, KEY_TWO, 0xDEAD).status == RESERVATION_CONFLICT
    )
    assert reserve_out(other, PREEMPT, WE_REGISTRANTS, KEY_TWO, KEY_ONE).status == GOOD
    assert keys_of(other) == [KEY_TWO] and holder(other) == (KEY_TWO, WE_REGISTRANTS)
    assert one.run(bytes(6)).key == (6, 0x2A, 5)  # registrations preempted
    assert write(one) == RESERVATION_CONFLICT


@pytest.mark.clause('SPC-4 6.16')
def test_preempt_and_abort_ends_a_write_that_waits_for_its_data(two, ready):
    """A write of the other initiator whose data is in transit must not reach the medium after GOOD
    status."""
    served, one, _ = two
    victim = ready(served, name=THREE, keys={'ImmediateData': 'No'})
    one.write(0, pattern(1, 8192))
    register(one, KEY_ONE)
    register(victim, KEY_TWO)
    assert reserve_out(victim, RESERVE, WE_REGISTRANTS, KEY_TWO).status == GOOD
    victim.hold_r2t = True
    command = victim.submit(struct.pack('>BBIBHB', 0x2A, 0, 0, 0, 16, 0), out=pattern(66, 8192))
    victim.until(R2T)
    assert reserve_out(one, PREEMPT_AND_ABORT, WE_REGISTRANTS, KEY_ONE, KEY_TWO).status == GOOD
    victim.hold_r2t = False
    victim.answer_r2t(command)  # too late
    victim.ping(immediate=True)
    assert one.read(0, 16) == pattern(1, 8192)
    victim.commands.clear()
    victim.clear_attentions()
    assert write(victim) == RESERVATION_CONFLICT


@pytest.mark.clause('SPC-4 6.16')
def test_clear(two):
    _, one, other = two
    register(one, KEY_ONE)
    register(other, KEY_TWO)
    assert reserve_out(one, RESERVE, EXCLUSIVE_ACCESS, KEY_ONE).status == GOOD
    assert reserve_out(other, CLEAR, key=KEY_TWO).status == GOOD
    assert keys_of(other) == [] and holder(other) is None
    assert one.run(bytes(6)).key == (6, 0x2A, 3)  # reservations preempted
    assert write(one) == GOOD


def test_registrations_are_kept_after_the_session(two, ready):
    served, one, other = two
    register(one, KEY_ONE)
    assert reserve_out(one, RESERVE, WRITE_EXCLUSIVE, KEY_ONE).status == GOOD
    one.logout()
    assert write(other) == RESERVATION_CONFLICT
    again = ready(served, name=ONE)  # the same nexus: the same holder
    assert write(again) == GOOD
    assert holder(again) == (KEY_ONE, WRITE_EXCLUSIVE)


def kill_and_start(served):
    served.workers()
    served.process.kill()
    served.process.wait(5)
    eventually(lambda: not served.survivors(), 5)
    served.start()


@pytest.mark.parametrize('aptpl', [0, 1])
def test_registrations_are_kept_after_a_crash_of_the_server(two, ready, aptpl):
    """For a cluster, kill -9 of the master is not a power failure: the registrations are in effect
    after a restart."""
    served, one, _ = two
    assert reserve_out(one, REGISTER_AND_IGNORE, action_key=KEY_ONE, flags=aptpl).status == GOOD
    assert reserve_out(one, RESERVE, WRITE_EXCLUSIVE, KEY_ONE).status == GOOD
    kill_and_start(served)
    other = ready(served, name=TWO)
    assert keys_of(other) == [KEY_ONE] and holder(other) == (KEY_ONE, WRITE_EXCLUSIVE)
    assert write(other) == RESERVATION_CONFLICT
    assert write(ready(served, name=ONE)) == GOOD


@pytest.mark.parametrize('aptpl', [0, 1])
@pytest.mark.clause('SPC-4 6.16')
def test_only_aptpl_keeps_registrations_after_a_power_failure(two, ready, aptpl):
    """The saved boot id is changed while targetd is stopped; the registrations are kept only with
    APTPL."""
    served, one, other = two
    other.logout()
    assert reserve_out(one, REGISTER_AND_IGNORE, action_key=KEY_ONE, flags=aptpl).status == GOOD
    assert reserve_out(one, RESERVE, WRITE_EXCLUSIVE, KEY_ONE).status == GOOD
    one.logout()
    assert served.stop(20) == 0
    [path] = glob.glob(os.path.join(served.directory, 'state', 'units', '*.json'))
    with open(path) as file:
        document = json.load(file)
    document['state']['boot_id'] = 'another'
    with open(path, 'w') as file:
        json.dump(document, file)
    served.start()
    other = ready(served, name=TWO)
    assert keys_of(other) == ([KEY_ONE] if aptpl else [])
    assert write(other) == (RESERVATION_CONFLICT if aptpl else GOOD)


def test_windows_cluster_validation(two):
    """The steps of the storage validation of a Windows failover cluster."""
    _, one, other = two
    for session, key in ((one, KEY_ONE), (other, KEY_TWO)):
        assert reserve_out(session, REGISTER_AND_IGNORE, action_key=0).status == GOOD
        assert reserve_out(session, REGISTER_AND_IGNORE, action_key=key).status == GOOD
        assert holder(session) is None
    assert reserve_out(one, RESERVE, WE_REGISTRANTS, KEY_ONE).status == GOOD
    assert reserve_out(one, RESERVE, WE_REGISTRANTS, KEY_ONE).status == GOOD
    assert holder(one) == holder(other) == (KEY_ONE, WE_REGISTRANTS)
    assert reserve_out(other, RESERVE, WE_REGISTRANTS, KEY_TWO).status == RESERVATION_CONFLICT
    assert reserve_out(other, PREEMPT, WE_REGISTRANTS, KEY_TWO, KEY_ONE).status == GOOD
    one.clear_attentions()
    assert reserve_out(one, REGISTER_AND_IGNORE, action_key=KEY_ONE).status == GOOD
    assert reserve_out(other, RELEASE, WE_REGISTRANTS, KEY_TWO).status == GOOD
    one.clear_attentions()
    assert reserve_out(one, CLEAR, key=KEY_ONE).status == GOOD
    other.clear_attentions()
    assert keys_of(other) == []


# -- SPC-2 reservations ----------------------------------------------------------------------------


def simple(session, opcode):
    return session.run(bytes([opcode]) + bytes(5 if opcode < 0x20 else 9)).status


@pytest.mark.parametrize('reserve, release', [(0x16, 0x17), (0x56, 0x57)])
def test_reserve_and_release(two, reserve, release):
    _, one, other = two
    assert simple(one, reserve) == GOOD and simple(one, reserve) == GOOD
    assert simple(other, reserve) == RESERVATION_CONFLICT
    assert (read(other), write(other), read(one), write(one)) == (
        RESERVATION_CONFLICT,
        RESERVATION_CONFLICT,
        GOOD,
        GOOD,
    )
    assert len(other.inquiry()) >= 36 and other.report_luns() == [0]  # always allowed
    assert simple(other, release) == GOOD  # not the holder: nothing happens, and no complaint
    assert write(other) == RESERVATION_CONFLICT
    assert simple(one, release) == GOOD
    assert write(other) == GOOD


@pytest.mark.parametrize('end', ['logout', 'crash', 'reset', 'kill'])
def test_a_reserve_6_reservation_ends_with_its_session_or_a_reset(two, end):
    served, one, other = two
    assert simple(one, 0x16) == GOOD
    assert write(other) == RESERVATION_CONFLICT
    if end == 'logout':
        one.logout()
    elif end == 'crash':
        one.wire.reset()
    elif end == 'kill':
        served.worker_of(one).kill()
    else:
        assert other.manage(LOGICAL_UNIT_RESET) == 0
        other.clear_attentions()
    eventually(lambda: write(other) == GOOD, 5)


def test_reserve_and_persistent_reservations_exclude_each_other(two):
    _, one, other = two
    assert simple(one, 0x16) == GOOD
    assert (
        reserve_out(other, REGISTER_AND_IGNORE, action_key=KEY_TWO).status == RESERVATION_CONFLICT
    )
    assert simple(one, 0x17) == GOOD
    register(other, KEY_TWO)
    assert simple(one, 0x16) == RESERVATION_CONFLICT


# -- sessions --------------------------------------------------------------------------------------


def test_reinstatement_by_isid(served, ready):
    """A login with the same name, ISID and target reinstates the session (RFC 7143 6.3.5)."""
    old = ready(served, name=ONE)
    worker = served.worker_of(old)
    assert simple(old, 0x16) == GOOD
    new = ready(served, name=ONE)
    worker.wait(10)
    old.wait_closed()
    other = ready(served, name=TWO)
    assert write(other) == GOOD  # the SPC-2 reservation went with the old session
    assert write(new) == GOOD


def test_reinstatement_waits_until_the_old_session_is_quiet(served, ready):
    old = ready(served, name=ONE, keys={'ImmediateData': 'No'})
    old.write(0, pattern(1, 8192))
    old.hold_r2t = True
    command = old.submit(struct.pack('>BBIBHB', 0x2A, 0, 0, 0, 16, 0), out=pattern(2, 8192))
    pdu = old.until(R2T)
    new = ready(served, name=ONE)
    new.write(0, pattern(3, 8192))
    try:
        old.data_out(command, 0, 8192, pdu.ttt)
        old.wait_closed()
    except Exception:  # the old connection may be gone in any way it likes
        pass
    assert new.read(0, 16) == pattern(3, 8192)


def test_sessions_in_parallel_of_one_initiator(served, ready):
    """Other ISIDs are other nexuses (multipath, boot loaders): no session is ended."""
    sessions = [
        ready(served, name=ONE, isid=b'\x80\0\0\0\0' + bytes([number])) for number in range(4)
    ]
    assert len({session.tsih for session in sessions}) == 4
    for number, session in enumerate(sessions):
        session.write(number * 10, pattern(number, 512))
    for session in sessions:
        assert [session.read(number * 10, 1) for number in range(4)] == [
            pattern(number, 512) for number in range(4)
        ]


def test_start_stop_unit_stop_does_not_affect_other_initiators(two):
    """Windows stops its disks when it shuts down."""
    _, one, other = two
    assert one.run(bytes([0x1B, 0, 0, 0, 0, 0])).status == GOOD
    assert (write(other), write(one)) == (GOOD, GOOD)


def test_eject_and_load_affect_all_initiators(daemon, ready):
    daemon.target(luns={0: ['backing-store = %s' % daemon.image(), 'removable = yes']})
    daemon.start()
    one, other = ready(daemon, name=ONE), ready(daemon, name=TWO)
    one.write(0, pattern(6, 512))
    prevent, allow, eject, load = (
        bytes([0x1E, 0, 0, 0, 1, 0]),
        bytes([0x1E, 0, 0, 0, 0, 0]),
        bytes([0x1B, 0, 0, 0, 2, 0]),
        bytes([0x1B, 0, 0, 0, 3, 0]),
    )
    assert other.run(prevent).status == GOOD
    result = one.run(eject)
    # medium removal prevented
    assert result.status == CHECK_CONDITION and result.key == (5, 0x53, 2)
    assert other.run(allow).status == GOOD
    assert one.run(eject).status == GOOD
    other.run(bytes(6))  # whatever attention there is
    assert other.run(bytes(6)).key == (2, 0x3A, 0)  # medium not present
    assert one.run(load).status == GOOD
    one.clear_attentions()
    met = other.clear_attentions()
    assert (6, 0x28, 0) in met  # the medium may have changed
    assert other.read(0, 1) == pattern(6, 512)
