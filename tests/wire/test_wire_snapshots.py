"""targetdctl snapshot and restore: what the history has of them, and what the undo journal can put back
afterwards."""

import json
import os
import re

import pytest
from daemon import TARGET
from initiator import pattern
from test_wire_guards import content, kept, log_out
from test_wire_undo_journal import next_second, refused, restore, serve

from targetd.admin.protocol import Refused, send_request

pytestmark = pytest.mark.wire

UNIT = TARGET + '/0'
ANEW = 'its undo journal begins at .*: the snapshot monday was restored at .* by '


def history(daemon):
    return json.loads(daemon.control('--json', 'history'))


def notes(daemon):
    return [row for row in history(daemon) if row['number'] is None]


def request(daemon, command, **words):
    socket = os.path.join(daemon.directory, 'targetd.sock')
    return send_request(socket, dict(words, command=command), 30)


def test_the_history_has_what_was_done_to_the_contents_of_luns(daemon, ready):
    path = serve(daemon)
    session = ready(daemon)
    log_out(daemon, session)
    numbers = [row['number'] for row in history(daemon)]
    daemon.control('snapshot', UNIT, 'monday', '--dry-run')
    assert notes(daemon) == []
    daemon.control('snapshot', UNIT, 'monday')
    with open(path, 'r+b') as image:
        image.write(b'new')
    daemon.control('restore', UNIT, 'monday')
    restored, taken = notes(daemon)
    assert (taken['what'], restored['what']) == (
        'snapshot %s monday' % UNIT,
        'restore %s monday' % UNIT,
    )
    assert taken['who'] == restored['who'] == history(daemon)[-1]['who'] and restored['time']
    assert '%s.snapshot-monday' % path in taken['steps'][0]
    assert restored['steps'] == ['%s has the content of %s.snapshot-monday' % (path, path)]
    assert [row['number'] for row in history(daemon) if row['number'] is not None] == numbers
    shown = daemon.control('history')
    assert 'command: restore %s monday' % UNIT in shown and 'None' not in shown
    # it is there after a restart, and so is the way back to an earlier configuration
    assert daemon.stop() == 0
    daemon.start()
    assert len(notes(daemon)) == 2
    daemon.control('rollback', str(numbers[-1]), '--dry-run')


def test_a_failure_is_in_the_history_if_the_file_was_changed(daemon):
    path = serve(daemon)
    daemon.control('snapshot', UNIT, 'monday')
    os.truncate(path, os.path.getsize(path) // 2)
    code, text = daemon.targetdctl('restore', UNIT, 'monday')
    assert code and 'lun resize' in text
    code, text = daemon.targetdctl('restore', UNIT, 'tuesday')
    assert code and 'there is no snapshot tuesday' in text
    assert [row['what'] for row in notes(daemon)] == ['snapshot %s monday' % UNIT]


def test_the_journal_leads_to_no_time_before_the_snapshot_was_restored(daemon, ready):
    path = serve(daemon)
    session = ready(daemon)
    daemon.control('lun', 'readonly', UNIT)
    daemon.control('snapshot', UNIT, 'monday')
    daemon.control('lun', 'online', UNIT)
    session.clear_attentions()
    before = next_second()
    session.write(0, pattern(1, 4096))
    assert kept(daemon)[0]['state'] == 'complete'
    daemon.control('lun', 'offline', UNIT)
    daemon.control('restore', UNIT, 'monday')
    daemon.control('lun', 'online', UNIT)
    snapshot = content(path)
    assert snapshot == content(path + '.snapshot-monday')
    # the session goes on, and records in a new segment
    session.clear_attentions()
    between = next_second()
    session.write(8, pattern(2, 4096))
    log_out(daemon, session)
    changed = content(path)
    assert changed != snapshot
    assert re.search(ANEW, refused(daemon, before))
    assert content(path) == changed
    restore(daemon, between)
    assert content(path) == snapshot


def test_a_client_that_dies_leaves_a_journal_that_puts_nothing_back(daemon, ready):
    path = serve(daemon)
    session = ready(daemon)
    before = next_second()
    session.write(0, pattern(1, 4096))
    log_out(daemon, session)
    request(daemon, 'image-begin', unit=UNIT, name='monday')
    with open(path, 'r+b') as image:
        image.write(b'half of the snapshot')
    changed = content(path)
    assert 'the snapshot monday was restored at ' in refused(daemon, before)
    assert kept(daemon)[0]['state'].startswith('interrupted: the snapshot monday')
    assert content(path) == changed
    assert daemon.stop() == 0
    daemon.start()
    assert re.search(ANEW, refused(daemon, before))
    session, after = ready(daemon), next_second()
    session.write(0, pattern(3, 4096))
    log_out(daemon, session)
    restore(daemon, after)
    assert content(path) == changed


def test_a_lun_in_use_is_not_restored_and_its_journal_is_as_before(daemon, ready):
    path = serve(daemon)
    session = ready(daemon)
    before = next_second()
    old = content(path)
    session.write(0, pattern(1, 4096))
    with pytest.raises(Refused, match='it is in use by 1 session'):
        request(daemon, 'image-begin', unit=UNIT, name='monday')
    log_out(daemon, session)
    restore(daemon, before)
    assert content(path) == old
    assert notes(daemon) == []
