"""targetd is installed as a user would, in a fresh Debian 12 (chroots.py), from its packages. All ways to
install it: python3 -m tests.longrun routes."""

import glob
import os
import subprocess
import threading

import clients
import initiator
import namespaces
import pytest
import routes
from chroots import build, fresh
from daemon import ROOT, TARGET, eventually

import targetd

pytestmark = pytest.mark.client

ADDRESS = ('127.0.0.1', 3260)
NEWER = '9.9.9'


@pytest.fixture
def system(tmp_path):
    """A fresh Debian 12 (chroots.Chroot)."""
    if namespaces.why_not():
        pytest.skip(namespaces.why_not())
    clients.need('debootstrap', 'ip', 'iscsi-ls', 'iscsi-readcapacity16')
    with fresh(tmp_path) as each:
        yield each


@pytest.fixture(scope='session')
def deb(tmp_path_factory):
    """The directory with the Debian package of this tree and its .changes."""
    clients.need('dpkg-buildpackage', 'dh', 'dh_python3')
    return build('deb', tmp_path_factory.mktemp('deb'))


class Load(threading.Thread):
    """Writes and verifies blocks on one session until stop(). complaint: what was wrong, or None."""

    def __init__(self, session):
        super(Load, self).__init__()
        self.session = session
        self.rounds = 0
        self.complaint = None
        self.is_over = threading.Event()

    def run(self):
        try:
            while not self.is_over.is_set():
                lba, data = self.rounds % 1000 * 8, initiator.pattern(self.rounds, 4096)
                self.session.write(lba, data)
                assert bytes(self.session.read(lba, 8)) == data
                self.rounds += 1
        except Exception as e:
            self.complaint = repr(e)

    def stop(self):
        """Ends the load; returns the complaint."""
        self.is_over.set()
        self.join(30)
        return self.complaint


def newer_package(package, directory):
    """The same package with a higher version; returns its path."""
    tree, new = os.path.join(directory, 'newer'), os.path.join(directory, 'newer.deb')
    subprocess.check_call(['dpkg-deb', '-R', package, tree])
    for name, line in (
        ('DEBIAN/control', 'Version: %s'),
        ('usr/share/targetd-iscsi/targetd/__init__.py', "__version__ = '%s'"),
    ):
        with open(os.path.join(tree, name)) as file:
            text = file.read()
        assert line % targetd.__version__ in text
        with open(os.path.join(tree, name), 'w') as file:
            file.write(text.replace(line % targetd.__version__, line % NEWER))
    subprocess.check_call(['dpkg-deb', '-Znone', '-b', tree, new], stdout=subprocess.DEVNULL)
    return new


def user_of(system, pid):
    with open('/proc/%d/status' % pid) as file:
        uid = [line for line in file if line.startswith('Uid:')][0].split()[2]
    with open(system.root + '/etc/passwd') as file:
        return {line.split(':')[2]: line.split(':')[0] for line in file}.get(uid, uid)


def upgrade_under_load(system, newer):
    """The package is replaced by a newer one while a session writes and verifies."""
    system.put(newer, '/root/newer.deb')
    with system.namespace.entered():
        session = initiator.connect(ADDRESS, TARGET)
    try:
        session.clear_attentions()
        load = Load(session)
        load.start()
        eventually(lambda: load.rounds or load.complaint, 20)
        output = system.must('apt-get install -q -y /root/newer.deb')
        assert 'continues with the previous version' not in output, output
        rounds = load.rounds
        eventually(lambda: load.rounds > rounds or load.complaint, 20)
        assert load.stop() is None, (load.complaint, system.transcript)
    finally:
        session.close()
    assert NEWER in system.must('targetd --version')


def reinstall_beside_another_target(system):
    """A port in use is named, and does not fail the installation."""
    listen = (
        'import socket, time; s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); '
        's.bind(("", 3260)); s.listen(1); time.sleep(600)'
    )
    with system.namespace.entered():
        other = subprocess.Popen(['python3', '-c', listen])
    try:
        eventually(lambda: ':3260' in system.host('ss', '-ltn'), 20)
        output = system.must('apt-get install -q -y /root/targetd-iscsi.deb')
        assert 'targetd was not started; when the cause is removed' in output, output
        assert '(process %d)' % other.pid in output, output
    finally:
        other.kill()
        other.wait()


