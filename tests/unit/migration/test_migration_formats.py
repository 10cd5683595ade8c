"""The importers of LIO, SCST, IET, ctld, istgt, ceph-iscsi and Microsoft with small files of our own."""

import json

import pytest
from migrated import linux_name, loaded, notes

from targetd.migration import ceph, ctl, iet, istgt, lio, microsoft, scst, sources
from targetd.migration.imported import LEFT_OUT, NOTE, WRONG, Unreadable

NAME = 'iqn.2026-11.com.example:t'


def target_of(imported):
    configuration, complaints = loaded(imported)
    assert complaints == []
    return configuration.targets[NAME]


# -- LIO -------------------------------------------------------------------------------------------


def lio_file(**changes):
    tpg = {
        'tag': 1,
        'enable': 1,
        'attributes': {'authentication': 0, 'generate_node_acls': 0},
        'luns': [{'index': 0, 'storage_object': '/backstores/fileio/a'}],
        'node_acls': [
            {
                'node_wwn': 'iqn.x:One',
                'mapped_luns': [{'index': 7, 'tpg_lun': 0, 'write_protect': 0}],
            }
        ],
        'portals': [{'ip_address': '10.0.0.1', 'port': 3260}],
    }
    tpg.update(changes)
    store = {'plugin': 'fileio', 'name': 'a', 'dev': '/srv/a', 'size': 1 << 20, 'wwn': 'z9'}
    return json.dumps(
        {
            'storage_objects': [store],
            'targets': [
                {'fabric': 'iscsi', 'wwn': NAME, 'tpgs': [tpg]},
                {'fabric': 'vhost', 'wwn': 'naa.5', 'tpgs': []},
            ],
        },
        indent=1,
    )


def test_lio_numbers_and_names_are_those_of_the_access_list():
    imported = lio.parse('saveconfig.json', lio_file())
    target = target_of(imported)
    assert target.initiator_names == ('iqn.x:one',) and not target.initiator_addresses
    assert linux_name(target.luns[7]) == '360014059000000000000000000000000'
    assert not target.luns[7].write_cache and target.luns[7].size == 1 << 20
    assert 'is of vhost, not of iSCSI' in notes(imported, LEFT_OUT)[0]


def test_lio_a_pscsi_device_is_passed_through():
    content = json.loads(lio_file(luns=[{'index': 0, 'storage_object': '/backstores/pscsi/t'}]))
    content['storage_objects'] = [{'plugin': 'pscsi', 'name': 't', 'dev': '/dev/sg3', 'wwn': 'z9'}]
    imported = lio.parse('saveconfig.json', json.dumps(content))
    lun = target_of(imported).luns[7]
    assert (lun.type, lun.backing_store) == ('passthrough', '/dev/sg3')


def test_lio_demanded_authentication_without_an_account_admits_nobody():
    attributes = {'authentication': 1, 'generate_node_acls': 1}
    imported = lio.parse('saveconfig.json', lio_file(attributes=attributes))
    assert not imported.targets[0].get('initiator-address')
    assert not imported.targets[0].get('initiator-name')
    assert 'it has no account' in notes(imported, WRONG)[0]


def test_lio_shows_each_initiator_its_luns():
    acls = [
        {'node_wwn': 'iqn.x:one', 'mapped_luns': [{'index': 0, 'tpg_lun': 0}]},
        {
            'node_wwn': 'iqn.x:Two',
            'mapped_luns': [{'index': 5, 'tpg_lun': 0, 'write_protect': 1}],
            'attributes': {'authentication': 1},
            'chap_userid': 'two',
            'chap_password': 'secret-of-two',
        },
        {'node_wwn': 'iqn.x:three', 'mapped_luns': []},
    ]
    imported = lio.parse('saveconfig.json', lio_file(node_acls=acls))
    assert imported.targets[0].get('lun-map') == ['iqn.x:one 0', 'iqn.x:two 5=0:read-only']
    target = target_of(imported)
    assert list(target.luns) == [0] and not target.luns[0].readonly
    assert target.initiator_names == ('iqn.x:one', 'iqn.x:two')
    assert target.incominguser_for == (('two', 'iqn.x:two'),)


def test_lio_demo_mode_beside_an_access_list():
    imported = lio.parse(
        'saveconfig.json', lio_file(attributes={'authentication': 0, 'generate_node_acls': 1})
    )
    assert imported.targets[0].get('lun-map') == ['iqn.x:one 7', 'ALL 0=7:read-only']
    assert target_of(imported).initiator_addresses == ('ALL',)


