"""targetd --install-files: what it writes, keeps and takes back, and that a package has the files."""

import json
import os
import shutil
import stat
import subprocess
import sys

import pytest
from source_tree import ROOT

import targetd
from targetd import cli
from targetd.admin import system_files
from targetd.errors import EXIT_FAILURE, EXIT_OK, TargetdError

SHELL_FILES = {'sysv': 'etc/init.d/targetd', 'openrc': 'etc/init.d/targetd'}
SHELL_FILES.update(runit='etc/sv/targetd/run', s6='etc/s6/sv/targetd/run')


def written(root):
    return sorted(
        os.path.relpath(os.path.join(place, name), str(root))
        for place, _, names in os.walk(str(root))
        for name in names
    )


@pytest.mark.parametrize('init', sorted(system_files.INITS))
def test_every_init_system_gets_its_file(tmp_path, init):
    done = system_files.install(str(tmp_path), init)
    for file in system_files.FILES:
        if file.folder == '':
            assert (tmp_path / file.target[1:]).exists() == (file.init in ('', init)) or (
                file.target in [each.target for each in system_files.FILES if each.init == init]
            )
    assert any(line.startswith('start it with: ') for line in done)
    if init in SHELL_FILES:
        script = str(tmp_path / SHELL_FILES[init])
        assert os.stat(script).st_mode & stat.S_IXUSR
        subprocess.check_call(['sh', '-n', script])
    assert stat.S_IMODE(os.stat(str(tmp_path / 'etc/targetd.conf')).st_mode) == 0o600
    for path in written(tmp_path):
        if path != 'var/lib/targetd/installed-files':
            assert any(line.startswith(str(tmp_path / path) + ' is ') for line in done)


def test_a_second_installation_changes_nothing_and_updates_what_is_unchanged(tmp_path):
    system_files.install(str(tmp_path), 'sysv')
    before = written(tmp_path)
    assert all('is up to date' in line for line in system_files.install(str(tmp_path), 'sysv')[:-1])
    assert written(tmp_path) == before
    # an older version of a file that nobody has changed
    script = tmp_path / 'etc/init.d/targetd'
    system_files._put(str(tmp_path), '/etc/init.d/targetd', b'old', 0o755, {})
    known = system_files._known(str(tmp_path))
    script.write_bytes(b'old')
    known['/etc/init.d/targetd'] = system_files._checksum(str(script))
    (tmp_path / 'var/lib/targetd/installed-files').write_text(json.dumps(known))
    assert '%s is written' % script in system_files.install(str(tmp_path), 'sysv')
    assert script.read_bytes().startswith(b'#!/bin/sh')


def test_a_changed_file_is_neither_overwritten_nor_removed(tmp_path, capsys):
    root = str(tmp_path)
    assert cli.main(['--install-files', '--root', root, '--init', 'systemd']) == EXIT_OK
    configuration = tmp_path / 'etc/targetd.conf'
    configuration.write_text('mine')
    assert cli.main(['--install-files', '--root', root, '--init', 'systemd']) == EXIT_OK
    assert '%s is kept, because it was changed' % configuration in capsys.readouterr().out
    assert cli.main(['--uninstall-files', '--root', root]) == EXIT_OK
    assert '%s is kept, because it was changed' % configuration in capsys.readouterr().out
    assert written(tmp_path) == ['etc/targetd.conf'] and configuration.read_text() == 'mine'
    assert cli.main(['--uninstall-files', '--root', root]) == EXIT_OK
    assert 'nothing is installed' in capsys.readouterr().out


def test_a_file_of_somebody_else_is_kept(tmp_path):
    (tmp_path / 'etc/init.d').mkdir(parents=True)
    (tmp_path / 'etc/init.d/targetd').write_text('another targetd')
    done = system_files.install(str(tmp_path))
    assert '%s is kept, because it was changed' % (tmp_path / 'etc/init.d/targetd') in done
    system_files.uninstall(str(tmp_path))
    assert written(tmp_path) == ['etc/init.d/targetd']


def test_the_init_system_is_found_by_its_files(tmp_path):
    assert system_files.init_of(str(tmp_path)) == 'sysv'
    (tmp_path / 'sbin').mkdir()
    (tmp_path / 'sbin/openrc-run').write_text('')
    assert system_files.init_of(str(tmp_path)) == 'openrc'


