"""In the guest: an initiator that reserves a unit and disappears, and another one that waits for the
unit.

vanish.py reserve     logs in from 127.0.0.2, reserves LUN 0, prints that, and waits to be killed
vanish.py wait        logs in from 127.0.0.1, gets RESERVATION CONFLICT, prints that, and when the reservation
                      has ended
"""

import sys
import time

sys.path.insert(0, '/src/tests')

from initiator import GOOD, RESERVATION_CONFLICT, Session  # noqa: E402

TARGET = 'iqn.2026-11.com.example:vanish'
RESERVE_6, TEST_UNIT_READY = b'\x16' + bytes(5), bytes(6)
SECONDS = 180


def main(what):
    source = {'reserve': '127.0.0.2', 'wait': '127.0.0.1'}[what]
    session = Session(('127.0.0.1', 3260), 'iqn.2026-11.com.example:' + what, source=source).login(
        TARGET
    )
    if what == 'reserve':
        session.clear_attentions()
        session.run(RESERVE_6).good()
        print('reserved', flush=True)
        for _ in range(1200):  # the session answers pings only while a command runs
            time.sleep(0.5)
            session.run(TEST_UNIT_READY).good()
    session.run(TEST_UNIT_READY)  # meets the unit attention
    began = time.monotonic()
    status = session.run(TEST_UNIT_READY).status
    assert status == RESERVATION_CONFLICT, status
    print('the unit is reserved', flush=True)
    while status != GOOD:
        assert time.monotonic() < began + SECONDS, 'still reserved'
        time.sleep(0.2)
        result = session.run(TEST_UNIT_READY)
        status = result.status
    print('free after %.1f s' % (time.monotonic() - began))
    session.logout()


main(*sys.argv[1:])
