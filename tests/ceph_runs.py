"""The long run with a Ceph cluster: the tests of tests/client/test_client_ceph.py and of
test_client_ceph_long.py, then takeovers of a server that is killed, suspended or cut off under load,
again and again."""

import os
import re
import subprocess
import sys
import time

from daemon import ROOT

TESTS = [
    os.path.join(ROOT, 'tests', 'client', name)
    for name in ('test_client_ceph.py', 'test_client_ceph_long.py')
]
#: The variable that has the long tests run.
LONG = 'TARGETD_LONG_TESTS'
#: Limit of one run of the tests: on a busy machine a round took 27 minutes, on an idle one some.
ROUND_SECONDS = 7200
#: The name of a figure.
SLOWEST = 'ms from the order to the first READ, in the slowest takeover'


def run_ceph(directory, seconds, seed):
    """Returns (figures, complaints). seed: not used."""
    end = time.monotonic() + seconds
    figures, complaints = {'passed tests': 0, 'rounds of takeovers': 0, SLOWEST: 0}, []
    _run(directory, [], figures, complaints)
    while time.monotonic() < end and not complaints:
        _run(directory, ['-k', 'replaced'], figures, complaints)
        figures['rounds of takeovers'] += 1
    return figures, complaints


def _run(directory, words, figures, complaints):
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider'] + TESTS + words,
        cwd=ROOT,
        env=dict(os.environ, TARGETD_CLIENTS='required', **{LONG: 'yes'}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=ROUND_SECONDS,
    )
    text = done.stdout.decode('utf-8', 'replace')
    with open(os.path.join(directory, 'ceph.log'), 'a', encoding='utf-8') as f:
        f.write(text)
    passed = re.findall(r'^(\d+) passed', text, re.M)  # of pytest, in its last line
    figures['passed tests'] += int(passed[-1]) if passed else 0
    for found in re.findall(r'^takeover of a Ceph image: ([\d.]+) s', text, re.M):
        figures[SLOWEST] = max(figures[SLOWEST], round(1000 * float(found)))
    complaints += re.findall(r'^(?:FAILED|ERROR).*', text, re.M)
    if done.returncode and not complaints:
        complaints.append(text[-500:])
