"""Floods: strangers that try to keep others out, beside honest clients whose logins are timed.

A stranger is an address from which several connections at once do the same thing again and again:

  half-open      begins a login and leaves it there
  silent         connects and sends nothing
  discovery      short discovery sessions, of which some stay a while
  failed-chap    answers a challenge wrongly
  joins          begins to join the session of an honest client
  refused        logs in to names that do not exist, and as an initiator that is not admitted
  closed         connects and closes at once

Everything runs in a network namespace. The honest clients are one that needs no CHAP, one that proves
its account, and one that shares its address with strangers.
"""

import contextlib
import os
import random
import signal
import socket
import threading
import time

from daemon import TARGET, Daemon
from initiator import Chap, Closed, LoginFailed, Session
from namespaces import Namespace
from pdus import pack_text

SECRET = 'iqn.2026-11.test.targetd:secret'
CHAP = ('erp', '12-to-16-chars')
SERVER, NEIGHBOUR = '10.99.0.1', '10.99.0.20'
STRANGERS = ['10.99.0.%d' % number for number in range(20, 24)]
HONEST = ['10.99.0.10', '10.99.0.11']
CONNECTIONS = 8  # of each stranger at once
#: no honest login takes so long: those that wait for a place wait for PATIENCE_SECONDS of
#: master.logins.routing at a time, on a machine that is busy with the strangers
SLOWEST_SECONDS = 10.0


def addresses():
    return ['%s/24' % address for address in [SERVER] + STRANGERS + HONEST]


class Stranger(object):
    """What one connection of a stranger does: each method is one round."""

    def __init__(self, address, source, random, tsih):
        self.address, self.source, self.random, self.tsih = address, source, random, tsih
        self.kept = []

    def session(self, **more):
        isid = b'\x80\x55' + bytes(self.random.randrange(256) for _ in range(4))
        name = 'iqn.2026-11.test:stranger%d' % self.random.randrange(4)
        return Session(self.address, name, isid, timeout=3, source=self.source, **more)

    def keep(self, session, count):
        self.kept.append(session)
        while len(self.kept) > count:
            self.kept.pop(0).close()
        time.sleep(0.05)

    def begin(self, session, target, method='None', tsih=0):
        pairs = [('InitiatorName', session.name), ('SessionType', 'Normal')]
        session.login_pdu(
            pack_text(pairs + [('TargetName', target), ('AuthMethod', method)]), 0, None, tsih=tsih
        )

    def half_open(self):
        session = self.session()
        self.begin(session, TARGET)
        self.keep(session, 4)

    def silent(self):
        self.keep(self.session(), 8)

    def discovery(self):
        with self.session() as session:
            session.login()
            if not self.random.randrange(4):
                time.sleep(0.2)

    def failed_chap(self):
        session = self.session()
        session.exchange(session._first_keys(SECRET) + [('AuthMethod', 'CHAP')], 0)
        challenge, _, _ = session.exchange([('CHAP_A', '5')], 0)
        session.login_pdu(Chap('erp', 'wrong-secret-of').answer(challenge), 0, 1)
        self.keep(session, 2)

    def joins(self):
        session = self.session()
        self.begin(session, TARGET, tsih=self.tsih)
        self.keep(session, 2)

    def refused(self):
        with self.session() as session:
            target = self.random.choice([SECRET, 'iqn.2026-11.test.targetd:no-such'])
            session.login(target)

    def closed(self):
        socket.create_connection(self.address, 3, (self.source, 0)).close()


KINDS = ['half-open', 'silent', 'discovery', 'failed-chap', 'joins', 'refused', 'closed']


