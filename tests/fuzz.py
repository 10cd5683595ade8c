"""Fuzzing of everything that reads what others wrote, with real processes where there is one:

  network   logins, full feature phase, several connections (fuzzers.py) and the control socket
  messages  what a hostile worker sends to the master
  orders    what a worker receives from the master
  state     the files of state-dir and key files at a start of the server
  media     partition tables, file systems, other formats and journals on a disk

Each part draws from the seed only. A part fails if a traceback appears anywhere, if a master or a worker
dies, or if the honest session or login beside it is not served. The input that failed, or the
last inputs before the failure was noticed, are written to the folder `inputs` of the run.
"""

import base64
import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import sys
import threading
import time
import traceback
import zlib
from collections import Counter, deque

from daemon import TARGET, eventually, free_port, is_listening, watched
from fuzzers import Fuzzer
from initiator import connect, pattern

from targetd import channel as channels
from targetd import errors
from targetd.admin import commands
from targetd.config import loader
from targetd.host import block_sizes, signatures
from targetd.master.state import key_files
from targetd.master.units import shared_state
from targetd.store import journal
from targetd.store.file import FileStore
from targetd.worker import main as worker_main

FUZZED = 'iqn.2026-11.test.targetd:fuzzed'
# fmt: off
VALUES = (
    None, True, 0, 1, -1, 255, 1 << 31, 1 << 63, 1 << 64, 10**60, 1.5, '', 'x', 'x' * 3000, '\ud800',
    '\0', '00' * 48, [], [[]], [0, 1], ['x', 'y'], {}, {'x': 1}, {'1': {'2': {'3': {'4': []}}}},
)
# fmt: on
#: Lines of the log that no input may cause.
TROUBLE = re.compile(
    r'Traceback|Exception ignored|Fatal Python|unexpected failure|failed unexpectedly|cannot handle'
    r'|worker \d+ (exited with code [1-9]|was killed by signal )'
    r'(?!9 \(SIGKILL\): (its login took long|it sent))'
)
#: Of the workers that only initiators talk to.
HONEST_WORKERS = re.compile(r'worker \d+ sent|is over: its worker died')


class Part(object):
    """One part of the run: `draw`, `figures`, `complaints`. keep(name, data) writes an input."""

    def __init__(self, directory, seed, seconds):
        self.directory = os.path.join(directory, type(self).__name__.lower())
        self.inputs = os.path.join(directory, 'inputs')
        os.makedirs(self.directory)
        os.makedirs(self.inputs, exist_ok=True)
        self.seed = seed
        self.draw = random.Random('%s %s' % (seed, type(self).__name__))
        self.end = time.monotonic() + seconds
        self.figures, self.complaints = Counter(), []

    @property
    def is_over(self):
        return time.monotonic() >= self.end or len(self.complaints) > 4

    def keep(self, name, data):
        path = os.path.join(self.inputs, '%s-%s' % (type(self).__name__.lower(), name))
        with open(path, 'wb') as file:
            file.write(data)
        return path

    def fail(self, what, name, data):
        self.complaints.append('%s (seed %s, input %s)' % (what, self.seed, self.keep(name, data)))

    def bytes(self, data):
        """Returns a mutation of these bytes."""
        data, draw = bytearray(data), self.draw
        for _ in range(draw.choice([1, 1, 2, 4, 16])):
            at = draw.randrange(len(data) + 1)
            kind = draw.randrange(5)
            if kind == 0:
                del data[at : at + draw.choice([1, 2, 64])]
            elif kind == 1:
                data[at:at] = bytes(draw.getrandbits(8) for _ in range(draw.choice([1, 4, 64])))
            elif kind == 2 and data:
                data[at % len(data)] ^= 1 << draw.randrange(8)
            elif kind == 3 and data:
                data[at % len(data)] = draw.choice([0, 0xFF, 0x7F, 0x80, 0x22, 0x5D, 0x7D])
            elif not draw.randrange(4):
                del data[at:]
        return bytes(data)

    def value(self, value):
        """Returns a mutation of a JSON value: one place of it is replaced, removed or repeated."""
        draw = self.draw
        if isinstance(value, dict) and value and draw.randrange(5):
            value = dict(value)
            name = draw.choice(sorted(value, key=str))
            if not draw.randrange(5):
                value[draw.choice(['x', 'id', 'unit', name + 'x'])] = value.pop(name)
            elif not draw.randrange(6):
                del value[name]
            else:
                value[name] = self.value(value[name])
            return value
        if isinstance(value, list) and value and draw.randrange(5):
            value = list(value)
            at = draw.randrange(len(value))
            if not draw.randrange(4):
                value[at:at] = [value[at]] * draw.choice([1, 2, 100])
            else:
                value[at] = self.value(value[at])
            return value
        if isinstance(value, str) and value and not draw.randrange(3):
            return self.bytes(value.encode('utf-8', 'replace')).decode('latin-1')
        if isinstance(value, int) and not draw.randrange(3):
            return value + draw.choice([-1, 1, 256, -value])
        return draw.choice(VALUES)


