"""`targetdctl rehearse` at the real daemon: each complaint, and what the disks look like in Windows."""

import json
import os
import struct

import pytest
from daemon import TARGET, free_port
from initiator import pattern

pytestmark = pytest.mark.wire

FS1 = 'iqn.1991-05.com.microsoft:fs1'
OTHER = 'iqn.2026-11.test.targetd:other'
FINE = ['naa = 0x600140512345678900000000000000%02x', 'write-cache = off']


def rehearse(daemon, *words, **more):
    """(exit code, report, text) of `rehearse` with --json, and without."""
    target = more.pop('target', TARGET)
    code, output = daemon.targetdctl('--json', 'rehearse', target, '--from', FS1, *words)
    assert output.startswith('{'), output
    return code, json.loads(output), daemon.targetdctl('rehearse', target, '--from', FS1, *words)[1]


def troubles(report, about=None):
    return [
        each
        for each in report['findings']
        if each['is_trouble'] and (about is None or each['about'] == about)
    ]


def has(findings, *texts):
    """Every text is in the text or the remedy of a finding."""
    shown = ['%(about)s: %(text)s -> %(remedy)s' % each for each in findings]
    return all(any(text in line for line in shown) for text in texts) or shown


def test_a_disk_without_trouble(daemon):
    daemon.target(
        luns={0: ['backing-store = %s' % daemon.image()] + [FINE[0] % 1, FINE[1]]},
        lines=['initiator-name = ' + FS1],
    )
    daemon.start()
    code, report, text = rehearse(daemon)
    assert code == 0 and troubles(report) == [], text
    (disk,) = report['disks']
    assert (disk['disk'], disk['lun'], disk['size']) == (0, 0, 64 << 20)
    assert disk['size_shown'] == '64.00 MB' and disk['partitions'] == 'Not Initialized'
    assert disk['sectors'] == '512 native' and disk['write_cache'] == 'off'
    assert disk['unique_id'] == '60014051234567890000000000000001'
    assert 'No reason to expect trouble was found.' in text
    assert max(map(len, text.split('\n'))) < 80


def test_what_is_wrong_with_a_disk(daemon):
    def image(name, size=64 << 20, first=b'', at=0):
        path = daemon.image(name, size)
        with open(path, 'r+b') as file:
            file.seek(at)
            file.write(first)
        return 'backing-store = ' + path

    mbr = bytes(446) + bytes([0, 0, 2, 0, 7, 0, 0, 0]) + struct.pack('<II', 2048, 4096) + bytes(48)
    mbr += b'\x55\xaa'
    daemon.target(
        lines=['initiator-address = ALL', 'alua = explicit'],
        luns={
            1: [image('mbr.img', 3 << 40, mbr)],
            2: [image('gpt.img', 64 << 20, b'EFI PART', 512), 'block-size = 4096']
            + ['allow-other-block-size = yes'],
            3: [image('small.img'), 'block-size = 1024', 'thin = yes'],
            4: [image('plain.img'), 'naa = none', 'removable = yes'],
            5: [image('ro.img'), 'readonly = yes'],
            6: [image('bad.img'), 'filter = error read'],
            300: ['type = ram', 'size = 1M'],
        },
    )
    daemon.target(OTHER, luns={0: [image('ro.img'), 'readonly = yes']})
    daemon.start()
    code, report, text = rehearse(daemon)
    assert code == 1
    assert [(disk['disk'], disk['lun']) for disk in report['disks']][:2] == [(0, 1), (1, 2)]
    wanted = {
        'LUN 1': [
            'partition table (MBR) that reaches 2.00 TB of 3.00 TB',
            'convert it to GPT',
            'explicit ALUA',
        ],
        'LUN 2': ['GPT was written with blocks of 512 bytes', 'write block-size = 512'],
        'LUN 3': ['blocks of 1024 bytes'],
        'LUN 4': ['no identifier of type NAA', 'remove "naa = none"'],
        'LUN 6': ['READ(10) fails: MEDIUM ERROR'],
        'LUN 300': ['LUNs 0 to 255'],
    }
    for about, texts in wanted.items():
        assert has(troubles(report, about), *texts) is True, text
    notes = [each for each in report['findings'] if not each['is_trouble']]
    for about, words in (
        ('disks', 'there is no LUN 0'),
        ('LUN 1', 'as MBR only the first 2.00 TB'),
        ('LUN 2', '4Kn: Windows 7'),
        ('LUN 3', 'slabs of'),
        ('LUN 4', 'removable disk'),
        ('LUN 5', 'Read-only'),
    ):
        assert has([each for each in notes if each['about'] == about], words) is True, text
    assert max(map(len, text.split('\n'))) < 80


