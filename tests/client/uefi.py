"""The iSCSI initiator of UEFI firmware (EDK2 IScsiDxe), configured without its menus: the attempts are
written into the file of OVMF's variables, as the menu "iSCSI Configuration" would save them.

The layouts are those of EDK2: NetworkPkg/IScsiDxe (ISCSI_ATTEMPT_CONFIG_NVDATA,
ISCSI_SESSION_CONFIG_NVDATA, ISCSI_CHAP_AUTH_CONFIG_NVDATA) and MdeModulePkg/Include/Guid/
VariableFormat.h (AUTHENTICATED_VARIABLE_HEADER). All of them are packed.
"""

import socket
import struct
import uuid

#: A variable begins at a multiple of 4; the first one follows the headers of the volume and of the store.
FIRST_VARIABLE = 0x64
VARIABLE = struct.Struct('<HBBIQ16sIII16s')
START, ADDED = 0x55AA, 0x3F
SAVED_FOR_BOOT = 0x03  # non-volatile, boot services only
FREE = b'\xff'

INITIATOR = uuid.UUID('59324945-ec44-4c0d-b1cd-9db139df070c').bytes_le  # the name and the attempts
CONFIGURATION = uuid.UUID('4b47d616-a8d6-4552-9d44-ccad2e0f4cf9').bytes_le  # their order

# the first 16 bytes of an attempt are a link of the driver's list, and 0 in the variable
ATTEMPT = struct.Struct('<16s6BHH12s96s16s16s16s')
SESSION = struct.Struct('<HBB16s4s16sBB224s16sB8sHB6sBH16sB255s')
CHAP = struct.Struct('<BB127s17s127s17s')
END = struct.Struct('<BB')

ENABLED, IP4, NO_CHAP, WITH_CHAP, ONE_WAY, MUTUAL = 1, 0, 0, 1, 0, 1
ISID = bytes.fromhex('102030405060')
MILLISECONDS, RETRIES = 5000, 3
ATTEMPTS = 8  # with fewer in the initial order, the driver makes new ones in their place


def _variable(name, guid, data):
    encoded = (name + '\0').encode('utf-16-le')
    header = VARIABLE.pack(
        START, ADDED, 0, SAVED_FOR_BOOT, 0, bytes(16), 0, len(encoded), len(data), guid
    )
    whole = header + encoded + data
    return whole + FREE * (-len(whole) % 4)


def _chap(account, back):
    if account is None:
        return CHAP.pack(NO_CHAP, 0, b'', b'', b'', b'')
    kind = ONE_WAY if back is None else MUTUAL
    words = [word.encode() for pair in (account, back or ('', '')) for word in pair]
    return CHAP.pack(WITH_CHAP, kind, *words)


def attempt(mac, target, port, lun, account=None, back=None):
    """Attempt 1: the machine's network card has a fixed address in QEMU's user mode network. 'lun' is
    the 8-byte LUN as the menu takes it."""
    address = {n: socket.inet_aton('10.0.2.%d' % n) for n in (2, 15)}
    head = ATTEMPT.pack(
        b'', 0, 1, 0, 0, 0, 0, 0, 0, b'Attempt 1', mac.upper().encode(), b'', b'', b''
    )
    session = SESSION.pack(
        port, ENABLED, IP4, address[15], socket.inet_aton('255.255.255.0'), address[2], 0, 0,
        target.encode(), address[2], 0, lun, MILLISECONDS, RETRIES, ISID, 0, 0, b'', 0, b'',
    )  # fmt: skip
    return head + session + _chap(account, back) + END.pack(0, 1)


def write_variables(source, path, initiator, data):
    """A copy of the empty file of variables, with one attempt."""
    with open(source, 'rb') as file:
        image = bytearray(file.read())
    variables = b''.join(
        [
            _variable('I_NAME', INITIATOR, initiator.encode() + b'\0'),
            _variable('InitialAttemptOrder', CONFIGURATION, bytes(range(1, ATTEMPTS + 1))),
            _variable('AttemptOrder', CONFIGURATION, b'\x01'),
            _variable('Attempt 1', INITIATOR, data),
        ]
    )
    end = FIRST_VARIABLE + len(variables)
    assert image[FIRST_VARIABLE:end] == FREE * len(variables), '%s has variables' % source
    image[FIRST_VARIABLE:end] = variables
    with open(path, 'wb') as file:
        file.write(image)
