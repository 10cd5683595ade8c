"""A target without a socket, for tests: the login machine, then a Connection, and units in memory.

A test feeds the bytes of the initiator, and takes the bytes of the target. The configuration is
transcripts/recorded.conf, nothing is written anywhere, and but for commands that wait for a disk
(which memory never is) everything happens in the thread of the caller.
"""

import threading

import record

from targetd.config import loader
from targetd.iscsi import chap
from targetd.iscsi.errors import LoginFailure
from targetd.iscsi.framing import BHS, Framer
from targetd.iscsi.login import LOGIN_DATA_SEGMENT, LoginNegotiation
from targetd.iscsi.login_result import SessionClaim
from targetd.iscsi.pdu import LoginRequest
from targetd.iscsi.session import Session
from targetd.master.exports import open_medium, unit_identity
from targetd.scsi.device import Device
from targetd.scsi.facts import UnitFacts
from targetd.scsi.lu import LogicalUnit
from targetd.scsi.sam import Nexus
from targetd.store.opening import open_store
from targetd.worker.connection.error_recovery import connection_class
from targetd.worker.main import Worker
from targetd.worker.policy import Policies
from targetd.worker.replica import ports_of

ADDRESS = '127.0.0.1'
TSIH = 7


def configuration(directory, target_lines=()):
    """Returns the Configuration of recorded.conf. target_lines: inserted at the start of each
    target."""
    path = directory / 'targetd.conf'
    with open(record.CONFIGURATION) as file:
        text = file.read().replace(
            'initiator-address', '\n'.join(tuple(target_lines) + ('initiator-address',))
        )
    path.write_text(record.server_section(str(directory)) + text)
    path.chmod(0o600)
    return loader.load(str(path))


class Socket(object):
    """Replaces the socket of a connection: receives the bytes that the test feeds, and stores the
    bytes that any thread sends."""

    def __init__(self):
        self.incoming = b''
        self.sent = bytearray()
        self._changed = threading.Condition()

    def recv_into(self, view, _count=0, _flags=0):
        if not self.incoming:
            raise BlockingIOError
        count = min(len(view), len(self.incoming))
        view[:count] = self.incoming[:count]
        self.incoming = self.incoming[count:]
        return count

    def getsockopt(self, *_):
        raise OSError('there is no TCP here')

    def recvmsg_into(self, parts):
        return (sum(self.recv_into(part) for part in parts if self.incoming), b'', 0, None)

    def sendmsg(self, buffers, *_):
        with self._changed:
            before = len(self.sent)
            for buffer in buffers:
                self.sent += buffer
            self._changed.notify_all()
            return len(self.sent) - before

    def sendall(self, data):
        self.sendmsg([data])

    def take(self, count):
        """Waits for this many sent bytes and returns them."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.sent) >= count, 10), (
                'only %r was answered' % bytes(self.sent[:48])
            )
            taken = bytes(self.sent[:count])
            del self.sent[:count]
            return taken

    def shutdown(self, _how):
        pass

    def close(self):
        pass


def connection(configuration, result):
    """Returns (Connection, Socket) of a login with this LoginResult."""
    sock = Socket()
    worker = Worker(None, configuration)
    if result.target_name is not None:
        worker.device = device(configuration, result)
    session = Session(result)
    worker.begin_session(session)
    made = connection_class(session.values)(
        worker, sock, session, result.cid, result.stat_sn, result.declared_data_segment, (0, 0)
    )
    made.peer_address = made.local_address = ADDRESS
    made.evidence = {}
    worker.connections.append(made)
    return made, sock


def device(configuration, result):
    """Returns the Device of the configured target for this login, with its units in memory."""
    nexus = Nexus(result.initiator_name, result.isid, result.target_name, 1)
    made = Device(nexus, ports_of(configuration, nexus))
    target = configuration.targets[result.target_name]
    for lun in target.luns.values():
        opened = open_store({'kind': lun.type, 'size': lun.size})
        names = unit_identity.names_of(lun, None, '', '')
        facts = dict(
            open_medium.facts_of(lun, opened, names), **open_medium.alua_facts(target, lun)
        )
        made.add(
            lun.number,
            LogicalUnit(UnitFacts.from_message(facts), opened.store(), nexus, made, lun=lun.number),
        )
        opened.close()
    return made


def local_chap(configuration, random_bytes):
    """Returns a function that makes the chap.Chap of a target, or of discovery, with the secrets of
    this configuration."""
    server = configuration.server

    def in_bytes(account):
        return account and (account[0], account[1].encode('utf-8'))

    def make(target_name):
        accounts, outgoing = server.incomingdiscoveryuser, server.outgoingdiscoveryuser
        if target_name is not None:
            target = configuration.targets[target_name]
            accounts, outgoing = target.accounts, target.outgoing
        algorithms = [chap.ALGORITHM_NUMBERS[word] for word in server.chap_algorithms]
        return chap.Chap(
            [in_bytes(account) for account in accounts],
            in_bytes(outgoing),
            algorithms,
            random_bytes,
        )

    return make


class Target(object):
    """One connection, starting with its login. After feed(data), the responses can be read from
    `socket`."""

    def __init__(self, configuration, random_bytes):
        self.configuration = configuration
        self.socket = Socket()
        self.connection = None
        self._framer = Framer(LOGIN_DATA_SEGMENT)
        self._negotiation = LoginNegotiation(
            Policies(configuration).login(ADDRESS, 1, local_chap(configuration, random_bytes)),
            None,
            random_bytes,
        )

    def feed(self, data):
        """Feeds bytes from the initiator, divided in any way."""
        if self.connection is None:
            self._framer.receive_buffer()[: len(data)] = data
            for bhs, ahs, segment in self._framer.parse_received(len(data)):
                self._login(LoginRequest.decode(BHS.pack(*bhs), ahs, segment))
            return
        self.socket.incoming += data
        while self.socket.incoming:
            self.connection._receive_and_act()

    def _login(self, request):
        try:
            step = self._negotiation.receive_request(request)
        except LoginFailure as refusal:
            self._send([self._negotiation.failure_response(refusal)])
            return
        if isinstance(step, SessionClaim):
            step = self._negotiation.claim_granted(TSIH)
            self.connection, sock = connection(self.configuration, self._negotiation.result)
            sock.sent, self.socket = self.socket.sent, sock
        self._send(step.pdus)

    def _send(self, pdus):
        for pdu in pdus:
            data = bytes(pdu.data)
            self.socket.sendall(pdu.encode() + data + bytes(-len(data) % 4))