def test_one_disk_in_two_targets_is_two_paths_for_windows(daemon):
    line = ['backing-store = %s' % daemon.image(), 'readonly = yes', FINE[0] % 7]
    daemon.target(luns={0: line})
    daemon.target(OTHER, luns={3: line})
    daemon.start()
    code, report, text = rehearse(daemon)
    assert has(troubles(report, 'LUN 0'), 'the identity of %s/3' % OTHER) is True, text
    assert code == 1


def test_logins_that_windows_cannot_make(daemon):
    secret = os.path.join(daemon.directory, 'secret')
    with open(secret, 'w') as file:
        file.write('wrong-secret-1\n')
    daemon.target(lines=['initiator-name = ' + FS1, 'incominguser = "user" "short"'])
    daemon.target(OTHER, lines=['initiator-name = iqn.2026-11.test:somebody'])
    daemon.start()
    code, report, text = rehearse(daemon)
    assert code == 1 and report['disks'], text  # the login succeeds with the account of the server
    assert has(troubles(report, 'CHAP'), 'of user user has 5 characters', '12 to 16') is True, text
    portal = '127.0.0.1:%d' % daemon.port
    code, report, text = rehearse(daemon, '--portal', portal)
    assert code == 1 and not report['disks']
    login = 'login at ' + portal
    assert (
        has(troubles(report, login), '"Authentication failure"', 'enable CHAP in Windows') is True
    ), text
    code, report, text = rehearse(
        daemon, '--portal', portal, '--user', 'user', '--secret-file', secret
    )
    assert code == 1 and has(troubles(report, login), '0201', 'CHAP: user name') is True, text
    code, report, text = rehearse(daemon, target=OTHER)
    assert has(troubles(report, 'discovery'), 'not listed for ' + FS1) is True, text
    assert has(troubles(report, login), '"Authorization failure"', 'initiator-name') is True, text
    nobody = '127.0.0.1:%d' % free_port()
    code, report, text = rehearse(daemon, '--portal', nobody)
    assert code == 1 and has(troubles(report), 'Connection refused', 'firewall') is True, text


def test_mutual_chap(daemon):
    lines = ['incominguser = "user" "secret-of-12-to"', 'outgoinguser = "target" "another-secret"']
    daemon.target(lines=['initiator-address = ALL'] + lines)
    daemon.start()
    code, report, text = rehearse(daemon)
    assert code == 0, text
    login = 'portal group 1, CHAP, mutual'
    assert [fact['text'] for fact in report['facts'] if fact['what'] == 'login'][0].endswith(login)


def test_mistakes_on_the_command_line(served):
    for words, reason in (
        (['iqn.2026-11.test:none'], 'it is one of: ' + TARGET),
        ([TARGET, '--scratch', '0'], 'LUN:FIRST+COUNT'),
        ([TARGET, '--user', 'user'], '--user and --secret-file belong together'),
        ([TARGET, '--portal', 'host:port'], 'is not ADDRESS'),
    ):
        code, text = served.targetdctl('rehearse', *words)
        assert code == 1 and reason in text, text


def test_two_paths(daemon):
    second = free_port()
    daemon.text.portal('127.0.0.1:%d' % second, group=2)
    daemon.target(group='1, 2', lines=['initiator-address = ALL', 'alua-state = 2 standby'])
    daemon.start()
    code, report, text = rehearse(daemon)
    assert {'what': 'MPIO', 'text': '2 paths'} in report['facts'], text
    assert has(report['findings'], 'portal group 2 is standby', 'install MPIO') is True, text
    assert code == 0, text


