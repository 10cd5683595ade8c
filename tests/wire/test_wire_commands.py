"""Tests of full feature phase: residuals, sense data, task management, NOP, text, logout and the
command window."""

import os
import struct
import threading

import pytest
from daemon import TARGET
from initiator import (
    ABORT_TASK,
    ABORT_TASK_SET,
    CHECK_CONDITION,
    CLEAR_ACA,
    CLEAR_TASK_SET,
    GOOD,
    LOGICAL_UNIT_RESET,
    TARGET_COLD_RESET,
    TARGET_WARM_RESET,
    connect,
    pattern,
)
from pdus import (
    DATA_OUT,
    FINAL,
    IMMEDIATE,
    LOGOUT,
    LOGOUT_RESPONSE,
    NO_TAG,
    NOP_OUT,
    R2T,
    SCSI_COMMAND,
    pack_bhs,
    read_10,
    write_10,
)
from slow_line import SlowLine

pytestmark = pytest.mark.wire

TEST_UNIT_READY = bytes(6)


# -- sense -----------------------------------------------------------------------------------------


@pytest.mark.clause('SAM-5 5.14')
def test_a_new_session_gets_the_power_on_unit_attention_once(shared, sessions):
    session = sessions(shared)
    met = session.clear_attentions()
    assert met and met[0][:2] == (6, 0x29)
    assert session.run(TEST_UNIT_READY).status == GOOD


@pytest.mark.parametrize(
    'cdb, key',
    [
        (bytes([0x1F]) + bytes(5), (5, 0x20, 0)),  # unknown opcode
        (bytes([0xC1]) + bytes(11), (5, 0x20, 0)),  # vendor's
        (struct.pack('>BBQIBB', 0x9E, 0x1F, 0, 32, 0, 0), None),  # unknown service action
        (read_10(131072, 1), (5, 0x21, 0)),  # one beyond the end
        (read_10(131071, 2), (5, 0x21, 0)),
        (struct.pack('>BBQIBB', 0x88, 0, (1 << 64) - 1, 1, 0, 0), (5, 0x21, 0)),
        (struct.pack('>BBBHB', 0x12, 0, 0x83, 255, 0), (5, 0x24, 0)),  # page code without EVPD
        (struct.pack('>BBBHB', 0x12, 1, 0xEE, 255, 0), (5, 0x24, 0)),  # no such page
        (
            struct.pack('>BBIBHB', 0x28, 0xE0, 0, 0, 1, 0),
            (5, 0x24, 0),
        ),  # RDPROTECT without protection
    ],
)
def test_bad_commands_get_their_sense(shared, ready, cdb, key):
    session = ready(shared)
    result = session.run(cdb, read=1024)
    assert result.status == CHECK_CONDITION
    assert result.key == key if key else result.key[:2] in ((5, 0x20), (5, 0x24))
    assert result.data == b'' and result.underflow == 1024  # nothing came, and the residual says so
    assert session.run(TEST_UNIT_READY).status == GOOD  # and nothing else is disturbed


@pytest.mark.clause('SPC-4 6.6')
def test_absent_unit(shared, ready):
    session = ready(shared)
    assert session.run(TEST_UNIT_READY, lun=9).key == (5, 0x25, 0)
    assert session.inquiry(9)[0] == 0x7F  # qualifier 011b: no such unit here
    assert session.report_luns() == [0]
    assert session.report_luns(9) == [0]


def test_lun_zero_without_a_disk(daemon, ready):
    """Windows ignores a target whose LUN 0 reports peripheral qualifier 011b."""
    image = daemon.image()
    daemon.target(TARGET, luns={3: ['backing-store = %s' % image]})
    daemon.start()
    session = ready(daemon, lun=3)
    assert session.inquiry(0)[0] >> 5 == 1
    assert session.report_luns() == [3]
    session.write(7, pattern(1, 512), 3)
    assert session.read(7, 1, 3) == pattern(1, 512)


# -- residuals (RFC 7143 11.4.5) -------------------------------------------------------------------


