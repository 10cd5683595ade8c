"""Media that change under the server, and other users of the same data, with the real daemon."""

import json
import os

import pytest
from daemon import TARGET, watched

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
    with open(path_of(daemon, 'state/media.json')) as file:
        assert len(json.load(file)['media']) == 1
