"""A real Master with puppet workers: forked processes that a test controls.

The test's client sends a Login Request header and then lines of JSON. Each line is a message that
the puppet sends to the master, or {"puppet": word}: 'deaf' (send no acknowledgement from now on),
'die', 'fatal' (do what `name` says, in attempt_fatal), 'log' (log so many lines), 'probe' (log what
this process can do), 'raw' (send these bytes, `data` in hex digits, to the master), 'idle' (close the
connections and report idle), 'keep' (keep a descriptor of the session). The puppet sends every
message of the master back to the client as a line, and acknowledges changes.
"""

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import resource
import select
import signal
import socket
import struct
import threading
import time

from targetd.channel import ChannelClosed
from targetd.config import loader
from targetd.master.master import Master
from targetd.master.processes import sandbox

DISK = 'iqn.2026-11.test:disk'
OTHER = 'iqn.2026-11.test:other'
OPEN = ['initiator-address = ALL']
NEED_PEER = ('claim', 'challenge', 'authenticate')
RAM = {0: ['type = ram', 'size = 1M']}
ISID = '00023d000001'


def body(stage, *targets):
    """A portal on a free port and targets: (name, lines, luns)."""
    text = '[portal-group 1]\nportal = 127.0.0.1:%d\n' % stage.port_number
    for name, lines, luns in targets:
        text += '[target %s]\n%s\n' % (name, '\n'.join(lines))
        for number, rows in luns.items():
            text += '[[lun %d]]\n%s\n' % (number, '\n'.join(rows))
    return text


def header(tsih=0, isid=ISID, itt=1, cid=0):
    return struct.pack(
        '>BBBBI6sHIH2xII16x', 0x43, 0x87, 0, 0, 0, bytes.fromhex(isid), tsih, itt, cid, 1, 0
    )


def called(function, *arguments):
    """Calls a function of the C library. Raises OSError if it returns -1."""
    if function(*arguments) == -1:
        raise OSError(ctypes.get_errno(), '')


def probe():
    """What this process can do: {attempt: '' or the name of the error}."""
    library = ctypes.CDLL(None, use_errno=True)

    def started():
        if os.fork() == 0:
            os._exit(0)

    attempts = {
        'open': lambda: os.close(os.open('/etc/passwd', os.O_RDONLY)),
        'list': lambda: os.listdir('/'),
        'create': lambda: os.close(os.open('/tmp/targetd-probe', os.O_CREAT | os.O_WRONLY)),
        'remove': lambda: os.unlink('/tmp/targetd-probe'),
        'rename': lambda: os.rename('/tmp/targetd-probe', '/tmp/targetd-probe-2'),
        'directory': lambda: os.mkdir('/tmp/targetd-probe-3'),
        'mode': lambda: os.fchmod(1, 0o600),
        'size': lambda: os.ftruncate(1, 1),
        'name': lambda: os.stat('/etc/passwd'),
        'connect': lambda: socket.create_connection(('127.0.0.1', 1), 1),
        'socket': lambda: socket.socket(socket.AF_UNIX).close(),
        'pair': lambda: socket.socketpair(),
        'fork': started,
        'session': os.setsid,
        'signal': lambda: os.kill(os.getppid(), 0),
        'owner': lambda: fcntl.fcntl(1, fcntl.F_SETOWN, os.getppid()),
        'scsi': lambda: fcntl.ioctl(1, 0x2285, b''),  # SG_IO: any SCSI command to a disk
        'limits': lambda: called(library.setrlimit, resource.RLIMIT_CPU, b'\x7f' * 16),
        'dumpable': lambda: called(library.prctl, 4, 1, 0, 0, 0),
        'syslog': lambda: called(library.klogctl, 3, None, 0),
        'thread': lambda: threading.Thread(target=int).start(),
        'status': lambda: os.fstat(1),
    }
    results = {}
    for name, attempt in sorted(attempts.items()):
        try:
            attempt()
            results[name] = ''
        except OSError as e:
            results[name] = errno.errorcode.get(e.errno, '?')
    results['limits 0'] = [resource.getrlimit(limit) for limit in sandbox.NO_MORE]
    return results


def attempt_fatal(name):
    """Does what the sandbox answers with the end of the process."""
    library = ctypes.CDLL(None, use_errno=True)
    {
        'execute': lambda: os.execv('/nonexistent', ['x']),
        'trace': lambda: library.ptrace(9999, os.getppid(), 0, 0),  # not a valid request
        'memory': lambda: library.process_vm_readv(os.getppid(), None, 0, None, 0, 0),
        'mount': lambda: library.mount(b'none', b'/', b'tmpfs', 0, None),
        'namespace': lambda: library.unshare(0x10000000),
    }[name]()


