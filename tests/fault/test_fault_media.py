"""Media that change under the server, and other users of the same data, with the real daemon."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import time

import pytest
from daemon import TARGET, eventually, watched
from pdus import read_10, write_10

MIB = 1 << 20
OTHER = 'iqn.2026-11.test.targetd:other'


def path_of(daemon, name):
    return os.path.join(daemon.directory, name)


def serve_file(daemon, *lines, name='disk.img', size=16 * MIB):
    """The daemon serves an image file as LUN 0; returns its path. `lines`: further settings."""
    path = daemon.image(name, size)
    daemon.target(TARGET, luns={0: ['backing-store = %s' % path] + list(lines)})
    return path


@pytest.fixture
def second(tmp_path_factory):
    """A second Daemon, in a directory of its own."""
    with watched(tmp_path_factory.mktemp('second')) as each:
        yield each


# -- state-dir -------------------------------------------------------------------------------------


def test_a_second_server_on_the_same_state_dir_is_refused_with_the_process_id_of_the_first(
    daemon, second
):
    serve_file(daemon)
    daemon.start()
    media = path_of(daemon, 'state/media.json')
    eventually(lambda: os.path.exists(media), 30, 'the records')
    with open(media) as file:
        records = file.read()
    second.text.server['state-dir'] = path_of(daemon, 'state')
    serve_file(second)
    code, output = second.run_once()
    assert code == 6, output
    assert 'in use by another targetd (process %d' % daemon.process.pid in output
    with open(media) as file:
        assert file.read() == records
    daemon.kill()
    second.start()


def test_accept_keeps_the_record_of_a_lun_that_is_served(daemon):
    serve_file(daemon)
    daemon.start()
    code, output = daemon.targetdctl('accept', TARGET + '/0')
    assert code == 1 and 'nothing to accept' in output
    eventually(lambda: os.path.exists(path_of(daemon, 'state/media.json')), 30, 'the records')
    with open(path_of(daemon, 'state/media.json')) as file:
        assert len(json.load(file)['media']) == 1


# -- the medium at the path changes while it is served ---------------------------------------------


def watch(daemon):
    daemon.text.server['media-check-interval'] = '1s'


def state_of(daemon, lun=0):
    return daemon.units()[lun]['state']


def delete(path):
    os.unlink(path)


def replace(path):
    with open(path + '.new', 'wb') as file:
        file.truncate(16 * MIB)
    os.rename(path + '.new', path)


def move_away(path):
    os.rename(path, path + '.old')


@pytest.mark.parametrize(
    'change, words',
    [
        (delete, 'was deleted'),
        (replace, 'is another file than the one that is served'),
        (move_away, 'no longer exists'),
    ],
)
def test_a_file_that_is_not_at_its_path_any_more_is_reported(daemon, ready, change, words):
    path = serve_file(daemon)
    watch(daemon)
    daemon.start()
    session = ready(daemon)
    session.write(0, b'k' * 512)
    assert state_of(daemon) == 'ready'
    change(path)
    daemon.logged('unit .*: %s %s' % (path, words))
    assert words in state_of(daemon)
    assert re.search(r'replaced stores +1', daemon.targetdctl('status')[1])
    assert session.read(0, 1) == b'k' * 512  # the open file is still served


def test_a_link_that_leads_to_another_file_is_reported_and_refused_at_the_next_start(daemon, ready):
    one, two = daemon.image('one.img', 16 * MIB), daemon.image('two.img', 16 * MIB)
    link = path_of(daemon, 'link')
    os.symlink(one, link)
    daemon.target(TARGET, luns={0: ['backing-store = %s' % link]})
    watch(daemon)
    daemon.start()
    os.unlink(link)
    os.symlink(two, link)
    daemon.logged('%s is another file than the one that is served' % link)
    assert daemon.stop() == 0
    daemon.start()
    assert 'is another file than before' in state_of(daemon)
    assert daemon.targetdctl('accept', TARGET + '/0')[0] == 0
    eventually(lambda: state_of(daemon) == 'ready', 15)


@pytest.mark.parametrize('change', [replace, lambda path: os.truncate(path, MIB)])
@pytest.mark.parametrize('lines', [(), ('size = 16M',)])
def test_a_file_that_was_replaced_or_cut_while_stopped_is_refused_until_accepted(
    daemon, change, lines
):
    path = serve_file(daemon, *lines)
    daemon.start()
    assert daemon.stop() == 0
    change(path)
    size = os.path.getsize(path)
    daemon.start()
    assert 'targetdctl accept %s/0' % TARGET in state_of(daemon)
    assert os.path.getsize(path) == size  # not extended with zeroes
    assert daemon.targetdctl('accept', TARGET + '/0')[0] == 0
    eventually(lambda: state_of(daemon) == 'ready', 15)


def test_a_file_below_a_missing_mount_is_not_created_again(daemon, small_disk):
    folder = small_disk(8)
    path = os.path.join(folder, 'disk.img')
    daemon.target(TARGET, luns={0: ['backing-store = %s' % path, 'size = 4M']})
    daemon.start()
    assert daemon.stop() == 0
    subprocess.check_call(['umount', folder])
    daemon.start()
    assert 'is its file system mounted?' in state_of(daemon)
    assert not os.path.exists(path)


# -- sizes -----------------------------------------------------------------------------------------


def test_a_file_that_grows_is_noticed_without_a_reload(daemon, ready):
    path = serve_file(daemon)
    watch(daemon)
    daemon.start()
    session = ready(daemon)
    os.truncate(path, 32 * MIB)
    eventually(lambda: session.run(bytes(6)).key == (6, 0x2A, 0x09), 15)
    assert session.capacity() == (32 * MIB // 512, 512)
    session.write(65535, b'k' * 512)
    assert daemon.stop() == 0
    os.truncate(path, 24 * MIB)  # the growth was recorded
    daemon.start()
    assert 'targetdctl accept' in state_of(daemon)


def test_a_device_that_grows_is_noticed_without_a_reload(daemon, ready, loop_device):
    backing = daemon.image('backing.img', 16 * MIB)
    device = loop_device(backing)
    daemon.target(TARGET, luns={0: ['backing-store = %s' % device]})
    watch(daemon)
    daemon.start()
    session = ready(daemon)
    os.truncate(backing, 32 * MIB)
    subprocess.check_call(['losetup', '-c', device])
    eventually(lambda: session.run(bytes(6)).key == (6, 0x2A, 0x09), 15)
    assert session.capacity() == (32 * MIB // 512, 512)


def test_a_medium_that_shrinks_is_not_used_until_acknowledged(daemon, ready):
    path = serve_file(daemon)
    watch(daemon)
    daemon.start()
    session = ready(daemon)
    session.write(0, b'k' * 512)
    os.truncate(path, MIB)
    daemon.logged('has SHRUNK')
    assert state_of(daemon).startswith('shrunk: ')
    assert session.run(read_10(0, 1), read=512).key == (2, 0x04, 0x03)
    assert session.run(write_10(0, 1), out=b'x' * 512).key == (2, 0x04, 0x03)
    daemon.reload('reloaded')
    os.truncate(path, 16 * MIB)  # the data does not come back with the size
    daemon.reload('reloaded')
    assert session.run(read_10(0, 1), read=512).key == (2, 0x04, 0x03)
    os.truncate(path, MIB)
    assert daemon.targetdctl('acknowledge', TARGET + '/0')[0] == 0
    session.clear_attentions()
    assert session.capacity() == (MIB // 512, 512)
    assert session.read(0, 1) == b'k' * 512
    assert state_of(daemon) == 'ready'


# -- a reload that asks for a size that cannot be had ----------------------------------------------


@pytest.fixture
def limited(tmp_path, loop_device):
    """The folder of a file system whose files cannot be larger than 4 GiB."""
    image, folder = str(tmp_path / 'vfat.img'), str(tmp_path / 'vfat')
    with open(image, 'wb') as file:
        file.truncate(64 * MIB)
    os.mkdir(folder)
    subprocess.check_call(['mkfs.ext2', '-q', '-b', '1024', '-F', image])
    subprocess.check_call(['mount', loop_device(image), folder])
    yield folder
    subprocess.check_call(['umount', '-l', folder])


def refused_alike(daemon, words):
    """Reload and plan fail for the same reason."""
    daemon.write_config()
    plan, reload = daemon.targetdctl('reload', '--plan'), daemon.targetdctl('reload')
    assert plan[0] == reload[0] == 5, (plan, reload)
    assert words in plan[1] and words in reload[1], (plan, reload)


def test_a_reload_with_a_smaller_size_is_refused_as_a_whole(daemon, ready):
    path = serve_file(daemon, 'size = 16M')
    daemon.start()
    daemon.text.targets[TARGET][1][0][1] = 'size = 8M'
    daemon.target(OTHER)
    refused_alike(daemon, 'a file is never made shorter')
    assert os.path.getsize(path) == 16 * MIB
    assert len(daemon.units()) == 1 and OTHER not in daemon.targetdctl('show', 'targets')[1]
    assert ready(daemon).capacity() == (16 * MIB // 512, 512)


def test_a_reload_with_a_size_beyond_the_file_system_is_refused_as_a_whole(daemon, limited):
    path = os.path.join(limited, 'disk.img')
    other = serve_file(daemon, 'size = 16M', name='other.img')
    luns = daemon.text.targets[TARGET][1]
    luns[1] = ['backing-store = %s' % path, 'size = 8M']
    daemon.start()
    luns[0][1], luns[1][1] = 'size = 32M', 'size = 1000T'
    refused_alike(daemon, 'cannot be extended to')
    assert os.path.getsize(path) == 8 * MIB and os.path.getsize(other) == 16 * MIB
    assert daemon.stop() == 0
    luns[0][1], luns[1][1] = 'size = 16M', 'size = 8M'
    daemon.start()
    assert {row['state'] for row in daemon.units().values()} == {'ready'}


def test_no_initiator_sees_a_size_that_a_refused_reload_takes_back(daemon, ready):
    """The flush of another LUN takes some seconds, in which the media are looked at, and then fails."""
    path = serve_file(daemon)
    luns = daemon.text.targets[TARGET][1]
    other = daemon.image('other.img')
    luns[1] = ['backing-store = %s' % other, 'filter = error flush, delay flush=4s']
    watch(daemon)
    daemon.start()
    session = ready(daemon)
    luns[0].append('size = 32M')
    luns[1].append('write-cache = off')
    daemon.write_config()
    outcome = []
    reload = threading.Thread(target=lambda: outcome.append(daemon.targetdctl('reload')))
    reload.start()
    eventually(lambda: os.path.getsize(path) == 32 * MIB, 20, 'the file is extended')
    while not outcome:
        session.write(0, b'a' * 512)  # fails with unit attention 2A/09 if the size has changed
        time.sleep(0.1)
    reload.join()
    code, output = outcome[0]
    assert code and 'cannot be flushed' in output
    assert os.path.getsize(path) == 16 * MIB
    assert session.clear_attentions() == [] and session.capacity() == (16 * MIB // 512, 512)
    assert 'SHRUNK' not in daemon.log and state_of(daemon) == 'ready'


def test_a_plan_tries_what_the_reload_tries_and_changes_nothing(daemon):
    path = serve_file(daemon, 'size = 16M')
    daemon.start()
    fresh = path_of(daemon, 'fresh.img')
    luns = daemon.text.targets[TARGET][1]
    luns[0][1] = 'size = 32M'
    luns[1] = ['backing-store = %s' % fresh, 'size = 4M']
    luns[2] = ['backing-store = %s' % path_of(daemon, 'absent.img')]
    refused_alike(daemon, 'absent.img does not exist')
    assert os.path.getsize(path) == 16 * MIB
    del luns[2]
    daemon.write_config()
    os.unlink(fresh) if os.path.exists(fresh) else None
    code, output = daemon.targetdctl('reload', '--plan')
    assert code == 0 and 'fresh.img' in output
    assert not os.path.exists(fresh) and os.path.getsize(path) == 16 * MIB
    daemon.text.server['log'] = path_of(daemon, 'no/such/log')
    daemon.write_config()
    for words in (['reload', '--plan'], ['reload']):
        code, output = daemon.targetdctl(*words)
        assert code == 1 and 'the log cannot be written' in output
    del daemon.text.server['log']
    daemon.write_config()
    assert daemon.targetdctl('reload')[0] == 0
    assert os.path.getsize(path) == 32 * MIB and os.path.getsize(fresh) == 4 * MIB


# -- another user of the same data -----------------------------------------------------------------


@pytest.fixture
def holder():
    """hold(path, mode) starts a process that has the file open; returns its process id."""
    started = []

    def hold(path, mode='r+b'):
        program = 'import sys; f = open(%r, %r); print("open", flush=True); sys.stdin.read()'
        started.append(
            subprocess.Popen(
                [sys.executable, '-c', program % (path, mode)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        assert started[-1].stdout.readline() == b'open\n'
        return started[-1].pid

    yield hold
    for process in started:
        process.stdin.close()
        process.stdout.close()
        process.wait(10)


def test_a_file_that_another_process_has_open_for_writing_is_not_served(daemon, holder):
    path = serve_file(daemon)
    os.link(path, path + '.link')
    pid = holder(path + '.link')
    daemon.start()
    words = '%s is open for writing by process %d (python' % (path, pid)
    assert words in state_of(daemon) and 'allow-in-use = yes' in state_of(daemon)
    daemon.text.targets[TARGET][1][0].append('allow-in-use = yes')
    daemon.reload('reload: change')
    eventually(lambda: state_of(daemon) == 'ready', 15)


def test_a_file_that_another_process_only_reads_is_served(daemon, holder):
    holder(serve_file(daemon), 'rb')
    daemon.start()
    assert state_of(daemon) == 'ready'


def test_a_device_that_another_process_has_open_for_writing_is_not_served(
    daemon, holder, loop_device
):
    device = loop_device(daemon.image('backing.img', 16 * MIB))
    pid = holder(device)
    daemon.target(TARGET, luns={0: ['backing-store = %s' % device]})
    daemon.start()
    assert '%s is open for writing by process %d' % (device, pid) in state_of(daemon)


def served_twice(daemon, one, two, *lines):
    daemon.target(TARGET, luns={0: ['backing-store = %s' % one] + list(lines)})
    daemon.target(OTHER, luns={1: ['backing-store = %s' % two] + list(lines)})
    daemon.start()
    units = daemon.units()
    return units[0]['state'], units[1]['state']


def hard_link(path, place):
    os.link(path, place)
    return place


def bind_mount(path, place):
    os.mkdir(place)
    subprocess.check_call(['mount', '--bind', os.path.dirname(path), place])
    return os.path.join(place, os.path.basename(path))


@pytest.fixture
def place(tmp_path):
    yield str(tmp_path / 'place')
    if os.path.ismount(str(tmp_path / 'place')):
        subprocess.check_call(['umount', '-l', str(tmp_path / 'place')])


@pytest.mark.parametrize('alias', [hard_link, bind_mount])
def test_one_file_under_two_names_is_served_once(daemon, place, alias):
    path = daemon.image()
    states = served_twice(daemon, path, alias(path, place))
    assert sorted(state == 'ready' for state in states) == [False, True]
    assert 'both are exported by this targetd' in states[0] + states[1]


def test_one_file_under_two_names_is_served_read_only(daemon, place):
    path = daemon.image()
    assert served_twice(daemon, path, hard_link(path, place), 'readonly = yes') == ('ready',) * 2


def test_another_node_of_a_served_device_is_blamed_on_targetd(daemon, place, loop_device):
    device = loop_device(daemon.image('backing.img', 16 * MIB))
    number = os.stat(device).st_rdev
    os.mknod(place, 0o600 | stat.S_IFBLK, number)
    states = served_twice(daemon, place, device)
    assert sorted(state == 'ready' for state in states) == [False, True]
    assert 'by this targetd' in states[0] + states[1] and 'ZFS' not in states[0] + states[1]


# -- identities ------------------------------------------------------------------------------------

NAA = '60014051234567890abcdef012345678'


@pytest.mark.parametrize('line', ['naa = ' + NAA, 'eui = 0014051234567890', 'scsi-sn = ERP1'])
def test_two_disks_with_one_identity_are_refused(daemon, line):
    one, two = daemon.image('one.img'), daemon.image('two.img')
    daemon.target(TARGET, luns={0: ['backing-store = %s' % one, line]})
    daemon.target(OTHER, luns={1: ['backing-store = %s' % two, line]})
    luns = daemon.text.targets[OTHER][1]
    code, output = daemon.check()
    assert code == 3 and 'which is another disk' in output and line.split()[0] in output
    luns[1][1] = 'readonly = no'
    daemon.start()
    luns[1][1] = line
    daemon.write_config()
    assert daemon.targetdctl('reload')[0] == 3


def test_a_set_identity_that_another_disk_has_by_derivation_is_refused(daemon):
    one, two = daemon.image('one.img'), daemon.image('two.img')
    daemon.target(TARGET, luns={0: ['backing-store = %s' % one]})
    daemon.start()
    naa = daemon.units()[0]['naa']
    daemon.target(OTHER, luns={1: ['backing-store = %s' % two, 'naa = %s' % naa]})
    refused_alike(daemon, 'it would have the same naa as lun 0 of %s' % TARGET)


def test_one_file_under_one_identity_in_two_targets_is_served(daemon):
    path, lines = daemon.image(), ['readonly = yes', 'naa = ' + NAA]
    assert served_twice(daemon, path, path, *lines) == ('ready',) * 2


def move_file(daemon):
    lines = daemon.text.targets[TARGET][1][0]
    os.rename(path_of(daemon, 'disk.img'), path_of(daemon, 'moved.img'))
    lines[0] = 'backing-store = ' + path_of(daemon, 'moved.img')


def rename_target(daemon):
    daemon.text.targets[OTHER] = daemon.text.targets.pop(TARGET)


def lose_server_id(daemon):
    os.unlink(path_of(daemon, 'state/server-id'))


@pytest.mark.parametrize('change', [move_file, rename_target, lose_server_id])
def test_a_changed_identity_is_logged_with_the_settings_that_keep_it(daemon, change):
    serve_file(daemon)
    daemon.start()
    old = daemon.units()[0]
    assert daemon.stop() == 0
    change(daemon)
    daemon.start()
    line = daemon.logged('initiators see another disk than before.*').group()
    kept = ['naa = ' + old['naa'], 'scsi-sn = ' + old['serial']]
    assert all(setting in line for setting in kept) and daemon.units()[0]['naa'] in line
    assert daemon.stop() == 0
    (luns,) = [luns for _, luns in daemon.text.targets.values()]
    luns[0] += kept
    daemon.start()
    now = daemon.units()[0]
    assert (now['naa'], now['serial']) == (old['naa'], old['serial'])


def test_a_target_that_a_reload_renames_is_logged_with_its_former_identity(daemon):
    serve_file(daemon)
    daemon.start()
    old = daemon.units()[0]
    rename_target(daemon)
    daemon.reload('reload: add target')
    assert 'naa = ' + old['naa'] in daemon.logged('initiators see another disk.*').group()


def test_a_new_server_id_is_logged(daemon):
    serve_file(daemon)
    daemon.start()
    assert daemon.logged('state/server-id is new')


# -- block size ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'command', [['sgdisk', '-n', '1:0:0'], ['mkfs.ext4', '-q', '-F', '-b1024']]
)
def test_a_block_size_that_does_not_fit_the_content_is_refused_unless_confirmed(daemon, command):
    path = serve_file(daemon, 'block-size = 4096')
    if shutil.which(command[0]) is None:
        pytest.skip('%s is not installed' % command[0])
    subprocess.run(command + [path], check=True, stdout=subprocess.DEVNULL, timeout=60)
    daemon.start()
    assert 'and would be served with blocks of 4096 bytes' in state_of(daemon)
    lines = daemon.text.targets[TARGET][1][0]
    lines.append('allow-other-block-size = yes')
    daemon.reload('reload: change')
    eventually(lambda: state_of(daemon) == 'ready', 15)
    lines[1:] = ['block-size = 512']
    daemon.write_config()
    assert daemon.targetdctl('reload', '--plan')[0] == 0
