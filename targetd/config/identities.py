"""The identities that other iSCSI targets give to their LUNs, so that initiators recognize a disk that
targetd serves now.

May import base, config.words and the pure scsi.designators. Each function of FORMATS returns the
settings of one LUN that reproduce its identity, {setting: text as written in targetd.conf}. The
importers (targetd.migration) and the setting `identity` use the same functions.
"""

import hashlib
import re
from collections import OrderedDict

from targetd.config.words import Unusable, join
from targetd.crc32c import crc32c
from targetd.scsi.designators import NONE

#: The order in page 83h of targets that send the T10 designator first.
T10_FIRST = 't10, naa, eui'


def _settings(**texts):
    """{setting: text}, quoted as in targetd.conf. None: the setting is not written."""
    return OrderedDict(
        (name.replace('_', '-'), text) for name, text in texts.items() if text is not None
    )


def quoted(text):
    """A text as one word of a value; None for an empty text, which needs no setting."""
    return join([[text]]) if text else None


def designator(code_set, content, length=0):
    """The value of the setting t10 or vendor-specific for these bytes, filled with NULs up to
    `length`."""
    length = max(length, len(content))
    bare = content.rstrip(b'\0')
    is_plain = code_set != 'binary' and bare and bare[:2].lower() != b'0x'
    if is_plain and all(0x20 <= byte < 0x7F for byte in bare):
        words = [code_set, bare.decode('ascii')]
    else:
        words = [code_set, content.hex() if code_set == 'binary' else '0x' + content.hex()]
        bare = content
    return join([words + ([str(length)] if length > len(bare) else [])])


def number(name, text, low=0, high=1 << 63):
    """The whole number of a word of `identity`, decimal or 0x hexadecimal. Raises Unusable."""
    try:
        value = int(str(text), 0)
    except ValueError:
        value = -1
    if not low <= value <= high:
        raise Unusable('identity: %s=%s is not a valid number' % (name, text), 'write %s=1' % name)
    return value


def crc32c_of(data):
    """CRC32C of bytes with start value 0 and without a final inversion, as SCST computes it."""
    return crc32c(bytes(data), 0xFFFFFFFF) ^ 0xFFFFFFFF


# -- one function per target -----------------------------------------------------------------------


def tgt(tid, lun, scsi_id='', scsi_sn='', vendor='IET', product='VIRTUAL-DISK', revision='0001'):
    """tgt: tid and lun are its numbers, which its default identity contains."""
    tid, lun = number('tid', tid), number('lun', lun)
    scsi_id = scsi_id or 'IET     %04x%04x' % (tid, lun)
    digits = ''.join(c if c in '0123456789abcdefABCDEF' else '0' for c in scsi_id).lower()
    return _settings(
        vendor_id=quoted(vendor),
        product_id=quoted(product),
        product_rev=quoted(revision),
        scsi_sn=quoted('%36s' % (scsi_sn or 'beaf%d%d' % (tid, lun))[:36]),
        naa='3%07x%08x, 6%s' % (tid, lun, digits[-31:].rjust(31, '0')),
        t10=designator('ascii', scsi_id.encode('latin-1', 'replace')[:36], 36),
        designator_order='t10, naa',
    )


def _lio_naa(wwn):
    return '6001405' + re.sub('[^0-9a-f]', '', wwn.lower())[:25].ljust(25, '0')


def lio(wwn, product='FILEIO'):
    """LIO: wwn of saveconfig.json, which is vpd_unit_serial; product: FILEIO, IBLOCK, RAMDISK-MCP or
    the name of the backstore."""
    return _settings(
        vendor_id='LIO-ORG',
        product_id=quoted(product[:15]),
        product_rev='4.0',
        scsi_sn=quoted(wwn),
        scsi_sn_nuls='1',
        naa=_lio_naa(wwn),
        t10=designator('ascii', ('LIO-ORG %s:%s\0' % (product[:15], wwn)).encode('utf-8')),
        designator_order='naa, t10',
    )


def ceph(wwn, image):
    """ceph-iscsi (tcmu-runner); image: POOL/IMAGE."""
    return _settings(
        vendor_id='LIO-ORG',
        product_id='"TCMU device"',
        product_rev='0002',
        scsi_sn=quoted(wwn),
        scsi_sn_nuls='1',
        naa=_lio_naa(wwn),
        t10=designator('ascii', ('LIO-ORG %s\0' % wwn).encode('utf-8')),
        vendor_specific=designator('ascii', ('rbd/%s;osd_op_timeout=30\0' % image).encode('utf-8')),
        designator_order='t10, naa, vendor-specific',
    )