@pytest.mark.parametrize('expected, blocks', [(8192, 1), (512, 16), (1024, 3), (1000, 2), (1, 1)])
@pytest.mark.clause('RFC 7143 11.4.5')
def test_read_residuals(shared, ready, expected, blocks):
    session = ready(shared)
    data = pattern(21, 16 * 512)
    session.write(100, data)
    result = session.run(read_10(100, blocks), read=expected).good()
    wanted = blocks * 512
    assert result.data == data[: min(expected, wanted)]
    assert (result.underflow, result.overflow) == (
        max(0, expected - wanted),
        max(0, wanted - expected),
    )


@pytest.mark.parametrize('immediate', ['Yes', 'No'])
@pytest.mark.parametrize('sent, blocks', [(4096, 2), (1024, 8)])
@pytest.mark.clause('RFC 7143 11.4.5')
def test_write_residuals(shared, ready, sent, blocks, immediate):
    """If less data than the CDB requires is sent, the remaining blocks must not be written with
    other data."""
    session = ready(shared, keys={'ImmediateData': immediate})
    before, data = pattern(31, 8 * 512), pattern(32, sent)
    session.write(200, before)
    result = session.run(write_10(200, blocks), out=data)
    now = session.read(200, 8)
    if sent > blocks * 512:
        assert result.status == GOOD and result.underflow == sent - blocks * 512
        assert now == data[: blocks * 512] + before[blocks * 512 :]
    else:
        assert result.overflow == blocks * 512 - sent
        if result.status == GOOD:
            assert now == data + before[sent:]
        else:
            assert now == before or now == data + before[sent:]


@pytest.mark.clause('RFC 7143 11.4.5')
def test_a_read_with_an_expected_length_of_zero(shared, ready):
    session = ready(shared)
    result = session.run(read_10(0, 4))
    assert (result.data, result.overflow) == (b'', 2048)


def test_no_unwritten_memory_is_ever_sent(shared, ready):
    session = ready(shared)
    assert session.read(131072 - 256, 256) == bytes(256 * 512)  # a sparse file reads zeroes


# -- data ------------------------------------------------------------------------------------------


@pytest.mark.parametrize('blocks', [1, 7, 128, 513, 2048, 8192])
@pytest.mark.clause('SBC-3 5.11')
def test_sizes(shared, ready, blocks):
    session = ready(shared, keys={'InitialR2T': 'No', 'MaxBurstLength': '1048576'})
    data = pattern(blocks, blocks * 512)
    session.write(1000 + blocks, data)
    assert session.read(1000 + blocks, blocks) == data
    # through another worker too
    with connect(shared.address, TARGET, isid=b'\x80\0\0\0\0\x77') as other:
        other.clear_attentions()
        assert other.read(1000 + blocks, blocks) == data


@pytest.mark.clause('RFC 7143 4.2.2.1')
def test_many_commands_at_once(shared, ready):
    session = ready(shared)
    writes = [session.submit(write_10(5000 + 8 * n, 8), out=pattern(n, 4096)) for n in range(64)]
    for command in writes:
        session.wait(command).good()
    reads = [session.submit(read_10(5000 + 8 * n, 8), read=4096) for n in range(64)]
    for number, command in enumerate(reads):
        assert session.wait(command).good().data == pattern(number, 4096)


def test_ordered_and_head_of_queue_are_accepted(shared, ready):
    session = ready(shared)
    for attribute in (0, 1, 2, 3):
        session.run(TEST_UNIT_READY, attribute=attribute).good()


@pytest.mark.clause('RFC 7143 4.2.2.1', 'RFC 7143 11.2.1.1')
def test_immediate_commands_do_not_use_a_cmd_sn(shared, ready):
    session = ready(shared)
    before = session.cmd_sn
    session.run(TEST_UNIT_READY, immediate=True).good()
    session.run(read_10(0, 1), read=512, immediate=True).good()
    assert session.cmd_sn == before
    session.run(TEST_UNIT_READY).good()


def test_write_that_arrives_with_a_reset_is_whole_or_absent(shared, ready):
    """Data-Out that stops in the middle of a burst changes nothing."""
    session = ready(shared, keys={'ImmediateData': 'No', 'FirstBurstLength': '65536'})
    session.write(9000, pattern(1, 65536))
    session.hold_r2t = True
    command = session.submit(write_10(9000, 128), out=pattern(2, 65536))
    pdu = session.until(R2T)
    session.wire.send(
        pack_bhs(DATA_OUT, 0, 0, command.itt, pdu.ttt, 0, session.exp_stat_sn), pattern(2, 32768)
    )
    session.wire.reset()
    with connect(shared.address, TARGET) as again:
        again.clear_attentions()
        assert again.read(9000, 128) == pattern(1, 65536)


