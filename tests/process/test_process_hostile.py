"""A hostile worker: a puppet with the real channel tries to get more than the session that it serves."""

import ast
import os

import pytest
from puppets import DISK, OPEN, OTHER, RAM, body

from targetd.errors import TargetdError
from targetd.master import log_files, vault
from targetd.master.processes import sandbox
from targetd.master.state import key_files

SECRET, OTHER_SECRET = 'secret of erp 14', 'secret of two 14'
CHAP = ['incominguser = erp "%s"' % SECRET]
BOTH = ['incominguser = erp "%s"' % SECRET, 'incominguser = mallory "%s"' % OTHER_SECRET]


@pytest.fixture
def two_targets(stage):
    """DISK requires CHAP; OTHER does not."""
    stage.start(body(stage, (DISK, OPEN + CHAP, RAM), (OTHER, OPEN, RAM)))
    return stage


def is_killed(stage, client, capfd, why):
    client.wait_closed()
    stage.until(lambda: not any(worker.is_distrusted for worker in stage.master.workers.all()))
    return why in capfd.readouterr().err


def claim(client, **changes):
    session = {
        'initiator_name': 'iqn.2026-11.test:one',
        'initiator_alias': '',
        'isid': client.isid,
        'target_name': OTHER,
        'tsih': 0,
        'cid': 0,
        'account': '',
        'keys': {},
    }
    more = {'peer': changes.pop('peer')} if 'peer' in changes else {}
    session.update(changes)
    client.say(ask='claim', id=5, session=session, **more)


@pytest.mark.parametrize(
    'changes, why',
    [
        ({'peer': ['10.0.0.1', 5]}, 'for a connection that it does not log in'),
        ({'group': 2}, 'another group'),
        ({'isid': '00023d00ffff'}, 'another isid'),
        ({'cid': 7}, 'another cid'),
        ({'tsih': 9}, 'another tsih'),
        ({'account': 'erp', 'target_name': DISK}, 'an account that was not proved'),
    ],
)
def test_a_claim_with_forged_fields_ends_the_worker(two_targets, changes, why, capfd):
    client = two_targets.connect()
    claim(client, **changes)
    assert is_killed(two_targets, client, capfd, why)
    assert two_targets.master.sessions.all() == []


def test_a_worker_gets_one_session_for_each_connection(two_targets, capfd):
    client = two_targets.login(OTHER)
    claim(client, target_name=OTHER)
    assert is_killed(two_targets, client, capfd, 'for a connection that it does not log in')


def test_a_worker_cannot_claim_the_connection_of_another_worker(two_targets, capfd):
    victim = two_targets.connect()
    hostile = two_targets.connect(isid='00023d000002')
    two_targets.until(lambda: len(two_targets.master.workers.busy()) == 2)
    claim(hostile, peer=list(victim.socket.getsockname()))
    assert is_killed(two_targets, hostile, capfd, 'for a connection that it does not log in')
    assert victim.login(OTHER)[0] == (0, 0)


def test_a_target_with_chap_is_granted_only_with_a_proof(two_targets):
    client = two_targets.connect()
    assert client.login(DISK)[0] == (2, 1)
    client = two_targets.connect()
    assert client.authenticate(DISK, 'erp', 'a wrong secret 1')['is_authentication']
    assert client.login(DISK)[0] == (2, 1)
    client = two_targets.connect()
    assert not client.authenticate(DISK, 'erp', SECRET)['failed']
    assert client.login(DISK, account='erp')[0] == (0, 0)


def test_a_proof_is_for_one_target(stage):
    stage.start(
        body(
            stage,
            (DISK, OPEN + CHAP, RAM),
            (OTHER, OPEN + ['incominguser = erp "%s"' % OTHER_SECRET], RAM),
        )
    )
    client = stage.connect()
    assert not client.authenticate(DISK, 'erp', SECRET)['failed']
    assert client.login(OTHER, account='erp')[0] == (2, 1)


def test_a_challenge_is_answered_once(two_targets, capfd):
    """A worker cannot guess: one challenge and one response for each connection."""
    client = two_targets.connect()
    assert client.authenticate(DISK, 'erp', 'a wrong secret 1')['is_authentication']
    client.say(ask='authenticate', id=9, values={'CHAP_N': 'erp', 'CHAP_R': '0x00'})
    assert is_killed(two_targets, client, capfd, 'a CHAP response without challenge')
    client = two_targets.connect()
    client.authenticate(DISK, 'erp', 'a wrong secret 1')
    client.say(ask='challenge', id=9, target_name=DISK, offered='5')
    assert is_killed(two_targets, client, capfd, 'a second challenge')


