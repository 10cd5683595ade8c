"""The logins of Windows (tests/transcripts) at the real server, as they are and with maps of LUNs, sharing
and guards: the answers are those of the transcript, and what Windows does with its disks afterwards works."""

import glob
import json
import os
import struct
from collections import namedtuple

import pytest
from daemon import eventually
from initiator import RESERVATION_CONFLICT, Session, pattern
from pdus import Chap, chap_response, decode_binary, encode_binary, unpack_text
from transcript_text import FOLDER, TARGET, account, blocks, fields, request_bytes, text_of

from targetd.rehearsal import walk

pytestmark = pytest.mark.wire

NAMES = sorted(
    os.path.basename(path)[:-4] for path in glob.glob(os.path.join(FOLDER, 'windows-*.txt'))
)
SIZE = 8 << 20
#: LUNs of the target: which of them Windows sees, under which numbers, depends on the map.
DISK, ARCHIVE, FOREIGN = 0, 1, 2
HIDDEN = 'iqn.2026-11.com.example:hidden'
SECOND = 'iqn.1991-05.com.microsoft:second'
WRITE_PROTECTED, NO_SUCH_LUN = (7, 0x27, 0), (5, 0x25, 0)
RESERVE, RELEASE = bytes((0x16, 0, 0, 0, 0, 0)), bytes((0x17, 0, 0, 0, 0, 0))

#: What the configurations add. {numbers}: what Windows sees, by number.
Setting = namedtuple('Setting', 'target disk numbers')
PLAIN = Setting((), ('sharing = cluster',), {0: DISK, 1: ARCHIVE, 2: FOREIGN})
GUARDED = Setting(
    ('lun-map = iqn.1991-05.com.microsoft:* 0 3=1:read-only', 'sharing = exclusive'),
    ('guard = first-write-snapshot, undo-journal 64M',),
    {0: DISK, 3: ARCHIVE},
)
OLD_CLUSTER = Setting(  # two hosts that reserve, as the clusters of Windows 2003 do
    ('lun-map = ALL 0 3=1:read-only',),
    ('sharing = cluster', 'guard = first-write-snapshot'),
    {0: DISK, 3: ARCHIVE},
)
SETTINGS = {'plain': PLAIN, 'guarded': GUARDED, 'cluster': OLD_CLUSTER}

Reply = namedtuple('Reply', 'status sense data seconds')


class Windows(Session):
    """A Session whose login is a transcript."""

    def __init__(self, address, transcript):
        super(Windows, self).__init__(address)
        self.transcript = transcript
        self.secret = ''
        self.status = 0
        for mark, words, _ in transcript:
            if mark == 'policy' and 'account' in fields(words):
                self.secret = account(fields(words)['account'])[1]

    def replay(self):
        """Log in. Returns self; `status` has the login status."""
        recorded = {}
        for mark, words, pairs in self.transcript:
            if mark == '>':
                said = fields(words)
                pairs = [self._with_response(pair, recorded) for pair in pairs]
                self._note(said, pairs)
                self.wire.raw(request_bytes(words, pairs))
            elif mark == '<':
                recorded = unpack_text(text_of(pairs))
                self._compare(self.wire.receive(), words, pairs)
        if not self.status:
            assert self.tsih
            self._enter_full_feature()
        return self

    def _note(self, said, pairs):
        offered = unpack_text(text_of(pairs))
        self.name = offered.get('InitiatorName', self.name)
        self.offered.update(offered)
        self.isid, self.cmd_sn = bytes.fromhex(said['isid']), int(said['cmdsn'])
        self.exp_stat_sn = None
        self.itt = int(said['itt'])

    def _with_response(self, pair, recorded):
        """The response to the challenge of this login, if the transcript has the right one to its own."""
        if not pair.startswith('CHAP_R='):
            return pair

        def response(keys):
            challenge = decode_binary(keys['CHAP_C'])
            return encode_binary(
                chap_response(5, int(keys['CHAP_I']), self.secret, challenge), 'hex'
            )

        is_right = pair.partition('=')[2] == response(recorded)
        return 'CHAP_R=' + response(self.keys) if is_right else pair

    def _compare(self, pdu, words, pairs):
        """With an answer of the transcript: all but the challenge, the TSIH and the size of the window."""
        said = fields(words)
        assert pdu.bhs[0] == 0x23 and pdu.bhs[1] == int(words[0], 16)
        self.status, self.tsih = (
            struct.unpack_from('>H', pdu.bhs, 36)[0],
            pdu.bhs[14] << 8 | pdu.bhs[15],
        )
        assert self.status == int(said['status'], 16)
        assert bool(self.tsih) == (not self.status and pdu.bhs[1] == 0x87)
        for name, value in (('statsn', pdu.stat_sn), ('expcmdsn', pdu.exp_cmd_sn)):
            assert str(value) == said.get(name, str(value))
        assert (pdu.max_cmd_sn - pdu.exp_cmd_sn) & 0xFFFFFFFF < 1 << 31
        self.exp_stat_sn = pdu.stat_sn + 1
        self.exp_cmd_sn, self.max_cmd_sn = pdu.exp_cmd_sn, pdu.max_cmd_sn
        self.keys.update(unpack_text(pdu.data))
        drawn = ('CHAP_I', 'CHAP_C')
        expected = [pair for pair in pairs if pair.partition('=')[0] not in drawn]
        found = [pair for pair in text_lines(pdu.data) if pair.partition('=')[0] not in drawn]
        assert found == expected and pdu.data.count(b'\0') == len(pairs)


