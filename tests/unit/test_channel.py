"""The channel between master and worker: frames arrive whole and in order with their descriptors,
and nothing leaks."""

import array
import gc
import json
import os
import socket
import threading

import descriptors
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targetd import channel
from targetd.channel import LENGTH, MAXIMUM_DESCRIPTORS, MAXIMUM_FRAME, Channel, ChannelClosed


@pytest.fixture
def ends():
    """(master's, worker's); both closed at the end, and no descriptor more than before."""
    gc.disable()
    try:
        before = descriptors.count_open(0)
        master, worker = channel.pair()
        yield master, worker
        master.close()
        worker.close()
        assert descriptors.count_open(0) == before
    finally:
        gc.enable()


def pipes(count):
    """`count` read ends of pipes that each hold their own number."""
    read_ends = []
    for i in range(count):
        reader, writer = os.pipe()
        os.write(writer, b'%d' % i)
        os.close(writer)
        read_ends.append(reader)
    return read_ends


def content(descriptors):
    """What each pipe holds; closes them."""
    found = []
    for descriptor in descriptors:
        found.append(os.read(descriptor, 100).decode('ascii'))
        os.close(descriptor)
    return found


def close_all(descriptors):
    for descriptor in descriptors:
        os.close(descriptor)


# -- both directions -------------------------------------------------------------------------------


def test_messages_arrive_in_order_in_both_directions(ends):
    master, worker = ends
    for i in range(3):
        worker.send({'report': 'progress', 'number': i})
        master.queue({'do': 'answer', 'id': i})
    assert [message['number'] for message, _ in master.receive()] == [0, 1, 2]
    assert [worker.read()[0]['id'] for _ in range(3)] == [0, 1, 2]
    assert master.receive() == []


def test_text_of_every_alphabet_and_hexadecimal_bytes_arrive_unchanged(ends):
    master, worker = ends
    message = {
        'do': 'answer',
        'why': 'größer \u4e2d \U0001f600 \n',
        'sense': b'\x70\0\x05'.hex(),
        'none': None,
        'list': [[1, 2]],
    }
    master.queue(message)
    assert worker.read() == (message, [])


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=20), max_size=3),
        max_size=5,
    ),
    st.lists(st.integers(1, 40), min_size=1, max_size=20),
)
def test_frames_may_be_split_anywhere(messages, cuts):
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    master = Channel(ours)
    messages = [
        {key: value for key, value in message.items() if key != '_descriptors'}
        for message in messages
    ]
    data = b''.join(
        LENGTH.pack(len(body)) + body for body in (json.dumps(m).encode('utf-8') for m in messages)
    )
    received = []
    while data:
        cut = cuts[len(data) % len(cuts)]
        theirs.sendall(data[:cut])
        data = data[cut:]
        received += master.receive()
    assert received == [(message, []) for message in messages]
    theirs.close()
    master.close()


# -- descriptors -----------------------------------------------------------------------------------


def test_descriptors_arrive_with_their_message_and_in_order(ends):
    master, worker = ends
    first, second = pipes(3), pipes(2)
    master.queue({'do': 'answer', 'id': 1}, first)
    master.queue({'do': 'change', 'id': 2})
    master.queue({'do': 'units', 'id': 3}, second)
    close_all(first + second)  # queue has copies of its own
    message, got = worker.read()
    assert message == {'do': 'answer', 'id': 1} and content(got) == ['0', '1', '2']
    assert worker.read() == ({'do': 'change', 'id': 2}, [])
    message, got = worker.read()
    assert message == {'do': 'units', 'id': 3} and content(got) == ['0', '1']


def test_as_many_descriptors_as_the_kernel_carries(ends):
    master, worker = ends
    sent = pipes(1) * MAXIMUM_DESCRIPTORS
    master.queue({'do': 'answer'}, sent)
    _, got = worker.read()
    assert len(got) == MAXIMUM_DESCRIPTORS
    close_all(got + sent[:1])
    with pytest.raises(ValueError, match='descriptors in one message'):
        worker.send({'do': 'answer'}, [0] * (MAXIMUM_DESCRIPTORS + 1))


