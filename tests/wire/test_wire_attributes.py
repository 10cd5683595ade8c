"""Tests of task attributes and task management with slow tasks (SAM-5; RFC 7143 11.5; RFC 7144
6)."""

import pytest
from daemon import watched
from initiator import ABORT_TASK, ABORT_TASK_SET, RESERVATION_CONFLICT, pattern
from pdus import (
    FINAL,
    IMMEDIATE,
    NO_TAG,
    TASK_MANAGEMENT,
    TASK_MANAGEMENT_RESPONSE,
    pack_bhs,
    read_10,
    write_10,
)

pytestmark = pytest.mark.wire

SLOW = 'iqn.2026-11.test.targetd:slow'
SIMPLE, ORDERED, HEAD_OF_QUEUE, ACA = 1, 2, 3, 4
QUERY_TASK, QUERY_TASK_SET, I_T_NEXUS_RESET, QUERY_ASYNCHRONOUS_EVENT = 9, 10, 11, 12
READY, RESERVE_6 = bytes(6), b'\x16' + bytes(5)


@pytest.fixture(scope='module')
def slow(tmp_path_factory):
    """A target whose reads take half a second."""
    with watched(tmp_path_factory.mktemp('attributes')) as daemon:
        rows = ['backing-store = %s' % daemon.image(), 'filter = delay read=500ms']
        daemon.target(SLOW, ['initiator-address = ALL', 'InitialR2T = No'], {0: rows})
        yield daemon.start()


@pytest.fixture
def session(slow, ready):
    return ready(slow, SLOW)


def order_of_ends(session, commands):
    """Returns the commands in the order of their completion."""
    ended = []
    while len(ended) < len(commands):
        session.step()
        ended += [
            command for command in commands if command.result is not None and command not in ended
        ]
    assert all(command.result.status == 0 for command in commands)
    return [commands.index(command) for command in ended]


@pytest.mark.clause('SAM-5 8.6')
def test_simple_commands_overtake(session):
    commands = [session.submit(read_10(0, 8), read=4096), session.submit(READY)]
    assert order_of_ends(session, commands) == [1, 0]


@pytest.mark.clause('SAM-5 8.6')
def test_an_ordered_command_waits_for_older_ones_and_holds_younger_ones(session):
    commands = [
        session.submit(read_10(0, 8), read=4096),
        session.submit(READY, attribute=ORDERED),
        session.submit(READY),
    ]
    assert order_of_ends(session, commands) == [0, 1, 2]


def test_a_running_ordered_command_holds_younger_ones(session):
    commands = [
        session.submit(read_10(0, 8), read=4096, attribute=ORDERED),
        session.submit(READY),
        session.submit(READY),
    ]
    assert order_of_ends(session, commands) == [0, 1, 2]


@pytest.mark.clause('SAM-5 8.6')
def test_ordered_commands_keep_their_order(session):
    commands = [
        session.submit(read_10(0, 8), read=4096, attribute=ORDERED),
        session.submit(write_10(64, 8), out=pattern(1, 4096), attribute=ORDERED),
        session.submit(read_10(64, 8), read=4096, attribute=ORDERED),
        session.submit(READY, attribute=ORDERED),
    ]
    assert order_of_ends(session, commands) == [0, 1, 2, 3]
    assert commands[2].result.data == pattern(1, 4096)


@pytest.mark.clause('SAM-5 8.6')
def test_head_of_queue_does_not_wait(session):
    commands = [
        session.submit(read_10(0, 8), read=4096),
        session.submit(READY, attribute=ORDERED),
        session.submit(READY),
        session.submit(READY, attribute=HEAD_OF_QUEUE),
    ]
    assert order_of_ends(session, commands) == [3, 0, 1, 2]


def test_simple_commands_wait_for_a_head_of_queue(session):
    commands = [
        session.submit(read_10(0, 8), read=4096, attribute=HEAD_OF_QUEUE),
        session.submit(READY),
    ]
    assert order_of_ends(session, commands) == [0, 1]


def test_data_of_a_waiting_write_is_kept(session):
    """InitialR2T=No: Data-Out comes while the command waits."""
    data = pattern(2, 32768)
    commands = [
        session.submit(read_10(0, 8), read=4096),
        session.submit(write_10(128, 64), out=data, attribute=ORDERED, immediate_limit=4096),
    ]
    assert order_of_ends(session, commands) == [0, 1]
    assert session.read(128, 64) == data


def test_simple_commands_overtake_again_after_the_ordered_ones(session):
    commands = [session.submit(read_10(0, 8), read=4096), session.submit(READY, attribute=ORDERED)]
    assert order_of_ends(session, commands) == [0, 1]
    commands = [session.submit(read_10(0, 8), read=4096), session.submit(READY)]
    assert order_of_ends(session, commands) == [1, 0]


