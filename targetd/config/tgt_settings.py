"""FORMER: settings of tgt's targets.conf that targetd does not have, each with a remedy.

The remedy is part of the complaint about the setting. Imports nothing.
"""

_ISNS = 'write isns-server = ADDRESS or ADDRESS:PORT in [server], or remove it'
_OBSOLETE = 'remove it: markers are obsolete (RFC 7143 13.25)'

# fmt: off
FORMER = {
    'driver': 'remove it: targetd supports iSCSI only',
    'default-driver': 'remove it: targetd supports iSCSI only',
    'ignore-errors': 'remove it: a configuration with errors is never used in part',
    'control-port': 'write control-socket = PATH in [server] if several instances run',
    'isns': _ISNS,
    'isnsserverip': _ISNS,
    'isnsserverport': _ISNS,
    'isnsaccesscontrol': 'remove it: initiator-address, initiator-name and incominguser define who '
                         'may log in',
    'controller-tid': 'remove it: identities do not depend on target numbers',
    'lun': 'write a section [[lun N]]',
    'online': 'write state = offline in the target',
    'path': 'write backing-store = PATH',
    'device-type': 'write type = cd for a CD or DVD drive, type = tape for a tape drive, type = passthrough '
    'for pt, or remove it',
    'bs-type': 'write type = file, block, ram or null, type = passthrough for sg, or remove it',
    'bsopts': 'remove it',
    'bsoflags': 'write direct-io = yes instead of direct, write-cache = off instead of sync',
    'lbppbe': 'write physical-block-size in bytes (lbppbe 3 with blocks of 512 bytes is 4096)',
    'la-lba': 'write lowest-aligned-block',
    'optimal-xfer-gran': 'write optimal-transfer-granularity as a size (64K), not in blocks',
    'optimal-xfer-len': 'write optimal-transfer-length as a size (1M), not in blocks',
    'params': 'write each parameter as a separate setting',
    'thin-provisioning': 'write thin = yes',
    'scsi-id': 'write naa = DIGITS or eui = DIGITS for an identifier, scsi-sn for the serial '
               'number',
    'maxxmitdatasegmentlength': 'remove it: the initiator declares the maximum',
    'datapduinorder': 'remove it: data is always in order',
    'datasequenceinorder': 'remove it: data is always in order',
    'ifmarker': _OBSOLETE,
    'ofmarker': _OBSOLETE,
    'ifmarkint': _OBSOLETE,
    'ofmarkint': _OBSOLETE,
    'maxqueuecmd': 'remove it: the worker process determines the command window',
}
# fmt: on