class Puppet(object):
    """The worker process."""

    def __init__(self, channel):
        self.channel = channel
        self.sockets = {}  # socket -> unparsed bytes
        self.deaf = False
        self.joining = False  # its claim is for a further connection of a session

    def run(self):
        self.channel.send({'report': 'ready'})
        try:
            while True:
                readable, _, _ = select.select([self.channel.socket] + list(self.sockets), [], [])
                for one in readable:
                    if one is self.channel.socket:
                        self.obey(*self.channel.read())
                        while self.channel._frames:  # several may have come at once
                            self.obey(*self.channel.read())
                    else:
                        self.hear(one)
        except (ChannelClosed, ConnectionError):  # the master or the client is gone
            pass

    def obey(self, message, descriptors):
        if message['do'] in ('serve', 'join'):
            sock = socket.socket(fileno=descriptors[0])
            sock.setblocking(True)
            self.sockets[sock] = b''
            if message['do'] == 'join':  # the spare has read the login
                return
            self.where = message['connection']
            while len(sock.recv(48, socket.MSG_PEEK)) < 48:
                pass
            sock.recv(48)
            return
        if message['do'] == 'retire' and not self.sockets:
            os._exit(0)
        if message['do'] in ('change', 'units') and not self.deaf:
            self.channel.send({'report': 'acknowledge', 'id': message['id']})
        if message['do'] == 'check-connections':
            self.channel.send({'report': 'continues', 'id': message['id']})
            return
        for descriptor in descriptors:
            os.close(descriptor)
        line = json.dumps(dict(message, _descriptors=len(descriptors))).encode() + b'\n'
        for sock in self.sockets:
            sock.sendall(line)
        if message['do'] == 'answer' and self.joining and not message.get('status_class', 1):
            self.act({'puppet': 'idle'})  # the connection continues in another process
        if message['do'] == 'end' and not self.deaf:
            self.channel.send({'report': 'ended', 'why': message['why']})
            os._exit(0)

    def hear(self, sock):
        try:
            data = sock.recv(65536)
        except ConnectionResetError:
            data = b''
        if not data:
            self.channel.send({'report': 'ended', 'why': 'the initiator closed the connection'})
            os._exit(0)
        *lines, self.sockets[sock] = (self.sockets[sock] + data).split(b'\n')
        for line in lines:
            self.act(json.loads(line.decode()))

    def act(self, message):
        word = message.get('puppet')
        if word == 'deaf':
            self.deaf = True
            for sock in self.sockets:
                sock.sendall(b'{"do": "deaf"}\n')
        elif word == 'raw':
            self.channel.socket.sendall(bytes.fromhex(message['data']))
        elif word == 'log':
            for number in range(message['count']):
                text = 'line %d of a puppet' % number
                self.channel.send({'report': 'log', 'level': 1, 'text': text, 'kind': text})
        elif word == 'probe':
            self.channel.send({'report': 'log', 'level': 3, 'text': repr(probe())})
        elif word == 'fatal':
            attempt_fatal(message['name'])
        elif word == 'die':
            os.kill(os.getpid(), signal.SIGKILL)
        elif word == 'keep':  # the initiator's connection, as standard output
            os.dup2(next(iter(self.sockets)).fileno(), 1)
        elif word == 'idle':
            for sock in self.sockets:
                sock.close()
            self.sockets = {}
            self.channel.send({'report': 'idle'})
        else:
            if message.get('report') == 'refused' or message.get('ask') in NEED_PEER:
                message.setdefault('peer', self.where['peer'])
            if message.get('ask') == 'claim':
                message['session'].setdefault('group', self.where['group'])
                self.joining = bool(message['session'].get('tsih'))
            self.channel.send(message)


def serve(channel, configuration):
    Puppet(channel).run()


