"""The trial of a new program, and how it is started (targetd.master.upgrade.upgrade)."""

import subprocess
import sys

import pytest

from targetd.master.upgrade import upgrade

SCRIPT = 'import sys; sys.stdout.write(%r)'


def outcome(text, kept=()):
    return upgrade.try_program([sys.executable, '-c', SCRIPT % text], '/etc/targetd.conf', 0, kept)


def test_a_program_that_can_take_over():
    assert outcome('a warning\n{"version": "2.0", "refused": ""}\n') == {'version': '2.0'}


def test_a_program_that_refuses_says_why():
    text = '{"version": "2.0", "refused": "no LUN 3"}\n'
    assert outcome(text) == {'failed': 'version 2.0 cannot take over: no LUN 3'}


@pytest.mark.parametrize('text', ['SyntaxError: invalid syntax', '{"version": "2.0"}', '[]', '1'])
def test_any_other_output_is_a_failure_and_is_shown(text):
    assert outcome(text) == {'failed': 'the new program cannot be started:\n' + text}


def test_a_program_that_says_nothing():
    assert 'exit code 0' in outcome('')['failed']


def test_a_program_that_does_not_exist():
    assert 'No such file' in upgrade.try_program(['/nonexistent'], '/', 0)['failed']


def test_a_program_that_does_not_answer_is_killed(monkeypatch):
    monkeypatch.setattr(upgrade, 'TRIAL_SECONDS', 0.2)
    command = [sys.executable, '-c', 'import time; time.sleep(60)']
    assert 'did not answer' in upgrade.try_program(command, '/', 0)['failed']


@pytest.mark.parametrize('how', ['module', 'command', 'script'])
def test_a_program_is_started_as_this_one_was(tmp_path, how):
    text = (
        'import sys; sys.path.insert(0, %r); from targetd.master.upgrade import upgrade; '
        'print(upgrade.program()[-1])' % upgrade.ROOT
    )
    (tmp_path / 'started.py').write_text(text)
    arguments = {
        'module': ['-m', 'started'],
        'command': ['-c', text],
        'script': ['started.py'],  # a relative path: the server changes its directory
    }[how]
    done = subprocess.run(
        [sys.executable] + arguments, cwd=str(tmp_path), stdout=subprocess.PIPE, check=True
    )
    shown = done.stdout.decode('utf-8').strip()
    if how == 'script':
        assert shown == str(tmp_path / 'started.py')
    else:
        assert shown.startswith('import sys; sys.path.insert(0, %r)' % upgrade.ROOT)