def test_scratch_area_and_cluster_validation(daemon, ready):
    daemon.target(
        luns={
            0: ['backing-store = %s' % daemon.image(), 'thin = yes'],
            1: ['backing-store = %s' % daemon.image('one.img')],
        }
    )
    daemon.start()
    session = ready(daemon)
    session.clear_attentions(1)
    session.write(0, pattern(1, 512 * 512))
    session.write(1024 + 600, pattern(2, 512))
    code, report, text = rehearse(daemon, '--scratch', '0:1024+600', '--reservations')
    assert code == 0, text
    assert {'what': 'scratch', 'text': 'LUN 0, 600 blocks'} in report['facts']
    session.clear_attentions()
    assert session.read(0, 512) == pattern(1, 512 * 512)  # outside the area
    assert session.read(1024 + 600, 1) == pattern(2, 512)
    for lun in (0, 1):
        session.clear_attentions(lun)
        keys = session.run(struct.pack('>BB5xHx', 0x5E, 0, 64), lun, 64).data
        assert keys[4:8] == bytes(4)  # nothing is left registered
    code, text = daemon.targetdctl('rehearse', TARGET, '--scratch', '0:131072+1')
    assert code == 1 and 'LUN 0 has 131072 blocks' in text
    out = struct.pack('>QQ8x', 0, 0x1234)
    assert session.run(struct.pack('>BB6xBx', 0x5F, 0, 24), out=out).good
    assert session.run(struct.pack('>BBB5xBx', 0x5F, 1, 5, 24), out=out[8:16] + bytes(16)).good
    code, report, text = rehearse(daemon, '--reservations')
    assert has(troubles(report, 'LUN 0'), 'not tested: initiators have registered') is True, text
    assert report['disks'][0]['reservation'] == 'key 0000000000001234, type 5'
    assert session.run(struct.pack('>BB5xHx', 0x5E, 1, 64), 0, 64).data[8:16] == out[8:16]


def test_a_disk_that_another_host_uses(daemon, ready):
    """And the sessions of the host whose name is used go on."""
    daemon.target(luns={0: ['backing-store = %s' % daemon.image(), 'sharing = exclusive']})
    daemon.start()
    session = ready(daemon, name=FS1, isid=bytes.fromhex('400001370001'))
    code, report, text = rehearse(daemon, '--reservations')
    assert [disk['lun'] for disk in report['disks']] == [0], text
    assert has(troubles(report, 'LUN 0'), 'write sharing = cluster') is True, text
    code, text = daemon.targetdctl('rehearse', TARGET, '--from', 'iqn.1991-05.com.microsoft:fs2')
    assert code == 1 and 'LUN 0: Windows does not see it, because %s uses it' % FS1 in text
    session.clear_attentions()
    assert session.capacity() == (131072, 512)


def test_the_luns_of_the_map_of_this_host(daemon, ready):
    luns = {
        n: ['backing-store = %s' % daemon.image('%d.img' % n), FINE[0] % n, FINE[1]]
        for n in range(3)
    }
    maps = ['lun-map = %s 0=2 1=0' % FS1, 'lun-map = ALL 0=1 1=2']
    daemon.target(luns=luns, lines=['initiator-name = ALL', 'sharing = auto'] + maps)
    daemon.start()
    code, report, text = rehearse(daemon)
    assert code == 0 and troubles(report) == [], text
    assert [(disk['lun'], disk['unique_id'][-2:]) for disk in report['disks']] == [
        (0, '02'),
        (1, '00'),
    ]
    ready(daemon, name='iqn.2026-11.test:other')  # it holds LUN 2, which is LUN 0 of this host
    code, report, text = rehearse(daemon)
    assert code and [each['about'] for each in troubles(report)] == ['LUN 0'], text


def test_a_disk_that_is_not_ready(daemon, ready):
    daemon.target(luns={0: ['backing-store = %s' % daemon.image(), 'removable = yes']})
    daemon.start()
    session = ready(daemon)
    assert session.run(bytes([0x1B, 0, 0, 0, 2, 0])).good  # eject
    code, report, text = rehearse(daemon)
    assert code == 1 and report['disks'] == []
    assert has(troubles(report, 'LUN 0'), 'TEST UNIT READY ends with NOT READY') is True, text