def test_lio_one_initiator_with_other_luns_in_another_tpg_is_refused():
    content = json.loads(lio_file())
    (tpg,) = content['targets'][0]['tpgs']
    other = dict(tpg, tag=2, portals=[{'ip_address': '10.0.0.2', 'port': 3260}])
    other['node_acls'] = [{'node_wwn': 'iqn.x:one', 'mapped_luns': [{'index': 8, 'tpg_lun': 0}]}]
    content['targets'][0]['tpgs'].append(other)
    imported = lio.parse('saveconfig.json', json.dumps(content))
    assert imported.targets == []
    assert 'show other LUNs to iqn.x:one: LUN 7 a; LUN 8 a' in notes(imported, WRONG)[0]


def test_lio_with_another_shape_cannot_be_read():
    with pytest.raises(Unreadable, match='has not the form that LIO writes'):
        lio.parse('saveconfig.json', '{"storage_objects": [1], "targets": []}')


# -- SCST ------------------------------------------------------------------------------------------

SCST = """
HANDLER vdisk_fileio { DEVICE d1 {
  filename "/srv/a b.img"
  write_through 1
} }
TARGET_DRIVER iscsi {
  enabled 1
  TARGET %s {
    enabled 1
    IncomingUser "joe se\\#cret"
    %s
  }
}
"""


def test_scst_target_luns_are_for_everyone():
    imported = scst.parse('scst.conf', SCST % (NAME, 'LUN 0 d1 # a comment'))
    target = target_of(imported)
    assert target.initiator_addresses == ('ALL',) and target.accounts == (('joe', 'se#cret'),)
    assert target.luns[0].backing_store == '/srv/a b.img' and not target.luns[0].write_cache
    assert [text for text in notes(imported, NOTE) if 'for everyone' in text]


def test_scst_group_admits_its_initiators_only():
    group = 'GROUP g { LUN 3 d1\n INITIATOR iqn.x:N*\n}'
    target = target_of(scst.parse('scst.conf', SCST % (NAME, group)))
    assert target.initiator_names == ('iqn.x:n*',) and list(target.luns) == [3]
    refused = scst.parse('scst.conf', SCST % (NAME, group.replace('iqn.x', '!iqn.x')))
    assert refused.targets == [] and 'cannot refuse single names' in notes(refused, WRONG)[0]


def test_scst_groups_are_maps_and_plain_luns_are_for_everyone_else():
    text = SCST.replace('} }\nTARGET', '}\nDEVICE d2 {\n  filename /srv/b.img\n} }\nTARGET') % (
        NAME,
        'LUN 0 d1 {\n read_only 1\n}\n'
        'GROUP a { LUN 0 d2\n LUN 4 d1\n INITIATOR iqn.x:one\n INITIATOR iqn.x:o*\n}\n'
        'GROUP b { LUN 0 d2 {\n read_only 1\n}\n INITIATOR iqn.x:two\n}',
    )
    imported = scst.parse('scst.conf', text)
    assert imported.targets[0].get('lun-map') == [
        'iqn.x:one 0 4',
        'iqn.x:o* 0 4',
        'iqn.x:two 0:read-only',
        'ALL 0=4:read-only',
    ]
    target = target_of(imported)
    assert [lun.backing_store for lun in target.luns.values()] == ['/srv/b.img', '/srv/a b.img']
    assert not any(lun.readonly for lun in target.luns.values())
    assert 'the longest pattern' in ' '.join(notes(imported, NOTE))


@pytest.mark.parametrize(
    'text, words',
    [
        ('TARGET_DRIVER iscsi {\n', 'never closed'),
        ('}\n', 'a } without a {'),
        ('[HANDLER vdisk]\n', 'of the old form'),
        ('HANDLER "x\n', 'the quote is never closed'),
    ],
)
def test_scst_damaged_files_cannot_be_read(text, words):
    with pytest.raises(Unreadable) as caught:
        scst.parse('scst.conf', text)
    assert words in str(caught.value)


# -- IET -------------------------------------------------------------------------------------------

IET = (
    'Target %s\n\tIncomingUser joe secret12345\n\tLun 0 Path=/srv/a,Type=fileio,IOMode=wb\n' % NAME
)


def test_iet_with_allow(tmp_path):
    path = str(tmp_path / 'ietd.conf')
    (tmp_path / 'initiators.allow').write_text('ALL 10.0.0.0/8, iqn\\.x:.*\n')
    imported = iet.parse(path, IET)
    target = target_of(imported)
    assert target.initiator_addresses == ('10.0.0.0/8',) and target.initiator_names == ('iqn.x:*',)
    assert target.luns[0].write_cache and target.luns[0].naa == ('none',)
    assert len(imported.files) == 2


