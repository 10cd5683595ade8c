"""Some seconds of each part of the fuzz run, a minute in all; `python3 -m tests.longrun fuzz` for longer."""

import os

import fuzz
import pytest

pytestmark = [pytest.mark.wire, pytest.mark.slow]

SEED = int(os.environ.get('FUZZ_SEED', 7143))
SECONDS = 60


@pytest.mark.parametrize('part, share', fuzz.PARTS, ids=lambda each: getattr(each, '__name__', ''))
def test_fuzz(tmp_path, part, share):
    figures, complaints = fuzz.run_part(part, str(tmp_path), SECONDS * share / 100.0, SEED)
    assert complaints == []
    assert figures and all(figures.values()), figures