def test_the_life_of_the_debian_package(system, deb, tmp_path):
    (package,) = glob.glob(deb + '/*.deb')
    system.put(package, '/root/targetd-iscsi.deb')
    # as on a system that was started by SysV init
    system.write('/usr/sbin/policy-rc.d', '#!/bin/sh\nexit 0\n')
    os.chmod(system.root + '/usr/sbin/policy-rc.d', 0o755)
    system.must('apt-get install -q -y /root/targetd-iscsi.deb')
    # without a target nobody may log in
    assert 'is running' in system.must('service targetd status')
    assert os.stat(system.root + '/etc/targetd.conf').st_mode & 0o777 == 0o600
    system.write('/etc/targetd.conf', routes.DISK % (TARGET, '/srv/disk.img'), 'a')
    system.must('service targetd reload')
    eventually(lambda: TARGET in system.must('targetdctl show units'), 20)
    assert routes.complaint_about(system) == ''
    users = {user_of(system, pid) for pid in system.processes()}
    assert 'targetd' in users and users <= {'targetd', 'root'}
    assert not system.exists('/usr/lib/python3/dist-packages/targetd')
    upgrade_under_load(system, newer_package(package, str(tmp_path)))
    # logins and every other use of the server, after its code was replaced
    assert routes.complaint_about(system) == ''
    system.must('service targetd reload')
    system.must('service targetd restart')
    assert routes.complaint_about(system) == ''
    system.must('apt-get remove -q -y targetd-iscsi')
    assert not system.processes(), system.transcript
    assert not system.exists('/usr/sbin/targetd') and not system.exists('/usr/share/targetd-iscsi')
    assert TARGET in system.must('cat /etc/targetd.conf') and system.exists('/var/lib/targetd')
    reinstall_beside_another_target(system)
    system.must('apt-get purge -q -y targetd-iscsi')
    left = system.must("find / -xdev -name '*targetd*' -not -path '/root/*' -not -path '/proc/*'")
    assert left == '' and system.exists('/srv/disk.img'), left
    assert 'Traceback' not in system.transcript


def test_lintian_finds_no_error(deb):
    clients.need('lintian')
    (changes,) = glob.glob(deb + '/*.changes')
    code, output = clients.run('lintian', '--allow-root', changes)
    assert code == 0 and 'E: ' not in output, output


def test_the_life_of_the_rpm_package(system, tmp_path):
    clients.need('rpm', 'rpmbuild', 'rpmlint')
    out = build('rpm', tmp_path / 'rpm')
    (package,) = glob.glob(out + '/noarch/*.rpm')
    folder = os.path.join(ROOT, 'packaging', 'rpm')
    code, output = clients.run(
        'rpmlint', '-c', folder + '/rpmlint.toml', package, folder + '/targetd-iscsi.spec'
    )
    assert code == 0 and ' 0 errors' in output, output
    # Debian's package of configobj in place of Fedora's
    system.must('apt-get install -q -y --no-install-recommends python3-configobj')
    rpm = ('rpm', '--root', system.root)
    system.host(*rpm + ('--initdb',))
    system.host(*rpm + ('-i', '--nodeps', package))
    system.write('/etc/targetd.conf', routes.DISK % (TARGET, '/srv/disk.img'), 'a')
    system.must('service targetd start')
    assert routes.complaint_about(system) == ''
    users = {user_of(system, pid) for pid in system.processes()}
    assert 'targetd' in users and users <= {'targetd', 'root'}
    system.host(*rpm + ('-e', 'targetd-iscsi'))
    assert not system.processes(), system.transcript
    assert not system.exists('/usr/share/targetd-iscsi') and not system.exists(
        '/etc/init.d/targetd'
    )
    # a changed configuration is kept
    assert TARGET in system.must('cat /etc/targetd.conf.rpmsave')


def test_the_program_of_one_file_needs_no_other_package(system, tmp_path):
    assert routes.install(system, 'zipapp', str(tmp_path)) <= routes.MAXIMUM_COMMANDS
    assert routes.complaint_about(system) == ''
    # what is missing without psutil is said once
    system.must("sed -i 's,^.server.$,&\\nlog = /var/log/targetd.log,' /etc/targetd.conf")
    system.must('service targetd restart')
    assert system.must('cat /var/log/targetd.log').count('psutil is not installed') == 1
    system.must('service targetd stop')
    system.must('targetd --uninstall-files')
    assert not system.exists('/etc/init.d/targetd') and system.exists('/usr/local/sbin/targetd')
    assert 'Traceback' not in system.transcript
