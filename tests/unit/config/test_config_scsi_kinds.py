"""Kinds of SCSI settings: states of portal groups, mode pages."""

import pytest

from targetd.config import loader
from targetd.config.scsi_kinds import GroupStates, ModePages
from targetd.config.words import Unusable, split
from targetd.errors import ConfigError

DISCONNECT = '2:0:14:0x80:0x80:0:0xa:0:0:0:0:0:0:0:0:0:0'  # as in tgtadm(8)


@pytest.mark.parametrize(
    'kind, text, value',
    [
        (GroupStates(), '1 optimized, 2 Non-Optimized', ((1, 'optimized'), (2, 'nonoptimized'))),
        (ModePages(), DISCONNECT, ('02-00:020e8080000a' + '00' * 10,)),
        (ModePages(), '0x20:0:3:1:2:255, 10:5:1:0xaa', ('20-00:20030102ff', '0a-05:4a050001aa')),
    ],
)
def test_values_survive_being_written_and_read(kind, text, value):
    assert kind.read(split(text)) == value
    assert kind.read(split(kind.show(value))) == value


@pytest.mark.parametrize(
    'kind, text',
    [
        (GroupStates(), '1'),
        (GroupStates(), 'standby'),
        (GroupStates(), '1 asleep'),
        (GroupStates(), '0 standby'),
        (ModePages(), '2:0:14:0x80'),
        (ModePages(), '0:0:1:1'),
        (ModePages(), '63:0:1:1'),
        (ModePages(), '8:255:1:1'),
        (ModePages(), '32:0:1:256'),
        (ModePages(), '32:0:1:x'),
        (ModePages(), '8:0:2:1:2'),
        (ModePages(), '32:0:0'),
    ],
)
def test_invalid_values(kind, text):
    with pytest.raises(Unusable) as caught:
        kind.read(split(text))
    assert caught.value.remedy


def load(tmp_path, *lines):
    path = tmp_path / 'targetd.conf'
    path.write_text(
        '[portal-group 1]\nportal = 127.0.0.1:3260\n[portal-group 2]\nportal = 127.0.0.1:3261\n'
        '[target iqn.2026-11.com.example:x]\ninitiator-address = ALL\n%s\n[[lun 0]]\ntype = ram\nsize = 1M\n'
        % '\n'.join(lines)
    )
    return loader.load(str(path)).targets['iqn.2026-11.com.example:x']


def test_the_model_contains_the_values(tmp_path):
    target = load(
        tmp_path,
        'portal-group = 1, 2',
        'alua = explicit',
        'alua-state = 2 standby',
        'mode-page = ' + DISCONNECT,
        'mode-page = 32:0:1:1',
    )
    assert (target.alua, target.alua_state) == ('explicit', ((2, 'standby'),))
    assert [page[:5] for page in target.luns[0].mode_page] == ['02-00', '20-00']
    assert load(tmp_path).alua == 'auto' and load(tmp_path).luns[0].thin_threshold == 10


@pytest.mark.parametrize(
    'lines',
    [
        ['alua-state = 2 standby'],
        ['portal-group = 1, 2', 'alua-state = 2 standby, 2 offline'],
        ['alua = off', 'alua-state = 1 standby'],
    ],
)
def test_states_that_contradict_the_target(tmp_path, lines):
    with pytest.raises(ConfigError):
        load(tmp_path, *lines)
