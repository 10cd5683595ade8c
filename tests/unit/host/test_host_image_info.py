"""What an image says about itself, and which other files it may name."""

import json
import shutil
import subprocess
import sys

import pytest

from targetd.errors import StoreError
from targetd.host import image_info
from targetd.host.image_info import ImageInfo, Other


def document(**more):
    return json.dumps(dict({'virtual-size': 65536, 'actual-size': 4096}, **more))


def specific(**data):
    return {'format-specific': {'type': 'x', 'data': data}}


def test_the_size_and_the_other_files_of_an_image(tmp_path):
    path = str(tmp_path / 'disk')
    assert image_info.parse_info(document(), path) == ImageInfo(65536, 4096, [], False)
    backing = {'full-backing-filename': '/srv/base', 'backing-filename-format': 'qcow2'}
    text = document(**dict(backing, **specific(**{'data-file': 'data.raw'})))
    assert image_info.parse_info(text, path).others == [
        Other('backing file', '/srv/base', 'qcow2'),
        Other('data file', str(tmp_path / 'data.raw'), None),
    ]
    extents = [{'filename': path}, {'filename': '../b'}]
    text = document(**specific(extents=extents))
    assert image_info.parse_info(text, path).others == [
        Other('extent', str(tmp_path.parent / 'b'), None)
    ]
    text = document(**{'backing-filename': 'nbd://host/x'})
    assert image_info.parse_info(text, path).others == [Other('backing file', 'nbd://host/x', None)]


@pytest.mark.parametrize(
    'text', ['', 'x', '[]', '{}', '{"virtual-size": {}}', document(**{'format-specific': 7})]
)
def test_what_is_not_understood_is_an_error(text):
    with pytest.raises(ValueError):
        image_info.parse_info(text, '/srv/disk')


def allow(others, directories, look=None):
    info = ImageInfo(65536, 0, others, False)
    image_info.require_allowed(
        '/srv/disk', info, directories, look or (lambda *_: ImageInfo(1, 0, [], False))
    )


BASE = Other('backing file', '/srv/templates/base', 'qcow2')


def test_only_files_below_the_named_directories_are_allowed():
    allow([BASE], ['/srv/templates'])
    allow([BASE], ['/srv/templates/', '/other'])
    allow([BASE], ['/'])
    for directories in ([], ['/srv/template'], ['/srv/templates/base']):
        with pytest.raises(StoreError) as refusal:
            allow([BASE], directories)
        assert 'allow-backing-file = /srv/templates' in str(refusal.value)


@pytest.mark.parametrize(
    'name', ['nbd://host/x', 'json:{"driver":"raw"}', 'nfs://host/x', 'fat:/etc']
)
def test_an_address_is_never_allowed(name):
    with pytest.raises(StoreError) as refusal:
        allow([Other('backing file', name, 'raw')], ['/'])
    assert 'never opened' in str(refusal.value)


def test_a_chain_is_followed_to_its_end():
    chain = {
        '/srv/templates/base': [Other('backing file', '/srv/templates/old', 'qcow2')],
        '/srv/templates/old': [Other('backing file', '/etc/shadow', 'raw')],
    }
    with pytest.raises(StoreError) as refusal:
        allow(
            [BASE], ['/srv/templates'], lambda path, _: ImageInfo(1, 0, chain.get(path, []), False)
        )
    assert '/srv/templates/old names /etc/shadow' in str(refusal.value)
    with pytest.raises(StoreError) as refusal:
        allow([BASE], ['/'], lambda path, _: ImageInfo(1, 0, [BASE], False))
    assert 'more than' in str(refusal.value)


def test_a_backing_file_without_a_format_is_refused():
    with pytest.raises(StoreError) as refusal:
        allow([BASE._replace(format=None)], ['/srv'])
    assert 'qemu-img rebase -u -b /srv/templates/base -F FORMAT /srv/disk' in str(refusal.value)


def script(text):
    return (sys.executable, '-c', text)


def test_the_words_of_the_program_are_in_the_message(tmp_path):
    path = tmp_path / 'disk'
    path.write_bytes(b'x' * 4096)
    with pytest.raises(StoreError) as refusal:
        image_info.inspect(str(path), 'vhdx', script('import sys; sys.exit("No header")'))
    assert 'No header' in str(refusal.value) and 'correct type' in str(refusal.value)
    with pytest.raises(StoreError) as refusal:
        image_info.inspect(str(path), 'vhdx', ('/none/qemu-img',))
    assert 'qemu-utils' in str(refusal.value)
    replay = script('import sys; sys.exit("it %s")' % image_info.NEEDS_REPLAY)
    assert image_info.inspect(str(path), 'vhdx', replay).virtual_size is None


def test_a_program_that_does_not_answer_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(image_info, 'SECONDS', 0.2)
    hangs = script('import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)')
    with pytest.raises(StoreError) as refusal:
        image_info.inspect(str(tmp_path), 'vhdx', hangs)
    assert 'does not answer' in str(refusal.value)


@pytest.mark.skipif(not shutil.which('qemu-img'), reason='qemu-img is missing')
@pytest.mark.parametrize('kind', ['vhdx', 'vpc', 'vmdk', 'qcow2', 'vdi'])
def test_an_image_that_stands_alone(tmp_path, kind):
    path = str(tmp_path / 'disk')
    subprocess.check_output(['qemu-img', 'create', '-f', kind, path, '64M'])
    info = image_info.inspect(path, kind)
    assert info.virtual_size >= 64 << 20 and info.others == []


@pytest.mark.skipif(not shutil.which('qemu-img'), reason='qemu-img is missing')
def test_the_extents_of_vmdk_are_other_files(tmp_path):
    path = str(tmp_path / 'disk.vmdk')
    options = 'subformat=twoGbMaxExtentFlat'
    subprocess.check_output(['qemu-img', 'create', '-f', 'vmdk', '-o', options, path, '64M'])
    assert image_info.inspect(path, 'vmdk').others == [
        Other('extent', str(tmp_path / 'disk-f001.vmdk'), None)
    ]
