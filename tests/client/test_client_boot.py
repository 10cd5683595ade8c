"""Diskless machines boot from a LUN: iPXE on BIOS and on UEFI firmware, UEFI firmware by its own
initiator (OVMF), and GRUB from a file system on the LUN, in QEMU. The machines' network is QEMU's
user mode: their connections come from 127.0.0.1, and the server is 10.0.2.2 for them.

What is booted prints a line to the serial console. The README's recipes are these.
"""

import os
import re
import shutil
import struct
import subprocess
import threading

import clients
import pytest
import uefi
from clients import need
from daemon import watched

pytestmark = pytest.mark.client

PLAIN = 'iqn.2026-11.test.targetd:boot'
SECRET = 'iqn.2026-11.test.targetd:boot-secret'
MUTUAL = 'iqn.2026-11.test.targetd:boot-mutual'
WRITABLE = 'iqn.2026-11.test.targetd:boot-writable'
ACCOUNT = ('erp', 'secret-of-erp-1')
BACK = ('erp-back', 'another-secret')
BIOS_LUN, EFI_LUN, HIGH_LUN, HIGH_EFI_LUN = 0, 1, 300, 301
LUNS = (BIOS_LUN, EFI_LUN, HIGH_LUN, HIGH_EFI_LUN)
BOOTED = 'BOOTED FROM LUN'
SECONDS = 240  # an emulated machine on a busy host
MIB = 1 << 20

ROMS = '/usr/lib/ipxe/qemu'
FIRMWARE = '/usr/share/OVMF'
EMPTY_VARIABLES = FIRMWARE + '/OVMF_VARS_4M.fd'
MAC = '52:54:00:12:34:56'

QEMU = ['qemu-system-x86_64', '-accel', 'tcg', '-nographic', '-no-reboot', '-net', 'none']
QEMU += ['-serial', 'stdio', '-monitor', 'none']

GRUB_CONFIGURATION = """serial --unit=0 --speed=115200
terminal_output serial
echo %s
sleep 2
halt
"""


def boot_sector(text):
    """A boot sector that prints the text to the first serial port, then halts."""
    # interrupts off, segments 0, SI = address of the text
    setup = bytes.fromhex('fa31c08ed88ec0be')
    loop = bytes.fromhex(
        'ac84c07412'  # next character; at 0 go to the halt
        '88c4bafd03eca82074fb'  # wait until the transmitter is empty
        'baf80388e0eeebe9'  # send it, and again
        'f4ebfd'  # halt
    )
    address = 0x7C00 + len(setup) + 2 + len(loop)
    code = setup + struct.pack('<H', address) + loop + text.encode() + b'\r\n\0'
    return code.ljust(510, b'\0') + b'\x55\xaa'


def bios_disk(path, text):
    """64 MiB; iPXE's BIOS interface does not boot from a disk of 1 MiB."""
    with open(path, 'wb') as file:
        file.write(boot_sector(text))
        file.truncate(64 * MIB)


def grub_program(folder, text):
    """GRUB for UEFI, which prints the text; returns its path."""
    configuration = os.path.join(folder, 'grub.cfg')
    with open(configuration, 'w') as file:
        file.write(GRUB_CONFIGURATION % text)
    program = os.path.join(folder, 'BOOTX64.EFI')
    modules = 'serial echo sleep halt part_msdos fat'
    clients.output(
        'grub-mkstandalone', '-O', 'x86_64-efi', '-o', program, '--modules=' + modules,
        '--install-modules=' + modules, '--locales=', '--fonts=',
        'boot/grub/grub.cfg=' + configuration,
    )  # fmt: skip
    return program