def test_a_login_that_began_before_a_reload_obeys_the_new_configuration(two_targets):
    unproved, proved = two_targets.connect(), two_targets.connect(isid='00023d000002')
    assert not proved.authenticate(DISK, 'erp', SECRET)['failed']
    two_targets.until(lambda: len(two_targets.master.workers.busy()) == 2)
    two_targets.write(
        body(
            two_targets,
            (DISK, OPEN + ['incominguser = erp "%s"' % OTHER_SECRET], RAM),
            (OTHER, OPEN + CHAP, RAM),
        )
    )
    two_targets.master.reload.reload_and_wait()
    assert unproved.login(OTHER)[0] == (2, 1)  # it has an account now
    assert proved.login(DISK, account='erp')[0] == (2, 1)  # that secret is not valid any more


def test_a_join_must_prove_the_account_of_the_session(stage):
    stage.start(body(stage, (DISK, OPEN + BOTH, RAM)))
    client = stage.connect()
    client.authenticate(DISK, 'erp', SECRET)
    status, answer = client.login(DISK, account='erp')
    assert status == (0, 0)

    def join(cid, user, secret):
        further = stage.connect(tsih=answer['tsih'], cid=cid)
        assert not further.authenticate(DISK, user, secret)['failed']
        return further.login(DISK, tsih=answer['tsih'], cid=cid, account=user)[0]

    assert join(1, 'mallory', OTHER_SECRET) == (2, 2)
    assert join(2, 'erp', SECRET) == (0, 0)


@pytest.fixture
def joined(stage):
    """DISK requires CHAP and has a session of 'erp'; the function begins a join of it."""
    stage.start(body(stage, (DISK, OPEN + BOTH, RAM)))
    client = stage.connect()
    client.authenticate(DISK, 'erp', SECRET)
    status, answer = client.login(DISK, account='erp')
    assert status == (0, 0)
    stage.tsih = answer['tsih']
    stage.record = stage.master.sessions.by_tsih[stage.tsih]
    return lambda: stage.connect(tsih=stage.tsih, cid=1)


def test_a_join_without_a_proof_does_not_reach_the_session(stage, joined):
    further = joined()
    assert further.login(DISK, tsih=stage.tsih, cid=1)[0] == (2, 2)
    assert list(stage.record.peers) == [0] and len(stage.record.worker.peers) == 1


def test_a_join_with_the_right_account_and_another_name_is_refused(stage, joined):
    further = joined()
    assert not further.authenticate(DISK, 'erp', SECRET)['failed']
    more = dict(tsih=stage.tsih, cid=1, account='erp', name='iqn.2026-11.test:two')
    assert further.login(DISK, **more)[0] == (2, 10)


@pytest.mark.parametrize(
    'login',
    [
        None,
        {},
        {'response': '00' * 48, 'answer': '', 'declared': 8192, 'more': 1},
        {'response': '00' * 480, 'answer': '', 'declared': 8192},
        {'response': '00' * 48, 'answer': '0' * 20001, 'declared': 8192},
        {'response': '00' * 48, 'answer': '', 'declared': 1 << 40},
        {'response': [], 'answer': {}, 'declared': ''},
    ],
)
def test_a_join_with_a_malformed_end_of_its_login_ends_the_worker(stage, joined, capfd, login):
    further = joined()
    assert not further.authenticate(DISK, 'erp', SECRET)['failed']
    further.say(
        ask='claim',
        id=5,
        login=login,
        session={
            'initiator_name': 'iqn.2026-11.test:one',
            'isid': further.isid,
            'target_name': DISK,
            'tsih': stage.tsih,
            'cid': 1,
            'account': 'erp',
        },
    )
    assert is_killed(stage, further, capfd, 'a claim for a further connection')
    assert list(stage.record.peers) == [0] and len(stage.record.worker.peers) == 1


def test_a_join_that_began_before_a_reload_obeys_the_new_configuration(stage, joined):
    """The account is removed while the login runs; the other one keeps the target reachable."""
    further = joined()
    assert not further.authenticate(DISK, 'erp', SECRET)['failed']
    stage.write(body(stage, (DISK, OPEN + BOTH[1:], RAM)))
    stage.master.reload.reload_and_wait()
    more = dict(tsih=stage.tsih, cid=1, account='erp')
    assert further.login(DISK, **more)[0] in ((2, 1), (2, 10))  # (2, 10): the session is ending


def test_a_worker_with_a_session_cannot_join_another_one(stage, capfd):
    """It has no connection that is logging in."""
    stage.start(body(stage, (DISK, OPEN, RAM)))
    victim, hostile = stage.login(DISK), stage.login(DISK, isid='00023d000002')
    claim(hostile, target_name=DISK, tsih=victim.answer['tsih'], isid=victim.isid)
    assert is_killed(stage, hostile, capfd, 'for a connection that it does not log in')
    assert len(stage.master.sessions.by_tsih[victim.answer['tsih']].peers) == 1