def scst(
    device,
    setup_id='0',
    vendor='SCST_FIO',
    product='',
    revision='',
    usn='',
    t10_dev_id='',
    vend_specific_id='',
    naa_id='',
    eui64_id='',
):
    """SCST: device is the name of the device; the other words are those of scst.conf."""
    checksum = crc32c_of(device.encode('utf-8') + b'\0')
    own = '%x' % ((number('setup_id', setup_id) << 32) + checksum)
    default = ('%s-%s' % (own, device))[:25]
    t10_dev_id = t10_dev_id or default
    eui = eui64_id
    if not naa_id and not eui64_id:
        eui = t10_dev_id.encode('utf-8')[:8].ljust(8, b'\0').hex()
    text = vendor[:8].ljust(8) + (vend_specific_id or default)
    return _settings(
        vendor_id=quoted(vendor[:8]),
        product_id=quoted((product or device)[:16]),
        product_rev=quoted(revision[:4]),
        scsi_sn=quoted((usn or own)[:20]),
        naa=naa_id or NONE,
        eui=eui or None,
        t10=designator('ascii', text.encode('utf-8')),
        designator_order=T10_FIRST,
    )


def iet(target, lun, scsi_id='', scsi_sn=''):
    """IET (iscsitarget): target and lun, of which its default identity is a digest."""
    seed = target.encode('utf-8') + number('lun', lun).to_bytes(4, 'little')
    digest = hashlib.md5(seed).digest()
    own = scsi_id.encode('utf-8')[:16].ljust(16, b'\0') if scsi_id else digest
    serial = scsi_sn or (own.hex() if not scsi_id else scsi_id)
    return _settings(
        vendor_id='IET',
        product_id='VIRTUAL-DISK',
        product_rev='0',
        scsi_sn=quoted(serial.rjust(16 if len(serial) <= 16 else 32)),
        naa=NONE,
        t10=designator('binary', b'IET\0\0\0\0\0' + own),
    )


def istgt(
    target, lun, unit='0', serial='', vendor='FreeBSD', product='iSCSI DISK', revision='0001'
):
    """istgt: unit is the number of the section [LogicalUnitN]; serial: as configured for the unit, or
    for this LUN if it has its own."""
    lun = number('lun', lun)
    seed = ('%s,%d' % (target, lun)).encode('utf-8')
    seed += bytes(-len(seed) % 4)
    serial = serial or '%08d' % (10000000 + number('unit', unit)) + ('L%d' % lun if lun else '')
    text = '%s%s%s' % (vendor[:8].ljust(8), product[:16].ljust(16), serial[:32].ljust(32))
    return _settings(
        vendor_id=quoted(vendor[:8]),
        product_id=quoted(product[:16]),
        product_rev=quoted(revision[:4]),
        scsi_sn=quoted(serial),
        naa='30000000%08x' % crc32c(seed),
        t10=designator('utf-8', text.encode('utf-8')),
        designator_order='naa, t10',
    )


def ctl(
    serial,
    device_id,
    scsi_name='',
    naa='',
    eui='',
    vendor='FREEBSD',
    product='CTLDISK',
    revision='0001',
):
    """FreeBSD CTL: serial and device_id as ctladm devlist -v shows them; '': not known, then they are
    left out. scsi_name: TARGET,lun,N for a LUN that was written in a target."""
    text = vendor[:8].ljust(8).encode('ascii', 'replace') + device_id.encode('utf-8')
    return _settings(
        vendor_id=quoted(vendor[:8]),
        product_id=quoted(product[:16]),
        product_rev=quoted(revision[:4]),
        scsi_sn=quoted(serial),
        naa=naa or NONE,
        eui=eui or None,
        t10=designator('ascii', text, 24) if device_id else NONE,
        scsi_name=quoted(scsi_name),
        designator_order='t10, scsi-name, eui, naa',
    )


#: {first word of the setting `identity`: function}. The words of the setting are its arguments.
FORMATS = OrderedDict(
    (function.__name__, function) for function in (tgt, lio, scst, iet, istgt, ctl, ceph)
)


def arguments(function):
    """([names of the arguments that are required], [names of the others])."""
    code, defaults = function.__code__, function.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount]
    return list(names[: len(names) - len(defaults)]), list(names[len(names) - len(defaults) :])


def settings_of(name, words):
    """{setting: text} of one `identity` setting. words: {argument: text}. Raises Unusable."""
    required, optional = arguments(FORMATS[name])
    for word in words:
        if word not in required + optional:
            raise Unusable(
                'identity: %s has no word %r' % (name, word),
                'words are %s' % ', '.join(required + optional),
            )
    missing = [word for word in required if not words.get(word)]
    if missing:
        raise Unusable(
            'identity: %s needs %s' % (name, ' and '.join(missing)),
            'write identity = %s %s' % (name, ' '.join('%s=...' % word for word in required)),
        )
    return FORMATS[name](**words)
