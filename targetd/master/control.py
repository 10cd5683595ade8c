"""The control socket: where `targetdctl` asks. One line of JSON each way; the table of commands is
admin.commands.

A client that is slow or silent holds a descriptor, nothing else. The socket is for its owner only
(mode 0600).
"""

import errno
import os
import socket
import stat
import time

from targetd import __version__, log
from targetd.admin import commands
from targetd.errors import TargetdError
from targetd.master.logins.portals import plain
from targetd.master.processes.loop import READ, WRITE
from targetd.master.units import transitions
from targetd.scsi import alua
from targetd.scsi.medium_state import FAILED

CONVERSATION_SECONDS = 300.0  # longer than the longest answer takes
MAXIMUM_CLIENTS = 32


class Client(object):
    """One conversation."""

    def __init__(self, sock):
        self.socket = sock
        self.received = bytearray()
        self.outgoing = b''
        self.keep_open = False  # until we are gone: how `stop` tells that it is done
        self.timer = None


class Control(object):
    """The control socket and the answers to the commands of commands.TABLE (see ANSWERS)."""

    def __init__(self, master):
        self.master = master
        self.path = None
        self._listener = None
        self._clients = set()

    # -- the socket --------------------------------------------------------------------------------------------------

    def open(self, path):
        """Listen there. A socket that nobody serves is replaced. Raises TargetdError."""
        try:
            self._remove_stale(path)
            os.makedirs(os.path.dirname(path) or '.', 0o755, exist_ok=True)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            held = os.umask(0o177)
            try:
                listener.bind(path)
            finally:
                os.umask(held)
            listener.listen(8)
        except OSError as e:
            raise TargetdError(
                'the control socket %s cannot be opened: %s; write another control-socket'
                % (path, e.strerror or e)
            )
        listener.setblocking(False)
        self._listener, self.path = listener, path
        self.master.loop.watch(listener, READ, self._arrived)

    @staticmethod
    def _remove_stale(path):
        try:
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise TargetdError(
                    'the control socket %s cannot be opened: there is a file of that name' % path
                )
        except OSError as e:
            if e.errno == errno.ENOENT:
                return
            raise
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            probe.settimeout(1.0)
            probe.connect(path)
        except OSError:
            os.unlink(path)
            return
        finally:
            probe.close()
        raise TargetdError(
            'the control socket %s cannot be opened: another program serves it' % path
        )

    def close(self):
        """Listen no more, remove the socket, end every conversation."""
        for client in list(self._clients):
            self._drop(client)
        if self._listener is not None:
            self.master.loop.forget(self._listener)
            self._listener.close()
            self._listener = None
            try:
                os.unlink(self.path)
            except OSError:
                pass

    def _arrived(self, _events):
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        if len(self._clients) >= MAXIMUM_CLIENTS:
            sock.close()
            return
        sock.setblocking(False)
        client = Client(sock)
        self._clients.add(client)
        client.timer = self.master.loop.call_later(CONVERSATION_SECONDS, lambda: self._drop(client))
        self.master.loop.watch(sock, READ, lambda events: self._ready(client, events))

    def _drop(self, client):
        self._clients.discard(client)
        client.timer.cancel()
        self.master.loop.forget(client.socket)
        client.socket.close()

    def _ready(self, client, events):
        try:
            if events & WRITE:
                self._send(client)
            elif events & READ:
                self._receive(client)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)

    def _receive(self, client):
        data = client.socket.recv(1 << 16)
        if not data:
            self._drop(client)
            return
        client.received += data
        if b'\n' in client.received or len(client.received) > commands.MAXIMUM_REQUEST:
            line, client.received = bytes(client.received.partition(b'\n')[0]), bytearray()
            self._reply(client, self._answered(client, line))

    def _reply(self, client, reply):
        """Send the reply, if it is there already and the client still is."""
        if reply is not None and client in self._clients:
            client.outgoing = reply
            self._ready(client, WRITE)

    def _send(self, client):
        while client.outgoing:
            try:
                sent = client.socket.send(client.outgoing, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self.master.loop.watch(
                    client.socket, WRITE, lambda events: self._ready(client, events)
                )
                return
            client.outgoing = client.outgoing[sent:]
        if not client.keep_open:
            self._drop(client)
        else:
            self.master.loop.watch(client.socket, READ, lambda events: self._ready(client, events))

    # -- answers -----------------------------------------------------------------------------------------------------

    def _answered(self, client, line):
        try:
            row, arguments = commands.parse_request(line)
            client.keep_open = row.words == 'stop'
            reply = self.answer(row.words, arguments)
            if callable(reply):  # the reply comes later: pass the function that sends it
                reply(lambda later: self._reply(client, later))
                return None
            return reply
        except commands.BadRequest as e:
            return commands.reply_error(str(e))
        except TargetdError as e:
            return commands.reply_error(str(e), e.exit_code)
        except Exception as e:  # the boundary: an administrator's command must not end the server
            log.exception('a command on the control socket failed')
            return commands.reply_error('an unexpected failure: %s; the log has the details' % e)

    def answer(self, words, arguments):
        """Execute a command of commands.TABLE by its row of ANSWERS.

        words: as in the row, 'show sessions'; arguments: {name: value}. Returns the reply (bytes),
        or, for a command that takes time, a function that takes the function that sends the reply.
        Raises TargetdError.
        """
        return ANSWERS[words](self, **arguments)

    def _answer_status(self):
        master = self.master
        spares = [w for w in master.workers.all() if w.state == 'spare']
        failing = [u for u in master.units.by_id.values() if u.shared.medium == FAILED]
        facts = [
            ('version', __version__),
            ('process', os.getpid()),
            ('since', when(master.started)),
            ('configuration', master.path or '(none)'),
            ('sessions', len(self._normal())),
            ('targets', len(master.configuration.targets)),
            ('units', len(master.units.by_id)),
            ('failed units', len(failing)),
            ('missing stores', len(master.exports.unavailable)),
            ('spare workers', len(spares)),
            ('state', 'stopping' if master.stop.is_stopping else 'running'),
        ]
        facts += master.isns.facts()
        return commands.reply_rows([{'name': name, 'value': str(value)} for name, value in facts])

    def _normal(self):
        return [s for s in self.master.sessions.all() if s.nexus is not None]

    def _answer_show_sessions(self):
        rows = []
        for session in self.master.sessions.all():
            row = session.described()
            row.update(since=when(session.since))
            rows.append(row)
        return commands.reply_rows(rows)

    def _answer_show_targets(self):
        master = self.master
        rows = []
        for target in master.configuration.targets.values():
            missing = master.exports.why_unavailable(target.name)
            rows.append(
                {
                    'target_name': target.name,
                    'alias': target.alias,
                    'groups': ', '.join(str(tag) for tag in target.portal_groups),
                    'units': len(target.luns),
                    'sessions': len(master.sessions.of_target(target.name)),
                    'state': 'not ready: %s' % missing if missing else target.state,
                }
            )
        return commands.reply_rows(rows)

    def _answer_show_units(self):
        rows = [self._unit_row(unit) for unit in self.master.units.by_id.values()]
        rows += [
            {
                'unit': '',
                'target_name': late.target_name,
                'lun': late.lun.number,
                'path': late.lun.backing_store,
                'size': None,
                'state': 'missing: %s' % late.why,
                'read_only': None,
                'encrypted': None,
                'reserved_by': '',
                'sessions': 0,
            }
            for late in self.master.exports.unavailable.values()
        ]
        return commands.reply_rows(sorted(rows, key=lambda row: (row['target_name'], row['lun'])))

    @staticmethod
    def _unit_row(unit):
        return {
            'unit': unit.id,
            'target_name': unit.target_name,
            'lun': unit.lun.number,
            'path': unit.store.path or unit.store.kind,
            'size': unit.store.size,
            'state': state_of(unit),
            'read_only': bool(unit.facts.get('read_only')),
            'encrypted': bool(unit.facts.get('encrypted')),
            'reserved_by': reserved_by(unit.shared.reservations),
            'sessions': len(unit.workers),
            'serial': unit.facts.get('serial'),
            'naa': unit.facts.get('naa'),
        }

    def _answer_show_portals(self):
        master = self.master
        rows = []
        for tag, group in master.configuration.portal_groups.items():
            for address, port in group.portals:
                is_open = (tag, address, port) in master.portals
                rows.append(
                    {
                        'group': tag,
                        'address': address,
                        'port': port,
                        'state': 'open' if is_open else 'closed',
                        'connections': sum(
                            len(s.peers) for s in master.sessions.all() if s.group == tag
                        ),
                    }
                )
        return commands.reply_rows(rows)

    def _answer_show_alua(self):
        rows = []
        for unit in self.master.units.by_id.values():
            if unit.facts.get('implicit_alua') or unit.facts.get('explicit_alua'):
                rows += alua_rows(unit)
        return commands.reply_rows(
            sorted(rows, key=lambda row: (row['target_name'], row['lun'], row['group']))
        )

    def _answer_alua(self, target, group, state, lun=None):
        units, word = self.master.units.of_target(target.lower()), state.lower().replace('-', '')
        if not units:
            raise TargetdError(
                'there is no target %s with units; targetdctl show targets lists them' % target
            )
        if word not in alua.STATE_OF_WORD:
            raise TargetdError(
                'there is no state %s; write one of %s'
                % (state, ', '.join(each for each, _ in alua.WORDS))
            )
        if lun is not None and lun not in units:
            raise TargetdError('target %s has no lun %d' % (target, lun))
        chosen = [unit for number, unit in units.items() if lun in (None, number)]
        for unit in chosen:
            if not (unit.facts.get('implicit_alua') or unit.facts.get('explicit_alua')):
                raise TargetdError(
                    'initiators of target %s are not told of portal groups; write alua = implicit in the '
                    'target and reload' % target
                )
            if str(group) not in unit.shared.access['states']:
                raise TargetdError(
                    'target %s is not reached through portal group %d' % (target, group)
                )
        for unit in chosen:
            self.master.units.replication.apply_decision(
                unit, transitions.access_set(unit.shared, {str(group): alua.STATE_OF_WORD[word]})
            )
        log.info('portal group %d of %s is %s, said the administrator', group, target, word)
        return commands.reply_message('portal group %d of %s is %s' % (group, target, word))

    def _answer_why(self, address=None):
        rows = [
            dict(entry, time=when(entry['when']))
            for entry in reversed(self.master.sessions.refusals)
            if address is None or plain(address) == entry['address']
        ]
        return commands.reply_rows(rows)

    def _answer_reload(self, plan=False):
        def reload_and_reply(reply):
            self.master.reload.start_reload(
                lambda rows, error: reply(
                    commands.reply_rows(rows)
                    if error is None
                    else commands.reply_error(str(error), error.exit_code)
                ),
                plan,
            )

        return reload_and_reply

    def _answer_stop(self):
        self.master.loop.call_later(0, lambda: self.master.stop.start_stop('targetdctl stop'))
        return commands.reply_message('targetd stops')

    def _answer_reopen_logs(self):
        complaint = self.master.reopen_logs()
        if complaint:
            raise TargetdError(complaint)
        return commands.reply_message('the log was opened again')

    def _session(self, number):
        session = self.master.sessions.by_tsih.get(number)
        if session is None:
            raise TargetdError(
                'there is no session %d; targetdctl show sessions lists them' % number
            )
        return session

    def _answer_logout(self, session, seconds=None):
        session, seconds = self._session(session), 10 if seconds is None else seconds
        self.master.logout_session(
            session, seconds, 'the administrator asked it to log out and it did not'
        )
        return commands.reply_message(
            '%s is asked to log out of session %d within %d seconds'
            % (session.initiator_name, session.tsih, seconds)
        )

    def _answer_end(self, session):
        session = self._session(session)
        log.info(
            'session %d of %s is ended by the administrator', session.tsih, session.initiator_name
        )
        self.master.end_session(session, 'the administrator ended it', 'administrator')
        return commands.reply_message(
            'session %d of %s is ended' % (session.tsih, session.initiator_name)
        )

    def _answer_acknowledge(self, unit):
        found = self.master.units.find(unit)
        if found is None:
            raise TargetdError('there is no unit %s; targetdctl show units lists them' % unit)
        if not self.master.exports.recover_unit(found):
            raise TargetdError('unit %s has not failed' % found.id)
        return commands.reply_message('unit %s is used again' % found.id)

    def _answer_accept(self, unit):
        target_name, number = named_lun(unit)
        if not self.master.exports.accept_medium(target_name, number):
            raise TargetdError(
                'nothing is known of lun %d of %s: whatever is found for it is taken'
                % (number, target_name)
            )
        log.warning(
            'whatever is found for lun %d of %s is taken for it, said the administrator',
            number,
            target_name,
        )
        return commands.reply_message(
            'whatever is found for lun %d of %s is taken for it; targetdctl show units tells whether '
            'it is served' % (number, target_name)
        )


#: Words of a command -> the method that executes it. Complete for every row of commands.TABLE that
#: is not local; a method named _answer_... without a row is an error (a test compares them).
ANSWERS = {
    'status': Control._answer_status,
    'show sessions': Control._answer_show_sessions,
    'show targets': Control._answer_show_targets,
    'show units': Control._answer_show_units,
    'show portals': Control._answer_show_portals,
    'show alua': Control._answer_show_alua,
    'why': Control._answer_why,
    'reload': Control._answer_reload,
    'stop': Control._answer_stop,
    'reopen-logs': Control._answer_reopen_logs,
    'logout': Control._answer_logout,
    'end': Control._answer_end,
    'acknowledge': Control._answer_acknowledge,
    'accept': Control._answer_accept,
    'alua': Control._answer_alua,
}


def named_lun(text):
    """('iqn…', 0) of 'iqn…/0'. Raises TargetdError."""
    target_name, _, number = text.lower().rpartition('/')
    if not (target_name and number.isdigit()):
        raise TargetdError('%s is no TARGET/LUN, such as iqn.2026-11.com.example:erp/0' % text)
    return target_name, int(number)


def alua_rows(unit):
    """The rows of `show alua` for one unit."""
    state, rows = unit.shared.access, []
    for tag, (now, status) in state['states'].items():
        set_by = {alua.SET_BY_COMMAND: 'initiator', alua.SET_IMPLICITLY: 'administrator'}.get(
            status, 'configuration'
        )
        rows.append(
            {
                'target_name': unit.target_name,
                'lun': unit.lun.number,
                'group': int(tag),
                'access': alua.WORD_OF_STATE[now],
                'set_by': set_by,
                'sessions': sum(
                    nexus.target_port_group_tag == int(tag) for nexus in unit.workers.values()
                ),
            }
        )
    return rows


def when(seconds):
    """A wall clock time for people."""
    return time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(seconds))


def state_of(unit):
    """The word for its medium, and what is to be said of it: why it failed, how far it is."""
    operation = unit.shared.operation
    if unit.failure:
        return '%s: %s' % (unit.shared.medium, unit.failure)
    if operation is None:
        return unit.shared.medium
    return '%s: %s' % (
        unit.shared.medium,
        operation['failed'] or '%d %%' % (unit.progress * 100 >> 16),
    )


def reserved_by(state):
    """Who has reserved a unit, for people: an initiator port, or 'all registrants'; '' if nobody."""
    if state.get('reserved_by'):
        return '%s (RESERVE)' % state['reserved_by'][0]
    if state.get('holder'):
        return '%s (persistent, type %d)' % (state['holder'][0], state['type'])
    return 'all registrants (persistent, type %d)' % state['type'] if state.get('type') else ''


__all__ = ('Control', 'when', 'reserved_by')
