"""Some seconds of each part of the fuzz run, a minute in all; `python3 -m tests.longrun fuzz` for longer."""

import json
import os
import subprocess
import sys

import fuzz
import pytest

pytestmark = [pytest.mark.wire, pytest.mark.slow]

SEED = int(os.environ.get('FUZZ_SEED', 7143))
SECONDS = 60
HERE = os.path.dirname(os.path.abspath(fuzz.__file__))
#: In a process of its own: some parts fork, and the process of the tests may have threads that hold locks.
PROGRAM = """
import json, sys
sys.path[:0] = [%r, %r]
import fuzz
part, directory, seconds, seed = sys.argv[1:]
print(json.dumps(fuzz.run_part(getattr(fuzz, part), directory, float(seconds), int(seed))))
""" % (os.path.dirname(HERE), HERE)


@pytest.mark.parametrize('part, share', [(part.__name__, share) for part, share in fuzz.PARTS])
def test_fuzz(tmp_path, part, share):
    seconds = SECONDS * share / 100.0
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM, part, str(tmp_path), str(seconds), str(SEED)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=seconds + 300,
    )
    assert done.returncode == 0
    figures, complaints = json.loads(done.stdout.decode().splitlines()[-1])
    assert complaints == []
    assert figures and all(figures.values()), figures
