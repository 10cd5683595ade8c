"""Loading a Configuration from files, and every complaint."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targetd.config import loader, model
from targetd.config.words import FORBIDDEN, join_word
from targetd.errors import EXIT_CONFIG, ConfigError

NAME = 'iqn.2026-11.com.example:erp'
PLAN = '''
[server]                                     # every setting has a default; a missing section is fine
pid-file = /var/run/targetd.pid
log = syslog                                 # syslog | stderr | /path/file
user = targetd
max_sessions = 70

[portal-group 1]
portal = 0.0.0.0:3260, [::]:3260

[target iqn.2026-11.com.Example:ERP]
alias = ERP data
portal-group = 1
initiator-address = 10.0.5.0/24              # ALL must be written to admit everyone
initiator-name = iqn.1991-05.com.microsoft:*
incominguser = erp secret-of-12-to-16        # user and secret as in tgt
outgoinguser = erp-back another-secret
MaxBurstLength = 262144
  [[lun 0]]
  backing-store = /dev/disk/by-id/ata-WDC_1
  write-cache = off
  [[lun 1]]
  backing-store = /srv/images/erp.img
  size = 200G                                # created sparse if missing
  thin = yes
'''


@pytest.fixture
def load(tmp_path):
    """load(text, other_name=text...): the Configuration of a file with this text; others are
    written beside it."""

    def load(text, **others):
        for name, content in others.items():
            (tmp_path / (name.replace('_', '.'))).write_bytes(content.encode('utf-8'))
        path = tmp_path / 'main.conf'
        path.write_bytes(text if isinstance(text, bytes) else text.encode('utf-8'))
        return loader.load(str(path))

    return load


@pytest.fixture
def complaints(load):
    """complaints(text, ...): the Complaints of loading it, as [(line, str)]."""

    def complaints(text, **others):
        with pytest.raises(ConfigError) as caught:
            load(text, **others)
        assert caught.value.exit_code == EXIT_CONFIG
        return [(c.line, str(c)) for c in caught.value.complaints]

    return complaints


def target(body, name=NAME):
    return '[target %s]\ninitiator-address = ALL\n%s\n' % (name, body)


def test_a_complete_file_is_loaded(load):
    configuration = load(PLAN)
    assert configuration.server == model.Server(max_sessions=70)
    assert configuration.portal_groups == {
        1: model.PortalGroup(1, (('0.0.0.0', 3260), ('::', 3260)))
    }
    erp = configuration.targets[NAME]
    assert (erp.name, erp.alias, erp.portal_groups) == (NAME, 'ERP data', (1,))
    assert (erp.initiator_addresses, erp.initiator_names) == (
        ('10.0.5.0/24',),
        ('iqn.1991-05.com.microsoft:*',),
    )
    assert (erp.accounts, erp.outgoing) == (
        (('erp', 'secret-of-12-to-16'),),
        ('erp-back', 'another-secret'),
    )
    assert erp.keys['MaxBurstLength'] == 262144 and erp.keys['FirstBurstLength'] == 262144
    assert erp.luns == {
        0: model.Lun(0, '/dev/disk/by-id/ata-WDC_1', write_cache=False),
        1: model.Lun(1, '/srv/images/erp.img', size=200 << 30, thin=True),
    }
    line = PLAN.split('\n').index('  [[lun 1]]') + 1
    assert configuration.places['lun', NAME, 1] == (configuration.files[0], line)


def test_the_settings_of_a_portal_group(load):
    text = PORTAL + (
        'interface = wg0\nadvertise = [2001:db8::7]\nproxy-protocol-from = 127.0.0.1, fd00::/64\n'
        'congestion-control = bbr\nmss = 1288\ndscp = ef\n'
    )
    assert load(text).portal_groups[1] == model.PortalGroup(
        1,
        (('0.0.0.0', 3260),),
        interface='wg0',
        advertise=('2001:db8::7', 3260),
        proxy_protocol_from=('127.0.0.1', 'fd00::/64'),
        congestion_control='bbr',
        mss=1288,
        dscp=46,
    )
    other = text.replace('[portal-group 1]', '[portal-group 2]').replace('wg0', 'wg1')
    assert len(load(text + other).portal_groups) == 2, 'one port on two interfaces'


def test_an_empty_file_has_every_default(load):
    configuration = load('')
    assert configuration.server == model.Server() and not configuration.targets
    assert configuration.portal_groups == {1: model.DEFAULT_PORTAL_GROUP}


def test_several_stores_in_a_target_are_lun_0_and_1(load):
    text = target(
        'backing-store = /dev/sdb, "/srv/a, b"\nbacking-store = img/c\nwrite-cache = off\n'
        '[[lun 9]]\ntype = ram\nsize = 1M'
    )
    luns = load(text).targets[NAME].luns
    assert [(n, lun.backing_store, lun.write_cache) for n, lun in luns.items()] == [
        (0, '/dev/sdb', False),
        (1, '/srv/a, b', False),
        (2, luns[2].backing_store, False),
        (9, '', False),
    ]
    assert luns[2].backing_store.endswith('/img/c') and luns[2].backing_store.startswith('/')


def test_a_lun_s_own_setting_wins_over_its_target_s(load):
    text = target(
        'thin = yes\n[[lun 0]]\nbacking-store = /a\nthin = no\n[[lun 1]]\ndirect-store = serial:X\n'
    )
    luns = load(text).targets[NAME].luns.values()
    assert [(lun.thin, lun.direct, lun.backing_store) for lun in luns] == [
        (False, False, '/a'),
        (True, True, 'serial:X'),
    ]


def test_a_list_may_be_written_on_several_lines(load):
    text = target('incominguser = a secret1, b secret2\nincominguser = c "sec, ret3"\n')
    assert load(text).targets[NAME].accounts == (
        ('a', 'secret1'),
        ('b', 'secret2'),
        ('c', 'sec, ret3'),
    )


def test_accounts_come_from_files_too(load):
    text = target('incominguser-file = erp.secrets\n')
    configuration = load(text, erp_secrets='# who\nerp "a, #b"\r\n\nthe-other x#y # why\n')
    assert configuration.targets[NAME].accounts == (('erp', 'a, #b'), ('the-other', 'x#y'))
    assert [os.path.basename(path) for path in configuration.files] == ['main.conf', 'erp.secrets']


@pytest.mark.parametrize(
    'secret',
    [
        'a#b',
        '#ab',
        'a,b',
        'a b',
        '"',
        "'",
        '\'"',
        '"\'',
        "'''",
        '"""',
        'a;b=c$d',
        '$(x)s',
        '%(x)s',
        '\\n\\',
        'pässwört',
        '\u5bc6\u7801',
        '[x]',
        ' a ',
        'a\tb',
        '<',
        '\u2028x',
        '\x1c',
        '=',
        '\ufeff',
    ],
)
def test_a_secret_may_hold_any_character(load, secret):
    for user in ('erp', secret):
        text = target('incominguser = %s %s # x' % (join_word(user), join_word(secret)))
        assert load(text).targets[NAME].accounts == ((user, secret),)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.text(
                st.characters(blacklist_characters=FORBIDDEN, blacklist_categories=('Cs',)),
                min_size=1,
                max_size=16,
            ),
            st.text(
                st.sampled_from('ab"\',#; =$\\[]\t%\u00e4\u2028\x85\xa0\x1c'),
                min_size=1,
                max_size=9,
            ),
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda account: account[0],
    )
)
def test_accounts_survive_being_written_and_loaded(tmp_path_factory, accounts):
    path = tmp_path_factory.mktemp('accounts') / 'a.conf'
    lines = [
        'incominguser = %s %s' % (join_word(user), join_word(secret)) for user, secret in accounts
    ]
    path.write_bytes(target('\n'.join(lines)).encode('utf-8'))
    assert loader.load(str(path)).targets[NAME].accounts == tuple(accounts)


