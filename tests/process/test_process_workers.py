"""Worker processes, forked: the descriptors they keep, their end and their replacement."""

import json
import os
import signal
import socket
import time

import pytest

from targetd.channel import ChannelClosed
from targetd.master.processes import child
from targetd.master.processes import workers as module
from targetd.master.processes.loop import Loop
from targetd.master.processes.workers import Workers, death


class Clock(object):
    """The real clock and a leap."""

    def __init__(self):
        self.leap = 0.0

    def __call__(self):
        return time.monotonic() + self.leap


def obey(channel):
    """A worker that reports its state when it gets the order `look`."""
    channel.send({'report': 'ready'})
    try:
        while True:
            message, descriptors = channel.read()
            if message['do'] == 'look':
                channel.send(
                    {
                        'report': 'seen',
                        'descriptors': sorted(int(n) for n in os.listdir('/proc/self/fd')),
                        'own': channel.fileno(),
                        'uid': os.getuid(),
                        'groups': os.getgroups(),
                        'parent': os.getppid(),
                        'ignored': signal.getsignal(signal.SIGTERM) == signal.SIG_IGN,
                    }
                )
            elif message['do'] == 'serve':
                with socket.socket(fileno=descriptors[0]) as sock:
                    sock.sendall(b'hello')
                channel.send({'report': 'idle'})
            elif message['do'] == 'finish':
                channel.send({'report': 'ended', 'why': 'it is done'})
                return
            elif message['do'] == 'retire':
                return
            elif message['do'] == 'stop reading':
                signal.pause()
    except ChannelClosed:
        pass


class WorkersOnALoop(object):
    """Workers on a real loop."""

    def __init__(self, serve=obey):
        self.clock = Clock()
        self.loop = Loop(self.clock)
        self.reported, self.deaths, self.spares = [], [], []
        self.workers = Workers(
            self.loop,
            serve,
            lambda w, m: self.reported.append((w, m)),
            lambda w, s: self.deaths.append((w, s)),
            lambda: self.spares.append(1),
        )
        self.loop.on_signal(signal.SIGCHLD, self.workers.reap)

    def until(self, question, seconds=10):
        end = time.monotonic() + seconds
        while not question():
            assert time.monotonic() < end, 'the condition did not become true'
            self.loop.run_once(0.2)

    def ready(self, count):
        self.until(lambda: sum(w.state == 'spare' for w in self.workers.all()) == count)

    def look(self, worker):
        self.workers.send(worker, {'do': 'look'})
        self.until(lambda: any(m.get('report') == 'seen' and w is worker for w, m in self.reported))
        return [m for w, m in self.reported if m.get('report') == 'seen' and w is worker][-1]


@pytest.fixture
def stable():
    stables = []

    def make(serve=obey):
        stables.append(WorkersOnALoop(serve))
        return stables[-1]

    yield make
    for one in stables:
        one.workers.close()
        one.loop.close()


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_spares_are_kept(stable):
    here = stable()
    here.workers.wanted_spares = 2
    here.workers.keep_spares()
    here.ready(2)
    taken = here.workers.take_spare()
    assert taken.state == 'busy'
    here.workers.keep_spares()
    here.ready(2)
    assert len(here.workers.all()) == 3


def test_a_worker_holds_its_channel_and_nothing_of_the_masters(stable, tmp_path):
    here = stable()
    with open(str(tmp_path / 'disk'), 'w') as disk, socket.socket() as listener:
        listener.listen(1)
        here.workers.wanted_spares = 2
        here.workers.keep_spares()
        here.ready(2)
        seen = here.look(here.workers.take_spare())
        assert (
            disk.fileno() not in seen['descriptors']
            and listener.fileno() not in seen['descriptors']
        )
    listing = 1  # the descriptor of the listing of /proc
    assert (
        len([d for d in seen['descriptors'] if d > 2]) == 1 + listing
        and seen['own'] in seen['descriptors']
    )
    assert seen['parent'] == os.getpid() and seen['ignored']


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can change its user')
def test_a_worker_of_a_root_master_runs_as_its_user(stable):
    import pwd

    here = stable()
    here.workers.credentials, here.workers.wanted_spares = child.credentials_of('nobody'), 1
    here.workers.keep_spares()
    here.ready(1)
    seen = here.look(here.workers.take_spare())
    entry = pwd.getpwnam('nobody')
    assert seen['uid'] == entry.pw_uid and 0 not in seen['groups']


def test_a_connection_is_served_and_the_worker_is_a_spare_again(stable):
    here = stable()
    here.workers.wanted_spares = 1
    here.workers.keep_spares()
    here.ready(1)
    worker = here.workers.take_spare()
    ours, theirs = socket.socketpair()
    here.workers.send(worker, {'do': 'serve', 'connection': {}}, [theirs.fileno()])
    theirs.close()
    ours.settimeout(10)
    assert ours.recv(10) == b'hello' and ours.recv(10) == b''
    here.until(lambda: worker.state == 'spare')
    ours.close()


def test_kill_9_is_noticed_named_and_replaced(stable, capfd):
    here = stable()
    here.workers.wanted_spares = 1
    here.workers.keep_spares()
    here.ready(1)
    here.clock.leap += module.YOUNG_SECONDS + 1
    here.loop.run_once(0)
    worker = here.workers.take_spare()
    os.kill(worker.pid, signal.SIGKILL)
    here.until(lambda: here.deaths)
    assert here.deaths[0][0] is worker and not is_alive(worker.pid)
    here.ready(1)
    assert 'worker %d was killed by signal 9 (SIGKILL)' % worker.pid in capfd.readouterr().err


