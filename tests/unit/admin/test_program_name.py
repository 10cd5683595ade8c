"""The control program is called targetdctl. `targetctl` is the tool of LIO, and nothing of that name
may be installed or recommended."""

import configparser
import os
import re

import pytest

from targetd.admin import protocol, render
from targetd.config import model

PROSE = ('README.md', 'CHANGELOG.md', 'man/targetdctl.8')


def committed_files():
    for directory in ('etc', 'init', 'man', 'targetd'):
        for parent, _, names in os.walk(os.path.join(render.TREE, directory)):
            if '__pycache__' not in parent:
                for name in names:
                    if not name.endswith('.png'):  # the screenshots of the README
                        yield os.path.join(parent, name)


def test_the_entry_points_are_targetd_and_targetdctl():
    setup = configparser.ConfigParser()
    setup.read(os.path.join(render.TREE, 'setup.cfg'), encoding='utf-8')
    lines = setup['options.entry_points']['console_scripts'].strip().splitlines()
    assert [line.split('=')[0].strip() for line in lines] == ['targetd', 'targetdctl']


def test_no_file_has_the_name_of_the_other_tool():
    assert [path for path in committed_files() if 'targetctl' in os.path.basename(path)] == []


def test_a_text_that_names_targetctl_says_that_it_belongs_to_lio():
    def is_unclear(path):
        with open(path, encoding='utf-8') as f:
            text = f.read()
        return 'targetctl' in text and 'LIO' not in text

    assert [path for path in committed_files() if is_unclear(path)] == []


@pytest.mark.parametrize('path', PROSE)
def test_the_documents_explain_the_difference(path):
    with open(os.path.join(render.TREE, path), encoding='utf-8') as f:
        text = ' '.join(f.read().split())
    assert re.search(r'[^.]*\btargetctl\b[^.]*\bLIO\b[^.]*\bpython3(\\)?-rtslib(\\)?-fb\b', text)


def test_client_and_server_have_the_same_default_socket():
    assert protocol.SOCKET_PATH == model.Server().control_socket