def trouble_of(log, also=TROUBLE):
    """The first line of a log that no input may cause, and its surroundings; '' if there is none. also:
    a further expression for such lines."""
    found = TROUBLE.search(log) or also.search(log)
    return '' if found is None else log[max(0, found.start() - 500) : found.end() + 2500]


# -- network ---------------------------------------------------------------------------------------


class Network(Part):
    def run(self):
        with watched(self.directory) as daemon:
            lines = ['initiator-address = ALL', 'ErrorRecoveryLevel = 2', 'MaxConnections = 4']
            lines += ['HeaderDigest = None, CRC32C', 'DataDigest = None, CRC32C']
            daemon.target(size=16 << 20)
            daemon.target(FUZZED, lines, size=16 << 20)
            daemon.text.server.update(
                {'max-sessions': 100, 'max-connections-per-address': 200, 'log-level': 'debug'}
            )
            daemon.start()
            over = threading.Event()
            fuzzers = [RecordedFuzzer(daemon, self.seed, number, over) for number in range(2)]
            control = threading.Thread(target=self.fuzz_control, args=(daemon, over), daemon=True)
            for thread in fuzzers + [control]:
                thread.start()
            try:
                self.verify(daemon)
            except Exception as e:  # the honest session
                self.fail('the honest session: %r' % e, 'log', daemon.log.encode())
            finally:
                over.set()
                for thread in fuzzers + [control]:
                    thread.join(30)
            for fuzzer in fuzzers:
                self.figures['connections'] += fuzzer.count
                self.figures['logins into full feature phase'] += fuzzer.logged_in
                if self.complaints:
                    self.keep('sent-%d' % fuzzer.number, b'\n'.join(fuzzer.sent))
            daemon.expected_trouble.append('')  # reported already

    def verify(self, daemon):
        """Writes and reads in a session of its own, while the log is examined."""
        with connect(daemon.address, TARGET, name='iqn.2026-11.test:honest') as session:
            session.clear_attentions()
            worker, rounds = daemon.worker_of(session).pid, 0
            while not self.is_over:
                data = pattern(rounds, 4096)
                session.write(rounds % 64 * 8, data)
                assert session.read(rounds % 64 * 8, 8) == data
                rounds += 1
                assert daemon.process.poll() is None, 'the master died'
                if rounds % 20 == 0:
                    found = trouble_of(daemon.log, HONEST_WORKERS)
                    if found:
                        self.fail('trouble in the log', 'log', daemon.log[-200000:].encode())
                        return
                time.sleep(0.02)
            assert daemon.worker_of(session).pid == worker
            self.figures['verified writes beside'] = rounds

    def fuzz_control(self, daemon, over):
        """Requests of every command that changes nothing, mutated, and garbage."""
        rows = [row for row in commands.TABLE if commands.is_read_only(row) and not row.local]
        path = os.path.join(daemon.directory, 'targetd.sock')
        while not over.is_set():
            row = self.draw.choice(rows)
            request = {'command': row.words}
            for argument in row.arguments:
                request[argument.name] = self.draw.choice([1, 'x', 'all', True, None])
            if self.draw.randrange(3):
                request = self.value(request)
            try:
                line = json.dumps(request).encode() + b'\n'
                if not self.draw.randrange(3):
                    line = self.bytes(line)
                if b'stop' in line or b'reload' in line:
                    continue
                with socket.socket(socket.AF_UNIX) as control:
                    control.settimeout(10)
                    control.connect(path)
                    control.sendall(line)
                    if self.draw.randrange(8):
                        control.shutdown(socket.SHUT_WR)
                        while control.recv(65536):
                            pass
            except OSError:
                pass
            self.figures['requests on the control socket'] += 1
            time.sleep(0.01)


