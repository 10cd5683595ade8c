"""The identities of other targets: the settings that the setting `identity` stands for, and what
initiators see of them. Expected bytes were read from the running programs, or follow their source."""

import pytest

from targetd.config import identities, loader, settings
from targetd.config.words import Unusable, split
from targetd.errors import ConfigError
from targetd.master.exports import unit_identity
from targetd.scsi import designators
from targetd.scsi.facts import UnitFacts

ROWS = {row.name: row for row in settings.of('lun')}


def load(tmp_path, *lines):
    (tmp_path / 'disk.img').write_bytes(bytes(1 << 20))
    text = '[target iqn.2026-11.com.example:t]\n  [[lun 5]]\n  backing-store = disk.img\n'
    (tmp_path / 'targetd.conf').write_text(text + ''.join('  %s\n' % line for line in lines))
    configuration = loader.load(str(tmp_path / 'targetd.conf'))
    return configuration.targets['iqn.2026-11.com.example:t'].luns[5]


def facts(lun):
    return UnitFacts.from_message(unit_identity.names_of(lun, None, 'key', 'server'))


def seen(lun):
    """(bytes of page 80h, [designators as (type, code set, hex)], name in Linux)."""
    of = facts(lun)
    return (
        designators.serial_number(of),
        [(kind, code_set, data.hex()) for code_set, kind, data in designators.unit_designators(of)],
        designators.linux_name(of),
    )


def test_tgt(tmp_path):
    serial, found, name = seen(load(tmp_path, 'identity = tgt tid=300 lun=17'))
    assert serial == b'beaf30017'.rjust(36)
    assert found == [
        (1, 2, b'IET     012c0011'.ljust(36, b'\0').hex()),
        (3, 1, '3000012c00000011'),
        (3, 1, '60000000000000000e000000012c0011'),
    ]
    assert name == '360000000000000000e000000012c0011'


def test_tgt_with_scsi_id(tmp_path):
    lun = load(tmp_path, 'identity = tgt tid=2 lun=2 scsi_id=ERP-DISK-1 scsi_sn=Q1')
    serial, found, _ = seen(lun)
    assert serial == b'Q1'.rjust(36) and lun.vendor_id == 'IET'
    assert found[0][2] == b'ERP-DISK-1'.ljust(36, b'\0').hex()
    assert found[2][2] == '6000000000000000000000e000d00001'


@pytest.mark.parametrize(
    'wwn, naa',
    [
        ('12345678-9abc-def0-1234-56789abcdef0', '6001405123456789abcdef0123456789'),
        ('ABCDEFGH-XYZ-0001', '6001405abcdef0001000000000000000'),
        ('z9', '60014059000000000000000000000000'),
    ],
)
def test_lio(tmp_path, wwn, naa):
    serial, found, name = seen(load(tmp_path, 'identity = lio wwn=%s product=erp' % wwn))
    assert serial == wwn.encode() + b'\0' and name == '3' + naa
    assert found == [(3, 1, naa), (1, 2, ('LIO-ORG erp:%s\0' % wwn).encode().hex())]


def test_scst_has_an_eui_of_text_and_no_naa(tmp_path):
    serial, found, name = seen(load(tmp_path, 'identity = scst device=log setup_id=0x12'))
    assert serial == b'126194d45b' and name == '23132363139346434'
    assert found == [(1, 2, b'SCST_FIO126194d45b-log'.hex()), (2, 1, '3132363139346434')]


def test_iet_has_one_binary_t10_designator(tmp_path):
    target = 'iqn.2026-11.com.example:iet-erp'
    serial, found, name = seen(load(tmp_path, 'identity = iet target=%s lun=0' % target))
    assert serial == b'04b54dcd4e50df8b587a672949e9a8c1'
    assert found == [(1, 1, '494554000000000004b54dcd4e50df8b587a672949e9a8c1')]
    assert name == '1' + found[0][2]


def test_istgt(tmp_path):
    target = 'iqn.2026-11.com.example.istgt:disk1'
    serial, found, name = seen(load(tmp_path, 'identity = istgt target=%s lun=0 unit=3' % target))
    assert serial == b'10000003' and name == '330000000a45b64e6'
    assert found[1][:2] == (1, 3) and len(found[1][2]) == 2 * 56


def test_ctl(tmp_path):
    words = 'identity = ctl serial=S1 "device_id=ERP DISK 1" "scsi_name=iqn.x:y,lun,0" naa=%s'
    _, found, name = seen(load(tmp_path, words % '60014051234567890abcdef012345678'))
    assert [each[:2] for each in found] == [(1, 2), (8, 3), (3, 1)]
    assert found[0][2] == b'FREEBSD ERP DISK 1\0\0\0\0\0\0'.hex()
    assert name == '360014051234567890abcdef012345678'