def efi_disk(path, text):
    """A disk with an EFI system partition that holds GRUB as the removable medium's boot program."""
    program = grub_program(os.path.dirname(path), text)
    with open(path, 'wb') as file:
        file.truncate(64 * MIB)
    subprocess.run(
        ['sfdisk', '-q', path], input=b'label: dos\nstart=2048, type=ef, bootable\n', check=True
    )
    partition = path + '@@1M'
    clients.output('mformat', '-i', partition, '-F', '-T', 63 * 2048, '::')
    clients.output('mmd', '-i', partition, '::/EFI', '::/EFI/BOOT')
    clients.output('mcopy', '-i', partition, program, '::/EFI/BOOT/BOOTX64.EFI')


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    """A daemon with LUNs for BIOS and for UEFI, one of each with a number above 255, with and without
    CHAP."""
    for program in ('qemu-system-x86_64', 'grub-mkstandalone', 'mformat', 'mcopy', 'sfdisk'):
        need(program)
    folder = str(tmp_path_factory.mktemp('boot'))
    images = {n: os.path.join(folder, 'lun%d.img' % n) for n in LUNS}
    bios_disk(images[BIOS_LUN], '%s %d' % (BOOTED, BIOS_LUN))
    efi_disk(images[EFI_LUN], '%s %d' % (BOOTED, EFI_LUN))
    efi_disk(images[HIGH_EFI_LUN], '%s %d' % (BOOTED, HIGH_EFI_LUN))
    bios_disk(images[HIGH_LUN], '%s %d' % (BOOTED, HIGH_LUN))
    with watched(tmp_path_factory.mktemp('server')) as daemon:
        everyone = ['initiator-address = 127.0.0.1']
        account = ['incominguser = %s %s' % ACCOUNT]
        luns = {n: ['backing-store = ' + path, 'readonly = yes'] for n, path in images.items()}
        writable = {}
        for n in (BIOS_LUN, HIGH_LUN):  # QEMU does not give a disk that is read-only to a machine
            copy = shutil.copy(images[n], os.path.join(folder, 'writable%d.img' % n))
            writable[n] = ['backing-store = ' + copy]
        daemon.target(WRITABLE, everyone, writable)
        two = {n: luns[n] for n in (BIOS_LUN, EFI_LUN)}
        daemon.target(PLAIN, everyone, luns)
        daemon.target(SECRET, everyone + account, two)
        daemon.target(MUTUAL, everyone + account + ['outgoinguser = %s %s' % BACK], two)
        daemon.start()
        yield daemon


def script(daemon, lun, target, settings=()):
    """The iPXE script that boots the LUN. The LUN in the root path is hexadecimal."""
    root = 'iscsi:10.0.2.2::%d:%x:%s' % (daemon.port, lun, target)
    lines = ['#!ipxe', 'set initiator-iqn iqn.2026-11.test:ipxe']
    lines += ['set %s %s' % each for each in settings]
    lines += ['sanboot --no-describe %s || echo NOT BOOTED' % root, 'poweroff']
    return '\n'.join(lines) + '\n'


def machine(folder, text, efi):
    """The command of a machine that takes its boot script from QEMU's TFTP server."""
    with open(os.path.join(folder, 'boot.ipxe'), 'w') as file:
        file.write(text)
    network = 'user,id=net,tftp=%s,bootfile=boot.ipxe' % folder
    command = QEMU + ['-netdev', network]
    if not efi:
        return command + ['-m', '128', '-boot', 'n', '-device', 'e1000,netdev=net']
    variables = shutil.copy(EMPTY_VARIABLES, os.path.join(folder, 'variables.fd'))
    rom = ROMS + '/efi-e1000.rom'
    command += firmware(variables)
    return command + ['-device', 'e1000,netdev=net,bootindex=0,romfile=' + rom]


def firmware(variables):
    """The options of a machine with UEFI firmware."""
    options = ['-m', '512', '-machine', 'q35']
    for flash in (FIRMWARE + '/OVMF_CODE_4M.fd,readonly=on', variables):
        options += ['-drive', 'if=pflash,format=raw,file=' + flash]
    return options