def test_the_master_dies_and_no_worker_survives_it(tmp_path):
    """kill -9 of the master: the kernel kills the workers, whatever they are doing."""
    reading, writing = os.pipe()
    master = os.fork()
    if master == 0:
        try:
            here = WorkersOnALoop()
            here.workers.wanted_spares = 2
            here.workers.keep_spares()
            here.ready(2)
            stuck = here.workers.take_spare()
            here.workers.send(stuck, {'do': 'stop reading'})
            os.write(writing, json.dumps([w.pid for w in here.workers.all()]).encode() + b'\n')
            while True:
                here.loop.run_once(1)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        pids = json.loads(pipe.readline())
    assert len(pids) >= 2 and all(is_alive(pid) for pid in pids)
    os.kill(master, signal.SIGKILL)
    os.waitpid(master, 0)
    end = time.monotonic() + 5
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.01)


def is_running(pid):
    """False too for a zombie that its new parent has not reaped."""
    try:
        with open('/proc/%d/stat' % pid) as f:
            return f.read().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def test_spares_that_exit_early_are_forked_with_growing_delays(stable, capfd):
    here = stable(lambda channel: None)
    here.workers.wanted_spares = 1
    here.workers.keep_spares()
    for number, pause in enumerate((1, 2, 4, 8, 16, 30, 30), 1):
        here.until(lambda number=number: len(here.deaths) == number)
        here.clock.leap += pause - 0.5
        here.loop.run_once(0)
        assert not here.workers.by_pid, 'forked again before %d seconds were over' % pause
        here.clock.leap += 0.5
        here.loop.run_once(0)
        assert len(here.workers.by_pid) == 1
    assert 'the next is forked in 30 seconds' in capfd.readouterr().err


def test_the_delays_are_reset_after_a_spare_has_lived_long_enough(stable):
    here = stable()
    here.workers._young_deaths = 4
    here.workers.wanted_spares = 1
    here.workers.keep_spares()
    here.ready(1)
    here.clock.leap += module.YOUNG_SECONDS + 0.1
    here.loop.run_once(0)
    assert here.workers._young_deaths == 0


def test_a_spare_that_is_never_ready_is_killed(stable):
    here = stable(lambda channel: signal.pause())
    here.workers.wanted_spares = 1
    here.workers.keep_spares()
    here.clock.leap += module.START_SECONDS
    here.loop.run_once(0)
    here.until(lambda: here.deaths)
    assert os.WIFSIGNALED(here.deaths[0][1])


def test_a_worker_that_closes_its_channel_and_stays_is_killed(stable):
    def deaf(channel):
        channel.send({'report': 'ready'})
        channel.close()
        signal.pause()

    here = stable(deaf)
    here.workers.wanted_spares = 1
    here.workers.keep_spares()
    here.until(lambda: any(w.channel is None for w in here.workers.all()))
    here.clock.leap += 1
    here.until(lambda: here.deaths)


def test_what_a_worker_reported_before_it_ended_is_read_though_an_order_cannot_be_sent(stable):
    """Its last reports may say that data was lost, or why its session is over."""
    one = stable()
    one.workers.wanted_spares = 1
    one.workers.keep_spares()
    one.ready(1)
    worker = one.workers.take_spare()
    one.workers.send(worker, {'do': 'finish'})
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # the loop does not run meanwhile
    one.workers.send(worker, {'do': 'look'})  # EPIPE
    one.until(lambda: one.deaths)
    assert worker.ended_cleanly == 'it is done'
    assert [m for w, m in one.reported if w is worker and m['report'] == 'ended']


def test_a_new_generation_replaces_the_spares_and_not_the_busy_workers(stable):
    here = stable()
    here.workers.wanted_spares = 2
    here.workers.keep_spares()
    here.ready(2)
    old = here.workers.all()
    busy = here.workers.take_spare()
    busy.session = object()
    here.workers.send(busy, {'do': 'look'})
    here.workers.new_generation()
    here.until(lambda: len([d for d in here.deaths if d[0] in old]) == 2)
    here.until(
        lambda: (
            len([w for w in here.workers.all() if w.state == 'spare' and w.generation == 1]) == 2
        )
    )


def test_a_worker_that_sends_a_malformed_frame_is_killed(stable):
    def rude(channel):
        channel.send(['no', 'object'])
        signal.pause()

    here = stable(rude)
    here.workers.wanted_spares = 1
    here.workers.keep_spares()
    here.until(lambda: here.deaths)


def test_no_more_than_the_limit(stable):
    here = stable()
    here.workers.limit, here.workers.wanted_spares, here.workers.waiting = 2, 4, 4
    here.workers.keep_spares()
    here.ready(2)
    here.workers.keep_spares()
    assert len(here.workers.all()) == 2


def test_a_failing_fork_is_tried_again(stable, capfd):
    here = stable()
    real, here.workers.wanted_spares = here.workers.fork, 1

    def fail():
        raise OSError(11, 'Resource temporarily unavailable')

    here.workers.fork = fail
    here.workers.keep_spares()
    assert 'no worker can be forked (Resource temporarily unavailable)' in capfd.readouterr().err
    here.workers.fork = real
    here.clock.leap += 1
    here.loop.run_once(0)
    here.ready(1)


@pytest.mark.parametrize(
    'status, words',
    [
        (9, 'was killed by signal 9 (SIGKILL)'),
        (0x300, 'exited with code 3'),
        (0, 'exited with code 0'),
        (63, 'was killed by signal 63'),
    ],
)
def test_the_text_for_a_wait_status(status, words):
    assert death(status) == words