class RecordedFuzzer(Fuzzer):
    """Keeps what it sent last, in hex digits."""

    def __init__(self, daemon, seed, number, over):
        super(RecordedFuzzer, self).__init__(daemon.address, FUZZED, seed * 100 + number, over)
        self.number = number
        self.sent = deque(maxlen=2000)

    def session(self):
        session = super(RecordedFuzzer, self).session()
        raw, connection = session.wire.raw, self.count

        def recorded(data):
            self.sent.append(b'%d %s' % (connection, bytes(data).hex().encode()))
            raw(data)

        session.wire.raw = recorded
        return session


# -- messages: worker to master --------------------------------------------------------------------


class Messages(Part):
    def run(self):
        sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), 'process'))
        import puppets

        log = os.path.join(self.directory, 'log')
        with errors_in(log):
            self.serve(puppets, log)

    def serve(self, puppets, log):
        stage = puppets.Stage(self.directory)
        stage.port_number = free_port()
        chap = puppets.OPEN + ['incominguser = erp 12-to-16-chars']
        stage.start(
            puppets.body(
                stage,
                (puppets.DISK, puppets.OPEN, {0: ['type = ram', 'size = 1M']}),
                (puppets.OTHER, chap, {0: ['type = ram', 'size = 1M']}),
            ),
            'max-connections-per-address = 1000',
        )
        honest = stage.login(puppets.DISK, isid='00023d00ffff')
        try:
            while not self.is_over:
                sent = self.one_worker(stage, puppets)
                self.figures['hostile workers'] += 1
                for client in stage.clients[1:]:
                    client.close()
                del stage.clients[1:]
                with open(log, errors='replace') as file:
                    found = trouble_of(file.read())
                if found:
                    self.fail(found, 'messages', b'\n'.join(sent))
                    os.truncate(log, 0)
                if self.figures['hostile workers'] % 20 == 0:
                    stage.login(
                        puppets.DISK, isid='00023d00fffe', name='iqn.2026-11.test:h'
                    ).close()
                    assert not honest.is_closed
        except AssertionError as e:
            self.fail('an honest login or session: %s' % e, 'log', str(e).encode())
        finally:
            stage.close()

    def one_worker(self, stage, puppets):
        """A hostile worker sends up to 12 messages. Returns them."""
        client, sent = stage.connect(), []
        kinds = messages_of_workers(client, puppets.DISK, puppets.OTHER)
        if self.draw.randrange(2):
            client.claim(puppets.DISK)
        for _ in range(self.draw.randrange(1, 12)):
            message = self.draw.choice(kinds)
            for _ in range(self.draw.choice([0, 1, 1, 2])):
                message = self.value(message)
            if not isinstance(message, dict):
                message = {'report': message}
            body = json.dumps(message).encode()
            frame = struct.pack('>I', len(body)) + body
            if not self.draw.randrange(8):
                frame = self.bytes(frame)
            sent.append(frame)
            try:
                client.say(puppet='raw', data=frame.hex())
            except OSError:
                break
            self.figures['messages'] += 1
        end = time.monotonic() + 0.05
        while time.monotonic() < end:
            stage.master.loop.run_once(0.01)
        return sent


