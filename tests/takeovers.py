"""Two servers for one disk, and initiators with a path to each: the active server is killed, stopped and
continued later, or cut off, and the other one takes over, again and again.

The initiators are those of path_writers.py. After each takeover every block is read on the new path: it must
have the number that was acknowledged last, so no write is missing, and none of the other server came
afterwards. At the end the file is read directly.

What a stopped server had received before is not tested here: it may execute that when it goes on, until it
has looked who holds the state. So the writers are between two commands when a server is stopped. Only a fence
(power, the network, the disk's own reservations) excludes that: with one (Takeovers.has_fence) the writers do
not pause (fenced_takeovers.py).
"""

import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections import Counter

import psutil
from daemon import PATIENCE, TARGET, Daemon, eventually
from initiator import connect
from path_writers import BLOCK, BLOCKS, KEY, Writer, Wrong

WRITERS = 3
SIZE = 16 << 20
SERVER_ID = '6c1a9a3e-3a36-4b0f-8a44-0c8f5c0a7d11'
#: The goal for the first write on the other path after the order, on an idle machine.
GOAL_SECONDS = 5.0
HOW = ('killed', 'stopped', 'cut off', 'in order')
#: It goes on and the other one takes over all the same, which only a fence makes harmless.
NOTHING = 'still running'


class Relay(object):
    """A TCP port in front of a server, which can be cut: then connections stay open, and nothing passes."""

    def __init__(self, address):
        self._address = address
        self._is_open = threading.Event()
        self._is_open.set()
        self._sockets = []
        self._listener = socket.socket()
        self._listener.bind(('127.0.0.1', 0))
        self._listener.listen(32)
        self.address = self._listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self):
        self._is_open.clear()

    def repair(self):
        """The connections of before the cut have ended meanwhile."""
        for sock in self._sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        del self._sockets[:]
        self._is_open.set()

    def close(self):
        self._listener.close()
        self.repair()

    def _accept(self):
        while True:
            try:
                near = self._listener.accept()[0]
                self._is_open.wait()
                far = socket.create_connection(self._address, 5)
                far.settimeout(None)
            except OSError:
                if self._listener.fileno() < 0:
                    return
                near.close()
                continue
            self._sockets += [near, far]
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._forward, args=pair, daemon=True).start()

    def _forward(self, source, sink):
        try:
            while True:
                data = source.recv(1 << 16)
                if not self._is_open.is_set():
                    return  # lost in the network
                if not data:
                    break
                sink.sendall(data)
        except OSError:
            pass
        for sock in (source, sink):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