# -- the command window (RFC 7143 4.2.2.1) ---------------------------------------------------------


@pytest.mark.clause('RFC 7143 4.2.2.1')
def test_window_is_wide_enough_for_windows(shared, ready):
    session = ready(shared)
    assert (session.max_cmd_sn - session.exp_cmd_sn) & 0xFFFFFFFF >= 31


@pytest.mark.clause('RFC 7143 4.2.2.1')
def test_commands_outside_the_window_are_ignored(shared, ready):
    session = ready(shared)
    sn = session.cmd_sn
    for wrong in (sn - 1, session.max_cmd_sn + 1, sn + (1 << 31)):
        session.wire.send(
            pack_bhs(SCSI_COMMAND, FINAL | 1, 0, 0x900, 0, wrong & 0xFFFFFFFF, session.exp_stat_sn)
        )
    assert session.ping(b'still here', immediate=True) == b'still here'
    session.run(TEST_UNIT_READY).good()


@pytest.mark.clause('RFC 7143 4.2.2.1')
def test_commands_run_in_the_order_of_their_numbers(shared, ready):
    """A command after a gap in CmdSN is executed only when the gap is filled."""
    session = ready(shared)
    sn = session.cmd_sn
    session.cmd_sn = sn + 1
    late = session.submit(TEST_UNIT_READY)
    session.ping(immediate=True)
    assert late.result is None
    session.cmd_sn = sn
    early = session.submit(TEST_UNIT_READY)
    session.wait(early).good()
    session.wait(late).good()
    session.cmd_sn = sn + 2
    session.run(TEST_UNIT_READY).good()


# -- pings -----------------------------------------------------------------------------------------


@pytest.mark.clause('RFC 7143 11.18', 'RFC 7143 11.19')
def test_ping_data_comes_back(shared, ready):
    session = ready(shared)
    for size in (0, 1, 3, 4, 512, 4096):
        assert session.ping(pattern(size, size)) == pattern(size, size)
        assert session.ping(pattern(size, size), immediate=True) == pattern(size, size)


@pytest.mark.clause('RFC 7143 11.18')
def test_nop_out_without_a_tag_is_not_answered(shared, ready):
    session = ready(shared)
    session.wire.send(
        pack_bhs(NOP_OUT | IMMEDIATE, FINAL, 0, NO_TAG, NO_TAG, session.cmd_sn, session.exp_stat_sn)
    )
    assert session.ping(b'next') == b'next'  # the next answer is the next ping's
    assert session.pings == []


@pytest.mark.clause('RFC 7143 11.19')
def test_silent_initiators_get_a_nop_in_and_are_disconnected(daemon, ready):
    daemon.target()
    daemon.text.server.update({'nop-interval': '1', 'nop-count': '2'})
    daemon.start()
    alive, dead = ready(daemon), ready(daemon, isid=b'\x80\0\0\0\0\x55')
    dead.answer_pings = False
    worker = daemon.worker_of(dead)
    waiting = threading.Thread(target=dead.wait_closed)
    waiting.start()
    while waiting.is_alive():
        alive.step()
    assert len(dead.pings) >= 1 and all(pdu.ttt != NO_TAG for pdu in dead.pings)
    worker.wait(10)
    while len(alive.pings) < 3:
        alive.step()
    alive.run(TEST_UNIT_READY).good()
    daemon.logged('(?i)nop|answer|silent')


def test_a_target_without_nop_ins_keeps_an_initiator_that_never_answers_one(daemon, ready):
    """iPXE, whose boot menu may wait for a key, beside initiators of other targets that are
    checked."""
    daemon.target(lines=['initiator-address = ALL', 'nop-interval = 0'])
    checked = daemon.target('iqn.2026-11.test.targetd:checked')
    daemon.text.server.update({'nop-interval': '1', 'nop-count': '2'})
    daemon.start()
    ipxe, silent = ready(daemon), ready(daemon, target=checked, isid=b'\x80\0\0\0\0\x55')
    silent.answer_pings = ipxe.answer_pings = False
    silent.wait_closed()  # by then the other was silent for as long
    ipxe.run(TEST_UNIT_READY).good()
    assert ipxe.pings == []


