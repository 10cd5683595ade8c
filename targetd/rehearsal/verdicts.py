"""What Windows makes of the answers of a disk: how it shows the disk, and what to expect trouble with.

Pure; imports rehearsal.walk. The rules are those of the class driver, the port driver, MPIO (msdsm) and the
hardware requirements of Windows.
"""

from collections import OrderedDict, namedtuple

#: One finding. is_trouble: False if it is only worth knowing; about: 'LUN 3', 'login', …; remedy: '' if
#: there is none.
Finding = namedtuple('Finding', 'is_trouble about text remedy')

GIB, TIB = 1 << 30, 1 << 40
MBR_BLOCKS = 1 << 32
PREFERRED = (8, 3, 2)  # designator types that MPIO and the cluster service accept
SLOW_SECONDS = 5.0
SMALLEST_SLAB = 1 << 20  # bytes, of an unmap granularity that Optimize handles well
ACCESS_STATES = {0: 'optimized', 1: 'nonoptimized', 2: 'standby', 3: 'unavailable', 0xE: 'offline'}
ACCESS_STATES[0xF] = 'transitioning'


def trouble(about, text, remedy=''):
    """A Finding that Windows has trouble with."""
    return Finding(True, about, text, remedy)


def note(about, text, remedy=''):
    """A Finding that is worth knowing."""
    return Finding(False, about, text, remedy)


def name_of(disk):
    """'LUN 3'."""
    return 'LUN %d' % disk.lun if disk.lun >= 0 else 'LUN %016Xh' % disk.field


def shown_size(size):
    """A size as Disk Management shows it."""
    for unit, name in ((TIB, 'TB'), (GIB, 'GB'), (1 << 20, 'MB')):
        if size >= unit:
            return '%.2f %s' % (size / float(unit), name)
    return '%d KB' % (size >> 10)


def designators(disk):
    """[(association, type, bytes)] of VPD page 83h."""
    found, data = [], disk.pages.get(0x83, b'')[4:]
    while len(data) >= 4:
        found.append((data[1] >> 4 & 3, data[1] & 0xF, data[4 : 4 + data[3]]))
        data = data[4 + data[3] :]
    return found


def identity(disk):
    """The designator of the disk that Windows prefers, as (type, bytes); None without one."""
    own = [(kind, data) for association, kind, data in designators(disk) if association == 0]
    ranks = {kind: rank for rank, kind in enumerate((8, 3, 2, 1, 0))}
    own = [each for each in own if each[0] in ranks and each[1]]
    return min(own, key=lambda each: (ranks[each[0]], -len(each[1]))) if own else None


def serial(disk):
    """The serial number of VPD page 80h."""
    return disk.pages.get(0x80, b'')[4:].decode('ascii', 'replace').strip(' \0')


def is_thin(disk):
    """True if Windows treats the disk as thinly provisioned."""
    page = disk.pages.get(0xB2, b'')
    return len(page) > 6 and bool(page[5] & 0x80) and page[6] & 7 == 2


def has_trim(disk):
    """True if Windows sends UNMAP."""
    page, limits = disk.pages.get(0xB2, b''), disk.pages.get(0xB0, b'')
    is_possible = len(page) > 5 and page[5] & 0x80 and len(limits) >= 32
    return bool(is_possible) and limits[20:24] != bytes(4) and limits[24:28] != bytes(4)


def physical_block_size(disk):
    """Bytes of a physical block."""
    exponent = disk.capacity_16[13] & 0xF if len(disk.capacity_16) > 13 else 0
    return disk.block_size << exponent


def sectors(disk):
    """'512', '512e', '4Kn', or the sizes."""
    logical, physical = disk.block_size, physical_block_size(disk)
    if (logical, physical) == (4096, 4096):
        return '4Kn'
    if logical == 512:
        return '512 native' if physical == 512 else '512e (physical %d)' % physical
    return '%d (physical %d)' % (logical, physical)


