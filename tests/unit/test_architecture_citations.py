"""ARCHITECTURE.md names real files, classes and functions, and the source cites real decisions."""

import ast
import os
import re

import pytest
from source_tree import PACKAGE, ROOT, complaints, python_files, read

pytestmark = pytest.mark.source

TEXT = read(os.path.join(ROOT, 'ARCHITECTURE.md'))

#: `worker/main.py: Worker.ask_change` or `channel.py`
CITATIONS = sorted(set(re.findall(r'`([a-z_0-9/]+\.py)(?:: ([A-Za-z_][\w.]*))?`', TEXT)))
DECISIONS = set(re.findall(r'^\*\*(D\d+)\.', TEXT, re.M))


def defined(path):
    """Every function, class and method of a module, as 'name' or 'Class.name'."""
    names = set()
    for node in ast.parse(read(path)).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {
                '%s.%s' % (node.name, each.name)
                for each in node.body
                if isinstance(each, ast.FunctionDef)
            }
    return names


@pytest.mark.parametrize('path, name', CITATIONS)
def test_a_cited_function_exists(path, name):
    file = os.path.join(ROOT if path.startswith('tests/') else PACKAGE, path)
    assert os.path.exists(file), '%s does not exist' % path
    assert not name or name in defined(file), '%s has no %s' % (path, name)


def test_cited_decisions_exist():
    def unknown(path):
        return sorted(set(re.findall(r'ARCHITECTURE (D\d+)', read(path))) - DECISIONS)

    assert complaints(python_files('targetd', 'tests'), unknown) == []


def test_there_are_citations_and_decisions():
    assert len(CITATIONS) > 30 and len(DECISIONS) >= 19
