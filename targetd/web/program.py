"""The program that serves the page. With a relay it is a process of its own (`python -m targetd.web.program`,
started by web.launcher) that becomes an unprivileged user before it accepts the first connection.
"""

import argparse
import json
import os
import socket
import sys
import threading

from targetd.web import gate, pages, serving, source, visitors


def serve(listeners, a_gate, token_digest, hosts):
    """Serve the page until the process ends. listeners: listening sockets; a_gate: Gate or RelayedGate;
    token_digest: visitors.digest of the token, or None for a read-only page; hosts: the names by which
    browsers may call it."""
    asking = source.Source(a_gate)
    sampler = source.Sampler(asking)
    application = pages.application(asking, sampler, visitors.Logins(token_digest), hosts)
    sampler.start()
    servers = [serving.Server(listener, application) for listener in listeners]
    for server in servers[1:]:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    servers[0].serve_forever()


def _end_with(relay):
    """The page ends when the relay does."""
    relay.wait_for_end()
    os._exit(0)


def main(arguments=None):
    """The entry point of the process; standard input has its settings as JSON."""
    parser = argparse.ArgumentParser(prog='targetd-web')
    parser.add_argument('--relay', type=int, required=True)
    parser.add_argument('--listen', type=int, action='append', required=True)
    parser.add_argument('--user', required=True)
    parsed = parser.parse_args(arguments)
    settings = json.loads(sys.stdin.read())
    pages.load_files()  # afterwards this process may not be able to read them
    gate.drop_privileges(*map(int, parsed.user.split(':')))
    relay = gate.RelayedGate(socket.socket(fileno=parsed.relay))
    threading.Thread(target=_end_with, args=(relay,), daemon=True).start()
    listeners = [socket.socket(fileno=number) for number in parsed.listen]
    try:
        serve(listeners, relay, settings['token_digest'], set(settings['hosts']))
    except KeyboardInterrupt:
        pass


if __name__ == '__main__':
    main()
