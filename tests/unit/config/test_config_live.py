"""targetdctl.d: changes are written as differences to the files written by hand, merged again, and a clash
with a later change by hand is named."""

import os
import re

import pytest

from targetd.config import edits, live_files, loader, sections, settings
from targetd.errors import ConfigError, TargetdError

T = 'iqn.2026-11.test:a'
HAND = (
    '''
[server]
log-level = info
[portal-group 1]
portal = 127.0.0.1:3260
[target %s]
thin = yes
initiator-name = iqn.one, iqn.two
incominguser = anna secret-of-anna-1
  [[lun 0]]
  backing-store = %%(dir)s/zero.img
  size = 1G
  [[lun 1]]
  backing-store = one.img
[target iqn.2026-11.test:short]
backing-store = s0.img, s1.img
'''
    % T
)
WHO = '2026-11-28 23:10:02 root: a test'


class Files(object):
    """A main file, and its live changes."""

    def __init__(self, directory):
        self.path = os.path.join(str(directory), 'targetd.conf')
        self.live = live_files.live_file_of(self.path)
        self.write(HAND)

    def write(self, text):
        with open(self.path, 'w') as f:
            f.write(text % {'dir': os.path.dirname(self.path)})

    def edit(self, function, *arguments, **more):
        """Make a change as targetdctl does; returns the Configuration."""
        comment = more.pop('comment', WHO)
        loaded = loader.load_all(self.path, lambda s: function(s, *arguments, **more), comment)
        live_files.put_in_place(self.path, loaded.live.encode('utf-8'))
        again = loader.load(self.path)
        assert _plain(again) == _plain(loaded.configuration)
        return again

    def live_text(self):
        with open(self.live) as f:
            return f.read()

    def complaint(self):
        with pytest.raises(ConfigError) as caught:
            loader.load(self.path)
        return str(caught.value)


def _plain(configuration):
    return configuration._replace(places=None, files=None)


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def test_the_directory_has_the_name_of_the_main_file():
    assert live_files.live_file_of('/etc/targetd.conf') == '/etc/targetdctl.d/live.conf'
    assert live_files.live_file_of('/etc/other') == '/etc/otherctl.d/live.conf'


def test_a_change_of_a_lun_overrides_the_file_written_by_hand(files):
    configuration = files.edit(edits.set_lun, T, 0, 'size', '2G')
    assert configuration.targets[T].luns[0].size == 2 << 30
    text = files.live_text()
    for line in ('# ' + WHO, 'live-change = change', '  size = 2G', '  was-size = 1G'):
        assert line in text.split('\n') or '  ' + line in text.split('\n'), text
    assert os.stat(files.live).st_mode & 0o777 == 0o600
    assert os.stat(os.path.dirname(files.live)).st_mode & 0o777 == 0o700
    with open(files.path) as f:
        assert 'size = 1G' in f.read()


def test_a_change_back_leaves_nothing(files):
    files.edit(edits.set_lun, T, 0, 'size', '2G')
    files.edit(edits.set_lun, T, 0, 'size', '1G')
    assert is_empty(files)


def is_empty(files):
    """True if live.conf has only comments."""
    return not re.search('^[^#]', files.live_text(), re.MULTILINE)


@pytest.mark.parametrize(
    'change, back',
    [
        ((edits.set_lun, T, 0, 'state', 'offline'), (edits.set_lun, T, 0, 'state', 'ready')),
        ((edits.set_lun, T, 0, 'thin', 'no'), (edits.set_lun, T, 0, 'thin', 'yes')),
        ((edits.set_target, T, 'state', 'offline'), (edits.set_target, T, 'state', 'ready')),
        ((edits.set_server, 'log-level', 'debug'), (edits.set_server, 'log-level', 'info')),
        ((edits.set_server, 'nop-count', '7'), (edits.set_server, 'nop-count', '3')),
        ((edits.add_portal, 1, '[::1]:3261'), (edits.remove_portal, 1, '[::1]:3261')),
        ((edits.add_lun, T, 9, '/srv/x.img', '1G'), (edits.remove_lun, T, 9)),
    ],
    ids=lambda each: '-'.join(map(str, each[1:])) if isinstance(each, tuple) else None,
)
@pytest.mark.parametrize('is_written', (True, False))
def test_a_change_back_to_what_is_written_or_to_the_default_leaves_nothing(
    files, change, back, is_written
):
    if not is_written:  # only the target and its LUNs
        files.write(HAND[HAND.index('[target') :])
    before = loader.load(files.path)
    assert _plain(files.edit(*change)) != _plain(before) and not is_empty(files)
    assert _plain(files.edit(*back)) == _plain(before)
    assert is_empty(files), files.live_text()


