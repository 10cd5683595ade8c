"""The committed sample configuration and manual pages are those rendered from the tables."""

import os
import re
import shutil
import subprocess

import pytest

from targetd import xts
from targetd.config import loader, model, render, settings

MANUALS = [name for name, (path, _) in render.OUTPUTS.items() if path.startswith('man/')]


@pytest.mark.parametrize('name', sorted(render.OUTPUTS))
def test_the_committed_file_is_the_rendered_one(name):
    path, function = render.OUTPUTS[name]
    with open(os.path.join(render.TREE, path), encoding='utf-8') as f:
        assert f.read() == function(), 'run: python3 -m targetd.config.render write'


def test_the_sample_can_be_used_as_it_is(tmp_path):
    (tmp_path / 'targetd.conf').write_text(render.sample())
    configuration = loader.load(str(tmp_path / 'targetd.conf'))
    assert configuration.server == model.Server() and not configuration.targets
    assert configuration.portal_groups == {1: model.DEFAULT_PORTAL_GROUP}


def test_every_line_of_the_sample_can_be_enabled(tmp_path):
    """Each line without the '#' in front of it is valid. The two kinds of store exclude each other;
    encryption may be missing."""
    (tmp_path / 'erp.secrets').write_text('other 12-to-16-chars\n')
    text = re.sub('^( *)#(?=[^ #\n])', r'\1', render.sample(), flags=re.MULTILINE)
    text = re.sub('^ *direct-store.*\n', '', text, flags=re.MULTILINE)
    if xts.why_not():
        text = re.sub('^ *encryption-key-file.*\n', '', text, flags=re.MULTILINE)
    text = text.replace('/etc/targetd.d/erp.secrets', 'erp.secrets').replace(
        '/etc/targetd.d/*.conf', 'none/*.conf'
    )
    (tmp_path / 'targetd.conf').write_text(text)
    configuration = loader.load(str(tmp_path / 'targetd.conf'))
    erp, disk1 = configuration.targets.values()
    assert erp.luns[0].size == 200 << 30 and erp.accounts == (('erp', '12-to-16-chars'),)
    assert (
        disk1.keys == dict(model.DEFAULT_KEYS)
        and disk1.luns[0].naa
        and disk1.accounts[1] == ('other', '12-to-16-chars')
    )
    assert configuration.server.incomingdiscoveryuser == (('finder', '12-to-16-chars'),)


def test_the_sample_holds_every_setting():
    for row in settings.TABLE:
        assert re.search('^ *#?%s = ' % re.escape(row.name), render.sample(), flags=re.MULTILINE), (
            row.name
        )


def test_the_manual_page_and_the_help_explain_every_setting():
    page = render.OUTPUTS['man5'][1]()
    for row in settings.TABLE:
        assert '.BR %s ' % render.roff(row.name) in page, row.name
        assert render.plain_help(row.name.replace('-', '_')).count(row.help.split(' ')[0])
    assert render.plain_help('no-such') == ''
    assert 'max-sessions' in render.meant('max-sesions')


@pytest.mark.skipif(not shutil.which('groff'), reason='groff is not installed (Debian: groff)')
@pytest.mark.parametrize('name', MANUALS)
def test_groff_has_no_warnings_about_the_manual_pages(name):
    run = subprocess.run(
        ['groff', '-ww', '-man', '-Tutf8', '-z'],
        input=render.OUTPUTS[name][1]().encode('utf-8'),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert (run.returncode, run.stderr) == (0, b'')


def test_text_that_roff_would_misread_is_protected():
    assert render.roff(".TH\n'x' -a \\ \u00e4") == '\\&.TH\n\\(aqx\\(aq \\-a \\e \\[u00E4]'


def test_write_renders_the_files_that_are_compared(tmp_path, monkeypatch, capsys):
    for directory in ('etc', 'man'):
        (tmp_path / directory).mkdir()
    for name in ('targetd.8.in', 'targetd.conf.5.in'):
        shutil.copy(os.path.join(render.TREE, 'man', name), str(tmp_path / 'man'))
    monkeypatch.setattr(render, 'TREE', str(tmp_path))
    assert render.main(['write']) == 0
    assert (tmp_path / 'etc' / 'targetd.conf').read_text() == render.sample()
    assert render.main(['man8']) == 0 and '.TH TARGETD 8' in capsys.readouterr().out
    assert render.main(['nonsense']) == 2
