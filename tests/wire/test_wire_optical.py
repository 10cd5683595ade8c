"""CD and DVD drives: an image is read, exchanged under a session, ejected and loaded."""

import json
import os
import struct

import iso
import pytest
from daemon import TARGET, eventually

pytestmark = pytest.mark.wire

ONE, TWO = 'iqn.2026-11.test:one', 'iqn.2026-11.test:two'
NO_MEDIUM, CHANGED, REMOVAL = (2, 0x3A, 0), (6, 0x28, 0), (6, 0x5A, 1)
PREVENT, ALLOW = (struct.pack('>BBBBBB', 0x1E, 0, 0, 0, wanted, 0) for wanted in (1, 0))
EVENT = bytes.fromhex('4a 01 0000 10 0000 0008 00')


@pytest.fixture
def images(tmp_path):
    """Two images of different sizes: [(path, content)]."""
    found = []
    for label, size in (('FIRST', 5000), ('SECOND', 90000)):
        path = str(tmp_path / (label.lower() + '.iso'))
        content = iso.image(label, {'HELLO.TXT': os.urandom(size)})
        with open(path, 'wb') as file:
            file.write(content)
        found.append((path, content))
    return found


def serve(daemon, path):
    lines = ['type = cd', 'backing-store = %s' % path]
    daemon.target(TARGET, ['initiator-address = ALL'], {0: lines})
    daemon.start()


def ready(sessions, daemon, name=ONE, **more):
    session = sessions(daemon, name=name, **more)
    session.clear_attentions()
    return session


def content_of(session):
    last, size = struct.unpack(
        '>II', session.run(struct.pack('>BxI4x', 0x25, 0), read=8).good().data
    )
    assert size == 2048
    read = struct.pack('>BBIBHB', 0x28, 0, 0, 0, last + 1, 0)
    return bytes(session.run(read, read=(last + 1) * 2048).good().data)


def event(session):
    """(code, status) of the medium, GET EVENT STATUS NOTIFICATION."""
    return tuple(session.run(EVENT, read=8).good().data[4:6])


def test_an_image_is_a_drive_with_a_disc(daemon, sessions, images):
    path, content = images[0]
    serve(daemon, path)
    first, second = ready(sessions, daemon), ready(sessions, daemon, TWO)  # it is shared
    for session in (first, second):
        data = session.run(struct.pack('>BBBHB', 0x12, 0, 0, 96, 0), read=96).good().data
        assert data[0] == 5 and data[1] == 0x80 and bytes(data[16:32]) == b'VIRTUAL-CDROM   '
        assert content_of(session) == content
        write = session.run(struct.pack('>BBIBHB', 0x2A, 0, 0, 0, 1, 0), out=bytes(2048))
        assert write.key == (5, 0x20, 0)
    assert daemon.units()[0]['read_only']


def test_another_image_is_loaded_under_the_sessions(daemon, sessions, images):
    (path, content), (other, other_content) = images
    serve(daemon, path)
    sees, too = ready(sessions, daemon), ready(sessions, daemon, TWO)
    serial = sees.run(struct.pack('>BBBHB', 0x12, 1, 0x80, 96, 0), read=96).good().data
    assert event(sees) == (2, 2) and event(sees) == (0, 2)
    assert 'is in the drive' in daemon.control('medium', TARGET + '/0', other)
    assert event(sees) == (2, 2)  # new medium
    for session in (sees, too):
        session.clear_attentions()
        assert content_of(session) == other_content
    again = sees.run(struct.pack('>BBBHB', 0x12, 1, 0x80, 96, 0), read=96).good().data
    assert bytes(again) == bytes(serial)
    os.remove(path)  # nothing holds the former image
    daemon.stop()
    daemon.start()
    assert content_of(ready(sessions, daemon)) == other_content
    history = json.loads(daemon.control('--json', 'history'))
    assert any('medium' in row['what'] for row in history)


def test_a_host_that_locks_the_medium_is_asked_first(daemon, sessions, images):
    (path, content), (other, _) = images
    serve(daemon, path)
    holder = ready(sessions, daemon)
    event(holder)
    holder.run(PREVENT).good()
    code, text = daemon.targetdctl('medium', TARGET + '/0', other, seconds=60)
    assert code == 1 and ONE in text and '--force' in text
    assert event(holder) == (1, 2)  # eject request
    assert content_of(holder) == content
    holder.run(ALLOW).good()
    assert 'is in the drive' in daemon.control('medium', TARGET + '/0', other)
    holder.clear_attentions()
    holder.run(PREVENT).good()
    daemon.control('medium', TARGET + '/0', path, '--force')
    holder.clear_attentions()
    assert content_of(holder) == content


def test_eject_and_load(daemon, sessions, images):
    path, content = images[0]
    serve(daemon, path)
    session, other = ready(sessions, daemon), ready(sessions, daemon, TWO)
    session.run(struct.pack('>BBBBBB', 0x1B, 0, 0, 0, 2, 0)).good()
    for each in (session, other):
        assert each.run(bytes(6)).key == NO_MEDIUM
    assert event(session) in ((3, 1), (0, 1))
    session.run(struct.pack('>BBBBBB', 0x1B, 0, 0, 0, 3, 0)).good()
    assert other.run(bytes(6)).key == CHANGED
    assert content_of(other) == content
    assert 'has no medium' in daemon.control('medium', TARGET + '/0', 'none')
    eventually(lambda: other.run(bytes(6)).key == NO_MEDIUM, 10, 'the end of the medium')
    daemon.control('medium', TARGET + '/0', path)
    session.clear_attentions()
    assert content_of(session) == content


def test_what_cannot_be_loaded_changes_nothing(daemon, sessions, images, tmp_path):
    path, content = images[0]
    serve(daemon, path)
    session = ready(sessions, daemon)
    for name, reason in (
        (str(tmp_path), 'a directory'),
        (str(tmp_path / 'none.iso'), 'does not exist'),
    ):
        code, text = daemon.targetdctl('medium', TARGET + '/0', name)
        assert code != 0 and reason in text, text
    assert session.run(bytes(6)).key is None
    assert content_of(session) == content


def test_it_is_for_drives_only(daemon):
    daemon.target(
        TARGET, ['initiator-address = ALL'], {0: ['backing-store = %s' % daemon.image('a.img')]}
    )
    daemon.start()
    code, text = daemon.targetdctl('medium', TARGET + '/0', '/tmp/a.iso')
    assert code == 1 and 'type = cd' in text