def test_after_a_change_back_the_lun_may_be_removed_by_hand(files):
    files.edit(edits.set_lun, T, 1, 'state', 'offline')
    files.edit(edits.set_lun, T, 1, 'state', 'ready')
    files.write(HAND.replace('  [[lun 1]]\n  backing-store = one.img\n', ''))
    assert sorted(loader.load(files.path).targets[T].luns) == [0]


def test_a_default_is_written_where_it_differs_from_nothing_written(files):
    # the target or an identity has another value for its LUNs
    files.write(HAND.replace('size = 1G', 'size = 1G\n  identity = tgt tid=1 lun=1'))
    assert files.edit(edits.set_lun, T, 0, 'thin', 'no').targets[T].luns[0].thin is False
    assert loader.load(files.path).targets[T].luns[0].vendor_id
    lun = files.edit(edits.set_lun, T, 0, 'vendor-id', '""').targets[T].luns[0]
    assert lun.vendor_id == ''
    # a second portal group: the first one does not exist any more unless it is written
    files.write(HAND[HAND.index('[target') :])
    files.edit(edits.add_portal, 1, '[::1]:3262')
    files.edit(edits.add_portal, 2, '127.0.0.1:3261')
    groups = files.edit(edits.remove_portal, 1, '[::1]:3262').portal_groups
    assert groups[1].portals == (('0.0.0.0', 3260), ('::', 3260)) and 2 in groups


def test_a_server_section_may_be_written_by_hand_later(files):
    files.write(HAND[HAND.index('[target') :])
    files.edit(edits.set_server, 'log-level', 'debug')
    files.write('[server]\nnop-count = 7\n' + HAND[HAND.index('[target') :])
    server = loader.load(files.path).server
    assert (server.log_level, server.nop_count) == ('debug', 7)


def all_defaults():
    """[(kind, row)] of the settings whose default a change back leaves out."""
    rows = [('server', row) for row in settings.SERVER] + [
        ('target', row) for row in settings.of('target')
    ]
    rows += [('lun', row) for row in settings.of('lun')]
    return [
        pytest.param(kind, row, id='%s-%s' % (kind, row.name))
        for kind, row in rows
        if row.default not in (None, '', ()) and row not in settings.TEXT_KEYS
        if not row.kind.repeatable
    ]


@pytest.mark.parametrize('kind, row', all_defaults())
def test_every_default_has_the_same_meaning_when_it_is_written(files, kind, row):
    files.write(HAND[HAND.index('[target') :].replace('thin = yes', ''))
    before = loader.load(files.path)
    place = {'server': (), 'target': (T,), 'lun': (T, 1)}[kind]
    section = dict(server=edits.set_server, target=edits.set_target, lun=edits.set_lun)[kind]
    text = row.kind.show(row.default)
    files.write(_with(files, section(_sections(files), *place + (row.name, text))))
    assert _plain(loader.load(files.path)) == _plain(before)


def _sections(files):
    return loader.load_all(files.path).sections


def _with(files, changed):
    return sections.text_of(changed).replace('%', '%%')


def test_luns_are_added_removed_and_moved(files):
    configuration = files.edit(edits.add_lun, T, None, '/srv/x.img', '10G', ['thin=no'])
    assert configuration.targets[T].luns[2].backing_store == '/srv/x.img'
    assert not configuration.targets[T].luns[2].thin
    configuration = files.edit(edits.remove_lun, T, 1)
    assert sorted(configuration.targets[T].luns) == [0, 2]
    configuration = files.edit(edits.move_lun, T, 2, 'iqn.2026-11.test:short', 7)
    short = configuration.targets['iqn.2026-11.test:short']
    assert sorted(short.luns) == [0, 1, 7] and short.luns[7].size == 10 << 30
    configuration = files.edit(edits.move_lun, T, 0, 'iqn.2026-11.test:short', 3)
    assert configuration.targets['iqn.2026-11.test:short'].luns[3].thin  # as in its old target
    with pytest.raises(TargetdError, match='has no lun 1'):
        files.edit(edits.remove_lun, T, 1)
    with pytest.raises(TargetdError, match='has a lun 0 already'):
        files.edit(edits.add_lun, 'iqn.2026-11.test:short', 0, '/srv/y.img')


