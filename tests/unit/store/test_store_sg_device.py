"""The store of a real SCSI device."""

import os
import signal

import pytest

from targetd.store import from_descriptor
from targetd.store.base import NO_CAPABILITIES
from targetd.store.sg_device import SgDevice

DESCRIPTION = {
    'kind': 'passthrough', 'path': '/dev/sg3', 'size': 0, 'block_size': 512, 'read_only': True, 'filters': [],
    'cipher_key': '', 'tape': False, 'capabilities': NO_CAPABILITIES._asdict(),
}  # fmt: skip


@pytest.fixture
def device(tmp_path):
    (tmp_path / 'node').write_bytes(b'')
    claim = os.open(str(tmp_path / 'node'), os.O_RDONLY)
    store = from_descriptor(DESCRIPTION, os.open(str(tmp_path / 'node'), os.O_RDWR), claim)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield store
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    store.close()


def test_it_has_no_filter_in_between_and_keeps_the_claim(device):
    assert type(device) is SgDevice and device.claim is not None
    device.flush(0, 0)  # its initiators flush it
    device.close()
    assert device.descriptor == -1 and device.claim is None


def test_what_is_no_device_executes_nothing(device):
    with pytest.raises(OSError):
        device.execute(bytes(6), b'', 0, 60)


def test_no_signal_interrupts_a_command(device):
    with pytest.raises(OSError):
        device.execute(bytes(6), b'', 0, 60)
    assert {signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1} <= signal.pthread_sigmask(
        signal.SIG_BLOCK, ()
    )


def test_it_has_no_blocks(device):
    for verb, arguments in (('read', (0, 1)), ('write', (0, b'x', False)), ('unmap', (0, 1))):
        with pytest.raises(NotImplementedError):
            getattr(device, verb)(*arguments)
