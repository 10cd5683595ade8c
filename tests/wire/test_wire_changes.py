"""The commands of `targetdctl` that change the configuration of the running server, with the real server
and the real executable: what initiators notice, what is written, and what is refused."""

import json
import os
import re
import socket
import stat
import struct
import subprocess

import pytest
from daemon import TARGET, eventually, free_port, is_listening
from initiator import Chap, LoginFailed, connect

pytestmark = pytest.mark.wire
NEW = 'iqn.2026-11.test:new'
MIB = 1 << 20


def live_file(daemon):
    return os.path.join(daemon.directory, 'targetdctl.d', 'live.conf')


def live_text(daemon):
    with open(live_file(daemon)) as f:
        return f.read()


def refused(daemon, *words, **more):
    """Runs a command that is refused; returns what it prints."""
    code, output = daemon.targetdctl(*words, **more)
    assert code in (1, 3, 4, 5) and 'Traceback' not in output, output
    return output


def with_input(daemon, text, *words):
    done = subprocess.run(
        [daemon.python, '-m', 'targetd.admin.cli', '-s', daemon.directory + '/targetd.sock']
        + list(words),
        env=daemon.environment(),
        input=text.encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
    )
    return done.returncode, done.stdout.decode()


def units_of(daemon, target):
    """Returns {lun: row of `show units`} of a target."""
    rows = json.loads(daemon.control('--json', 'show', 'units'))
    return {row['lun']: row for row in rows if row['target_name'] == target}


def write_result(session):
    return session.run(struct.pack('>BBQIBB', 0x8A, 0, 0, 1, 0, 0), out=b'b' * 512)


@pytest.fixture
def used(daemon):
    """A server with TARGET, whose LUN 0 has 64 MiB."""
    daemon.target()
    return daemon.start()


