"""A logical unit that is removed or replaced while it has tasks: each task ends with a status."""

import struct

import pytest
from daemon import TARGET
from initiator import ABORT_TASK, pattern
from pdus import R2T, write_10

pytestmark = pytest.mark.wire

GONE = (5, 0x25, 0)
CLEARED = (0xB, 0x2F, 2)
READ = struct.pack('>BBIBHB', 0x28, 0, 0, 0, 1, 0)
FLUSH = bytes((0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0))
ORDERED = 2


def two_luns(daemon, filters='', count=2):
    """Adds TARGET with LUN 0 and LUN 1; returns the luns, which a test changes before a reload."""
    luns = {n: ['backing-store = %s' % daemon.image('lun%d.img' % n)] for n in range(count)}
    if filters:
        luns[1].append('filter = ' + filters)
    daemon.target(TARGET, luns=luns)
    return daemon.text.targets[TARGET][1]


def waiting_write(session, lun):
    """A WRITE of 8 KiB whose Data-Out the target has solicited and does not get."""
    session.hold_r2t = True
    command = session.submit(write_10(0, 16), lun, out=pattern(1, 8192), immediate_limit=0)
    while not command.r2ts:
        assert session.step().opcode == R2T
    return command


def test_a_write_that_waits_for_data_ends_with_a_status_when_its_unit_is_removed(daemon, ready):
    luns = two_luns(daemon)
    daemon.start()
    session = ready(daemon)
    session.clear_attentions(1)
    command = waiting_write(session, 1)
    del luns[1]
    daemon.reload()
    assert session.wait(command).key == GONE
    session.clear_attentions()
    assert session.read(0, 1) == bytes(512)
    assert session.logout() == 0


def test_running_and_parked_tasks_end_with_a_status_when_their_unit_is_removed(daemon, ready):
    luns = two_luns(daemon, 'delay read=700ms')
    daemon.start()
    session = ready(daemon)
    session.clear_attentions(1)
    commands = [session.submit(READ, 1, read=512) for _ in range(40)]
    commands += [session.submit(READ, 1, read=512, attribute=ORDERED) for _ in range(3)]
    del luns[1]
    daemon.reload()
    results = [session.wait(command) for command in commands]
    assert results[-1].key == GONE
    assert all(result.key == GONE or result.status == 0 for result in results)


def test_a_write_ends_with_a_status_when_the_store_of_its_unit_is_replaced(daemon, ready):
    two_luns(daemon, 'error flush count=1')
    daemon.start()
    session = ready(daemon)
    session.clear_attentions(1)
    command = waiting_write(session, 1)
    assert session.run(FLUSH, 1).status == 2
    daemon.logged('FAILED')
    daemon.control('acknowledge', TARGET + '/1')
    assert session.wait(command).key == CLEARED
    session.hold_r2t = False
    session.clear_attentions(1)
    session.write(0, pattern(2, 8192), lun=1)


def test_a_format_that_is_awaited_ends_with_a_status_when_its_unit_is_removed(daemon, ready):
    luns = two_luns(daemon, 'delay write_zeroes=3s write=3s')
    daemon.start()
    session = ready(daemon)
    session.clear_attentions(1)
    command = session.submit(bytes((0x04, 0, 0, 0, 0, 0)), 1)
    daemon.logged('FORMAT|format')
    del luns[1]
    daemon.reload()
    assert session.wait(command).key == GONE


def test_an_abort_of_a_task_of_a_removed_unit_is_answered(daemon, ready):
    luns = two_luns(daemon)
    daemon.start()
    session = ready(daemon)
    session.clear_attentions(1)
    command = waiting_write(session, 1)
    del luns[1]
    daemon.reload()
    assert session.wait(command).key == GONE
    assert session.manage(ABORT_TASK, 1, command) in (0, 1)