def test_targets_are_added_removed_and_renamed(files):
    configuration = files.edit(edits.add_target, 'iqn.2026-11.test:new', ['alias=New disk'])
    assert configuration.targets['iqn.2026-11.test:new'].alias == 'New disk'
    new = 'iqn.2026-11.test:b'
    configuration = files.edit(edits.rename_target, T, new, {0: {'scsi-sn': 'abc'}})
    assert T not in configuration.targets
    renamed = configuration.targets[new]
    assert renamed.luns[0].scsi_sn == 'abc' and renamed.luns[1].backing_store.endswith('/one.img')
    assert renamed.accounts == (('anna', 'secret-of-anna-1'),)
    configuration = files.edit(edits.remove_target, new)
    assert new not in configuration.targets
    with pytest.raises(TargetdError, match='did you mean iqn.2026-11.test:short'):
        files.edit(edits.remove_target, 'short')


def test_lists_change_item_by_item_so_that_the_file_written_by_hand_counts_too(files):
    files.edit(edits.add_rule, T, 'iqn.three')
    configuration = files.edit(edits.remove_rule, T, 'iqn.one')
    assert configuration.targets[T].initiator_names == ('iqn.two', 'iqn.three')
    files.write(HAND.replace('iqn.one, iqn.two', 'iqn.one, iqn.two, iqn.four'))
    names = loader.load(files.path).targets[T].initiator_names
    assert set(names) == {'iqn.two', 'iqn.three', 'iqn.four'}


def test_a_removed_rule_or_account_never_admits_more(files):
    with pytest.raises(TargetdError, match='both must match'):
        files.edit(edits.add_rule, T, '10.0.0.0/8')
    files.edit(edits.remove_rule, T, 'iqn.one')
    files.write(
        HAND.replace('iqn.one, iqn.two', 'iqn.one').replace(
            'thin = yes', 'thin = yes\ninitiator-address = 10.0.0.0/8'
        )
    )
    assert 'which would admit more initiators' in files.complaint()
    files.write(HAND)
    with pytest.raises(TargetdError, match='without CHAP'):
        files.edit(edits.remove_account, T, 'anna')
    assert not files.edit(edits.remove_account, T, 'anna', True).targets[T].accounts


def test_maps_of_luns_are_set_and_removed(files):
    with pytest.raises(TargetdError, match='first write "targetdctl map set'):
        files.edit(edits.set_map, T, 'iqn.one', '0')
    files.edit(edits.set_map, T, 'ALL', 'none')
    configuration = files.edit(edits.set_map, T, 'iqn.One', '0,3=1:read-only')
    assert [each.who for each in configuration.targets[T].lun_map] == ['ALL', 'iqn.one']
    configuration = files.edit(edits.set_map, T, 'iqn.one', '4=1')
    assert configuration.targets[T].lun_map[1].entries == ((4, 1, False),)
    with pytest.raises(TargetdError, match='has lun 1, which the target does not have'):
        files.edit(edits.remove_lun, T, 1)
    configuration = files.edit(edits.move_lun, T, 1, T, 7)
    assert configuration.targets[T].lun_map[1].entries == ((4, 7, False),)
    with pytest.raises(TargetdError, match='no lun-map for iqn.two'):
        files.edit(edits.remove_map, T, 'iqn.two')
    with pytest.raises(TargetdError, match='is not an iSCSI name'):
        files.edit(edits.set_map, T, 'two', '0')
    files.edit(edits.remove_map, T, 'iqn.ONE')
    with pytest.raises(TargetdError, match='the last lun-map'):
        files.edit(edits.remove_map, T, 'all')
    assert files.edit(edits.remove_map, T, 'all', True).targets[T].lun_map == ()


@pytest.mark.parametrize(
    'written', ['lun-map = iqn.one 0\nlun-map = iqn.two 1\n', 'lun-map = iqn.one 0, iqn.two 1\n']
)
def test_one_of_several_maps_written_by_hand_is_changed(files, written):
    files.write(HAND.replace('thin = yes\n', 'thin = yes\n' + written))
    files.edit(edits.set_map, T, 'iqn.one', 'none')
    configuration = files.edit(edits.set_map, T, 'iqn.two', '0,1')
    shown = {
        each.who: [entry[0] for entry in each.entries] for each in configuration.targets[T].lun_map
    }
    assert shown == {'iqn.one': [], 'iqn.two': [0, 1]}
    files.write(HAND.replace('thin = yes\n', 'thin = yes\nlun-map = iqn.one 1\n'))
    assert 'lun-map of target' in files.complaint()
    files.write(HAND.replace('thin = yes\n', 'thin = yes\n' + written))
    files.edit(edits.set_map, T, 'iqn.one', '0')
    files.edit(edits.set_map, T, 'iqn.two', '1')
    assert {each.who for each in loader.load(files.path).targets[T].lun_map} == {
        'iqn.one',
        'iqn.two',
    }


