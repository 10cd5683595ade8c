"""The Linux kernel's initiator against targetd, both inside a guest. GUEST_RUNNER names the program
that runs a job in it:

    GUEST_RUNNER --share CHECKOUT:/src JOB-DIRECTORY

which runs JOB-DIRECTORY/run.sh as root in the guest and exits with its exit code. Without a guest these
tests are skipped. The programs and functions that several jobs use are in the files of this folder.

A job with a file `long`, which says why, runs only with GUEST_JOBS=all: the guest is emulated where CI runs,
and its jobs take longer there than all other tests. One with a file `long-run` is no test: tests/longrun.py
runs it.
"""

import glob
import importlib.util
import os
import py_compile
import shutil
import subprocess

import guest_packages
import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
RUNNER = os.environ.get('GUEST_RUNNER') or os.path.join(
    os.path.dirname(ROOT), 'shared', 'tools', 'vm', 'vm-run'
)
JOBS = sorted(
    name
    for name in os.listdir(HERE)
    if os.path.exists(os.path.join(HERE, name, 'run.sh'))
    and not os.path.exists(os.path.join(HERE, name, 'long-run'))
)
SECONDS = 900


@pytest.fixture(scope='session')
def compiled(tmp_path_factory):
    """A directory with the compiled modules of /src, as PYTHONPYCACHEPREFIX wants them. In the guest, which
    is emulated, compiling them takes longer than most jobs; it does so if its Python is another one."""
    directory = str(tmp_path_factory.mktemp('compiled'))
    paths = glob.glob(os.path.join(ROOT, 'targetd', '**', '*.py'), recursive=True)
    for path in paths + glob.glob(os.path.join(ROOT, 'tests', '*.py')):
        seen = '/src/' + os.path.relpath(path, ROOT)
        cached = importlib.util.cache_from_source(os.path.basename(path))
        place = directory + os.path.dirname(seen)
        os.makedirs(place, exist_ok=True)
        py_compile.compile(path, os.path.join(place, os.path.basename(cached)), seen)
    return directory


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
def test_guest_job(job, tmp_path, compiled):
    if os.path.exists(os.path.join(HERE, job, 'long')) and os.environ.get('GUEST_JOBS') != 'all':
        pytest.skip('a long job: GUEST_JOBS=all runs it')
    directory = str(tmp_path / job)
    shutil.copytree(os.path.join(HERE, job), directory)
    for path in glob.glob(os.path.join(HERE, '*.sh')) + glob.glob(os.path.join(HERE, '*.py')):
        shutil.copy(path, directory)
    packages = guest_packages.wanted(directory)
    if packages:
        if guest_packages.why_not():
            pytest.skip(guest_packages.why_not())
        guest_packages.download(packages, os.path.join(directory, 'debs'))
        guest_packages.unpack(os.path.join(directory, 'debs'))
    done = subprocess.run(
        [RUNNER, '--timeout', str(SECONDS), '--share', ROOT + ':/src']
        + ['--share', compiled + ':/compiled', directory],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=SECONDS + 60,
    )
    text = done.stdout.decode('utf-8', 'replace')
    if done.returncode and 'no guest yet' in text:
        pytest.skip('the guest has not been built: %s' % text.strip())
    assert done.returncode == 0, 'exit code %d:\n%s' % (done.returncode, text[-6000:])