# fmt: off
_SESSION = {
    'initiator_name': 'iqn.2026-11.test:one', 'initiator_alias': '', 'isid': '@isid', 'tsih': 0, 'cid': 0,
    'target_name': '@target', 'account': '', 'keys': {'MaxConnections': 2}, 'group': 1,
}
_LOGIN = {'response': '00' * 48, 'answer': '', 'declared': 8192}
#: What workers send; filled() replaces the words that begin with @.
ASKS = {
    'claim': {'session': _SESSION, 'login': _LOGIN, 'peer': '@peer'},
    'challenge': {'peer': '@peer', 'target_name': '@other', 'offered': '5', 'initiator_name': 'a'},
    'authenticate': {'peer': '@peer', 'values': {'CHAP_N': 'erp', 'CHAP_R': '0x' + 'ab' * 16}},
    'persistent-reserve-out': {'service_action': 0, 'scope': 0, 'type': 1, 'key': 0,
                               'service_action_key': 1, 'flags': 1, 'transport_ids': []},
    'reserve': {}, 'release': {}, 'leave': {}, 'fence': {}, 'token-list': {}, 'exit-failure-mode': {},
    'mode-select': {'pages': {'8,0': '00' * 20}, 'save': True, 'revert': False},
    'operate': {'kind': 'sanitize', 'method': 'block', 'pattern': '', 'passes': 1, 'invert': False,
                'ause': False, 'immediate': True},
    'set-identifying-information': {'kind': 'identification', 'text': '00'},
    'set-timestamp': {'timestamp': 1}, 'log-select': {'kind': 'reset'},
    'set-target-port-groups': {'states': {'1': 0}},
    'token-populate': {'ranges': [[0, 512]], 'seconds': 1},
    'token-use': {'token': '00' * 512, 'last': False}, 'token-used': {'token': '00' * 512},
    'token-revoke': {'offset': 0, 'length': 512},
    'copy-reach': {'code_set': 1, 'kind': 3, 'designator': '00' * 8},
    'start-stop': {'action': 'stop'}, 'prevent': {'prevent': True},
    'reset': {'function': 'logical-unit-reset'},
}
REPORTS = {
    'log': {'level': 1, 'text': 'x', 'kind': 'y'}, 'ready': {}, 'idle': {'why': ''},
    'acknowledge': {'id': 1}, 'failed': {'unit': 'x', 'text': 'y'}, 'continues': {'id': 1},
    'refused': {'peer': '@peer', 'initiator_name': 'a', 'target_name': 'b', 'why': 'c',
                'status_class': 2, 'status_detail': 1, 'response': None},
    'closed': {'peer': '@peer', 'cid': 0}, 'ended': {'why': '', 'hangs': False},
    'copy-left': {'unit': '@unit'}, 'fence-over': {'unit': '@unit'}, 'operated': {'failed': ''},
    'hanging': {'unit': '@unit', 'commands': 1, 'command': 'READ(10)', 'lba': 0, 'milliseconds': 9},
    'progress': {'position': 0, 'lasting': True},
    'counted': {'id': 0, 'units': [['@unit', 1, 512, 0, 0, 2, 0, 0, [[3, 1]], []]], 'more': False},
    'note': {'unit': '@unit', 'kind': 'error', 'note': {'lba': 0, 'errno': 5, 'write': False}},
}
# fmt: on


def filled(value, words):
    """Returns the value with the words that begin with @ replaced."""
    if isinstance(value, dict):
        return {name: filled(each, words) for name, each in value.items()}
    if isinstance(value, list):
        return [filled(each, words) for each in value]
    return words.get(value, value) if isinstance(value, str) else value


def messages_of_workers(client, target, other):
    words = {
        '@peer': list(client.socket.getsockname()[:2]),
        '@isid': client.isid,
        '@target': target,
        '@other': other,
        '@unit': target + '/0',
    }
    common = {'unit': '@unit', 'id': 7}
    return [
        filled(dict(common, ask=kind, **more), words) for kind, more in sorted(ASKS.items())
    ] + [filled(dict(report=kind, **more), words) for kind, more in sorted(REPORTS.items())]


# -- orders: master to worker ----------------------------------------------------------------------