def test_answers_on_a_slow_line_are_not_taken_for_silence(daemon, ready):
    """A ping waits behind the data that was queued before it. 6 MiB on a line of 600 KiB/s take 10 s,
    and the session would be ended after 3 s without an answer."""
    daemon.target()
    daemon.text.server.update({'nop-interval': '1', 'nop-count': '2'})
    daemon.start()
    with SlowLine(daemon.address, 600 << 10) as line:
        session = ready(daemon, address=line.address)
        reads = [session.submit(read_10(512 * number, 512), read=512 * 512) for number in range(24)]
        for command in reads:
            assert len(session.wait(command).good().data) == 512 * 512
        session.run(TEST_UNIT_READY).good()
        session.answer_pings = False
        session.wait_closed()  # without data on its way the silence counts as before


# -- task management -------------------------------------------------------------------------------


def held_write(session, lba=300, blocks=16):
    """A write for whose data the target is waiting."""
    session.hold_r2t = True
    command = session.submit(
        write_10(lba, blocks), out=pattern(77, blocks * 512), immediate_limit=0
    )
    session.until(R2T)
    return command


@pytest.mark.parametrize(
    'function', [ABORT_TASK, ABORT_TASK_SET, CLEAR_TASK_SET, LOGICAL_UNIT_RESET]
)
@pytest.mark.clause('RFC 7143 4.2.3', 'RFC 7143 11.5')
def test_aborts(served, ready, function):
    session = ready(served, keys={'ImmediateData': 'No'})
    session.write(300, pattern(1, 8192))
    command = held_write(session)
    assert session.manage(function, task=command if function == ABORT_TASK else None) == 0
    session.ping(immediate=True)
    assert command.result is None  # an aborted task sends no response (RFC 7143 11.5)
    del session.commands[command.itt]
    session.clear_attentions()
    assert session.read(300, 16) == pattern(1, 8192)


@pytest.mark.clause('RFC 7143 11.5')
def test_clear_task_set_does_not_affect_other_sessions(served, ready):
    """Each I_T nexus has a separate task set: TST of the Control mode page is 001b."""
    one, two = (
        ready(served),
        ready(served, keys={'ImmediateData': 'No'}, name='iqn.2026-11.test:two'),
    )
    page = one.run(bytes([0x1A, 0x08, 0x0A, 0, 255, 0]), read=255).good().data
    assert page[4] & 0x3F == 0x0A and page[6] >> 5 == 1
    command = held_write(two)
    assert one.manage(CLEAR_TASK_SET) == 0
    two.hold_r2t = False
    two.answer_r2t(command)
    two.wait(command).good()
    two.run(TEST_UNIT_READY).good()


@pytest.mark.clause('RFC 7143 11.5', 'RFC 7143 11.6')
def test_abort_of_a_missing_task(shared, ready):
    session = ready(shared)
    done = session.submit(TEST_UNIT_READY)
    session.wait(done).good()
    # 'task does not exist': its number is no longer in the window
    assert session.manage(ABORT_TASK, task=done) == 1
    session.run(TEST_UNIT_READY).good()


@pytest.mark.clause('RFC 7143 11.6')
def test_refused_task_management_functions(shared, ready):
    session = ready(shared)
    assert session.manage(CLEAR_ACA) in (4, 5)
    assert session.manage(ABORT_TASK_SET, lun=9) == 2
    assert session.manage(LOGICAL_UNIT_RESET, lun=9) == 2
    assert session.manage(0x7E) in (5, 255)
    session.run(TEST_UNIT_READY).good()


@pytest.mark.parametrize(
    'function, key', [(LOGICAL_UNIT_RESET, (6, 0x29)), (TARGET_WARM_RESET, (6, 0x29))]
)
@pytest.mark.clause('RFC 7143 11.5', 'SAM-5 5.14')
def test_resets_are_reported_to_all_sessions(served, ready, function, key):
    one = ready(served)
    two = ready(served, name='iqn.2026-11.test:two')
    assert one.manage(function) == 0
    for session in (one, two):
        assert session.run(TEST_UNIT_READY).key[:2] == key
        session.run(TEST_UNIT_READY).good()


