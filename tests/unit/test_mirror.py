"""Checks that every module of targetd has a unit test file of its name or a row in tests/README.md
that names existing test files."""

import os
import re

import pytest
from source_tree import PACKAGE, ROOT, python_files, read

pytestmark = pytest.mark.source

TESTS = os.path.join(ROOT, 'tests')
ROW = re.compile(r'^\| `([a-z0-9_.]+)` \| (`.*`) \|$', re.M)


def modules():
    """Returns the dotted names, relative to targetd, of all modules that contain code."""
    return sorted(
        os.path.relpath(path, PACKAGE)[: -len('.py')].replace(os.sep, '.')
        for path in python_files('targetd')
        if not os.path.basename(path).startswith('__') and read(path).strip()
    )


def mirrored_file(module):
    """Returns the path of the unit test file of a module, relative to tests."""
    folders, name = module.split('.')[:-1], module.split('.')[-1]
    return os.path.join('unit', *(folders + ['_'.join(['test'] + folders[:1] + [name]) + '.py']))


def rows():
    """Returns {module: [test file, …]} of the table in tests/README.md."""
    found = ROW.findall(read(os.path.join(TESTS, 'README.md')))
    return {module: re.findall(r'`([^`]+)`', files) for module, files in found}


MODULES = modules()
ROWS = rows()


def test_a_module_has_a_unit_test_file_or_a_row():
    paths = [mirrored_file(module) for module in MODULES if module not in ROWS]
    missing = [path for path in paths if not os.path.exists(os.path.join(TESTS, path))]
    assert missing == [], 'write these files in tests, or add rows to tests/README.md'


def test_a_row_names_an_existing_module_and_existing_files():
    assert set(ROWS) - set(MODULES) == set()
    named = {path for paths in ROWS.values() for path in paths}
    assert [path for path in named if not os.path.exists(os.path.join(TESTS, path))] == []


def test_the_path_of_a_mirrored_file():
    assert mirrored_file('log') == 'unit/test_log.py'
    assert mirrored_file('scsi.alua') == 'unit/scsi/test_scsi_alua.py'
    assert mirrored_file('worker.copy.guest_units') == 'unit/worker/copy/test_worker_guest_units.py'
