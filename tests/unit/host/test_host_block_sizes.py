"""Tests of the block size that the content of a medium was written with."""

import os
import struct

import pytest

from targetd.host.block_sizes import find_misfit


@pytest.fixture
def medium(tmp_path):
    """write(offset, bytes) changes an empty medium of 64 MiB; the attribute is its descriptor."""
    descriptor = os.open(str(tmp_path / 'disk'), os.O_RDWR | os.O_CREAT)
    os.ftruncate(descriptor, 64 << 20)

    def write(offset, data):
        os.pwrite(descriptor, data, offset)

    write.descriptor = descriptor
    yield write
    os.close(descriptor)


def boot_sector(name, size, shift=0):
    sector = bytearray(512)
    sector[3:11] = name.ljust(8)
    struct.pack_into('<H', sector, 11, size)
    sector[108] = shift
    sector[510:] = b'\x55\xaa'
    return sector


def fat(size):
    sector = boot_sector(b'mkfs.fat', size)
    sector[54:62] = b'FAT16   '
    return sector


def ext4(size):
    block = bytearray(64)
    block[56:58] = b'\x53\xef'
    struct.pack_into('<I', block, 24, (size // 1024).bit_length() - 1)
    return block


def fits(medium):
    return [size for size in (512, 1024, 4096) if not find_misfit(medium.descriptor, size)]


@pytest.mark.parametrize('size', [512, 4096])
def test_a_gpt_fits_the_block_size_whose_first_block_it_is_in(medium, size):
    medium(size, b'EFI PART'.ljust(24, b'\0') + struct.pack('<Q', 1) + bytes(60))
    assert fits(medium) == [size]
    assert 'has a GPT partition table for blocks of %d bytes' % size in find_misfit(
        medium.descriptor, 1024
    )


@pytest.mark.parametrize(
    'offset, content, fitting',
    [
        (0, boot_sector(b'NTFS', 512), [512]),
        (0, boot_sector(b'NTFS', 4096), [4096]),
        (0, boot_sector(b'EXFAT', 0, 12), [4096]),
        (0, fat(512), [512]),
        (0, fat(4096), [512, 1024, 4096]),
        (1024, ext4(1024), [512, 1024]),
        (1024, ext4(4096), [512, 1024, 4096]),
        (0, b'XFSB'.ljust(102, b'\0') + struct.pack('>H', 512), [512]),
        (0, b'random'.ljust(510) + b'\x55\xaa', [512, 1024, 4096]),
        (0, b'', [512, 1024, 4096]),
    ],
)
def test_a_file_system_fits_the_block_sizes_it_can_be_used_with(medium, offset, content, fitting):
    medium(offset, content)
    assert fits(medium) == fitting


@pytest.mark.parametrize('size', [512, 4096])
def test_an_mbr_fits_the_block_size_at_which_its_partitions_contain_file_systems(medium, size):
    table = bytearray(512)
    struct.pack_into('<B3xII', table, 450, 0x83, 256, 1024)
    table[510:] = b'\x55\xaa'
    medium(0, table)
    assert fits(medium) == [512, 1024, 4096]  # an empty partition says nothing
    medium(256 * size + 1024, ext4(4096))
    assert fits(medium) == [size]