@pytest.mark.clause('RFC 7143 11.5')
def test_reset_ends_the_tasks_of_others(served, ready):
    one = ready(served)
    two = ready(served, name='iqn.2026-11.test:two', keys={'ImmediateData': 'No'})
    one.write(300, pattern(1, 8192))
    held_write(two)
    assert one.manage(LOGICAL_UNIT_RESET) == 0
    one.clear_attentions()
    assert one.read(300, 16) == pattern(1, 8192)
    two.hold_r2t = False
    two.commands.clear()
    assert two.run(TEST_UNIT_READY).key[:2] == (6, 0x29)


@pytest.mark.clause('RFC 7143 11.5')
def test_cold_reset_ends_every_session(served, ready):
    one = ready(served)
    two = ready(served, name='iqn.2026-11.test:two')
    assert one.manage(TARGET_COLD_RESET) == 0
    one.wait_closed()
    two.wait_closed()
    with connect(served.address, TARGET) as again:
        again.clear_attentions()


# -- logout and text -------------------------------------------------------------------------------


@pytest.mark.clause('RFC 7143 11.14', 'RFC 7143 11.15')
def test_logout_of_session_and_connection(shared, ready):
    assert ready(shared).logout(0) == 0
    session = ready(shared)
    assert session.logout(1) == 0
    session = ready(shared)
    session.cid = 99
    assert session.logout(1) == 1  # a connection that is not there


@pytest.mark.clause('RFC 7143 4.2.6', 'RFC 7143 11.15')
def test_after_logout_the_target_closes(shared, ready):
    session = ready(shared)
    session.wire.send(
        pack_bhs(LOGOUT | IMMEDIATE, FINAL, 0, 0x77, 0, session.cmd_sn, session.exp_stat_sn)
    )
    session.until(LOGOUT_RESPONSE)
    session.wait_closed()


@pytest.mark.clause('RFC 7143 6.4', 'RFC 7143 11.10')
def test_text_in_a_normal_session(shared, ready):
    session = ready(shared)
    assert session.text([('X-com.example', 'x')]) == [('X-com.example', 'NotUnderstood')]
    assert session.text([]) == []
    session.run(TEST_UNIT_READY).good()


# -- identity and modes ----------------------------------------------------------------------------


def test_identity_is_the_same_in_every_session_and_after_a_restart(served, ready):
    pages = (None, 0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2)

    def identity(name):
        session = ready(served, name=name)
        found = {page: session.inquiry(0, page, 255) for page in pages}
        session.logout()
        return found

    one = identity('iqn.2026-11.test:one')
    assert identity('iqn.2026-11.test:two') == one
    assert served.stop() == 0
    served.start()
    assert identity('iqn.2026-11.test:one') == one
    assert len(one[0xB1]) == 64  # Windows ignores it otherwise


def test_two_units_have_two_identities(daemon, ready):
    a, b = daemon.image('a.img'), daemon.image('b.img')
    daemon.target(TARGET, ['initiator-address = ALL', 'backing-store = %s, %s' % (a, b)], luns={})
    daemon.start()
    session = ready(daemon)
    session.clear_attentions(1)
    assert session.report_luns() == [0, 1]
    assert session.inquiry(0, 0x80) != session.inquiry(1, 0x80)
    assert session.inquiry(0, 0x83) != session.inquiry(1, 0x83)
    session.write(0, pattern(1, 512), 0)
    session.write(0, pattern(2, 512), 1)
    assert session.read(0, 1, 0) == pattern(1, 512) and session.read(0, 1, 1) == pattern(2, 512)


def caching_page(session):
    """Returns mode page 08h from MODE SENSE(6), without block descriptors."""
    return bytearray(
        session.run(struct.pack('>BBBBBB', 0x1A, 8, 0x08, 0, 192, 0), read=192).good().data[4:]
    )


def write_cache(session):
    return bool(caching_page(session)[2] & 4)


