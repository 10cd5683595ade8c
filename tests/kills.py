"""Workers and the master are killed with SIGKILL while sessions write, verify and lose their
connections; reloads, kicks and ordered stops happen, too.

Every writer has blocks of its own and knows what each of them may contain: what was acknowledged
last or, while a command was not answered, also what that command writes. After each login it reads
all its blocks, and from then on only what was read counts: nothing of the lost session may still
run. At the end the image files are read directly.
"""

import json
import os
import random
import signal
import socket
import struct
import threading
import time
from collections import Counter

from daemon import TARGET, Daemon, eventually, is_listening
from initiator import LoginFailed, connect
from pdus import Closed

BLOCK = 512
BLOCKS = 2048  # of each writer
LONGEST = 64  # blocks of one command
LUNS = ({}, {'atomic-writes': 'yes'}, {'write-cache': 'off'}, {'thin': 'yes'})
WRITERS = 2 * len(LUNS)
UNMAPPED = 0  # the generation of a block of zeroes
#: Results that mean that the command was not executed and may be sent again: a unit attention, a
#: range of blocks that is locked while an atomic write is rolled back, BUSY, TASK SET FULL.
NOT_EXECUTED = ((6, None), (0xB, 0x3E), (0xB, 0x55))
LOST = (Closed, OSError, socket.timeout, LoginFailed)


class Wrong(Exception):
    """The target broke a promise."""


def block_of(writer, lba, generation):
    """The contents of a block; they are different in every generation."""
    if generation == UNMAPPED:
        return bytes(BLOCK)
    return (struct.pack('>HIQ', writer, lba, generation) * 37)[:BLOCK]


def generation_in(data):
    return struct.unpack_from('>HIQ', data)[2]


class InDoubt(object):
    """A command that was sent and not answered yet. all_or_nothing: it writes all its blocks or none
    of them."""

    def __init__(self, first, count, generation, all_or_nothing):
        self.blocks = range(first, first + count)
        self.generation = generation
        self.all_or_nothing = all_or_nothing


