"""Everything that an administrator changes at run time, while an initiator writes and verifies: it never
sees an error, keeps its session, and notices new sizes and LUNs without a new login."""

import os
import random
import struct
import threading

import pytest
from daemon import TARGET, eventually
from initiator import connect

from targetd.admin.protocol import send_request

pytestmark = pytest.mark.wire
MIB = 1 << 20
BLOCKS = 4096  # of LUN 0 that the load uses
OTHER = 'iqn.2026-11.test:other'
SECRET = 'secret-number-one'
UNIT_ATTENTION = 6


class Load(threading.Thread):
    """Writes blocks of LUN 0 and reads them again. wrong: what it has seen that is an error; attentions:
    unit attentions, after which a command is sent again; do(function): runs function(session) between
    two commands of the load, and returns its result."""

    def __init__(self, address):
        super(Load, self).__init__(daemon=True)
        self.session = connect(address, TARGET)
        self.random = random.Random(1)
        self.wrong = []
        self.attentions = set()
        self.commands = 0
        self.is_over = threading.Event()
        self._orders = []
        self._written = {}

    def run(self):
        try:
            while not self.is_over.is_set():
                self._write_and_verify()
                for order in self._orders[:]:
                    self._orders.remove(order)
                    order()
        except BaseException as e:
            self.wrong.append(repr(e))

    def do(self, function):
        done, results = threading.Event(), []

        def order():
            try:
                results.append(function(self))
            finally:
                done.set()

        self._orders.append(order)
        assert done.wait(30) and results, self.wrong
        return results[0]

    def execute(self, cdb, lun=0, read=0, out=None):
        for _ in range(10):
            result = self.session.run(cdb, lun, read=read, out=out)
            if result.key is None or result.key[0] != UNIT_ATTENTION:
                break
            self.attentions.add(result.key[1:])
        if result.status != 0:
            self.wrong.append('%02x: %r' % (cdb[0], result))
        self.commands += 1
        return result.data

    def _write_and_verify(self):
        lba, count = self.random.randrange(BLOCKS - 16), self.random.randrange(1, 16)
        data = struct.pack('>Q', self.commands) * (64 * count)
        self.execute(struct.pack('>BBQIBB', 0x8A, 0, lba, count, 0, 0), out=data)
        for block in range(count):
            self._written[lba + block] = data[:512]
        lba = self.random.choice(sorted(self._written))
        found = self.execute(struct.pack('>BBQIBB', 0x88, 0, lba, 1, 0, 0), read=512)
        if found != self._written[lba]:
            self.wrong.append('block %d has other data' % lba)

    def luns(self):
        data = self.execute(struct.pack('>B5xIBB', 0xA0, 4096, 0, 0), read=4096)
        return [data[at + 1] for at in range(8, len(data), 8)]

    def size(self, lun):
        data = self.execute(struct.pack('>BBQIBB', 0x9E, 0x10, 0, 32, 0, 0), lun, read=32)
        return (struct.unpack_from('>Q', data)[0] + 1) * 512


@pytest.fixture
def load(daemon):
    daemon.target()
    daemon.start()
    load = Load(daemon.address)
    load.start()
    yield load
    load.is_over.set()
    load.join(30)
    load.session.close()


def test_the_load_sees_no_error_whatever_the_administrator_does(daemon, load):
    control, unit, path = daemon.control, TARGET + '/1', os.path.join(daemon.directory, 'more.img')
    socket = os.path.join(daemon.directory, 'targetd.sock')
    # LUNs
    control('lun', 'add', TARGET, path, '--size', '4M')
    assert load.do(Load.luns) == [0, 1]
    assert (0x3F, 0x0E) in load.attentions
    assert load.do(lambda load: load.size(1)) == 4 * MIB
    control('lun', 'resize', unit, '8M')
    assert load.do(lambda load: load.size(1)) == 8 * MIB
    assert (0x2A, 0x09) in load.attentions
    control('lun', 'readonly', unit)
    control('snapshot', unit, 'one')
    assert os.path.getsize(path + '.snapshot-one') == 8 * MIB
    control('lun', 'online', unit)
    # rules and accounts
    control('acl', 'add', TARGET, '10.0.0.0/8')
    control('acl', 'remove', TARGET, '10.0.0.0/8')
    file = os.path.join(daemon.directory, 'secret')
    for words, secret in ((('add',), SECRET), (('rotate', '--until', 'now'), 'another-secret-12')):
        with open(file, 'w') as f:
            f.write(secret + '\n')
        control('account', words[0], TARGET, 'anna', '--secret-file', file, *words[1:])
    control('account', 'remove', TARGET, 'anna', '--without-chap')
    # another session
    other = connect(daemon.address, TARGET, name=OTHER)
    control('kick', OTHER, '--seconds', '0')
    other.wait_closed()
    # twenty reloads, each with a change
    written = list(daemon.text.targets[TARGET][0])
    for number in range(20):
        daemon.text.targets[TARGET][0][:] = written + ['alias = %d' % number]
        daemon.write_config()
        rows = send_request(socket, {'command': 'reload'}, 60)['rows']
        assert ['alias' in row['step'] for row in rows] == [True]
    assert load.do(Load.luns) == [0, 1]
    control('rollback', '1')
    assert load.do(Load.luns) == [0]
    before = load.commands
    eventually(lambda: load.commands > before + 20 or load.wrong, 30)
    assert load.wrong == []
    assert len(send_request(socket, {'command': 'show-sessions'}, 60)['rows']) == 1
