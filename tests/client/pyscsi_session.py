"""Run by test_client_pyscsi.py in a virtual environment with pyscsi and cython-iscsi: python
pyscsi_session.py URL. Prints what the target answered, a JSON object, or the error of the login.

The class ISCSIDevice of pyscsi 2.1.0 does not work with cython-iscsi 1.0: it uses other names of
constants, and gives the URL as the initiator's name. Device takes its place.
"""

import hashlib
import json
import sys

import iscsi
from pyscsi.pyscsi import scsi_enum_command
from pyscsi.pyscsi.scsi import SCSI

INITIATOR = 'iqn.2026-11.test.targetd:pyscsi'


class Device(object):
    """What SCSI of pyscsi uses of a device."""

    def __init__(self, url, initiator_name):
        self.opcodes = scsi_enum_command.spc
        self.devicetype = None
        self._iscsi = iscsi.Context(initiator_name)
        self._iscsi_url = iscsi.URL(self._iscsi, url)
        self._iscsi.set_targetname(self._iscsi_url.target)
        self._iscsi.set_session_type(iscsi.iscsi_session_type.ISCSI_SESSION_NORMAL)
        self._iscsi.set_header_digest(iscsi.iscsi_header_digest.ISCSI_HEADER_DIGEST_NONE_CRC32C)
        self._iscsi.connect(self._iscsi_url.portal, self._iscsi_url.lun)

    def close(self):
        self._iscsi.disconnect()

    def execute(self, cmd):
        direction = iscsi.scsi_xfer_dir.SCSI_XFER_NONE
        length = 0
        if len(cmd.datain):
            direction, length = iscsi.scsi_xfer_dir.SCSI_XFER_READ, len(cmd.datain)
        if len(cmd.dataout):
            direction, length = iscsi.scsi_xfer_dir.SCSI_XFER_WRITE, len(cmd.dataout)
        task = iscsi.Task(cmd.cdb, direction, length)
        self._iscsi.command(self._iscsi_url.lun, task, cmd.dataout, cmd.datain)
        if task.status != scsi_enum_command.SCSI_STATUS.GOOD:
            raise RuntimeError('status %02xh' % task.status)


def main(url, initiator_name):
    blocks = bytearray(b''.join(hashlib.sha512(b'%d' % n).digest() for n in range(64)))
    device = Device(url, initiator_name)
    try:
        disk = SCSI(device, 512)
        found = {
            'inquiry': disk.inquiry().result['t10_vendor_identification'].decode().strip(),
            'pages': list(disk.inquiry(evpd=1, page_code=0x00).result['vpd_pages']),
            'capacity10': disk.readcapacity10().result['returned_lba'],
            'capacity16': disk.readcapacity16().result['returned_lba'],
            'luns': [list(each.values()) for each in disk.reportluns().result['luns']],
        }
        disk.testunitready()
        disk.modesense6(page_code=0x08)
        disk.modesense10(page_code=0x0A)
        disk.getlbastatus(0)
        disk.write10(5, 8, blocks)
        disk.write12(15, 8, blocks)
        disk.write16(25, 8, blocks)
        disk.writesame10(40, 4, blocks[:512])
        disk.writesame16(50, 4, blocks[:512])
        found['read'] = (
            disk.read10(5, 8).datain
            == disk.read12(15, 8).datain
            == disk.read16(25, 8).datain
            == blocks
        )
        found['same'] = disk.read10(40, 4).datain == disk.read10(50, 4).datain == blocks[:512] * 4
    finally:
        device.close()
    print(json.dumps(found))


if __name__ == '__main__':
    try:
        main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else INITIATOR)
    except Exception as e:
        print('%s: %s' % (type(e).__name__, e))
        raise SystemExit(1)
