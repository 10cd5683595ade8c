"""Guest jobs with more cases than in the tests. GUEST_RUNNER names the program that runs a job."""

import glob
import os
import shutil
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))


def run_power_cuts(directory, seconds, seed, cuts, commands):
    """Returns (figures, complaints), as the other long runs do."""
    complaints = _run('power-cuts', directory, seconds, (commands, cuts, seed))
    return {'cuts of each load': cuts}, complaints


def run_write_back(directory, seconds, seed):
    """The same; nothing is drawn with the seed."""
    return {}, _run('write-back', directory, seconds, ('all',))


def run_distance(directory, seconds, seed):
    """The same; nothing is drawn with the seed."""
    return {}, _run('distance', directory, seconds, ())


def run_outages(directory, seconds, seed):
    """The same; nothing is drawn with the seed."""
    return {}, _run('outages', directory, seconds, ('all',))


def _run(name, directory, seconds, arguments):
    """Runs the job, whose output is printed as it comes. seconds: its limit. Returns complaints."""
    runner = os.environ.get('GUEST_RUNNER')
    if not runner:
        return ['GUEST_RUNNER names no program']
    job = os.path.join(directory, name)
    shutil.copytree(os.path.join(HERE, 'guest', name), job)
    for path in glob.glob(os.path.join(HERE, 'guest', '*.sh')) + [
        os.path.join(HERE, 'guest', 'steady_load.py')
    ]:
        shutil.copy(path, job)
    code = subprocess.call(
        [runner, '--timeout', str(int(seconds)), '--share', os.path.dirname(HERE) + ':/src']
        + [job, '--']
        + [str(each) for each in arguments],
        stdin=subprocess.DEVNULL,
    )
    return ['exit code %d' % code] if code else []
