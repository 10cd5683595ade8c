"""The service for firewalld and the profile for ufw, read by these programs. Their Debian packages are
unpacked and not installed, since both would change the firewall of this host."""

import os
import shutil
import subprocess

import guest_packages
import pytest
from daemon import ROOT

pytestmark = pytest.mark.client

FILES = os.path.join(ROOT, 'etc', 'firewall')
PACKAGES = (
    'firewalld',
    'python3-firewall',
    'python3-nftables',
    'python3-dbus',
    'python3-gi',
    'ufw',
)
PYTHON = '/usr/bin/python3'  # Debian's: the packages have modules that are compiled for it
UFW = """
import builtins, sys
builtins._ = str  # as ufw's main program does: its messages in the language of the user
from ufw import applications
profile = applications.get_profiles(sys.argv[1])['targetd']
assert applications.verify_profile('targetd', profile)
print(applications.get_title(profile), applications.get_ports(profile))
"""


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    """The directory in which the packages are unpacked."""
    if guest_packages.why_not():
        pytest.skip(guest_packages.why_not())
    place = tmp_path_factory.mktemp('firewalls')
    debs, root = str(place / 'debs'), str(place / 'root')
    guest_packages.download(PACKAGES, debs)
    for name in os.listdir(debs):
        subprocess.check_call(['dpkg-deb', '-x', os.path.join(debs, name), root])
    return root


def run(tree, *command):
    """Debian's Python with this command; returns its output."""
    environment = dict(
        os.environ,
        PYTHONPATH=os.path.join(tree, 'usr/lib/python3/dist-packages'),
        PYTHONDONTWRITEBYTECODE='1',
    )
    done = subprocess.run(
        (PYTHON,) + command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
    )
    output = done.stdout.decode('utf-8', 'replace')
    assert done.returncode == 0, output
    return output


def test_firewalld_reads_the_service(tree, tmp_path):
    services = tmp_path / 'services'
    services.mkdir()
    shutil.copy(os.path.join(FILES, 'firewalld.xml'), str(services / 'targetd.xml'))
    output = run(
        tree,
        os.path.join(tree, 'usr/bin/firewall-offline-cmd'),
        '--default-config',
        os.path.join(tree, 'usr/lib/firewalld'),
        '--system-config',
        str(tmp_path),
        '--info-service=targetd',
    )
    assert '\n  ports: 3260/tcp\n' in output, output


def test_ufw_reads_the_profile(tree, tmp_path):
    shutil.copy(os.path.join(FILES, 'ufw'), str(tmp_path / 'targetd'))
    output = run(tree, '-c', UFW, str(tmp_path))
    assert output.endswith("iSCSI target (targetd) ['3260/tcp']\n"), output
