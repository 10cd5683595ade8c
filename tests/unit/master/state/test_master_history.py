"""The history of configurations: numbered, bounded, unreadable for others, and without secrets in what is
shown."""

import os
import stat

import pytest

from targetd.errors import TargetdError
from targetd.master.state import history

TEXT = '[target iqn.2026-11.test:a]\nincominguser = anna %s\n'


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / 'history')


def test_an_entry_says_when_who_what_and_the_changes_without_secrets(folder):
    history.add_entry(folder, TEXT % 'secret-number-1', 5, 'root', 'start')
    history.add_entry(folder, TEXT % 'secret-number-2', 6, 'anna', 'account rotate')
    newest, oldest = history.rows(folder)
    assert (newest['number'], newest['who'], newest['when']) == (2, 'anna', 6)
    assert newest['steps'] == ['change target iqn.2026-11.test:a: incominguser (secrets)']
    assert oldest['steps'] == []
    assert history.difference_rows(folder, 1, None) == [{'step': newest['steps'][0]}]
    assert [each.kind for each in history.sections_of(folder, 1)] == ['target']


def test_the_same_configuration_is_kept_once(folder):
    for _ in range(3):
        history.add_entry(folder, TEXT % 'x', 5, 'root', 'reload')
    assert history.numbers(folder) == [1]


def test_other_users_cannot_read_the_files(folder):
    history.add_entry(folder, TEXT % 'x', 5, 'root', 'start')
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(history.path_of(folder, 1)).st_mode) == 0o600


def test_the_number_and_the_size_of_entries_are_bounded(folder, monkeypatch):
    monkeypatch.setattr(history, 'ENTRIES', 3)
    for number in range(5):
        history.add_entry(folder, '# %d\n' % number, 5, 'root', 'reload')
    assert history.numbers(folder) == [3, 4, 5]
    monkeypatch.setattr(history, 'BYTES', 100)
    history.add_entry(folder, '# ' + 'x' * 200, 5, 'root', 'reload')
    assert history.numbers(folder) == [6]


def test_an_entry_that_does_not_exist_or_is_damaged_is_named(folder):
    with pytest.raises(TargetdError, match='no entry 7'):
        history.read_entry(folder, 7)
    history.add_entry(folder, '# 1\n', 5, 'root', 'start')
    with open(history.path_of(folder, 1), 'w') as f:
        f.write('nonsense')
    with pytest.raises(TargetdError, match='entry 1 of the history cannot be read'):
        history.read_entry(folder, 1)
    assert 'cannot be read' in history.rows(folder)[0]['what']
    assert history.add_entry(folder, '# 2\n', 5, 'root', 'start') == {'number': 2}


# -- notes -----------------------------------------------------------------------------------------


def test_notes_are_between_the_configurations_and_displace_none(folder, monkeypatch):
    monkeypatch.setattr(history, 'NOTES', 2)
    history.add_entry(folder, '# 1\n', 5, 'root', 'start')
    for when in (6, 7, 8):
        assert (
            history.add_note(folder, when, 'anna', 'snapshot t/0 %d' % when, ['it is a copy']) == {}
        )
    history.add_entry(folder, '# 2\n', 7, 'root', 'reload')
    assert [(row['number'], row['when'], row['what']) for row in history.rows(folder)] == [
        (None, 8, 'snapshot t/0 8'), (2, 7, 'reload'), (None, 7, 'snapshot t/0 7'), (1, 5, 'start'),
    ]  # fmt: skip
    assert history.numbers(folder) == [1, 2]
    assert history.rows(folder)[0]['steps'] == ['it is a copy']
    assert stat.S_IMODE(os.stat(os.path.join(folder, '000003.note')).st_mode) == 0o600


def test_few_notes_are_all_kept(folder, monkeypatch):
    monkeypatch.setattr(history, 'NOTES', 4)
    for when in range(3):
        history.add_note(folder, when, 'anna', 'restore', [])
    assert len(history.numbers(folder, history.NOTE)) == 3


def test_a_note_that_is_damaged_is_named(folder):
    history.add_entry(folder, '# 1\n', 5, 'root', 'start')
    for text in ('nonsense', '[]', '{"version": 99}'):
        history.add_note(folder, 6, 'anna', 'restore', [])
        with open(os.path.join(folder, '000001.note'), 'w') as f:
            f.write(text)
        assert 'note 1 of the history cannot be read' in history.rows(folder)[-1]['what']
