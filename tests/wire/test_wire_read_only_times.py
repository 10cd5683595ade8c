"""read-only-schedule: a LUN refuses writes at certain times of the week, and its sessions go on."""

import struct
import time

import pytest
from daemon import TARGET

pytestmark = pytest.mark.wire

PROTECTED = (7, 0x27, 0)
MODE_CHANGED = (6, 0x2A, 0x01)
DAYS = ('mon', 'tue', 'wed', 'thu', 'fri', 'sat', 'sun')


def other_day():
    """A day of the week that is neither today nor tomorrow, in case that today ends."""
    return DAYS[(time.localtime().tm_wday + 3) % 7]


def write(session):
    return session.run(struct.pack('>BBQIBB', 0x8A, 0, 0, 1, 0, 0), out=bytes(512))


def is_write_protected(session):
    data = session.run(struct.pack('>BBBBBB', 0x1A, 8, 0x3F, 0, 252, 0), read=252).good().data
    return bool(data[2] & 0x80)


def test_a_schedule_protects_and_releases_a_lun_with_a_session(daemon, ready):
    image = daemon.image('a.img')
    daemon.target(luns={0: ['backing-store = ' + image, 'read-only-schedule = daily']})
    daemon.start()
    session = ready(daemon)
    assert write(session).key == PROTECTED and is_write_protected(session)
    assert session.read(0, 1) == bytes(512)
    assert 'read-only (read-only-schedule)' in daemon.units()[0]['state']
    rows = daemon.text.targets[TARGET][1]
    rows[0][1] = 'read-only-schedule = %s 08:00-18:00' % other_day()
    daemon.write_config()
    assert 'read-only-schedule from daily' in daemon.control('reload')
    assert MODE_CHANGED in session.clear_attentions()
    assert write(session).status == 0 and not is_write_protected(session)
    daemon.control('lun', 'readonly', TARGET + '/0')
    assert MODE_CHANGED in session.clear_attentions() and write(session).key == PROTECTED
    assert 'set by the administrator' in daemon.units()[0]['state']


def test_an_upgrade_keeps_the_schedule(daemon, ready):
    daemon.target(
        luns={0: ['backing-store = ' + daemon.image('a.img'), 'read-only-schedule = daily']}
    )
    daemon.start()
    session = ready(daemon)
    daemon.control('upgrade')
    assert write(session).key == PROTECTED
    daemon.text.targets[TARGET][1][0].pop()
    daemon.write_config()
    daemon.control('reload')
    assert MODE_CHANGED in session.clear_attentions() and write(session).status == 0


def test_the_check_says_when_a_lun_is_read_only(daemon):
    daemon.target(
        luns={0: ['type = ram', 'size = 1M', 'read-only-schedule = mon-fri 08:00-18:00, sat']}
    )
    code, output = daemon.check()
    assert code == 0 and 'read-only at mon-fri 08:00-18:00, sat' in output


def test_a_time_that_does_not_exist_is_refused(daemon):
    daemon.target(luns={0: ['type = ram', 'size = 1M', 'read-only-schedule = mon 25:00-26:00']})
    code, output = daemon.check()
    assert code and 'has a time that no day has' in output