def text_lines(data):
    return [pair.decode('utf-8') for pair in data.split(b'\0') if pair]


class Asking(object):
    """A Session as rehearsal.walk uses one."""

    def __init__(self, session):
        self.session = session

    def run(self, cdb, lun=0, read=0, out=b''):
        result = self.session.run(cdb, walk.lun_number(lun), read, out or None)
        return Reply(result.status, result.sense, result.data, 0.0)


def serve(daemon, transcript, setting):
    """Serves what the policy of the transcript says. Returns {LUN: path}."""
    lines = ['initiator-address = ALL'] + list(setting.target)
    for mark, words, _ in transcript:
        said = fields(words) if mark == 'policy' else {}
        lines += ['alias = ' + said['alias']] if 'alias' in said else []
        for key, name in (('account', 'incominguser'), ('outgoing', 'outgoinguser')):
            if key in said:
                user, secret = account(said[key])
                lines.append('%s = %s %s' % (name, user, secret))
    paths = {
        number: daemon.image('lun%d.img' % number, SIZE) for number in (DISK, ARCHIVE, FOREIGN)
    }
    for number, path in paths.items():
        with open(path, 'r+b') as image:
            image.write(pattern(number, 1 << 20))
    luns = {number: ['backing-store = ' + path] for number, path in paths.items()}
    luns[DISK] += setting.disk
    daemon.target(TARGET, lines, luns)
    if setting is not PLAIN:
        hidden = ['initiator-address = ALL', 'lun-map = %s 0' % SECOND]
        daemon.target(HIDDEN, hidden, {0: ['backing-store = ' + daemon.image('hidden.img', SIZE)]})
    daemon.start()
    return paths


def content(path):
    with open(path, 'rb') as image:
        return image.read()


def kept(daemon):
    return json.loads(daemon.control('--json', 'guard', 'list'))


def row_of_disk(daemon):
    rows = json.loads(daemon.control('--json', 'show', 'units'))
    return [row for row in rows if (row['target_name'], row['lun']) == (TARGET, DISK)][0]


def holders(daemon):
    """The initiators that hold the disk."""
    return row_of_disk(daemon)['holders']


def second_host(sessions, daemon, transcript):
    """A session of another Windows host, with the account of the transcript."""
    accounts = [
        account(fields(words)['account'])
        for mark, words, _ in transcript
        if mark == 'policy' and 'account' in fields(words)
    ]
    chap = Chap(*accounts[0]) if accounts else None
    return sessions(daemon, TARGET, name=SECOND, isid=bytes.fromhex('400001370009'), chap=chap)


