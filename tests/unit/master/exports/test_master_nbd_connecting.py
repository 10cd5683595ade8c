"""master.exports.nbd_connecting: servers that cannot be used, each with a sentence that says what to do."""

import os
import socket
import struct
import threading

import pytest
from nbd_peer import FLAGS, Peer

from targetd.master.exports import nbd_connecting
from targetd.master.exports.nbd_connecting import Unavailable, connect, require_same, require_usable
from targetd.nbd import numbers, uri
from targetd.nbd.handshake import Export


def offered(size=1 << 20, flags=FLAGS, minimum=1):
    return Export(size, flags, minimum, 4096, 32 << 20, True, False, None)


def address(path):
    return uri.parse_uri('nbd+unix:///?socket=%s' % path)


@pytest.fixture
def listening(tmp_path):
    """listening(function of the accepted socket, or None) -> the Address of a server that is not one."""
    made = []

    def make(act):
        path = str(tmp_path / 's.sock')
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        listener.listen(1)
        made.append(listener)

        def accept():
            sock, _ = listener.accept()
            made.append(sock)
            act(sock)

        threading.Thread(target=accept, daemon=True).start()
        return address(path)

    yield make
    for sock in made:
        sock.close()


def test_a_server_is_connected(tmp_path):
    peer = Peer(str(tmp_path / 's.sock'))
    sock, export = connect(uri.parse_uri(peer.uri))
    assert export.size == 1 << 20 and export.flags == FLAGS
    assert sock.gettimeout() is None
    nbd_connecting.disconnect(sock)
    peer.close()


def test_a_server_on_tcp_has_its_dead_host_noticed():
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        listener.listen(1)
        there = uri.parse_uri('nbd://127.0.0.1:%d/x' % listener.getsockname()[1])
        sock = nbd_connecting._connected(there, nbd_connecting.time.monotonic() + 5)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, nbd_connecting._TCP_USER_TIMEOUT) == 60000
        sock.close()


@pytest.mark.parametrize(
    'act, text',
    [
        (lambda sock: None, 'accepts the connection and does not answer'),
        (lambda sock: sock.close(), 'closes the connection during the handshake'),
        (lambda sock: sock.sendall(b'SSH-2.0-OpenSSH_9\r\n'), 'is not an NBD server'),
        (
            lambda sock: sock.sendall(
                struct.pack('>QQ', numbers.INIT_PASSWORD, numbers.OLDSTYLE_MAGIC) + bytes(136)
            ),
            'uses the oldstyle handshake',
        ),
    ],
)
def test_what_is_not_an_nbd_server(listening, act, text):
    with pytest.raises(Unavailable, match=text):
        connect(listening(act), 0.5)


def test_a_server_that_sends_a_byte_now_and_then_is_not_waited_for(listening):
    def drip(sock):
        stop = threading.Event()
        try:
            while not stop.wait(0.05):
                sock.sendall(b'N')
        except OSError:
            pass

    with pytest.raises(Unavailable):
        connect(listening(drip), 0.5)


def test_nothing_listens(tmp_path):
    path = str(tmp_path / 'none.sock')
    with pytest.raises(Unavailable, match='No such file or directory; start the server'):
        connect(address(path))
    with socket.socket() as sock:  # a port that nobody uses
        sock.bind(('127.0.0.1', 0))
        there = uri.parse_uri('nbd://127.0.0.1:%d' % sock.getsockname()[1])
        with pytest.raises(Unavailable, match='127.0.0.1 port .*refused'):
            connect(there)


def test_what_an_export_must_offer():
    require_usable(offered(), False, 512)
    with pytest.raises(Unavailable, match='is read-only; write readonly = yes'):
        require_usable(offered(flags=FLAGS | numbers.READ_ONLY), False)
    require_usable(offered(flags=numbers.READ_ONLY), True)
    with pytest.raises(Unavailable, match='offers no FLUSH'):
        require_usable(offered(flags=FLAGS & ~numbers.SEND_FLUSH), False)
    with pytest.raises(Unavailable, match='write block-size = 4096'):
        require_usable(offered(minimum=4096), False, 512)


def test_what_a_server_must_offer_after_a_restart():
    before = (1 << 20, FLAGS, 1)
    require_same(before, offered(size=2 << 20, flags=FLAGS | numbers.SEND_CACHE), False)
    with pytest.raises(Unavailable, match='has become shorter'):
        require_same(before, offered(size=512 << 10), False)
    with pytest.raises(Unavailable, match='offers less than before'):
        require_same(before, offered(flags=FLAGS & ~numbers.SEND_TRIM), False)
    with pytest.raises(Unavailable, match='offers less than before'):
        require_same(before, offered(minimum=512), False)
    with pytest.raises(Unavailable, match='is read-only'):
        require_same(before, offered(flags=FLAGS | numbers.READ_ONLY), False)


def test_the_socket_is_closed_when_the_handshake_fails(listening):
    before = set(os.listdir('/proc/self/fd'))
    with pytest.raises(Unavailable):
        connect(listening(lambda sock: sock.sendall(bytes(18))), 0.5)
    assert len(set(os.listdir('/proc/self/fd')) - before) <= 2  # the listener, and its socket


def test_a_local_server_may_leave_more_unread_than_a_socket_usually_takes(tmp_path):
    """So many writes of a session are sent without a wait."""
    peer = Peer(str(tmp_path / 's.sock'))
    sock, _ = connect(uri.parse_uri(peer.uri))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as usual, sock:
        sizes = [each.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) for each in (usual, sock)]
    peer.close()
    assert sizes[0] < sizes[1]
