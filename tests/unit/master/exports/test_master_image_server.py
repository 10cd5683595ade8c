"""The process that serves a disk image: started when it is needed, ended in order, or killed."""

import os
import sys

import pytest

from targetd.master.exports import image_server, nbd_connecting
from targetd.master.exports.image_server import ImageServer

#: Programs in the place of qemu-nbd: they get its words, and the listening socket as descriptor 3.
COMMON = '#!%s\nimport os, signal, socket, sys, time\n' % sys.executable
FAILS = COMMON + 'sys.exit("the image is broken")\n'
FAILS_WITH_IO_URING = COMMON + (
    'if "--aio=io_uring" in sys.argv: sys.exit("aio=io_uring is not possible")\n'
    'sys.exit("and now: " + " ".join(sys.argv[1:]))\n'
)
SAYS_WHAT_IT_HAS = COMMON + (
    'sys.exit("%s %s %s" % (os.environ["LISTEN_FDS"], os.environ["LISTEN_PID"] == str(os.getpid()), '
    'socket.socket(socket.AF_UNIX, fileno=3).getsockname().endswith("/nbd")))\n'
)
IGNORES_SIGTERM = COMMON + ('signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)\n')


@pytest.fixture
def server(tmp_path):
    """server(text): the ImageServer whose program has this text."""
    made = []

    def make(text, **more):
        program = tmp_path / 'program'
        program.write_text(text)
        program.chmod(0o755)
        image = tmp_path / 'image'
        image.write_bytes(bytes(512))
        made.append(ImageServer(str(image), 'vhdx', more.get('read_only', False), str(program)))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def why(server, seconds=1.0):
    with pytest.raises(nbd_connecting.Unavailable) as refusal:
        server.connect(None, seconds)
    return str(refusal.value)


def test_a_program_that_ends_is_quoted(server):
    text = why(server(FAILS))
    assert 'the image is broken' in text and 'qemu-img check -f vhdx' in text


def test_threads_are_used_where_io_uring_is_not_possible(server):
    text = why(server(FAILS_WITH_IO_URING), 4.0)
    assert 'and now: ' in text and '--aio=threads' in text
    assert '--persistent --shared=0 --format=vhdx' in text and '--read-only' not in text


def test_a_read_only_image_is_served_read_only(server):
    assert '--read-only' in why(server(FAILS_WITH_IO_URING, read_only=True), 4.0)


def test_the_program_gets_the_listening_socket(server):
    assert '1 True True' in why(server(SAYS_WHAT_IT_HAS))


def test_a_program_that_is_missing_is_named_with_its_package(tmp_path):
    missing = ImageServer(str(tmp_path), 'vhdx', False, 'no-such-program')
    try:
        assert 'qemu-utils' in why(missing)
    finally:
        missing.stop()


def test_a_program_that_hangs_is_killed_and_leaves_nothing(server, monkeypatch):
    monkeypatch.setattr(image_server, 'STOP_SECONDS', 0.3)
    one = server(IGNORES_SIGTERM)
    assert 'does not answer' in why(one, 0.5)
    pid, directory = one.pid, one._directory
    assert os.path.isdir(directory) and os.stat(directory).st_mode & 0o77 == 0
    one.stop()
    assert one.pid is None and not os.path.exists(directory)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    one._listener = type('Closed', (), {'close': lambda self: None})()  # stop() again is harmless