def test_the_programs_of_a_virtual_environment_are_linked(tmp_path, monkeypatch):
    folder = tmp_path / 'venv/bin'
    folder.mkdir(parents=True)
    for name in ('targetd', 'targetdctl'):
        (folder / name).write_text('')
    monkeypatch.setattr(sys, 'argv', [str(folder / 'targetd')])
    root = tmp_path / 'root'
    system_files.install(str(root), 'sysv')
    assert os.readlink(str(root / 'usr/local/sbin/targetd')) == str(folder / 'targetd')
    assert 'PATH=%s:' % folder in (root / 'etc/default/targetd').read_text()
    system_files.uninstall(str(root))
    assert written(root) == []


def test_errors_are_one_sentence(tmp_path, capsys):
    assert cli.main(['--install-files', '--root', str(tmp_path), '--init', 'x']) == EXIT_FAILURE
    assert 'there is no init system' in capsys.readouterr().err
    (tmp_path / 'etc').write_text('a file')
    with pytest.raises(TargetdError, match='cannot be written'):
        system_files.install(str(tmp_path), 'sysv')


def test_every_source_is_in_the_package_that_pip_builds(tmp_path):
    tree = tmp_path / 'tree'
    for name in ('etc', 'init', 'man'):
        shutil.copytree(os.path.join(ROOT, name), str(tree / name))
    shutil.copytree(
        os.path.join(ROOT, 'targetd'), str(tree / 'targetd'), ignore=shutil.ignore_patterns('*.pyc')
    )
    for name in ('setup.py', 'setup.cfg', 'MANIFEST.in', 'README.md', 'LICENSE'):
        shutil.copy(os.path.join(ROOT, name), str(tree))
    pytest.importorskip('setuptools')
    subprocess.check_call(
        [sys.executable, 'setup.py', '-q', 'build', '--build-base', str(tmp_path / 'built')],
        cwd=str(tree),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    built = tmp_path / 'built/lib/targetd'
    assert (built / 'migration/tgt.py').exists() and (built / 'master/exports/exports.py').exists()
    for file in system_files.FILES:
        assert (built / 'files' / file.source).exists(), file.source
    subprocess.check_call(
        [sys.executable, 'setup.py', '-q', 'sdist', '--dist-dir', str(tmp_path / 'dist')],
        cwd=str(tree),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    (archive,) = (tmp_path / 'dist').iterdir()
    names = subprocess.check_output(['tar', 'tzf', str(archive)]).decode().split('\n')
    for file in system_files.FILES:
        assert any(name.endswith('/' + file.source) for name in names), file.source


def test_there_is_no_pyproject_toml():
    """With one, pip 18.1 of Python 3.6 would download a setuptools that does not run there."""
    assert not os.path.exists(os.path.join(ROOT, 'pyproject.toml'))


@pytest.mark.parametrize('path', system_files.OTHER_TARGETD)
def test_nothing_is_installed_beside_the_other_targetd(tmp_path, capsys, path):
    other = tmp_path / path[1:]
    other.parent.mkdir(parents=True)
    other.write_text('')
    before = written(tmp_path)
    assert cli.main(['--install-files', '--root', str(tmp_path)]) == EXIT_FAILURE
    error = capsys.readouterr().err
    assert (
        len(error.splitlines()) == 1 and str(other) in error and 'remove its package first' in error
    )
    assert written(tmp_path) == before


def test_the_packages_have_the_version_of_the_program():
    with open(os.path.join(ROOT, 'packaging/debian/changelog')) as file:
        assert file.readline().startswith('targetd-iscsi (%s) ' % targetd.__version__)
    with open(os.path.join(ROOT, 'packaging/rpm/targetd-iscsi.spec')) as file:
        text = file.read()
    assert 'global targetd_version %s}\n' % targetd.__version__ in text
    assert '- %s-1\n' % targetd.__version__ in text


@pytest.mark.source  # a script of the shell, on every interpreter the same
def test_both_packages_contain_every_file_that_is_installed(tmp_path):
    """install-tree is a list of its own, because a package has no Python when it is built."""
    subprocess.check_call(
        [
            os.path.join(ROOT, 'packaging/install-tree'),
            str(tmp_path),
            '/etc/default/targetd',
            '/lib/systemd/system',
        ]
    )
    content = {(tmp_path / path).read_bytes() for path in written(tmp_path)}
    for file in system_files.FILES:
        if file.init in ('', 'sysv', 'systemd'):
            assert system_files.source(file.source) in content, file.source
    assert (tmp_path / 'usr/share/targetd-iscsi/targetd/master/exports/exports.py').exists()