def test_ceph(tmp_path):
    wwn = '2f1e0d3c-4b5a-4978-8697-a5b4c3d2e1f0'
    serial, found, _ = seen(load(tmp_path, 'identity = ceph wwn=%s image=rbd/erp' % wwn))
    assert serial == wwn.encode() + b'\0'
    assert [each[0] for each in found] == [1, 3, 0]
    assert bytes.fromhex(found[2][2]) == b'rbd/rbd/erp;osd_op_timeout=30\0'


def test_a_written_setting_has_precedence(tmp_path):
    lun = load(tmp_path, 'identity = tgt tid=1 lun=1', 'vendor-id = ACME', 'naa = none')
    assert (lun.vendor_id, lun.product_id, lun.naa) == ('ACME', 'VIRTUAL-DISK', ('none',))


@pytest.mark.parametrize(
    'line, words',
    [
        ('identity = tgt tid=1', 'tgt needs lun; write identity = tgt tid=... lun=...'),
        ('identity = tgt tid=x lun=1', 'tid=x is not a valid number'),
        ('identity = tgt tid=1 lun=1 colour=red', "tgt has no word 'colour'; words are tid, lun"),
        ('identity = tgd tid=1', 'did you mean tgt?'),
        ('t10 = ascii', 'the designator has 1 words'),
        ('t10 = binary 4X', 'is not a row of hex digits'),
        ('t10 = ascii ERP 2', 'out of range'),
        ('naa = 1', 'is not 16 hex digits'),
        ('designator-order = naa, other', 'is not a valid value'),
    ],
)
def test_a_wrong_identity_is_explained(tmp_path, line, words):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, line)
    assert words in str(caught.value) and 'targetd.conf:4' in str(caught.value)


def test_without_naa_the_eui_or_t10_is_the_name(tmp_path):
    lun = load(tmp_path, 'naa = none', 't10 = ascii "ACME    disk one"', 'eui = 0014051234567890')
    assert designators.linux_name(facts(lun)) == '20014051234567890'
    lun = load(tmp_path, 'naa = none', 't10 = ascii "ACME    disk one"')
    assert designators.linux_name(facts(lun)) == '1ACME_disk_one'
    lun = load(tmp_path, 'naa = none', 't10 = none', 'vendor-specific = binary 0a0B')
    assert designators.linux_name(facts(lun)) == '0TARGETD_VIRTUAL-DISK_0a0b'
    lun = load(
        tmp_path, 'naa = none', 't10 = utf-8 "ACME    x"', 'scsi-sn = S1', 'scsi-sn-nuls = 2'
    )
    assert seen(lun)[0] == b'S1\0\0' and seen(lun)[2] == 'STARGETD_VIRTUAL-DISK_S1'


@pytest.mark.parametrize(
    'code_set, content, length',
    [
        ('ascii', b'IET     00010001', 36),
        ('ascii', b'it"s, "quoted"', 0),
        ('ascii', b'a\0b', 0),
        ('ascii', b'0x41', 0),
        ('binary', bytes(range(20)), 0),
        ('utf-8', 'T\u00fcr'.encode(), 20),
        ('binary', bytes(8), 0),
    ],
)
def test_a_designator_is_read_as_it_was_written(code_set, content, length):
    kind = ROWS['t10'].kind
    value = kind.read(split(identities.designator(code_set, content, length)))
    assert value == '%s:%s' % (code_set, content.ljust(length, b'\0').hex())
    assert kind.read(split(kind.show(value))) == value


def test_equal_identifiers_of_two_disks_are_refused(tmp_path):
    (tmp_path / 'a.img').write_bytes(bytes(1 << 20))
    (tmp_path / 'b.img').write_bytes(bytes(1 << 20))
    text = '[target iqn.2026-11.com.example:t]\n'
    for number, (store, scsi_id) in enumerate([('a.img', 'VOLUME-K'), ('b.img', 'VOLUME-M')]):
        text += '  [[lun %d]]\n  backing-store = %s\n' % (number, store)
        text += '  identity = tgt tid=1 lun=%d scsi_id=%s\n' % (number + 2, scsi_id)
    (tmp_path / 'targetd.conf').write_text(text)
    with pytest.raises(ConfigError) as caught:
        loader.load(str(tmp_path / 'targetd.conf'))
    assert 'has the naa of lun 0' in str(caught.value)
    assert str(caught.value).count('which is another disk') == 1


def test_the_words_of_every_format_are_checked():
    for name, function in identities.FORMATS.items():
        required, _ = identities.arguments(function)
        with pytest.raises(Unusable):
            identities.settings_of(name, dict.fromkeys(required, ''))
