"""CHAP on the master's side (ARCHITECTURE D20): a worker passes on what the initiator sent, and the
master makes the challenge, checks the response, and remembers what was proved for the claim.

     ask challenge --> identifier, challenge      ask authenticate --> proved, or failed
     (one for each connection that was handed over; a failure ends it)

The secrets are in the vault (master.vault); the names and the labels of the secrets are those of the
configuration in force now.
"""

import os

from targetd import log
from targetd.iscsi import chap, const
from targetd.master.logins.admission import accounts_now
from targetd.master.processes.worker_messages import BadMessage

LONGEST_VALUE = 4096  # characters of a CHAP key's value: 1024 bytes in hexadecimal, and some more
LONGEST_NAME = 255
TOO_MANY_FAILURES = 'the answers to so many failed authentications of this initiator are delayed'
KEYS = frozenset(('CHAP_N', 'CHAP_R', 'CHAP_I', 'CHAP_C'))


class HandedOver(object):
    """A connection that the master has sent to a worker. peer: [address, port]; group: portal group
    tag; header: LoginHeader of its first request; socket: the master's descriptor of it, None after
    forget(); is_proxied: True if a PROXY header has told the peer; is_claimed: True after its session
    claim; chap: chap.Chap between challenge and response; proved: (target name, or '' for discovery;
    user; label of the secret) after CHAP has
    succeeded, else None; has_failed: True after an authentication has failed; delay: seconds that the
    answer to that waits."""

    def __init__(self, pending, sock):
        self.socket = sock
        self.description = pending.description()
        self.is_proxied = pending.proxied_client() is not None
        self.peer = list(pending.peer)
        self.group = pending.group
        self.header = pending.header
        self.is_claimed = False
        self.target_name = self.initiator_name = ''
        self.has_failed = False
        self.delay = 0.0
        self.chap = None
        self.was_challenged = False
        self.proved = None

    @property
    def login(self):
        """(address, initiator name, target name): what failures are counted for."""
        return self.peer[0], self.initiator_name, self.target_name

    def forget(self):
        """Close the master's descriptor of the connection."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None


def handed_over(worker, message):
    """The HandedOver of the worker that this message is about. Raises BadMessage."""
    found = worker.handed.get(tuple(message['peer']))
    if found is None or found.is_claimed:
        raise BadMessage('%s for a connection that it does not log in' % message.get('ask'))
    return found


class Authentication(object):
    """Answers the requests of workers about CHAP. state: server_state.ServerState; throttle:
    LoginThrottle; send(worker, message, descriptors): Workers.send."""

    def __init__(self, state, throttle, send):
        self.state = state
        self.throttle = throttle
        self.send = send

    def on_challenge(self, worker, message):
        """`ask challenge`: the initiator has sent CHAP_A. Only one challenge for a connection."""
        connection = handed_over(worker, message)
        target_name, offered = message.get('target_name') or '', message['offered']
        if connection.was_challenged or len(offered) > LONGEST_VALUE:
            raise BadMessage('a second challenge, or malformed CHAP algorithms')
        connection.was_challenged = True
        connection.target_name = target_name
        connection.initiator_name = str(message.get('initiator_name') or '')[:LONGEST_NAME]
        if not self.throttle.may_try(*connection.login):
            words = {'failed': TOO_MANY_FAILURES, 'status': const.OUT_OF_RESOURCES}
            self._answer(worker, message, words)
            return
        accounts, outgoing = self._accounts(target_name)
        connection.chap = chap.Chap(accounts, outgoing, self._algorithms(), os.urandom)
        self._run_step(worker, message, connection.chap.choose_algorithm, offered)

    def on_authenticate(self, worker, message):
        """`ask authenticate`: the initiator has sent its response."""
        connection, values = handed_over(worker, message), message['values']
        step, connection.chap = connection.chap, None
        if step is None or not {'CHAP_N', 'CHAP_R'} <= set(values) <= KEYS:
            raise BadMessage('a CHAP response without challenge, or without its keys')
        if ('CHAP_I' in values) != ('CHAP_C' in values) or any(
            not isinstance(value, str) or len(value) > LONGEST_VALUE for value in values.values()
        ):
            raise BadMessage('a malformed CHAP response')
        with self.state.vault.opened() as find:

            def verify(values):
                pairs = step.verify_response(values, find)
                connection.proved = (connection.target_name,) + step.proved
                return pairs

            self._run_step(worker, message, verify, values)

    def _run_step(self, worker, message, step, argument):
        words = {}
        connection = worker.handed[tuple(message['peer'])]
        try:
            words['pairs'] = [list(pair) for pair in step(argument)]
        except chap.ChapError as e:
            words['failed'] = str(e)
            words['is_authentication'] = isinstance(e, chap.AuthenticationFailed)
            if words['is_authentication']:
                self.note_failure(connection)
                words['is_delayed'] = connection.delay > 0
        else:
            words['account'] = connection.proved[1] if connection.proved else None
        self._answer(worker, message, words)

    def _answer(self, worker, message, words):
        answer = {'do': 'answer', 'id': message['id'], 'pairs': [], 'failed': '', 'status': None}
        answer.update({'is_authentication': False, 'is_delayed': False, 'account': None}, **words)
        self.send(worker, answer, ())

    def note_failure(self, connection):
        """The authentication on this connection failed: log and count it, once."""
        if connection.has_failed:
            return
        connection.has_failed = True
        count, connection.delay = self.throttle.note_failure(
            *connection.login, is_guess=connection.was_challenged
        )
        # etc/fail2ban/filter.d/targetd.conf matches this line. It contains nothing that the
        # initiator sent: a forged name could imitate another line.
        log.warning(
            'authentication failed from %s port %d, %d in a row%s',
            connection.peer[0],
            connection.peer[1],
            count,
            '; the answer waits %d s' % connection.delay if connection.delay else '',
        )

    def _accounts(self, target_name):
        """(accounts, outgoing account) in force now, with the labels of the secrets."""
        configuration = self.state.configuration
        if not target_name:
            server = configuration.server
            return server.incomingdiscoveryuser, server.outgoingdiscoveryuser
        target = configuration.targets.get(target_name)
        return (accounts_now(target), target.outgoing) if target is not None else ((), None)

    def _algorithms(self):
        words = self.state.configuration.server.chap_algorithms
        return tuple(chap.ALGORITHM_NUMBERS[word] for word in words)
