"""Connections of one session, for tests. Each is an initiator.Session that shares the CmdSN and the
command window of the session."""

from initiator import OPERATIONAL, Session

#: Keys that are negotiated once for a session; an additional connection sends only the others.
SESSION_KEYS = [
    key
    for key in OPERATIONAL
    if key not in ('HeaderDigest', 'DataDigest', 'MaxRecvDataSegmentLength')
]


class Numbering(object):
    """CmdSN and command window of one session."""

    cmd_sn = 1
    max_cmd_sn = None


class Member(Session):
    """A connection of a session. Its task tags contain the number of the connection."""

    def __init__(self, address, cid, numbering, **more):
        self.numbering = numbering
        self.first = None  # the connection whose session it joined
        super(Member, self).__init__(address, cid=cid, **more)

    @property
    def cmd_sn(self):
        return self.numbering.cmd_sn

    @cmd_sn.setter
    def cmd_sn(self, value):
        self.numbering.cmd_sn = max(value, self.numbering.cmd_sn)

    @property
    def max_cmd_sn(self):
        return self.numbering.max_cmd_sn

    @max_cmd_sn.setter
    def max_cmd_sn(self, value):
        self.numbering.max_cmd_sn = value

    def next_tag(self):
        self.itt += 1
        return self.cid << 16 | self.itt

    def value(self, key):
        value = super(Member, self).value(key)
        return self.first.value(key) if value == 'Irrelevant' else value

    def join(self, first, target, **keys):
        """Logs in as an additional connection of the session of `first`, or reinstates a connection
        with this CID. Returns self."""
        self.first = first
        self.keys.update((key, first.keys[key]) for key in SESSION_KEYS if key in first.keys)
        return self.login(
            target, tsih=first.tsih, security=False, keys=dict(dict.fromkeys(SESSION_KEYS), **keys)
        )


def join(first, cid, target, **keys):
    """Returns an additional connection of the session of `first`, or reinstates the one with this
    CID."""
    connection = Member(
        first.address, cid, first.numbering, name=first.name, isid=first.isid, timeout=first.timeout
    )
    try:
        return connection.join(first, target, **keys)
    except BaseException:
        connection.close()
        raise