def test_iet_with_deny(tmp_path):
    path = str(tmp_path / 'ietd.conf')
    (tmp_path / 'initiators.deny').write_text('ALL 10.0.0.66\n')
    imported = iet.parse(path, IET)
    assert not imported.targets[0].get('initiator-address')
    assert 'targetd has no list of denied initiators' in notes(imported, WRONG)[0]
    (tmp_path / 'initiators.deny').write_text('ALL ALL\n')
    (tmp_path / 'initiators.allow').write_text('%s 10.0.0.5\n' % NAME)
    assert target_of(iet.parse(path, IET)).initiator_addresses == ('10.0.0.5',)


def test_iet_without_files_admits_everyone_and_the_last_line_needs_an_end(tmp_path):
    path = str(tmp_path / 'ietd.conf')
    assert target_of(iet.parse(path, IET)).initiator_addresses == ('ALL',)
    imported = iet.parse(path, IET[:-1])
    assert 'the last line has no line end' in notes(imported, WRONG)[0]


# -- ctld ------------------------------------------------------------------------------------------


def test_ctl_in_its_own_grammar():
    imported = ctl.parse(
        'ctl.conf',
        'auth-group g {\n chap-mutual joe "secret 12345" back backsecret1\n initiator-name IQN.x:a\n}\n'
        'target %s {\n auth-group g\n lun 0x10 { path "/srv/a b"; serial S1; device-id D1; size 4k }\n}\n'
        % NAME,
    )
    target = target_of(lio_size(imported))
    assert target.accounts == (('joe', 'secret 12345'),) and target.outgoing == (
        'back',
        'backsecret1',
    )
    assert list(target.luns) == [16] and target.initiator_names == ('iqn.x:a',)
    assert linux_name(target.luns[16]) == '1FREEBSD_D1'


def lio_size(imported):
    """4 KiB is less than targetd serves; the reading of the size is what is tested."""
    for lun in imported.targets[0].luns:
        assert lun.get('size') == ['4096']
        lun.replace('size', '1M')
    return imported


def test_ctl_in_ucl():
    imported = ctl.parse(
        'ctl.conf',
        '/* UCL */ lun { d { path = "/srv/d", serial = "S2" } }\n'
        'target { "%s" { auth-group = no-authentication; lun = [ { number = 3, name = d } ] } }\n'
        % NAME,
    )
    target = target_of(imported)
    assert target.initiator_addresses == ('ALL',) and target.luns[3].scsi_sn == 'S2'
    assert [text for text in notes(imported, NOTE) if 'device-id of LUN 3' in text]


def test_ctl_without_an_auth_group_admits_nobody():
    imported = ctl.parse('ctl.conf', 'target %s {\n lun 0 { path /srv/a }\n}\n' % NAME)
    assert target_of(imported).initiator_addresses == ()
    for text, words in (('target x {\n', 'never closed'), ('}', 'without a {')):
        with pytest.raises(Unreadable, match=words):
            ctl.parse('ctl.conf', text)


# -- istgt -----------------------------------------------------------------------------------------

ISTGT = """[Global]
  NodeBase "iqn.2026-11.com.example"
  AuthFile /usr/local/etc/istgt/auth.conf
[PortalGroup1]
  Portal DA1 10.0.0.1:3260
[InitiatorGroup1]
  InitiatorName "ALL"
  Netmask 10.0.0.0/8
[LogicalUnit1]
  TargetName t
  Mapping PortalGroup1 InitiatorGroup1
  AuthMethod CHAP
  AuthGroup AuthGroup1
  LUN0 Storage "/srv/a b" Auto
"""


def test_istgt(tmp_path):
    (tmp_path / 'auth.conf').write_text('[AuthGroup1]\n  Auth "joe" "secret 1"\n')
    target = target_of(istgt.parse(str(tmp_path / 'istgt.conf'), ISTGT))
    assert target.accounts == (('joe', 'secret 1'),) and target.luns[0].backing_store == '/srv/a b'
    assert target.initiator_addresses == ('10.0.0.0/8',) and not target.initiator_names


def test_istgt_without_its_accounts_admits_nobody(tmp_path):
    imported = istgt.parse(str(tmp_path / 'istgt.conf'), ISTGT)
    assert not imported.targets[0].get('initiator-address')
    assert 'istgt.conf:3: error: the file' in notes(imported, WRONG)[0]
    assert 'admits nobody' in notes(imported, WRONG)[1]