def arrive(session, setting):
    """What Windows asks its disks when they arrive."""
    asking = Asking(session)
    luns = walk.list_luns(asking)
    assert [walk.lun_number(field) for field in luns] == sorted(setting.numbers)
    for disk in [walk.walk_disk(asking, field) for field in luns]:
        assert disk.failures == [] and disk.ready == '' and disk.blocks == SIZE // 512
        assert disk.sectors[0] == pattern(setting.numbers[disk.lun], 512)
        is_protected = bool(disk.header[2] & 0x80)
        assert is_protected == (setting is not PLAIN and setting.numbers[disk.lun] == ARCHIVE)


def initialize(session):
    """'Initialize disk', as GPT: both tables, with the writes of 256 KiB that Windows makes."""
    for block in (0, SIZE // 512 - 512):
        session.write(block, b'G' * (256 << 10))
    assert session.read(0, 512) == b'G' * (256 << 10)
    session.run(bytes((0x35,)) + bytes(9)).good()  # SYNCHRONIZE CACHE


def write(session, lun):
    return session.run(struct.pack('>BBQIBB', 0x8A, 0, 0, 1, 0, 0), lun, out=bytes(512))


def use_plain(daemon, session, second):
    assert second.report_luns() == [0, 1, 2]
    initialize(session)
    assert kept(daemon) == []


def use_guarded(daemon, session, second):
    """The host that came first has the disk for itself."""
    assert holders(daemon) == [session.name]
    assert second.report_luns() == [3]
    assert write(second, 0).key == NO_SUCH_LUN
    initialize(session)
    assert write(session, 3).key == WRITE_PROTECTED
    assert write(session, 1).key == NO_SUCH_LUN
    assert {row['initiator_name'] for row in kept(daemon)} == {session.name}


def use_cluster(daemon, session, second):
    """Both hosts have the disk, and reserve it before they write."""
    assert second.report_luns() == [0, 3]
    for lun in (0, 3):
        second.clear_attentions(lun)
    session.run(RESERVE).good()
    assert write(second, 0).status == second.run(RESERVE).status == RESERVATION_CONFLICT
    initialize(session)
    session.run(RELEASE).good()
    second.run(RESERVE).good()
    assert write(session, 0).status == RESERVATION_CONFLICT
    second.write(8, bytes(512))
    second.run(RELEASE).good()
    assert write(second, 3).key == write(session, 3).key == WRITE_PROTECTED
    assert {row['initiator_name'] for row in kept(daemon)} == {session.name, SECOND}


USES = {'plain': use_plain, 'guarded': use_guarded, 'cluster': use_cluster}


def discover(session, setting):
    found = dict(session.send_targets('All'))
    assert sorted(found) == [TARGET]  # not the one that has no map for this host
    assert session.logout() == 0


def refused(daemon, session):
    """A host that was refused holds no disk, and nothing is kept for it."""
    session.wait_closed()
    assert holders(daemon) == [] and kept(daemon) == []


@pytest.mark.parametrize('setting', sorted(SETTINGS))
@pytest.mark.parametrize('name', NAMES)
def test_windows_logs_in_and_uses_its_disks(daemon, sessions, name, setting):
    transcript, chosen = blocks(name), SETTINGS[setting]
    paths = serve(daemon, transcript, chosen)
    before = {number: content(path) for number, path in paths.items()}
    with Windows(daemon.address, transcript) as session:
        session.replay()
        if session.status:
            refused(daemon, session)
            return
        if session.offered['SessionType'] == 'Discovery':
            discover(session, chosen)
            return
        arrive(session, chosen)
        assert {number: content(path) for number, path in paths.items()} == before
        assert kept(daemon) == []  # an arrival writes nothing
        second = second_host(sessions, daemon, transcript)
        USES[setting](daemon, session, second)
        assert content(paths[DISK]) != before[DISK]
        for each in (second, session):
            assert each.logout() == 0
    if chosen is not PLAIN:
        eventually(lambda: not row_of_disk(daemon)['sessions'], 30, 'the end of the sessions')
        daemon.control('guard', 'restore', '%s/%d' % (TARGET, DISK), '1')
        assert content(paths[DISK]) == before[DISK]
    assert content(paths[ARCHIVE]) == before[ARCHIVE]


def test_each_sequence_of_windows_is_here():
    assert len(NAMES) == 8
