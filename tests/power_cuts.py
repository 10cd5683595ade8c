"""The guest job power-cuts with more commands and cuts than in the tests."""

import os
import shutil
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))


def run_power_cuts(directory, seconds, seed, cuts, commands):
    """Runs the job, whose output is printed as it comes. seconds: its limit. Returns (figures,
    complaints)."""
    runner = os.environ.get('GUEST_RUNNER')
    if not runner:
        return {}, ['GUEST_RUNNER names no program']
    job = os.path.join(directory, 'power-cuts')
    shutil.copytree(os.path.join(HERE, 'guest', 'power-cuts'), job)
    shutil.copy(os.path.join(HERE, 'guest', 'common.sh'), job)
    code = subprocess.call(
        [runner, '--timeout', str(int(seconds)), '--share', os.path.dirname(HERE) + ':/src']
        + [job, '--', str(commands), str(cuts), str(seed)],
        stdin=subprocess.DEVNULL,
    )
    return {'cuts of each load': cuts}, ['exit code %d' % code] if code else []
