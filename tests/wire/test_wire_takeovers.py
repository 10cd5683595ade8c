"""Two servers for one disk, with paths to both: kills, stops and cuts with a takeover each, while initiators
write numbered blocks. Longer: python3 -m tests.longrun takeovers."""

import pytest
import takeovers

pytestmark = pytest.mark.wire


@pytest.mark.parametrize('how', takeovers.HOW)
def test_no_acknowledged_write_is_missing_after_a_takeover(tmp_path, how):
    try:
        figures, complaints = takeovers.run_takeovers(str(tmp_path), 0, 0, (how,))
    except OSError as e:
        pytest.skip('no loop devices: %s' % e)
    assert not complaints
    assert figures['takeovers, %s' % how] == 1
    # a bound, not the figure: the order itself is carried out at once
    assert figures['ms from the order to the first write, %s (longest)' % how] < 120000
