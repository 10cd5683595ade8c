"""The kinds of files, damaged files, and the command that writes the result."""

import json
import os
import stat

import pytest

from targetd.admin import cli
from targetd.config import loader
from targetd.errors import EXIT_FAILURE, EXIT_OK
from targetd.migration import command, files, sources
from targetd.migration.imported import Unreadable

TGT = '<target iqn.2026-11.com.example:t>\n  backing-store %s\n  initiator-address 10.0.0.5\n</target>\n'


@pytest.fixture
def targets_conf(tmp_path):
    (tmp_path / 'a.img').write_bytes(bytes(1 << 20))
    path = tmp_path / 'targets.conf'
    path.write_text(TGT % (tmp_path / 'a.img'))
    return path


@pytest.mark.parametrize(
    'text, kind',
    [
        ('# x\ndefault-driver iscsi\n', 'tgt'),
        ('{"storage_objects": []}', 'lio'),
        ('{"gateways": {}, "disks": {}}', 'ceph'),
        ('HANDLER vdisk_fileio {\n}\n', 'scst'),
        ('# IET\nTarget iqn.x:y\n  Lun 0 Path=/a\n', 'iet'),
        ('portal-group a {\n}\n', 'ctl'),
        ('[Global]\n  NodeBase x\n', 'istgt'),
        ('<?xml version="1.0"?>\n<iSCSITargetServiceSetting/>', 'microsoft'),
    ],
)
def test_the_kind_of_a_file_is_seen_in_its_content(text, kind):
    assert files.kind_of(text, 'x') == kind


@pytest.mark.parametrize(
    'text, words',
    [
        ('', 'the file is empty'),
        ('hello\n', 'the format is not known'),
        ('block_pools:\n- vg\nfs_pools: []\n', 'the other program called targetd'),
        ('{"storage_objects": [\n  {"a": 1},\n', 'the file ends in the middle'),
        ('{"storage_objects": [\n  // mine\n]}', 'JSON has no comments'),
        ('{"storage_objects": [\n  1 2\n]}', 'this is not JSON'),
        ('{"a": 1}', 'neither storage_objects'),
    ],
)
def test_a_file_that_cannot_be_imported_is_named(text, words):
    with pytest.raises(Unreadable) as caught:
        files.kind_of(text, 'x')
    assert words in str(caught.value) and caught.value.note.remedy


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be'])
def test_files_of_windows_are_read(targets_conf, encoding, capsys):
    text = targets_conf.read_text().replace('\n', '\r\n')
    targets_conf.write_bytes(text.encode(encoding))
    assert command.run_import([str(targets_conf)]).exit_code == EXIT_OK


def test_a_disk_is_not_a_configuration(tmp_path):
    (tmp_path / 'disk').write_bytes(b'ab\0\0cd' * 100)
    outcome = command.run_import([str(tmp_path / 'disk')])
    assert outcome.exit_code == EXIT_FAILURE and outcome.text == ''


def test_the_command_writes_to_standard_output(targets_conf, capsys, tmp_path):
    assert cli.main(['import', str(targets_conf)]) == EXIT_OK
    captured = capsys.readouterr()
    path = tmp_path / 'targetd.conf'
    path.write_text(captured.out)
    lun = loader.load(str(path)).targets['iqn.2026-11.com.example:t'].luns[1]
    assert lun.backing_store == str(tmp_path / 'a.img')
    assert 'targetdctl: %s: LUN 0 of every target of tgt' % targets_conf in captured.err


def test_the_written_file_is_private_and_is_not_overwritten(targets_conf, capsys, tmp_path):
    output = str(tmp_path / 'new.conf')
    assert cli.main(['import', str(targets_conf), '--output', output]) == EXIT_OK
    assert stat.S_IMODE(os.stat(output).st_mode) == 0o600
    assert cli.main(['import', str(targets_conf), '--output', output]) == EXIT_FAILURE
    assert 'overwrite it with --force' in capsys.readouterr().err
    assert cli.main(['import', str(targets_conf), '--output', output, '--force']) == EXIT_OK


def test_something_left_out_is_an_exit_code_and_an_error_writes_nothing(targets_conf, capsys):
    text = targets_conf.read_text()
    targets_conf.write_text(text.replace('</target>', '  IFMarker No\n</target>'))
    assert cli.main(['import', str(targets_conf)]) == EXIT_FAILURE
    assert '[target iqn.2026-11.com.example:t]' in capsys.readouterr().out
    targets_conf.write_text(text.replace('</target>', '  backing-store /gone\n</target>'))
    assert cli.main(['import', str(targets_conf)]) == EXIT_FAILURE
    captured = capsys.readouterr()
    assert captured.out == '' and 'nothing was written' in captured.err
    assert '%s:4: error: /gone does not exist' % targets_conf in captured.err
    assert cli.main(['import', str(targets_conf), '--force']) == EXIT_FAILURE
    assert '[target iqn.2026-11.com.example:t]' in capsys.readouterr().out


def test_what_targetd_would_refuse_is_an_error_without_secrets(tmp_path, capsys):
    path = tmp_path / 'targets.conf'
    text = '<target iqn.2026-11.com.example:t>\n backing-store /a\n incominguser j OneSecret\n'
    path.write_text(text + ' outgoinguser k OneSecret\n</target>\n')
    assert cli.main(['import', str(path)]) == EXIT_FAILURE
    errors = capsys.readouterr().err
    assert 'targetd would refuse "outgoinguser"' in errors and 'OneSecret' not in errors


def test_several_files_are_merged(tmp_path, targets_conf):
    store = {'plugin': 'fileio', 'name': 'a', 'dev': '/srv/x', 'size': 1 << 20, 'wwn': 'z9'}
    tpg = {'tag': 1, 'enable': 1, 'portals': [{'ip_address': '10.0.0.1', 'port': 3260}]}
    tpg.update(attributes={'generate_node_acls': 1}, luns=[])
    for number in (1, 2):
        tpg['portals'][0]['port'] = 3260 + number
        name = 'iqn.2026-11.com.example:l%d' % number
        content = {
            'storage_objects': [store],
            'targets': [{'fabric': 'iscsi', 'wwn': name, 'tpgs': [tpg]}],
        }
        (tmp_path / ('%d.json' % number)).write_text(json.dumps(content))
    imported = sources.import_files([str(tmp_path / '1.json'), str(tmp_path / '2.json')])
    assert imported.groups == {1: ['10.0.0.1:3261'], 2: ['10.0.0.1:3262']}
    assert [target.get('portal-group') for target in imported.targets] == [['1'], ['2']]
    with pytest.raises(Unreadable, match="there is no format 'x'"):
        sources.import_files([str(targets_conf)], 'x')
