"""What the worker knows about the lines of its session, for `targetdctl why slow`.

May import what Connection may. The control thread takes a sample when the master orders it; nothing is
counted or measured for it on the path of a command.
"""

import socket
import time

from targetd import tcp_info
from targetd.worker.connection.postponing import PostponedRead
from targetd.worker.latency import counted_rows

#: A session has at most so many connections; more would not fit into a report.
MOST_CONNECTIONS = 64


def report_line(worker, number):
    """Report a sample to the master. number: of its order `line`. [control]"""
    worker.report(
        'line',
        id=number,
        at=int(time.monotonic() * 1e6),
        connections=[row for row in map(_sample, list(worker.connections)) if row is not None][
            :MOST_CONNECTIONS
        ],
        counted=_counted(worker.replica),
        waiting=_waiting(worker.session, worker.limits),
    )


def _sample(connection):
    """[CID, TCP_INFO in hex digits, congestion control, bytes queued in the worker], or None if the
    connection has ended. [any]"""
    sock = connection.socket
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, tcp_info.SIZE)
        name = sock.getsockopt(socket.IPPROTO_TCP, tcp_info.TCP_CONGESTION, 16)
    except OSError:
        return None
    name = name.partition(b'\0')[0].decode('ascii', 'replace')
    return [connection.cid, info.hex(), name, connection.outbox.unsent_bytes()]


def _counted(replica):
    """[reads, bytes read, writes, bytes written, other commands] of the session. [any]"""
    rows = counted_rows(replica.units() if replica is not None else {}, {})
    return [sum(row[column] for row in rows) for column in range(1, 6)]


def _waiting(session, limits):
    """{what the unfinished commands wait for: number of them}. [any]"""
    found = {'line': 0, 'data': 0, 'limit': 0, 'master': 0, 'disk': 0}
    for task in list(session.tasks.values()) if session is not None else ():
        if task.transfer.__class__ is PostponedRead:
            found['line'] += 1
        elif task.transfer is not None:
            found['data'] += 1
        elif task.sent_to_master:
            found['master'] += 1
        elif limits.is_waiting(task):
            found['limit'] += 1
        else:
            found['disk'] += 1
    return found