def test_windows_line_ends_and_a_byte_order_mark_do_not_matter(load):
    configuration = load(b'\xef\xbb\xbf' + PLAN.replace('\n', '\r\n').encode())
    assert configuration.targets[NAME].outgoing == ('erp-back', 'another-secret')


# -- include ---------------------------------------------------------------------------------------


def test_included_files_are_read_in_order(load, tmp_path):
    (tmp_path / 'd').mkdir()
    for name in ('b', 'a'):
        (tmp_path / 'd' / (name + '.conf')).write_text(
            target('backing-store = img-' + name, NAME + name)
        )
    (tmp_path / 'd' / 'old.bak').write_text('nonsense')
    configuration = load('include = d/*.conf, empty.d/*.conf\n[server]\nmax-sessions = 3\n')
    assert (
        list(configuration.targets) == [NAME + 'a', NAME + 'b']
        and configuration.server.max_sessions == 3
    )


def test_paths_are_relative_to_the_file_that_contains_them(load, tmp_path):
    (tmp_path / 'd').mkdir()
    (tmp_path / 'd' / 'x.conf').write_text('include = y.inc\n')
    (tmp_path / 'd' / 'y.inc').write_text(target('backing-store = disk.img'))
    assert load('include = d/x.conf').targets[NAME].luns[0].backing_store == str(
        tmp_path / 'd' / 'disk.img'
    )


