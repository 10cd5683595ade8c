"""Tests of what the job of the media watch finds at a path; tests/fault/test_fault_media.py has those
of its effects."""

import os

import pytest

from targetd.master.exports import media_watch


@pytest.fixture
def opened(tmp_path):
    path = str(tmp_path / 'disk.img')
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    yield path, descriptor
    os.close(descriptor)


def look(path, descriptor, key=None):
    status = os.fstat(descriptor)
    key = key or ['file', status.st_dev, status.st_ino]
    return media_watch.look_at_media([('u', path, key, descriptor)])[0]['seen']


def test_an_unchanged_file_has_its_size_and_no_problem(opened):
    path, descriptor = opened
    os.truncate(path, 4096)
    assert look(path, descriptor) == {'u': [4096, '']}


def test_a_descriptor_that_is_another_medium_by_now_is_left_out(opened):
    path, descriptor = opened
    assert look(path, descriptor, ['file', 0, 0]) == {} == look(path, descriptor, ['block', 1])


def test_the_message_about_a_deleted_file_says_how_to_save_its_data(opened):
    path, descriptor = opened
    os.unlink(path)
    ((_, problem),) = look(path, descriptor).values()
    assert 'was deleted' in problem
    assert 'cp --sparse=always /proc/%d/fd/%d FILE' % (os.getppid(), descriptor) in problem


def test_a_file_with_another_name_is_not_called_deleted(opened):
    path, descriptor = opened
    os.rename(path, path + '.old')
    ((_, problem),) = look(path, descriptor).values()
    assert 'was renamed' in problem and '/proc/' not in problem


def test_a_path_that_cannot_be_examined_is_reported(opened):
    path, descriptor = opened
    ((_, problem),) = look(os.path.join(path, 'below'), descriptor).values()
    assert 'cannot be examined' in problem


def test_another_file_at_the_path_is_reported(opened):
    path, descriptor = opened
    os.rename(path, path + '.old')
    with open(path, 'w'):
        ((_, problem),) = look(path, descriptor).values()
    assert 'is another file than the one that is served' in problem
