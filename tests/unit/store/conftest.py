"""Media to test on: files, memory, and loop devices where this process may make them."""

import os
import subprocess

import pytest

from targetd import store, xts

MIB = 1 << 20
SIZE = 8 * MIB


def losetup(*arguments):
    """Returns the output of losetup, or skips the test with its error message."""
    try:
        ran = subprocess.run(
            ['losetup'] + list(arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    except OSError as e:
        pytest.skip('no losetup: %s' % e)
    if ran.returncode:
        pytest.skip('losetup %s: %s' % (' '.join(arguments), ran.stderr.decode().strip()))
    return ran.stdout.decode().strip()


@pytest.fixture
def loop_device(tmp_path):
    """make(sector, size=SIZE, image=None, *losetup options) -> path of a loop device of that sector
    size."""
    made = []

    def make(sector=512, size=SIZE, image=None, *options):
        if os.geteuid() != 0:
            pytest.skip('loop devices need root')
        image = str(image or tmp_path / ('loop-%d.img' % len(made)))
        with open(image, 'ab') as f:
            f.truncate(size)
        path = losetup('-b', str(sector), '-f', '--show', *(options + (image,)))
        made.append(path)
        return path

    yield make
    for path in made:
        subprocess.run(['losetup', '-d', path], check=False, timeout=60)


@pytest.fixture
def opened():
    """open(description, held=()) -> OpenedStore, closed at the end."""
    stores = []

    def open_(description, held=()):
        stores.append(store.open_store(description, held))
        return stores[-1]

    yield open_
    for each in stores:
        each.close()


VARIANTS = (
    'file',
    'direct file',
    'ram',
    'loop 512',
    'loop 4096',
    'direct loop 4096',
    'traced file',
    'encrypted file',
    'encrypted direct file',
    'encrypted loop 4096',
)


@pytest.fixture
def make_store(tmp_path, loop_device, opened):
    """make(variant) -> Store, as in a worker."""
    stores = []

    def make(variant):
        wanted = {'direct': 'direct' in variant, 'size': SIZE}
        if variant == 'ram':
            wanted['kind'] = 'ram'
        elif 'loop' in variant:
            wanted['path'] = loop_device(int(variant.split()[-1]))
        else:
            wanted['path'] = str(tmp_path / ('disk-%d.img' % len(stores)))
        if wanted['direct']:
            wanted['block_size'] = 4096
        if 'encrypted' in variant:
            if xts.why_not():
                pytest.skip(xts.why_not())
            wanted['cipher_key'] = bytes(range(64)).hex()
        if 'traced' in variant:
            wanted['filters'] = 'trace'
        try:
            stores.append(opened(wanted).store())
        except store.StoreError as e:
            if wanted['direct'] and 'direct' in str(e):
                pytest.skip(str(e))
            raise
        return stores[-1]

    yield make
    for each in stores:
        each.close()


@pytest.fixture(params=VARIANTS)
def any_store(request, make_store):
    """Every kind of store that keeps its data; SIZE bytes of zeroes."""
    return make_store(request.param)
