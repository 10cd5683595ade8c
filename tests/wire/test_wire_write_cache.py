"""Tests of the changes after which an initiator may stop flushing: what was written before is made
durable before the change is complete, and a flush that fails fails the change."""

import os
import re
import shutil
import struct
import tempfile

import pytest
from daemon import EXIT_NOT_DURABLE, TARGET, eventually

pytestmark = pytest.mark.wire

ONE, TWO = 'iqn.2026-11.test:one', 'iqn.2026-11.test:two'
WRITE_ERROR = (3, 0x0C, 0)
INTERNAL_TARGET_FAILURE = (4, 0x44, 0)
CACHING, CONTROL = 0x08, 0x0A
FAILING = 'filter = error flush'


class Trace(object):
    """The file that the filter `trace` writes when a verb has ended; all processes may write it."""

    def __init__(self, path):
        self.path = path
        with open(path, 'w'):
            os.chmod(path, 0o666)
        self.setting = 'filter = trace to=%s' % path

    def verbs(self):
        """['write', 'durable write', 'flush', …] in the order in which they ended."""
        with open(self.path) as file:
            found = re.findall(r' (write|flush) offset=\d+ length=\d+( durable)? ok', file.read())
        return ['durable ' * bool(durable) + verb for verb, durable in found]


@pytest.fixture
def trace():
    directory = tempfile.mkdtemp()
    os.chmod(directory, 0o755)
    yield Trace(os.path.join(directory, 'trace'))
    shutil.rmtree(directory)


def mode_page(session, code):
    """A mode page as MODE SENSE(10) shows it, without block descriptor."""
    cdb = struct.pack('>BBBB3xHB', 0x5A, 8, code, 0, 255, 0)
    return session.run(cdb, read=255).good().data[8:]


def select(session, page, save=False):
    """Sends MODE SELECT(10); returns the Result."""
    data = bytes(8) + bytes([page[0] & 0x7F]) + page[1:]
    return session.run(struct.pack('>BB5xHB', 0x55, 0x10 | save, len(data), 0), out=data)


def has_cache(session):
    return bool(mode_page(session, CACHING)[2] & 4)


def disable_cache(session, save=False):
    page = mode_page(session, CACHING)
    return select(session, page[:2] + bytes([page[2] & ~4]) + page[3:], save)


def protect(session, save=False):
    """Sets SWP, so that writes are refused."""
    page = mode_page(session, CONTROL)
    return select(session, page[:4] + bytes([page[4] | 8]) + page[5:], save)


def serve(daemon, *settings):
    image = daemon.image()
    daemon.target(TARGET, luns={0: ['backing-store = %s' % image] + list(settings)})
    return image


@pytest.mark.parametrize('save', [False, True])
@pytest.mark.parametrize('change', [disable_cache, protect])
def test_mode_select_flushes_what_is_in_the_cache(daemon, ready, trace, change, save):
    serve(daemon, trace.setting)
    session = ready(daemon.start())
    session.write(0, b'a' * 512)
    assert trace.verbs() == ['write']
    change(session, save).good()
    assert trace.verbs()[-1] == 'flush'


@pytest.mark.parametrize('save', [False, True])
@pytest.mark.parametrize('change', [disable_cache, protect])
def test_mode_select_fails_and_changes_nothing_if_the_flush_fails(daemon, ready, change, save):
    serve(daemon, FAILING)
    session = ready(daemon.start())
    session.write(0, b'a' * 512)
    before = mode_page(session, CACHING), mode_page(session, CONTROL)
    assert change(session, save).key == WRITE_ERROR
    assert (mode_page(session, CACHING), mode_page(session, CONTROL)) == before
    daemon.logged(' FAILED: flush failed')
    assert change(session, save).key == INTERNAL_TARGET_FAILURE


def test_a_write_that_was_admitted_with_the_cache_on_is_durable_when_it_ends(daemon, ready, trace):
    """Its data arrives after another initiator has disabled the cache."""
    serve(daemon, trace.setting)
    daemon.text.targets[TARGET][0].extend(['InitialR2T = Yes', 'ImmediateData = No'])
    daemon.start()
    writer, other = ready(daemon, name=ONE), ready(daemon, name=TWO)
    writer.hold_r2t = True
    command = writer.submit(struct.pack('>BBQIBB', 0x8A, 0, 0, 8, 0, 0), out=b'w' * 4096)
    eventually(lambda: writer.step() or command.r2ts, 10, 'an R2T')
    disable_cache(other).good()
    assert trace.verbs() == ['flush', 'flush']
    writer.hold_r2t = False
    writer.answer_r2t(command)
    writer.wait(command).good()
    assert trace.verbs() == ['flush', 'flush', 'durable write']


def test_mode_select_waits_for_a_write_that_began_before(daemon, ready, trace):
    serve(daemon, trace.setting + ', delay write=1s')
    daemon.start()
    writer, other = ready(daemon, name=ONE), ready(daemon, name=TWO)
    command = writer.submit(struct.pack('>BBQIBB', 0x8A, 0, 0, 8, 0, 0), out=b'w' * 4096)
    writer.ping()  # the command has begun when the answer arrives
    disable_cache(other).good()
    found = trace.verbs()  # the first flush may end before or after the write
    assert sorted(found) == ['flush', 'flush', 'write'] and found[-1] == 'flush'
    writer.wait(command).good()