def test_a_waiting_command_can_be_aborted(session):
    commands = [
        session.submit(read_10(0, 8), read=4096),
        session.submit(READY, attribute=ORDERED),
        session.submit(READY),
    ]
    assert session.manage(ABORT_TASK, task=commands[1]) == 0
    assert order_of_ends(session, [commands[0], commands[2]])
    assert commands[1].result is None


def test_waiting_commands_start_when_the_ordered_one_is_aborted(session):
    commands = [session.submit(read_10(0, 8), read=4096, attribute=ORDERED), session.submit(READY)]
    assert session.manage(ABORT_TASK, task=commands[0]) == 0
    session.wait(commands[1]).good()


def test_abort_task_set_also_aborts_waiting_commands(session):
    commands = [
        session.submit(read_10(0, 8), read=4096),
        session.submit(READY, attribute=ORDERED),
        session.submit(READY),
    ]
    assert session.manage(ABORT_TASK_SET) == 0
    session.run(READY).good()
    assert [command.result for command in commands] == [None] * 3


@pytest.mark.parametrize('attribute', [ACA, 5, 7])
def test_an_unsupported_task_attribute_is_an_invalid_message_error(session, attribute):
    result = session.run(READY, attribute=attribute)
    assert (result.status, result.key) == (2, (5, 0x49, 0))


# -- RFC 7144 --------------------------------------------------------------------------------------


@pytest.fixture
def level_2(slow, ready):
    session = ready(slow, SLOW, keys={'iSCSIProtocolLevel': '2'})
    assert session.value('iSCSIProtocolLevel') == '2'
    return session


def manage(session, function, lun=0, task=None):
    """(response, additional information)"""
    itt = session.next_tag()
    session.wire.send(
        pack_bhs(
            TASK_MANAGEMENT | IMMEDIATE,
            FINAL | function,
            lun,
            itt,
            task.itt if task else NO_TAG,
            session.cmd_sn,
            session.exp_stat_sn,
        )
    )
    bhs = session.until(TASK_MANAGEMENT_RESPONSE, itt).bhs
    return bhs[2], bytes(bhs[8:11])


def test_query_task(level_2):
    command = level_2.submit(read_10(0, 8), read=4096)
    assert manage(level_2, QUERY_TASK, task=command)[0] == 7
    assert manage(level_2, QUERY_TASK_SET)[0] == 7
    level_2.wait(command).good()
    assert manage(level_2, QUERY_TASK, task=command)[0] == 0
    assert manage(level_2, QUERY_TASK_SET)[0] == 0


def test_query_task_of_a_missing_unit(level_2):
    assert manage(level_2, QUERY_TASK_SET, lun=9)[0] == 2


def test_query_asynchronous_event_reports_the_unit_attention_and_keeps_it(slow, sessions):
    session = sessions(slow, SLOW, keys={'iSCSIProtocolLevel': '2'})
    assert manage(session, QUERY_ASYNCHRONOUS_EVENT) == (7, b'\x16\x29\x00')
    assert session.run(READY).key == (6, 0x29, 0)
    assert manage(session, QUERY_ASYNCHRONOUS_EVENT) == (0, bytes(3))


def test_i_t_nexus_reset(level_2):
    command = level_2.submit(read_10(0, 8), read=4096)
    assert manage(level_2, I_T_NEXUS_RESET)[0] == 0
    assert level_2.run(READY).key == (6, 0x29, 7)
    level_2.run(READY).good()
    assert command.result is None


@pytest.mark.clause('RFC 7144 6.1')
def test_i_t_nexus_reset_releases_the_reservation_of_the_nexus(slow, level_2, ready):
    other = ready(slow, SLOW, name='iqn.2026-11.test.targetd:other')
    level_2.run(RESERVE_6).good()
    assert other.run(read_10(0, 1), read=512).status == RESERVATION_CONFLICT
    assert manage(level_2, I_T_NEXUS_RESET)[0] == 0
    other.run(read_10(0, 1), read=512).good()
    assert level_2.run(READY).key == (6, 0x29, 7)
    other.run(RESERVE_6).good()
    assert manage(level_2, I_T_NEXUS_RESET)[0] == 0  # what is another's stays
    assert level_2.run(read_10(0, 1), read=512).key == (6, 0x29, 7)
    assert level_2.run(read_10(0, 1), read=512).status == RESERVATION_CONFLICT
    other.run(b'\x17' + bytes(5)).good()


def test_queries_are_not_supported_at_protocol_level_1(session):
    assert manage(session, QUERY_TASK_SET)[0] == 5
