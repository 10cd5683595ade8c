"""Diskless machines boot from a LUN of type cd: iPXE on BIOS and on UEFI firmware loads the boot images of a
bootable ISO image (El Torito), as installers of Windows and Linux have them."""

import os
import shutil

import clients
import pytest
from clients import need
from daemon import watched
from test_client_boot import BOOTED, MIB, boot, boot_sector, console, grub_program, machine, script

pytestmark = pytest.mark.client

TARGET = 'iqn.2026-11.test.targetd:boot-cd'
BIOS, EFI, EMPTY = 0, 1, 2


def bootable_iso(path, folder, number):
    """An ISO image with a boot sector for BIOS, and a FAT image with GRUB for UEFI."""
    tree = os.path.join(folder, 'tree')
    os.mkdir(tree)
    with open(os.path.join(tree, 'bios.bin'), 'wb') as file:
        file.write(boot_sector('%s %d' % (BOOTED, number)).ljust(2048, b'\0'))
    program = grub_program(folder, '%s %d' % (BOOTED, number))
    fat = os.path.join(tree, 'efi.img')
    with open(fat, 'wb') as file:
        file.truncate((os.path.getsize(program) // MIB + 4) * MIB)
    clients.output('mformat', '-i', fat, '-T', os.path.getsize(fat) // 512, '::')
    clients.output('mmd', '-i', fat, '::/EFI', '::/EFI/BOOT')
    clients.output('mcopy', '-i', fat, program, '::/EFI/BOOT/BOOTX64.EFI')
    clients.output(
        'xorriso', '-as', 'mkisofs', '-quiet', '-o', path, '-V', 'INSTALL',
        '-b', 'bios.bin', '-no-emul-boot', '-boot-load-size', '4',
        '-eltorito-alt-boot', '-e', 'efi.img', '-no-emul-boot', tree,
    )  # fmt: skip


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    """A daemon with two drives that have a bootable image, and one that has another image."""
    for program in ('qemu-system-x86_64', 'grub-mkstandalone', 'mformat', 'mcopy', 'xorriso'):
        need(program)
    folder = tmp_path_factory.mktemp('boot-cd')
    luns = {}
    for number in (BIOS, EFI):
        os.mkdir(str(folder / str(number)))
        path = str(folder / ('install%d.iso' % number))
        bootable_iso(path, str(folder / str(number)), number)
        luns[number] = ['type = cd', 'backing-store = ' + path]
    os.mkdir(str(folder / 'data'))
    shutil.copy(__file__, str(folder / 'data'))
    path = str(folder / 'data.iso')
    clients.output('xorriso', '-as', 'mkisofs', '-quiet', '-o', path, str(folder / 'data'))
    luns[EMPTY] = ['type = cd', 'backing-store = ' + path]
    with watched(tmp_path_factory.mktemp('server')) as daemon:
        daemon.target(TARGET, ['initiator-address = 127.0.0.1'], luns)
        yield daemon.start()


@pytest.mark.parametrize('lun, efi', [(BIOS, False), (EFI, True)], ids=['bios', 'uefi'])
def test_ipxe_boots_an_installer_from_a_cd(server, tmp_path, lun, efi):
    assert '%s %d' % (BOOTED, lun) in boot(server, tmp_path, lun, TARGET, efi=efi)


def test_a_cd_without_a_boot_image_does_not_boot(server, tmp_path):
    command = machine(str(tmp_path), script(server, EMPTY, TARGET), False)
    shown = console(command, (BOOTED.encode(), b'NOT BOOTED\r', b'No bootable'))
    assert BOOTED not in shown.replace('NOT BOOTED', '') and 'NOT BOOTED' in shown
