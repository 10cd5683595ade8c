"""In the guest: what changes while a load runs, with the seconds since the start of the guest, until
/tmp/enough exists.

timeline.py MAP DISK…

/tmp/longest has the longest time without a complete round of the load, in seconds, since it was removed.
"""

import os
import re
import subprocess
import sys
import time

SECONDS = 0.25  # between two looks
QUIET = 3.0  # a time without a round that is worth a line


def text_of(path):
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return '-'


def states(disks):
    """What the kernel thinks of each path: of the device, and its ALUA state."""
    found = []
    for disk in disks:
        device = '/sys/block/%s/device/' % disk
        found.append(
            '%s %s %s' % (disk, text_of(device + 'state'), text_of(device + 'access_state'))
        )
    return ', '.join(found)


def map_of(name):
    """The path groups of the map in the kernel (A active, E enabled, D disabled), with their paths (A active,
    F failed), and how often each has failed."""
    done = subprocess.run(
        ['dmsetup', 'status', name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    text = done.stdout.decode().strip()
    return re.sub(r'(\d+:\d+ [AF] \d+) \d+ \d+', r'\1', text)  # without what is in flight


def say(text):
    print('%s %s' % (text_of('/proc/uptime').split()[0], text), flush=True)


def main(name, *disks):
    shown, last, since = {}, text_of('/tmp/rounds'), time.monotonic()
    longest = 0.0
    while not os.path.exists('/tmp/enough'):
        found = {'paths': states(disks), 'map': map_of(name)}
        for what in sorted(found):
            if shown.get(what) != found[what]:
                say('%s: %s' % (what, found[what]))
        shown = found
        rounds, now = text_of('/tmp/rounds'), time.monotonic()
        gap = now - since
        if rounds != last:
            if gap > QUIET:
                say('round %s after %.1f s' % (rounds, gap))
            last, since = rounds, now
        if not os.path.exists('/tmp/longest'):
            longest = 0.0
        if gap > longest:
            longest = gap
            with open('/tmp/longest.new', 'w') as file:
                file.write('%.1f\n' % longest)
            os.rename('/tmp/longest.new', '/tmp/longest')
        time.sleep(SECONDS)


main(*sys.argv[1:])