def flood(address, kind, seed, tsih):
    """Run in a process of its own: the strangers, until it is killed. Each has CONNECTIONS
    threads."""

    def run(source, number):
        stranger = Stranger(address, source, random.Random('%s %d' % (source, seed + number)), tsih)
        act = getattr(stranger, kind.replace('-', '_'))
        while True:
            try:
                act()
            except (LoginFailed, Closed, OSError, AssertionError):
                time.sleep(0.01)

    threads = [
        threading.Thread(target=run, args=(source, number), daemon=True)
        for source in STRANGERS
        for number in range(CONNECTIONS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextlib.contextmanager
def flooding(*arguments):
    """flood(*arguments) in another process, until the `with` block is over."""
    child = os.fork()
    if child == 0:
        try:
            flood(*arguments)
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def log_in(address, source, number, chap):
    """An honest login. Returns its seconds."""
    begun = time.monotonic()
    isid = b'\x80\0\0\x07' + number.to_bytes(2, 'big')
    name = 'iqn.2026-11.test:honest-%s' % source
    with Session(address, name, isid, timeout=30, source=source) as session:
        session.login(SECRET if chap else TARGET, chap=Chap(*CHAP) if chap else None)
        session.clear_attentions()
        session.capacity()
        seconds = time.monotonic() - begun
        session.logout()
    return seconds


class Honest(object):
    """Logins of the honest clients: seconds of each, and complaints."""

    def __init__(self, address):
        self.address, self.complaints = address, []

    def run(self, seconds, what):
        """Log in again and again. Returns {group of clients: [seconds of each login]}."""
        begun, times, number = time.monotonic(), {'others': [], 'neighbours': []}, 0
        clients = [(HONEST[0], False), (HONEST[1], True), (NEIGHBOUR, False), (NEIGHBOUR, True)]
        while number < len(clients) or time.monotonic() - begun < seconds:
            source, chap = clients[number % len(clients)]
            group = times['neighbours' if source == NEIGHBOUR else 'others']
            try:
                group.append(log_in(self.address, source, number, chap))
            except (LoginFailed, Closed, OSError) as e:
                self.complaints.append('%s: a login from %s failed: %r' % (what, source, e))
            number += 1
        slowest = max(sum(times.values(), [0]))
        if slowest > SLOWEST_SECONDS:
            self.complaints.append('%s: a login took %.1f seconds' % (what, slowest))
        return times


def start_daemon(directory):
    daemon = Daemon(directory)
    daemon.text.groups = {1: ['%s:3260' % SERVER]}
    daemon.target(SECRET, ['initiator-address = ALL', 'incominguser = %s %s' % CHAP])
    daemon.target(TARGET, ['initiator-address = ALL', 'MaxConnections = 4'])
    daemon.launch()
    daemon.wait_listening((SERVER, 3260))
    return daemon


def run_floods(directory, seconds, seed, kinds=KINDS):
    """Returns ({figure: number}, [complaint …]). The times are in milliseconds."""
    os.makedirs(directory, exist_ok=True)
    namespace, daemon = Namespace('targetd-floods-%d' % os.getpid(), addresses()), None
    share, figures = seconds / (len(kinds) + 1), {}
    try:
        with namespace.entered():
            daemon = start_daemon(directory)
            address = (SERVER, 3260)
            honest = Honest(address)
            with Session(address, 'iqn.2026-11.test:victim', source=HONEST[0]) as victim:
                victim.login(TARGET, keys={'MaxConnections': '4'})
                for kind in ['nothing'] + list(kinds):
                    with contextlib.ExitStack() as stack:
                        if kind != 'nothing':
                            stack.enter_context(flooding(address, kind, seed, victim.tsih))
                            time.sleep(min(0.5, share / 4))
                        times = honest.run(share - min(0.5, share / 4), kind)
                    for group, seconds_of in times.items():
                        if seconds_of:
                            rate = len(seconds_of) / sum(seconds_of)
                            figures['%s: logins per second of %s' % (kind, group)] = int(rate)
                            slowest = int(max(seconds_of) * 1000)
                            figures['%s: slowest of %s, milliseconds' % (kind, group)] = slowest
                victim.clear_attentions()
                victim.capacity()
            trouble = daemon.trouble()
            honest.complaints.extend(trouble)
    finally:
        if daemon is not None and daemon.process is not None:
            daemon.kill()
        namespace.remove()
    return figures, honest.complaints
