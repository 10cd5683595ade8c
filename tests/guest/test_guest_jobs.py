"""The Linux kernel's initiator against targetd, both inside a guest. GUEST_RUNNER names the program
that runs a job in it:

    GUEST_RUNNER --share CHECKOUT:/src JOB-DIRECTORY

which runs JOB-DIRECTORY/run.sh as root in the guest and exits with its exit code. Without a guest these
tests are skipped. The programs and functions that several jobs use are in the files of this folder.

A job with a file `long`, which says why, runs only with GUEST_JOBS=all: the guest is emulated where CI runs,
and its jobs take longer there than all other tests. One with a file `long-run` is no test: tests/longrun.py
runs it.

GUESTS: how many guests run at the same time (1). An emulated guest mostly uses one processor. The time that
a job took is in its test's output (pytest -rP).
"""

import concurrent.futures
import glob
import importlib.util
import os
import py_compile
import shutil
import subprocess
import time

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
SECONDS = 1200  # of a job, beside other tests
GUESTS = int(os.environ.get('GUESTS') or 1)


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


def run_in_guest(job, directory, compiled, processes):
    """Runs a job, whose files are copied to the directory; returns (exit code, output, seconds). processes: a
    list to which the runner's Popen object is added."""
    shutil.copytree(os.path.join(HERE, job), directory)
    for path in glob.glob(os.path.join(HERE, '*.sh')) + glob.glob(os.path.join(HERE, '*.py')):
        shutil.copy(path, directory)
    packages = guest_packages.wanted(directory)
    if packages:
        guest_packages.download(packages, os.path.join(directory, 'debs'))
        guest_packages.unpack(os.path.join(directory, 'debs'))
    begun = time.monotonic()
    runner = subprocess.Popen(
        [RUNNER, '--timeout', str(SECONDS), '--share', ROOT + ':/src']
        + ['--share', compiled + ':/compiled', directory],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    processes.append(runner)
    output, _ = runner.communicate(timeout=SECONDS + 60)
    return runner.returncode, output.decode('utf-8', 'replace'), time.monotonic() - begun


def why_not(job):
    """Why a job does not run here, or ''."""
    if not os.access(RUNNER, os.X_OK):
        return 'no guest here: GUEST_RUNNER names no program'
    if os.path.exists(os.path.join(HERE, job, 'long')) and os.environ.get('GUEST_JOBS') != 'all':
        return 'a long job: GUEST_JOBS=all runs it'
    if guest_packages.wanted(os.path.join(HERE, job)):
        return guest_packages.why_not()
    return ''


@pytest.fixture(scope='session')
def running(request, tmp_path_factory, compiled):
    """{job: Future of run_in_guest} of the jobs of this run, in the order of the tests. GUESTS of them run at
    the same time."""
    wanted = [each.callspec.params['job'] for each in request.session.items if has_job(each)]
    processes = []
    pool = concurrent.futures.ThreadPoolExecutor(GUESTS)
    futures = {
        job: pool.submit(
            run_in_guest, job, str(tmp_path_factory.mktemp(job) / job), compiled, processes
        )
        for job in wanted
        if not why_not(job)
    }
    yield futures
    # only after an interruption or with -x is there something left to end
    for future in futures.values():
        future.cancel()
    for each in processes:
        if each.poll() is None:
            each.terminate()
    pool.shutdown()


def has_job(item):
    return 'job' in getattr(getattr(item, 'callspec', None), 'params', {})


@pytest.mark.parametrize('job', JOBS)
@pytest.mark.clause(
    'RFC 7143 4.2.6',
    'RFC 7143 6.3.5',
    'RFC 7143 7.14',
    'RFC 7143 11.19',
    'RFC 7143 12.1.3',
    'RFC 7143 13.1',
)
def test_guest_job(job, request):
    if why_not(job):
        pytest.skip(why_not(job))
    code, text, seconds = request.getfixturevalue('running')[job].result(len(JOBS) * SECONDS)
    if code and 'no guest yet' in text:
        pytest.skip('the guest has not been built: %s' % text.strip())
    assert code == 0, 'exit code %d:\n%s' % (code, text[-6000:])
    print('%s: %.0f s' % (job, seconds))
