"""The paths that are used only when something happens: `targetd -t` warns of those that would fail."""

import os
from collections import namedtuple

import pytest

from targetd.master import named_paths

Server = namedtuple('Server', 'capture_on_error metrics_file status_file on_event')


def complaints(**more):
    return named_paths.complaints(Server(**dict(dict.fromkeys(Server._fields, ''), **more)))


def test_nothing_to_complain_about(tmp_path):
    assert complaints() == []
    program = tmp_path / 'program'
    program.write_text('#!/bin/sh\n')
    program.chmod(0o755)
    assert (
        complaints(
            capture_on_error=str(tmp_path),
            metrics_file=str(tmp_path / 'a.prom'),
            status_file=str(tmp_path / 'new'),
            on_event='%s --with "a word"' % program,
        )
        == []
    )
    assert complaints(on_event='sh -c true') == []


@pytest.mark.parametrize(
    'setting, name, words',
    [
        ('capture_on_error', 'missing', 'capture-on-error: the directory {} does not exist'),
        ('capture_on_error', 'file', 'capture-on-error: the directory {} is not a directory'),
        ('metrics_file', '', 'metrics-file: {} is a directory'),
        ('metrics_file', 'missing/a.prom', 'metrics-file: the directory'),
        ('status_file', 'missing/status', 'status-file: the directory'),
        ('on_event', 'missing', 'on-event: {} cannot be run: No such file'),
        ('on_event', 'file', 'on-event: {} is not executable'),
        ('on_event', '', 'on-event: {} is not a program'),
    ],
)
def test_a_path_that_would_fail(tmp_path, setting, name, words):
    (tmp_path / 'file').write_text('')
    path = os.path.join(str(tmp_path), name) if name else str(tmp_path)
    (found,) = complaints(**{setting: path})
    assert found.startswith(words.format(path)) and '; ' in found


@pytest.mark.parametrize(
    'command, words',
    [
        ('no-such-program-here x', 'there is no program'),
        ('./hook', 'directory /'),
        ('a "b', 'split'),
    ],
)
def test_a_command_that_cannot_be_run(command, words):
    (found,) = complaints(on_event=command)
    assert words in found
