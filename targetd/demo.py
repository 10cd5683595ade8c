"""`targetd --demo`: a disk to play with, from nothing, without root: one sparse file, one target, one portal.

The front door: may import config, host and master.
"""

import os
import sys
import tempfile

from targetd.config import loader, network_kinds, words
from targetd.errors import EXIT_OK, EXIT_USAGE, TargetdError

ADDRESS = '127.0.0.1'
PORT = 3260
TARGET_NAME = 'iqn.2026-11.com.example:demo'
SIZE = '1G'

CONFIGURATION = '''\
[server]
pid-file = targetd.pid
control-socket = targetd.sock
state-dir = state
log = stderr

[portal-group 1]
portal = {portal}

[target {name}]
alias = "targetd's demo disk"
initiator-address = ALL
[[lun 0]]
backing-store = disk.img
size = {size}
thin = yes
'''

SPEECH = '''\
targetd serves a disk of 1 GiB, as thin as what is written to it, until Ctrl-C:

    target   {name}, LUN 0
    portal   {portal}{moved}
    file     {directory}/disk.img
    control  targetdctl -s {directory}/targetd.sock

See it from here (Debian: libiscsi-bin):
    iscsi-ls -s iscsi://{portal}

Use it on Linux, as root (Debian: open-iscsi):
    iscsiadm -m discovery -t sendtargets -p {portal}
    iscsiadm -m node -T {name} -p {portal} --login
    lsblk --scsi
    iscsiadm -m node -T {name} -p {portal} --logout

Use it on Windows, in a PowerShell of an administrator{elsewhere}:
    Start-Service MSiSCSI
    New-IscsiTargetPortal -TargetPortalAddress {address} -TargetPortalPortNumber {port}
    Connect-IscsiTarget -NodeAddress {name}
    Get-Disk | Where-Object BusType -eq iSCSI
'''

ELSEWHERE = ''' (127.0.0.1 is this machine only:
for others, start targetd --demo ADDRESS with an address of this machine that they reach)'''


def write_configuration(directory, address, port):
    """Write DIRECTORY/targetd.conf for this portal; returns its path."""
    path = os.path.join(directory, 'targetd.conf')
    with open(path, 'w', encoding='utf-8') as f:
        portal = words.join_word(network_kinds.Portal().write((address, port)))
        f.write(CONFIGURATION.format(portal=portal, name=TARGET_NAME, size=SIZE))
    os.mkdir(os.path.join(directory, 'state'))
    return path


def speech(directory, address, port):
    """What the demo says: what it serves and the exact lines to reach it."""
    moved = '' if port == PORT else '   (port %d is taken, so this one was chosen)' % PORT
    loopback = address.startswith('127.') or address == '::1'
    return SPEECH.format(
        name=TARGET_NAME,
        portal=network_kinds.Portal().write((address, port)),
        moved=moved,
        directory=directory,
        elsewhere=ELSEWHERE if loopback else '',
        address=address,
        port=port,
    )


def run(address):
    """Serve until Ctrl-C or SIGTERM; returns the exit code. Raises TargetdError."""
    from targetd.master import daemon
    from targetd.master.logins import portals as listen

    try:
        address, _ = network_kinds.Portal().parse('[%s]' % address if ':' in address else address)
    except words.Unusable as e:
        sys.stderr.write('targetd: --demo: %s\n' % e)
        return EXIT_USAGE
    port = listen.free_port(address, PORT)
    directory = tempfile.mkdtemp(prefix='targetd-demo-')
    path = write_configuration(directory, address, port)
    configuration = loader.load(path)
    sys.stdout.write(speech(directory, _reached(listen, address), port) + '\n')
    sys.stdout.flush()
    try:
        result = daemon.run(path, configuration, True)
    except KeyboardInterrupt:
        result = EXIT_OK
    except TargetdError:
        _say_where(directory)
        raise
    _say_where(directory)
    return result


def _reached(listen, address):
    """An address that others can use: the wildcards stand for this host's own."""
    if not listen.is_wildcard(address):
        return address
    own = [
        a
        for a in listen.own_addresses(listen.family_of(address))
        if not a.startswith(('127.', 'fe80:')) and a != '::1'
    ]
    return own[0] if own else '::1' if ':' in address else ADDRESS


def _say_where(directory):
    sys.stdout.write(
        '\nThe disk is still there: %s/disk.img\nTo remove all of it: rm -r %s\n'
        % (directory, directory)
    )
    sys.stdout.flush()
