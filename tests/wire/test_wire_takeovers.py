"""Two servers for one disk, with paths to both: kills, stops and cuts with a takeover each, while initiators
write numbered blocks. Longer: python3 -m tests.longrun takeovers. With a disk that is its own fence (here
fake_shared_disk.py; the guest job shared-disk has one of the kernel), the other server may still run."""

import fake_shared_disk
import fenced_takeovers
import path_writers
import pytest
import takeovers

pytestmark = pytest.mark.wire


class WithStandIn(fenced_takeovers.FencedTakeovers):
    """The disk is a file of fake_shared_disk.py."""

    # only its writes meet the reservation
    lun_lines = fenced_takeovers.FencedTakeovers.lun_lines + (
        'block-size = %d' % path_writers.BLOCK,
    )

    def __init__(self, directory):
        super(WithStandIn, self).__init__(directory)
        self._disk = fake_shared_disk.Disk(self.image, takeovers.SIZE)

    def attach_disk(self):
        return self.image

    def detach_disks(self):
        pass

    def make_daemon(self, number, directory):
        daemon = super(WithStandIn, self).make_daemon(number, directory)
        program = [daemon.python, fake_shared_disk.__file__, self.image, 'server-%d' % number]
        daemon.command = lambda *words: program + list(words)
        return daemon

    def registrations(self):
        table = self._disk.table()
        return list(table['keys'].values()), table['holder'] and table['holder'][1]


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


def test_a_fenced_server_that_still_runs_writes_nothing_after_the_takeover(tmp_path):
    run, ways = WithStandIn(str(tmp_path)), ('stopped', takeovers.NOTHING)
    figures, complaints = run.run(0, ways)
    assert not complaints
    assert [figures['takeovers, %s' % how] for how in ways] == [1, 1]
    assert figures['late commands that the disk refused'] == len(run.late_commands)
