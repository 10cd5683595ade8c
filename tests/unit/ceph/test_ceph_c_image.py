"""An image by the C functions, with substitutes for them; the client tests have the real ones."""

import errno
import threading
import types

import pytest

from targetd.ceph import c_image


class Error(Exception):
    def __init__(self, text, errno=None):
        super(Error, self).__init__(text)
        self.errno = errno


class NotFound(Error):
    pass


MODULE = types.SimpleNamespace(
    ObjectNotFound=NotFound,
    PermissionError=Error,
    TimedOut=Error,
    OSError=Error,
    ImageNotFound=NotFound,
    ReadOnlyImage=Error,
)


class Functions(object):
    """Like those of librados and librbd. watchers: addresses; value: of all metadata."""

    def __init__(self):
        self.watchers = [b'one']
        self.value = b'text'
        self.freed = []
        self.closed = []
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.began = threading.Event()

    def rbd_open(self, pool, name, place, snapshot):
        if name == b'none':
            return -errno.ENOENT
        place._obj.value = 77
        return 0

    rbd_open_read_only = rbd_open

    def rbd_close(self, handle):
        self.closed.append(handle)
        return 0

    def rbd_get_size(self, handle, place):
        self.began.set()
        self.goes_on.wait(20)
        place._obj.value = 1 << 40
        return 0

    def rbd_watchers_list(self, handle, array, count):
        room, count._obj.value = count._obj.value, len(self.watchers)
        if room < len(self.watchers):
            return -errno.ERANGE
        for at, address in enumerate(self.watchers):
            array[at].addr = address
        return 0

    def rbd_watchers_list_cleanup(self, array, count):
        self.freed.append(count)

    def rbd_metadata_get(self, handle, key, value, size):
        room, size._obj.value = size._obj.value, len(self.value) + 1
        if key != b'key':
            return -errno.ENOENT
        if room <= len(self.value):
            return -errno.ERANGE
        value.value = self.value
        return 0

    def rbd_lock_get_owners(self, handle, mode, array, count):
        return -errno.ENOENT

    def rbd_diff_iterate2(self, handle, start, offset, length, parent, whole, call, pointer):
        assert (start, parent, whole) == (None, True, True)
        call(offset, 10, 1, None)
        call(offset + 10, length - 10, 0, None)
        return 0


@pytest.fixture
def functions(monkeypatch):
    made = Functions()
    monkeypatch.setattr(c_image.c_library, 'load', lambda name, table: made)
    return made


@pytest.fixture
def image(functions):
    library = c_image.Library(MODULE, MODULE)
    return library.make_image(types.SimpleNamespace(handle=5), 'one')


def test_lists_and_values_of_any_length_are_read(functions, image):
    assert image.watchers_list() == [{'addr': 'one'}]
    functions.watchers = [b'address %d' % number for number in range(200)]
    assert [each['addr'] for each in image.watchers_list()][-1] == 'address 199'
    assert functions.freed == [1, 200]
    assert image.metadata_get('key') == 'text'
    functions.value = b'v' * 10000
    assert image.metadata_get('key') == 'v' * 10000
    with pytest.raises(KeyError):
        image.metadata_get('other')
    assert image.lock_get_owners() == []


def test_the_extents_are_those_that_librbd_reports(image):
    found = []
    image.diff_iterate(100, 50, None, lambda *extent: found.append(extent), True, True)
    assert found == [(100, 10, True), (110, 40, False)]


def test_a_failure_is_an_exception_of_the_module(functions):
    library = c_image.Library(MODULE, MODULE)
    with pytest.raises(NotFound) as caught:
        library.make_image(types.SimpleNamespace(handle=5), 'none')
    assert caught.value.errno == errno.ENOENT


def test_an_image_is_closed_when_nobody_uses_it_and_not_used_any_more(functions, image):
    functions.goes_on.clear()
    sizes = []
    asking = threading.Thread(target=lambda: sizes.append(image.size()))
    asking.start()
    assert functions.began.wait(20)
    closing = threading.Thread(target=image.close)
    closing.start()
    assert functions.closed == []
    functions.goes_on.set()
    for each in (asking, closing):
        each.join(20)
    assert sizes == [1 << 40] and functions.closed == [77]
    with pytest.raises(Error) as caught:
        image.size()
    assert caught.value.errno != errno.ESHUTDOWN  # which would mean that the client was fenced
