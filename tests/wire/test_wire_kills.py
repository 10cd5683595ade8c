"""Workers and the master are killed under a verified load: some seconds of `tests/longrun.py kills`.

KILLS_SECONDS: how long (15); KILLS_SEED: what the run draws from, printed when the test fails.
"""

import os

import kills
import pytest

pytestmark = [pytest.mark.wire, pytest.mark.slow]

SECONDS = float(os.environ.get('KILLS_SECONDS', 15))
SEED = int(os.environ.get('KILLS_SEED', 7143))


def test_nothing_acknowledged_is_lost_when_processes_are_killed(tmp_path):
    figures, complaints = kills.run_kills(str(tmp_path), SECONDS, SEED)
    assert not complaints, 'seed %d: %s' % (SEED, complaints)
    for name in ('workers that were killed', 'masters that were killed', 'acknowledged writes'):
        assert figures.get(name), figures


def test_a_lost_block_and_half_an_atomic_write_are_found(tmp_path):
    writer = kills.Kills(str(tmp_path), SEED).writers[0]
    writer.contents[5:9] = [7] * 4
    good = writer._data(0, kills.BLOCKS, kills.UNMAPPED)
    good = good[: 5 * 512] + writer._data(5, 4, 7) + good[9 * 512 :]
    writer.settle_with(good)
    with pytest.raises(kills.Wrong, match='block 6 of LUN 0 has generation 0, not 7'):
        writer.settle_with(good[: 6 * 512] + bytes(512) + good[7 * 512 :])
    writer.in_doubt = [kills.InDoubt(5, 4, 8, True)]
    with pytest.raises(kills.Wrong, match='half done'):
        writer.settle_with(good[: 6 * 512] + writer._data(6, 1, 8) + good[7 * 512 :])
