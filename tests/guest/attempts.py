"""In the guest: attempts to log in, all at the same time, and whether their outcomes are the expected ones.

attempts.py < LINES. Each line: HOST OUTCOME ADDRESS PORT TARGET [USER SECRET] [from=ADDRESS]

HOST is a network namespace, or "here". The outcomes:

in        the login succeeded, and a command was executed
XXXX      the status of the Login Response
refused   the connection was refused, or closed before the login was complete
silent    nothing came within SECONDS
failed    any of these but the first
"""

import socket
import sys
import threading

sys.path.insert(0, '/src/tests')

from initiator import Chap, Closed, LoginFailed, Session  # noqa: E402
from namespaces import _enter  # noqa: E402

SECONDS = 4
ANSWER_SECONDS = 30  # the guest is emulated, and slow on a busy host
NAME = 'iqn.2026-11.com.example:attempt'


class Attempt(threading.Thread):
    """One line. outcome: see above, when the thread has ended."""

    def __init__(self, line, number):
        super(Attempt, self).__init__()
        words = line.split()
        self.source = words.pop()[5:] if words[-1].startswith('from=') else None
        self.host, self.expected, self.address, port, self.target = words[:5]
        self.port, self.account = int(port), words[5:]
        self.name = '%s%d' % (NAME, number)
        self.outcome = None

    def run(self):
        if self.host != 'here':
            _enter('/run/netns/' + self.host)
        self.outcome = self.log_in()

    def is_expected(self):
        if self.expected == 'failed':
            return self.outcome != 'in'
        return self.outcome == self.expected

    def log_in(self):
        seconds = SECONDS if self.expected == 'silent' else ANSWER_SECONDS
        address = (self.address, self.port)
        try:
            with Session(address, self.name, timeout=seconds, source=self.source) as session:
                session.login(self.target, chap=Chap(*self.account) if self.account else None)
                session.clear_attentions()
                session.capacity()
                session.logout()
            return 'in'
        except socket.timeout:
            return 'silent'
        except LoginFailed as e:
            return '%04x' % e.status
        except (OSError, Closed):
            return 'refused'


def main():
    lines = [line for line in sys.stdin.read().split('\n') if line]
    attempts = [Attempt(line, number) for number, line in enumerate(lines)]
    for attempt in attempts:
        attempt.start()
    for attempt, line in zip(attempts, lines):
        attempt.join()
        more = '' if attempt.is_expected() else ' !!! BUT ' + str(attempt.outcome)
        print(line + more, flush=True)
    return not all(attempt.is_expected() for attempt in attempts)


sys.exit(main())
