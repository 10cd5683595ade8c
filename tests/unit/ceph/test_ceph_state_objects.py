"""The objects with the states of units, in a pool that the test makes: the version is compared in the
operation that writes."""

import errno

import pytest

from targetd.ceph import state_objects


class Failure(OSError):
    pass


class Exists(Failure):
    pass


class NotFound(Failure):
    pass


class Operation(object):
    """Like rados.WriteOp and rados.ReadOp."""

    def __enter__(self):
        self.compared, self.is_new = None, False
        return self

    def __exit__(self, *failure):
        pass

    def omap_cmp(self, key, value, how):
        assert how == Library.LIBRADOS_CMPXATTR_OP_EQ
        self.compared = key, value

    def new(self, how):
        assert how == Library.LIBRADOS_CREATE_EXCLUSIVE
        self.is_new = True


class Library(object):
    """Like the module rados."""

    LIBRADOS_CMPXATTR_OP_EQ, LIBRADOS_CREATE_EXCLUSIVE = 1, 2
    Error, ObjectExists, ObjectNotFound = Failure, Exists, NotFound
    ReadOpCtx = WriteOpCtx = Operation


class Pool(object):
    """Like rados.Ioctx."""

    def __init__(self):
        self.objects = {}
        self.failure = None

    def get_omap_vals_by_keys(self, operation, keys):
        operation.rows = {}
        return operation.rows.items(), 0

    def operate_read_op(self, operation, name):
        if name not in self.objects:
            raise NotFound(errno.ENOENT, 'no object')
        operation.rows.update(self.objects[name])

    def set_omap(self, operation, keys, values):
        operation.values = dict(zip(keys, values))

    def operate_write_op(self, operation, name):
        if self.failure:
            raise Failure(self.failure, 'failed')
        if operation.is_new and name in self.objects:
            raise Exists(errno.EEXIST, 'it exists')
        if operation.compared:
            key, value = operation.compared
            if name not in self.objects:
                raise NotFound(errno.ENOENT, 'no object')
            if self.objects[name][key] != value.encode('ascii'):
                raise Failure(errno.ECANCELED, 'compared')
        self.objects[name] = operation.values


@pytest.fixture
def states():
    return state_objects.States(Pool(), Library)


def write(states, version, text):
    return states.answer({'do': 'write', 'object': 'a', 'version': version, 'text': text})


def test_an_object_is_made_once_and_written_with_its_version_only(states):
    assert states.answer({'do': 'read', 'object': 'a'}) == {'version': 0, 'text': ''}
    assert write(states, 4, 'x') == {'changed': True}
    assert write(states, 0, 'x') == {}
    assert write(states, 0, 'y') == {'changed': True}
    assert write(states, 1, 'é') == {}
    assert write(states, 1, 'z') == {'changed': True}
    assert states.answer({'do': 'read', 'object': 'a'}) == {'version': 2, 'text': 'é'}


def test_an_error_is_the_answer(states):
    states._pool.failure = errno.ENOSPC
    answer = write(states, 0, 'x')
    assert answer['errno'] == errno.ENOSPC and 'failed' in answer['failed']
