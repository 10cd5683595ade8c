"""The commands of an optical drive (MMC-6) whose medium is an image of a CD-ROM or DVD-ROM: one session
with one data track that begins at block 0. Pure.

Admission functions work as described in spc. mmc_opcodes.py has the commands.
"""

import struct
from typing import TYPE_CHECKING, List, Tuple

from targetd.scsi import sbc, sense
from targetd.scsi.attention import MEDIUM_REMOVAL_REQUESTED
from targetd.scsi.cdb import u16, u32
from targetd.scsi.medium_state import EJECTED, is_ready
from targetd.scsi.sense import ILLEGAL_REQUEST, CheckCondition
from targetd.scsi.spc import answer

if TYPE_CHECKING:
    from targetd.scsi.lu import LogicalUnit
    from targetd.scsi.sam import Task

CD_ROM, DVD_ROM, NO_PROFILE = 0x0008, 0x0010, 0x0000  # MMC-6
LONGEST_CD = 449849  # blocks before the lead-out at 99:59:74
LEAD_IN = 150  # blocks from time 00:00:00 to block 0
FRAMES, SECONDS = 75, 60  # blocks in a second, seconds in a minute
DATA_TRACK = 0x14  # ADR 1, CONTROL: data, recorded uninterrupted
LEAD_OUT = 0xAA
DVD_START = 0x030000  # physical sector of block 0


def _profile(unit: 'LogicalUnit') -> int:
    """The profile of the medium, NO_PROFILE if there is none."""
    if not is_ready(unit.medium):
        return NO_PROFILE
    return CD_ROM if unit.blocks <= LONGEST_CD else DVD_ROM


def _address(lba: int, msf: bool) -> bytes:
    """An address in four bytes: a block, or minute, second and frame (MMC-6)."""
    return bytes(1) + _time(lba) if msf else struct.pack('>I', lba)


