"""What a real SCSI device says about itself when it is opened, and its claim."""

import errno
import os
import struct

import descriptors
import pytest

from targetd import sg_io
from targetd.config.model import Lun, Server, Target
from targetd.errors import StoreError
from targetd.host import sg_nodes
from targetd.host.sg_nodes import ScsiDevice
from targetd.master.exports import known_media, open_medium, passthrough_export, unit_identity
from targetd.scsi.facts import UnitFacts
from targetd.store import zeroes
from targetd.store.opened_store import OpenedStore

LUN = Lun(0, type='passthrough', backing_store='/dev/sg3')
INQUIRY = bytes([0, 0x80, 6, 2, 31, 0, 0, 2]) + b'HP      Ultrium 6-SCSI  J5SS'
GOOD, CHECK = 0, 2


class Answers(object):
    """Takes the place of passthrough_export._command: {beginning of a CDB in hex digits: data}."""

    def __init__(self, **more):
        self.data = {
            '1200': INQUIRY.ljust(36, b'\0'),
            '120100': b'\0\0\0\3\0\x80\x83',
            '120180': b'\0\x80\0\3HU1',
            '120183': b'\0\x83\0\x0c' + bytes.fromhex('01030008 5000c50012345678'),
            '9e10': struct.pack('>QI', 999, 512).ljust(32, b'\0'),
            '25': struct.pack('>II', 1999, 512),
        }
        self.data.update({name.strip('_'): data for name, data in more.items()})
        self.commands = []

    def __call__(self, descriptor, cdb, length=0):
        self.commands.append(cdb.hex())
        for digits in sorted(self.data, key=len, reverse=True):
            if cdb.hex().startswith(digits):
                found = self.data[digits]
                return (CHECK, b'') if found is None else (GOOD, found[:length])
        return CHECK, b''


@pytest.fixture(autouse=True)
def limit(monkeypatch):
    monkeypatch.setattr(sg_io, 'longest_transfer', lambda descriptor: 524288)


def device(tmp_path, **more):
    node = tmp_path / 'sg3'
    node.write_bytes(b'')
    facts = dict(
        name='sg3', node=str(node), number=(21, 3), device_type=0, vendor='HP', model='Ultrium 6-SCSI',
        revision='J5SS', serial='HU1', wwn='', block='', tape='', size=0, shown='/dev/sg3, HP',
    )  # fmt: skip
    return ScsiDevice(**dict(facts, **more))


def test_the_facts_of_a_disk(tmp_path):
    facts = passthrough_export.device_facts(0, device(tmp_path), Answers())
    assert facts.pop('size') == 512000
    found = UnitFacts.from_message(facts)
    assert found.passthrough and found.device_type == 0 and not found.is_sequential
    assert (found.transfer_block, found.block_size, found.maximum_transfer_length) == (
        512,
        512,
        524288,
    )
    assert found.removable and bytes.fromhex(found.inquiry)[8:10] == b'HP'
    assert [text[:2] for text in found.vital_pages.split()] == ['00', '80', '83']


def test_an_old_disk_and_one_with_unusual_blocks(tmp_path):
    facts = passthrough_export.device_facts(0, device(tmp_path), Answers(_9e10=None))
    assert facts['size'] == 2000 * 512
    odd = Answers(_9e10=struct.pack('>QI', 9, 520).ljust(32, b'\0'))
    facts = passthrough_export.device_facts(0, device(tmp_path), odd)
    assert (facts['transfer_block'], facts['block_size']) == (520, 512)
    empty = passthrough_export.device_facts(0, device(tmp_path), Answers(_9e10=None, _25=None))
    assert (empty['size'], empty['transfer_block']) == (0, 0)


def test_a_tape_drive_is_not_asked_for_its_capacity(tmp_path):
    answers = Answers(_1200=b'\x01' + INQUIRY[1:].ljust(35, b'\0'))
    facts = passthrough_export.device_facts(0, device(tmp_path), answers)
    assert facts['peripheral_type'] == 1 and facts['size'] == 0
    assert not any(command.startswith(('9e', '25')) for command in answers.commands)