def partitions(disk):
    """What Disk Management shows of the partition table."""
    if len(disk.sectors) < 2:
        return 'unreadable'
    first, second = disk.sectors
    if second[:8] == b'EFI PART':
        return 'GPT'
    if first[510:512] == b'\x55\xaa':
        return 'MBR' if any(first[446:510]) else 'boot record without partitions'
    return 'Not Initialized'


def write_cache(disk):
    """True, False, or None if the disk does not say."""
    current, _ = disk.modes.get(8, (b'', b''))
    return bool(current[2] & 4) if len(current) > 2 else None


def is_read_only(disk):
    """True if Windows shows the disk as Read-only."""
    return len(disk.header) > 2 and bool(disk.header[2] & 0x80)


def holder(disk):
    """The key and type of the persistent reservation in words; '' without one."""
    if not disk.holder or len(disk.holder) < 24:
        return ''
    return 'key %s, type %d' % (disk.holder[8:16].hex(), disk.holder[21] & 0xF)


def shown(disk, number):
    """How Windows shows the disk: {what: text or number}. number: of the disk in the order of arrival."""
    size = disk.blocks * disk.block_size
    unique = identity(disk)
    cache = {True: 'on (Windows flushes)', False: 'off', None: 'unknown'}[write_cache(disk)]
    rate = int.from_bytes(disk.pages.get(0xB1, b'')[4:6], 'big')
    return OrderedDict(
        [
            ('disk', number),
            ('lun', disk.lun),
            ('model', ' '.join(disk.inquiry[8:32].decode('ascii', 'replace').split())),
            ('size', size),
            ('size_shown', shown_size(size)),
            ('partitions', partitions(disk)),
            ('limit', 'GPT only' if disk.blocks > MBR_BLOCKS else 'MBR or GPT'),
            ('sectors', sectors(disk)),
            ('provisioning', 'thin' if is_thin(disk) else 'fixed'),
            ('trim', has_trim(disk)),
            ('medium', {0: 'unspecified', 1: 'SSD'}.get(rate, '%d rpm' % rate)),
            ('write_cache', cache),
            ('read_only', is_read_only(disk)),
            ('offloaded_copies', 0x8F in disk.pages.get(0, b'')[4:]),
            ('reservation', holder(disk) or 'none'),
            ('serial', serial(disk)),
            ('unique_id', unique[1].hex() if unique else ''),
        ]
    )


# -- reasons to expect trouble ---------------------------------------------------------------------


def of_disk(disk):
    """[Finding] of one disk."""
    about = name_of(disk)
    if disk.lun < 0 or disk.lun > 255:
        return [
            trouble(
                about,
                'Windows uses LUNs 0 to 255 of one level only, and does not see this one',
                'give it a number below 256',
            )
        ]
    if not disk.inquiry:
        return [trouble(about, '%s: %s' % failure) for failure in disk.failures]
    if disk.inquiry[0] != 0:
        return [note(about, 'is not a disk (first byte of INQUIRY %02Xh)' % disk.inquiry[0])]
    found = _of_inquiry(disk, about) + _of_identity(disk, about)
    if disk.ready:
        text = 'Windows shows no usable disk: TEST UNIT READY ends with %s' % disk.ready
        return found + [trouble(about, text, 'see "targetdctl show units"')]
    found += _of_capacity(disk, about) + _of_content(disk, about) + _of_provisioning(disk, about)
    found += _of_modes(disk, about) + _of_reservations(disk, about) + _of_paths(disk, about)
    found += [
        trouble(about, '%s fails: %s' % failure, 'see "targetdctl show errors" and the log')
        for failure in disk.failures
        if not failure[0].startswith('PERSISTENT')
    ]
    if disk.slowest[0] > SLOW_SECONDS:
        text = '%s took %.0f seconds; Windows resets the target after 60 (event 129)'
        found.append(
            trouble(about, text % disk.slowest[::-1], 'find out why the disk of the LUN is slow')
        )
    return found


