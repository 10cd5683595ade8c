"""The Linux kernel's initiator against targetd, both inside a guest. GUEST_RUNNER names the program
that runs a job in it:

    GUEST_RUNNER --share CHECKOUT:/src JOB-DIRECTORY

which runs JOB-DIRECTORY/run.sh as root in the guest and exits with its exit code. Without a guest these
tests are skipped.
"""

import os
import shutil
import subprocess

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
RUNNER = os.environ.get('GUEST_RUNNER') or os.path.join(
    os.path.dirname(ROOT), 'shared', 'tools', 'vm', 'vm-run'
)
JOBS = sorted(
    name for name in os.listdir(HERE) if os.path.exists(os.path.join(HERE, name, 'run.sh'))
)
SECONDS = 900


@pytest.mark.skipif(
    not os.access(RUNNER, os.X_OK), reason='no guest here: GUEST_RUNNER names no program'
)
@pytest.mark.parametrize('job', JOBS)
@pytest.mark.clause(
    'RFC 7143 4.2.6',
    'RFC 7143 6.3.5',
    'RFC 7143 7.14',
    'RFC 7143 11.19',
    'RFC 7143 12.1.3',
    'RFC 7143 13.1',
)
def test_guest_job(job, tmp_path):
    directory = str(tmp_path / job)
    shutil.copytree(os.path.join(HERE, job), directory)
    shutil.copy(os.path.join(HERE, 'common.sh'), directory)
    done = subprocess.run(
        [RUNNER, '--timeout', str(SECONDS), '--share', ROOT + ':/src', directory],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=SECONDS + 60,
    )
    text = done.stdout.decode('utf-8', 'replace')
    if done.returncode and 'no guest yet' in text:
        pytest.skip('the guest has not been built: %s' % text.strip())
    assert done.returncode == 0, 'exit code %d:\n%s' % (done.returncode, text[-6000:])