def _time(lba: int) -> bytes:
    """Minute, second and frame of a block. A DVD can be longer than 99:59:74, the last one there is."""
    frames = min(lba, LONGEST_CD) + LEAD_IN
    return bytes((frames // (SECONDS * FRAMES), frames // FRAMES % SECONDS, frames % FRAMES))


def _block_of(time: bytes) -> int:
    """The block at a minute, second and frame; negative within the lead-in."""
    return (time[0] * SECONDS + time[1]) * FRAMES + time[2] - LEAD_IN


# -- what is on the disc -------------------------------------------------------------------------------


def read_toc(unit: 'LogicalUnit', task: 'Task') -> None:
    """READ TOC/PMA/ATIP, MMC-6: the tracks, the session, or the full table of contents. Old hosts
    write the format into the last byte, as SFF-8020 had it."""
    cdb = task.cdb
    msf, form = bool(cdb[1] & 0x02), cdb[2] & 0x0F or cdb[9] >> 6
    if form == 0:
        data = _tracks(unit, cdb[6], msf)
    elif form == 1:  # the first track of the last session
        data = bytes((1, 1)) + struct.pack('>xBBx', DATA_TRACK, 1) + _address(0, msf)
    elif form == 2 and cdb[6] <= 1:
        data = _full_toc(unit)
    else:
        raise sense.invalid_field_in_cdb(2 if form > 2 else 6)
    answer(task, struct.pack('>H', len(data)) + data, u16(cdb, 7))


def _tracks(unit: 'LogicalUnit', first: int, msf: bool) -> bytes:
    if first > 1 and first != LEAD_OUT:
        raise sense.invalid_field_in_cdb(6)
    tracks = [(LEAD_OUT, unit.blocks)] if first == LEAD_OUT else [(1, 0), (LEAD_OUT, unit.blocks)]
    return bytes((1, 1)) + b''.join(
        struct.pack('>xBBx', DATA_TRACK, number) + _address(lba, msf) for number, lba in tracks
    )


def _full_toc(unit: 'LogicalUnit') -> bytes:
    """The first track, the last track, the lead-out and track 1 (MMC-6)."""
    points: List[Tuple[int, bytes]] = [
        (0xA0, bytes((1, 0, 0))),
        (0xA1, bytes((1, 0, 0))),
        (0xA2, _time(unit.blocks)),
        (0x01, _time(0)),
    ]
    return bytes((1, 1)) + b''.join(
        struct.pack('>BBBB4x', 1, DATA_TRACK, 0, point) + time for point, time in points
    )


def read_disc_information(unit: 'LogicalUnit', task: 'Task') -> None:
    """READ DISC INFORMATION, MMC-6: finalized, one complete session, one track."""
    if task.cdb[1] & 7:
        raise sense.invalid_field_in_cdb(1, 2)
    data = struct.pack('>H6B', 32, 0x0E, 1, 1, 1, 1, 0x20).ljust(16, b'\0')
    answer(task, data + b'\xff' * 8 + bytes(10), u16(task.cdb, 7))


def read_track_information(unit: 'LogicalUnit', task: 'Task') -> None:
    """READ TRACK INFORMATION, MMC-6, by block, track or session: there is one track."""
    kind, number = task.cdb[1] & 3, u32(task.cdb, 2)
    if kind == 0 and number >= unit.blocks:
        raise sense.lba_out_of_range()
    if kind == 3 or kind and number != 1:
        raise sense.invalid_field_in_cdb(2)
    data = struct.pack('>H6B', 46, 1, 1, 0, 0x04, 0x01, 0x00)
    data += struct.pack('>IIIIII', 0, 0, 0, 0, unit.blocks, max(0, unit.blocks - 1))
    answer(task, data.ljust(48, b'\0'), u16(task.cdb, 7))


def read_disc_structure(unit: 'LogicalUnit', task: 'Task') -> None:
    """READ DISC STRUCTURE, MMC-6, of a DVD-ROM: the physical format, the copyright (none), and the
    list of both."""
    if _profile(unit) != DVD_ROM or task.cdb[1] & 0x0F:
        raise CheckCondition(ILLEGAL_REQUEST, 0x30, 0x02)  # no such structure on this medium
    form = task.cdb[7]
    if form == 0x00:  # part version 1, 120 mm, no maximum rate, one embossed layer
        data = struct.pack('>BBBB', 0x01, 0x0F, 0x01, 0x00)
        data += struct.pack('>III', DVD_START, DVD_START + unit.blocks - 1, 0)
        data = data.ljust(2048, b'\0')
    elif form == 0x01:
        data = bytes(4)
    elif form == 0xFF:
        data = b''.join(
            struct.pack('>BBH', code, 0x40, length + 4) for code, length in ((0, 2048), (1, 4))
        )
    else:
        raise sense.invalid_field_in_cdb(7)
    answer(task, struct.pack('>Hxx', len(data) + 2) + data, u16(task.cdb, 8))


def read_format_capacities(unit: 'LogicalUnit', task: 'Task') -> None:
    """READ FORMAT CAPACITIES, MMC-6: the formatted capacity, or that there is no medium."""
    is_loaded = is_ready(unit.medium)
    descriptor = struct.pack(
        '>II', unit.blocks if is_loaded else 0, (2 if is_loaded else 3) << 24 | unit.block_size
    )
    answer(task, struct.pack('>3xB', len(descriptor)) + descriptor, u16(task.cdb, 7))


# -- the drive -----------------------------------------------------------------------------------------


def get_configuration(unit: 'LogicalUnit', task: 'Task') -> None:
    """GET CONFIGURATION, MMC-6: the features, all or the current ones, from a number on, or one."""
    requested, start = task.cdb[1] & 3, u16(task.cdb, 2)
    if requested == 3:
        raise sense.invalid_field_in_cdb(1, 1)
    profile = _profile(unit)
    features = b''
    for number, flags, content in _features(profile):
        if number == start if requested == 2 else number >= start:
            if requested != 1 or flags & 0x01:
                features += struct.pack('>HBB', number, flags, len(content)) + content
    answer(task, struct.pack('>IxxH', 4 + len(features), profile) + features, u16(task.cdb, 7))


def _features(profile: int) -> List[Tuple[int, int, bytes]]:
    """(number, VERSION, PERSISTENT and CURRENT, content) of each feature, MMC-6."""
    has_medium, is_cd, is_dvd = profile != NO_PROFILE, profile == CD_ROM, profile == DVD_ROM
    profiles = struct.pack('>HBxHBx', DVD_ROM, is_dvd, CD_ROM, is_cd)
    blocking = 1 if is_cd else 16
    return [
        (0x0000, 0x03, profiles),
        (0x0001, 0x0B, struct.pack('>IB3x', 1, 0x01)),  # core: SCSI family, device busy events
        (0x0002, 0x07, bytes((0x02, 0, 0, 0))),  # morphing: operational change events
        (0x0003, 0x07, bytes((0x39, 0, 0, 0))),  # removable medium: tray, LOAD, EJECT, LOCK
        (0x0010, int(has_medium), struct.pack('>IHBx', 2048, blocking, 0)),  # random readable
        (0x001E, 0x08 | is_cd, bytes(4)),  # CD read
        (0x001F, 0x04 | is_dvd, bytes(4)),  # DVD read
        (0x0100, 0x03, b''),  # power management
        (0x0105, 0x07, bytes(4)),  # timeout
    ]


#: Notification classes of GET EVENT STATUS NOTIFICATION (MMC-6)
OPERATIONAL_CHANGE, POWER, MEDIA, DEVICE_BUSY = 1, 2, 4, 6
CLASSES = 1 << OPERATIONAL_CHANGE | 1 << POWER | 1 << MEDIA | 1 << DEVICE_BUSY
EJECT_REQUEST, NEW_MEDIA, MEDIA_REMOVAL = 1, 2, 3
NO_EVENT_AVAILABLE = 0x80
ACTIVE = 1  # power status


def get_event_status(unit: 'LogicalUnit', task: 'Task') -> None:
    """GET EVENT STATUS NOTIFICATION, MMC-6, polled: of the requested classes the one with an event,
    else the lowest. This nexus gets an event of the medium once: that it is new, or was removed."""
    if not task.cdb[1] & 1:
        raise sense.invalid_field_in_cdb(1, 0)
    task.run = _run_get_event_status


def _run_get_event_status(task: 'Task') -> bytes:
    """When the command runs, and not at its admission: the event is then reported."""
    unit, asked = task.unit, task.cdb[4] & CLASSES
    if not asked:
        data = struct.pack('>HBB', 2, NO_EVENT_AVAILABLE, CLASSES)
        return data[: u16(task.cdb, 7)]
    is_loaded = unit.medium != EJECTED
    code = _medium_event(unit, is_loaded) if asked >> MEDIA & 1 else 0
    chosen = MEDIA if code else min(number for number in range(8) if asked >> number & 1)
    event = bytes(4)
    if chosen == MEDIA:  # the medium is present, or the tray is open
        event = bytes((code, 0x02 if is_loaded else 0x01, 0, 0))
    elif chosen == POWER:
        event = bytes((0, ACTIVE, 0, 0))
    return (struct.pack('>HBB', 6, chosen, CLASSES) + event)[: u16(task.cdb, 7)]


def _medium_event(unit: 'LogicalUnit', is_loaded: bool) -> int:
    """The event of the medium that this nexus has not been told yet, 0 if there is none. An eject request
    is a unit attention too, for hosts that do not ask for events."""
    if unit.reported_medium != is_loaded:
        unit.reported_medium = is_loaded
        return NEW_MEDIA if is_loaded else MEDIA_REMOVAL
    if MEDIUM_REMOVAL_REQUESTED in unit.attention:
        unit.drop_attention(*MEDIUM_REMOVAL_REQUESTED)
        return EJECT_REQUEST
    return 0


def mechanism_status(unit: 'LogicalUnit', task: 'Task') -> None:
    """MECHANISM STATUS, MMC-6: is the tray open? There are no slots."""
    answer(task, bytes((0, 0x10 if unit.medium == EJECTED else 0)) + bytes(6), u16(task.cdb, 8))


def set_cd_speed(unit: 'LogicalUnit', task: 'Task') -> None:
    """SET CD SPEED, MMC-6: an image has no speed."""
    task.run = sbc.good


def seek(unit: 'LogicalUnit', task: 'Task') -> None:
    """SEEK(10), MMC-6."""
    if u32(task.cdb, 2) >= unit.blocks:
        raise sense.lba_out_of_range()
    task.run = sbc.good


def read_sub_channel(unit: 'LogicalUnit', task: 'Task') -> None:
    """READ SUB-CHANNEL, MMC-6: no audio is played; the position is that of the beginning."""
    msf, wants_data, form = bool(task.cdb[1] & 0x02), task.cdb[2] & 0x40, task.cdb[3]
    data = b''
    if wants_data:
        if form == 0x01:
            data = struct.pack('>4B', form, DATA_TRACK, 1, 1) + 2 * _address(0, msf)
        elif form in (0x02, 0x03):  # media catalogue number, ISRC: none
            data = bytes((form,)).ljust(20, b'\0')
        else:
            raise sense.invalid_field_in_cdb(3)
    answer(task, struct.pack('>xBH', 0x15, len(data)) + data, u16(task.cdb, 7))


# -- READ CD -------------------------------------------------------------------------------------------

ANY_TYPE, MODE_1 = 0, 2  # EXPECTED SECTOR TYPE
USER_DATA = 0x10  # MAIN CHANNEL SELECTION, the bits for sync, header, user data and EDC


def read_cd(unit: 'LogicalUnit', task: 'Task') -> None:
    """READ CD, MMC-6, of the user data of mode 1 sectors."""
    blocks = int.from_bytes(task.cdb[6:9], 'big')
    _read_user_data(unit, task, u32(task.cdb, 2), blocks)


def read_cd_msf(unit: 'LogicalUnit', task: 'Task') -> None:
    """READ CD MSF, MMC-6: the end is not read."""
    first, end = _block_of(task.cdb[3:6]), _block_of(task.cdb[6:9])
    if first < 0 or end < first:
        raise sense.invalid_field_in_cdb(3)
    _read_user_data(unit, task, first, end - first)


def _read_user_data(unit: 'LogicalUnit', task: 'Task', lba: int, blocks: int) -> None:
    if task.cdb[1] >> 2 & 7 not in (ANY_TYPE, MODE_1):
        raise CheckCondition(ILLEGAL_REQUEST, 0x64, 0x00)  # illegal mode for this track
    if task.cdb[9] & 0xF8 not in (0, USER_DATA):
        raise sense.invalid_field_in_cdb(9, 7)
    if task.cdb[9] & 0x06 or task.cdb[10] & 7:
        raise sense.invalid_field_in_cdb(9 if task.cdb[9] & 0x06 else 10)
    sbc.set_range(unit, task, lba, blocks, unit.maximum_blocks)
    if blocks and task.cdb[9] & USER_DATA:
        task.run, task.run_blocking = sbc.run_read, sbc.run_read_blocking
    else:
        task.run = sbc.good