def console(command, wanted):
    """Runs the machine until its console shows one of the texts; returns what it showed."""
    process = clients.start(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    limit = threading.Timer(SECONDS, process.kill)
    limit.start()
    shown = b''
    try:
        while not any(text in shown for text in wanted):
            piece = os.read(process.stdout.fileno(), 4096)
            if not piece:
                break
            shown += piece
    finally:
        limit.cancel()
        process.kill()
        process.wait(10)
        process.stdout.close()
    return re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', shown.decode('utf-8', 'replace'))


def boot(daemon, folder, lun, target=PLAIN, settings=(), efi=False):
    """What the machine's console shows until it has booted, or says that it cannot."""
    text = script(daemon, lun, target, settings)
    expected = ('%s %d' % (BOOTED, lun)).encode()
    return console(machine(str(folder), text, efi), (expected, b'NOT BOOTED\r', b'No bootable'))


@pytest.mark.parametrize('lun', [BIOS_LUN, HIGH_LUN])
def test_ipxe_boots_a_bios_machine(server, tmp_path, lun):
    assert '%s %d' % (BOOTED, lun) in boot(server, tmp_path, lun)


def test_ipxe_and_grub_boot_a_uefi_machine(server, tmp_path):
    """iPXE as the UEFI network driver; its firmware loads GRUB from the LUN's EFI system partition."""
    assert '%s %d' % (BOOTED, EFI_LUN) in boot(server, tmp_path, EFI_LUN, efi=True)


def test_ipxe_authenticates_with_chap(server, tmp_path):
    settings = [('username', ACCOUNT[0]), ('password', ACCOUNT[1])]
    assert BOOTED in boot(server, tmp_path, BIOS_LUN, SECRET, settings)


def test_ipxe_and_the_target_authenticate_with_mutual_chap(server, tmp_path):
    settings = [('username', ACCOUNT[0]), ('password', ACCOUNT[1])]
    settings += [('reverse-username', BACK[0]), ('reverse-password', BACK[1])]
    assert BOOTED in boot(server, tmp_path, BIOS_LUN, MUTUAL, settings)


def test_a_wrong_secret_does_not_boot(server, tmp_path):
    settings = [('username', ACCOUNT[0]), ('password', 'not-the-secret-at-all')]
    shown = boot(server, tmp_path, BIOS_LUN, SECRET, settings)
    assert 'NOT BOOTED' in shown and BOOTED not in shown


def firmware_boots(daemon, folder, lun, target=PLAIN, number=None, **chap):
    """What the console shows of a machine whose UEFI firmware logs in by itself, without iPXE. 'number'
    is the first level of the LUN as the user wrote it, if it is not 'lun'."""
    variables = os.path.join(str(folder), 'variables.fd')
    field = struct.pack('>HHHH', number or lun, 0, 0, 0)
    attempt = uefi.attempt(MAC, target, daemon.port, field, **chap)
    uefi.write_variables(EMPTY_VARIABLES, variables, 'iqn.2026-11.test:firmware', attempt)
    command = QEMU + firmware(variables) + ['-netdev', 'user,id=net']
    command += ['-device', 'virtio-net-pci,netdev=net,romfile=,mac=' + MAC]
    expected = ('%s %d' % (BOOTED, lun)).encode()
    return console(command, (expected, b'>>Start PXE'))  # PXE: its next choice


@pytest.mark.parametrize('number', [HIGH_EFI_LUN, 0x4000 | HIGH_EFI_LUN])
def test_uefi_firmware_boots_from_a_lun_above_255_in_both_forms(server, tmp_path, number):
    """It sends the 8 bytes that the user wrote: the number as it is, or with flat addressing."""
    shown = firmware_boots(server, tmp_path, HIGH_EFI_LUN, number=number)
    assert 'iSCSI(%s,' % PLAIN in shown
    assert '%s %d' % (BOOTED, HIGH_EFI_LUN) in shown


def test_uefi_firmware_and_the_target_authenticate_with_mutual_chap(server, tmp_path):
    shown = firmware_boots(server, tmp_path, EFI_LUN, MUTUAL, account=ACCOUNT, back=BACK)
    assert '%s %d' % (BOOTED, EFI_LUN) in shown


@pytest.mark.parametrize('lun', [BIOS_LUN, HIGH_LUN])
@pytest.mark.parametrize('device', ['scsi-block', 'scsi-hd'])
def test_seabios_boots_from_a_disk_of_libiscsi(server, device, lun):
    """With scsi-block, QEMU passes the commands of the machine (INQUIRY, REPORT LUNS, READ CAPACITY and
    READ of the firmware) to the target as they are; with scsi-hd it answers them and reads."""
    url = 'iscsi://127.0.0.1:%d/%s/%d' % (server.port, WRITABLE, lun)
    command = QEMU + ['-m', '128', '-device', 'virtio-scsi-pci']
    command += ['-drive', 'if=none,id=disk,format=raw,file=%s' % url]
    command += ['-device', '%s,drive=disk,bootindex=0' % device]
    expected = '%s %d' % (BOOTED, lun)
    assert expected in console(command, (expected.encode(), b'No bootable'))
