"""Upgrades without a logout while sessions write and verify (kills.Writer): no session may be lost, and no
command may fail. New sessions log in meanwhile, and a session sometimes logs out and in again, so that
workers of several programs serve side by side.
"""

import re
import threading
import time

from daemon import TARGET
from initiator import connect
from kills import Kills, Wrong, run_kills


class Upgrades(Kills):
    """One run."""

    def upgrade(self):
        """`targetdctl upgrade`, and a login at the same time."""
        login = threading.Thread(target=self._log_in_meanwhile)
        login.start()
        began = time.monotonic()
        code, output = self.daemon.targetdctl('upgrade', seconds=120)
        self._note('milliseconds of the longest upgrade', began)
        login.join(60)
        if code or 'serves now' not in output or login.is_alive():
            raise Wrong('an upgrade was refused, or a login hangs: %s' % output)
        self.counts['upgrades'] += 1
        count = re.search(r'; (\d+) sessions? continue', output)
        old = int(count.group(1)) if count else 0
        self.counts['sessions that were handed over'] += old

    def _log_in_meanwhile(self):
        began = time.monotonic()
        session = connect(
            self.daemon.address, TARGET, name='iqn.2026-11.test:meanwhile', timeout=60.0
        )
        self._note('milliseconds of the longest login meanwhile', began)
        session.logout()
        session.close()
        self.counts['logins meanwhile'] += 1

    def _note(self, what, began):
        self.counts[what] = max(self.counts[what], int((time.monotonic() - began) * 1000))

    def log_out(self):
        """A session is asked to log out; its initiator logs in again, to a worker of the new program."""
        code, output = self.daemon.targetdctl(
            'kick', 'iqn.2026-11.test:writer-%d' % self.random.randrange(len(self.writers))
        )
        self.counts['sessions that were asked to log out'] += code == 0

    events = (upgrade, log_out)

    def run(self, seconds):
        """As Kills.run(); a lost session is wrong."""
        figures, complaints = super(Upgrades, self).run(seconds)
        if figures.get('sessions that were lost'):
            complaints.append('%d sessions were lost' % figures['sessions that were lost'])
        return figures, complaints


def run_upgrades(directory, seconds, seed):
    """As run_kills()."""
    return run_kills(directory, seconds, seed, Upgrades)
