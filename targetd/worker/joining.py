"""A further connection of a session: its login was done by another worker, and this one, which serves the
session, sends the last Login Response (ARCHITECTURE D2).

     spare: login, claim --> master: checks --join--> this worker: last response, full feature phase

Runs in the connection's thread. Nothing here was sent by an initiator that has not proved what the
session requires. May import iscsi.
"""

from targetd import log
from targetd.iscsi import const, serial
from targetd.iscsi.errors import LoginFailure
from targetd.iscsi.login_result import joined_session_values
from targetd.iscsi.pdu import LoginResponse
from targetd.worker.connection_login import (
    Start,
    begin_connection,
    run_connection,
    send_pdus,
    shown,
)

SHORTEST_SEGMENT = 512  # RFC 7143 13.12


def serve_joined_connection(worker, sock, order, members, session):
    """Serve the connection to its end; returns (reason, True if it ended in order).

    order: the order `join`; members, session: of the session that it joins, None if that is over."""
    where, cid = order['connection'], order['cid']
    response = LoginResponse.decode(bytes.fromhex(order['login']['response']))
    sock.setblocking(True)
    try:
        connection = _begin(worker, sock, order, members, session, response)
    except (LoginFailure, OSError) as e:
        log.info('%s: connection %d has not joined its session: %s', shown(where), cid, e)
        _refuse(sock, response, e)
        sock.close()
        if session is not None:
            worker.report('closed', peer=where['peer'], cid=cid)
        return str(e), session is None
    finally:
        if session is not None:
            members.settle(cid)
    return run_connection(connection, members, where)


def _begin(worker, sock, order, members, session, response):
    cid = order['cid']
    if session is None or not members.expect(cid):
        status = const.SESSION_DOES_NOT_EXIST
        raise LoginFailure(status[0], status[1], 'the session is about to end')
    values = joined_session_values(order['keys'], session.login, members.count_others(cid))
    values['MaxRecvDataSegmentLength'] = max(SHORTEST_SEGMENT, values['MaxRecvDataSegmentLength'])
    response.exp_cmd_sn, response.max_cmd_sn = session.exp_cmd_sn, session.max_cmd_sn
    response.data = bytes.fromhex(order['login']['answer'])
    start = Start(
        cid, serial.add(response.stat_sn, 1), order['login']['declared'], values, b'', response
    )
    return begin_connection(
        worker, sock, order['connection'], session, members, start, order['tap']
    )


def _refuse(sock, response, error):
    if not isinstance(error, LoginFailure):
        return
    response.transit, response.nsg, response.data = False, 0, b''
    response.status_class, response.status_detail = error.status_class, error.status_detail
    try:
        send_pdus(sock, [response])
    except OSError:
        pass
