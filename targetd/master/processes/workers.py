"""Worker processes: forked ahead of use, assigned to connections, reaped, replaced.

             fork         report ready       take_spare()           report idle (after a logout)
     (none) ------> starting ------> spare ------> busy -----------------------------> spare
                        |              |             |
                        +--- death ----+-- death ----+--> reaped: on_death(), missing spares forked

Invariants: a worker is in `by_pid` from its fork until it is reaped. The end of file of its channel
only starts the wait for its death; a kill after a second bounds that wait. `on_death` is called
exactly once per worker, after the process has exited.
"""

import os
import signal
import time

from targetd import channel as channels
from targetd import compat, events, log
from targetd.channel import ChannelClosed, MalformedFrame
from targetd.master.processes import child
from targetd.master.processes.loop import READ, WRITE

YOUNG_SECONDS = 5.0  # a spare that dies younger than this delays the next fork
LONGEST_BACK_OFF_SECONDS = 30.0
START_SECONDS = 30.0  # a fork that is not ready by then is killed
SURPLUS = 4  # spares beyond wanted_spares that are kept for SURPLUS_SECONDS after their sessions
SURPLUS_SECONDS = 30.0
UNKILLABLE_SECONDS = 2.0  # a killed worker that still exists waits for a call of the kernel
STARTING, SPARE, BUSY = 'starting', 'spare', 'busy'


class WorkerProcess(object):
    """A worker process, as the master sees it.

    session: the SessionRecord of the session that it serves, or None; peers: the addresses of its
    connections; handed: those that were sent to it, by peer; retiring: True if it was ordered to
    exit as soon as it has no session.
    """

    def __init__(self, pid, channel, born, generation):
        self.pid = pid
        self.channel = channel
        self.born = born
        self.generation = generation
        self.state = STARTING
        self.retiring = False
        self.ending = None  # why the master killed it
        self.is_distrusted = False  # it sent an invalid message; what else it sends is ignored
        self.session = None
        self.rules = None  # sandbox.Rules with which it was forked
        self.peers = []
        self.files = None  # files_of(), before it served anything
        self.has_keys = False  # it was sent an encryption key, which stays in its memory
        self.handed = {}  # (address, port) -> logins.authentication.HandedOver
        self.busy_since = None
        self.ended_cleanly = None
        self.is_killed = False
        self.is_quiet = False  # its session ended, and none of its threads used a medium any more
        self.in_doubt = ()  # units that it may have been flushing when it was killed
        self.is_stuck = False  # its session is over, and it waits for a call of the kernel
        self.start_timer = None
        self.version = ''  # of the earlier program that has forked it, '' if this program has

    def forget_connections(self):
        """Forget the connections whose logins are not over."""
        for connection in self.handed.values():
            connection.forget()
        self.handed.clear()

    def __repr__(self):
        return '<worker %d %s>' % (self.pid, self.state)


