"""What a Windows host does at the arrival of a disk and when it uses it (targetdctl rehearse), with the
settings sharing, guard and lun-map: the host notices none of them, and what it wrote is undone."""

import time

import pytest
from daemon import TARGET, eventually
from initiator import pattern
from test_wire_guards import content, kept
from test_wire_rehearse import FINE, FS1, has, rehearse, troubles

pytestmark = pytest.mark.wire

FS2 = 'iqn.1991-05.com.microsoft:fs2'
#: The LUN of the target that Windows sees as LUN 0, and one that it does not see.
LUN, OTHER = 4, 0
UNIT = '%s/%d' % (TARGET, LUN)
MAP = 'lun-map = iqn.1991-05.com.microsoft:* 0=%d' % LUN
GUARDS = {
    'off': [],
    'snapshot': ['guard = first-write-snapshot'],
    'journal': ['guard = undo-journal 64M'],
    'both': ['guard = first-write-snapshot, undo-journal 64M'],
}
SHARING = ('exclusive', 'readers', 'cluster')


def serve(daemon, guard, sharing):
    path = daemon.image()
    with open(path, 'r+b') as image:
        image.write(pattern(7, 1 << 20))
    lines = [
        'backing-store = %s' % path,
        'thin = yes',
        'sharing = ' + sharing,
        FINE[0] % 1,
        FINE[1],
    ]
    other = ['backing-store = %s' % daemon.image('other.img')]
    luns = {LUN: lines + GUARDS[guard], OTHER: other}
    daemon.target(TARGET, ['initiator-address = ALL', MAP], luns)
    daemon.start()
    return path


def without_times(report):
    """The disks and the facts of a report, without the path of this test's file."""
    return report['disks'], [fact for fact in report['facts'] if 'targetd' not in fact['text']]


def unused(daemon):
    eventually(lambda: daemon.units()[LUN]['sessions'] == 0, 30, 'the end of the sessions')


@pytest.mark.parametrize('sharing', SHARING)
def test_the_arrival_is_the_same_and_keeps_nothing(daemon, sharing):
    path = serve(daemon, 'off', sharing)
    before = content(path)
    settings = daemon.text.targets[TARGET][0]
    settings.remove(MAP)
    daemon.reload('reload: change')
    without_map = [disk for disk in rehearse(daemon)[1]['disks'] if disk['lun'] == LUN]
    settings.append(MAP)
    unused(daemon)
    daemon.reload('reload: change')
    plain = without_times(rehearse(daemon)[1])
    assert [dict(disk, lun=LUN, disk=LUN) for disk in plain[0]] == [
        dict(disk, disk=LUN) for disk in without_map
    ]
    for guard in sorted(set(GUARDS) - {'off'}):
        lines = daemon.text.targets[TARGET][1][LUN]
        lines[:] = [line for line in lines if not line.startswith('guard')] + GUARDS[guard]
        unused(daemon)
        daemon.reload('reload: change')
        eventually(lambda: 'pending' not in daemon.units()[LUN]['state'], 30, 'the new guard')
        code, report, text = rehearse(daemon)
        assert without_times(report) == plain, (guard, text)
        assert troubles(report) == [] and code == 0, text
    assert content(path) == before and kept(daemon) == []


@pytest.mark.parametrize('guard', sorted(set(GUARDS) - {'off'}))
def test_the_use_and_the_cluster_validation_are_guarded(daemon, ready, guard):
    path = serve(daemon, guard, 'cluster')
    session = ready(daemon, name=FS1)
    session.write(100000, pattern(1, 512))  # the first write, which both guards record
    session.logout()
    unused(daemon)
    before, second = content(path), int(time.time()) + 1
    eventually(lambda: time.time() >= second, 5, 'the next second')
    code, report, text = rehearse(daemon, '--scratch', '0:1024+600', '--reservations')
    assert code == 0 and troubles(report) == [], text
    assert {'what': 'scratch', 'text': 'LUN 0, 600 blocks'} in report['facts']
    unused(daemon)
    assert content(path) != before
    when = time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(second))
    code, text = daemon.targetdctl('guard', 'restore', UNIT, when)
    if guard == 'snapshot':
        assert code and 'no undo journal' in text
        assert kept(daemon)[-1]['number'] == 1
    else:
        assert code == 0, text
        assert content(path) == before
    names = {row['initiator_name'] for row in kept(daemon)}
    assert FS1 in names


def test_a_second_windows_host_is_kept_out_and_the_first_is_guarded(daemon, ready):
    path = serve(daemon, 'both', 'exclusive')
    first = ready(daemon, name=FS1, isid=bytes.fromhex('400001370001'))
    before = content(path)
    first.write(0, b'initialize' * 512)
    code, text = daemon.targetdctl('rehearse', TARGET, '--from', FS2)
    assert code == 1 and 'LUN 0: Windows does not see it, because %s uses it' % FS1 in text
    assert [row['initiator_name'] for row in kept(daemon)] == [FS1, FS1]
    code, report, text = rehearse(daemon, '--reservations')
    assert has(troubles(report, 'LUN 0'), 'write sharing = cluster') is True, text
    first.logout()
    unused(daemon)
    daemon.control('guard', 'restore', UNIT, '1')
    assert content(path) == before
