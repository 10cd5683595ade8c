"""Replacements for worker processes, stores and time in the tests of the master."""

import json
import os

from targetd.master.processes.jobs import JobResult
from targetd.master.processes.loop import Loop
from targetd.master.state.saver import DirectSaver
from targetd.master.state.state_directory import StateDirectory, store_document
from targetd.master.units.atomic_slots import AtomicWrites
from targetd.master.units.copy_guests import CopyGuests
from targetd.master.units.descriptions import Descriptions
from targetd.master.units.flushing import Flushes
from targetd.master.units.format_sanitize import FormatSanitize
from targetd.master.units.key_replacement import KeyReplacements
from targetd.master.units.logical_units import Units
from targetd.master.units.replication import Replication
from targetd.master.units.rod_tokens import RodTokens
from targetd.master.units.transitions import Decision
from targetd.scsi.sam import Nexus

TARGET = 'iqn.2026-11.test:disk'


class Clock(object):
    """A monotonic clock that only the test advances."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class StillLoop(Loop):
    """A real Loop on a Clock: pass_time() advances the clock, and runs the timers that are due and
    the handlers of ready descriptors."""

    def __init__(self):
        self.time = Clock()
        super(StillLoop, self).__init__(self.time)

    def settle(self, passes=20):
        """Run everything that is due now."""
        for _ in range(passes):
            self.run_once(0)

    def pass_time(self, seconds):
        self.time.now += seconds
        self.settle()


class FakeWorker(object):
    """Implements what units and sessions use of a WorkerProcess; `sent` has the messages to it."""

    def __init__(self, name='one', pid=1000):
        self.name = name
        self.pid = pid
        self.session = None
        self.peers = []
        self.has_keys = False
        self.sent = []
        self.killed = None

    def __repr__(self):
        return '<fake %s>' % self.name

    def of(self, word):
        """The messages whose `do` is this word."""
        return [message for message in self.sent if message['do'] == word]


def send(worker, message, descriptors=()):
    worker.sent.append(message)


def kill(worker, why):
    worker.killed = why


def nexus(name='one', isid='00023d000001', group=1, target=TARGET):
    return Nexus('iqn.2026-11.test:%s' % name, isid, target, group)


class FakeStore(object):
    """Implements what the master uses of an opened Store; its descriptor is a real one."""

    kind, path, size, block_size, read_only = 'file', '/disk.img', 1 << 20, 512, False
    flag = 0

    cipher_key = ''

    def __init__(self, path):
        self.key = path
        self.claim = self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT)

    def description(self):
        return {'kind': self.kind, 'path': self.path, 'size': self.size}

    def close(self):
        os.close(self.descriptor)


class FakeWorkers(object):
    """Implements what FormatSanitize uses of Workers: the spares are in `spares`."""

    def __init__(self, send=send):
        self.send = send
        self.kill = kill
        self.spares = []
        self.stopping = False

    def take_spare(self):
        return self.spares.pop(0) if self.spares else None


def refuse_login(worker, target_name):
    return None


def do_nothing(*arguments):
    pass


class DirectJobs(object):
    """Implements what KeyReplacements uses of Jobs: the work is done at once, in this process."""

    @staticmethod
    def is_stuck(name):
        return False

    @staticmethod
    def submit_job(name, work, done, seconds):
        values, descriptors = work()
        done(JobResult(values, list(descriptors), '', False))


class SaverOfTest(DirectSaver):
    """Saves at once, through StateDirectory.save, which a test can replace."""

    def write(self, path, text, done, node=None):
        document = json.loads(text) if text is not None else {}
        try:
            if text is None:
                self.state.save('a key that has no file', {})
            if 'unit' in document:
                self.state.save(document['unit'], document['state'])
            else:
                store_document(path, text)
        except OSError as e:
            done(e)
        else:
            done(None)


def make_units(
    loop,
    path,
    send=send,
    kill=kill,
    workers=None,
    jobs=None,
    map_of=refuse_login,
    on_repaired=do_nothing,
):
    """Units with all its parts, as the master wires them; path: of the state directory."""
    atomic_writes = AtomicWrites(
        jobs, lambda unit, why: replication.fail_unit(unit, why), on_repaired
    )
    replication = Replication(
        loop,
        send,
        kill,
        StateDirectory(str(path)),
        atomic_writes,
        Descriptions(loop, jobs),
        SaverOfTest(),
    )
    replication.saver.state = replication.state
    format_sanitize = FormatSanitize(
        replication,
        KeyReplacements(DirectJobs(), loop),
        workers or FakeWorkers(send),
        lambda: format_sanitize.assign_workers(),
    )
    return Units(
        replication,
        RodTokens(replication),
        CopyGuests(replication, map_of),
        format_sanitize,
        Flushes(jobs, replication.fail_unit),
    )


def change_medium(units, unit, medium):
    """Puts another state of the unit's medium in force."""
    units.replication.apply_decision(unit, Decision(unit.shared._replace(medium=medium)))
