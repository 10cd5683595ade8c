"""CHAP on the master's side (ARCHITECTURE D20): a worker passes on what the initiator sent, and the
master makes the challenge, checks the response, and remembers what was proved for the claim.

     ask challenge --> identifier, challenge      ask authenticate --> proved, or failed
     (one for each connection that was handed over; a failure ends it)

The secrets are in the vault (master.vault); the names and the labels of the secrets are those of the
configuration in force now.
"""

import os

from targetd.iscsi import chap
from targetd.master.processes.worker_messages import BadMessage

LONGEST_VALUE = 4096  # characters of a CHAP key's value: 1024 bytes in hexadecimal, and some more
KEYS = frozenset(('CHAP_N', 'CHAP_R', 'CHAP_I', 'CHAP_C'))


class HandedOver(object):
    """A connection that the master has sent to a worker. peer: [address, port]; group: portal group
    tag; header: LoginHeader of its first request; socket: the master's descriptor of it, None after
    forget(); is_claimed: True after its session claim; chap: chap.Chap between challenge and
    response; proved: (target name, or '' for discovery; user; label of the secret) after CHAP has
    succeeded, else None."""

    def __init__(self, pending, sock):
        self.socket = sock
        self.description = pending.description()
        self.peer = list(pending.peer)
        self.group = pending.group
        self.header = pending.header
        self.is_claimed = False
        self.target_name = ''
        self.chap = None
        self.was_challenged = False
        self.proved = None

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
    """Answers the requests of workers about CHAP. state: server_state.ServerState;
    answer(worker, message): Workers.send."""

    def __init__(self, state, send):
        self.state = state
        self.send = send

    def on_challenge(self, worker, message):
        """`ask challenge`: the initiator has sent CHAP_A. Only one challenge for a connection."""
        connection = handed_over(worker, message)
        target_name, offered = message.get('target_name') or '', message['offered']
        if connection.was_challenged or len(offered) > LONGEST_VALUE:
            raise BadMessage('a second challenge, or malformed CHAP algorithms')
        connection.was_challenged = True
        connection.target_name = target_name
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
        words = {'pairs': [], 'failed': '', 'is_authentication': False, 'account': None}
        try:
            words['pairs'] = [list(pair) for pair in step(argument)]
        except chap.ChapError as e:
            words['failed'] = str(e)
            words['is_authentication'] = isinstance(e, chap.AuthenticationFailed)
        else:
            connection = worker.handed[tuple(message['peer'])]
            words['account'] = connection.proved[1] if connection.proved else None
        self.send(worker, dict(words, do='answer', id=message['id']), ())

    def _accounts(self, target_name):
        """(accounts, outgoing account) in force now, with the labels of the secrets."""
        configuration = self.state.configuration
        if not target_name:
            server = configuration.server
            return server.incomingdiscoveryuser, server.outgoingdiscoveryuser
        target = configuration.targets.get(target_name)
        return (target.accounts, target.outgoing) if target is not None else ((), None)

    def _algorithms(self):
        words = self.state.configuration.server.chap_algorithms
        return tuple(chap.ALGORITHM_NUMBERS[word] for word in words)