@pytest.mark.parametrize('setting, wce', [('on', True), ('off', False)])
@pytest.mark.clause('SPC-4 6.13')
def test_mode_sense_reports_the_configured_write_cache(daemon, ready, setting, wce):
    image = daemon.image()
    daemon.target(TARGET, luns={0: ['backing-store = %s' % image, 'write-cache = %s' % setting]})
    daemon.start()
    session, other = ready(daemon), ready(daemon, name='iqn.2026-11.test:two')
    assert write_cache(session) is wce
    page = caching_page(session)
    assert page[:2] in (b'\x08\x12', b'\x88\x12')
    page[0], page[2] = 8, page[2] ^ 4
    session.run(struct.pack('>BBBBBB', 0x15, 0x10, 0, 0, 24, 0), out=bytes(4) + bytes(page)).good()
    assert write_cache(session) is not wce
    assert other.run(TEST_UNIT_READY).key == (6, 0x2A, 1)  # mode parameters changed
    assert write_cache(other) is not wce


@pytest.mark.parametrize('size', [512, 4096])
def test_block_sizes(daemon, ready, size):
    daemon.target(
        TARGET, luns={0: ['backing-store = %s' % daemon.image(), 'block-size = %d' % size]}
    )
    daemon.start()
    session = ready(daemon)
    assert session.capacity() == ((64 << 20) // size, size)
    session.write(5, pattern(9, 4 * size), size=size)
    assert session.read(5, 4, size=size) == pattern(9, 4 * size)
    with open(daemon.image(), 'rb') as file:
        file.seek(5 * size)
        assert file.read(4 * size) == pattern(9, 4 * size)


def test_readonly(daemon, ready):
    daemon.target(TARGET, luns={0: ['backing-store = %s' % daemon.image(), 'readonly = yes']})
    daemon.start()
    session = ready(daemon)
    assert session.run(write_10(0, 1), out=bytes(512)).key == (7, 0x27, 0)
    assert session.read(0, 1) == bytes(512)


@pytest.mark.clause('SBC-3 5.28')
def test_unmap_frees_the_space_of_a_thin_file(daemon, ready):
    path = daemon.image('thin.img')
    daemon.target(TARGET, luns={0: ['backing-store = %s' % path, 'thin = yes']})
    daemon.start()
    session = ready(daemon)
    session.write(0, pattern(1, 1 << 20))
    session.run(struct.pack('>BBIBHB', 0x35, 0, 0, 0, 0, 0)).good()  # SYNCHRONIZE CACHE(10)
    used = os.stat(path).st_blocks
    assert used * 512 >= 1 << 20
    parameters = struct.pack('>HH4xQI4x', 22, 16, 0, 1024)
    session.run(struct.pack('>BBIBHB', 0x42, 0, 0, 0, len(parameters), 0), out=parameters).good()
    assert session.read(0, 1024) == bytes(512 * 1024)
    assert session.read(1024, 1024) == pattern(1, 1 << 20)[512 * 1024 :]
    assert os.stat(path).st_blocks < used


def test_a_file_is_created_sparse_at_its_size(daemon, ready):
    path = os.path.join(daemon.directory, 'new.img')
    daemon.target(TARGET, luns={0: ['backing-store = %s' % path, 'size = 200G']})
    daemon.start()
    session = ready(daemon)
    assert session.capacity() == (200 * 2**30 // 512, 512)
    assert os.stat(path).st_size == 200 << 30 and os.stat(path).st_blocks < 1000
    session.write((200 * 2**30 // 512) - 1, pattern(4, 512))
    assert session.read((200 * 2**30 // 512) - 1, 1) == pattern(4, 512)


@pytest.mark.clause('SBC-3 5.26')
def test_flush_and_fua_are_accepted_and_the_file_holds_the_data(shared, ready):
    session = ready(shared)
    session.run(write_10(77, 2, fua=True), out=pattern(8, 1024)).good()
    session.run(struct.pack('>BBIBHB', 0x35, 0, 77, 0, 2, 0)).good()
    session.run(struct.pack('>BBQIBB', 0x91, 0, 0, 0, 0, 0)).good()
    with open(shared.image('disk.img'), 'rb') as file:
        file.seek(77 * 512)
        assert file.read(1024) == pattern(8, 1024)
