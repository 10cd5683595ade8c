"""SG_IO: the header that the kernel gets, and what becomes of its answer."""

import ctypes
import os

import pytest

from targetd import sg_io


class Kernel(object):
    """Takes the place of fcntl.ioctl: notes the request, and fills in an answer."""

    def __init__(self, data=b'', **answer):
        self.data = data
        self.answer = answer
        self.sense = answer.pop('sense', b'')
        self.request = None

    def __call__(self, descriptor, number, header):
        assert number == 0x2285 and header.interface_id == ord('S')
        sent = ctypes.string_at(header.dxferp, header.dxfer_len) if header.dxferp else b''
        self.request = {
            'descriptor': descriptor,
            'direction': header.dxfer_direction,
            'cdb': ctypes.string_at(header.cmdp, header.cmd_len),
            'data': sent,
            'timeout': header.timeout,
        }
        if self.data:
            ctypes.memmove(header.dxferp, self.data, len(self.data))
        ctypes.memmove(header.sbp, self.sense, len(self.sense))
        header.sb_len_wr = len(self.sense)
        for name, value in self.answer.items():
            setattr(header, name, value)


def test_the_header_has_the_layout_of_the_kernel():
    wide = ctypes.sizeof(ctypes.c_void_p) == 8
    assert ctypes.sizeof(sg_io._Header) == (88 if wide else 64)
    assert sg_io._Header.status.offset == (64 if wide else 44)


def test_a_command_without_data():
    kernel = Kernel()
    found = sg_io.execute(7, b'\0' * 6, seconds=3, ioctl=kernel)
    assert kernel.request == {
        'descriptor': 7, 'direction': -1, 'cdb': b'\0' * 6, 'data': b'', 'timeout': 3000,
    }  # fmt: skip
    assert (found.status, found.host, found.driver, found.sense, found.residual) == (
        0,
        0,
        0,
        b'',
        0,
    )
    assert found.data == b''


def test_a_command_that_reads_less_than_it_might():
    kernel = Kernel(b'abc', resid=5)
    found = sg_io.execute(0, bytes(10), b'', 8, ioctl=kernel)
    assert kernel.request['direction'] == -3
    assert bytes(found.data) == b'abc' and found.residual == 5 and not found.data.readonly


@pytest.mark.parametrize('make', [bytes, bytearray, lambda data: memoryview(bytearray(data))])
def test_a_command_that_writes(make):
    kernel = Kernel(resid=1)
    found = sg_io.execute(0, bytes(10), make(b'12345678'), ioctl=kernel)
    assert kernel.request['direction'] == -2 and kernel.request['data'] == b'12345678'
    assert found.residual == 1 and found.data == b''


def test_sense_data_and_the_statuses_of_the_kernel():
    sense = bytes.fromhex('70000500000000 0a 00000000 2000 00 000000')
    kernel = Kernel(status=2, sense=sense, host_status=7, driver_status=0x38)
    found = sg_io.execute(0, bytes(6), ioctl=kernel)
    assert (found.status, found.host, found.driver, found.sense) == (2, 7, 8, sense)
    assert sg_io.parse_sense(found.sense) == (5, 0x20, 0)
    assert sg_io.parse_sense(bytes.fromhex('72 03 11 05 00000000')) == (3, 0x11, 5)


@pytest.mark.parametrize('residual', [-4, 100])
def test_a_residual_that_cannot_be(residual):
    found = sg_io.execute(0, bytes(6), b'', 8, ioctl=Kernel(resid=residual))
    assert 0 <= found.residual <= 8


@pytest.mark.parametrize('sense', [b'', b'\x70', bytes(3), b'\x72\x02'])
def test_short_sense_data(sense):
    assert sg_io.parse_sense(sense)[1:] == (0, 0)


def test_a_file_takes_no_scsi_commands(tmp_path):
    (tmp_path / 'f').write_bytes(b'x')
    descriptor = os.open(str(tmp_path / 'f'), os.O_RDONLY)
    try:
        assert not sg_io.has_scsi_commands(descriptor)
        for call in (
            lambda number: sg_io.execute(number, bytes(6)),
            sg_io.longest_transfer,
            sg_io.reset,
        ):
            with pytest.raises(OSError):
                call(descriptor)
    finally:
        os.close(descriptor)
