"""Limits on the length of functions, files and lines; the syntax is that of Python 3.6."""

import ast
import os
import sys

import pytest
from source_tree import PACKAGE, complaints, python_files, read

pytestmark = pytest.mark.source

FILES = python_files('targetd', 'tests')
SOURCE = python_files('targetd')

LONGEST_FUNCTION = 70
LONGEST_FILE = 550
LONGEST_LINE = 110  # max-line-length in ruff.toml

#: Files that consist mostly of one table.
TABLE_FILES = ('scsi/opcodes.py', 'iscsi/keys.py', 'config/settings.py', 'admin/commands.py')


def functions(tree):
    """[(name, line, number of lines from def to end)] of every function and method, nested ones too."""
    found = []

    def last_line(node):
        lines = [last_line(child) for child in ast.iter_child_nodes(node)]
        last = max(lines + [getattr(node, 'lineno', 0)])
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.append((node.name, node.lineno, last - node.lineno + 1))
        return last

    last_line(tree)
    return found


def percentile(numbers, share):
    ordered = sorted(numbers)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


@pytest.mark.skipif(
    sys.version_info < (3, 8),
    reason='before 3.8 ast counts the decorators of a function, such as a table of cases, as its lines',
)
def test_no_function_is_too_long():
    def long(path):
        found = functions(ast.parse(read(path)))
        return ['%s (line %d): %d lines' % f for f in found if f[2] > LONGEST_FUNCTION]

    assert complaints(FILES, long) == []


def test_most_functions_are_short():
    lengths = [length for path in SOURCE for _, _, length in functions(ast.parse(read(path)))]
    assert percentile(lengths, 0.5) <= 10
    assert percentile(lengths, 0.9) <= 35


def test_no_file_is_too_long():
    def too_long(path):
        lines = len(read(path).splitlines())
        is_table = os.path.relpath(path, PACKAGE) in TABLE_FILES
        return ['%d lines' % lines] if lines > LONGEST_FILE and not is_table else []

    assert complaints(SOURCE, too_long) == []


def test_no_line_is_too_long():
    def long(path):
        lines = enumerate(read(path).splitlines(), 1)
        return ['line %d' % number for number, line in lines if len(line) > LONGEST_LINE]

    assert complaints(FILES, long) == []


def test_no_blanks_at_line_ends_and_no_tabs():
    def blank(path):
        lines = enumerate(read(path).split('\n'), 1)
        return ['line %d' % n for n, line in lines if line != line.rstrip() or '\t' in line]

    assert complaints(FILES, blank) == []


@pytest.mark.skipif(
    sys.version_info < (3, 8),
    reason='ast knows older syntaxes from 3.8 on; on 3.6 importing is the test',
)
def test_it_is_python_3_6():
    for path in FILES:
        ast.parse(read(path), path, feature_version=(3, 6))


def test_every_module_has_a_docstring():
    without = [path for path in SOURCE if read(path).strip() and not docstring(path)]
    assert without == []


def docstring(path):
    return ast.get_docstring(ast.parse(read(path)))


def test_a_long_function_is_found():
    text = 'class A:\n    def f(self):\n' + '        x = 1\n' * 70
    assert [length for _, _, length in functions(ast.parse(text))] == [71]


def test_percentiles():
    assert percentile([1, 2, 3, 4, 5, 6, 7, 8, 9, 100], 0.5) == 6
    assert percentile([1, 2, 3, 4, 5, 6, 7, 8, 9, 100], 0.9) == 100
