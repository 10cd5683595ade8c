"""CRC32C, the digest of iSCSI (RFC 7143 13.1; RFC 3720 B.4 has examples), computed by a C extension,
the kernel, or tables.

Base: any module may import it. `crc32c` is the function, NAME its implementation, IS_FAST is True if
the implementation is not the tables.

The method with tables is ten times faster than a loop over the bytes. The CRC is linear, so
a message of w words of 32 bits has the same CRC as one of h < w words, h a power of two, in which
the first w - h words, each advanced over 4 * h bytes of zeroes, are XORed onto the words h places
later. Advancing a word is a linear map, thus four look-ups, one per byte; bytes.translate does such
a look-up for one byte of *all* words at once, and integers of any length do the XOR. Some log2(w)
rounds of about thirty calls leave a few words for the loop, whatever the length.
"""

from targetd.kernel_crc32c import KernelDigest

_POLYNOMIAL = 0x82F63B78  # Castagnoli, bits reversed: the wire's bit order
_SHORT = 384  # bytes below which the plain loop is faster
_FEW = 32  # words below which the loop is faster than another round


def _byte_table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE = _byte_table()
_maps = []  # [k]: the 4 x 4 translation tables that advance a word over 4 * 2**k bytes of zeroes
_columns = []  # [k]: the same map as the images of the 32 single bits


def _apply(columns, word):
    result = 0
    for column in columns:
        if not word:
            break
        if word & 1:
            result ^= column
        word >>= 1
    return result


def _advance_four_bytes(word):
    for _ in range(4):
        word = _TABLE[word & 0xFF] ^ (word >> 8)
    return word


def _map(power):
    """Return the tables [from byte][to byte], 256 bytes each, that advance over 2**power words."""
    while len(_maps) <= power:
        if _columns:
            last = _columns[-1]
            columns = [_apply(last, column) for column in last]
        else:
            columns = [_advance_four_bytes(1 << bit) for bit in range(32)]
        tables = []
        for source in range(4):
            images = [0] * 256
            for value in range(1, 256):
                low = value & -value
                images[value] = images[value ^ low] ^ columns[8 * source + low.bit_length() - 1]
            tables.append(
                tuple(bytes(image >> shift & 0xFF for image in images) for shift in (0, 8, 16, 24))
            )
        _columns.append(columns)
        _maps.append(tuple(tables))
    return _maps[power]


def _loop(data, register):
    table = _TABLE
    for byte in data:
        register = table[(register ^ byte) & 0xFF] ^ (register >> 8)
    return register


def _python_crc32c(data, value=0):
    """Return the CRC32C of `data` (bytes-like); `value` is the CRC of the bytes before it."""
    register = value ^ 0xFFFFFFFF
    data = bytes(data)
    if len(data) < _SHORT:
        return _loop(data, register) ^ 0xFFFFFFFF
    extra = len(data) % 4
    register = _loop(data[:extra], register)
    # planes[0] has the lowest byte of every word, planes[1] the next byte, and so on
    planes = [data[extra + place :: 4] for place in range(4)]
    planes = [
        bytes([plane[0] ^ (register >> 8 * place & 0xFF)]) + plane[1:]
        for place, plane in enumerate(planes)
    ]
    words = len(planes[0])
    while words > _FEW:
        power = (words - 1).bit_length() - 1
        planes, words = _fold(planes, words, power), 1 << power
    rest = bytearray(4 * words)
    for place, plane in enumerate(planes):
        rest[place::4] = plane
    return _loop(rest, 0) ^ 0xFFFFFFFF


def _fold(planes, words, power):
    """Return the planes of 2**power words that have the same CRC as these planes."""
    kept = 1 << power
    moved = words - kept
    total = int.from_bytes(b''.join([plane[moved:] for plane in planes]), 'little')
    # nothing is XORed onto the first kept words if fewer words are moved than kept
    gap = bytes(kept - moved)
    for plane, tables in zip(planes, _map(power)):
        first = plane[:moved]
        total ^= int.from_bytes(
            b''.join([part for table in tables for part in (gap, first.translate(table))]), 'little'
        )
    joined = total.to_bytes(4 * kept, 'little')
    return [joined[place * kept : (place + 1) * kept] for place in range(4)]


def _choose():
    """Return (function, its name, True if it is fast)."""
    try:
        from crc32c import crc32c as function

        return function, 'crc32c', True
    except (ImportError, AttributeError):
        pass
    try:
        import google_crc32c

        if google_crc32c.implementation == 'c':
            extend = google_crc32c.extend
            return (lambda data, value=0: extend(value, bytes(data))), 'google-crc32c', True
    except (ImportError, AttributeError):
        pass
    kernel = KernelDigest(_python_crc32c)
    if kernel.is_right():
        return kernel.crc32c, 'kernel', True
    return _python_crc32c, 'python', False


crc32c, NAME, IS_FAST = _choose()
