"""Warnings about settings that are allowed but probably not intended."""

import os

import pytest

from targetd.config import lint, loader

HEAD = '[target iqn.2026-11.com.example:t]\n'
GOOD = HEAD + (
    'initiator-address = 10.0.0.0/8\nincominguser = erp exactly-14-chr\n'
    '[[lun 0]]\nbacking-store = /srv/x.img\nsize = 1M\n'
)


@pytest.fixture
def warnings(tmp_path):
    def warnings(text, mode=0o600):
        path = tmp_path / 'main.conf'
        path.write_bytes(text.encode('utf-8'))
        os.chmod(str(path), mode)
        configuration = loader.load(str(path))
        return [str(w) for w in lint.warnings(configuration)]

    return warnings


def test_a_good_file_has_no_warning(warnings):
    assert warnings(GOOD) == []
    assert warnings('', 0o644) == []


@pytest.mark.clause('RFC 7143 4.2.7')
@pytest.mark.parametrize(
    'name, word',
    [
        ('iqn.2015-1.com.example:san', 'year-month'),
        ('iqn.2026-11.com.example:data_store', '"_"'),
        ('iqn.2026-11.COM.Example:Data_Store', '"_"'),
        ('iqn.2026-13.com.example:x', 'month'),
    ],
)
def test_a_target_name_that_does_not_obey_the_rfc_is_accepted_with_a_warning(warnings, name, word):
    (warning,) = warnings(GOOD.replace('iqn.2026-11.com.example:t', name))
    assert 'RFC 7143 4.2.7' in warning and word in warning and ':1:' in warning
    assert warnings(GOOD.replace('iqn.2026-11.com.example:t', 'iqn.2026-11.COM.Example:T')) == []


@pytest.mark.parametrize(
    'text, line, words',
    [
        (GOOD.replace('exactly-14-chr', 'short'), 3, ["'erp'", '5 bytes', '12 to 16']),
        (GOOD.replace('exactly-14-chr', 'p\u00e4ssw\u00f6rt-lang-x'), 3, ['17 bytes']),
        (
            GOOD.replace('[[', 'outgoinguser = back much-longer-than-16-chr\n[['),
            4,
            ["'back'", '23 bytes'],
        ),
        ('[server]\nincomingdiscoveryuser = d short\n', 2, ["'d'"]),
        (
            GOOD.replace('initiator-address = 10.0.0.0/8', '#'),
            1,
            ['admits no initiator', 'initiator-address = ALL', 'with an account'],
        ),
        (
            HEAD + 'initiator-address = ALL\nbacking-store = /x\n',
            1,
            ['admits every initiator', 'incominguser'],
        ),
        (HEAD + 'initiator-name = *\nbacking-store = /x\n', 1, ['admits every initiator']),
        (HEAD + 'initiator-address = 10.0.0.1\n', 1, ['has no LUN', '[[lun 0]]']),
        (GOOD.replace('lun 0', 'lun 1'), 1, ['no LUN 0']),
        (
            '[portal-group 1]\nportal = 10.0.0.1\n'
            + GOOD.replace('incoming', 'redirect = temporary 10.0.0.1\nincoming'),
            3,
            ['its own portal 10.0.0.1:3260', 'the other server'],
        ),
        (
            GOOD.replace('/srv/x.img\nsize = 1M', '/dev/sdb'),
            4,
            ['/dev/sdb', 'another disk', 'by-id'],
        ),
        (GOOD.replace('/srv/x.img\nsize = 1M', '/dev/nvme0n1p2'), 4, ['another disk']),
        (GOOD + 'unit-state = /srv/state\n', 4, ['unit-state', 'server-id', 'scsi-sn']),
    ],
)
def test_a_warning_names_the_place_and_what_to_write(warnings, text, line, words):
    found = warnings(text)
    assert len(found) == 1, found
    assert 'main.conf:%d: ' % line in found[0]
    for word in words:
        assert word in found[0]


def test_a_lun_that_moves_with_its_identity_has_no_warning(warnings):
    moving = GOOD + 'unit-state = /srv/state\n'
    naa = 'naa = 600140500000000000000000000000aa\nscsi-sn = 77\n'
    assert warnings(moving + naa) == []
    server_id = '[server]\nserver-id = 6c1a9a3e-3a36-4b0f-8a44-0c8f5c0a7d11\n'
    assert warnings(server_id + moving) == []