# -- ceph-iscsi and Microsoft ----------------------------------------------------------------------


def test_ceph_of_version_3():
    text = json.dumps(
        {
            'version': 3,
            'gateways': {'iqn': NAME, 'gw1': {'portal_ip_address': '10.0.0.1'}},
            'disks': {'rbd.d': {'wwn': 'z9'}},
            'clients': {
                'iqn.x:a': {'auth': {'chap': 'joe/se/cret'}, 'luns': {'rbd.d': {'lun_id': 2}}}
            },
        }
    )
    imported = ceph.parse('gateway.conf', text)
    (target,) = imported.targets
    assert target.get('incominguser') == ['joe se/cret'] and target.luns[0].number == 2
    assert 'is the RADOS image rbd/d' in notes(imported, WRONG)[0]


def test_ceph_clients_have_maps():
    clients = {
        'iqn.x:A': {'luns': {'rbd/d': {'lun_id': 0}}, 'auth': {'username': 'joe', 'password': 's'}},
        'iqn.x:b': {'luns': {'rbd/e': {'lun_id': 0}, 'rbd/d': {'lun_id': 1}}, 'auth': {}},
    }
    disks = {'rbd/d': {}, 'rbd/e': {}}
    text = json.dumps({'gateways': {}, 'disks': disks, 'targets': {NAME: {'clients': clients}}})
    imported = ceph.parse('gateway.conf', text)
    (target,) = imported.targets
    assert target.get('lun-map') == ['iqn.x:a 0', 'iqn.x:b 0=1 1=0']
    assert [lun.number for lun in target.luns] == [0, 1]
    assert target.get('incominguser-for') == ['joe iqn.x:a']


def test_ceph_encrypted_secrets_are_never_written():
    auth = {'username': 'joe', 'password': 'x=', 'password_encryption_enabled': True}
    text = json.dumps(
        {'gateways': {}, 'disks': {}, 'targets': {NAME: {'clients': {'iqn.x:a': {'auth': auth}}}}}
    )
    imported = ceph.parse('gateway.conf', text)
    assert imported.targets[0].get('incominguser') == ['joe']
    assert 'is encrypted with a key of the gateways' in notes(imported, WRONG)[0]


def test_microsoft_has_no_secrets_and_no_data():
    text = (
        '<?xml version="1.0"?>\n<iSCSITargetServiceSetting xmlns="u:x"><iSCSITargetRecords><iSCSITarget>\n'
        '<Enabled>True</Enabled><TargetIQN>%s</TargetIQN><EnableCHAP>True</EnableCHAP>\n'
        '<CHAPUserName>joe</CHAPUserName><InitiatorIDs><InitiatorID><Method>1</Method>\n'
        '<Value>host</Value></InitiatorID></InitiatorIDs>\n<LunMappings><LunMapping><DiskId>3</DiskId>'
        '<LUN>0</LUN></LunMapping></LunMappings></iSCSITarget></iSCSITargetRecords>\n'
        '<iSCSIVirtualDiskRecords><iSCSIVirtualDisk><DiskId>3</DiskId><DevicePath>D:\\a.vhdx</DevicePath>'
        '</iSCSIVirtualDisk></iSCSIVirtualDiskRecords></iSCSITargetServiceSetting>\n' % NAME
    )
    imported = microsoft.parse('export.xml', text)
    assert imported.targets[0].get('incominguser') == ['joe']
    assert not imported.targets[0].get('initiator-address')
    assert 'export.xml:5: left out: host is a DNS name' in notes(imported, LEFT_OUT)[0]
    assert [text for text in notes(imported, WRONG) if 'convert it with qemu-img' in text]
    with pytest.raises(Unreadable, match='not complete XML'):
        microsoft.parse('export.xml', text[:300])


# -- sharing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('more, count', [('', 1), ('    readonly 1\n', 0)])
def test_a_lun_that_many_hosts_could_write_is_noted_once(tmp_path, more, count):
    path = tmp_path / 'targets.conf'
    text = '<target iqn.2026-11.test:%s>\n  <backing-store /srv/%s.img>\n%s  </backing-store>\n</target>\n'
    path.write_text(''.join(text % (name, name, more) for name in 'ab'))
    found = notes(sources.import_files([str(path)]), NOTE)
    assert len([note for note in found if 'sharing = cluster' in note]) == count
