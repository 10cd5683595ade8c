"""In the guest: an initiator that reserves a LUN and writes until it is killed, and what it finds after that.

booting.py TARGET write     prints "writing", and writes blocks that contain their number
booting.py TARGET verify    logs in with the same name and ISID, prints how long that took, and reads: each
                            command was executed completely or not at all; then it writes again
"""

import sys
import time

sys.path.insert(0, '/src/tests')

from initiator import Session  # noqa: E402

ADDRESS = ('10.2.0.2', 3260)
RESERVE_6 = b'\x16' + bytes(5)
BLOCKS, COUNT = 16, 64  # blocks of a command, and its places


def main(target, what):
    began = time.monotonic()
    session = Session(ADDRESS, 'iqn.2026-11.com.example:booting', timeout=60.0).login(target)
    print('TIME login: %.1f s after the start of the program' % (time.monotonic() - began))
    session.clear_attentions()
    if what == 'verify':
        found = [session.read(place * BLOCKS, BLOCKS) for place in range(COUNT)]
        for data in found:
            assert data == data[:16] * (BLOCKS * 512 // 16), 'a command was half executed'
        assert sum(data[:16] != bytes(16) for data in found) > 4, 'nothing was written before'
    session.run(RESERVE_6).good()
    number = 0
    while what == 'write' or number < 4:
        number += 1
        session.write(number % COUNT * BLOCKS, b'%015d\n' % number * (BLOCKS * 512 // 16))
        if number == 8:
            print('writing', flush=True)
    print('TIME the first writes: %.1f s' % (time.monotonic() - began))
    session.logout()


main(*sys.argv[1:])
