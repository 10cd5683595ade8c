"""The form in which a master hands its state over (targetd.master.upgrade.handover)."""

import json
import os

import pytest

from targetd import channel as channels
from targetd.compat import memory_file
from targetd.master.logins.sessions import SessionRecord
from targetd.master.processes.workers import WorkerProcess
from targetd.master.units.unit import StandbyUnit, Unit
from targetd.master.upgrade import handover, handover_units
from targetd.scsi.sam import Nexus

STATE = {'units': [(1, 'a'), {'key': b'\0'}], 'none': None, 'time': 1.5}


@pytest.fixture
def file():
    descriptor = memory_file('test', 0)
    yield descriptor
    os.close(descriptor)


def test_values_come_back_as_they_were(file):
    handover.write(file, STATE)
    head, state = handover.read(file)
    assert state == STATE and isinstance(state['units'][0], tuple)
    assert head['format'] == handover.FORMAT and head['channel'] == channels.PROTOCOL


def test_a_head_without_values_is_for_the_first_trial(file):
    handover.write(file, None)
    assert handover.read(file)[1] is None


@pytest.mark.parametrize('name, words', [('format', 'state'), ('channel', 'worker protocol')])
def test_another_format_is_refused_before_the_values_are_read(file, name, words):
    head = {'format': handover.FORMAT, 'channel': channels.PROTOCOL, 'version': '9.9'}
    head[name] += 1
    os.write(file, json.dumps(head).encode('ascii') + b'\nnot a pickle')
    with pytest.raises(handover.Refused) as refused:
        handover.read(file)
    assert 'the %s of version 9.9 has the format 2' % words in str(refused.value)
    assert 'restart targetd instead' in str(refused.value)


def test_objects_of_a_version_are_refused(file):
    handover.write(file, {'nexus': Nexus('a', 'b', 'c', 1)})
    with pytest.raises(handover.Refused, match='Nexus'):
        handover.read(file)


#: Attributes that are made anew, or that have one value while an upgrade is possible.
ANEW = {
    Unit: {
        *('lun', 'atomic', 'queue', 'is_busy', 'hanging', 'has_flush_timed_out'),
        *('position', 'is_resizing', 'sizes_changed', 'is_restoring', 'leaving'),
        *('position', 'is_resizing', 'sizes_changed', 'is_restoring', 'trim_window'),
    },
    SessionRecord: {'worker'},
    WorkerProcess: {
        *(
            'generation',
            'state',
            'retiring',
            'ending',
            'is_distrusted',
            'session',
            'rules',
            'handed',
        ),
        *('ended_cleanly', 'is_killed', 'is_stuck', 'start_timer', 'is_quiet', 'in_doubt'),
    },
}
HANDED_OVER = {
    Unit: handover_units.PLAIN
    + ('id', 'key', 'target_name', 'facts', 'found', 'shared', 'store', 'workers', 'readers')
    + ('left_out', 'views', 'guests', 'slots'),
    SessionRecord: ('nexus', 'tsih', 'initiator_name', 'initiator_alias', 'account', 'proved')
    + ('keys', 'group', 'since', 'peers', 'address', 'lun_map', 'ended_why', 'logout_by')
    + ('satisfied', 'is_proxied'),
    WorkerProcess: (
        'pid',
        'channel',
        'born',
        'peers',
        'files',
        'has_keys',
        'busy_since',
        'version',
    ),
}


ANEW[StandbyUnit] = ANEW[Unit] | {'target'}
HANDED_OVER[StandbyUnit] = HANDED_OVER[Unit]


class Store(object):
    size = 0


class Target(object):
    name = 'a'


def test_every_attribute_passes_over_or_is_made_anew():
    """A new attribute fails here until somebody has decided what an upgrade does with it."""
    claim = {'session': {'initiator_name': 'a'}}
    made = {
        Unit: Unit('a/0', 'key', 'a', None, Store(), {}, None),
        StandbyUnit: StandbyUnit('a/0', 'key', Target(), None, Store(), {}, None),
        SessionRecord: SessionRecord(None, 1, None, claim, 0.0),
        WorkerProcess: WorkerProcess(1, None, 0.0, 0),
    }
    for kind, each in made.items():
        assert set(vars(each)) == ANEW[kind] | set(HANDED_OVER[kind]), kind
