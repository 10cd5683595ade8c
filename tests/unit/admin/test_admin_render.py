"""The committed manual page and completion are those that are rendered from the table of commands."""

import json
import os
import subprocess
from shutil import which

import pytest

from targetd.admin import commands, render

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))


@pytest.mark.parametrize('name', sorted(render.FILES))
def test_the_file_in_the_tree_is_up_to_date(name):
    place, make = render.FILES[name]
    with open(os.path.join(ROOT, place), encoding='utf-8') as f:
        assert f.read() == make(), 'run: python3 -m targetd.admin.render write'


def test_write_renders_every_file(tmp_path, monkeypatch):
    for directory in ('etc', 'man'):
        (tmp_path / directory).mkdir()
    monkeypatch.setattr(render, 'TREE', str(tmp_path))
    assert render.main(['write']) == 0
    assert (tmp_path / 'man' / 'targetdctl.8').read_text() == render.man_page()


def test_rendering_to_standard_output(capsys):
    assert render.main(['man']) == 0
    assert capsys.readouterr().out == render.man_page()
    assert render.main([]) == 2 and render.main(['x']) == 2


@pytest.mark.skipif(which('groff') is None, reason='groff is not installed')
def test_the_manual_page_is_clean_and_names_every_command():
    process = subprocess.run(
        ['groff', '-man', '-ww', '-Tascii', '-P-cbou'],
        input=render.man_page().encode('utf-8'),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.returncode == 0 and process.stderr == b''
    text = ' '.join(process.stdout.decode('ascii').split())
    for row in commands.TABLE:
        assert ' %s ' % row.words in text
    assert 'targetdctl show sessions --json | python3' in text


def complete(tmp_path, *words):
    """What bash offers for a command line whose last word is being typed. A fake `targetdctl` reports
    sessions 1 and 12."""
    fake = tmp_path / 'targetdctl'
    answer = json.dumps(
        [{'pid': 7, 'tsih': 1, 'unit': 'a-0'}, {'tsih': 12}], indent=2, sort_keys=True
    )
    fake.write_text(
        "#!/bin/sh\necho \"$@\" > %s/asked\ncat <<'EOF'\n%s\nEOF\n" % (tmp_path, answer)
    )
    fake.chmod(0o755)
    script = (
        'source %s; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _targetdctl; echo "${COMPREPLY[@]}"'
        % os.path.join(ROOT, render.FILES['completion'][0])
    )
    environment = dict(os.environ, PATH='%s:%s' % (tmp_path, os.environ['PATH']))
    output = subprocess.check_output(['bash', '-c', script, 'bash'] + list(words), env=environment)
    return output.decode('ascii').split()


@pytest.mark.skipif(which('bash') is None, reason='bash is not installed')
@pytest.mark.parametrize(
    'words, offered',
    [
        (['targetdctl', 'sho'], ['show']),
        (
            ['targetdctl', 'show', ''],
            ['sessions', 'targets', 'units', 'errors', 'counters', 'portals', 'alua']
            + ['connections', 'luns', 'settings', 'workers', 'config', 'disks', 'limits', 'space'],
        ),
        (['targetdctl', '-s', '/tmp/x', 'reo'], ['reopen-logs']),
        (['targetdctl', 'reload', '--p'], ['--plan']),
        (['targetdctl', 'end', '1'], ['1', '12']),
        (['targetdctl', 'logout', '--seconds', '10', '1'], ['1', '12']),
        (['targetdctl', 'logout', '--seconds', ''], []),
        (['targetdctl', 'acknowledge', ''], ['--json', '--socket', '--help', 'a-0']),
        (['targetdctl', 'show', 'sessions', 'x'], []),
    ],
)
def test_bash_completes(tmp_path, words, offered):
    assert complete(tmp_path, *words) == offered


@pytest.mark.skipif(which('bash') is None, reason='bash is not installed')
def test_completion_uses_the_server_of_the_option(tmp_path):
    complete(tmp_path, 'targetdctl', '-s', '/tmp/other.sock', 'end', '')
    assert (tmp_path / 'asked').read_text() == '-s /tmp/other.sock show sessions --json\n'
