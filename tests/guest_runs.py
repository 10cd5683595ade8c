"""Guest jobs with more cases than in the tests. GUEST_RUNNER names the program that runs a job."""

import glob
import os
import shutil
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))


def run_power_cuts(directory, seconds, seed, cuts, commands):
    """Returns (figures, complaints), as the other long runs do."""
    complaints = run_job('power-cuts', directory, seconds, (commands, cuts, seed))
    return {'cuts of each load': cuts}, complaints


def run_write_back(directory, seconds, seed):
    """The same; nothing is drawn with the seed."""
    return {}, run_job('write-back', directory, seconds, ('all',))


def run_distance(directory, seconds, seed):
    """The same; nothing is drawn with the seed."""
    return {}, run_job('distance', directory, seconds, ())


def run_outages(directory, seconds, seed):
    """The same; nothing is drawn with the seed."""
    return {}, run_job('outages', directory, seconds, ('all',))


def run_job(name, directory, seconds, arguments, options=(), namespace=None):
    """Runs the job, whose output is printed as it comes. seconds: its limit; options: further ones of the
    program that runs it; namespace: the network namespace in which the program runs. Returns complaints."""
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
        (['ip', 'netns', 'exec', namespace] if namespace else [])
        + [runner, '--timeout', str(int(seconds)), '--share', os.path.dirname(HERE) + ':/src']
        + list(options)
        + [job, '--']
        + [str(each) for each in arguments],
        stdin=subprocess.DEVNULL,
    )
    return ['exit code %d' % code] if code else []
