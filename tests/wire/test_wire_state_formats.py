"""The files of state-dir: those of earlier versions are read, those of a newer one are refused by name."""

import glob
import json
import os
import shutil
import struct
import zlib

import pytest
from daemon import TARGET
from initiator import Session

pytestmark = pytest.mark.wire

LUN = ['naa = 0x60014051234567890000000000000001', 'scsi-sn = S1']
#: Files as the first version has written them. They must be readable for ever.
SERVER_ID = '4b2a1ee0-6f2c-4c39-9a7e-0d5e2a6f8b11\n'
FIRST_STATE = {
    'state': {
        'boot_id': '',
        'reservations': {
            'aptpl': True,
            'holder': ['iqn.2026-11.test:old,i,0x800000000001', TARGET + ',t,0x0001'],
            'registrations': [
                {
                    'all_tg_pt': False,
                    'initiator_port': 'iqn.2026-11.test:old,i,0x800000000001',
                    'key': '0000000000001234',
                    'target_port': TARGET + ',t,0x0001',
                }
            ],
            'type': 5,
            'version': 1,
        },
        'failure': 'a flush failed',
    },
    'unit': '',
    'version': 1,
}


def serve(daemon, *lines):
    daemon.target(luns={0: ['backing-store = %s' % daemon.image()] + LUN + list(lines)})
    return daemon.start()


def unit_file(daemon):
    """The state file of the unit, which has something to save after this."""
    with Session(daemon.address) as session:
        session.login(TARGET)
        session.clear_attentions()
        out = struct.pack('>QQ4xB3x', 0, 0x1234, 1)  # REGISTER with APTPL
        assert session.run(struct.pack('>BB5xHx', 0x5F, 0, 24), out=out).good
        session.logout()
    (path,) = glob.glob(os.path.join(daemon.directory, 'state', 'units', '*.json'))
    return path


def change(path, **words):
    with open(path) as file:
        document = dict(json.load(file), **words)
    with open(path, 'w') as file:
        json.dump(document, file)


def test_a_unit_of_a_newer_version_is_not_served(daemon):
    serve(daemon)
    path = unit_file(daemon)
    daemon.stop()
    change(path, version=2)
    daemon.start()
    text = (
        'was written by a newer version of targetd (format 2; this version reads formats up to 1)'
    )
    state = daemon.units()[0]['state']
    assert path in state and text in state
    daemon.stop()
    change(path, version=1)
    daemon.start()
    assert daemon.units()[0]['state'] == 'ready'


def test_the_record_of_media_of_a_newer_version_prevents_the_start(daemon):
    serve(daemon)
    daemon.stop()
    path = os.path.join(daemon.directory, 'state', 'media.json')
    with open(path) as file:
        before = json.load(file)
    assert before['version'] == 1
    change(path, version=2)
    code, text = daemon.run_once()
    assert code == 5 and '%s was written by a newer version of targetd (format 2' % path in text
    with open(path) as file:
        assert json.load(file)['version'] == 2  # it was not overwritten


def test_a_journal_of_a_newer_version_is_not_taken_for_an_empty_one(daemon):
    serve(daemon, 'atomic-writes = yes')
    (path,) = glob.glob(os.path.join(daemon.directory, 'state', 'atomic', '*'))
    before = path + '.kept'
    shutil.copy(path, before)
    daemon.stop()
    os.rename(before, path)
    fields = struct.pack('>8sQII', b'targetd2', 0, 512, 0)
    head = fields + struct.pack('>I', zlib.crc32(fields) & 0xFFFFFFFF)
    with open(path, 'r+b') as file:
        file.truncate(4096 + (1 << 20) + 4 * 2048)
        file.write(head)
    daemon.start()
    state = daemon.units()[0]['state']
    assert path in state and 'the format 2 of a newer version' in state
    with open(path, 'rb') as file:
        assert file.read(len(head)) == head
    daemon.stop()
    os.unlink(path)
    daemon.start()


def test_files_of_the_first_version_are_read(daemon):
    serve(daemon)
    path = unit_file(daemon)
    daemon.stop()
    folder = os.path.join(daemon.directory, 'state')
    with open(path) as file:
        key = json.load(file)['unit']
    with open(path, 'w') as file:
        json.dump(dict(FIRST_STATE, unit=key), file)
    with open(os.path.join(folder, 'server-id'), 'w') as file:
        file.write(SERVER_ID)
    media = {
        'media': [
            {
                'lun': 0,
                'seen': {
                    'is_file': True,
                    'key': 'file:' + os.path.join(daemon.directory, 'disk.img'),
                    'named': os.path.join(daemon.directory, 'disk.img'),
                    'shown': 'a file',
                    'size': 1 << 40,
                },
                'target': TARGET,
            }
        ],
        'version': 1,
    }
    with open(os.path.join(folder, 'media.json'), 'w') as file:
        json.dump(media, file)
    daemon.start()
    state = daemon.units()[0]['state']
    assert 'is shorter than when it was last served' in state  # the record was understood
    daemon.control('accept', TARGET + '/0')
    daemon.logged('lun 0 of %s is available now' % TARGET, 20)
    assert 'a flush failed' in daemon.log and 'fail' in daemon.units()[0]['state']
    assert daemon.units()[0]['reserved_by'].startswith('iqn.2026-11.test:old')
    daemon.control('acknowledge', TARGET + '/0')