class Takeovers(object):
    """The run. Needs root, for loop devices: two of them on one file are one disk in two hosts. With
    direct-io nothing stays in the page cache of a server that is gone. A subclass can have other disks."""

    has_fence = False
    writer_count = WRITERS
    rest = 0.0  # of each Writer
    target_lines = ()
    lun_lines = ('allow-in-use = yes', 'direct-io = yes')

    def __init__(self, directory):
        self.directory = str(directory)
        self.image = os.path.join(self.directory, 'disk.img')
        self.devices, self.daemons, self.relays, self.writers = [], [], [], []
        self.figures, self.complaints = Counter(), []
        self.times = []  # (how, seconds from the order to the first acknowledged write)
        os.makedirs(os.path.join(self.directory, 'state'), exist_ok=True)
        with open(self.image, 'wb') as file:
            file.truncate(SIZE)

    # -- two servers -------------------------------------------------------------------------------

    def set_up(self):
        """Raises OSError without loop devices."""
        for number in (1, 2):
            self.devices.append(self.attach_disk())
            directory = os.path.join(self.directory, 'server-%d' % number)
            os.makedirs(directory, exist_ok=True)
            daemon = self.make_daemon(number, directory)
            daemon.text.server.update({'server-id': SERVER_ID, 'stop-timeout': '2'})
            daemon.text.groups = {number: daemon.text.groups.pop(1)}
            lines = ('initiator-address = ALL', 'partner-groups = %d' % (3 - number))
            lines += self.target_lines
            lun = [
                'backing-store = %s' % self.devices[-1],
                'unit-state = %s' % os.path.join(self.directory, 'state'),
                # the identity must not come from the name of the loop device
                'naa = 60014053aabbccddeeff001122334455',
                'scsi-sn = pair-0001',
            ]
            lun += self.lun_lines
            daemon.target(TARGET, luns={0: lun}, lines=lines, group=str(number))
            self.daemons.append(daemon)
            self.relays.append(Relay(daemon.address))
        self.daemons[0].start()
        if self.target_lines:
            self.daemons[0].control('takeover', TARGET)
        self.wait_for(lambda: self.daemons[0].units()[0]['state'] == 'ready', 'the first server')
        self.daemons[1].start()
        addresses = [relay.address for relay in self.relays]
        self.writers = [Writer(number, addresses, self.rest) for number in range(self.writer_count)]
        for writer in self.writers:
            writer.register()
        self.writers[0].reserve()
        for writer in self.writers:
            writer.may_go.set()
            writer.start()

    def make_daemon(self, number, directory):
        """Returns the Daemon of the server with this number."""
        return Daemon(directory)

    def attach_disk(self):
        """Returns the path of the disk as the next server sees it."""
        command = ['losetup', '--show', '--direct-io=on', '-f', self.image]
        ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if ran.returncode:
            raise OSError(ran.stderr.decode().strip())
        return ran.stdout.decode().strip()

    def wait_for(self, question, what, seconds=60):
        eventually(
            question,
            seconds,
            lambda: '\n'.join(['%s in:' % what] + [daemon.log for daemon in self.daemons]),
        )

    def close(self):
        for writer in self.writers:
            writer.is_over.set()
            writer.may_go.set()
        for writer in self.writers:
            if writer.ident is not None:
                writer.join(90 * PATIENCE)
        for daemon in self.daemons:
            if daemon.process is not None:
                self.signal(daemon, signal.SIGCONT)
                daemon.kill()
        for relay in self.relays:
            relay.close()
        self.detach_disks()

    def detach_disks(self):
        for device in self.devices:
            subprocess.call(['losetup', '-d', device])

    @staticmethod
    def signal(daemon, number):
        """To the master and all its processes."""
        try:
            master = psutil.Process(daemon.process.pid)
            for process in [master] + master.children(recursive=True):
                process.send_signal(number)
        except psutil.NoSuchProcess:
            pass

    def note(self, text):
        """Something has happened. A subclass can print it."""

    # -- one takeover ------------------------------------------------------------------------------

    def take_over(self, how):
        """The server that is active fails like this, and the other one takes over."""
        active = 0 if self.daemons[0].units()[0]['state'] == 'ready' else 1
        old, new = self.daemons[active], self.daemons[1 - active]
        self.wait_for(lambda: new.units()[0]['state'].startswith('standby'), 'the standby server')
        self._wait_for_writes(active)
        self._break(how, old, self.relays[active])
        ordered = time.monotonic()
        text = new.control('takeover', TARGET)
        self.note('%s: answered after %.1f s: %s' % (how, time.monotonic() - ordered, text.strip()))
        for writer in self.writers:
            writer.may_go.set()
        first = self._wait_for_writes(1 - active, ordered)
        self.times.append((how, first - ordered))
        self.note('%s: the first write came %.1f s after the order' % (how, first - ordered))
        self.figures['takeovers, %s' % how] += 1
        self._look(1 - active)
        self._mend(how, old, self.relays[active])
        self.wait_for(
            lambda: 'standby' in old.units()[0]['state'], 'standby of the replaced server'
        )
        self._look(1 - active)

    def _break(self, how, daemon, relay):
        if how == 'killed':
            daemon.kill()
        elif how == 'cut off':
            relay.cut()
        elif how == 'stopped':
            for writer in self.writers:
                if not self.has_fence:
                    writer.pause()
            self.signal(daemon, signal.SIGSTOP)
        elif how == 'in order':
            daemon.control('standby', TARGET)

    def _mend(self, how, daemon, relay):
        if how == 'killed':
            daemon.start()
        elif how == 'cut off':
            relay.repair()
        elif how == 'stopped':
            self.signal(daemon, signal.SIGCONT)

    def _wait_for_writes(self, path, since=0.0):
        """Wait until every writer has had a write acknowledged on this path; returns when the first was."""
        since = since or time.monotonic()
        found = {}

        def question():
            for writer in self.writers:
                if writer.complaint:
                    raise Wrong(writer.complaint)
                later = [at for at, used in writer.done if at > since and used == path]
                if later:
                    found.setdefault(writer.number, later[0])
            return len(found) == len(self.writers)

        self.wait_for(question, 'writes on path %d' % path, 180)
        return min(found.values())

    def _look(self, path):
        """Everything that was acknowledged is there, and so are the keys and the reservation."""
        for writer in self.writers:
            writer.pause()
        for writer in self.writers:
            if writer.complaint:
                raise Wrong(writer.complaint)
            writer.verify()
            self.figures['blocks that were read and compared'] += BLOCKS
        keys = self.writers[0].keys()
        if set(keys) != {KEY}:
            raise Wrong('the registered keys are %r' % keys)
        self._require_reservation(path)
        for writer in self.writers:
            writer.may_go.set()

    def _require_reservation(self, path):
        stranger = connect(
            self.relays[path].address,
            TARGET,
            name='iqn.2026-11.test:stranger',
            timeout=20 * PATIENCE,
        )
        lba = SIZE // BLOCK - 1
        cdb = struct.pack('>BBIBHB', 0x2A, 8, lba, 0, 1, 0)
        result = stranger.run(cdb, out=bytes(BLOCK))
        while result.status == 0x02 and result.key[0] == 6:
            result = stranger.run(cdb, out=bytes(BLOCK))
        stranger.close()
        if result.status != 0x18:
            raise Wrong('a stranger is not refused by the reservation: %r' % result)

    # -- the end -----------------------------------------------------------------------------------

    def read_file(self):
        """Compare the file itself, when nobody writes any more."""
        with open(self.image, 'rb') as file:
            for writer in self.writers:
                for index in range(BLOCKS):
                    file.seek(writer.lba(index) * BLOCK)
                    writer.compare(writer.lba(index), file.read(BLOCK))

    def run(self, seconds, ways=HOW):
        """Every way at least once. Returns ({figure: number}, [complaint …])."""
        end = time.monotonic() + seconds
        try:
            self.set_up()
            turn = 0
            while turn < len(ways) or time.monotonic() < end:
                self.take_over(ways[turn % len(ways)])
                turn += 1
            for writer in self.writers:
                writer.pause()
            for daemon in self.daemons:
                daemon.stop()
                daemon.process = None
            self.read_file()
        except (Wrong, AssertionError) as e:
            self.complaints.append(str(e))
        finally:
            self.close()
        self.figures['acknowledged writes'] = sum(len(w.done) for w in self.writers)
        self.figures['changes of the path'] = sum(w.path.switches for w in self.writers)
        for how in ways:
            found = [round(1000 * taken) for each, taken in self.times if each == how]
            if found:
                name = 'ms from the order to the first write, %s' % how
                self.figures[name + ' (median)'] = sorted(found)[len(found) // 2]
                self.figures[name + ' (longest)'] = max(found)
        return dict(self.figures), self.complaints


def run_takeovers(directory, seconds, seed, ways=HOW):
    """seed: not used. Returns ({figure: number}, [complaint …]); raises OSError without loop devices."""
    os.makedirs(directory, exist_ok=True)
    return Takeovers(directory).run(seconds, ways)
