"""Every command of the table is answered by exactly one method of
ControlAnswers or one local function."""

import inspect

import pytest

from targetd.admin import commands, disk_answers, image_answers, image_commands, local
from targetd.master.control import (
    control_answers,
    control_changes,
    control_guards,
    control_images,
    control_space,
    control_takeovers,
    control_views,
)

REMOTE = [row for row in commands.TABLE if not row.local] + list(image_commands.REQUESTS)
#: Every table of answers, with its class, and the number of arguments that are not in the row.
TABLES = [
    (control_answers.ANSWERS, control_answers.ControlAnswers, 1),
    (control_changes.ANSWERS, control_changes.ChangeAnswers, 2),
    (control_views.ANSWERS, control_views.ViewAnswers, 2),
    (control_guards.ANSWERS, control_guards.GuardAnswers, 2),
    (control_images.ANSWERS, control_images.ImageAnswers, 2),
    (control_space.ANSWERS, control_space.SpaceAnswers, 2),
    (control_takeovers.ANSWERS, control_takeovers.TakeoverAnswers, 2),
]
ALL = dict(pair for table, _, _ in TABLES for pair in table.items())
FIRST = {words: first for table, _, first in TABLES for words in table}


def answer_methods():
    """The methods that are meant to answer a command."""
    return {
        function
        for _, owner, _ in TABLES
        for name, function in vars(owner).items()
        if name.startswith('_answer_')
    }


def answer_functions():
    """The functions of the client that are meant to answer a command."""
    return {
        function
        for module in (local, disk_answers, image_answers)
        for name, function in vars(module).items()
        if name.startswith('answer_')
    }


def test_every_row_has_a_function():
    assert set(ALL) == {row.words for row in REMOTE}
    assert len(ALL) == sum(len(table) for table, _, _ in TABLES)
    assert set(local.ANSWERS) == {row.words for row in commands.TABLE if row.local}


def test_every_function_has_one_row():
    assert len(set(ALL.values())) == len(ALL)
    assert set(ALL.values()) == answer_methods()
    assert len(set(local.ANSWERS.values())) == len(local.ANSWERS)
    assert set(local.ANSWERS.values()) == answer_functions()


@pytest.mark.parametrize('row', REMOTE, ids=lambda row: row.words)
def test_the_function_takes_the_arguments_of_its_row(row):
    parameters = list(inspect.signature(ALL[row.words]).parameters)[FIRST[row.words] :]
    wanted = [a.name.replace('-', '_') for a in row.arguments if a.kind != 'secret']
    assert sorted(set(parameters) - {'client'}) == sorted(wanted)


def test_a_command_is_dispatched_by_the_table():
    class Sessions(object):
        @staticmethod
        def all():
            return []

    parts = dict.fromkeys(inspect.signature(control_answers.ControlAnswers).parameters)
    answers = control_answers.ControlAnswers(**dict(parts, sessions=Sessions()))
    assert answers.answer('show sessions', {}) == commands.reply_rows([])
    with pytest.raises(KeyError):
        answers.answer('format', {})
