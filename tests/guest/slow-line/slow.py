"""In the guest: how long a ping takes on a line of 1 Mbit/s (netem) that reads of 1 MiB saturate; and at the
moment at which a line of 20 Mbit/s becomes one of 1 Mbit/s.

slow.py TARGET KEY=VALUE ...    keys of the login
"""

import subprocess
import sys
import time

sys.path.insert(0, '/src/tests')

from initiator import Session  # noqa: E402
from saturation import LONGEST_PING, Saturated  # noqa: E402

ADDRESS = ('10.2.0.2', 3260)
KEYS = {'MaxRecvDataSegmentLength': '262144', 'MaxBurstLength': '1048576'}
DEPTH = 8
#: The queues are some 400 ms long, as those of a modem: what is in them nobody can overtake.
SLOW = ('rate', '1mbit', 'limit', '36')
QUICK = ('rate', '20mbit', 'limit', '700')


def shape(words):
    for device in ('client', 'server'):
        subprocess.check_call(
            ['nsenter', '--net=/run/netns/router', '--', 'tc', 'qdisc', 'replace', 'dev', device]
            + ['root', 'netem', 'delay', '15ms']
            + list(words)
        )


def steady(saturated):
    saturated.pass_data(640 << 10)  # the target has seen by now what the line carries
    pings = []
    for _ in range(4):
        pings.append(saturated.ping())
        saturated.pass_data(32 << 10)
    return pings


def turning(saturated):
    """The round trips of pings from the moment at which the line becomes slow."""
    end = time.monotonic() + 6
    while time.monotonic() < end:
        saturated.session.step()
        if sum(command.result is None for command in saturated.commands) < DEPTH:
            saturated.begin()
    shape(SLOW)
    return [saturated.ping(), saturated.ping()]


def measured(target, keys, line, function):
    shape(line)
    with Session(ADDRESS, timeout=120.0) as session:
        session.login(target, dict(KEYS, **keys))
        session.clear_attentions()
        return function(Saturated(session, DEPTH))


def main(target, *words):
    keys = dict(word.split('=') for word in words)
    pings = measured(target, keys, SLOW, steady)
    after = measured(target, keys, QUICK, turning)
    print(
        '%-22s seconds of a ping: %s; when the line becomes slow: %s'
        % (
            ' '.join(words) or 'as shipped',
            ' '.join('%.2f' % each for each in pings),
            ' '.join('%.1f' % each for each in after),
        ),
        flush=True,
    )
    return int(max(pings) >= LONGEST_PING)


sys.exit(main(*sys.argv[1:]))