def test_a_cycle_of_includes_is_refused(complaints):
    found = complaints(
        'include = a.conf\n', a_conf='\ninclude = b.conf\n', b_conf='include = a.conf\n'
    )
    assert (
        len(found) == 1
        and 'b.conf:1: includes' in found[0][1]
        and 'which includes this file' in found[0][1]
    )


def test_a_file_included_twice_is_refused_with_both_places(complaints, tmp_path):
    found = complaints('include = a.conf\ninclude = ./a.conf\n', a_conf='')
    assert found[0][0] == 2 and 'already included at %s:1' % (tmp_path / 'main.conf') in found[0][1]


@pytest.mark.parametrize('body', ['', '[[lun 0]]\nbacking-store = /a\n'])
def test_a_target_in_two_files_names_both_places(complaints, tmp_path, body):
    found = complaints(
        'include = a.conf\n' + target(body), a_conf='# x\n' + target('', NAME.upper())
    )
    assert (
        found[0][0] == 2
        and 'is defined twice; the other place is %s:2' % (tmp_path / 'a.conf') in found[0][1]
    )


def test_a_missing_file_is_one_complaint(complaints, tmp_path):
    assert 'No such file' in complaints('include = nothing.conf')[0][1]
    with pytest.raises(ConfigError) as caught:
        loader.load(str(tmp_path / 'none.conf'))
    assert 'targetd --demo' in str(caught.value) and str(tmp_path / 'none.conf') in str(
        caught.value
    )


# -- complaints ------------------------------------------------------------------------------------