def test_a_renamed_target_keeps_its_maps(files):
    files.edit(edits.set_map, T, 'ALL', '0 5=1')
    configuration = files.edit(edits.rename_target, T, 'iqn.2026-11.test:b')
    assert configuration.targets['iqn.2026-11.test:b'].lun_map[0].entries[1][:2] == (5, 1)


def test_accounts_of_a_file_are_removed_and_rotated(files, tmp_path):
    (tmp_path / 'users').write_text('bob secret-of-bob-12\ncarl secret-of-carl-1\n')
    files.write(HAND.replace('thin = yes', 'thin = yes\nincominguser-file = users'))
    configuration = files.edit(edits.remove_account, T, 'bob')
    assert [user for user, _ in configuration.targets[T].accounts] == ['anna', 'carl']
    configuration = files.edit(
        edits.rotate_account, T, 'carl', 'new-secret-of-carl', '2027-01-01T00:00'
    )
    target = configuration.targets[T]
    assert ('carl', 'new-secret-of-carl') in target.accounts
    assert target.former_incominguser == (('carl', 'secret-of-carl-1', '2027-01-01T00:00'),)
    configuration = files.edit(edits.add_account, T, 'dora', 'secret, with comma')
    assert ('dora', 'secret, with comma') in configuration.targets[T].accounts


def test_every_line_keeps_the_comment_of_its_change(files):
    files.edit(edits.set_lun, T, 0, 'size', '2G', comment='2026-11-28 10:00:00 anna: first')
    files.edit(edits.set_lun, T, 0, 'thin', 'no', comment='2026-11-28 11:00:00 bob: second')
    files.edit(edits.set_server, 'log-level', 'debug', comment='2026-11-28 12:00:00 c: third')
    text = files.live_text()
    said = {}
    comment = None
    for line in text.split('\n'):
        comment = line.strip()[2:] if line.strip().startswith('# 20') else comment
        said[line.strip()] = comment
    assert said['size = 2G'].endswith('first') and said['was-size = 1G'].endswith('first')
    assert said['thin = no'].endswith('second') and said['log-level = debug'].endswith('third')


def test_a_later_change_by_hand_of_the_same_setting_is_named_with_both_places(files):
    files.edit(edits.set_lun, T, 0, 'size', '2G')
    files.write(HAND.replace('size = 1G', 'size = 3G'))
    text = files.complaint()
    assert 'live.conf:' in text and 'targetd.conf:' in text and WHO in text
    assert 'size of lun 0' in text
    files.write(HAND.replace('size = 1G', 'size = 2G'))  # it was adopted: no clash
    assert loader.load(files.path).targets[T].luns[0].size == 2 << 30


def test_clashes_of_sections_are_named(files):
    files.edit(edits.add_lun, T, 5, '/srv/x.img', '10G')
    more = '  [[lun 5]]\n  backing-store = %s\n[target iqn.2026-11.test:short]'
    files.write(HAND.replace('[target iqn.2026-11.test:short]', more % '/srv/other.img'))
    assert 'lun 5 was added here' in files.complaint() and 'targetd.conf:' in files.complaint()
    files.write(
        HAND.replace('[target iqn.2026-11.test:short]', more % '/srv/x.img\n  size = 10240M')
    )
    loader.load(files.path)
    files.write(HAND[: HAND.index('[target')])
    assert 'no longer written in another file' in files.complaint()


def test_a_removed_lun_does_not_hide_another_one_of_its_number(files):
    files.edit(edits.remove_lun, T, 1)
    files.write(HAND.replace('  [[lun 1]]\n  backing-store = one.img\n', ''))
    assert sorted(loader.load(files.path).targets[T].luns) == [0]
    files.write(HAND.replace('one.img', 'another.img'))
    assert 'backing-store of lun 1 was changed here' in files.complaint()


TRANSIENT = (
    """
[target %s]
transient = yes
initiator-address = ALL
"""
    % T
)
TRANSIENT_LUN = """
  [[lun 0]]
  transient = yes
  backing-store = %(dir)s/zero.img
"""


