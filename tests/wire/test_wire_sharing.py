"""Two hosts and one disk: the setting `sharing`, seen by initiators of different names."""

import json
import struct

import pytest
from copies import extended_copy
from daemon import TARGET, eventually
from initiator import pattern

pytestmark = pytest.mark.wire

ONE, TWO, THREE = ('iqn.2026-11.test:' + word for word in ('one', 'two', 'three'))
OTHER = 'iqn.2026-11.test.targetd:other'
PROTECTED = (7, 0x27, 0)
NO_SUCH_LUN = (5, 0x25, 0)
LUNS_CHANGED = (6, 0x3F, 0x0E)
OPEN = 'initiator-address = ALL'


def serve(daemon, sharing='auto', more=(), count=2):
    luns = {n: ['backing-store = %s' % daemon.image('lun%d.img' % n)] for n in range(count)}
    luns[0] += list(more)
    daemon.target(TARGET, [OPEN, 'sharing = %s' % sharing], luns)
    daemon.start()


def is_write_protected(session, lun=0):
    """The WP bit of MODE SENSE(6), SPC-4 6.13."""
    data = session.run(struct.pack('>BBBBBB', 0x1A, 8, 0x3F, 0, 252, 0), lun, read=252).good().data
    return bool(data[2] & 0x80)


def gone(daemon, session):
    """Logs out, and waits until the server has forgotten the session."""
    before = len(json.loads(daemon.control('--json', 'show', 'sessions')))
    assert session.logout() == 0
    eventually(
        lambda: len(json.loads(daemon.control('--json', 'show', 'sessions'))) < before,
        10,
        'the end of the session',
    )


@pytest.mark.parametrize('sharing', ['auto', 'exclusive'])
def test_the_second_initiator_does_not_see_the_lun_and_is_told_why(daemon, sessions, sharing):
    serve(daemon, sharing)
    holder = sessions(daemon, name=ONE)
    holder.clear_attentions()
    second = sessions(daemon, name=TWO, isid=b'\x40\0\0\0\0\x02')
    assert second.report_luns() == []
    assert (
        second.run(struct.pack('>BBQIBB', 0x8A, 0, 0, 1, 0, 0), out=bytes(512)).key == NO_SUCH_LUN
    )
    assert second.run(struct.pack('>BBQIBB', 0x88, 0, 0, 1, 0, 0), read=512).key == NO_SUCH_LUN
    holder.write(0, pattern(1, 4096))
    assert 'two does not see lun 0' in daemon.log and ONE in daemon.control('why', '127.0.0.1')
    row = daemon.units()[0]
    assert row['sharing'] == 'exclusive' and row['holders'] == [ONE]


def test_the_paths_of_one_host_all_see_the_lun(daemon, sessions):
    serve(daemon)
    first, second = (sessions(daemon, name=ONE, isid=b'\x40\0\0\0\0' + n) for n in (b'\1', b'\2'))
    for session in (first, second):
        assert session.report_luns() == [0, 1]
        session.clear_attentions()
        session.write(0, pattern(1, 4096))


def test_the_lun_is_free_after_the_sessions_of_the_holder_for_a_new_login_only(daemon, sessions):
    serve(daemon)
    holder = sessions(daemon, name=ONE)
    waiting = sessions(daemon, name=TWO)
    gone(daemon, holder)
    assert waiting.report_luns() == []
    gone(daemon, waiting)
    again = sessions(daemon, name=TWO)
    again.clear_attentions()
    again.write(0, pattern(2, 4096))
    assert sessions(daemon, name=ONE).report_luns() == []


def test_a_holder_whose_connection_is_lost_gives_the_lun_up(daemon, sessions):
    serve(daemon)
    holder = sessions(daemon, name=ONE)
    worker = daemon.worker_of(holder)
    holder.close()
    eventually(lambda: json.loads(daemon.control('--json', 'show', 'sessions')) == [], 10, worker)
    assert sessions(daemon, name=TWO).report_luns() == [0, 1]


