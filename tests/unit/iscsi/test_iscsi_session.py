"""Session: command numbering (RFC 7143 4.2.2.1)."""

from types import SimpleNamespace

import pytest

from targetd.iscsi.session import Session


def session(cmd_sn=10, window=8):
    values = {
        'InitialR2T': True,
        'ImmediateData': True,
        'FirstBurstLength': 1,
        'MaxBurstLength': 1,
        'MaxOutstandingR2T': 1,
    }
    return Session(
        SimpleNamespace(
            initiator_name='iqn.i',
            initiator_alias='',
            isid='0' * 12,
            tsih=1,
            target_name='iqn.t',
            portal_group_tag=1,
            account=None,
            session_type='Normal',
            values=values,
            cmd_sn=cmd_sn,
        ),
        window,
    )


@pytest.mark.clause('RFC 7143 4.2.2.1')
@pytest.mark.parametrize('start', [10, 0xFFFFFFFE])
def test_commands_in_order_are_accepted_and_numbers_wrap(start):
    one = session(start)
    for number in range(4):
        assert one.accept_command_number(start + number & 0xFFFFFFFF, None)
    assert one.exp_cmd_sn == start + 4 & 0xFFFFFFFF


@pytest.mark.clause('RFC 7143 4.2.2.1')
def test_early_commands_wait_for_their_turn():
    one = session()
    assert not one.accept_command_number(12, 'third') and not one.accept_command_number(
        11, 'second'
    )
    assert one.next_held() is None
    assert one.accept_command_number(10, 'first')
    assert one.next_held() == 'second' and one.accept_command_number(11, 'second')
    assert one.next_held() == 'third' and one.accept_command_number(12, 'third')
    assert one.next_held() is None and one.exp_cmd_sn == 13


@pytest.mark.clause('RFC 7143 4.2.2.1')
@pytest.mark.parametrize('number', [9, 18, 0x80000010])
def test_repetitions_and_commands_outside_the_window_are_dropped(number):
    one = session()
    assert not one.accept_command_number(number, 'x')
    assert not one.held and one.exp_cmd_sn == 10


def test_the_number_of_tasks_to_be_discarded_is_bounded():
    one = session()
    for itt in range(5000):
        one.discard_data_out(itt)
    assert 4999 in one.discarding and len(one.discarding) <= 1024


def test_transfer_tags_differ_and_are_never_the_reserved_one():
    one = session()
    one._ttt = 0x7FFFFFFE
    assert len({one.allot_ttt() for _ in range(5)}) == 5


def held_pdu(itt, opcode=1, lun=0):
    return (opcode, 0x80, 0, 0, lun, itt), None, None, 'connection'


@pytest.mark.clause('RFC 7143 11.6.1')
@pytest.mark.parametrize('start', [10, 0xFFFFFFFE])
def test_exp_cmd_sn_passes_the_commands_that_were_aborted_before_their_turn(start):
    one = session(start)
    number = [start + n & 0xFFFFFFFF for n in range(5)]
    one.accept_command_number(number[2], held_pdu(102))
    one.accept_command_number(number[3], held_pdu(103))
    assert one.abort_before_its_turn(102, number[2], number[4])
    assert one.abort_before_its_turn(101, number[1], number[4])
    assert one.next_held() is None and one.exp_cmd_sn == start
    assert one.abort_before_its_turn(100, number[0], number[4])
    assert one.next_held() == held_pdu(103) and one.exp_cmd_sn == number[3]


@pytest.mark.clause('RFC 7143 11.6.1')
def test_what_abort_task_cannot_name():
    one = session()
    one.accept_command_number(11, held_pdu(101))
    for itt, ref_cmd_sn, cmd_sn in ((9, 9, 14), (9, 18, 30), (9, 12, 12), (9, 11, 14)):
        assert not one.abort_before_its_turn(itt, ref_cmd_sn, cmd_sn)
    assert one.abort_before_its_turn(101, 11, 14)
    assert not one.abort_before_its_turn(101, 11, 14), 'it is aborted already'


def test_held_commands_of_one_unit_are_aborted_together():
    one = session()
    one.accept_command_number(11, held_pdu(1))
    one.accept_command_number(12, held_pdu(2, lun=1 << 48))
    one.accept_command_number(13, held_pdu(3, opcode=4))
    one.accept_command_number(14, held_pdu(4))
    assert one.abort_held(0, 14) == 1
    assert sorted(number for number, pdu in one.held.items() if pdu[3]) == [12, 13, 14]
