"""Limits on the length of functions, files and lines; the syntax is that of Python 3.6."""

import ast
import os
import sys

import pytest
from source_tree import PACKAGE, python_files, read, relative

FILES = python_files('targetd', 'tests')
SOURCE = python_files('targetd')

LONGEST_FUNCTION = 70
LONGEST_FILE = 550
LONGEST_LINE = 110  # max-line-length in ruff.toml

#: Files that consist mostly of one table.
TABLE_FILES = ('scsi/opcodes.py', 'iscsi/keys.py', 'config/settings.py', 'admin/commands.py')


def functions(tree):
    """(name, line, number of lines from def to end) of every function and method, nested ones too."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            last = max(getattr(each, 'lineno', 0) for each in ast.walk(node))
            yield node.name, node.lineno, last - node.lineno + 1


def percentile(numbers, share):
    ordered = sorted(numbers)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


@pytest.mark.parametrize('path', FILES, ids=relative)
@pytest.mark.skipif(
    sys.version_info < (3, 8),
    reason='before 3.8 ast counts the decorators of a function, such as a table of cases, as its lines',
)
def test_no_function_is_too_long(path):
    long = [
        '%s (line %d): %d lines' % f
        for f in functions(ast.parse(read(path)))
        if f[2] > LONGEST_FUNCTION
    ]
    assert long == []


def test_most_functions_are_short():
    lengths = [length for path in SOURCE for _, _, length in functions(ast.parse(read(path)))]
    assert percentile(lengths, 0.5) <= 10
    assert percentile(lengths, 0.9) <= 35


@pytest.mark.parametrize('path', SOURCE, ids=relative)
def test_no_file_is_too_long(path):
    if os.path.relpath(path, PACKAGE) not in TABLE_FILES:
        assert len(read(path).splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize('path', FILES, ids=relative)
def test_no_line_is_too_long(path):
    assert [
        'line %d' % n
        for n, line in enumerate(read(path).splitlines(), 1)
        if len(line) > LONGEST_LINE
    ] == []


@pytest.mark.parametrize('path', FILES, ids=relative)
def test_no_blanks_at_line_ends_and_no_tabs(path):
    lines = read(path).split('\n')
    assert [
        'line %d' % n for n, line in enumerate(lines, 1) if line != line.rstrip() or '\t' in line
    ] == []


@pytest.mark.parametrize('path', FILES, ids=relative)
@pytest.mark.skipif(
    sys.version_info < (3, 8),
    reason='ast knows older syntaxes from 3.8 on; on 3.6 importing is the test',
)
def test_it_is_python_3_6(path):
    ast.parse(read(path), feature_version=(3, 6))


@pytest.mark.parametrize('path', SOURCE, ids=relative)
def test_every_module_has_a_docstring(path):
    text = read(path)
    assert not text.strip() or ast.get_docstring(ast.parse(text))


def test_a_long_function_is_found():
    text = 'class A:\n    def f(self):\n' + '        x = 1\n' * 70
    assert [length for _, _, length in functions(ast.parse(text))] == [71]


def test_percentiles():
    assert percentile([1, 2, 3, 4, 5, 6, 7, 8, 9, 100], 0.5) == 6
    assert percentile([1, 2, 3, 4, 5, 6, 7, 8, 9, 100], 0.9) == 100