def test_a_redirected_target_needs_no_lun(warnings):
    assert warnings(HEAD + 'initiator-address = 10.0.0.1\nredirect = permanent 10.0.0.2\n') == []


def test_secrets_that_every_user_can_read(warnings):
    assert 'chmod 600' in warnings(GOOD, 0o644)[0] and len(warnings(GOOD, 0o644)) == 1
    assert warnings(GOOD, 0o640) == []


def test_secrets_in_a_file_of_their_own(warnings, tmp_path):
    (tmp_path / 's').write_text('erp exactly-14-chr\nback short\n')
    os.chmod(str(tmp_path / 's'), 0o644)
    found = warnings(
        GOOD.replace('incominguser = erp exactly-14-chr', 'incominguser-file = s'), 0o644
    )
    assert (
        len(found) == 2
        and str(tmp_path / 's') + ': contains secrets' in found[0]
        and '/s:2: ' in found[1]
    )


def test_a_target_for_every_address_with_chap_has_no_warning(warnings):
    assert warnings(GOOD.replace('10.0.0.0/8', 'ALL')) == []


@pytest.mark.parametrize(
    'more, count', [('', 2), ('readonly = yes\n', 0), ('allow-in-use = yes\n', 0)]
)
def test_a_disk_that_this_host_is_configured_to_use(tmp_path, monkeypatch, more, count):
    monkeypatch.setattr(lint.roots, 'kernel_name', lambda path: 'sdb')
    monkeypatch.setattr(
        lint.claims,
        'find_claims',
        lambda path, found, descriptor: ['%s is listed in /etc/fstab' % path],
    )
    monkeypatch.setattr(
        lint.signatures,
        'auto_assembled_by_udev',
        lambda name: ['/dev/%s: linux_raid_member' % name],
    )
    path = tmp_path / 'main.conf'
    path.write_text(
        HEAD + 'initiator-address = 10.0.0.0/8\n[[lun 0]]\nbacking-store = %s\n%s' % (path, more)
    )
    path.chmod(0o600)
    texts = [str(warning) for warning in lint.contents(loader.load(str(path)))]
    assert len(texts) == count
    if count:
        assert 'main.conf:3' in texts[0] and '/dev/sdb is listed in /etc/fstab' in texts[0]
        assert 'linux_raid_member' in texts[1] and 'AUTO -all' in texts[1]


def test_stores_that_are_not_disks_are_skipped(tmp_path):
    path = tmp_path / 'main.conf'
    path.write_text(
        HEAD
        + 'initiator-address = 10.0.0.0/8\n[[lun 0]]\nbacking-store = %s\n[[lun 1]]\ntype = ram\nsize = 1M\n'
        '[[lun 2]]\nbacking-store = serial:nobody has it\n' % path
    )
    path.chmod(0o600)
    assert lint.contents(loader.load(str(path))) == []


def test_a_file_system_with_too_little_space_for_its_luns(tmp_path):
    path = tmp_path / 'targetd.conf'
    text = '[target iqn.2026-11.test:a]\ninitiator-address = 10.0.0.1\n[[lun 0]]\n%s\n'
    store = 'backing-store = %s\nsize = ' % (tmp_path / 'a.img')
    path.write_text(text % (store + '1M'))
    assert lint.overcommitted(loader.load(str(path))) == []
    path.write_text(text % (store + '512P'))
    (warning,) = lint.overcommitted(loader.load(str(path)))
    assert 'may still use 549755813888 MiB' in str(warning) and 'add space' in str(warning)
    path.write_text(text % (store + '512P\nreadonly = yes'))
    assert lint.overcommitted(loader.load(str(path))) == []


def test_a_limit_that_makes_initiators_abort_their_commands(warnings):
    text = '[target iqn.2026-11.test:a]\ninitiator-address = 10.0.0.1\n%s\n'
    text += '[[lun 0]]\ntype = null\nsize = 1M\n%s\n'
    (found,) = warnings(text % ('', 'iops-limit = 4'))
    assert 'the last of 128 commands waits 32 seconds' in str(found)
    assert len(warnings(text % ('iops-limit = 1\ninitiator-iops-limit = 2', ''))) == 2
    assert warnings(text % ('iops-limit = 5', 'iops-limit = 100')) == []
