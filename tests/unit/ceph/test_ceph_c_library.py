"""Functions of the C libraries, tried with that of the system; and what is done where librbd lacks some."""

import sys
import types
from ctypes import c_int, c_long

import pytest
from fake_image import Image

from targetd.ceph import c_library, callback_operations, poll_operations, rbd_server


def test_functions_have_their_types():
    library = c_library.load('libc.so.6', {'labs': (c_long, (c_long,))})
    assert library.labs(-(1 << 40)) == 1 << 40


@pytest.mark.parametrize('name, missing', [('libc.so.6', 'rbd_not_there'), ('libnowhere.so', '')])
def test_what_is_missing_is_named(name, missing):
    with pytest.raises(c_library.Missing) as caught:
        c_library.load(name, {'rbd_not_there': (c_int, ())})
    assert name in str(caught.value) and missing in str(caught.value)


def test_an_image_without_the_poll_interface_is_served_by_callbacks(monkeypatch, capsys):
    module = types.ModuleType('module')
    for (
        name
    ) in 'ObjectNotFound PermissionError TimedOut OSError ImageNotFound ReadOnlyImage'.split():
        setattr(module, name, type(name, (Exception,), {}))
    module.Rados, module.Image, module.Error = 'Rados', 'Image', OSError
    made = []

    class OpenImage(object):
        def __init__(self, wanted, *classes):
            made.append(classes)
            self.image = Image()

    for name in ('rados', 'rbd'):
        monkeypatch.setitem(sys.modules, name, module)
    from targetd.ceph import rbd_image

    monkeypatch.setattr(rbd_image, "OpenImage", OpenImage)
    monkeypatch.setattr(c_library, 'LIBRADOS', 'libc.so.6')
    _, operations = rbd_server.open_image({}, module, module)
    assert isinstance(operations, callback_operations.Operations) and made == [('Rados', 'Image')]
    printed = capsys.readouterr().err
    assert printed.startswith(rbd_server.NOTE + 'librbd cannot be polled (')
    assert 'has no function rados_' in printed and 'install' in printed


def test_a_library_that_does_not_take_the_event_counter_is_no_error_of_the_image():
    class Functions(object):
        def rbd_set_image_notification(self, image, descriptor, kind):
            return -22

    with pytest.raises(OSError) as caught:
        poll_operations.Operations(Functions(), 1)
    assert caught.value.errno == 22
