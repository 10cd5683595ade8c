"""The state that a master hands over to the program that replaces it (ARCHITECTURE D24): its form in a
memory file, and what becomes of it in the new program.

     collect --> plain values, numbers of descriptors --> write --(the same process, or a trial)--> read
                                                                              |
     master that serves <-- start_serving <-- restore (no other process notices it)

The file is one line of JSON, the head, and then the values. A program that cannot read them still reads
the head, and says why it refuses. The values consist of numbers, texts, lists, tuples and dicts; they
never name a class or a function of a version.
"""

import io
import json
import os
import pickle
import signal
import socket

from targetd import __version__, log
from targetd import channel as channels
from targetd.admin import commands
from targetd.config import lun_maps
from targetd.config.words import counted
from targetd.errors import TargetdError
from targetd.master import feasible
from targetd.master.log_files import adopted_writer
from targetd.master.logins.sessions import SessionRecord
from targetd.master.processes import child
from targetd.master.upgrade import handover_units
from targetd.scsi.sam import Nexus
from targetd.store import failure_flags

#: The number of the form of the values. It changes when a program that reads the form before would
#: misunderstand them; a row that is missing, or new, is an exception in restore(), and so a refusal.
FORMAT = 1


class Refused(TargetdError):
    """The state cannot be taken over."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        raise Refused('the state has an object of %s.%s; restart targetd instead' % (module, name))


# -- the memory file -------------------------------------------------------------------------------


def write(descriptor, state):
    """Write the state, or None for the head alone, to an empty memory file."""
    head = {'format': FORMAT, 'channel': channels.PROTOCOL, 'version': __version__}
    data = json.dumps(head, sort_keys=True).encode('ascii') + b'\n' + pickle.dumps(state, 4)
    while data:
        data = data[os.write(descriptor, data) :]


def read(descriptor):
    """(head, state) of a memory file. Raises Refused."""
    size = os.fstat(descriptor).st_size
    line, _, rest = os.pread(descriptor, size, 0).partition(b'\n')
    head = json.loads(line.decode('ascii'))
    for name, mine in (('format', FORMAT), ('channel', channels.PROTOCOL)):
        if head[name] != mine:
            raise Refused(
                'the %s of version %s has the format %s, and version %s has the format %d: they cannot '
                'work together; restart targetd instead, which ends the sessions'
                % (
                    {'format': 'state', 'channel': 'worker protocol'}[name],
                    head['version'],
                    head[name],
                    __version__,
                    mine,
                )
            )
    return head, _PlainUnpickler(io.BytesIO(rest)).load()


# -- the old program -------------------------------------------------------------------------------


def collect(master):
    """(state, [descriptor that the new program needs]) of a Master that is quiet (upgrade.Upgrade)."""
    kept = []

    def keep(descriptor):
        kept.append(descriptor)
        return descriptor

    flags, given_out = failure_flags.handed_over()
    state = {
        'path': master.state.path,
        'foreground': master.log_files.foreground,
        'started': master.state.started,
        'pid_file': keep(master.pid_file.descriptor),
        'state_lock': _kept(master.replication.state.descriptor, keep),
        'vault': keep(master.state.vault.descriptor),
        'flags': (keep(flags), given_out),
        'log': master.log_files.handed_over(keep),
        'children': _children(master),
        'control': master.control.handed_over(keep),
        'workers': master.workers.handed_over(keep),
        'sessions': [_session_row(session) for session in master.sessions.all()],
        'refusals': master.sessions.refusals,
        'last_check': master.sessions.last_check,
        'last_acknowledgement': master.replication.acknowledgements.last_id,
        'logins': _logins(master, keep),
        'counters': master.counting.handed_over(),
        'subtracted': master.units.statistics.subtracted,
        'limits': master.rate_limits.handed_over(keep),
        'units': handover_units.collect(master, keep),
    }
    return dict(state, descriptors=sorted(set(kept))), kept


def _kept(descriptor, keep):
    return None if descriptor is None else keep(descriptor)


def _children(master):
    return master.jobs.unreaped + master.saver.children + master.log_files.children


def _session_row(session):
    return {
        'nexus': session.nexus and tuple(session.nexus),
        'tsih': session.tsih,
        'pid': session.worker.pid,
        'initiator_name': session.initiator_name,
        'initiator_alias': session.initiator_alias,
        'account': session.account,
        'proved': session.proved,
        'keys': session.keys,
        'group': session.group,
        'since': session.since,
        'peers': session.peers,
        'address': session.address,
        'lun_map': lun_maps.as_plain(session.lun_map),
        'satisfied': session.satisfied,
        'is_proxied': session.is_proxied,
        'ended_why': session.ended_why,
        'logout_by': session.logout_by,
    }


def _logins(master, keep):
    pending = [
        (int(each.socket.family), keep(each.socket.fileno()), each.group, each.proxied_client())
        for each in master.pending_connections.by_age
        if each.socket is not None
    ]
    return {
        'portals': master.listeners.handed_over(keep),
        'pending': pending,
        'known': list(master.router.known),
        'names': master.origins.names.handed_over(),
        'throttle': master.throttle.handed_over(),
    }


# -- the new program -------------------------------------------------------------------------------


def restore(master, state, version):
    """Give a new Master the state. No other process notices that, so a trial does the same. version: of the
    program that has handed it over."""
    for descriptor in state['descriptors']:
        os.set_inheritable(descriptor, False)
    configuration = master.state.configuration
    master.state.started = state['started']
    master.workers.credentials = feasible.credentials(configuration.server.user)
    master.workers.generation += 1
    master.workers.take_over(state['workers'], version)
    master.jobs.adopt_children(state['children'])
    master.replication.state.descriptor = state['state_lock']
    master.replication.acknowledgements.last_id = state['last_acknowledgement']
    failure_flags.take_over(*state['flags'])
    for row in state['sessions']:
        _restore_session(master, row)
    master.sessions.refusals = state['refusals']
    master.sessions.last_check = state['last_check']
    handover_units.restore(master, state['units'])
    _restore_logins(master, state['logins'])
    master.counting.take_over(state['counters'])
    master.units.statistics.subtracted.update(state['subtracted'])
    master.rate_limits.take_over(state['limits'], master.workers.by_pid)


def _restore_session(master, row):
    worker = master.workers.by_pid[row['pid']]
    nexus = Nexus(*row['nexus']) if row['nexus'] else None
    session = SessionRecord(nexus, row['tsih'], worker, {'session': row}, row['since'])
    session.proved, session.peers = row['proved'], row['peers']
    if 'lun_map' in row:  # an earlier program has no maps
        session.address, session.lun_map = row['address'], lun_maps.from_plain(row['lun_map'])
    session.ended_why, session.logout_by = row['ended_why'], row['logout_by']
    session.satisfied, session.is_proxied = row['satisfied'], row['is_proxied']
    master.sessions.adopt(session)


def _restore_logins(master, words):
    master.listeners.take_over(words['portals'], master.state.configuration.portal_groups)
    master.throttle.take_over(words['throttle'])
    master.router.known.update((address, None) for address in words['known'])
    master.origins.names.take_over(words['names'])


def use_log(state):
    """Log to the log writer of the old program. Returns its LogWriter, or None."""
    writer = adopted_writer(state['log'])
    if writer is not None:
        writer.use()
    return writer


def start_serving(master, state, version, writer):
    """The old program is gone: use what it has handed over. writer: what use_log() has returned."""
    master.watch_signals()
    log.set_level(master.state.configuration.server.log_level)
    if writer is not None:
        master.log_files.adopt_writer(writer)
    reply = master.control.take_over(state['control'])
    for family, descriptor, group, client in state['logins']['pending']:
        sock = socket.socket(family, socket.SOCK_STREAM, 0, descriptor)
        master.pending_connections.adopt(sock, group, client)
    master.listeners.look_later()
    master.isns.apply_configuration(master.state.configuration)
    for worker in master.workers.all():
        master.workers.retire(worker)
    handover_units.start_serving(master)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, child.SIGNALS)
    master.loop.call_later(0, master.reap)
    master.loop.call_later(0, master.log_files.renew_writer)
    count = len(master.sessions.normal())
    text = 'targetd %s serves now (before: %s); %s' % (
        __version__,
        version,
        '%s with the old program until the logout'
        % ('1 session continues' if count == 1 else counted(count, 'session') + ' continue'),
    )
    log.info('%s', text)
    reply(commands.reply_message(text))