@pytest.mark.parametrize('pages', [None, b'\0', b'\0\x80\0\1\0'])
def test_a_device_without_vpd_pages(tmp_path, pages):
    facts = passthrough_export.device_facts(0, device(tmp_path), Answers(_120100=pages))
    assert facts['vital_pages'] == ''


def test_a_page_that_is_another_one_is_left_out(tmp_path):
    facts = passthrough_export.device_facts(0, device(tmp_path), Answers(_120180=bytes(36)))
    assert [text[:2] for text in facts['vital_pages'].split()] == ['00', '83']


@pytest.mark.parametrize(
    'inquiry', [None, b'\0' * 5, b'\x7f' + INQUIRY[1:], b'\x20' + INQUIRY[1:].ljust(35, b'\0')]
)
def test_a_device_that_is_none(tmp_path, inquiry):
    with pytest.raises(StoreError):
        passthrough_export.device_facts(0, device(tmp_path), Answers(_1200=inquiry))


def open_it(found, lun=LUN, held=(), is_served=False, plan_only=True):
    return passthrough_export.open_device(found, lun, held, is_served, plan_only)


@pytest.fixture
def answering(monkeypatch):
    answers = Answers()
    facts_of = passthrough_export.device_facts
    monkeypatch.setattr(passthrough_export, '_command', answers)
    monkeypatch.setattr(
        passthrough_export, 'device_facts', lambda *arguments: facts_of(*arguments, command=answers)
    )
    return answers


def test_the_store_and_its_facts(tmp_path, answering):
    found = device(tmp_path)
    with open_it(found) as store:
        assert isinstance(store, OpenedStore) and store.kind == 'passthrough'
        assert store.key == ('passthrough', 21, 3) and store.path == found.node
        assert store.size == store.resize_check() == 512000 and store.claims == []
        facts = passthrough_export.facts_of(LUN, store, {'vendor': 'HP', 'serial': 'HU1'})
    unit = UnitFacts.from_message(facts)
    assert (
        unit.passthrough
        and unit.command_filter
        and not unit.third_party_copy
        and not unit.read_only
    )


def test_a_second_lun_shares_the_claim(tmp_path, answering):
    (tmp_path / 'nst0').write_bytes(b'')
    found = device(tmp_path, device_type=1, tape=str(tmp_path / 'nst0'))
    with open_it(found) as first, open_it(found, held=[first]) as second:
        assert len(first.claims) == len(second.claims) == 1
        assert os.fstat(first.claim).st_ino == os.fstat(second.claim).st_ino
    with open_it(found, is_served=True) as examined:
        assert examined.claims == []


def test_the_medium_is_not_left_locked(tmp_path, answering):
    allow = '1e0000000000'
    with open_it(device(tmp_path), plan_only=True):
        assert allow not in answering.commands
    with open_it(device(tmp_path), plan_only=False) as store:
        assert answering.commands.count(allow) == 1
        passthrough_export.allow_removal(store)
    assert answering.commands.count(allow) == 2


@pytest.mark.parametrize(
    'number, text',
    [
        (errno.EBUSY, 'in use on this host'),
        (errno.EACCES, 'as root'),
        (errno.ENXIO, 'cannot be opened'),
    ],
)
def test_a_node_that_cannot_be_opened(tmp_path, monkeypatch, number, text):
    def refuse(path, flags):
        raise OSError(number, os.strerror(number))

    found = device(tmp_path)
    monkeypatch.setattr(passthrough_export.os, 'open', refuse)
    with pytest.raises(StoreError) as refused:
        open_it(found)
    assert text in str(refused.value)


def test_a_device_that_is_in_use_names_its_node(tmp_path, monkeypatch):
    def refuse(path, flags):
        raise OSError(errno.EBUSY, 'busy')

    found = device(tmp_path, tape='/dev/nst0')
    monkeypatch.setattr(passthrough_export.os, 'open', refuse)
    with pytest.raises(StoreError) as refused:
        open_it(found)
    assert 'as /dev/nst0' in str(refused.value)


