"""Runs real clients (the tools of libiscsi and qemu, tshark) and creates loop devices for the
server."""

import collections
import os
import re
import shutil
import subprocess

import pytest
from daemon import TARGET

SECONDS = 120
SUMMARY = []  # lines that conftest prints at the end of the run

#: Program -> the Debian 12 package that has it.
PACKAGES = {
    'iscsi-ls': 'libiscsi-bin',
    'iscsi-inq': 'libiscsi-bin',
    'iscsi-readcapacity16': 'libiscsi-bin',
    'iscsi-test-cu': 'libiscsi-bin',
    'qemu-img': 'qemu-utils qemu-block-extra',
    'qemu-io': 'qemu-utils qemu-block-extra',
    'qemu-storage-daemon': 'qemu-system-common',
    'nbdkit': 'nbdkit',
    'ceph-mgr': 'ceph-mgr',
    'ocf-tester': 'resource-agents',
    'xmllint': 'libxml2-utils',
    'qemu-nbd': 'qemu-utils qemu-block-extra',
    'tshark': 'tshark',
    'qemu-system-x86_64': 'qemu-system-x86 ipxe-qemu ovmf',
    'grub-mkstandalone': 'grub-common grub-efi-amd64-bin',
    'xorriso': 'xorriso',
    'chromium': 'chromium',
    'chromedriver': 'chromium-driver',
    'mformat': 'mtools',
    'mcopy': 'mtools',
    'sfdisk': 'fdisk',
    'sgdisk': 'gdisk',
    'mkfs.ext4': 'e2fsprogs',
    'e2fsck': 'e2fsprogs',
    'debugfs': 'e2fsprogs',
    'losetup': 'mount',
    'systemctl': 'systemd',
    'systemd-analyze': 'systemd',
    'unshare': 'util-linux',
    'ip': 'iproute2',
    'tgtd': 'tgt',
    'tgt-admin': 'tgt',
    'libvirtd': 'libvirt-daemon libvirt-daemon-driver-storage-iscsi-direct',
    'virsh': 'libvirt-clients',
    'scmp_sys_resolver': 'seccomp',
    'debootstrap': 'debootstrap',
    'dpkg-buildpackage': 'dpkg-dev',
    'dh': 'debhelper',
    'dh_python3': 'dh-python',
    'lintian': 'lintian',
    'rpmbuild': 'rpm',
    'rpmlint': 'rpmlint',
    'gcc': 'gcc libc6-dev python3-dev libiscsi-dev',
}

ENVIRONMENT = dict(os.environ, LC_ALL='C', PATH=os.environ.get('PATH', '') + ':/usr/sbin:/sbin')


def need(*programs):
    """Skip, naming the packages, unless these programs are there; in CI and where tests/run found
    all of them a missing one is a failure (the variables CI, TARGETD_CLIENTS)."""
    missing = [
        program for program in programs if not shutil.which(program, path=ENVIRONMENT['PATH'])
    ]
    if missing:
        text = 'not on this machine: %s (Debian: %s)' % (
            ', '.join(missing),
            ' '.join(sorted({PACKAGES[p] for p in missing})),
        )
        if os.environ.get('CI') or os.environ.get('TARGETD_CLIENTS'):
            pytest.fail(text)
        pytest.skip(text)


def start(*command, **options):
    """Starts a client without standard input; returns its Popen object."""
    return subprocess.Popen(
        [str(word) for word in command], stdin=subprocess.DEVNULL, env=ENVIRONMENT, **options
    )


def run(*command, **options):
    """Runs a client; returns (exit code, output including stderr). seconds: time limit."""
    process = start(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        text, _ = process.communicate(timeout=options.get('seconds', SECONDS))
    except subprocess.TimeoutExpired:
        process.kill()
        text, _ = process.communicate()
        pytest.fail(
            '%s did not end:\n%s'
            % (' '.join(map(str, command)), text.decode('utf-8', 'replace')[-3000:])
        )
    return process.returncode, text.decode('utf-8', 'replace')


def output(*command, **options):
    """Runs a client that must succeed; returns its output."""
    code, text = run(*command, **options)
    assert code == 0, '%s: exit code %d:\n%s' % (' '.join(map(str, command)), code, text[-3000:])
    return text


class Loop(object):
    """A loop device on a file. sector: 512 or 4096. `path` is None if the device cannot be created;
    `why_not` is the reason."""

    def __init__(self, file, sector):
        self.path, self.why_not = None, ''
        if os.geteuid() != 0:
            self.why_not = 'a loop device needs root'
            return
        code, text = run('losetup', '--sector-size', sector, '--find', '--show', file)
        if code == 0:
            self.path = text.strip()
        else:
            self.why_not = 'no loop device can be made here: %s' % text.strip()

    def close(self):
        """Detaches the device; raises AssertionError if it is still in use."""
        if self.path:
            output('losetup', '--detach', self.path)


# verdict: 'passed', 'failed' or 'skipped'
Outcome = collections.namedtuple('Outcome', 'name verdict said')


def outcomes(text):
    """Returns [Outcome] of the output of iscsi-test-cu. CUnit counts a skipped test as passed; here
    it is distinguished."""
    found, suite = [], ''
    for part in re.split(r'\n(?=Suite: |  Test: )', '\n' + text):
        if part.startswith('Suite: '):
            suite = part.split()[1]
        elif part.startswith('  Test: '):
            verdict = re.search(r'(?:^|\.\.\.) *(passed|FAILED)(?!\w)', part, re.M)
            said = re.findall(r'\[(SKIPPED|FAILED)\] *(.*)', part)
            if verdict is None:
                word = 'failed'  # it died in the middle
            elif verdict.group(1) == 'FAILED':
                word = 'failed'
            else:
                word = 'skipped' if any(kind == 'SKIPPED' for kind, _ in said) else 'passed'
            reasons = '; '.join(sorted({text.strip() for _, text in said}))
            found.append(Outcome('%s.%s' % (suite, part.split()[1]), word, reasons))
    return found


def require_suite_passes(what, daemon, other, seconds):
    """Asserts that no test of libiscsi's whole suite fails over two paths to LUN 0 of TARGET: the port of
    the Daemon, and the port `other`."""
    urls = ['iscsi://127.0.0.1:%d/%s/0' % (port, TARGET) for port in (daemon.port, other)]
    done = subprocess.run(
        ['iscsi-test-cu', '-d'] + urls,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=ENVIRONMENT,
        timeout=seconds,
    )
    found = outcomes(done.stdout.decode('utf-8', 'replace'))
    assert [each for each in found if each.verdict == 'failed'] == []
    counts = collections.Counter(each.verdict for each in found)
    assert counts['passed'] > 150
    SUMMARY.append('%s: %d passed, %d skipped' % (what, counts['passed'], counts['skipped']))
