"""The notice of a path that loses the full packets of a connection, so that logins work and then nothing
arrives.

May import base. Nothing is asked of the kernel on the path of a READ or WRITE.
"""

import socket

from targetd import tcp_info


def look_for_black_hole(connection):
    """A short packet of the initiator has arrived, or it has closed the connection: report to the master,
    once for a connection, if the full packets that were sent to it are lost. [connection]"""
    if connection.reported_black_hole:
        return
    try:
        data = connection.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, tcp_info.SIZE)
    except OSError:
        return
    info = tcp_info.parse(data)
    if tcp_info.is_black_hole(info):
        connection.reported_black_hole = True
        connection.worker.report(
            'black-hole',
            peer=list(connection.where['peer'][:2]),
            segment=info['snd_mss'],
            times=info['retransmits'] + 1,
        )
