"""`targetd --demo`: serves one sparse file as one target on one portal, without configuration and root.

Entry point: may import config, host and master.
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

INSTRUCTIONS = '''\
targetd serves a sparse disk of 1 GiB until Ctrl-C:

    target   {name}, LUN 0
    portal   {portal}{moved}
    file     {directory}/disk.img
    control  targetdctl -s {directory}/targetd.sock

List it from this host (Debian: libiscsi-bin):
    iscsi-ls -s iscsi://{portal}

Use it on Linux, as root (Debian: open-iscsi):
    iscsiadm -m discovery -t sendtargets -p {portal}
    iscsiadm -m node -T {name} -p {portal} --login
    lsblk --scsi
    iscsiadm -m node -T {name} -p {portal} --logout

Use it on Windows, in a PowerShell of an administrator{loopback_hint}:
    Start-Service MSiSCSI
    New-IscsiTargetPortal -TargetPortalAddress {address} -TargetPortalPortNumber {port}
    Connect-IscsiTarget -NodeAddress {name}
    Get-Disk | Where-Object BusType -eq iSCSI
'''

LOOPBACK_HINT = ''' (127.0.0.1 is reachable from this machine only:
for other hosts, start targetd --demo ADDRESS with an address of this machine)'''


def write_configuration(directory, address, port):
    """Write DIRECTORY/targetd.conf for this portal; returns its path."""
    path = os.path.join(directory, 'targetd.conf')
    with open(path, 'w', encoding='utf-8') as f:
        portal = words.join_word(network_kinds.Portal().write((address, port)))
        f.write(CONFIGURATION.format(portal=portal, name=TARGET_NAME, size=SIZE))
    os.mkdir(os.path.join(directory, 'state'))
    return path


def instructions(directory, address, port):
    """The text that the demo prints: what it serves, and the exact commands to connect to it."""
    moved = '' if port == PORT else '   (port %d is in use, so this one was chosen)' % PORT
    loopback = address.startswith('127.') or address == '::1'
    return INSTRUCTIONS.format(
        name=TARGET_NAME,
        portal=network_kinds.Portal().write((address, port)),
        moved=moved,
        directory=directory,
        loopback_hint=LOOPBACK_HINT if loopback else '',
        address=address,
        port=port,
    )


def run_demo(address):
    """Serve until Ctrl-C or SIGTERM; returns the exit code. Raises TargetdError."""
    from targetd.master import daemon
    from targetd.master.logins import portals

    try:
        address, _ = network_kinds.Portal().parse('[%s]' % address if ':' in address else address)
    except words.Unusable as e:
        sys.stderr.write('targetd: --demo: %s\n' % e)
        return EXIT_USAGE
    port = portals.free_port(address, PORT)
    directory = tempfile.mkdtemp(prefix='targetd-demo-')
    path = write_configuration(directory, address, port)
    configuration = loader.load(path)
    sys.stdout.write(instructions(directory, _reachable(portals, address), port) + '\n')
    sys.stdout.flush()
    try:
        result = daemon.run(path, configuration, True)
    except KeyboardInterrupt:
        result = EXIT_OK
    except TargetdError:
        _print_directory(directory)
        raise
    _print_directory(directory)
    return result


def _reachable(portals, address):
    """The address that initiators can connect to: for a wildcard, an address of this host."""
    if not portals.is_wildcard(address):
        return address
    own = [
        a
        for a in portals.own_addresses(portals.family_of(address))
        if not a.startswith(('127.', 'fe80:')) and a != '::1'
    ]
    return own[0] if own else '::1' if ':' in address else ADDRESS


def _print_directory(directory):
    sys.stdout.write(
        '\nThe file of the disk was not removed: %s/disk.img\nTo remove all files: rm -r %s\n'
        % (directory, directory)
    )
    sys.stdout.flush()
