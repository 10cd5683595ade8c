"""The setting guard beside encryption, two initiators, and an upgrade without a logout."""

import os
import struct
import threading

import pytest
from daemon import TARGET, eventually
from initiator import pattern
from test_wire_guards import GUARD, SIZE, content, kept, log_out
from test_wire_upgrade import NEW, facts, installed  # noqa: F401

from targetd import xts

pytestmark = pytest.mark.wire

UNIT = TARGET + '/0'
ONE, TWO = 'iqn.2026-11.test:one', 'iqn.2026-11.test:two'
HEAD = b'payroll of November ' * 205  # more than four blocks of plain text
ERASE = bytes.fromhex('48 03 0000000000 0000 00')  # SANITIZE, CRYPTOGRAPHIC ERASE

needs_xts = pytest.mark.skipif(bool(xts.why_not()), reason=xts.why_not() or 'it is there')


def serve(daemon, *more):
    """Serves 64 MiB with the guard; returns the path of its file."""
    path = daemon.image()
    daemon.target(TARGET, luns={0: ['backing-store = %s' % path, GUARD] + list(more)})
    daemon.start()
    return path


def files_of_guards(daemon):
    folder = os.path.join(daemon.directory, 'state', 'guards')
    return b''.join(content(os.path.join(folder, name)) for name in sorted(os.listdir(folder)))


def key_file(daemon):
    return 'encryption-key-file = %s' % os.path.join(daemon.directory, 'disk.key')


# -- encryption ------------------------------------------------------------------------------------


@needs_xts
def test_what_is_kept_of_an_encrypted_disk_is_encrypted_and_is_restored(daemon, ready):
    path = serve(daemon, key_file(daemon))
    session = ready(daemon)
    session.write(0, HEAD[:4096])
    log_out(daemon, session)
    before = content(path)
    assert HEAD[:512] not in before
    session = ready(daemon)
    session.write(0, bytes(1 << 20))
    rows = kept(daemon)
    assert [row['number'] for row in rows] == [2, 1]
    assert HEAD[:512] not in files_of_guards(daemon)
    log_out(daemon, session)
    daemon.control('guard', 'restore', UNIT, '2')
    assert content(path) == before
    assert bytes(ready(daemon).read(0, 8)) == HEAD[:4096]


@needs_xts
def test_what_was_encrypted_with_another_key_is_not_put_back(daemon, ready):
    path = serve(daemon, key_file(daemon))
    session = ready(daemon)
    session.write(0, HEAD[:4096])
    session.run(ERASE).good()
    eventually(lambda: session.run(bytes(6)).status == 0, 30, 'a ready unit')
    session.write(0, pattern(1, 4096))
    log_out(daemon, session)
    before = content(path)
    for row in kept(daemon):
        code, text = daemon.targetdctl('guard', 'restore', UNIT, str(row['number']))
        assert code and 'another key' in text
    assert content(path) == before
    assert bytes(ready(daemon).read(0, 8)) == pattern(1, 4096)


# -- sharing ---------------------------------------------------------------------------------------


def test_two_initiators_that_write_first_at_the_same_time_are_both_kept(daemon, ready):
    path = serve(daemon, 'sharing = cluster')
    with open(path, 'r+b') as image:
        image.write(HEAD)
    before = content(path)
    both = [ready(daemon, name=name) for name in (ONE, TWO)]
    start = threading.Barrier(2)

    def write(number):
        start.wait(30)
        both[number].write(number * 8, b'%d' % number * 4096)

    threads = [threading.Thread(target=write, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert content(path)[:8192] == b'0' * 4096 + b'1' * 4096
    # one file if the two were kept together; else the second has what the first had written
    numbers = [row['number'] for row in kept(daemon)]
    assert numbers in ([1], [2, 1])
    log_out_one(daemon, both[0])
    code, text = daemon.targetdctl('guard', 'restore', UNIT, '1')
    assert code and 'in use by 1 session' in text
    log_out(daemon, both[1])
    daemon.control('guard', 'restore', UNIT, '1')
    assert content(path) == before


def log_out_one(daemon, session):
    session.logout()
    eventually(lambda: daemon.units()[0]['sessions'] == 1, 30, 'the end of one session')


def test_a_reader_keeps_nothing(daemon, ready):
    serve(daemon, 'sharing = readers')
    writer, reader = ready(daemon, name=ONE), ready(daemon, name=TWO)
    reader.read(0, 8)
    command = struct.pack('>BBQIBB', 0x8A, 0, 0, 1, 0, 0)
    assert reader.run(command, out=bytes(512)).key == (7, 0x27, 0)
    assert kept(daemon) == []
    writer.write(0, b'x' * 512)
    assert [row['initiator_name'] for row in kept(daemon)] == [ONE]


# -- upgrade ---------------------------------------------------------------------------------------


def test_a_session_that_began_before_an_upgrade_is_guarded_after_it(daemon, ready, installed):  # noqa: F811
    path = serve(daemon, 'sharing = cluster')
    with open(path, 'r+b') as image:
        image.write(HEAD)
    before = content(path)
    old, wrote = ready(daemon, name=ONE), ready(daemon, name=TWO)
    wrote.write(SIZE // 1024, b'x' * 512)  # in the middle, which is not kept
    assert [row['number'] for row in kept(daemon)] == [1]
    installed.upgrade()
    daemon.control('upgrade')
    assert facts(daemon)['version'] == NEW
    wrote.write(0, b'y' * 4096)
    old.write(0, b'z' * 4096)
    assert [row['initiator_name'] for row in kept(daemon)] == [ONE, TWO]
    for session in (old, wrote):
        session.logout()
    eventually(lambda: daemon.units()[0]['sessions'] == 0, 30, 'the end of the sessions')
    daemon.control('guard', 'restore', UNIT, '1')
    assert content(path)[:4096] == before[:4096]