class Orders(Part):
    """A real worker without a session, in a process of its own."""

    def run(self):
        log = os.path.join(self.directory, 'log')
        while not self.is_over:
            sent, code = self.one_worker(log)
            self.figures['workers'] += 1
            with open(log, errors='replace') as file:
                found = trouble_of(file.read())
            if found or code:
                self.fail('exit code %d; %s' % (code, found), 'orders', b'\n'.join(sent))
                os.truncate(log, 0)

    def one_worker(self, log):
        """Sends orders until the worker ends. Returns (frames, exit status)."""
        ours, theirs = channels.pair()
        pid = os.fork()
        if pid == 0:
            try:
                ours.close()
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
                worker_main.run_worker(theirs, self.configuration())
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        theirs.close()
        ours.socket.setblocking(True)
        ours.socket.settimeout(10)
        sent = []
        try:
            for _ in range(self.draw.randrange(1, 10)):
                frame, descriptors = self.frame()
                sent.append(frame)
                ours._sendmsg(frame, descriptors)
                self.figures['orders'] += 1
                time.sleep(self.draw.choice([0, 0.001]))
        except (channels.ChannelClosed, OSError):
            pass
        ours.close()

        def ended():
            found, status = os.waitpid(pid, os.WNOHANG)
            return found and [status]

        try:
            return sent, eventually(ended, 10, 'the end of the worker')[0]
        except AssertionError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return sent, -1

    def frame(self):
        message = self.draw.choice(
            [
                {'do': 'answer', 'id': 1, 'status': 0, 'data': None, 'sense': None},
                {'do': 'change', 'id': 1, 'unit': 'x', 'reservations': {}, 'attentions': [[1, 2]]},
                {'do': 'units', 'id': 1, 'add': [], 'remove': [0], 'replace': [], 'last': True},
                {'do': 'logout', 'seconds': 1},
                {'do': 'check-connections', 'id': 1},
                {'do': 'end', 'why': 'x', 'reason': 'stopped'},
                {'do': 'retire'},
                {'do': 'count', 'id': 1},
                {'do': 'serve', 'connection': {}, 'session_values': {}},
                {'do': 'join', 'connection': {}, 'tsih': 1, 'cid': 1, 'keys': {}, 'login': {}},
                {'do': 'nothing'},
            ]
        )
        # without a socket: what is in a connection is the master's own, and not mutated
        for _ in range(self.draw.choice([0, 1, 1, 3])):
            message = self.value(message)
        body = json.dumps(message).encode()
        frame = struct.pack('>I', len(body)) + body
        return (self.bytes(frame) if not self.draw.randrange(4) else frame), ()

    def configuration(self):
        if not hasattr(self, '_configuration'):
            path = os.path.join(self.directory, 'targetd.conf')
            with open(path, 'w') as file:
                file.write('[server]\nstate-dir = %s\n' % self.directory)
            os.chmod(path, 0o600)
            self._configuration = loader.load(path)
        return self._configuration


# -- state files -----------------------------------------------------------------------------------


class State(Part):
    def run(self):
        with watched(self.directory) as daemon:
            kept = self.prepare(daemon)
            state = os.path.join(daemon.directory, 'state')
            while not self.is_over:
                shutil.rmtree(state)
                shutil.copytree(kept, state)
                changed = [self.change(state) for _ in range(self.draw.choice([1, 1, 2, 4]))]
                for _ in range(200):
                    self.restore_state()
                self.start(daemon, b'\n'.join(changed))
            daemon.expected_trouble.append('')  # reported already
            shutil.rmtree(state)

    def prepare(self, daemon):
        """A server with reservations, saved mode pages, atomic writes; returns a copy of its state."""
        daemon.target(size=4 << 20)
        image = 'backing-store = %s' % daemon.image('other.img', 4 << 20)
        daemon.target(
            FUZZED, luns={0: [image, 'atomic-writes = yes'], 1: ['type = ram', 'size = 1M']}
        )
        daemon.text.server['stop-timeout'] = '5'
        daemon.start()
        with connect(daemon.address, TARGET) as session:
            session.clear_attentions()
            session.write(0, pattern(1, 4096))
            register = struct.pack('>BBB2xIx', 0x5F, 0, 0, 24)
            session.run(register, out=struct.pack('>QQ4xB3x', 0, 0xAA, 1)).good()
            # MODE SELECT(6), SP, of the caching page without WCE
            page = bytes(4) + bytes([0x08, 0x12]) + bytes(18)
            session.run(bytes([0x15, 0x11, 0, 0, len(page), 0]), out=page)
        daemon.stop()
        kept = os.path.join(daemon.directory, 'kept')
        shutil.copytree(os.path.join(daemon.directory, 'state'), kept)
        paths = [os.path.join(folder, name) for folder, _, names in os.walk(kept) for name in names]
        self.documents = []
        for path in sorted(paths):
            if path.endswith('.json'):
                with open(path) as file:
                    self.documents.append(json.load(file))
        assert len(self.documents) >= 2, paths
        return kept

    def change(self, state):
        """Mutates one file. Returns its name and new content."""
        paths = sorted(
            os.path.join(folder, name) for folder, _, names in os.walk(state) for name in names
        )
        path = self.draw.choice(paths)
        with open(path, 'rb') as file:
            data = file.read()
        document = _parsed(data) if self.draw.randrange(4) else None
        if document is not None:
            for _ in range(self.draw.choice([1, 1, 3])):
                document = self.value(document)
            data = json.dumps(document).encode()
        else:
            data = self.bytes(data)
        with open(path, 'wb') as file:
            file.write(data)
        return os.path.basename(path).encode() + b' ' + base64.b64encode(data)

    def restore_state(self):
        """What a start does with a state, without a process."""
        state = self.draw.choice(self.documents).get('state', {})
        for _ in range(self.draw.choice([1, 2, 4])):
            state = self.value(state)
        self.figures['states restored'] += 1
        if not isinstance(state, dict):
            return
        try:
            shared_state.saved_state(
                shared_state.initial_state(dict(FACTS), state, 'this boot'), 'this boot'
            )
        except (ValueError, errors.TargetdError):
            pass
        except Exception as e:
            self.fail('%r while a state is restored' % e, 'state', repr(state).encode())

    def start(self, daemon, changed):
        """The server serves the honest target, or refuses to start with a sentence."""
        for path in (daemon.log_file, daemon.output_file):
            if os.path.exists(path):
                os.unlink(path)
        daemon.launch()
        listening = lambda: daemon.process.poll() is not None or is_listening(daemon.address)  # noqa: E731
        try:
            eventually(listening, 60, 'the start')
            if daemon.process.poll() is None:
                self.figures['starts'] += 1
                with connect(daemon.address, FUZZED) as session:  # its memory disk needs no state
                    session.run(bytes(6), lun=1)
                daemon.stop(30)
            else:
                self.figures['refused starts'] += 1
                daemon.process = None
        except Exception as e:
            self.fail('a start with a damaged state: %r' % e, 'state', changed)
            if daemon.process is not None:
                daemon.kill()
        found = trouble_of(daemon.log)
        if found:
            self.fail(found, 'state', changed)


