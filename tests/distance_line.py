"""The guest job `distance` with all but the initiator outside of the guest: a TAP device leads from the
guest to a line of lines.py, behind which are targetd, tgtd and plain TCP on this host.

In an emulated guest netem and bbr have too many timers for the emulated clock: plain TCP reaches a quarter
of the line's rate there. Here the sender of what is read is this host's kernel.
"""

import contextlib
import os
import subprocess
import sys

import guest_runs
import lines
from bench.servers import Tgtd
from daemon import Daemon

HERE = os.path.dirname(os.path.abspath(__file__))
NAME = 'iqn.2026-11.com.example:'
PORTS = {'targetd': 3260, 'tgt': 3261, 'plain': 5001}  # those of guest/distance/measure.py
GUEST, GATEWAY = '10.77.2.2', '10.77.2.1'
TAP = 'guest'
MEBIBYTES = 128
DEVICE = (
    '-netdev tap,id=line,ifname=%s,script=no,downscript=no -device virtio-net-pci,netdev=line' % TAP
)
#: Of both sides. {loss: the case of measure.py}
CONTROL = 'bbr'
CASES = {0.01: 'bbr/1%/tuned', 0.0: 'bbr/0%/tuned'}


def run_distance_line(directory, seconds, seed):
    """Returns (figures, complaints), as the other long runs do; nothing is drawn with the seed."""
    reason = lines.why_not()
    if reason:
        return {}, [reason]
    complaints = []
    for loss, case in CASES.items():
        with lines.Line('dist', rtt=0.1, rate=100e6 / 8, loss=loss) as line:
            lead_to_guest(line)
            line.server.within('ip', 'route', 'add', GUEST, 'dev', 'line')
            line.server.within('sysctl', '-q', 'net.ipv4.tcp_congestion_control=' + CONTROL)
            place = os.path.join(directory, case.replace('/', '-'))
            os.mkdir(place)
            with servers(line.server, place):
                complaints += guest_runs.run_job(
                    'distance',
                    place,
                    seconds,
                    ('outside', 'targetd', 'tgt', case),
                    ('--qemu', DEVICE),
                    line.client.name,
                )
    return {}, complaints


def lead_to_guest(line):
    """The namespace of the line's client becomes a router between the line and a TAP device."""
    within = line.client.within
    within('ip', 'tuntap', 'add', 'dev', TAP, 'mode', 'tap', 'vnet_hdr')
    within('ip', 'address', 'add', GATEWAY + '/24', 'dev', TAP)
    within('ip', 'link', 'set', TAP, 'up')
    within('sysctl', '-q', 'net.ipv4.ip_forward=1')


@contextlib.contextmanager
def servers(namespace, directory):
    """targetd, tgtd and plain.py on the line's server address."""
    plain = os.path.join(HERE, 'guest', 'distance', 'plain.py')
    with contextlib.ExitStack() as stack, namespace.entered():
        daemon = Daemon(directory)
        daemon.text.groups.clear()
        daemon.text.portal('%s:%d' % (lines.SERVER, PORTS['targetd']))
        daemon.target(NAME + 'targetd', size=MEBIBYTES << 20)
        daemon.launch()
        stack.callback(daemon.stop)
        daemon.wait_listening((lines.SERVER, PORTS['targetd']))
        image = daemon.image('tgt.img', MEBIBYTES << 20)
        portal = (lines.SERVER, PORTS['tgt'])
        stack.enter_context(Tgtd(directory, image, portal=portal, iqn=NAME + 'tgt'))
        process = subprocess.Popen([sys.executable, plain, lines.SERVER, str(PORTS['plain'])])
        stack.callback(process.wait, 10)
        stack.callback(process.terminate)
        yield