def test_a_reload_that_disables_the_cache_flushes(daemon, ready, trace):
    image = serve(daemon, trace.setting)
    session = ready(daemon.start())
    session.write(0, b'a' * 512)
    daemon.target(
        TARGET, luns={0: ['backing-store = %s' % image, trace.setting, 'write-cache = off']}
    )
    daemon.write_config()
    assert daemon.targetdctl('reload')[0] == 0
    assert trace.verbs()[-1] == 'flush'
    session.clear_attentions()
    assert not has_cache(session)


def test_a_reload_that_disables_the_cache_is_refused_if_the_flush_fails(daemon, ready):
    image = serve(daemon, FAILING)
    session = ready(daemon.start())
    session.write(0, b'a' * 512)
    daemon.target(TARGET, luns={0: ['backing-store = %s' % image, FAILING, 'write-cache = off']})
    daemon.write_config()
    code, output = daemon.targetdctl('reload')
    assert code and 'write-cache = off of lun 0' in output and 'cannot be flushed' in output
    assert has_cache(session)


def test_a_lun_that_is_removed_is_flushed_and_a_failure_lasts(daemon, ready):
    image = serve(daemon, FAILING)
    other = daemon.image('other.img')
    session = ready(daemon.start())
    session.write(0, b'a' * 512)
    daemon.target(TARGET, luns={1: ['backing-store = %s' % other]})
    daemon.reload('reload: remove lun 0')
    daemon.logged(' FAILED: flush failed')
    daemon.target(
        TARGET, luns={0: ['backing-store = %s' % image], 1: ['backing-store = %s' % other]}
    )
    daemon.reload('reload: add lun 0')
    daemon.logged('has FAILED before: flush failed')
    assert daemon.units()[0]['state'].startswith('failed')


def test_a_stop_waits_for_the_last_flush_of_a_lun_that_was_removed(daemon, ready):
    image = serve(daemon, 'filter = error flush, delay flush=2s')
    session = ready(daemon.start())
    session.write(0, b'a' * 512)
    session.logout()
    daemon.target(TARGET, luns={1: ['backing-store = %s' % daemon.image('other.img')]})
    daemon.reload('reload: remove lun 0')
    assert ' FAILED' not in daemon.log
    assert daemon.stop() == EXIT_NOT_DURABLE
    assert TARGET + '/0 could NOT be flushed' in daemon.log
    daemon.target(TARGET, luns={0: ['backing-store = %s' % image]})
    daemon.start()
    assert daemon.units()[0]['state'].startswith('failed')


def test_a_target_that_is_removed_is_flushed_and_a_failure_lasts(daemon, ready):
    image = serve(daemon, FAILING)
    daemon.text.server['stop-timeout'] = '1'
    session = ready(daemon.start())
    session.write(0, b'a' * 512)
    session.logout()
    del daemon.text.targets[TARGET]
    daemon.target('iqn.2026-11.test:other')
    daemon.reload('reload: remove target')
    daemon.logged(' FAILED: flush failed')
    daemon.target(TARGET, luns={0: ['backing-store = %s' % image]})
    daemon.reload('reload: add target')
    daemon.logged('has FAILED before: flush failed')
    assert daemon.stop() == EXIT_NOT_DURABLE


def test_a_path_that_becomes_inactive_is_flushed(daemon, ready, trace):
    image = daemon.image()
    daemon.target(
        TARGET,
        ('initiator-address = ALL', 'alua = implicit'),
        {0: ['backing-store = %s' % image, trace.setting]},
    )
    session = ready(daemon.start())
    session.write(0, b'a' * 512)
    assert daemon.targetdctl('alua', TARGET, '1', 'nonoptimized')[0] == 0
    assert trace.verbs() == ['write']
    assert daemon.targetdctl('alua', TARGET, '1', 'standby')[0] == 0
    assert trace.verbs()[-1] == 'flush'
    assert daemon.targetdctl('alua', TARGET, '1', 'standby')[0] == 0  # it is standby already


def test_a_path_that_becomes_standby_reports_a_flush_that_fails(daemon, ready):
    lines = ['backing-store = %s' % daemon.image(), FAILING]
    daemon.target(TARGET, ('initiator-address = ALL', 'alua = implicit'), {0: lines})
    session = ready(daemon.start())
    session.write(0, b'a' * 512)
    code, output = daemon.targetdctl('alua', TARGET, '1', 'standby')
    assert code == 1
    assert 'is standby, but' in output and 'a flush failed: %s/0' % TARGET in output
    assert 'acknowledge' in output


def test_an_eject_is_flushed_after_the_last_write(daemon, ready, trace):
    serve(daemon, trace.setting, 'removable = yes')
    session = ready(daemon.start())
    session.write(0, b'a' * 512)
    session.run(struct.pack('>BBBBBB', 0x1B, 0, 0, 0, 0x02, 0)).good()
    assert trace.verbs()[0] == 'write' and trace.verbs()[1:].count('flush') == 3
