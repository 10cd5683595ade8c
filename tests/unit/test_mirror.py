"""Checks that every module of targetd has a unit test file of its name or a row in tests/README.md
that names existing test files."""

import os
import re

import pytest
from source_tree import PACKAGE, ROOT, python_files, read

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


@pytest.mark.parametrize('module', MODULES)
def test_a_module_has_a_unit_test_file_or_a_row(module):
    path = mirrored_file(module)
    has_file = os.path.exists(os.path.join(TESTS, path))
    assert has_file or module in ROWS, 'write tests/%s, or add a row to tests/README.md' % path


@pytest.mark.parametrize('module', sorted(ROWS))
def test_a_row_names_an_existing_module_and_existing_files(module):
    assert module in MODULES
    missing = [path for path in ROWS[module] if not os.path.exists(os.path.join(TESTS, path))]
    assert missing == []


def test_the_path_of_a_mirrored_file():
    assert mirrored_file('log') == 'unit/test_log.py'
    assert mirrored_file('scsi.alua') == 'unit/scsi/test_scsi_alua.py'
    assert mirrored_file('worker.copy.guest_units') == 'unit/worker/copy/test_worker_guest_units.py'
