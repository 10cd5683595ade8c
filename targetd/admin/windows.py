"""What a Windows user sees when a login is refused: the words of the iSCSI Initiator for each login
status.

Pure; imports nothing. The initiator's result codes run in the order of RFC 7143 11.13.5; its event
log has iScsiPrt event 10 with the login response in the dump data, and 43 when no answer came at
all.
"""

# (status class, status detail) -> (result code, message text, where to look)
# fmt: off
STATUSES = {
    (1, 1): (0xEFFF0006, 'The target moved temporarily', 'whether the address that Windows was sent to answers'),
    (1, 2): (0xEFFF0007, 'The target moved permanently', 'whether the address that Windows was sent to answers'),
    (2, 0): (0xEFFF0008, 'Initiator error', 'the login itself is malformed or asks for something impossible'),
    (2, 1): (0xEFFF0009, 'Authentication failure', 'CHAP: user name, secret, or CHAP not ticked on one side'),
    (2, 2): (0xEFFF000A, 'Authorization failure', 'initiator-name and initiator-address of the target'),
    (2, 3): (0xEFFF000B, 'Target not found', 'the spelling of the target name, and the portal group that it is served by'),
    (2, 4): (0xEFFF000C, 'The target is removed', 'the target was taken away and will not come back'),
    (2, 5): (0xEFFF000D, 'Unsupported version', 'the initiator speaks another iSCSI version'),
    (2, 6): (0xEFFF000E, 'Too many connections', 'MaxConnections of the session, or max-sessions'),
    (2, 7): (0xEFFF000F, 'Missing parameter', 'the initiator left out a key that a login needs'),
    (2, 8): (0xEFFF0010, 'Cannot include the connection in the session', 'portals of different portal groups in one session'),
    (2, 9): (0xEFFF0011, 'Session type not supported', ''),
    (2, 10): (0xEFFF0002, 'Login failed', 'the session that the connection wanted to join is gone; Windows logs in anew'),
    (2, 11): (0xEFFF0002, 'Login failed', 'a request that has no place in a login'),
    (3, 0): (0xEFFF0012, 'Target error', 'the log of targetd'),
    (3, 1): (0xEFFF0013, 'Service unavailable', 'the target is stopping, or its disks are missing; Windows tries again'),
    (3, 2): (0xEFFF0014, 'Out of resources', 'max-sessions and the limit of connections from one address; Windows tries again'),
}
# fmt: on


def says(status_class, status_detail):
    """What the user of Windows sees for a login status: '"Authentication failure" (0xEFFF0009),
    iScsiPrt event 10'."""
    if (status_class, status_detail) == (0, 0):
        return ''
    code, text, _ = STATUSES.get((status_class, status_detail), (0xEFFF0002, 'Login failed', ''))
    return '"%s" (0x%08X), iScsiPrt event 10' % (text, code)


def advice(status_class, status_detail):
    """Where to look when Windows says so; '' if nothing is known."""
    return STATUSES.get((status_class, status_detail), (0, '', ''))[2]