PORTAL = '[portal-group 1]\nportal = 0.0.0.0\n'
CHAP = 'incominguser = a same-secret-12\n'
#: (text, line, words that the complaint must hold)
COMPLAINTS = [
    # the file as such
    (b'[server]\nuser = n\xe4chster\n', 2, ['UTF-8']),
    ('[server]\nuser = "a\0b"\n', 2, ['NUL']),
    ('[server]\nuser nobody\n', 2, ['equals sign', 'user = ']),
    ('[server]\nnonsense\n', 2, ['this line is neither']),
    ('[server]\n= 5\n', 2, ['name before the equals sign is missing']),
    ('[server\nmax-sessions = 3\n', 1, ['not closed']),
    ('[target a=b\n', 1, ['not closed']),
    ('<target iqn.2026-11.com.example:x>\n', 1, ['[target iqn.2026-11.com.example:x]']),
    ('</target>\n', 1, ['no end mark']),
    ('; comment\n', 1, ['write comments with #']),
    ('[server]\nuser = """a\n', 2, ['three quotes']),
    ('[target "x]\n', 1, ['never closed']),
    ('[[lun 0]]\n', 1, ['nested too deeply', '[target NAME]']),
    (target('[[lun 0]\nthin = x\n'), 3, ['2 [ and 1 ]']),
    ('[target x\nincominguser = a hidden\n [[lun 0]]\nthin = x\n', 1, ['not closed']),
    ('incominguser a hidden\n', 1, ['equals sign', 'incominguser = ...']),
    ('include =\n', 1, ['include has no path']),
    ('include = "x\n', 1, ['never closed']),
    ('includ = x\n', 1, ['did you mean include']),
    ('max-sessions = 3\n', 1, ['before the first section', 'in a section [server]']),
    ('[server]\ninclude = x\n', 2, ['before the first section']),
    # sections
    ('[serve]\n', 1, ['serve', 'did you mean [server]']),
    ('[something]\n', 1, ['[target NAME]']),
    ('[lun 0]\n', 1, ['[[lun 0]]', 'inside']),
    ('[server x]\n', 1, ['has an argument']),
    ('[server]\n[[lun 0]]\n', 2, ['only a [target NAME]']),
    ('[portal-group 1]\nportal = 0.0.0.0\n[[x]]\n', 3, ['only a [target NAME]']),
    ('[portal-group 0]\nportal = 0.0.0.0\n', 1, ['from 1 to 65535']),
    (PORTAL + 'interface = eth0/1\n', 3, ['network interface', 'ip link']),
    (PORTAL + 'interface = a-name-of-16-chars\n', 3, ['network interface']),
    (PORTAL + 'advertise = san.example.com:3260\n', 3, ['not a numeric address', 'host name']),
    (PORTAL + 'advertise = 0.0.0.0:3260\n', 3, ['not an address of another host']),
    (PORTAL + 'advertise = 203.0.113.7:0\n', 3, ['out of range']),
    (PORTAL + 'proxy-protocol-from = ALL\n', 3, ['everyone', 'each proxy']),
    (PORTAL + 'proxy-protocol-from = 0.0.0.0/0\n', 3, ['everyone']),
    (PORTAL + 'proxy-protocol-from = tunnel\n', 3, ['neither an address nor a network']),
    (PORTAL + 'congestion-control = "b b r"\n', 3, ['congestion control', 'sysctl']),
    (PORTAL + 'mss = 40\n', 3, ['from 88 to 32767', 'auto']),
    (PORTAL + 'dscp = AF44\n', 3, ['0 to 63', 'AF43']),
    (PORTAL + 'dscp = 64\n', 3, ['0 to 63']),
    ('[portal-group]\nportal = 0.0.0.0\n', 1, ['from 1 to 65535']),
    ('[portal-group 1]\n', 1, ['has no portal']),
    (
        '[portal-group 1]\nportal = 0.0.0.0\n[portal-group 1]\nportal = 0.0.0.0:1\n',
        3,
        ['defined twice', 'main.conf:1'],
    ),
    (
        '[portal-group 1]\nportal = 10.0.0.1\n[portal-group 2]\nportal = 10.0.0.1:3260\n',
        3,
        ['defined twice', 'main.conf:1'],
    ),
    (
        '[portal-group 1]\nportal = 10.0.0.1\n[portal-group 2]\nportal = 0.0.0.0\n',
        3,
        ['overlaps with 10.0.0.1:3260'],
    ),
    ('[target disk]\n', 1, ['disk', 'iqn.']),
    ('[target]\n', 1, ['empty', 'iqn.']),
    (target('[[lun 99999]]\nbacking-store = /a\n'), 3, ['from 0 to 16383']),
    (target('[[lnu 0]]\n'), 3, ['did you mean [[lun 0]]']),
    (target('[[disk]]\n'), 3, ['write [[lun N]]']),
    (target('[[lun 0]]\nbacking-store = /a\n[[[x]]]\n'), 5, ['inside a [[lun N]]']),
    (
        target('[[lun 0]]\nbacking-store = /a\n[[lun 0]]\nbacking-store = /b\n'),
        5,
        ['lun 0', 'defined twice', 'main.conf:3'],
    ),
    (
        target('backing-store = /a\n[[lun 0]]\nbacking-store = /b\n'),
        4,
        ['lun 0', 'defined twice', 'main.conf:3'],
    ),
    (
        target('serving = when-active\n[[lun 0]]\nbacking-store = /a\n'),
        4,
        ['lun 0 has no unit-state', 'serving = always'],
    ),
    (
        target('[[lun 0]]\ntype = ram\nsize = 8M\nunit-state = /srv/state\n'),
        6,
        ['type ram', 'remove unit-state'],
    ),
    (
        target('[[lun 0]]\nbacking-store = /a\nfence = reservation\n'),
        5,
        ['fence', 'did you mean reservations?'],
    ),
    (
        target('[[lun 0]]\nbacking-store = /a\nfence = reservations\n'),
        5,
        ['without unit-state', 'write unit-state'],
    ),
    (
        target(
            '[[lun 0]]\nbacking-store = /a\nunit-state = /s\nreadonly = yes\nfence = reservations\n'
        ),
        7,
        ['readonly', 'fence = reservations'],
    ),
    (
        target('[[lun 0]]\nbacking-store = rbd:a/b\nunit-state = rados:a\nfence = reservations\n'),
        6,
        ['not a disk of this host', 'write fence = auto'],
    ),
    # settings
    ('[server]\nmax-session = 3\n', 2, ['max-session ', 'did you mean max-sessions?']),
    ('[server]\nportal = 0.0.0.0\n', 2, ['write it in [portal-group TAG]']),
    (
        '[server]\nMaxBurstLenght = 512\n',
        2,
        ['did you mean MaxBurstLength? write it in [target NAME]'],
    ),
    ('[server]\nqqqqqqq = 1\n', 2, ['targetd.conf(5)']),
    (target('driver = iscsi'), 3, ['iSCSI only']),
    (target('controller_tid = 3'), 3, ['remove it']),
    (target('scsi-sn = 1\nbacking-store = /a'), 3, ['write it in [[lun N]]']),
    ('[server]\nmax-sessions =\n', 2, ['max-sessions has no value']),
    ('[server]\nmax-sessions = # 3\n', 2, ['max-sessions has no value']),
    ('[server]\nmax-sessions = 70000\n', 2, ['max-sessions: 70000', 'from 1 to 10000']),
    ('[server]\nmax-sessions = 3\nmax_sessions = 4\n', 3, ['set twice', 'main.conf:2']),
    ('[server]\nmax-sessions = 3\n[server]\nmax_sessions = 4\n', 4, ['set twice', 'main.conf:2']),
    (target('portal-group = 2'), 3, ['no portal group 2', '[portal-group 2]', '1']),
    (target('FirstBurstLength = 128K\nMaxBurstLength = 64K'), 3, ['131072', '65536']),
    (target('HeaderDigest = CRC'), 3, ['CRC32C']),
    # accounts
    (target('incominguser = hidden'), 3, ['only one word']),
    (
        target('incominguser = a hidden\nincominguser = a hidden2\n'),
        4,
        ["'a' has two secrets", 'main.conf:3'],
    ),
    (target('outgoinguser = b hidden\n'), 3, ['without incominguser']),
    (target(CHAP + 'outgoinguser = b same-secret-12\n'), 4, ['same secret', 'different secrets']),
    (target(CHAP + 'outgoinguser = b x\noutgoinguser = c y\n'), 5, ['set twice']),
    ('[server]\noutgoingdiscoveryuser = b hidden\n', 2, ['without incomingdiscoveryuser']),
    (
        '[server]\nincomingdiscoveryuser = a hidden\noutgoingdiscoveryuser = b hidden\n',
        3,
        ['same secret'],
    ),
    (target('incominguser-file = nothing'), 3, ['nothing cannot be read']),
    # luns
    (target('[[lun 0]]\n'), 3, ['has no backing-store']),
    (target('[[lun 0]]\nbacking-store = /a\ndirect-store = /b\n'), 5, ['write one']),
    (target('backing-store = /a\ndirect-store = /b\n'), 4, ['section [[lun N]] for each']),
    (target('[[lun 0]]\ntype = ram\n'), 4, ['needs a size']),
    (
        target('[[lun 0]]\ntype = null\nsize = 1M\nbacking-store = /a\n'),
        6,
        ['null has no backing-store'],
    ),
    (
        target('[[lun 0]]\ntype = block\nbacking-store = /dev/x\nsize = 1G\n'),
        6,
        ['size of its disk'],
    ),
    (
        target('backing-store = /a\nsize = 1049088\nblock-size = 4096'),
        4,
        ['not a multiple of the block size 4096'],
    ),
    (
        target('backing-store = /a\nblock-size = 4096\nphysical-block-size = 512'),
        5,
        ['less than block-size'],
    ),
    (target('backing-store = /a\nlowest-aligned-block = 8'), 4, ['from 0 to 7']),
    (target('backing-store = /a\nrotation-rate = 500'), 4, ['1025']),
    (
        target('backing-store = /a\nblock-size = 4096\noptimal-transfer-length = 6K'),
        5,
        ['multiple of the block size'],
    ),
    (
        target('backing-store = /a, /x/../a'),
        3,
        ['which lun 0 of %s serves already' % NAME, 'main.conf:3'],
    ),
]


