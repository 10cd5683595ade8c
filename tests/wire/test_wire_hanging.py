"""LUNs whose medium is slow or hangs: the other LUNs and sessions do not notice."""

import struct
import time

import pytest
from daemon import TARGET

pytestmark = pytest.mark.wire

ONE, TWO = 'iqn.2026-11.test:one', 'iqn.2026-11.test:two'


def read_one(lba):
    """A CDB of READ(10), one block."""
    return struct.pack('>BBIBHB', 0x28, 0, lba, 0, 1, 0)


def target_with(daemon, filters):
    """Adds TARGET with one file LUN for each item of `filters` (the setting filter, or '')."""
    luns = {}
    for number, each in enumerate(filters):
        luns[number] = ['backing-store = %s' % daemon.image('lun%d.img' % number)]
        if each:
            luns[number].append('filter = ' + each)
    daemon.target(TARGET, luns=luns)


def test_stuck_reads_of_one_lun_do_not_delay_a_read_of_another(daemon, ready):
    target_with(daemon, ['delay read=8s', 'delay read=1ms'])
    daemon.start()
    session = ready(daemon)
    session.clear_attentions(1)
    stuck = [session.submit(read_one(n), 0, read=512) for n in range(64)]
    for number in range(5):
        began = time.monotonic()
        assert session.read(number, 1, lun=1) == bytes(512)
        assert time.monotonic() - began < 2
    assert all(command.result is None for command in stuck)


def test_stuck_large_reads_of_one_lun_do_not_use_up_the_memory_for_reads_of_another(daemon, ready):
    """Reads that wait for a medium hold a part of the memory that a session may use for Data-In."""
    target_with(daemon, ['delay read=8s', 'delay read=1ms'])
    daemon.start()
    session = ready(daemon)
    session.clear_attentions(1)
    blocks = (8 << 20) // 512
    for _ in range(12):
        session.submit(struct.pack('>BBIBHB', 0x28, 0, 0, 0, blocks, 0), 0, read=8 << 20)
    began = time.monotonic()
    assert session.read(0, 512, lun=1) == bytes(256 << 10)
    assert time.monotonic() - began < 4


def test_each_slow_lun_has_all_executor_threads(daemon, ready):
    """With 32 threads in all, 8 LUNs with 32 reads of 1 s each would take 8 s."""
    target_with(daemon, ['delay read=1s'] * 8)
    daemon.start()
    session = ready(daemon)
    for lun in range(1, 8):
        session.clear_attentions(lun)
    began = time.monotonic()
    commands = [session.submit(read_one(n), lun, read=512) for n in range(31) for lun in range(8)]
    for command in commands:
        session.wait(command).good()
    assert time.monotonic() - began < 4
