"""FORMER: words of tgt's targets.conf that targetd does not have, and what takes their place.

For the complaint that meets them. Imports nothing.
"""

_ISNS = 'write isns-server = ADDRESS or ADDRESS:PORT in [server], or nothing where there is none'
_OBSOLETE = 'leave it out: markers are obsolete (RFC 7143 13.25)'

# fmt: off
FORMER = {
    'driver': 'leave it out: targetd speaks iSCSI only',
    'default-driver': 'leave it out: targetd speaks iSCSI only',
    'ignore-errors': 'leave it out: a configuration with errors is never half used',
    'control-port': 'write control-socket = PATH in [server] where several instances run',
    'isns': _ISNS,
    'isnsserverip': _ISNS,
    'isnsserverport': _ISNS,
    'isnsaccesscontrol': 'leave it out: initiator-address, initiator-name and incominguser say who '
                         'may log in',
    'controller-tid': 'leave it out: identities do not depend on numbers here',
    'lun': 'write a section [[lun N]]',
    'online': 'write state = offline in the target',
    'path': 'write backing-store = PATH',
    'device-type': 'leave it out: targetd serves disks',
    'bs-type': 'write type = file, block, ram or null, or leave it out',
    'bsopts': 'leave it out',
    'bsoflags': 'write direct-io = yes for direct, write-cache = off for sync',
    'lbppbe': 'write physical-block-size in bytes (lbppbe 3 with blocks of 512 bytes is 4096)',
    'la-lba': 'write lowest-aligned-block',
    'optimal-xfer-gran': 'write optimal-transfer-granularity as a size (64K), not in blocks',
    'optimal-xfer-len': 'write optimal-transfer-length as a size (1M), not in blocks',
    'params': 'write each parameter as a setting of its own',
    'thin-provisioning': 'write thin = yes',
    'scsi-id': 'write naa = DIGITS or eui = DIGITS for an identifier, scsi-sn for the serial '
               'number',
    'maxxmitdatasegmentlength': 'leave it out: the initiator declares what it takes',
    'datapduinorder': 'leave it out: data always comes in order',
    'datasequenceinorder': 'leave it out: data always comes in order',
    'ifmarker': _OBSOLETE,
    'ofmarker': _OBSOLETE,
    'ifmarkint': _OBSOLETE,
    'ofmarkint': _OBSOLETE,
    'maxqueuecmd': 'leave it out: the command window follows from the worker',
}
# fmt: on
