"""In the guest: writes 64 KiB to a disk, past the page cache, reads them back and compares, until /tmp/enough
exists. At the end everything that was written is read once more. /tmp/rounds has the number of rounds; the
exit code is 1 if something was wrong.

steady_load.py DISK [MEDIUM]

With MEDIUM, the disk of the target, a write counts when it is durable, and the last reads are from there.
"""

import mmap
import os
import sys
import time

SIZE = 65536
PLACES = 64
PAUSE = 0.25  # the guest is emulated: without a pause, nothing else goes on


def content(number):
    return (b'%015d\n' % number) * (SIZE // 16)


def verify(path, last, buffer):
    """last: {place: number of the round that wrote it last}."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    for place, number in last.items():
        assert os.preadv(descriptor, [buffer], place) == SIZE
        assert buffer[:] == content(number), 'byte %d is not of round %d' % (place, number)


def main(path, medium=None):
    flags = os.O_RDWR | os.O_DIRECT | (os.O_DSYNC if medium else 0)
    descriptor, last_rounds = os.open(path, flags), {}
    written, read = mmap.mmap(-1, SIZE), mmap.mmap(-1, SIZE)  # aligned, as O_DIRECT demands
    number, longest, last = 0, 0.0, time.monotonic()
    while not os.path.exists('/tmp/enough'):
        number += 1
        place = number % PLACES * SIZE
        written[:] = content(number)
        assert os.pwritev(descriptor, [written], place) == SIZE
        assert os.preadv(descriptor, [read], place) == SIZE
        assert read[:] == written[:], 'round %d: other data was read' % number
        last_rounds[place] = number
        with open('/tmp/rounds.new', 'w') as file:
            file.write('%d\n' % number)
        os.rename('/tmp/rounds.new', '/tmp/rounds')
        time.sleep(PAUSE)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    verify(path, last_rounds, read)
    if medium:
        verify(medium, last_rounds, read)
    print('%d rounds, the longest took %.1f s' % (number, longest))


main(*sys.argv[1:])