def test_commands_are_repeated_after_unit_attentions(monkeypatch):
    attention = bytes.fromhex('70000600000000 0a 00000000 2900 00 000000')
    outcomes = [sg_io.Outcome(2, 0, 8, attention, 0, b'')] * 2 + [
        sg_io.Outcome(0, 0, 0, b'', 0, b'x')
    ]
    monkeypatch.setattr(sg_io, 'execute', lambda *arguments: outcomes.pop(0))
    assert passthrough_export._command(0, bytes(6), 1) == (0, b'x')
    outcomes.append(sg_io.Outcome(0, 1, 0, b'', 0, b''))
    with pytest.raises(OSError):
        passthrough_export._command(0, bytes(6), 1)


def test_a_device_that_does_not_answer_closes_everything(tmp_path):
    before = descriptors.count_open()
    with pytest.raises(StoreError) as refused:
        open_it(device(tmp_path))  # a file takes no SG_IO
    assert 'does not answer' in str(refused.value)
    assert descriptors.count_open() == before


# -- identity and records --------------------------------------------------------------------------


@pytest.fixture
def found_by_name(tmp_path, monkeypatch):
    found = device(tmp_path, wwn='naa.5000c50012345678', serial='HU1')
    monkeypatch.setattr(sg_nodes, 'resolve_device', lambda text: found)
    return found


def test_initiators_see_the_identity_of_the_device(found_by_name):
    names = unit_identity.names_of(LUN, '/dev/sda', 'key', 'server')
    assert (names['vendor'], names['product'], names['serial']) == ('HP', 'Ultrium 6-SCSI', 'HU1')
    assert names['naa'] == '5000c50012345678'
    rows = dict(unit_identity.describer(Server(server_id='x'))(Target('iqn.2026-11.test:t'), LUN))
    assert rows['serial number'] == 'HU1' and rows['naa'] == '5000c50012345678'


def test_the_state_belongs_to_the_device_whatever_its_node_is(found_by_name):
    medium, key = unit_identity.data_key('iqn.2026-11.test:t', LUN, found_by_name.node)
    assert medium == 'naa.5000c50012345678' and key == 'iqn.2026-11.test:t\0' + medium


def test_another_device_at_the_node_is_noticed(found_by_name, monkeypatch):
    target = Target('iqn.2026-11.test:t')
    seen = known_media.describe_medium(LUN, found_by_name.node)
    known_media.require_known(target, LUN, found_by_name.node, seen)
    other = found_by_name._replace(wwn='naa.5000c50012345679', shown='/dev/sg3, another')
    monkeypatch.setattr(sg_nodes, 'resolve_device', lambda text: other)
    with pytest.raises(StoreError) as refused:
        known_media.require_known(target, LUN, found_by_name.node, seen)
    assert 'another' in str(refused.value) and 'targetdctl accept' in str(refused.value)


def test_a_device_without_a_name_may_get_another_node(found_by_name, monkeypatch):
    for node in ('sg3', 'sg7'):
        other = found_by_name._replace(wwn='', serial='', name=node)
        monkeypatch.setattr(sg_nodes, 'resolve_device', lambda text, other=other: other)
        assert known_media.describe_medium(LUN, node)['key'] == 'model:HP Ultrium 6-SCSI'


def test_the_medium_of_a_lun(found_by_name, monkeypatch):
    assert open_medium.medium_of(LUN) == (found_by_name, found_by_name.node)
    assert open_medium.medium_of(Lun(0, type='ram')) == (None, None)
    disk = found_by_name._replace(block='/dev/sda')
    monkeypatch.setattr(sg_nodes, 'resolve_device', lambda text: disk)
    assert open_medium.medium_of(LUN) == (disk, '/dev/sda')
    monkeypatch.setattr(sg_nodes, 'resolve_device', lambda text: found_by_name)
    assert passthrough_export.device_of(LUN) is found_by_name
    assert passthrough_export.device_of(Lun(0, backing_store='/srv/x.img')) is None


def test_trims_are_refused_with_the_reason(tmp_path, answering):
    with open_it(device(tmp_path)) as store:
        assert 'real SCSI device' in zeroes.why_not(store)