class Workers(object):
    """The worker processes of the master.

    serve(channel) runs in the child. on_message(worker, message), on_death(worker, wait status) and
    on_spare() (there may be a spare) are called in the master. fork: os.fork, or a substitute of a
    test.
    """

    def __init__(self, loop, serve, on_message, on_death, on_spare, fork=os.fork):
        self.loop = loop
        self.serve = serve
        self.on_message = on_message
        self.on_death = on_death
        self.on_spare = on_spare
        self.fork = fork
        self.by_pid = {}
        self.wanted_spares = 0
        self.waiting = 0  # connections and operations that wait for a spare
        self.limit = 1 << 30  # workers there may be at once
        self.credentials = None  # child.credentials_of the user that workers run as
        self.sandbox = None  # sandbox.Rules
        self.secrets = lambda: ()  # the keys that no worker shall inherit, in hex digits
        self.generation = 0
        self.stopping = False
        self.is_paused = False  # no worker is forked or taken: an upgrade is being prepared
        self.on_unkillable = lambda worker: None  # called if a killed worker does not end
        self._young_deaths = 0
        self._back_off = None
        self._frozen = False
        self._trimming = None

    # -- state -------------------------------------------------------------------------------------

    def all(self):
        """Every worker that is not reaped yet, as a list."""
        return list(self.by_pid.values())

    def busy(self):
        """The workers that have a connection or an operation and have not reported idle since."""
        return [w for w in self.by_pid.values() if w.state == BUSY]

    def connections_of(self, address):
        """How many connections of this address the workers have."""
        return sum(worker.peers.count(address) for worker in self.by_pid.values())

    def _ahead(self):
        return [
            w
            for w in self.by_pid.values()
            if w.state in (STARTING, SPARE) and not w.retiring and w.ending is None
        ]

    # -- fork --------------------------------------------------------------------------------------

    def keep_spares(self):
        """Fork workers up to the wanted number of spares, unless a fork is being delayed; retire
        spares that are too many."""
        ahead = self._ahead()
        wanted = min(self.wanted_spares + self.waiting, self.limit - len(self.by_pid) + len(ahead))
        if self.stopping or self.is_paused or self._back_off is not None:
            return
        self._trim(ahead, SURPLUS)
        for _ in range(wanted - len(ahead)):
            try:
                self.fork_worker()
            except OSError as e:
                log.error('no worker can be forked (%s); trying again', e.strerror)
                self._young_deaths += 1
                self._start_back_off()
                return

    def _trim(self, ahead, surplus):
        """Retire the spares beyond wanted_spares and `surplus`. The surplus is retired after
        SURPLUS_SECONDS, unless logins use it before."""
        spares = [w for w in ahead if w.state == SPARE]
        too_many = len(ahead) - self.wanted_spares - self.waiting
        for worker in spares[: max(0, too_many - surplus)]:
            self.retire(worker)
        if surplus and too_many > 0 and self._trimming is None:
            self._trimming = self.loop.call_later(SURPLUS_SECONDS, self._trim_all)

    def _trim_all(self):
        self._trimming = None
        if not self.stopping:
            self._trim(self._ahead(), 0)

    def fork_worker(self):
        """Fork one worker. Returns its WorkerProcess. Raises OSError."""
        if not self._frozen:
            compat.freeze_collector()
            self._frozen = True
        ours, theirs = channels.pair(channels.MAXIMUM_REQUEST)
        master = os.getpid()
        try:
            pid = child.fork(
                self.fork,
                lambda: child.run_worker(
                    theirs, self.credentials, master, self.serve, self.sandbox, self.secrets()
                ),
            )
        except OSError:
            ours.close()
            theirs.close()
            raise
        theirs.close()
        worker = WorkerProcess(pid, ours, self.loop.clock(), self.generation)
        worker.rules = self.sandbox
        worker.start_timer = self.loop.call_later(START_SECONDS, lambda: self._never_ready(worker))
        self.by_pid[pid] = worker
        self.loop.watch(ours, READ, lambda events: self._channel_ready(worker, events))
        return worker

    def _never_ready(self, worker):
        if worker.state == STARTING:
            self.kill(worker, 'it was not ready within %d seconds' % START_SECONDS)

    # -- channel -----------------------------------------------------------------------------------

    def _channel_ready(self, worker, events):
        try:
            if events & WRITE:
                events |= self._flush(worker)
            if events & READ:
                for message, descriptors in worker.channel.receive():
                    self._message_received(worker, message, descriptors)
        except MalformedFrame as e:
            self.distrust(worker, 'a malformed frame', str(e))
            self._lost(worker)
        except ChannelClosed:
            self._lost(worker)

    def _flush(self, worker):
        """Send what is queued. Returns READ if the worker has closed its end: what it sent before is to
        be read first."""
        try:
            worker.channel.flush()
            self._watch(worker)
        except ChannelClosed:
            return READ
        return 0

    def _message_received(self, worker, message, descriptors):
        for descriptor in descriptors:  # no message of a worker has descriptors
            os.close(descriptor)
        if worker.is_distrusted:
            return
        try:
            self.on_message(worker, message)
        except Exception:  # a defect of the master: the worker ends, the loop logs the traceback
            self.distrust(worker, 'a message that the master cannot handle', 'see the traceback')
            raise
        report = message.get('report')
        if worker.is_distrusted:
            return
        if report == 'ended':
            worker.ended_cleanly = message.get('why', '')
        elif report in ('ready', 'idle'):
            self._became_spare(worker)

    def _became_spare(self, worker):
        if worker.session is not None or worker.state == SPARE:
            return  # a worker is not trusted: it serves a session, or repeats the report
        if worker.state == STARTING:
            worker.files = files_of(worker.pid)
            worker.start_timer.cancel()
            worker.start_timer = self.loop.call_later(YOUNG_SECONDS, self._grew_up)
        worker.state, worker.peers, worker.busy_since = SPARE, [], None
        worker.forget_connections()
        if worker.files is None or files_of(worker.pid) != worker.files:
            log.info(
                'worker %d still has descriptors of its session; it is not used again', worker.pid
            )
            self.retire(worker)
        if worker.has_keys or worker.generation != self.generation:
            self.retire(worker)
        self.keep_spares()
        self.on_spare()

    def _grew_up(self):
        self._young_deaths = 0

    def _watch(self, worker):
        events = READ | WRITE if worker.channel.wants_write else READ
        self.loop.watch(worker.channel, events, lambda ready: self._channel_ready(worker, ready))

    def send(self, worker, message, descriptors=()):
        """Queue a message to the worker. It is dropped if the worker is dying; on_death() follows."""
        if worker.pid not in self.by_pid or worker.channel is None:
            return
        try:
            worker.channel.queue(message, descriptors)
            if worker.channel.wants_write:
                self._watch(worker)
        except ChannelClosed:
            pass  # the loop reads what the worker has sent before its end, and then the end

    def _lost(self, worker):
        """The worker has closed its end of the channel: it exits, or is killed after a second."""
        if worker.channel is not None:
            self._close_channel(worker)
            self.loop.call_later(
                1.0, lambda: self.kill(worker, 'it closed its channel and did not exit')
            )

    # -- assignment --------------------------------------------------------------------------------

    def take_spare(self):
        """A spare that is ready, which is busy from now on; or None."""
        if self.is_paused:
            return None
        for worker in self.by_pid.values():
            if (
                worker.state == SPARE
                and not worker.retiring
                and worker.ending is None
                and worker.channel is not None
            ):
                worker.state, worker.busy_since = BUSY, self.loop.clock()
                return worker
        return None

    def is_too_confined(self, worker):
        """True if the worker was forked before a reload after which workers must open files, or send SCSI
        commands."""
        rules, wanted = worker.rules, self.sandbox
        if rules is None or wanted is None:
            return False
        return wanted.may_open > rules.may_open or wanted.may_command > rules.may_command

    def retire(self, worker):
        """Order the worker to exit: a spare now, a busy worker when its session is over."""
        if not worker.retiring:
            worker.retiring = True
            self.send(worker, {'do': 'retire'})

    def new_generation(self):
        """The configuration has changed: workers that were forked before serve no new connection
        (ARCHITECTURE D11)."""
        self.generation += 1
        for worker in self.all():
            self.retire(worker)
        self.keep_spares()

    def kill(self, worker, why):
        """SIGKILL: the fence. on_death() follows as for any other death."""
        if self.by_pid.get(worker.pid) is worker:
            worker.ending = why
            try:
                os.kill(worker.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            if not worker.is_killed:
                worker.is_killed = True
                self.loop.call_later(UNKILLABLE_SECONDS, lambda: self._still_there(worker))

    def _still_there(self, worker):
        if self.by_pid.get(worker.pid) is worker:
            self.on_unkillable(worker)

    def distrust(self, worker, what, details):
        """The worker sent an invalid message, so it is broken or hostile: kill it, and ignore its other
        messages."""
        if not worker.is_distrusted:
            worker.is_distrusted = True
            log.error('worker %d sent %s: %s', worker.pid, what, details)
            self.kill(worker, 'it sent ' + what)

    # -- upgrade (ARCHITECTURE D24) ----------------------------------------------------------------

    def pause(self):
        """Fork no worker, and retire the spares."""
        self.is_paused = True
        for worker in self._ahead():
            self.retire(worker)

    def resume(self):
        """The end of pause()."""
        self.is_paused = False
        self.keep_spares()

    def handed_over(self, keep):
        """The workers as plain values, for the program that takes over."""
        return [
            {
                'pid': worker.pid,
                'channel': keep(worker.channel.fileno()),
                'received': bytes(worker.channel.received),
                'born': worker.born,
                'peers': worker.peers,
                'files': worker.files,
                'has_keys': worker.has_keys,
                'busy_since': worker.busy_since,
                'version': worker.version,
            }
            for worker in self.by_pid.values()
        ]

    def take_over(self, rows, version):
        """Continue with the workers of another program. They serve their sessions to the end, and no
        further ones: start_retiring()."""
        for row in rows:
            channel = channels.adopt(row['channel'], row['received'])
            worker = WorkerProcess(row['pid'], channel, row['born'], self.generation - 1)
            worker.state, worker.busy_since = BUSY, row['busy_since']
            worker.peers, worker.files = row['peers'], row['files']
            worker.has_keys, worker.version = row['has_keys'], row['version'] or version
            self.by_pid[worker.pid] = worker
            self._watch(worker)

    # -- reap --------------------------------------------------------------------------------------

    def reap(self):
        """Reap the workers that have exited. Call after SIGCHLD."""
        for pid in list(self.by_pid):
            try:
                reaped, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                reaped, status = pid, 0
            if reaped == pid:
                self._reaped(self.by_pid[pid], status)
        self.keep_spares()

    def _reaped(self, worker, status):
        if worker.channel is not None:  # messages that it sent before it exited
            self._channel_ready(worker, READ)
        if worker.start_timer is not None:
            worker.start_timer.cancel()
        del self.by_pid[worker.pid]
        worker.forget_connections()
        self._close_channel(worker)
        failed = status != 0 and worker.ending is None
        if failed or worker.ending is not None:
            if not self.stopping:
                events.emit('worker_died', process=worker.pid, why=worker.ending or death(status))
            log.warning(
                'worker %d %s%s',
                worker.pid,
                death(status),
                ': ' + worker.ending if worker.ending else '',
            )
        is_young = worker.state == STARTING or self.loop.clock() - worker.born < YOUNG_SECONDS
        if worker.state != BUSY and is_young and not worker.retiring and not self.stopping:
            self._young_deaths += 1
            self._start_back_off()
        self.on_death(worker, status)

    def _start_back_off(self):
        seconds = min(LONGEST_BACK_OFF_SECONDS, 2.0 ** (self._young_deaths - 1))
        if self._back_off is None:
            log.warning(
                'spare workers exit soon after their fork; the next is forked in %d seconds',
                seconds,
            )
            self._back_off = self.loop.call_later(seconds, self._end_back_off)

    def _end_back_off(self):
        self._back_off = None
        self.keep_spares()

    def close(self):
        """Kill and reap every worker that is left."""
        self.stopping = True
        for worker in self.all():
            self.kill(worker, 'targetd stops')
        end = time.monotonic() + UNKILLABLE_SECONDS
        for worker in self.all():
            if not _has_ended(worker.pid, end):
                log.error(
                    'worker %d does not end: a medium does not answer it. It holds its media open '
                    'until then',
                    worker.pid,
                )
            del self.by_pid[worker.pid]
            self._close_channel(worker)

    def _close_channel(self, worker):
        if worker.channel is not None:
            self.loop.forget(worker.channel)
            worker.channel.close()
            worker.channel = None


def files_of(pid):
    """{descriptor: what it is} of a process; None if that cannot be read."""
    folder = '/proc/%d/fd' % pid
    try:
        return {name: os.readlink(folder + '/' + name) for name in os.listdir(folder)}
    except OSError:
        return None


def _has_ended(pid, end):
    """Reap a child that was killed. Returns False if it has not ended by this monotonic time."""
    while True:
        try:
            if os.waitpid(pid, os.WNOHANG)[0] == pid:
                return True
        except ChildProcessError:
            return True
        if time.monotonic() >= end:
            return False
        time.sleep(0.005)


_FORBIDDEN = {
    signal.SIGSYS: ', since it made a system call that no worker makes (sandbox): it may have been '
    'taken over, so find out which client it served'
}


def death(status):
    """A wait status in words: 'was killed by signal 9 (SIGKILL)', 'exited with code 1'."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            name = ' (%s)' % signal.Signals(number).name
        except ValueError:
            name = ''
        return 'was killed by signal %d%s%s' % (number, name, _FORBIDDEN.get(number, ''))
    return 'exited with code %d' % os.WEXITSTATUS(status)
