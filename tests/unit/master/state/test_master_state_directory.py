"""State files: written whole or not at all, synced, and never replaced by an empty state."""

import errno
import os

import pytest

from targetd.errors import StoreError
from targetd.master.state.state_directory import StateDirectory


def test_a_state_file_has_the_whole_old_or_the_whole_new_state(tmp_path, monkeypatch):
    state = StateDirectory(str(tmp_path / 'state'))
    assert state.load('a') == {}
    state.save('a', {'x': 1})
    state.save('b', {'x': 2})
    assert state.load('a') == {'x': 1} and state.load('b') == {'x': 2}

    def fail(descriptor):
        raise OSError(errno.EIO, 'Input/output error')

    with monkeypatch.context() as patch:
        patch.setattr('targetd.master.state.state_directory.os.fsync', fail)
        with pytest.raises(OSError):
            state.save('a', {'x': 3})
    assert state.load('a') == {'x': 1}
    assert [n for n in os.listdir(str(tmp_path / 'state' / 'units')) if n.endswith('.new')] == []
    state.save('a', {})
    state.save('a', {})
    assert state.load('a') == {}


def test_a_state_file_is_synced_before_and_its_directory_after_the_rename(tmp_path, monkeypatch):
    happened = []
    (tmp_path / 'units').mkdir()  # a new directory is synced, too: test_durable.py
    for name in ('fsync', 'rename'):
        real = getattr(os, name)
        monkeypatch.setattr(
            'targetd.master.state.state_directory.os.' + name,
            lambda *a, real=real, name=name, **k: (happened.append(name), real(*a, **k)),
        )
    StateDirectory(str(tmp_path)).save('a', {'x': 1})
    assert happened == ['fsync', 'rename', 'fsync']


@pytest.mark.parametrize(
    'content',
    ['', '{', '[]', '{"version": 1}', '{"version": 2, "state": {}}', '{"version": 1, "state": 3}'],
)
def test_a_damaged_state_file_is_an_error(tmp_path, content):
    state = StateDirectory(str(tmp_path))
    state.save('a', {'x': 1})
    with open(state.file_of('a'), 'w') as f:
        f.write(content)
    with pytest.raises(StoreError) as caught:
        state.load('a')
    assert state.file_of('a') in str(caught.value)
