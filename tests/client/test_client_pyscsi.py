"""pyscsi with cython-iscsi, two packages of PyPI: the commands of pyscsi through libiscsi."""

import json
import os
import subprocess
import sys

import clients
import pytest
from daemon import TARGET

pytestmark = pytest.mark.client

HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGES = ['pyscsi==2.1.0', 'cython-iscsi==1.0']  # cython-iscsi is compiled: libiscsi-dev, gcc
INSTALL_SECONDS = 300


@pytest.fixture(scope='module')
def python(tmp_path_factory):
    """The interpreter of a virtual environment that has PACKAGES."""
    clients.need('gcc')
    if not os.path.exists('/usr/include/iscsi/iscsi.h'):
        pytest.skip('not on this machine: /usr/include/iscsi (Debian: libiscsi-dev)')
    directory = str(tmp_path_factory.mktemp('pyscsi'))
    subprocess.run([sys.executable, '-m', 'venv', directory], check=True, timeout=INSTALL_SECONDS)
    python = os.path.join(directory, 'bin', 'python')
    code, text = clients.run(
        python, '-m', 'pip', '-q', 'install', *PACKAGES, seconds=INSTALL_SECONDS
    )
    if code:
        pytest.skip('pip cannot install %s: %s' % (', '.join(PACKAGES), text.strip()[-300:]))
    return python


def session(python, daemon, *more):
    """Runs pyscsi_session.py; returns (exit code, output)."""
    url = 'iscsi://127.0.0.1:%d/%s/0' % (daemon.port, TARGET)
    return clients.run(python, os.path.join(HERE, 'pyscsi_session.py'), url, *more)


def test_commands_of_pyscsi(python, served):
    code, text = session(python, served)
    assert code == 0, text
    found = json.loads(text)
    assert found['inquiry'] == 'TARGETD' and 0x83 in found['pages'] and found['luns'] == [[0]]
    assert found['capacity10'] == found['capacity16'] == (64 << 20) // 512 - 1
    assert found['read'] and found['same']


def test_a_url_as_initiator_name_is_refused_with_a_remedy(python, served):
    """ISCSIDevice of pyscsi gives the URL to libiscsi as the initiator's name (RFC 7143 4.2.7)."""
    code, text = session(python, served, 'iscsi://127.0.0.1:%d/%s/0' % (served.port, TARGET))
    assert code == 1 and 'Unable to connect' in text, text
    served.logged('it is a URL; write the name of the initiator')
