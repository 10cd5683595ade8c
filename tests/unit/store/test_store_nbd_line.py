"""store.nbd_line: messages and descriptors between a worker and a keeper."""

import os
import socket
import threading

import pytest

from targetd.store import nbd_line


@pytest.fixture
def ends():
    ours, theirs = nbd_line.pair()
    yield ours, theirs
    ours.close()
    theirs.close()


def test_a_message_arrives_with_its_descriptor(ends):
    ours, theirs = ends
    reading, writing = os.pipe()
    nbd_line.send(ours, {'connect': 0}, (writing,))
    os.close(writing)
    words, (received,) = nbd_line.receive(theirs)
    os.write(received, b'x')
    os.close(received)
    assert words == {'connect': 0}
    assert os.read(reading, 2) == b'x'
    os.close(reading)


def test_messages_keep_their_boundaries(ends):
    ours, theirs = ends
    nbd_line.send(ours, {'why': 'it hangs'})
    nbd_line.send(ours, {'why': 'it is away'})
    assert nbd_line.receive(theirs) == ({'why': 'it hangs'}, [])
    assert nbd_line.receive(theirs) == ({'why': 'it is away'}, [])


def test_the_end_of_a_line_is_none(ends):
    ours, theirs = ends
    nbd_line.send(ours, {'connect': 0})
    ours.close()
    assert nbd_line.receive(theirs) == ({'connect': 0}, [])
    assert nbd_line.receive(theirs) is None


def test_a_new_line_is_passed_over_the_control_socket(ends):
    ours, theirs = ends
    line = nbd_line.open_line(ours.fileno(), 7, False)
    words, (other,) = nbd_line.receive(theirs)
    assert words == {'line': 7, 'writes': False}
    with socket.socket(fileno=line) as mine, socket.socket(fileno=other) as keepers:
        nbd_line.send(mine, {'connect': 1})
        assert nbd_line.receive(keepers) == ({'connect': 1}, [])


def test_a_line_to_a_keeper_that_has_ended_raises(ends):
    ours, theirs = ends
    theirs.close()
    with pytest.raises(OSError):
        nbd_line.open_line(ours.fileno(), 1)


def test_keepers_are_waited_for_until_they_end_but_not_longer():
    ours, theirs = nbd_line.pair()
    quick, its_end = nbd_line.pair()
    ended = []

    def keeper():
        assert nbd_line.receive(its_end) is None
        ended.append(True)
        its_end.close()

    thread = threading.Thread(target=keeper)
    thread.start()
    nbd_line.end_keepers([quick.detach()], 30)
    assert ended
    thread.join(10)
    nbd_line.end_keepers([ours.detach()], 0.1)  # one that does not end
    assert nbd_line.receive(theirs) is None
    theirs.close()
