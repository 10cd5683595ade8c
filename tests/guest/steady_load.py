"""In the guest: writes 64 KiB to a disk, past the page cache, reads them back and compares, until /tmp/enough
exists. /tmp/rounds has the number of rounds; the exit code is 1 if something was wrong.

steady_load.py DISK
"""

import mmap
import os
import sys
import time

SIZE = 65536
PLACES = 64
PAUSE = 0.25  # the guest is emulated: without a pause, nothing else goes on


def main(path):
    descriptor = os.open(path, os.O_RDWR | os.O_DIRECT)
    written, read = mmap.mmap(-1, SIZE), mmap.mmap(-1, SIZE)  # aligned, as O_DIRECT demands
    number, longest, last = 0, 0.0, time.monotonic()
    while not os.path.exists('/tmp/enough'):
        number += 1
        place = number % PLACES * SIZE
        written[:] = (b'%015d\n' % number) * (SIZE // 16)
        assert os.pwritev(descriptor, [written], place) == SIZE
        assert os.preadv(descriptor, [read], place) == SIZE
        assert read[:] == written[:], 'round %d: other data was read' % number
        with open('/tmp/rounds.new', 'w') as file:
            file.write('%d\n' % number)
        os.rename('/tmp/rounds.new', '/tmp/rounds')
        time.sleep(PAUSE)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    print('%d rounds, the longest took %.1f s' % (number, longest))


main(*sys.argv[1:])
