"""The message that the iSCSI Initiator of Windows shows for each login status.

Pure. The initiator's result codes follow the order of RFC 7143 11.13.5. Its event
log contains iScsiPrt event 10 with the login response in the dump data, and event 43 if the target
sent no response.
"""

import re

# (status class, status detail) -> (result code, message text, where to look)
# fmt: off
STATUSES = {
    (1, 1): (0xEFFF0006, 'The target moved temporarily', 'whether the address that Windows was '
                                                         'redirected to is reachable'),
    (1, 2): (0xEFFF0007, 'The target moved permanently', 'whether the address that Windows was '
                                                         'redirected to is reachable'),
    (2, 0): (0xEFFF0008, 'Initiator error', 'the login request is malformed or asks for something '
                                            'that cannot be negotiated'),
    (2, 1): (0xEFFF0009, 'Authentication failure', 'CHAP: user name, secret, or CHAP enabled on '
                                                   'one side only'),
    (2, 2): (0xEFFF000A, 'Authorization failure', 'initiator-name and initiator-address of the '
                                                  'target'),
    (2, 3): (0xEFFF000B, 'Target not found', 'the spelling of the target name, and the portal '
                                             'groups of the target'),
    (2, 4): (0xEFFF000C, 'The target is removed', 'the target was removed permanently'),
    (2, 5): (0xEFFF000D, 'Unsupported version', 'the initiator uses another iSCSI version'),
    (2, 6): (0xEFFF000E, 'Too many connections', 'MaxConnections of the session, or max-sessions'),
    (2, 7): (0xEFFF000F, 'Missing parameter', 'the initiator did not send a key that a login '
                                              'requires'),
    (2, 8): (0xEFFF0010, 'Cannot include the connection in the session', 'portals of different '
                                                                         'portal groups in one '
                                                                         'session'),
    (2, 9): (0xEFFF0011, 'Session type not supported', ''),
    (2, 10): (0xEFFF0002, 'Login failed', 'the session that the connection wanted to join has '
                                          'ended; Windows logs in again'),
    (2, 11): (0xEFFF0002, 'Login failed', 'the initiator sent a request that is not valid during '
                                          'login'),
    (3, 0): (0xEFFF0012, 'Target error', 'the log of targetd'),
    (3, 1): (0xEFFF0013, 'Service unavailable', 'the target is stopping, or its disks are missing; '
                                                'Windows tries again'),
    (3, 2): (0xEFFF0014, 'Out of resources', 'max-sessions and max-connections-per-address; '
                                             'Windows tries again'),
}
# fmt: on


def message(status_class, status_detail):
    """What the user of Windows sees for a login status: '"Authentication failure" (0xEFFF0009),
    iScsiPrt event 10'; '' for success."""
    if (status_class, status_detail) == (0, 0):
        return ''
    code, text, _ = STATUSES.get((status_class, status_detail), (0xEFFF0002, 'Login failed', ''))
    return '"%s" (0x%08X), iScsiPrt event 10' % (text, code)


def advice(status_class, status_detail):
    """What to check when Windows shows this message; '' if nothing is known."""
    return STATUSES.get((status_class, status_detail), (0, '', ''))[2]


def explained(rows):
    """The rows of `why`, each with the message that Windows shows for its status and a hint."""
    found = []
    for row in rows:
        row = dict(row)
        status = re.match(r'^([0-9A-Fa-f]{2})([0-9A-Fa-f]{2})$', str(row.get('status')))
        if status:
            numbers = int(status.group(1), 16), int(status.group(2), 16)
            row.setdefault('windows', message(*numbers))
            row.setdefault('look_at', advice(*numbers))
        found.append(row)
    return found
