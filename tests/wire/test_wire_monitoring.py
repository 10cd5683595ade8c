"""Tests of `targetdctl nagios` and `targetdctl metrics` with a real server."""

import os

import pytest
from daemon import TARGET

pytestmark = pytest.mark.wire


def test_nagios_tells_a_server_that_is_well_from_one_that_is_not(daemon, ready):
    daemon.target()
    daemon.start()
    ready(daemon)
    code, output = daemon.targetdctl('nagios')
    assert code == 0
    assert output.startswith('TARGETD OK - 1 sessions, 1 logical units | sessions=1;;;0 targets=1')
    daemon.stop()
    code, output = daemon.targetdctl('nagios')
    assert code == 2
    assert output.startswith('TARGETD CRITICAL - targetd is not running')


def test_nagios_names_a_unit_whose_file_was_deleted(daemon):
    daemon.target()
    daemon.text.server['media-check-interval'] = '1'
    daemon.start()
    os.unlink(os.path.join(daemon.directory, 'disk.img'))
    daemon.logged('deleted')
    code, output = daemon.targetdctl('nagios')
    assert code == 1
    assert output.startswith('TARGETD WARNING - %s/0 is ' % TARGET) and 'deleted' in output


def test_metrics_are_written_as_a_whole(daemon, ready, tmp_path):
    daemon.target()
    daemon.start()
    ready(daemon)
    path = tmp_path / 'targetd.prom'
    assert daemon.targetdctl('metrics', '--output', str(path)) == (0, '')
    lines = path.read_text().splitlines()
    assert 'targetd_up 1' in lines
    assert 'targetd_unit_severity{lun="0",target="%s"} 0' % TARGET in lines
    assert 'targetd_target_sessions{target="%s"} 1' % TARGET in lines
    assert os.listdir(str(tmp_path)).count('targetd.prom') == 1
    assert not [name for name in os.listdir(str(tmp_path)) if name.startswith('targetd.prom.')]
    daemon.stop()
    code, output = daemon.targetdctl('metrics')
    assert (code, output.splitlines()[-1]) == (0, 'targetd_up 0')
    code, output = daemon.targetdctl('metrics', '--output', str(tmp_path / 'none' / 'x.prom'))
    assert code == 1 and 'cannot be written' in output
