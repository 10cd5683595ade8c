"""Frames and descriptors between the master and a worker, over a Unix stream socket pair.

A frame is a 4-byte big-endian length and a JSON object; descriptors travel with SCM_RIGHTS beside the
frame's first byte. The format is JSON because the master does not trust a worker; bytes are sent as
hex digits. The master's end is non-blocking (`queue`, `flush`, `receive`); a worker's end blocks
(`send` from any of its threads, `read` from its control thread only).

The catalogue. `do`: an order from the master; `ask`: a worker's request, answered by {'do': 'answer',
'id': ...}; `report`: a one-way message from a worker. `unit` is the unit's id, a string that is the same
for the life of the export.

master -> worker
  serve      connection, session_values, + [socket]       a new connection for a spare
             connection: {peer: [address, port], local: [address, port], group: portal group tag,
             evidence: {access rule: '' or why it does not match}, see config.acl, absent if there is none}
             session_values: the keys of the session with the TSIH of the login, absent if there is
             none; capture, + a second socket: record the connection from its first PDU on, as the
             order `capture`; also with join
  join       connection, tsih, cid, keys, login, + [socket]   a further connection for the session of
             this worker: a spare has done its login, but for the last response. keys, login: of its
             claim
  answer     id, status_class, status_detail, why         to ask claim, refused (class != 0)
             id, status_class 0, tsih, units, more + [descriptors]      units is [] for a
             further connection, and for discovery; more: true if `units` orders follow, for which
             the login waits
  answer     id, status, sense, data                      to the other asks; sense, data: hex or
             null
  change     id, unit, and any of: reservations, modes, medium, access, progress, hanging, watched,
             restriction, sleep (see units), size (bytes),
             records, key (hex: the new key of the medium), attentions [[asc, ascq], …],
             abort {tas: bool}: end every task of this nexus at the unit except the one that
             asked (tas: with TASK ABORTED status); acknowledged when the change is in force and
             the aborted
             tasks are quiet
  units      id, add [unit…], remove [lun…], replace [unit…], attentions [[asc, ascq], …], last:
             true if the units of a login are complete + [descriptors]   the nexus's units
             are added, removed, or have another store (same `unit`, perhaps another size, a new
             descriptor); the attentions become pending in every unit that the nexus keeps;
             acknowledged when in force
  operate    operation, store, + [descriptor, claim]      a spare formats or sanitizes this medium
             (scsi.operations)
  logout     seconds                                      send an asynchronous message asking for
             logout (RFC 7143 11.9.1)
  check-connections  id                                   the initiator logs in once more, through
             another portal group or with another ISID: answer with `continues`, unless the session ends now
  count      id                                           report the counters of the session
  line       id                                           report what the connections of the session do
  limits     session, luns, timed + [memory file]         the limits of the session's units from now on,
             sent before the answer to the claim and when they change: rows [place, commands, bytes], or
             [place, commands, bytes, burst], of scsi.limits.Limit, of every unit (session), and of some
             ({number as a text: [row…]}); timed: [numbers of the units whose stores are timed]
  capture    tsih, data + [socket]                        record the PDUs of this session into the
             socket, with so many bytes of user data each (pcapng.Record)
  end        why, reason                                  end the session now: 'reinstated',
             'stopped', 'administrator', …
  retire                                                  a spare: exit; a busy worker: exit when
             its session is over

worker -> master
  report ready                                            a new spare can serve
  report log          level, text, kind                   a line for the log: see targetd.log
  report idle         why                                 the worker is a spare again: its session
             ended by a logout, or a login failed
  report acknowledge  id                                  of change and units
  report failed       unit, text                          a flush or write failed and data is lost:
             the master must fence the unit
  report refused      peer, initiator_name, target_name, why, status_class, status_detail,
             response   a login was refused before its claim; response: null, or, if the answer to
             `authenticate` was delayed, the Login Response in hex digits, which the master sends
  report closed       peer, cid                           a connection ended, or its login failed,
             and the session continues
  report continues    id                                  of check-connections: a connection of the
             session is open, or it waits for a reassignment
  report ended        why, hangs, quiet                   the session is over, cleanly; the worker
             exits next, or, if commands hang, when they have returned
  report counted      id, units, more                     of count (id 0: the session is over):
             units [[unit, reads, bytes read, writes, bytes written, other commands, errors, unfinished
             commands, oldest, latencies of reads, latencies of others] …], of the units that have received a
             command; latencies [[bucket, samples] …], see scsi.counters; oldest: microseconds for
             which the store has not answered a command, of a unit whose store is timed, else 0; more:
             true if another report follows
  report line         id, at, connections, counted, waiting   of line: at: clock, microseconds;
             connections [[CID, TCP_INFO in hex digits, congestion control, bytes queued] …]; counted
             [reads, bytes read, writes, bytes written, other commands]; waiting {line, data, limit, master,
             disk: number of unfinished commands that wait for it}
  report black-hole   peer, segment, times                an initiator that is heard does not
             acknowledge segments of so many bytes, which were sent so often
  report ring         tsih, why, data                     capture-on-error: the last PDUs, records in
             hex digits
  report hanging      unit, commands, command, lba, milliseconds   the oldest of the commands that the
             medium does not answer: its name, LBA or null, age; commands 0: there are none any more
  report fence-over   unit                                no aborted command can write the unit any
             more
  report attention    unit, asc, ascq                     a real device has established this unit attention
             condition: the other nexuses have it too
  report copy-left    unit                                a unit that `copy-reach` returned is no
             longer used; once for each copy-reach
  report note         unit, kind, note                    an event that all nexuses must know: see
             scsi.records
  report progress     position, lasting                   bytes of the operation that are done;
             lasting: on the medium
  report operated     failed                              the operation is over; why it failed, or
             ''; then report idle
  ask claim      session {initiator_name, initiator_alias, isid, target_name, group, tsih, cid,
             account, keys}, peer
             tsih not 0: also login {response: the header of the last login response, answer: its data,
             both in hex digits, declared: the MaxRecvDataSegmentLength of the target}; the connection
             continues in the worker of that session
  ask challenge  peer, target_name or null, initiator_name, offered: the value of CHAP_A; answer has
             pairs [[key, value] …], failed: why or '', status: of the failure, null: see
             is_authentication; is_delayed: the master sends the answer to the failure; account or null
  ask authenticate  peer, values {CHAP_N, CHAP_R, CHAP_I, CHAP_C}; answer as to challenge
  ask persistent-reserve-out  unit, service_action, scope, type, key, service_action_key, flags,
             transport_ids, …
  ask reserve | release       unit, third_party …
  ask mode-select             unit, pages, save, revert
  ask operate                 unit, kind: 'format' | 'sanitize', method, pattern, passes, invert,
             ause, immediate; see
                              scsi.operations
  ask exit-failure-mode       unit
  ask set-identifying-information | set-timestamp | log-select    unit, …: see scsi.records
  ask refresh                 unit, which another server serves: the replica of its reservations is
             made current before the answer
  ask statistics              unit, control, pointer, length, as in LOG SENSE: data of the answer is log
             page 19h (master.statistics)
  ask set-target-port-groups  unit, states {tag: state}, see scsi.alua
  ask token-populate          unit, ranges [[offset, length] …] bytes, seconds: data of the answer
             is the token (master.units.rod_tokens)
  ask token-use               unit: the unit that is written, token: hex, last: bool; answer has
             source: unit, ranges, store, and
                              + [a read-only descriptor], unless the worker serves the source itself
  ask token-used              unit, token: hex         refused if the token was revoked meanwhile
  ask token-revoke            unit, offset, length     before these bytes are written; revokes the
             tokens for them
  ask token-list              unit: answer has tokens [hex …], of each the part that is not secret
  ask copy-reach              unit: the unit that received the copy command, code_set, kind
             (ASSOCIATION and type), designator: hex; answer
                              has reached: the unit of another target with this designator, as
                              below, and target_name, +
                              [descriptor], if the initiator may log in there, else null. Changes
                              of it are sent until `copy-left`
  ask wake                    unit: its disk sleeps and is accessed now; answered when it is ready
  ask spin                    unit, action: 'up' | 'down', immediate: START STOP UNIT, if the disk spins
             down
  ask guard                   unit, kind: why old blocks must be kept (store.guarding); the answer comes
             when they are kept; kind 'segment': of the undo journal; answer has capacity (bytes of
             the journal), + [segment, file for range locks] (store.undoing)
  ask start-stop              unit, action: 'start' | 'stop' | 'load' | 'eject'
  ask prevent                 unit, prevent: bool
  ask fence      unit                                     an aborted command may still write the unit;
             answered when every session answers BUSY for it
  ask leave                                               the session logs out; answered when the
             resources of its nexus are released
  ask reset                   function: 'clear-task-set' | 'logical-unit-reset' |
             'target-warm-reset' | 'target-cold-reset' |
                              'i-t-nexus-reset', unit

A unit, as sent in answer (claim) and in units:
  {lun, number: of the LUN in the configuration, unit, descriptor: index into the descriptors or null,
   store: {kind: 'file'|'block'|'ram'|'null', path, size, read_only, direct, filters: [[name, {…}],
   …],
           cipher_key: hex digits of its encryption key, or '', capabilities…,
           flag: its failure flag (store.failure_flags), is_shared: true if other processes use the
           same open file description, or absent},
   claim: index of a further descriptor that keeps the medium claimed, or absent,
   facts: {block_size, physical_block_size, lowest_aligned_block, vendor, product, revision,
   serial, naa, eui, t10, scsi_name,
           rotation_rate, thin, removable, read_only, …},
   reservations: see scsi.reservations, modes: see scsi.modes, access: see scsi.alua,
   medium: 'ready'|'stopped'|'ejected'|'failed', or a state of scsi.operations, progress: 0..65535,
   hanging: ANSWERS, HANGS or FENCED of scsi.medium_state,
   sleep: of store.sleeping, null if the disk never sleeps,
   records: see scsi.records, since: time of its export, milliseconds since 1970,
   watched: [[offset, end] …], bytes that ROD tokens represent (master.units.rod_tokens),
   guard: true if the worker asks `guard` before it writes (store.guarding),
   undo: true if it records old blocks in the undo journal (store.undoing),
   restriction: what on-error has done, one of scsi.faults.RESTRICTIONS,
   atomic: {descriptor: index, slot: number or null, path} of the journal, or absent
   (master.units.atomic_slots, store.atomic)}
"""

