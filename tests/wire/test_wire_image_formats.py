"""A disk image of another program is never served by accident as a raw disk, and a raw disk never becomes
an image because an initiator wrote an image's signature into it."""

import pytest
from daemon import TARGET, eventually

pytestmark = pytest.mark.wire

SIZE = 4 << 20


def state_of(daemon):
    return daemon.units()[0]['state']


@pytest.fixture
def image(daemon):
    """image(offset, mark) makes the file of LUN 0 of the daemon, and returns its path."""

    def make(offset, mark):
        path = daemon.image(size=SIZE)
        with open(path, 'r+b') as file:
            file.seek(offset)
            file.write(mark)
        daemon.target(TARGET, luns={0: ['backing-store = %s' % path]})
        return path

    return make


@pytest.mark.parametrize(
    'offset, mark, what', [(0, b'QED\0', 'QED'), (0, b'WithoutFreeSpace', 'Parallels')]
)
def test_a_disk_image_of_another_program_is_not_served_as_a_raw_disk(
    daemon, image, ready, offset, mark, what
):
    path = image(offset, mark)
    code, text = daemon.check()
    assert (
        code == 5
        and path in text
        and 'in the format %s' % what in text
        and 'qemu-img convert' in text
    )
    daemon.start()
    assert 'it is a disk image in the format %s' % what in state_of(daemon)
    daemon.text.targets[TARGET][1][0].append('type = file')
    daemon.reload('reload: change')
    eventually(lambda: state_of(daemon) == 'ready', 30, 'the LUN')
    block = ready(daemon).read(offset // 512, 1)
    assert block.startswith(mark)


def test_a_raw_disk_stays_one_after_its_initiator_has_written_a_signature(daemon, image, ready):
    image(0, b'')
    session = ready(daemon.start())
    session.write(0, b'QFI\xfb' + b'\0' * 508)
    session.logout()
    records = daemon.directory + '/state/media.json'
    eventually(lambda: TARGET in open(records).read(), 30, 'the record of the disk')
    assert daemon.stop() == 0
    daemon.start()
    assert state_of(daemon) == 'ready'
    assert ready(daemon).read(0, 1).startswith(b'QFI\xfb')
