"""The configuration of targetd itself as one file: nothing but comments is lost."""

import re

import pytest

from targetd import xts
from targetd.admin import cli
from targetd.config import loader, render
from targetd.errors import EXIT_FAILURE, EXIT_OK
from targetd.migration import command, own, running_state, writer
from targetd.migration.imported import LEFT_OUT

TEXT = """include = more/*.conf
[server]
server-id = "pair, one"
incomingdiscoveryuser = finder 12-to-16-chars
[portal-group 1]
portal = 10.0.0.1, [2001:db8::1]:3261
[portal-group 7]
portal = 10.0.0.2
[target iqn.2026-11.com.example:T]
alias = "ERP, data" # a comment
portal-group = 1, 7
alua-state = 7 standby
initiator-address = 10.0.0.0/8
initiator-name = iqn.x:*, iqn.y:a
incominguser = joe "a b,#c", jim 'say "x"'
incominguser-file = accounts
outgoinguser = back other-12-to-16
HeaderDigest = CRC32C
write-cache = off
backing-store = a.img
  [[lun 3]]
  direct-store = "with blank.img"
  size = 1M
  identity = tgt tid=1 lun=3
  write-cache = on
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / 'more').mkdir()
    (tmp_path / 'accounts').write_text('jane "secret of jane"\n')
    (tmp_path / 'a.img').write_bytes(bytes(1 << 20))
    (tmp_path / 'more' / 'b.conf').write_text(
        '[target iqn.2026-11.com.example:b]\nredirect = temporary 10.0.0.9\nstate = offline\n'
    )
    (tmp_path / 'targetd.conf').write_text(TEXT)
    return str(tmp_path / 'targetd.conf')


def without_places(configuration):
    return configuration._replace(files=(), places={})


def same(path):
    """True if the export of a file, read again, is the same Configuration."""
    before = loader.load(path)
    text = writer.configuration_text(own.from_configuration(before))
    after = loader.load_text(path, text)
    again = writer.configuration_text(own.from_configuration(after))
    assert again.split('\n')[1:] == text.split('\n')[1:]
    return without_places(after) == without_places(before)


def test_an_export_is_the_same_configuration(path):
    assert same(path)


def test_every_setting_is_exported(tmp_path):
    """The sample with every setting enabled, as in test_rendered_files."""
    (tmp_path / 'erp.secrets').write_text('other 12-to-16-chars\n')
    text = re.sub('^( *)#([a-zA-Z[])', r'\1\2', render.sample(), flags=re.MULTILINE)
    text = re.sub('^ *direct-store.*\n', '', text, flags=re.MULTILINE)
    if xts.why_not():
        text = re.sub('^ *encryption-key-file.*\n', '', text, flags=re.MULTILINE)
    text = text.replace('/etc/targetd.d/erp.secrets', 'erp.secrets')
    text = text.replace('/etc/targetd.d/*.conf', 'none/*.conf')
    (tmp_path / 'targetd.conf').write_text(text)
    assert same(str(tmp_path / 'targetd.conf'))


def test_the_import_of_an_export_is_the_same(path, tmp_path, capsys):
    assert cli.main(['export', '--config', path, '--output', str(tmp_path / 'one')]) == EXIT_OK
    assert cli.main(['import', str(tmp_path / 'one'), '--output', str(tmp_path / 'two')]) == EXIT_OK
    first, second = (without_places(loader.load(each)) for each in (path, str(tmp_path / 'two')))
    assert first == second
    assert cli.main(['export', '--config', path, '--output', str(tmp_path / 'one')]) == EXIT_FAILURE
    assert 'overwrite it with --force' in capsys.readouterr().err


def test_a_configuration_with_errors_is_not_exported(tmp_path, capsys):
    (tmp_path / 'c').write_text('[target x y]\n')
    assert cli.main(['export', '--config', str(tmp_path / 'c')]) == EXIT_FAILURE
    captured = capsys.readouterr()
    assert captured.out == '' and 'c:1: error:' in captured.err


NAME = 'iqn.2026-11.com.example:t'


def test_what_only_the_server_knows_is_added(path):
    alua = [
        {'target_name': NAME, 'lun': lun, 'group': group, 'access': access, 'set_by': by}
        for lun in (0, 3)
        for group, access, by in (
            (1, 'nonoptimized', 'administrator'),
            (7, 'optimized', 'initiator'),
        )
    ]
    units = [{'target_name': NAME, 'lun': 0, 'serial': 'S 1', 'naa': '6' * 32}]
    outcome = command.run_export(path, alua=alua, units=units)
    target = loader.load_text(path, outcome.text).targets[NAME]
    assert target.alua_state == ((1, 'nonoptimized'),)
    assert (target.luns[0].scsi_sn, target.luns[0].naa) == ('S 1', ('6' * 32,))
    assert target.luns[3].naa[0].startswith('3')
    unchanged = command.run_export(path, alua=[dict(row, set_by='configuration') for row in alua])
    assert loader.load_text(path, unchanged.text).targets[NAME].alua_state == ((7, 'standby'),)


def test_changes_that_are_not_in_force_are_listed(path):
    outcome = command.run_export(path, plan=[{'step': 'add target x', 'effect': 'immediately'}])
    assert (
        outcome.exit_code == EXIT_FAILURE and 'is not in force: add target x' in outcome.messages[0]
    )
    exported = own.parse(path)
    different = [
        {'target_name': NAME, 'lun': lun, 'group': 1, 'access': access, 'set_by': 'administrator'}
        for lun, access in ((0, 'standby'), (3, 'optimized'))
    ]
    running_state.add_alua(exported, different)
    assert exported.worst() == LEFT_OUT