def test_a_challenge_with_forged_fields_ends_the_worker(two_targets, capfd):
    for words in (
        {'target_name': ['x'], 'offered': '5'},
        {'target_name': DISK, 'offered': 5},
        {'target_name': DISK, 'offered': '5' * 5000},
        {'target_name': DISK, 'offered': '5', 'initiator_name': {'a': []}},
    ):
        client = two_targets.connect()
        client.say(ask='challenge', id=1, **words)
        client.wait_closed()
    assert 'Traceback' not in capfd.readouterr().err


def memory_of(pid):
    """The readable private memory of a process."""
    with open('/proc/%d/maps' % pid) as maps, open('/proc/%d/mem' % pid, 'rb', 0) as memory:
        for line in maps:
            bounds, mode = line.split()[:2]
            if 'r' not in mode or '[v' in line:
                continue
            start, end = (int(bound, 16) for bound in bounds.split('-'))
            try:
                memory.seek(start)
                yield memory.read(end - start)
            except OSError:
                pass


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can read the memory of the daemon')
def test_no_secret_is_in_the_memory_of_the_master_or_of_a_worker(tmp_path):
    """Seen with the real server: after the start, a login and a reload."""
    from daemon import TARGET, Daemon
    from initiator import Chap, Session

    daemon = Daemon(tmp_path)
    daemon.target(lines=OPEN + CHAP, luns={0: RAM[0]})
    try:
        daemon.start()
        with_session = Session(daemon.address, timeout=10)
        with_session.login(TARGET, chap=Chap('erp', SECRET))
        daemon.reload('reloaded')
        examined = 0
        for pid in [daemon.process.pid] + [worker.pid for worker in daemon.workers()]:
            try:
                found = [piece for piece in memory_of(pid) if SECRET.encode() in piece]
            except (FileNotFoundError, ProcessLookupError):  # a job or a former spare has ended
                continue
            examined += 1
            assert not found, 'process %d' % pid
        assert examined >= 2  # the master, and the worker of the session
        # the scan finds what is there
        assert any(TARGET.encode() in piece for piece in memory_of(daemon.process.pid))
        with_session.close()
    finally:
        daemon.finish()


def test_the_vault_finds_secrets_and_forgets_them(tmp_path):
    path = tmp_path / 'targetd.conf'
    path.write_text(
        '[server]\nstate-dir = %s\n[target %s]\n%s\n[[lun 0]]\ntype = ram\nsize = 1M\n'
        % (tmp_path, DISK, '\n'.join(OPEN + BOTH))
    )
    path.chmod(0o600)
    loaded = vault.load(str(path))
    kept = loaded.vault
    again = vault.load(str(path), kept)
    # the labels are the same
    assert again.configuration.targets == loaded.configuration.targets
    (_, first), (_, second) = loaded.configuration.targets[DISK].accounts
    with kept.opened() as find:
        assert (bytes(find(first)), bytes(find(second))) == (SECRET.encode(), OTHER_SECRET.encode())
        with pytest.raises(KeyError):
            find('00' * 32)
    loaded.close()
    again.close()


# -- the sandbox -----------------------------------------------------------------------------------


def probed(stage, capfd):
    """What a worker could do, as probe() of puppets found it."""
    client = stage.connect()
    stage.until(lambda: stage.master.workers.busy())
    client.say(puppet='probe')
    seen = []

    def is_there():
        seen.append(capfd.readouterr().err)
        return "'thread'" in ''.join(seen)

    stage.until(is_there)
    text = ''.join(seen)
    return ast.literal_eval(text[text.index('{') : text.index('}') + 1])


ALLOWED = ('thread', 'status')


@pytest.mark.skipif(bool(sandbox.why_not()), reason='no seccomp filters here')
def test_a_worker_cannot_open_connect_fork_signal_or_administer(stage, capfd):
    stage.start(body(stage, (DISK, OPEN, RAM)), 'sandbox = required')
    found = probed(stage, capfd)
    assert found.pop('limits 0') == [(0, 0)] * 5
    assert [found.pop(name) for name in ALLOWED] == ['', '']
    assert len(found) > 15 and found == dict.fromkeys(found, 'EPERM')
    worker = stage.master.workers.all()[0]
    with open('/proc/%d/status' % worker.pid) as file:
        status = dict(line.split(':', 1) for line in file)
    assert status['Seccomp'].strip() == '2' and status['NoNewPrivs'].strip() == '1'
    if os.geteuid() == 0:
        assert int(status['CapBnd'], 16) == int(status['CapPrm'], 16) == 0
    # its channel and /dev/null
    files = os.listdir('/proc/%d/fd' % worker.pid)
    assert sorted(map(int, files))[:3] == [0, 1, 2]
    assert os.readlink('/proc/%d/fd/2' % worker.pid) == '/dev/null'