@pytest.mark.parametrize(
    'left', [TRANSIENT, ''], ids=['the LUN goes', 'the target goes with its LUN']
)
@pytest.mark.parametrize(
    'change',
    [(edits.set_lun, T, 0, 'state', 'offline'), (edits.remove_lun, T, 0)],
    ids=['offline', 'removed'],
)
def test_the_change_of_a_transient_section_ends_with_it(files, left, change):
    files.write(TRANSIENT + TRANSIENT_LUN)
    files.edit(*change)
    files.write(left)
    assert loader.load(files.path).targets.keys() == ({T} if left else set())  # a start
    # a reload takes it out of the file, so that the section may come again as it is written
    loaded = loader.load_all(files.path, None, WHO)
    assert loaded.is_edited
    live_files.put_in_place(files.path, loaded.live.encode('utf-8'))
    assert T not in files.live_text()
    files.write(TRANSIENT + TRANSIENT_LUN)
    assert loader.load(files.path).targets[T].luns[0].state == 'ready'
    assert not loader.load_all(files.path, None, WHO).is_edited


def test_a_change_of_a_transient_section_counts_while_it_is_written(files):
    files.write(TRANSIENT + TRANSIENT_LUN)
    assert files.edit(edits.set_lun, T, 0, 'state', 'offline').targets[T].luns[0].state == 'offline'
    assert not loader.load_all(files.path, None, WHO).is_edited
    # a change of the target is a mark of the target only
    files.edit(edits.set_target, T, 'alias', 'x')
    files.write('')
    assert not loader.load(files.path).targets


def test_the_short_form_of_stores_can_be_changed(files):
    configuration = files.edit(edits.set_lun, 'iqn.2026-11.test:short', 1, 'readonly', 'yes')
    assert configuration.targets['iqn.2026-11.test:short'].luns[1].readonly
    assert not configuration.targets['iqn.2026-11.test:short'].luns[0].readonly


def test_settings_of_the_server_and_portals(files):
    assert files.edit(edits.set_server, 'log-level', 'debug').server.log_level == 'debug'
    configuration = files.edit(edits.add_portal, 1, '[::1]:3260')
    assert configuration.portal_groups[1].portals == (('127.0.0.1', 3260), ('::1', 3260))
    configuration = files.edit(edits.remove_portal, 1, '127.0.0.1')
    assert configuration.portal_groups[1].portals == (('::1', 3260),)
    with pytest.raises(TargetdError, match='last portal'):
        files.edit(edits.remove_portal, 1, '[::1]')
    assert files.edit(edits.add_portal, 2, '127.0.0.1:3261').portal_groups[2]


def test_a_wrong_value_is_refused_and_secrets_are_not_shown(files):
    with pytest.raises(ConfigError, match='is not a valid size'):
        files.edit(edits.set_lun, T, 0, 'size', 'much')
    with pytest.raises(TargetdError, match='targetdctl account add') as caught:
        files.edit(edits.add_target, 'iqn.2026-11.test:x', ['incominguser=a hidden-words'])
    assert 'hidden' not in str(caught.value)
    assert not os.path.exists(files.live)


def test_a_directory_or_file_that_others_can_write_is_refused(files):
    files.edit(edits.set_server, 'log-level', 'debug')
    os.chmod(files.live, 0o666)
    assert 'other users can write it' in files.complaint()
    os.chmod(files.live, 0o600)
    os.chmod(os.path.dirname(files.live), 0o777)
    assert 'chmod go-w' in files.complaint()
    with pytest.raises(TargetdError, match='other users can write'):
        live_files.put_in_place(files.path, b'')


def test_a_change_is_taken_back(files):
    files.edit(edits.set_server, 'log-level', 'debug')
    before = files.live_text()
    live_files.forget_former(files.path)
    live_files.put_in_place(files.path, b'# other\n')
    live_files.take_back(files.path)
    assert files.live_text() == before
    assert os.listdir(os.path.dirname(files.live)) == ['live.conf']


def test_a_file_of_the_administrator_in_the_directory_counts_too(files):
    files.edit(edits.set_lun, T, 0, 'size', '2G')
    other = os.path.join(os.path.dirname(files.live), 'more.conf')
    with open(other, 'w') as f:
        f.write('[target iqn.2026-11.test:more]\nbacking-store = m.img\n')
    assert 'iqn.2026-11.test:more' in loader.load(files.path).targets
    files.edit(edits.set_lun, 'iqn.2026-11.test:more', 0, 'readonly', 'yes')


def test_what_is_no_live_change_is_a_complaint(files):
    os.mkdir(os.path.dirname(files.live), 0o700)
    for text, words in (
        ('[server]\nlive-change = maybe\n', 'live-change is not add'),
        ('[server]\nadd-log-level = x\n', 'is not a setting'),
        ('[server]\nwas-nonsense = x\n', 'is not a setting'),
        ('[nonsense]\n', 'no kind of section'),
        ('[server]\nlog-level\n', 'without an equals sign'),
    ):
        with open(files.live, 'w') as f:
            f.write(text)
        os.chmod(files.live, 0o600)
        assert words in files.complaint(), text
