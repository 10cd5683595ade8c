"""The latency of one command in many, for `targetdctl stats`.

May import what Connection may.
"""

from time import monotonic

from targetd.iscsi import const

#: The latency is measured of the batches that arrive while ExpCmdSN is a multiple of this. It is a
#: prime, so that batches of equal size are measured too.
MEASURED_BATCHES = 61


def act_and_measure(connection, act, count):
    """Act on a batch and send the replies; measure the latency of its first command. If that command is
    retained, Connection.finish() does so. act: Connection._act. [connection]"""
    arrived = monotonic()
    act(count)
    connection.outbox.drain()
    batch = connection._batch
    command = next((f for f, _, _ in batch if f[0] & 0x3F == const.SCSI_COMMAND), None)
    session, device = connection.session, connection.worker.device
    if command is None or session.held:
        return
    task = session.tasks.get(command[5])
    if task is not None:
        task.arrived = task.arrived or arrived
    elif device is not None:
        is_read = command[1] & const.COMMAND_READ
        connection.worker.latency.note(device.unit(command[4]), is_read, monotonic() - arrived)