def test_too_many_descriptors_leave_nothing_behind(ends):
    master, _ = ends
    with pytest.raises(ValueError):
        master.queue({'do': 'answer'}, [master.fileno()] * (MAXIMUM_DESCRIPTORS + 1))
    assert not master.wants_write


def test_arrived_descriptors_are_not_inherited_by_programs(ends):
    master, worker = ends
    sent = pipes(1)
    master.queue({'do': 'serve'}, sent)
    _, got = worker.read()
    assert not os.get_inheritable(got[0])
    close_all(sent + got)


def test_closing_closes_descriptors_that_were_not_taken(ends):
    master, worker = ends
    sent = pipes(2)
    master.queue({'do': 'serve'}, sent)
    close_all(sent)
    worker._recvmsg()  # received, but the message is not read


def test_closing_closes_descriptors_of_messages_that_were_read_ahead(ends):
    """Two messages arrive at once; the second is never read."""
    master, worker = ends
    sent = pipes(2)
    master.queue({'do': 'serve'}, sent[:1])
    master.queue({'do': 'serve'}, sent[1:])
    close_all(sent)
    for _ in range(2):
        worker._recvmsg()
    _, got = worker.read()
    close_all(got)


def test_closing_closes_descriptors_that_were_not_sent(ends):
    master, worker = ends
    fill(master)
    sent = pipes(1)
    master.queue({'do': 'serve'}, sent)
    close_all(sent)
    assert master.wants_write


# -- the master never waits ------------------------------------------------------------------------


def fill(master):
    """Queue messages until the socket accepts no more; returns their number."""
    count = 0
    while not master.wants_write:
        master.queue({'do': 'change', 'number': count, 'filling': 'x' * 50000})
        count += 1
    return count


def test_messages_that_do_not_fit_are_sent_when_the_socket_is_writable(ends):
    master, worker = ends
    count = fill(master)
    sent = pipes(1)
    master.queue({'do': 'serve', 'number': count}, sent)
    close_all(sent)
    for number in range(count + 1):
        master.flush()
        message, got = worker.read()
        assert message['number'] == number
    assert content(got) == ['0'] and not master.wants_write


def test_a_worker_that_is_gone_ends_the_queue(ends):
    master, worker = ends
    worker.socket.shutdown(socket.SHUT_RDWR)
    with pytest.raises(ChannelClosed):
        for _ in range(2):
            master.queue({'do': 'retire'})


def test_messages_before_the_end_are_returned_first(ends):
    master, worker = ends
    worker.send({'report': 'ended'})
    worker.socket.shutdown(socket.SHUT_RDWR)
    assert master.receive() == [({'report': 'ended'}, [])]
    with pytest.raises(ChannelClosed):
        master.receive()


def test_the_end_of_the_master_closes_the_channel_of_the_worker(ends):
    master, worker = ends
    master.queue({'do': 'end'})
    master.socket.shutdown(socket.SHUT_RDWR)
    assert worker.read()[0] == {'do': 'end'}
    with pytest.raises(ChannelClosed):
        worker.read()


def test_messages_of_many_threads_do_not_mix(ends):
    """A worker's threads send at once, each message far larger than what the socket takes in one
    piece."""
    master, worker = ends
    messages = [{'report': 'progress', 'number': i, 'filling': str(i) * 300000} for i in range(8)]
    threads = [threading.Thread(target=worker.send, args=(message,)) for message in messages]
    for thread in threads:
        thread.start()
    received = []
    while len(received) < len(threads):
        received += master.receive()
    for thread in threads:
        thread.join()
    assert sorted(message['number'] for message, _ in received) == list(range(8))
    assert all(set(message['filling']) == {str(message['number'])} for message, _ in received)


# -- a worker is not trusted -----------------------------------------------------------------------


def framed(body):
    return LENGTH.pack(len(body)) + body


