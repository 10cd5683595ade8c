"""Commands that take long do not delay NOP-Out, NOP-In and other commands of their session."""

import os
import struct

import pytest
from pdus import NO_TAG, NOP_IN

pytestmark = pytest.mark.wire

SIZE = 32 << 20
WRITE_SAME_BLOCKS = (16 << 20) // 512  # MAXIMUM WRITE SAME LENGTH of VPD page B0h

LONG_COMMANDS = {
    'FORMAT UNIT': lambda: (bytes.fromhex('04 00 00 00 00 00'), None),
    'SANITIZE': lambda: (
        struct.pack('>BB5xHB', 0x48, 0x01, 8, 0),
        struct.pack('>BxH', 1, 4) + b'abcd',
    ),
    'WRITE SAME': lambda: (
        struct.pack('>BBQIBB', 0x93, 0, 0, WRITE_SAME_BLOCKS, 0, 0),
        b'\x5a' * 512,
    ),
    'WRITE SAME with zeroes': lambda: (
        struct.pack('>BBQIBB', 0x93, 1, 0, WRITE_SAME_BLOCKS, 0, 0),
        None,
    ),
    'VERIFY': lambda: (struct.pack('>BBQIBB', 0x8F, 0, 0, SIZE // 512, 0, 0), None),
    'WRITE of 16 MiB': lambda: (
        struct.pack('>BBQIBB', 0x8A, 0, 0, WRITE_SAME_BLOCKS, 0, 0),
        bytes(16 << 20),
    ),
}


@pytest.fixture
def slow(daemon):
    """A daemon with a 32 MiB file, of which each access takes at least 0.15 s. An initiator that is
    silent for a second gets a NOP-In."""
    path = os.path.join(daemon.directory, 'slow.img')
    with open(path, 'wb') as file:
        file.write(b'x' * SIZE)
    daemon.target(
        luns={
            0: ['backing-store = %s' % path, 'filter = delay 150ms'],
            1: ['backing-store = %s' % daemon.image()],
        }
    )
    daemon.text.server['nop-interval'] = '1'
    return daemon.start()


@pytest.mark.clause('RFC 7143 11.18')
@pytest.mark.parametrize('kind', sorted(LONG_COMMANDS))
def test_nop_out_and_commands_of_other_luns_are_answered_during_a_long_command(slow, ready, kind):
    session = ready(slow)
    session.clear_attentions(1)
    cdb, out = LONG_COMMANDS[kind]()
    long = session.submit(cdb, out=out)
    while out is not None and long.solicited < len(out):
        session.step()
    answered = 0
    while long.result is None and answered < 100:
        assert session.ping(b'are you there') == b'are you there'
        session.read(0, 8, lun=1)
        answered += 1
    session.wait(long).good()
    assert answered >= 5


@pytest.mark.clause('RFC 7143 11.19')
def test_nop_in_is_sent_during_a_long_command(slow, ready):
    session = ready(slow)
    cdb, out = LONG_COMMANDS['SANITIZE']()
    long = session.submit(cdb, out=out)
    ping = session.until(NOP_IN)
    assert ping.itt == NO_TAG and ping.ttt != NO_TAG and long.result is None
    session.wait(long).good()
