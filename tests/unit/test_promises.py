"""The table 'What happens to your data' of the README: each case names a test, and the test exists."""

import os
import re

import pytest
from source_tree import ROOT, python_files, read

pytestmark = pytest.mark.source

TESTS = os.path.join(ROOT, 'tests')


def rows():
    """Returns the rows of the table, without the header."""
    text = read(os.path.join(ROOT, 'README.md')).split('## What happens to your data\n')[1]
    return [line for line in text.split('\n## ')[0].split('\n') if line.startswith('| ')][1:]


def names(row):
    """Returns what in the row can only be a test: a function, a file or a folder of tests."""
    return re.findall(r'`(test_\w+|test_\w+\.py|tests/[\w/.-]+)`', row)


@pytest.fixture(scope='module')
def existing():
    """The names of all test functions and test files, and the paths in the folder of tests."""
    found = set()
    for path in python_files('tests'):
        found.update(re.findall(r'^def (test_\w+)', read(path), re.M))
        found.add(os.path.basename(path))
    for folder, folders, files in os.walk(TESTS):
        for name in folders + files:
            found.add(os.path.relpath(os.path.join(folder, name), ROOT))
    return found


def test_the_table_is_found():
    assert len(rows()) > 25


@pytest.mark.parametrize('row', rows(), ids=lambda row: row[2:50])
def test_each_case_names_tests_that_exist(row, existing):
    assert names(row), 'the row names no test'
    assert [name for name in names(row) if name not in existing] == []
