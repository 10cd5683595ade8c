"""Tests of a state-dir without free space: what must be saved is refused, everything else goes on."""

import os
import struct

import pytest
from daemon import TARGET, eventually

pytestmark = pytest.mark.wire

INSUFFICIENT_REGISTRATION_RESOURCES = (5, 0x55, 4)
INTERNAL_TARGET_FAILURE = (4, 0x44, 0)


def register(session, key):
    """Sends PERSISTENT RESERVE OUT, REGISTER AND IGNORE EXISTING KEY."""
    data = struct.pack('>QQ8x', 0, key)
    return session.run(struct.pack('>BBB2xIx', 0x5F, 0x06, 0, len(data)), out=data)


def save_mode_page(session):
    """Sends MODE SELECT(10) with SP and D_SENSE."""
    cdb = struct.pack('>BBBB3xHB', 0x5A, 8, 0x0A, 0, 255, 0)
    page = session.run(cdb, read=255).good().data[8:]
    data = bytes(8) + bytes([page[0] & 0x7F, page[1], page[2] | 4]) + page[3:]
    return session.run(struct.pack('>BB5xHB', 0x55, 0x11, len(data), 0), out=data)


def fill(directory):
    """Uses all the space of the file system; returns the path of the file that does."""
    path = os.path.join(directory, 'filler')
    with open(path, 'wb', buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return path


def test_a_full_state_dir_refuses_only_what_must_be_saved(daemon, ready, small_disk):
    folder = small_disk(1)
    daemon.text.server['state-dir'] = os.path.join(folder, 'state')
    daemon.target(TARGET, luns={0: ['backing-store = %s' % daemon.image(), 'removable = yes']})
    daemon.target(
        'iqn.2026-11.test:failing',
        luns={
            0: ['backing-store = %s' % daemon.image('failing.img'), 'filter = error flush count=1']
        },
    )
    session = ready(daemon.start())
    other = ready(daemon, target='iqn.2026-11.test:failing', name='iqn.2026-11.test:other')
    filler = fill(folder)
    assert register(session, 0xA1).key == INSUFFICIENT_REGISTRATION_RESOURCES
    daemon.logged('cannot be saved in .*: No space left on device')
    assert save_mode_page(session).key == INTERNAL_TARGET_FAILURE
    session.write(0, b'a' * 512, fua=True)
    assert session.read(0, 1) == b'a' * 512
    for eject in (0x02, 0x03):
        session.run(struct.pack('>BBBBBB', 0x1B, 0, 0, 0, eject, 0)).good()
    daemon.reload('nothing changed')
    ready(daemon, name='iqn.2026-11.test:another').logout()
    assert other.run(struct.pack('>BBIBHB', 0x35, 0, 0, 0, 0, 0)).key == (3, 0x0C, 0)
    daemon.logged('failing/0: its state cannot be saved .* trying again')
    cdb = struct.pack('>BBQIBB', 0x8A, 0, 0, 1, 0, 0)
    eventually(lambda: other.run(cdb, out=bytes(512)).key == INTERNAL_TARGET_FAILURE, 10)
    os.unlink(filler)
    register(session, 0xA1).good()
    save_mode_page(session).good()
    eventually(lambda: 'iqn.2026-11.test:failing/0: its state is saved now' in daemon.log, 30)