def _parsed(data):
    """The JSON value in these bytes; None if they are something else."""
    try:
        return json.loads(data.decode())
    except ValueError:
        return None


# -- media -----------------------------------------------------------------------------------------


class Media(Part):
    SIZE = 4 << 20

    def run(self):
        path = os.path.join(self.directory, 'disk')
        key = os.path.join(self.directory, 'key')
        key_files.make_key(key)
        with open(key, 'rb') as file:
            key_text = file.read()
        while not self.is_over:
            places = self.image(path)
            try:
                with open(path, 'r+b') as file:
                    descriptor = file.fileno()
                    for sector in (512, 4096):
                        found = signatures.find_signatures(descriptor, self.SIZE, sector)
                        [signatures.one_line(each).encode('utf-8') for each in found]
                        signatures.auto_assembled(found)
                        block_sizes.find_misfit(descriptor, sector)
                        self.figures['signatures found'] += len(found)
            except OSError:
                pass
            except Exception as e:
                self.fail('%r while a medium is examined' % e, 'medium', repr(places).encode())
            self.key_file(key, key_text)
            self.journal()
            self.figures['media'] += 1

    def image(self, path):
        """Writes headers of several formats, mutated. Returns [(offset, bytes)]."""
        places = []
        for _ in range(self.draw.randrange(1, 5)):
            offset, data = self.draw.choice(HEADERS)
            if self.draw.randrange(3):
                data = self.bytes(data)
            places.append((offset if offset >= 0 else self.SIZE + offset, data))
        for _ in range(self.draw.randrange(4)):  # numbers within
            at = self.draw.choice([0, 446, 512, 1024, 1088, 4096, 65536]) + self.draw.randrange(128)
            places.append((at, bytes(self.draw.choice([0, 1, 0xFF]) for _ in range(8))))
        with open(path, 'wb') as file:
            file.truncate(self.SIZE)
            for offset, data in places:
                file.seek(offset)
                file.write(data)
            file.truncate(self.SIZE)
        return places

    def key_file(self, path, text):
        with open(path, 'wb') as file:
            file.write(self.bytes(text))
        try:
            key_files.load_key(path)
        except errors.StoreError:
            pass
        except Exception as e:
            with open(path, 'rb') as file:
                self.fail('%r while a key is loaded' % e, 'key', file.read())

    def journal(self):
        """A journal with records of any offset and length is rolled back into a disk."""
        path, disk = (os.path.join(self.directory, name) for name in ('journal', 'journaled'))
        size = 1 << 20
        slots = []
        for _ in range(self.draw.randrange(1, 3)):
            data = bytes(512 * self.draw.choice([0, 1, 8])) + bytes(
                self.draw.choice([0, 0, 1, 511])
            )
            offset = self.draw.choice([0, 512, 8192, size - 512, size, 1 << 40, (1 << 64) - 512, 7])
            record = journal.Record(offset, data, journal.sums_of(data))
            head, body = journal.pack_record(record)
            slot = (head.ljust(journal.HEAD, b'\0') + body)[: journal.HEAD + 5000]
            slots.append(self.bytes(slot) if not self.draw.randrange(3) else slot)
        with open(path, 'wb') as file:
            for number, slot in enumerate(slots):
                file.seek(number * journal.SLOT)
                file.write(slot)
        with open(disk, 'ab') as file:
            file.truncate(size)
        try:
            description = {'kind': 'file', 'path': disk, 'size': size}
            with FileStore(description, os.open(disk, os.O_RDWR)) as medium:
                journal.recover_all_slots(os.open(path, os.O_RDWR), medium, path)
        except OSError:
            pass
        except Exception as e:
            self.fail('%r while a journal is rolled back' % e, 'journal', b'\0\xff'.join(slots))


