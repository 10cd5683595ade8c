"""Debian packages that a guest job needs and that the guest does not have. The guest has no network, and its
release is that of the host: the host downloads them.

A job lists them in its file `packages`, one name a line. In the guest, install_packages of common.sh puts
their files in place; no maintainer script is run.
"""

import os
import shutil
import subprocess

SECONDS = 120


def why_not():
    """Why packages cannot be downloaded here, or ''."""
    return '' if shutil.which('apt-get') else 'only a Debian host downloads packages for the guest'


def wanted(job):
    """The names of the packages that the job in this directory needs."""
    path = os.path.join(job, 'packages')
    if not os.path.exists(path):
        return []
    with open(path) as file:
        return file.read().split()


def download(names, directory):
    """Makes the directory with the packages. Raises AssertionError with what apt-get printed."""
    os.mkdir(directory)
    done = subprocess.run(
        ['apt-get', '-q', '-o', 'APT::Sandbox::User=root', 'download'] + list(names),
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout.decode('utf-8', 'replace')


def unpack(directory):
    """Makes a tar file, which is not compressed, of each package in the directory: the guest is emulated."""
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        with open(path[: -len('.deb')] + '.tar', 'wb') as file:
            subprocess.check_call(['dpkg-deb', '--fsys-tarfile', path], stdout=file)
        os.unlink(path)
