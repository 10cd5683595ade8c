"""The unit for systemd: its score, and a loop device and a file that targetd serves under it.

systemd runs as process 1 of namespaces of its own (mounts, processes, network, cgroups), and starts the
unit with all its restrictions; a service beside it is the initiator and writes what it found.
"""

import json
import os
import subprocess
import sys

import clients
import pytest
from daemon import ROOT

UNIT = os.path.join(ROOT, 'init', 'targetd.service')
TARGET = 'iqn.2026-11.test:unit'
#: Exposure, in tenths, up to which systemd-analyze says OK.
OK = 50

BOOT = '''
set -e
mount --make-rprivate /
mount -t proc proc /proc
ip link set lo up
umount -R /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
cp -a /etc {work}/etc
mount --bind {work}/etc /etc
install -m 600 {work}/targetd.conf /etc/targetd.conf
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /usr/local/bin
printf '#!/bin/sh\\nexport PYTHONPATH={root}\\nexec {python} -m targetd "$@"\\n' >/usr/local/bin/targetd
chmod 755 /usr/local/bin/targetd
mkdir -p /run/systemd/system
cp {unit} /run/systemd/system/targetd.service
cat >/run/systemd/system/check.target <<END
[Unit]
DefaultDependencies=no
Requires=check.service
END
cat >/run/systemd/system/check.service <<END
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
Environment=PYTHONPATH={root}:{root}/tests
ExecStart={python} {work}/check.py
ExecStopPost=/bin/systemctl exit --force --force
END
container=unshare exec /lib/systemd/systemd --system --unit=check.target --show-status=no
'''

CHECK = '''
import json, subprocess
from daemon import eventually, is_listening
from initiator import connect, pattern

found = {{}}
def systemctl(*words):
    done = subprocess.run(('systemctl',) + words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return '%d %s' % (done.returncode, done.stdout.decode().strip())
try:
    found['start'] = systemctl('start', '--job-mode=ignore-dependencies', 'targetd')
    eventually(lambda: is_listening(('127.0.0.1', 3260)), 30, 'the portal')
    found['restrictions'] = systemctl('show', 'targetd', '-p', 'NoNewPrivileges', '-p', 'ProtectSystem')
    for number in range(2):
        for lun in (0, 1):
            with connect(('127.0.0.1', 3260), {target!r}) as session:
                session.clear_attentions(lun)
                if not number:
                    session.write(8, pattern(lun, 4096), lun=lun)
                assert session.read(8, 8, lun=lun) == pattern(lun, 4096)
                session.logout()
        if not number:
            found['reload'] = systemctl('reload', 'targetd')
    found['served'] = True
    found['stop'] = systemctl('stop', 'targetd')
    found['state'] = systemctl('show', 'targetd', '-p', 'Result', '-p', 'ActiveState')
except BaseException as e:
    found['failed'] = repr(e) + systemctl('status', '--no-pager', 'targetd')
finally:
    with open({result!r}, 'w') as file:
        json.dump(found, file)
'''


def test_the_unit_has_a_score_that_is_ok():
    clients.need('systemd-analyze')
    done = subprocess.run(
        ['systemd-analyze', 'security', '--offline=yes', '--no-pager', '--threshold=%d' % OK, UNIT],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout.decode()[-300:]


@pytest.mark.skipif(os.geteuid() != 0, reason='systemd needs root')
def test_a_device_and_a_file_are_served_under_the_unit(tmp_path):
    clients.need('systemctl', 'unshare', 'ip', 'losetup')
    work, image = str(tmp_path), str(tmp_path / 'disk.img')
    result = str(tmp_path / 'result')
    for name in ('disk.img', 'file.img'):
        with open(str(tmp_path / name), 'wb') as file:
            file.truncate(64 << 20)
    device = subprocess.check_output(['losetup', '-f', '--show', image]).decode().strip()
    try:
        (tmp_path / 'targetd.conf').write_text(
            '[server]\nstate-dir = %s/state\npid-file = /run/targetd.pid\n'
            '[portal-group 1]\nportal = 127.0.0.1:3260\n[target %s]\ninitiator-address = ALL\n'
            '[[lun 0]]\nbacking-store = %s\n[[lun 1]]\nbacking-store = %s/file.img\n'
            % (work, TARGET, device, work)
        )
        words = {'work': work, 'root': ROOT, 'python': sys.executable, 'unit': UNIT}
        (tmp_path / 'check.py').write_text(CHECK.format(target=TARGET, result=result))
        (tmp_path / 'boot').write_text(BOOT.format(**words))
        done = subprocess.run(
            ['timeout', '-s', 'KILL', '120', 'unshare', '-m', '-p', '-f', '-u', '-i', '-C', '-n']
            + ['sh', str(tmp_path / 'boot')],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd='/',
        )
        assert os.path.exists(result), done.stdout.decode('utf-8', 'replace')[-3000:]
        with open(result) as file:
            found = json.load(file)
        assert found.get('served'), found
        assert found['start'] == found['stop'] == found['reload'] == '0 '
        assert 'NoNewPrivileges=yes' in found['restrictions']
        assert 'Result=success' in found['state'] and 'ActiveState=inactive' in found['state']
        with open(image, 'rb') as file:  # the block device wrote it
            assert file.read(8192)[4096:] != bytes(4096)
    finally:
        subprocess.call(['losetup', '-d', device])