def _ext():
    block = bytearray(1024)
    block[56:58] = b'\x53\xef'
    struct.pack_into('<III', block, 92, 4, 0x42, 1)
    return bytes(block)


def _mbr():
    row = struct.pack('<B3sB3sII', 0x80, b'abc', 0x83, b'abc', 8, 4096)
    return bytes(446) + row + bytes(48) + b'\x55\xaa'


def _gpt():
    entry = (
        bytes(range(16)) + bytes(16) + struct.pack('<QQQ', 40, 400, 0) + 'data'.encode('utf-16-le')
    )
    entries = (entry.ljust(128, b'\0')) + bytes(127 * 128)
    head = struct.pack(
        '<8sIIIIQQQQ16sQIII',
        b'EFI PART',
        0x10000,
        92,
        0,
        0,
        1,
        8191,
        34,
        8158,
        bytes(range(16)),
        2,
        128,
        128,
        zlib.crc32(entries),
    )
    head = head[:16] + struct.pack('<I', zlib.crc32(head)) + head[20:]
    return head.ljust(512, b'\0') + entries


HEADERS = [
    (1024, _ext()),
    (0, _mbr()),
    (512, _gpt()),
    (4096, _gpt()),
    (512, b'LABELONE' + bytes(16) + b'LVM2 001' + b'a' * 32),
    (4096 - 10, b'SWAPSPACE2'),
    (1024, bytes(4) + b'\1\0\0\0' + bytes(8) + b'label'),
    (4096, struct.pack('<II', 0xA92B4EFC, 1) + bytes(range(248))),
    (-65536, struct.pack('<II', 0xA92B4EFC, 0) + bytes(range(248))),
    (
        0,
        b'\xeb\x3c\x90mkfs.fat'
        + struct.pack('<HBHBHHB', 512, 4, 1, 2, 512, 4096, 0xF8)
        + bytes(480)
        + b'\x55\xaa',
    ),
    (131072, struct.pack('<Q', 0x00BAB10C) + bytes(1016)),
] + [(offset, mark) for _, _, offset, mark in signatures.MARKS]
FACTS = {'block_size': 512, 'size': 4 << 20, 'read_only': False, 'thin': False, 'removable': False}


@contextlib.contextmanager
def errors_in(path):
    """The standard error of this process goes to a file."""
    sys.stderr.flush()
    kept, file = os.dup(2), os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(file)


#: The parts and their share of the time.
PARTS = ((Network, 30), (Messages, 25), (Orders, 10), (State, 25), (Media, 10))


def run_part(part, directory, seconds, seed):
    """Returns (figures, complaints)."""
    running = part(directory, seed, seconds)
    running.run()
    return running.figures, running.complaints


def run_fuzz(directory, seconds, seed):
    """For tests.longrun: returns (figures, complaints)."""
    figures, complaints = Counter(), []
    for part, share in PARTS:
        found, wrong = run_part(part, directory, seconds * share / 100.0, seed)
        figures.update(found)
        complaints += wrong
    return figures, complaints