def test_with_readers_the_second_initiator_sees_the_lun_write_protected(daemon, sessions):
    serve(daemon, 'readers')
    writer = sessions(daemon, name=ONE)
    writer.clear_attentions()
    writer.write(0, pattern(3, 4096))
    reader = sessions(daemon, name=TWO)
    reader.clear_attentions()
    assert is_write_protected(reader) and not is_write_protected(writer)
    assert reader.read(0, 8) == pattern(3, 4096)
    blocked = [
        (struct.pack('>BBQIBB', 0x8A, 0, 0, 1, 0, 0), bytes(512)),  # WRITE(16)
        (struct.pack('>BBQIBB', 0x93, 0, 0, 1, 0, 0), bytes(512)),  # WRITE SAME(16)
        (struct.pack('>BBQxxxBBB', 0x89, 0, 0, 1, 0, 0), bytes(1024)),  # COMPARE AND WRITE
        (struct.pack('>BBQIBB', 0x8E, 0, 0, 1, 0, 0), bytes(512)),  # WRITE AND VERIFY(16)
        (bytes((0x04, 0, 0, 0, 0, 0)), b''),  # FORMAT UNIT
    ]
    for cdb, out in blocked:
        assert reader.run(cdb, out=out).key == PROTECTED, cdb.hex()
    naa = [reader.inquiry(n, 0x83) for n in (0, 1)]
    names = [page[page.index(b'\x01\x03\x00\x10') + 4 :][:16] for page in naa]
    assert reader.run(
        *extended_copy(names[1], names[0])[:1], out=extended_copy(*names[::-1])[1]
    ).status
    assert writer.read(0, 8) == pattern(3, 4096)
    gone(daemon, writer)
    gone(daemon, reader)
    promoted = sessions(daemon, name=TWO)
    promoted.clear_attentions()
    promoted.write(0, pattern(4, 4096))


def test_a_cluster_shares_the_lun(daemon, sessions):
    serve(daemon, 'cluster')
    for name in (ONE, TWO, THREE):
        session = sessions(daemon, name=name)
        assert session.report_luns() == [0, 1]
        session.clear_attentions()
        session.write(0, pattern(5, 4096))


def test_a_readonly_lun_is_for_all_and_the_others_of_the_target_are_not(daemon, sessions):
    serve(daemon, more=['readonly = yes'])
    assert sessions(daemon, name=ONE).report_luns() == [0, 1]
    assert sessions(daemon, name=TWO).report_luns() == [0]


def test_a_lun_that_is_added_goes_to_the_initiator_that_was_there_first(daemon, sessions):
    serve(daemon, count=1)
    first = sessions(daemon, name=ONE)
    first.clear_attentions()
    second = sessions(daemon, name=TWO)
    rows = daemon.text.targets[TARGET][1]
    rows[1] = ['backing-store = %s' % daemon.image('new.img')]
    daemon.reload()
    eventually(lambda: LUNS_CHANGED in first.clear_attentions(), 10, 'the unit attention')
    assert first.report_luns() == [0, 1]
    assert second.report_luns() == []


def test_a_copy_of_another_host_does_not_write_a_disk_that_is_in_use(daemon, sessions):
    """EXTENDED COPY reaches the units of other targets to which the initiator may log in."""
    daemon.target(OTHER, [OPEN, 'sharing = auto'])
    serve(daemon)
    holder = sessions(daemon, target=OTHER, name=ONE)
    holder.clear_attentions()
    holder.write(100, pattern(6, 4096))
    thief = sessions(daemon, name=TWO)
    thief.clear_attentions()
    page, own = holder.inquiry(0, 0x83), thief.inquiry(0, 0x83)
    names = [data[data.index(b'\x01\x03\x00\x10') + 4 :][:16] for data in (own, page)]
    cdb, body = extended_copy(*names)
    assert thief.run(cdb, out=body).status == 2
    assert holder.read(100, 8) == pattern(6, 4096)
    gone(daemon, holder)
    assert thief.run(cdb, out=body).status == 0


def test_a_change_of_sharing_acts_at_the_next_login(daemon, sessions):
    serve(daemon)
    holder = sessions(daemon, name=ONE)
    assert sessions(daemon, name=TWO).report_luns() == []
    settings = daemon.text.targets[TARGET][0]
    settings[settings.index('sharing = auto')] = 'sharing = cluster'
    daemon.reload()
    assert sessions(daemon, name=THREE).report_luns() == [0, 1]
    holder.clear_attentions()
    holder.write(0, pattern(7, 4096))
