"""The setting spin-down with the real daemon, without a SCSI disk (tests/guest/spin-down has some): what is
said about a store that cannot sleep, and that its sessions work as others do."""

import pytest
from daemon import TARGET, eventually
from initiator import GOOD, pattern

WHY = 'it is not a block device'
STOP, STANDBY, START = (bytes([0x1B, 0, 0, 0, flags, 0]) for flags in (0x00, 0x30, 0x01))


@pytest.fixture
def served(daemon):
    daemon.target(
        luns={
            0: ['backing-store = %s' % daemon.image(), 'spin-down = 1min'],
            1: ['backing-store = %s' % daemon.image('other.img')],
        }
    )
    return daemon


def test_the_reason_is_shown_by_the_check_the_log_and_show_disks(served):
    code, text = served.check()
    assert code == 0 and 'its disk sleeps after 1min' in text, text
    assert 'lun 0 of %s does not sleep (spin-down): %s' % (TARGET, WHY) in text
    served.start()
    served.logged('its disk does not sleep .spin-down.: ' + WHY)
    eventually(lambda: 'never sleeps: ' + WHY in served.control('show', 'disks'))
    assert served.control('show', 'disks').count('never sleeps') == 1


def test_commands_orders_and_an_upgrade(served, ready):
    session = ready(served.start())
    data = pattern(1, 64 * 512)
    for number, cdb in enumerate((STOP, STANDBY, START)):
        session.write(100 * number, data)
        assert session.run(cdb).status == GOOD
        assert session.run(bytes(6)).status == GOOD
        assert session.read(100 * number, 64) == data
    served.control('upgrade')
    session.write(900, data)
    assert session.run(bytes([0x35]) + bytes(9)).status == GOOD
    assert session.read(900, 64) == data
    eventually(lambda: 'never sleeps: ' + WHY in served.control('show', 'disks'))


def test_a_reload_that_changes_the_setting_waits_for_the_logout(served, ready):
    session = ready(served.start())
    served.text.targets[TARGET][1][0][1] = 'spin-down = on-stop'
    served.reload()
    assert session.capacity()
    session.close()
    eventually(lambda: 'never sleeps' in served.control('show', 'disks'))