def test_a_lun_is_added_grown_and_removed_under_a_session_and_after_a_restart(used, ready):
    session = ready(used)
    path = os.path.join(used.directory, 'more.img')
    plan = used.control('lun', 'add', TARGET, path, '--size', '8M', '--dry-run')
    assert 'add lun 1' in plan and not os.path.exists(path) and not os.path.exists(live_file(used))
    output = used.control('lun', 'add', TARGET, path, '--size', '8M')
    assert 'add lun 1' in output and 'lun 1 of target' in output
    assert (6, 0x3F, 0x0E) in session.clear_attentions()
    session.clear_attentions(1)
    assert session.capacity(1) == (8 * MIB // 512, 512)
    session.write(0, b'x' * 512, lun=1)
    plan = used.control('lun', 'resize', TARGET + '/1', '16M', '--dry-run')
    assert 'would have 16M, instead of 8M' in plan
    assert 'has 16M now, instead of 8M' in used.control('lun', 'resize', TARGET + '/1', '16M')
    assert (6, 0x2A, 0x09) in session.clear_attentions(1)
    assert session.capacity(1) == (16 * MIB // 512, 512)
    used.control('lun', 'resize', TARGET + '/1', '+4M')
    assert os.path.getsize(path) == 20 * MIB
    assert 'never made shorter' in refused(used, 'lun', 'resize', TARGET + '/1', '1M')
    used.control('lun', 'move', TARGET + '/1', TARGET + '/5')
    session.clear_attentions(0)
    session.clear_attentions(5)
    assert session.read(0, 1, lun=5) == b'x' * 512
    text = live_text(used)
    assert re.search(r'# \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S.*: lun move', text), text
    assert stat.S_IMODE(os.stat(live_file(used)).st_mode) == 0o600
    used.control('lun', 'remove', TARGET + '/5')
    assert os.path.exists(path)
    used.control('lun', 'add', TARGET, path, '--lun', '7')
    session.close()
    used.stop()
    used.start()
    assert sorted(used.units()) == [0, 7]


def test_a_file_that_has_no_size_setting_is_resized_from_its_real_size(used):
    output = used.control('lun', 'resize', TARGET + '/0', '96M')
    assert 'size from that of the file to 96M' in output and 'from nothing' not in output
    assert 'has 96M now, instead of 64M' in output


def test_read_only_and_offline_take_effect_in_the_session_and_outlast_a_restart(used, ready):
    session = ready(used)
    session.write(0, b'a' * 512)
    used.control('lun', 'readonly', TARGET + '/0')
    session.clear_attentions(0)
    assert write_result(session).key[0] == 7
    assert 'read-only (set by the administrator)' in used.control('show', 'units')
    used.control('lun', 'offline', TARGET + '/0')
    assert session.run(bytes(6)).key == (6, 0x2A, 0x01)  # the write protection ended
    assert session.run(bytes(6)).key == (2, 0x04, 0x03)
    session.close()
    used.stop()
    used.start()
    assert 'offline (set by the administrator)' in used.control('show', 'units')
    session = connect(used.address, TARGET)
    eventually(lambda: session.run(bytes(6)).key == (2, 0x04, 0x03))
    used.control('lun', 'online', TARGET + '/0')
    session.clear_attentions(0)
    assert session.read(0, 1) == b'a' * 512
    session.write(0, b'c' * 512)
    session.close()


def test_a_lun_that_is_online_again_may_be_removed_by_hand(used, ready):
    used.text.targets[TARGET][1][1] = ['backing-store = %s' % used.image('second.img', MIB)]
    used.write_config()
    used.control('reload')
    for word in ('offline', 'online'):
        used.control('lun', word, TARGET + '/1')
        used.control('target', word, TARGET)
    assert '[' not in live_text(used)
    session = ready(used)
    del used.text.targets[TARGET][1][1]
    used.write_config()
    used.control('reload', '--now')
    assert sorted(used.units()) == [0]
    session.clear_attentions(0)
    assert session.read(0, 1) == bytes(512)
    session.close()


def test_a_target_is_added_renamed_offline_and_removed(used, ready):
    used.control('target', 'add', NEW, '--set', 'alias=New disk')
    assert 'nobody' not in used.control('acl', 'add', NEW, 'iqn.2026-11.test*')
    path = os.path.join(used.directory, 'new.img')
    used.control('lun', 'add', NEW, path, '--size', '4M')
    session = ready(used, NEW)
    serial = units_of(used, NEW)[0]['serial']
    used.control('target', 'offline', NEW)
    with pytest.raises(LoginFailed):
        connect(used.address, NEW, name='iqn.2026-11.test:second')
    assert session.read(0, 1) == bytes(512)
    assert '--now' in refused(used, 'target', 'remove', NEW)
    session.close()
    eventually(lambda: 'no initiator' in used.control('show', 'sessions'))
    used.control('target', 'online', NEW)
    renamed = 'iqn.2026-11.test:renamed'
    used.control('target', 'rename', NEW, renamed)
    eventually(lambda: 0 in units_of(used, renamed))
    assert units_of(used, renamed)[0]['serial'] == serial
    session = ready(used, renamed)
    assert session.read(0, 1) == bytes(512)
    session.close()
    eventually(lambda: 'no initiator' in used.control('show', 'sessions'))
    used.control('target', 'remove', renamed)
    eventually(lambda: not units_of(used, renamed))
    assert os.path.exists(path)


def test_a_secret_is_rotated_and_both_are_valid_until_the_date(used):
    old, new = 'secret-number-one', 'secret-number-two'
    assert with_input(used, old + '\n', 'account', 'add', TARGET, 'anna')[0] == 0
    with pytest.raises(LoginFailed):
        connect(used.address, TARGET)
    connect(used.address, TARGET, chap=Chap('anna', old)).close()
    code, output = with_input(
        used, new + '\n', 'account', 'rotate', TARGET, 'anna', '--until', '2999-01-01'
    )
    assert code == 0 and 'valid until 2999-01-01' in output
    for secret in (old, new):
        connect(used.address, TARGET, chap=Chap('anna', secret)).close()
    used.control('account', 'rotate', TARGET, 'anna', '--generate', '--until', 'now')
    for secret in (old, new):
        with pytest.raises(LoginFailed):
            connect(used.address, TARGET, chap=Chap('anna', secret))
    code, output = used.targetdctl('account', 'rotate', TARGET, 'anna', '--generate', '--json')
    connect(used.address, TARGET, chap=Chap('anna', json.loads(output)['secret'])).close()
    assert 'without CHAP' in refused(used, 'account', 'remove', TARGET, 'anna')
    used.control('account', 'remove', TARGET, 'anna', '--without-chap')
    connect(used.address, TARGET).close()
    for secret in (old, new):
        assert secret not in used.log
        assert secret not in used.control('history') + used.control('diff', '1')
    assert 'is empty' in with_input(used, '\n', 'account', 'add', TARGET, 'bob')[1]


def test_the_master_never_has_a_secret_in_its_memory(used):
    secret = 'unusual-secret-77'
    assert with_input(used, secret + '\n', 'account', 'add', TARGET, 'anna')[0] == 0
    connect(used.address, TARGET, chap=Chap('anna', secret)).close()
    if os.geteuid() == 0:
        assert secret.encode() not in memory_of(used.process.pid)


def memory_of(process):
    """Returns the private writable memory of a process."""
    found = b''
    with open('/proc/%d/maps' % process) as maps, open('/proc/%d/mem' % process, 'rb', 0) as memory:
        for line in maps:
            match = re.match('([0-9a-f]+)-([0-9a-f]+) rw-p', line)
            if match:
                first, last = (int(each, 16) for each in match.groups())
                try:
                    memory.seek(first)
                    found += memory.read(last - first)
                except OSError:
                    pass
    return found


def test_rules_and_portals_change(used, ready):
    session = ready(used)
    assert 'admits every initiator' in used.control('acl', 'add', TARGET, '10.0.0.0/8')
    output = used.control('acl', 'remove', TARGET, 'ALL')
    assert '10.0.0.0/8' in output
    session.wait_closed()
    with pytest.raises(LoginFailed):
        connect(used.address, TARGET)
    assert 'both must match' in refused(used, 'acl', 'add', TARGET, 'iqn.2026-11.test:x')
    used.control('acl', 'add', TARGET, '127.0.0.1')
    connect(used.address, TARGET).close()
    assert 'is not an access rule' in refused(used, 'acl', 'add', TARGET, 'somebody')
    port = free_port()
    used.control('portal', 'add', '1', '127.0.0.1:%d' % port)
    assert is_listening(('127.0.0.1', port))
    used.control('portal', 'remove', '1', '127.0.0.1:%d' % port)
    assert not is_listening(('127.0.0.1', port))
    last = '127.0.0.1:%d' % used.port
    assert 'last portal' in refused(used, 'portal', 'remove', '1', last)


def test_the_log_level_changes_and_a_wrong_one_is_refused(used):
    used.control('log-level', 'debug')
    assert 'log-level = debug' in live_text(used)
    assert 'did you mean' in refused(used, 'log-level', 'inof')
    assert 'log-level = debug' in live_text(used)


def test_a_change_that_cannot_be_applied_is_not_written(used):
    assert 'serve it once' in refused(used, 'lun', 'add', TARGET, used.image('disk.img'))
    assert 'no lun 9' in refused(used, 'lun', 'remove', TARGET + '/9')
    assert refused(used, 'lun', 'add', TARGET, '/nonexistent/x.img', '--size', '1M')
    # the port is in use: known only when the steps are applied
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', free_port()))
        taken.listen(1)
        port = taken.getsockname()[1]
        output = refused(used, 'portal', 'add', '1', '127.0.0.1:%d' % port)
        assert 'in use' in output
    assert not os.path.exists(live_file(used))
    assert os.listdir(os.path.dirname(live_file(used))) == []


def test_a_directory_that_others_can_write_is_refused(used):
    os.mkdir(os.path.dirname(live_file(used)))
    os.chmod(os.path.dirname(live_file(used)), 0o777)
    assert 'other users can write' in refused(used, 'log-level', 'debug')
    assert used.check()[0] == 3


def test_a_file_written_by_hand_is_never_changed_and_a_clash_is_named(used):
    used.control('lun', 'readonly', TARGET + '/0')
    with open(used.config) as f:
        before = f.read()
    assert before == used.text.render()
    used.text.targets[TARGET][1][0].append('state = offline')
    used.write_config()
    code, output = used.check()
    assert code == 3 and 'live.conf:' in output and 'targetd.conf:' in output, output
    assert 'state of lun 0' in output
    assert 'state of lun 0' in refused(used, 'reload')
    assert 'read-only' in used.control('show', 'units')


def test_history_diff_and_rollback(used, ready):
    eventually(lambda: len(json.loads(used.control('history', '--json'))) == 1)
    session = ready(used)
    used.control('lun', 'add', TARGET, os.path.join(used.directory, 'a.img'), '--size', '1M')
    used.control('target', 'add', NEW)
    eventually(lambda: len(json.loads(used.control('history', '--json'))) == 3)
    rows = json.loads(used.control('history', '--json'))
    assert [row['number'] for row in rows] == [3, 2, 1]
    assert rows[0]['what'] == 'target add %s' % NEW and 'root' in rows[0]['who']
    assert rows[0]['steps'] == ['add target %s with 0 LUNs' % NEW]
    assert 'add lun 1' in used.control('diff', '1') and 'add target' in used.control('diff', '1')
    assert 'add target' not in used.control('diff', '1', '--to', '2')
    assert 'remove lun 1' in used.control('rollback', '1', '--dry-run')
    assert sorted(used.units()) == [0, 1]
    used.control('rollback', '1')
    assert sorted(used.units()) == [0]
    used.control('rollback', '2')
    assert sorted(used.units()) == [0, 1]
    session.clear_attentions(0)
    assert session.read(0, 1) == bytes(512)
    assert 'no entry 99' in refused(used, 'rollback', '99')
    assert 'no entry 99' in refused(used, 'diff', '99')
    # a change by hand, and back
    used.text.targets[TARGET][0].append('alias = By hand')
    used.reload('alias')
    eventually(lambda: 'SIGHUP' in used.control('history'))
    used.control('rollback', '2')
    assert 'By hand' not in used.control('show', 'targets')
    folder = os.path.join(used.directory, 'state', 'history')
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    for name in os.listdir(folder):
        assert stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) == 0o600


def test_a_verb_without_its_second_word_lists_the_words(daemon):
    code, output = daemon.targetdctl('lun')
    assert code == 2 and 'resize' in output
