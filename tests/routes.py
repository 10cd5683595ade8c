"""The ways to install targetd on a fresh Debian 12, each in at most three commands: a Debian package, the
program of one file, pip. Each ends with a disk that a real client finds and `service targetd status`
that succeeds. Also pip in a virtual environment of every Python from 3.6 on that is found.
"""

import glob
import os
import shutil
import subprocess
import time

import chroots
from daemon import ROOT, TARGET, eventually, free_port
from initiator import INITIATOR

DISK = '''
[target %s]
initiator-address = ALL
  [[lun 0]]
  backing-store = %s
  size = 64M
'''
SIZE = 64 << 20
PYTHONS = ('3.6', '3.9', '3.13')
MAXIMUM_COMMANDS = 3

#: Way -> (files that it starts from, below /root; what must be there before; the commands). The configuration
#: is written before the last command.
ROUTES = {
    'deb': (
        'targetd-iscsi.deb',
        '',
        ('apt-get install -q -y /root/targetd-iscsi.deb', 'service targetd start'),
    ),
    'zipapp': (
        'targetd.pyz',
        '',
        (
            'install -m 755 /root/targetd.pyz /usr/local/sbin/targetd',
            'targetd --install-files',
            'service targetd start',
        ),
    ),
    'pip': (
        'tree',
        'apt-get install -q -y python3-venv',
        (
            'python3 -m venv /opt/targetd && /opt/targetd/bin/pip install -q /root/tree',
            '/opt/targetd/bin/targetd --install-files',
            'service targetd start',
        ),
    ),
}


def copy_tree(path):
    """Copy what a release contains to this directory; returns the path."""
    tree = str(path)
    os.makedirs(tree)
    for name in ('etc', 'init', 'man', 'packaging', 'targetd'):
        shutil.copytree(
            os.path.join(ROOT, name),
            os.path.join(tree, name),
            ignore=shutil.ignore_patterns('*.pyc'),
        )
    files = [
        os.path.join(ROOT, name) for name in ('LICENSE', 'MANIFEST.in', 'setup.cfg', 'setup.py')
    ]
    for each in glob.glob(os.path.join(ROOT, '*.md')) + files:
        shutil.copy(each, tree)
    return tree


def put_sources(system, route, directory):
    """Build what the way starts from, and put it below /root of the system."""
    name = ROUTES[route][0]
    if route == 'pip':
        system.put(copy_tree(os.path.join(directory, 'tree')), '/root/tree')
        return
    out = chroots.build(route, os.path.join(directory, route))
    (built,) = glob.glob('%s/*.%s' % (out, name.rsplit('.')[-1]))
    system.put(built, '/root/' + name)


def install(system, route, directory):
    """Install targetd in the system in this way, with a disk; returns the number of commands."""
    put_sources(system, route, directory)
    _, before, commands = ROUTES[route]
    if before:
        system.must(before)
    for command in commands[:-1]:
        system.must(command)
    system.write('/etc/targetd.conf', DISK % (TARGET, '/srv/disk.img'), 'a')
    system.must(commands[-1])
    return len(commands)


def complaint_about(system):
    """What is wrong with the installed server, or ''."""
    code, output = system.run('service targetd status')
    if code:
        return 'service targetd status: exit code %d: %s' % (code, output)
    url = 'iscsi://127.0.0.1:3260'
    # one initiator for all: a LUN is used by one at a time (sharing)
    name = ('-i', INITIATOR)
    if TARGET not in system.host('iscsi-ls', *name, '-s', url):
        return 'the target is not found'
    if str(SIZE) not in system.host('iscsi-readcapacity16', *name, '%s/%s/0' % (url, TARGET)):
        return 'the disk is not served'
    code, output = system.run('targetdctl show units')
    return '' if TARGET in output and code == 0 else 'targetdctl: ' + output


def complaint_about_venv(python, directory):
    """What is wrong with targetd in a virtual environment of this interpreter, or ''."""
    venv, run = os.path.join(directory, 'venv'), os.path.join(directory, 'run')
    os.makedirs(run)
    tree = copy_tree(os.path.join(directory, 'tree'))
    subprocess.check_call([python, '-m', 'venv', venv])
    subprocess.check_call([venv + '/bin/python', '-m', 'pip', 'install', '-q', tree])
    port = free_port()
    paths = [
        '%s = %s/%s' % (name, run, name)
        for name in ('pid-file', 'control-socket', 'state-dir', 'log')
    ]
    text = '[server]\n%s\n[portal-group 1]\nportal = 127.0.0.1:%d\n' % ('\n'.join(paths), port)
    config = os.path.join(run, 'targetd.conf')
    with open(config, 'w') as file:
        file.write(text + DISK % (TARGET, os.path.join(run, 'disk.img')))
    os.chmod(config, 0o600)
    subprocess.check_call([venv + '/bin/targetd', '-c', config], stdin=subprocess.DEVNULL)
    try:
        listed = subprocess.check_output(['iscsi-ls', '-s', 'iscsi://127.0.0.1:%d' % port])
    finally:
        subprocess.check_call([venv + '/bin/targetdctl', '-s', run + '/control-socket', 'stop'])
        eventually(lambda: not os.path.exists(run + '/pid-file'), 30)
    return '' if TARGET in listed.decode() else 'the target is not found'


def interpreters():
    """{version: path} of the interpreters of PYTHONS that are found."""
    found = {}
    for version in PYTHONS:
        folder = os.environ.get('PYENV_ROOT') or os.path.expanduser('~/.pyenv')
        paths = glob.glob('%s/versions/%s.*/bin/python' % (folder, version))
        path = paths[0] if paths else shutil.which('python' + version)
        if path:
            found[version] = path
    return found


def run_routes(directory, seconds, seed):
    """Run every way once; returns (figures, complaints). seconds, seed: not used."""
    figures, complaints = {}, []
    for route in sorted(ROUTES):
        place = os.path.join(directory, route)
        os.makedirs(place)
        start = time.monotonic()
        with chroots.fresh(place) as system:
            figures['commands, %s' % route] = install(system, route, place)
            figures['seconds, %s' % route] = round(time.monotonic() - start)
            text = complaint_about(system)
            if text:
                complaints.append('%s: %s' % (route, text))
    for version, python in sorted(interpreters().items()):
        text = complaint_about_venv(python, os.path.join(directory, version))
        figures['pip in a venv of Python %s' % version] = int(not text)
        if text:
            complaints.append('Python %s: %s' % (version, text))
    return figures, complaints