class Client(object):
    """An initiator that sends JSON to its puppet. It receives only while stage.until runs the loop."""

    def __init__(self, stage, port, tsih=0, isid=ISID, source='127.0.0.1', cid=0):
        self.stage = stage
        self.isid, self.tsih = isid, tsih
        self.socket = socket.create_connection(('127.0.0.1', port), 5, (source, 0))
        self.socket.setblocking(False)
        self.received = b''
        self.heard = []
        self.is_closed = False
        self.socket.setblocking(True)
        self.socket.sendall(header(tsih, isid, cid=cid))
        self.socket.setblocking(False)

    def say(self, **message):
        self.socket.setblocking(True)
        self.socket.sendall(json.dumps(message).encode() + b'\n')
        self.socket.setblocking(False)

    def listen(self):
        try:
            while not self.is_closed:
                data = self.socket.recv(65536)
                self.is_closed = not data
                self.received += data
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.is_closed = True
        if self.received.startswith(b'\x23'):
            return
        *lines, self.received = self.received.split(b'\n')
        self.heard.extend(json.loads(line.decode()) for line in lines)

    def wait(self, word, count=1):
        """The count-th message with this `do`."""
        self.stage.until(lambda: (self.listen(), len(self.of(word)) >= count)[1])
        return self.of(word)[count - 1]

    def of(self, word):
        return [m for m in self.heard if m['do'] == word]

    def wait_closed(self):
        self.stage.until(lambda: (self.listen(), self.is_closed)[1])

    def authenticate(self, target, user, secret):
        """Prove a CHAP account to the master. Returns the answer."""
        count = len(self.of('answer'))
        self.say(ask='challenge', id=1, target_name=target, offered='5')
        pairs = dict(self.wait('answer', count + 1)['pairs'])
        challenge = bytes.fromhex(pairs['CHAP_C'][2:])
        response = hashlib.md5(bytes([int(pairs['CHAP_I'])]) + secret.encode() + challenge)
        values = {'CHAP_N': user, 'CHAP_R': '0x' + response.hexdigest()}
        self.say(ask='authenticate', id=2, values=values)
        return self.wait('answer', count + 2)

    def claim(self, target, name='iqn.2026-11.test:one', tsih=None, cid=0, account=''):
        """Claim a session; does not wait for the answer. tsih: that of the login if None."""
        self.say(
            ask='claim',
            id=1,
            session={
                'initiator_name': name,
                'initiator_alias': '',
                'isid': self.isid,
                'target_name': target,
                'tsih': self.tsih if tsih is None else tsih,
                'cid': cid,
                'account': account,
                'keys': {'MaxConnections': 2},
            },
            login={'response': '00' * 48, 'answer': '', 'declared': 8192},
        )

    def login(self, target, **more):
        """Claim a session and wait. Returns (status class, detail) and the answer."""
        count = len(self.of('answer'))
        self.claim(target, **more)
        answer = self.wait('answer', count + 1)
        return (answer['status_class'], answer['status_detail']), answer

    def close(self):
        self.socket.close()


class Clock(object):
    """The real clock plus `leap` seconds."""

    def __init__(self):
        self.leap = 0.0

    def __call__(self):
        return time.monotonic() + self.leap


class Stage(object):
    """A Master in this process, with a configuration in `directory` that the test writes."""

    def __init__(self, directory):
        self.directory = str(directory)
        self.path = os.path.join(self.directory, 'targetd.conf')
        self.clock = Clock()
        self.clients = []
        self.master = None

    def write(self, body, server=''):
        places = ''.join(
            '%s = %s/%s\n' % (name, self.directory, name)
            for name in ('pid-file', 'control-socket', 'state-dir')
        )
        with open(self.path, 'w') as f:
            f.write('[server]\n%sspare-workers = 1\nlog = stderr\n%s\n%s' % (places, server, body))
        os.chmod(self.path, 0o600)

    def start(self, body, server=''):
        self.write(body, server)
        self.master = Master(self.path, loader.load(self.path), serve, self.clock)
        self.master.start()
        self.master.fork_workers()
        return self.master

    def until(self, question, seconds=30):
        end = time.monotonic() + seconds
        while True:
            answer = question()
            if answer:
                return answer
            assert time.monotonic() < end, 'the condition did not become true'
            self.master.loop.run_once(0.02)

    def settle(self, passes=5):
        for _ in range(passes):
            self.master.loop.run_once(0)

    def leap(self, seconds):
        self.clock.leap += seconds
        self.settle()
        self.master.jobs.wait()  # a timer that expired may have started a job

    @property
    def port(self):
        return next(iter(self.master.portals.values())).getsockname()[1]

    def connect(self, **more):
        self.clients.append(Client(self, more.pop('port', None) or self.port, **more))
        return self.clients[-1]

    def login(self, target, isid=ISID, **more):
        client = self.connect(isid=isid)
        status, client.answer = client.login(target, **more)
        assert status == (0, 0), client.answer
        return client

    def close(self):
        for client in self.clients:
            client.close()
        if self.master is not None:
            self.master.close()
