"""Forms are made of the rows of the commands, and read back into requests."""

import pytest

from targetd.admin import change_commands, commands
from targetd.errors import TargetdError
from targetd.web import forms, gate


def request(name, is_preview=False, **values):
    values = {key.replace('_', '-'): value for key, value in values.items()}
    return forms.request_of(gate.CHANGES[name], values, is_preview)


def test_every_live_change_has_a_form_and_what_only_shows_has_none():
    live = {
        commands.name_of(row) for row in change_commands.TABLE if not commands.is_read_only(row)
    }
    assert live <= set(gate.CHANGES)
    assert not set(gate.CHANGES) & set(gate.READS)
    assert (
        'stop' not in gate.CHANGES
        and 'create' not in gate.CHANGES
        and 'upgrade' not in gate.CHANGES
    )


@pytest.mark.parametrize('name', sorted(gate.CHANGES))
def test_a_form_has_every_argument(name):
    row = gate.CHANGES[name]
    fields = forms.fields(row, {})
    assert [f.name for f in fields] == [a.name for a in row.arguments if a.name != 'dry-run']
    assert (
        forms.title_of(row)[0].isupper()
        and forms.verb_of(row)
        and forms.back_of(name).startswith('/')
    )


def test_values_become_arguments_of_their_kind():
    arguments, made = request(
        'lun-add', target='iqn.2026-11.test:a', store='/srv/a.img', lun='3', set='thin = yes\n\n'
    )
    assert arguments == {
        'target': 'iqn.2026-11.test:a',
        'store': '/srv/a.img',
        'lun': 3,
        'set': ['thin = yes'],
    }
    assert made is None
    assert request('lun-resize', True, unit='a/0', size='2G')[0] == {
        'unit': 'a/0',
        'size': '2G',
        'dry-run': True,
    }
    assert request('target-remove', target='a', now='yes')[0] == {'target': 'a', 'now': True}


@pytest.mark.parametrize(
    'name, values, words',
    [
        ('lun-resize', {'unit': 'a/0'}, 'size is missing'),
        ('lun-add', {'target': 'a', 'store': 'srv/a.img'}, 'not a whole path'),
        ('lun-add', {'target': 'a', 'store': '/a', 'lun': 'x'}, 'not a number'),
        ('target-add', {'target': 'a' * 5000}, 'longer than'),
    ],
)
def test_wrong_values_are_named(name, values, words):
    with pytest.raises(TargetdError) as e:
        request(name, **values)
    assert words in str(e.value)


def test_a_secret_that_is_left_empty_is_made_and_shown_once():
    arguments, made = request('account-add', target='a', user='u')
    assert len(made) == 16 and arguments['secret'] == made
    row = gate.CHANGES['account-add']
    assert made in forms.outcome(row, {'message': 'account u is added'}, made)
    assert request('account-add', target='a', user='u', secret='12-to-16-chars')[1] is None
    assert [f.value for f in forms.fields(row, {'secret': 'x'}) if f.kind == 'secret'] == ['']


def test_the_outcome_in_a_sentence():
    row = gate.CHANGES['lun-resize']
    reply = {
        'message': 'lun 0 has 2G now',
        'rows': [{'step': 'change lun 0', 'effect': 'immediately'}],
    }
    assert forms.outcome(row, reply, None) == 'lun 0 has 2G now. change lun 0: immediately.'
    assert forms.steps_of(reply) == ['change lun 0 – immediately']


def test_a_path_may_be_a_word_or_a_selector():
    for file in ('none', '/srv/a.iso'):
        assert request('medium', unit='a/0', file=file)[0] == {'unit': 'a/0', 'file': file}
    assert request('lun-add', target='t', store='serial:X1')[0]['store'] == 'serial:X1'