@pytest.mark.parametrize('name', ['execute', 'trace', 'memory', 'mount', 'namespace'])
@pytest.mark.skipif(bool(sandbox.why_not()), reason='no seccomp filters here')
def test_a_worker_that_does_what_no_worker_does_is_killed_and_the_log_says_so(stage, capfd, name):
    stage.start(body(stage, (DISK, OPEN, RAM)), 'sandbox = required')
    client = stage.login(DISK)
    worker = stage.master.sessions.all()[0].worker
    client.say(puppet='fatal', name=name)
    stage.until(lambda: worker.pid not in stage.master.workers.by_pid)
    log = capfd.readouterr().err
    assert 'worker %d was killed by signal 31 (SIGSYS)' % worker.pid in log
    assert 'may have been taken over' in log
    stage.login(DISK)  # the others go on


def test_without_a_sandbox_a_worker_can_open_what_its_user_can(stage, capfd):
    """The probe finds what is allowed."""
    stage.start(body(stage, (DISK, OPEN, RAM)), 'sandbox = off')
    found = probed(stage, capfd)
    assert [found[name] for name in ('open', 'name', 'fork', 'socket', 'session')] == [''] * 5


def test_a_required_sandbox_that_the_host_does_not_have(stage, monkeypatch):
    monkeypatch.setattr(sandbox, 'why_not', lambda: 'the kernel has no seccomp filters')
    with pytest.raises(TargetdError) as refused:
        stage.start(body(stage, (DISK, OPEN, RAM)), 'sandbox = required')
    assert 'write sandbox = auto' in str(refused.value)


def test_a_worker_cannot_flood_the_log(stage, capfd):
    stage.start(body(stage, (DISK, OPEN, RAM)))
    client = stage.login(DISK)
    client.say(puppet='log', count=log_files.LINES_AT_ONCE + 500)
    client.say(ask='leave', id=77)
    stage.until(lambda: (client.listen(), any(m.get('id') == 77 for m in client.of('answer')))[1])
    client.close()
    stage.until(lambda: not stage.master.sessions.all())
    text = capfd.readouterr().err
    assert log_files.LINES_AT_ONCE * 0.9 < text.count('of a puppet') < log_files.LINES_AT_ONCE + 400
    assert 'were suppressed' in text


# -- descriptors and keys of others ----------------------------------------------------------------


def test_a_worker_that_keeps_a_descriptor_of_its_session_is_not_used_again(stage, capfd):
    """Also if it hides the descriptor behind the number of another one."""
    stage.start(body(stage, (DISK, OPEN, RAM)))
    client = stage.login(DISK)
    worker = stage.master.sessions.all()[0].worker
    client.say(puppet='keep')
    client.say(ask='leave', id=7)
    client.say(puppet='idle')
    stage.until(lambda: worker.pid not in stage.master.workers.by_pid)
    assert 'worker %d still has descriptors of its session' % worker.pid in capfd.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can read the memory of the daemon')
def test_no_encryption_key_is_in_the_memory_of_a_worker_that_does_not_serve_it(tmp_path):
    """Seen with the real server: after the start, a login to the encrypted disk and a reload."""
    from daemon import Daemon, eventually
    from initiator import connect

    pytest.importorskip('cryptography')
    daemon = Daemon(tmp_path)
    path = os.path.join(str(tmp_path), 'disk.key')
    image = 'backing-store = %s' % daemon.image('disk.img', 16 << 20)
    daemon.target(DISK, luns={0: [image, 'encryption-key-file = %s' % path]})
    daemon.target(OTHER, luns={0: RAM[0]})
    try:
        daemon.start()
        key = key_files.load_key(path)  # the server has created it
        encrypted = connect(daemon.address, DISK)
        encrypted.clear_attentions()
        encrypted.read(0, 1)
        serving = daemon.worker_of(encrypted).pid
        daemon.text.server['log-level'] = 'debug'
        daemon.text.server['nop-interval'] = '7'
        daemon.reload('reload: ')
        plain = connect(daemon.address, OTHER)
        plain.clear_attentions()
        plain.read(0, 1)

        def has_key(pid):
            wanted = key.encode(), bytes.fromhex(key)
            return any(one in piece for piece in memory_of(pid) for one in wanted)

        def others_of():
            found = [w.pid for w in daemon.workers() if named(w) == 'targetd-worker']
            return len(found) > 2 and [pid for pid in found if pid != serving]

        others = eventually(others_of, 10, 'the worker of the other session and a spare one')
        assert not [pid for pid in others if has_key(pid)]
        assert has_key(serving) and has_key(daemon.process.pid)  # the search finds it
        plain.close()
        encrypted.close()
    finally:
        daemon.finish()


def named(process):
    try:
        return process.name()
    except OSError:
        return ''
