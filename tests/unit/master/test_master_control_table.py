"""Every command of the table is answered by exactly one method of
ControlAnswers or one local function."""

import inspect

import pytest

from targetd.admin import commands, local
from targetd.master import control_answers

REMOTE = [row for row in commands.TABLE if not row.local]


def answer_methods():
    """The methods of ControlAnswers that are meant to answer a command."""
    return {
        function
        for name, function in vars(control_answers.ControlAnswers).items()
        if name.startswith('_answer_')
    }


def answer_functions():
    """The functions of admin.local that are meant to answer a command."""
    return {function for name, function in vars(local).items() if name.startswith('answer_')}


def test_every_row_has_a_function():
    assert set(control_answers.ANSWERS) == {row.words for row in REMOTE}
    assert set(local.ANSWERS) == {row.words for row in commands.TABLE if row.local}


def test_every_function_has_one_row():
    assert len(set(control_answers.ANSWERS.values())) == len(control_answers.ANSWERS)
    assert set(control_answers.ANSWERS.values()) == answer_methods()
    assert len(set(local.ANSWERS.values())) == len(local.ANSWERS)
    assert set(local.ANSWERS.values()) == answer_functions()


@pytest.mark.parametrize('row', REMOTE, ids=lambda row: row.words)
def test_the_function_takes_the_arguments_of_its_row(row):
    parameters = list(inspect.signature(control_answers.ANSWERS[row.words]).parameters)[1:]
    assert sorted(parameters) == sorted(argument.name for argument in row.arguments)


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