def _of_inquiry(disk, about):
    data, found = disk.inquiry, []
    if data[1] & 0x80:
        text = 'is a removable disk: Windows makes no cluster disk and no dynamic disk of it'
        found.append(note(about, text, 'write removable = no'))
    if len(data) < 36 or data[2] < 4 or data[3] & 0xF != 2:
        found.append(trouble(about, 'INQUIRY is of a standard before SPC-2'))
    if not data[3] & 0x10:
        found.append(note(about, 'HiSup is 0: Windows 2003 and older see no LUN above 7'))
    if not data[7] & 2:
        found.append(trouble(about, 'CmdQue is 0: one command at a time'))
    pages = list(disk.pages[0][4:])
    if not pages or pages[0] != 0 or pages != sorted(set(pages)):
        text = 'VPD page 00h is missing or not ascending: Windows ignores pages B0h, B1h and B2h'
        found.append(trouble(about, text))
    for page in (0xB0, 0xB1):
        if page in pages and disk.pages.get(page, b'')[2:4] != b'\x00\x3c':
            text = 'VPD page %02Xh has not the length 3Ch: Windows ignores it' % page
            found.append(trouble(about, text))
    return found


def _of_identity(disk, about):
    found, unique = [], identity(disk)
    if unique is None or unique[0] not in PREFERRED:
        text = (
            'VPD page 83h has no identifier of type NAA, EUI-64 or SCSI name: MPIO and the cluster '
            'validation refuse the disk'
        )
        found.append(trouble(about, text, 'remove "naa = none", or write a naa or eui'))
    if not serial(disk):
        found.append(trouble(about, 'has no serial number (VPD page 80h)', 'write scsi-sn'))
    return found


def _of_capacity(disk, about):
    found, size, logical = [], disk.blocks * disk.block_size, disk.block_size
    if not logical:
        return found
    if logical == 4096:
        text = '4Kn: Windows 7, Server 2008 R2 and older cannot use it'
        found.append(note(about, text, 'write block-size = 512 for a new disk, if they have to'))
    elif logical != 512:
        text = 'blocks of %d bytes: Windows uses disks with 512 or 4096' % logical
        found.append(trouble(about, text, 'write block-size = 512 or 4096, for a new disk'))
    if physical_block_size(disk) > 4096:
        text = 'physical blocks of %d bytes: SQL Server and NTFS accept up to 4096'
        remedy = 'write physical-block-size = 4096'
        found.append(trouble(about, text % physical_block_size(disk), remedy))
    if disk.blocks > MBR_BLOCKS:
        text = '%s: as MBR only the first %s can be used' % (
            shown_size(size),
            shown_size(MBR_BLOCKS * logical),
        )
        found.append(note(about, text, 'choose GPT in "Initialize Disk"'))
    if disk.blocks - 1 > 0xFFFFFFFF and disk.capacity_10[:4] != b'\xff\xff\xff\xff':
        found.append(trouble(about, 'READ CAPACITY(10) hides the true size'))
    if len(disk.capacity_16) > 12 and disk.capacity_16[12] & 1:
        found.append(trouble(about, 'is formatted with protection information'))
    return found


def _of_content(disk, about):
    if len(disk.sectors) < 2:
        return []
    first, second = disk.sectors
    kind = partitions(disk)
    if kind == 'MBR' and disk.blocks > MBR_BLOCKS and first[450] != 0xEE:
        text = 'has a partition table (MBR) that reaches %s of %s only' % (
            shown_size(MBR_BLOCKS * disk.block_size),
            shown_size(disk.blocks * disk.block_size),
        )
        return [trouble(about, text, 'convert it to GPT, which deletes all partitions')]
    other = 4096 if disk.block_size == 512 else 512
    if first[512:520] == b'EFI PART':
        text = 'its GPT was written with blocks of %d bytes: Windows finds no partition' % other
        return [trouble(about, text, 'write block-size = %d' % other)]
    if kind == 'MBR' and first[450] == 0xEE and second[:8] != b'EFI PART':
        text = 'has the protective MBR of a GPT, but no GPT: it was written with other blocks, or is lost'
        return [trouble(about, text, 'write block-size = %d if it was' % other)]
    return []