@pytest.mark.parametrize('text, line, words', COMPLAINTS)
def test_a_complaint_names_line_error_and_remedy(complaints, text, line, words):
    found = complaints(text)
    assert len(found) == 1, found
    assert found[0][0] == line
    for word in words:
        assert word in found[0][1]
    assert 'main.conf:%d: ' % line in found[0][1] and 'hidden' not in found[0][1]


def test_all_complaints_come_at_once_in_file_order(complaints):
    text = 'include = a.conf, none.conf\nx = 1\n[server]\nlog-level = loud\nuser "x\n' + target(
        'thin = perhaps\n[[lun x]]\n'
    )
    found = complaints(text, a_conf='[target y]\n')
    assert [(line, 'a.conf' in text) for line, text in found] == [
        (1, False),
        (2, False),
        (4, False),
        (5, False),
        (8, False),
        (9, False),
        (1, True),
    ]


def test_an_unusable_value_is_not_reported_as_missing_too(complaints):
    for text in (
        '[portal-group 1]\nportal = host\n',
        target('incominguser = x\noutgoinguser = a b'),
        target('[[lun 0]]\nbacking-store = serail:1\n'),
        target('[[lun 0]]\ntype = ram\nsize = big\n'),
    ):
        assert len(complaints(text)) == 1


