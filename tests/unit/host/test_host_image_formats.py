"""Disk images of other programs are recognised at both ends of the file."""

import shutil
import subprocess

import pytest

from targetd.host import image_formats

SIZE = 1 << 20


def format_of(path):
    with open(str(path), 'rb') as f:
        return image_formats.find_image_format(f.fileno())


@pytest.mark.parametrize(
    'offset, mark, what',
    [
        (0, b'vhdxfile', 'VHDX'),
        (0, b'conectix', 'VHD'),
        (SIZE - 512, b'conectix', 'VHD'),
        (0, b'KDMV', 'VMDK'),
        (0, b'# Disk DescriptorFile\nversion=1\n', 'VMDK'),
        (0, b'QFI\xfb', 'qcow2'),
        (64, b'\x7f\x10\xda\xbe', 'VDI'),
        (0, b'QED\0', 'QED'),
        (0, b'WithoutFreeSpace', 'Parallels'),
    ],
)
def test_a_format_is_recognised_by_its_signature(tmp_path, offset, mark, what):
    path = tmp_path / 'disk'
    with open(str(path), 'wb') as f:
        f.truncate(SIZE)
        f.seek(offset)
        f.write(mark)
    assert format_of(path).what == what


@pytest.mark.parametrize('data', [b'', b'QFI', b'\0' * 4096, b'\xebR\x90NTFS    ' + b'\0' * 501])
def test_a_raw_disk_has_no_format(tmp_path, data):
    path = tmp_path / 'disk'
    path.write_bytes(data)
    assert format_of(path) is None


@pytest.mark.skipif(not shutil.which('qemu-img'), reason='qemu-img is missing')
@pytest.mark.parametrize(
    'words, what',
    [
        ('-f vhdx', 'VHDX'),
        ('-f vpc', 'VHD'),
        ('-f vpc -o subformat=fixed', 'VHD'),
        ('-f vmdk', 'VMDK'),
        ('-f vmdk -o subformat=twoGbMaxExtentFlat', 'VMDK'),
        ('-f qcow2', 'qcow2'),
        ('-f vdi', 'VDI'),
        ('-f qed', 'QED'),
        ('-f parallels', 'Parallels'),
    ],
)
def test_what_qemu_img_creates_is_recognised(tmp_path, words, what):
    path = tmp_path / 'disk'
    subprocess.check_output(['qemu-img', 'create'] + words.split() + [str(path), '64M'])
    found = format_of(path)
    assert found.what == what and found.qemu == words.split()[1]
