"""Files of kept blocks: deduplicated, bounded, listed, put back, and refused if they do not fit."""

import errno
import os

import pytest

from targetd.master.state import guard_files
from targetd.store import kept_blocks, open_store

SIZE = 8 << 20


@pytest.fixture
def place(tmp_path):
    return str(tmp_path / 'state' / 'guards')


@pytest.fixture
def image(tmp_path):
    path = str(tmp_path / 'disk.img')
    with open(path, 'wb') as file:
        file.write(os.urandom(SIZE))
    return path


@pytest.fixture
def opened(image):
    with open_store({'path': image}) as store:
        yield store


@pytest.fixture
def medium(opened):
    return guard_files.Medium(opened.description(), opened.descriptor)


def overwrite(image, data=b'x' * 512, offset=0):
    with open(image, 'r+b') as file:
        file.seek(offset)
        file.write(data)


def content(image):
    with open(image, 'rb') as file:
        return file.read()


def keep(place, medium, **words):
    values, descriptors = guard_files.keep_heads(place, 'key', medium, words)
    assert descriptors == ()
    return values


def rows(place):
    return guard_files.rows(place, {'key': 't/0'})[0]['rows']


def test_what_was_kept_is_put_back_and_the_restore_can_be_undone(place, image, medium):
    before = content(image)
    assert keep(place, medium, by='me', reason='a test') == {'number': 1, 'is_new': True}
    overwrite(image)
    assert guard_files.restore(place, 'key', 1, medium, {})[0] == {'changed': 1 << 20, 'number': 2}
    assert content(image) == before
    guard_files.restore(place, 'key', 2, medium, {})
    assert content(image)[:512] == b'x' * 512
    newest, oldest = rows(place)[0], rows(place)[-1]
    assert (newest['unit'], newest['number']) == ('t/0', 3)
    assert (oldest['initiator_name'], oldest['reason'], oldest['state']) == (
        'me',
        'a test',
        'complete',
    )


def test_what_is_encrypted_with_another_key_is_kept_anew_and_not_put_back(place, image, medium):
    assert keep(place, medium, key_check='old')['number'] == 1
    before = content(image)
    assert keep(place, medium, key_check='new')['number'] == 2
    overwrite(image)
    refused = guard_files.restore(place, 'key', 1, medium, {'key_check': 'new'})[0]
    assert 'encrypted with another key' in refused['failed']
    assert content(image) != before
    guard_files.restore(place, 'key', 2, medium, {'key_check': 'new'})
    assert content(image) == before


def test_the_same_blocks_are_not_kept_twice(place, image, medium):
    assert keep(place, medium) == {'number': 1, 'is_new': True}
    assert keep(place, medium) == {'number': 1, 'is_new': False}
    overwrite(image, offset=SIZE // 2)  # is not kept
    assert keep(place, medium) == {'number': 1, 'is_new': False}
    overwrite(image)
    assert keep(place, medium) == {'number': 2, 'is_new': True}


def test_a_file_that_is_not_complete_is_listed_not_restored_and_kept_again(place, image, medium):
    keep(place, medium)
    path = os.path.join(place, os.listdir(place)[0])
    os.truncate(path, os.path.getsize(path) - 1)
    before = content(image)
    assert rows(place)[0]['state'] != 'complete'
    assert 'failed' in guard_files.restore(place, 'key', 1, medium, {})[0]
    assert content(image) == before
    assert keep(place, medium) == {'number': 2, 'is_new': True}


def test_the_number_of_files_is_bounded(place, image, medium):
    for n in range(guard_files.MOST_FILES + 3):
        overwrite(image, b'%512d' % n)
        assert keep(place, medium)['number'] == n + 1
    found = [row['number'] for row in rows(place)]
    assert len(found) == guard_files.MOST_FILES
    assert found[0] == guard_files.MOST_FILES + 3 and found[-1] == 1


def test_old_files_are_removed_where_they_are_close_together():
    hour, day = 3600, 86400
    now = 100 * day
    entries = [(1, 0), (2, 50 * day), (3, 50 * day + 60), (4, now - hour), (5, now)]
    assert guard_files.superfluous(entries, now, 4)[0] in (2, 3)
    assert guard_files.superfluous(entries, now, 5) == []


def test_a_file_system_that_is_full_fails_and_leaves_no_file(place, medium, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(kept_blocks, 'write_file', full)
    assert 'No space left' in keep(place, medium)['failed']
    assert os.listdir(place) == []


def test_nothing_is_restored_to_a_medium_that_became_shorter(place, image, tmp_path, medium):
    keep(place, medium)
    short = str(tmp_path / 'short.img')
    with open(short, 'wb') as file:
        file.truncate(SIZE // 2)
    with open_store({'path': short}) as other:
        found = guard_files.restore(
            place, 'key', 1, guard_files.Medium(other.description(), other.descriptor), {}
        )[0]
    assert 'the medium had %d bytes then' % SIZE in found['failed']
    assert content(short) == bytes(SIZE // 2)


def test_a_number_that_does_not_exist_and_a_directory_that_does_not_exist(place, medium):
    assert 'no number 9' in guard_files.restore(place, 'key', 9, medium, {})[0]['failed']
    assert guard_files.rows(place + '-none', {}) == ({'rows': []}, ())
    assert guard_files.remove(place + '-none', 'x', None) == ({'removed': 0}, ())


def test_one_number_or_all_are_removed(place, image, medium):
    for n in range(3):
        overwrite(image, b'%512d' % n)
        keep(place, medium)
    name = guard_files.name_of_key('key')
    assert guard_files.remove(place, name, 2)[0] == {'removed': 1}
    assert guard_files.remove(place, name, 2)[0] == {'removed': 0}
    assert guard_files.remove(place, name, None)[0] == {'removed': 2}
    assert rows(place) == []