def test_a_complaint_about_a_file_of_accounts_names_its_line(complaints):
    found = complaints(target('incominguser-file = s'), s='a hidden\nb\n')
    assert found[0][0] == 2 and '/s:2: ' in found[0][1] and 'hidden' not in found[0][1]


def test_two_readonly_luns_may_share_a_store(load):
    assert len(load(target('backing-store = /a, /a\nreadonly = yes')).targets[NAME].luns) == 2


def test_what_a_tape_is(load, complaints):
    text = '[target iqn.2026-11.com.example:t]\ninitiator-address = ALL\n[[lun 0]]\n'
    text += 'type = tape\nbacking-store = /t\n'
    lun = (
        load(text + 'early-warning = 5M\nsize = 1G\n').targets['iqn.2026-11.com.example:t'].luns[0]
    )
    assert lun.removable and not lun.third_party_copy and lun.early_warning == 5 << 20
    for line, said in (
        ('thin = yes', 'cannot have thin'),
        ('direct-io = yes', 'cannot have direct-io'),
        ('block-size = 512', 'cannot have block-size'),
        ('guard = first-write-snapshot', 'cannot have guard'),
        ('size = 4M\nearly-warning = 4M', 'not less than the size'),
    ):
        assert any(said in told for _, told in complaints(text + line + '\n')), line