import array
import json
import os
import socket
import struct
import threading
from collections import deque

#: The number of the catalogue above. After an upgrade without a logout (ARCHITECTURE D24) the new
#: master talks to old workers, so the number changes with every change of the catalogue that a worker
#: or a master of the number before would not understand.
PROTOCOL = 1

LENGTH = struct.Struct('>I')
# Far above the message of a reload with every unit; a longer frame comes from a broken or hostile peer.
MAXIMUM_FRAME = 8 << 20
RECEIVE_BYTES = 1 << 16
RECEIVES_PER_CALL = MAXIMUM_FRAME // RECEIVE_BYTES
MAXIMUM_REQUEST = 1 << 20  # the longest frame of a worker; the longest request has some 200 KiB
MAXIMUM_DIGITS = 64  # of a number: the time to convert digits grows with their square
MAXIMUM_DESCRIPTORS = 250  # the kernel's SCM_MAX_FD is 253; more descriptors need further frames


class ChannelClosed(Exception):
    """The other end is closed, or it sent a malformed frame."""


class MalformedFrame(ChannelClosed):
    """The other end sent a malformed frame, so nothing can be received any more."""


def pair(longest_frame=MAXIMUM_FRAME):
    """Return two connected Channels: (the master's, the worker's). longest_frame: bytes that the
    master accepts in one frame."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setblocking(False)
    return Channel(ours, longest_frame), Channel(theirs)


def adopt(descriptor, received):
    """The master's end of a channel that another program has opened. received: the beginning of a frame
    that it has read already."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptor)
    sock.setblocking(False)
    channel = Channel(sock, MAXIMUM_REQUEST)
    channel.received += received
    return channel