class Writer(threading.Thread):
    """One initiator. first: its first block on the LUN; complaint: why it ended before it was told
    to."""

    def __init__(self, run, number):
        super(Writer, self).__init__(daemon=True)
        self.run_of_all, self.number = run, number
        self.lun, self.first = number % len(LUNS), number // len(LUNS) * BLOCKS
        self.random = random.Random(run.seed * 100 + number)
        self.contents = [UNMAPPED] * BLOCKS
        self.in_doubt = []
        self.generation = 0
        self.counts = Counter()
        self.complaint = None
        self.session = None

    def run(self):
        try:
            while not self.run_of_all.is_over.is_set():
                try:
                    self._serve_one_session()
                except LOST:
                    if self.session is not None:
                        self.counts['sessions that were lost'] += 1
                finally:
                    if self.session is not None:
                        self.session.close()
                        self.session = None
                self.run_of_all.is_over.wait(0.05)  # the server may be starting
        except Exception as e:
            self.complaint = '%s: %r' % (self.name, e)

    def _serve_one_session(self):
        self.session = connect(
            self.run_of_all.daemon.address,
            TARGET,
            name='iqn.2026-11.test:writer-%d' % self.number,
            timeout=30.0,
        )
        self.counts['logins'] += 1
        self.settle()
        while not self.run_of_all.is_over.is_set():
            self.random.choice(self.actions)(self)
            if self.session.events:
                self.counts['requests to log out'] += 1
                self.session.logout()
                return
        self.session.logout()

    # -- commands ----------------------------------------------------------------------------------

    def execute(self, cdb, read=0, out=None):
        """Send a command until it is executed; returns its Result."""
        while True:
            result = self.session.run(cdb, self.lun, read, out)
            self.counts['commands'] += 1
            if not self.was_not_executed(result):
                return result

    @staticmethod
    def was_not_executed(result):
        if result.status in (0x08, 0x28):
            return True
        if result.status != 0x02:
            return False
        key, asc, _ = result.key
        return (key, None) in NOT_EXECUTED or (key, asc) in NOT_EXECUTED

    def require_good(self, result, what):
        if result.status or result.response:
            raise Wrong('%s ended with %r' % (what, result))

    def _cdb(self, opcode, first, count, flags=0):
        return struct.pack('>BBQIBB', opcode, flags, self.first + first, count, 0, 0)

    def _ranges(self, number):
        """Ranges of blocks that do not overlap: [(first, count) …]."""
        part = BLOCKS // number
        ranges = []
        for index in range(number):
            count = self.random.choice((1, 1, 8, 8, 16, LONGEST))
            ranges.append((index * part + self.random.randrange(part - count), count))
        return ranges

    def _data(self, first, count, generation):
        return b''.join(block_of(self.number, first + index, generation) for index in range(count))

    def write_several(self):
        """Up to eight writes at once, some with FUA, on the LUN with atomic writes as WRITE ATOMIC."""
        sent = []
        is_atomic = 'atomic-writes' in LUNS[self.lun]
        for first, count in self._ranges(self.random.choice((1, 2, 8))):
            self.generation += 1
            cdb = self._cdb(0x8A, first, count, self.random.choice((0, 0, 0, 8)))
            if is_atomic:
                cdb = struct.pack('>BBQHHBB', 0x9C, 0, self.first + first, 0, count, 0, 0)
            doubt = InDoubt(first, count, self.generation, is_atomic)
            self.in_doubt.append(doubt)
            data = self._data(first, count, self.generation)
            sent.append((doubt, self.session.submit(cdb, self.lun, out=data)))
        for doubt, command in sent:
            result = self.session.wait(command)
            self.counts['commands'] += 1
            if not self.was_not_executed(result):
                self.require_good(result, 'a write')
                self._is_certain(doubt)
            self.in_doubt.remove(doubt)

    def _is_certain(self, doubt):
        self.counts['acknowledged writes'] += 1
        for block in doubt.blocks:
            self.contents[block] = doubt.generation

    def unmap(self):
        ((first, count),) = self._ranges(1)
        if 'thin' not in LUNS[self.lun]:
            return
        doubt = InDoubt(first, count, UNMAPPED, False)
        self.in_doubt.append(doubt)
        descriptor = struct.pack('>QI4x', self.first + first, count)
        parameters = struct.pack('>HH4x', 22, 16) + descriptor
        result = self.execute(struct.pack('>BB5xHB', 0x42, 0, len(parameters), 0), out=parameters)
        self.require_good(result, 'UNMAP')
        self._is_certain(doubt)
        self.in_doubt.remove(doubt)

    def compare_and_write(self):
        """The compared block is the one that is there, so the write must happen."""
        ((first, _),) = self._ranges(1)
        self.generation += 1
        doubt = InDoubt(first, 1, self.generation, True)
        self.in_doubt.append(doubt)
        old = block_of(self.number, first, self.contents[first])
        cdb = struct.pack('>BBQ3xBBB', 0x89, 0, self.first + first, 1, 0, 0)
        result = self.execute(cdb, out=old + self._data(first, 1, self.generation))
        self.require_good(result, 'COMPARE AND WRITE')
        self._is_certain(doubt)
        self.in_doubt.remove(doubt)

    def flush(self):
        self.require_good(self.execute(self._cdb(0x91, 0, BLOCKS)), 'SYNCHRONIZE CACHE')
        self.counts['flushes'] += 1

    def read(self):
        ((first, count),) = self._ranges(1)
        self._verify(first, self._read(first, count))

    def _read(self, first, count):
        result = self.execute(self._cdb(0x88, first, count), read=count * BLOCK)
        self.require_good(result, 'a read')
        return result.data

    actions = (write_several,) * 6 + (read,) * 3 + (compare_and_write, flush, unmap)

    # -- verification ------------------------------------------------------------------------------

    def _verify(self, first, data):
        for index in range(len(data) // BLOCK):
            self._require(
                first + index, data[index * BLOCK :][:BLOCK], (self.contents[first + index],)
            )

    def _require(self, block, data, generations):
        self.counts['verified blocks'] += 1
        for generation in generations:
            if data == block_of(self.number, block, generation):
                return generation
        raise Wrong(
            'block %d of LUN %d has generation %d, not %s'
            % (
                self.first + block,
                self.lun,
                generation_in(data),
                ' or '.join(map(str, generations)),
            )
        )

    def settle(self):
        """After a login: read all blocks. What commands without an answer have done is certain from
        now on."""
        data = b''.join(self._read(first, 256) for first in range(0, BLOCKS, 256))
        self.settle_with(data)

    def settle_with(self, data):
        """The same with the contents of all blocks."""
        possible = {block: [self.contents[block]] for block in range(BLOCKS)}
        for doubt in self.in_doubt:
            for block in doubt.blocks:
                possible[block].append(doubt.generation)
        for block in range(BLOCKS):
            part = data[block * BLOCK : (block + 1) * BLOCK]
            self.contents[block] = self._require(block, part, possible[block])
        for doubt in self.in_doubt:
            written = sum(self.contents[block] == doubt.generation for block in doubt.blocks)
            if written not in (0, len(doubt.blocks)):
                if doubt.all_or_nothing:
                    raise Wrong(
                        'an atomic write at %d is half done' % (self.first + doubt.blocks[0])
                    )
                self.counts['unanswered writes that were done in part'] += 1
            else:
                outcome = 'done' if written else 'not done'
                self.counts['unanswered writes that were %s' % outcome] += 1
        del self.in_doubt[:]


class Kills(object):
    """One run. is_over: set when the writers shall end."""

    def __init__(self, directory, seed):
        self.seed = seed
        self.random = random.Random(seed)
        self.daemon = Daemon(directory)
        self.daemon.text.server.update(
            {'stop-timeout': '3', 'max-connections-per-address': '200', 'login-timeout': '10'}
        )
        self.images = [self.daemon.image('lun-%d.img' % number) for number in range(len(LUNS))]
        luns = {
            number: ['backing-store = %s' % self.images[number]]
            + ['%s = %s' % setting for setting in LUNS[number].items()]
            for number in range(len(LUNS))
        }
        self.daemon.target(TARGET, luns=luns)
        self.is_over = threading.Event()
        self.counts = Counter()
        self.writers = [Writer(self, number) for number in range(WRITERS)]

    def run(self, seconds):
        """Run for so many seconds; returns ({figure: number}, [complaint …])."""
        self.daemon.start()
        end = time.monotonic() + seconds
        first = sorted(set(self.events), key=self.events.index)  # a short run has all of them, too
        for writer in self.writers:
            writer.start()
        try:
            while time.monotonic() < end and all(writer.is_alive() for writer in self.writers):
                self.is_over.wait(self.random.uniform(0.1, 1.5))
                (first.pop() if first else self.random.choice(self.events))(self)
        finally:
            self.is_over.set()
        for writer in self.writers:
            writer.join(60)
        complaints = [writer.complaint for writer in self.writers if writer.complaint]
        complaints += ['%s hangs' % writer.name for writer in self.writers if writer.is_alive()]
        if not complaints:
            complaints = self._stop_and_verify()
        for writer in self.writers:
            self.counts.update(writer.counts)
        return dict(self.counts), complaints

    def _stop_and_verify(self):
        code = self.daemon.stop()
        complaints = ['the exit code is %d' % code] if code else []
        complaints += self.daemon.trouble()
        complaints += [line for line in self.daemon.log.split('\n') if ' FAILED: ' in line]
        for writer in self.writers:
            with open(self.images[writer.lun], 'rb') as image:
                image.seek(writer.first * BLOCK)
                try:
                    writer.settle_with(image.read(BLOCKS * BLOCK))
                except Wrong as e:
                    complaints.append('after the end: %s' % e)
        return complaints

    # -- events ------------------------------------------------------------------------------------

    def kill_workers(self):
        """One worker or two are killed; some of them serve no session."""
        workers = self.daemon.workers()
        for worker in self.random.sample(workers, min(len(workers), self.random.choice((1, 2)))):
            try:
                worker.kill()
                self.counts['workers that were killed'] += 1
            except Exception:  # it has ended by itself
                pass

    def kill_master(self):
        """Its workers end by themselves; then a new server starts."""
        self.daemon.workers()
        self.daemon.signal(signal.SIGKILL)
        self.daemon.process.wait(10)
        self.counts['masters that were killed'] += 1
        eventually(lambda: not self.daemon.survivors(), 20, 'the end of the workers')
        eventually(lambda: not is_listening(self.daemon.address), 20, 'the port free')
        self.daemon.start()

    def stop_and_start(self):
        """An ordered stop."""
        code = self.daemon.stop(40)
        if code:
            raise Wrong('the exit code of a stop is %d' % code)
        self.counts['ordered stops'] += 1
        self.daemon.start()

    def reload(self):
        """SIGHUP, with and without a change."""
        self.daemon.text.server['nop-interval'] = str(self.random.choice((10, 20, 30)))
        self.daemon.write_config()
        self.daemon.signal(signal.SIGHUP)
        self.counts['reloads'] += 1

    def kick(self):
        """The administrator ends a session, or asks its initiator to log out."""
        code, output = self.daemon.targetdctl('--json', 'show', 'sessions')
        numbers = [row['tsih'] for row in json.loads(output)] if code == 0 else []
        if numbers:
            word = self.random.choice(('end', 'logout'))
            code, _ = self.daemon.targetdctl(word, str(self.random.choice(numbers)))
            self.counts['sessions that were kicked (%s)' % word] += code == 0

    events = (
        (kill_workers,) * 6 + (kill_master,) * 2 + (reload,) * 3 + (kick,) * 2 + (stop_and_start,)
    )


def run_kills(directory, seconds, seed, kind=Kills):
    """kind: Kills, or a class of it. Returns ({figure: number}, [complaint …])."""
    os.makedirs(directory, exist_ok=True)
    run = kind(directory, seed)
    try:
        return run.run(seconds)
    finally:
        run.is_over.set()
        if run.daemon.process is not None:
            run.daemon.kill()