@pytest.mark.parametrize(
    'data',
    [
        framed(b''),
        framed(b'x'),
        framed(b'{'),
        framed(b'\xff\xfe'),
        framed(b'[]'),
        framed(b'3'),
        framed(b'null'),
        framed(b'"x"'),
        framed(b'{"_descriptors": 1}'),
        framed(b'{"_descriptors": "x"}'),
        framed(b'{"_descriptors": null}'),
        framed(b'{"_descriptors": 1e9}'),
        framed(b'[' * 100000),
        LENGTH.pack(MAXIMUM_FRAME + 1),
        b'\xff\xff\xff\xff',
        b'GET / HTTP/1.0\r\n\r\n',
    ],
    ids=lambda data: repr(data[:24]),
)
def test_a_malformed_frame_ends_the_channel(ends, data):
    master, worker = ends
    worker.socket.sendall(data)
    with pytest.raises(ChannelClosed):
        master.receive()


def test_undeclared_descriptors_are_closed_with_the_channel(ends):
    master, worker = ends
    sent = pipes(3)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', sent))]
    worker.socket.sendmsg([framed(b'{"report": "ready"}')], ancillary)
    close_all(sent)
    assert master.receive() == [({'report': 'ready'}, [])]


def test_a_frame_that_claims_more_descriptors_than_came_closes_those_that_came(ends):
    master, worker = ends
    sent = pipes(1)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', sent))]
    worker.socket.sendmsg([framed(b'{"_descriptors": 2}')], ancillary)
    close_all(sent)
    with pytest.raises(ChannelClosed, match='claims 2 descriptors, and 1 arrived'):
        master.receive()


def test_a_flood_of_descriptors_ends_the_channel(ends):
    master, worker = ends
    ancillary = [
        (
            socket.SOL_SOCKET,
            socket.SCM_RIGHTS,
            array.array('i', [worker.fileno()] * MAXIMUM_DESCRIPTORS),
        )
    ]
    with pytest.raises(ChannelClosed, match='descriptors arrived that belong to no message'):
        for _ in range(4):
            worker.socket.sendmsg([framed(b'{"report": "ready"}')], ancillary)
            master.receive()


def test_a_worker_that_never_stops_sending_does_not_block_the_master(ends, monkeypatch):
    master, worker = ends
    data = framed(b'{"report": "ready"}')

    def endless(size, room, flags):
        return data, [], 0, None

    monkeypatch.setattr(master, 'socket', Endless(master.socket, endless))
    assert 0 < len(master.receive()) < 1000


class Endless(object):
    """A socket that always has something to read."""

    def __init__(self, real, recvmsg):
        self.recvmsg = recvmsg
        self.close = real.close


def test_a_descriptor_that_cannot_be_copied_leaves_nothing_behind(ends):
    master, _ = ends
    with pytest.raises(OSError):
        master.queue({'do': 'serve'}, [master.fileno(), 1 << 30])
    assert not master.wants_write


def test_a_long_frame_is_refused_before_it_is_kept(ends):
    master, worker = ends
    worker.socket.sendall(LENGTH.pack(MAXIMUM_FRAME + 1) + b'x' * 1000)
    with pytest.raises(ChannelClosed, match='a frame of %d bytes' % (MAXIMUM_FRAME + 1)):
        master.receive()


def test_a_message_that_is_too_long_is_not_sent(ends):
    master, worker = ends
    with pytest.raises(ValueError, match='too long for the channel'):
        worker.send({'report': 'progress', 'filling': 'x' * MAXIMUM_FRAME})
    before = descriptors.count_open()
    with pytest.raises(ValueError, match='too long for the channel'):
        master.queue({'do': 'answer', 'filling': 'x' * MAXIMUM_FRAME}, [worker.fileno()])
    assert descriptors.count_open() == before
    assert not master.wants_write


@pytest.mark.parametrize('reader, method', [(0, 'receive'), (1, 'read')])
def test_an_end_that_closes_with_unread_messages_is_a_closed_channel(ends, reader, method):
    """The kernel then reports ECONNRESET and not end of file; a worker must still end in order."""
    mine, other = ends[reader], ends[1 - reader]
    mine.send({'report': 'progress'})
    other.close()
    with pytest.raises(ChannelClosed):
        getattr(mine, method)()