def _integer(digits):
    if len(digits) > MAXIMUM_DIGITS:
        raise ValueError('a number of %d digits' % len(digits))
    return int(digits)


def _no_constant(word):
    raise ValueError('%s is not a JSON number' % word)


_decode = json.JSONDecoder(parse_int=_integer, parse_constant=_no_constant).decode


_encode = json.JSONEncoder(separators=(',', ':')).encode


def _pack(message):
    body = _encode(message).encode('utf-8')
    if len(body) > MAXIMUM_FRAME:
        raise ValueError('a message of %d bytes is too long for the channel' % len(body))
    return LENGTH.pack(len(body)) + body


class Channel(object):
    """One end of a channel. close() also closes the descriptors that arrived and were not read."""

    def __init__(self, sock, longest_frame=MAXIMUM_FRAME):
        self.socket = sock
        self._longest_frame = longest_frame
        self.received = bytearray()
        self._descriptors = deque()
        self._frames = deque()  # whole messages that read() has not returned yet
        self._outgoing = deque()  # [bytes still to send, descriptors that travel with them]
        self._lock = threading.Lock()  # a worker's threads send one at a time

    def fileno(self):
        return self.socket.fileno()

    # -- either end --------------------------------------------------------------------------------

    def _take_frames(self):
        """Move every whole message from the received bytes to `_frames`. Raises ChannelClosed at the
        first malformed frame."""
        while len(self.received) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self.received)
            if length > self._longest_frame:
                raise MalformedFrame('a frame of %d bytes' % length)
            if len(self.received) < LENGTH.size + length:
                break
            body = bytes(self.received[LENGTH.size : LENGTH.size + length])
            del self.received[: LENGTH.size + length]
            self._frames.append(self._with_descriptors(body))

    def _with_descriptors(self, body):
        try:
            message = _decode(body.decode('utf-8'))
            if not isinstance(message, dict):
                raise ValueError('it is not a JSON object')
            count = message.pop('_descriptors', 0)
            if not 0 <= count <= len(self._descriptors):
                raise ValueError(
                    'it claims %r descriptors, and %d arrived' % (count, len(self._descriptors))
                )
            return message, [self._descriptors.popleft() for _ in range(count)]
        except (ValueError, AttributeError, TypeError, RecursionError) as e:
            raise MalformedFrame('not a message: %s' % e)

    def _recvmsg(self):
        """Receive once. Returns the number of bytes."""
        room = socket.CMSG_LEN(MAXIMUM_DESCRIPTORS * 4)
        try:
            data, ancillary, _, _ = self.socket.recvmsg(
                RECEIVE_BYTES, room, getattr(socket, 'MSG_CMSG_CLOEXEC', 0)
            )
        except ConnectionResetError as e:  # the other end closed while messages to it were unread
            raise ChannelClosed(str(e))
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                arrived = array.array('i')
                arrived.frombytes(content[: len(content) - len(content) % arrived.itemsize])
                self._descriptors.extend(arrived)
        if not data:
            raise ChannelClosed('the other end is closed')
        # enough for the incomplete frame and the one after it
        if len(self._descriptors) > 2 * MAXIMUM_DESCRIPTORS:
            raise MalformedFrame(
                '%d descriptors arrived that belong to no message' % len(self._descriptors)
            )
        self.received += data
        return len(data)

    @staticmethod
    def _framed(message, descriptors):
        if descriptors:
            if len(descriptors) > MAXIMUM_DESCRIPTORS:
                raise ValueError('%d descriptors in one message' % len(descriptors))
            message = dict(message, _descriptors=len(descriptors))
        return _pack(message)

    def _sendmsg(self, data, descriptors):
        ancillary = ()
        if descriptors:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', descriptors))]
        try:
            return self.socket.sendmsg([data], ancillary, getattr(socket, 'MSG_NOSIGNAL', 0))
        except (BrokenPipeError, ConnectionResetError) as e:
            raise ChannelClosed(str(e))

    def close(self):
        """Close the socket and every descriptor that was not read or sent. [any]"""
        for descriptors in [self._descriptors] + [
            waiting[1] for waiting in list(self._frames) + list(self._outgoing)
        ]:
            for descriptor in descriptors:
                os.close(descriptor)
        for waiting in (self._descriptors, self._frames, self._outgoing):
            waiting.clear()
        self.socket.close()

    # -- the worker's end, blocking ----------------------------------------------------------------

    def send(self, message, descriptors=()):
        """Send the whole message; blocks. Any thread of a worker. Raises ChannelClosed."""
        data = memoryview(self._framed(message, descriptors))
        with self._lock:
            while data:
                data = data[self._sendmsg(data, descriptors) :]
                descriptors = ()

    def has_frame(self):
        """Return True if read() does not have to receive. A worker's control thread only."""
        if not self._frames:
            self._take_frames()
        return bool(self._frames)

    def read(self):
        """Return the next (message, descriptors); blocks. A worker's control thread only. Raises
        ChannelClosed."""
        while not self._frames:
            self._take_frames()
            if not self._frames:
                self._recvmsg()
        return self._frames.popleft()

    # -- the master's end, non-blocking ------------------------------------------------------------

    def queue(self, message, descriptors=()):
        """Queue a message and send what the socket accepts now. The descriptors are duplicated: the
        caller still owns its descriptors. Raises ChannelClosed."""
        entry = [memoryview(self._framed(message, descriptors)), []]
        self._outgoing.append(entry)
        try:
            entry[1].extend(os.dup(descriptor) for descriptor in descriptors)
        except OSError:
            self._outgoing.pop()
            for descriptor in entry[1]:
                os.close(descriptor)
            raise
        self.flush()

    @property
    def wants_write(self):
        """True while queued bytes are waiting for space in the socket."""
        return bool(self._outgoing)

    def flush(self):
        """Send what the socket accepts now. Raises ChannelClosed."""
        while self._outgoing:
            entry = self._outgoing[0]
            try:
                sent = self._sendmsg(entry[0], entry[1])
            except BlockingIOError:
                return
            for descriptor in entry[1]:
                os.close(descriptor)
            entry[0], entry[1] = entry[0][sent:], ()
            if not entry[0]:
                self._outgoing.popleft()

    def receive(self):
        """Return [(message, descriptors), …] of the whole messages that have arrived. Raises
        ChannelClosed when the channel is closed and every message before that was returned.

        One call receives at most the length of the longest frame: a worker that never stops sending
        must not keep the master from its other work. The socket stays readable for the rest.
        """
        for _ in range(RECEIVES_PER_CALL):
            try:
                is_drained = self._recvmsg() < RECEIVE_BYTES
            except BlockingIOError:
                break
            except ChannelClosed:
                if self._frames:
                    break  # the next call raises it again
                raise
            self._take_frames()
            if is_drained:
                break
        frames = list(self._frames)
        self._frames.clear()
        return frames