def _of_provisioning(disk, about):
    found, limits = [], disk.pages.get(0xB0, b'')
    page = disk.pages.get(0xB2, b'')
    if len(page) > 5 and page[5] & 0x80 and not has_trim(disk):
        text = 'supports UNMAP, but VPD page B0h has no limits for it: Windows does not trim'
        found.append(trouble(about, text))
    if is_thin(disk):
        granularity = int.from_bytes(limits[28:32], 'big') * disk.block_size
        if granularity < SMALLEST_SLAB:
            text = (
                'is thin with slabs of %d bytes: the weekly "Optimize Drives" can rewrite much of the '
                'disk' % granularity
            )
            found.append(note(about, text, 'turn slab consolidation off, or write thin = no'))
        found.append(note(about, 'is thin: a full format becomes a quick one'))
    return found


def _of_modes(disk, about):
    found = []
    if is_read_only(disk):
        text = 'is write-protected: Windows shows it as Read-only'
        found.append(note(about, text, 'write readonly = no, if it shall be written'))
    elif len(disk.header) > 2 and not disk.header[2] & 0x10:
        found.append(note(about, 'has no FUA: Windows flushes the whole cache instead'))
    if write_cache(disk) is None:
        found.append(
            trouble(about, 'has no Caching mode page: Windows does not know its write cache')
        )
    elif write_cache(disk):
        text = 'write cache on: what Windows has not flushed is lost if this host loses its power'
        found.append(note(about, text, 'write write-cache = off for databases without flushes'))
    return found


def _of_reservations(disk, about):
    if disk.keys is None or disk.holder is None:
        text = 'PERSISTENT RESERVE IN fails: Windows cannot use the disk in a cluster'
        return [trouble(about, text)]
    if holder(disk):
        text = 'is reserved (%s): Windows shows it as Reserved, or gets errors, on other hosts'
        remedy = (
            'this is right for the disk of a running cluster; else Clear-ClusterDiskReservation'
        )
        return [note(about, text % holder(disk), remedy)]
    return []


def groups(disk):
    """[(portal group tag, access state)] of REPORT TARGET PORT GROUPS."""
    found, data = [], (disk.groups or b'')[4:]
    while len(data) >= 8:
        found.append((int.from_bytes(data[2:4], 'big'), data[0] & 0xF))
        data = data[8 + 4 * data[7] :]
    return found


def _of_paths(disk, about):
    found = []
    if disk.inquiry[5] & 0x30 == 0x20 or disk.inquiry[5] & 0x30 == 0x30:
        text = 'explicit ALUA: MPIO of Windows has moved between paths without end with it'
        found.append(trouble(about, text, 'write alua = implicit'))
    for tag, state in groups(disk):
        if state not in (0, 1):
            text = 'portal group %d is %s: MPIO does not use its paths' % (
                tag,
                ACCESS_STATES.get(state, 'state %Xh' % state),
            )
            found.append(note(about, text, 'see "targetdctl show alua"'))
    return found


def of_clashes(disks):
    """[Finding] about disks that Windows takes for one. disks: Disks, of which each is another one."""
    found, seen = [], {}
    for disk in disks:
        for what, value in (
            ('identifier (VPD page 83h)', identity(disk)),
            ('serial number', serial(disk)),
        ):
            if not value:
                continue
            other = seen.setdefault((what, value), disk)
            if other is not disk:
                text = 'has the %s of %s: Windows takes them for one disk, or stops (BSOD)'
                remedy = 'give it another naa, eui or scsi-sn'
                found.append(trouble(name_of(disk), text % (what, name_of(other)), remedy))
    return found


def of_secret(account, what):
    """[Finding] about the length of a CHAP secret. account: (user, secret) or None."""
    if account is None or 12 <= len(account[1].encode('utf-8')) <= 16:
        return []
    text = 'the %s of user %s has %d characters: Windows accepts 12 to 16 without IPsec (events 35, 36)'
    return [
        trouble(
            'CHAP',
            text % (what, account[0], len(account[1].encode('utf-8'))),
            'write a secret of 12 to 16 characters',
        )
    ]
