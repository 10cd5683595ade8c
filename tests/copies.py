"""Commands of third-party copies, for tests: EXTENDED COPY and offloaded copies with tokens (ODX)."""

import struct


def extended_copy(source, destination, blocks=64, lba=0, to=100):
    """(CDB, parameter list) of EXTENDED COPY(LID1); source, destination: NAA identifiers."""
    ends = b''.join(
        struct.pack('>BBxxBBxB16s4xI', 0xE4, 0, 1, 3, 16, naa, 512) for naa in (source, destination)
    )
    segment = struct.pack('>BBHHHxxHQQ', 0x02, 0, 0x18, 0, 1, blocks, lba, to)
    body = struct.pack('>BBH4xII', 1, 0, len(ends), len(segment), 0) + ends + segment
    return struct.pack('>BB8xIxx', 0x83, 0, len(body)), body


def populate(session, ranges, name=1, lun=0, timeout=0):
    body = b''.join(struct.pack('>QI4x', lba, blocks) for lba, blocks in ranges)
    data = struct.pack('>HBxII2xH', 14 + len(body), 0, timeout, 0, len(body)) + body
    result = session.run(struct.pack('>BB4xIIBB', 0x83, 0x10, name, len(data), 0, 0), lun, out=data)
    return result


def information(session, name, lun=0):
    result = session.run(struct.pack('>BBI4xIBB', 0x84, 0x07, name, 1024, 0, 0), lun, read=1024)
    assert result.status == 0
    return result.data


def token_of(session, name=1, lun=0):
    reported = information(session, name, lun)
    assert reported[4:6] == b'\x10\x01'
    at = 32 + reported[13]
    assert struct.unpack_from('>I', reported, at)[0] == 514
    return reported[at + 6 : at + 518]


def write_using(session, token, ranges, name=2, lun=0, offset=0, flags=0):
    body = b''.join(struct.pack('>QI4x', lba, blocks) for lba, blocks in ranges)
    data = (
        struct.pack('>HB5xQ', 534 + len(body), flags, offset)
        + token
        + struct.pack('>6xH', len(body))
        + body
    )
    return session.run(struct.pack('>BB4xIIBB', 0x83, 0x11, name, len(data), 0, 0), lun, out=data)
