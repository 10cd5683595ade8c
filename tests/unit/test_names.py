"""Words that no name may contain, and comments that mark unfinished work."""

import ast
import io
import os
import re
import tokenize

import pytest
from source_tree import ROOT, complaints, python_files, read

pytestmark = pytest.mark.source

FILES = python_files('targetd', 'tests')
THIS = os.path.abspath(__file__)

#: as a whole word of a name, whatever its case: `buffer_util`, `SessionUtility`
FORBIDDEN = {'util', 'utils', 'utility', 'misc'}
UNDONE = re.compile(r'\b(TODO|FIXME|XXX|HACK)\b')


def words(name):
    """'SessionManager' -> ['session', 'manager']; 'cmd_sn' -> ['cmd', 'sn']."""
    parted = re.sub(r'(?<=[a-z0-9])(?=[A-Z])', '_', name)
    return [word for word in parted.lower().split('_') if word]


def defined_names(tree):
    """(line, name) of the names that a module defines: classes, functions, arguments, variables,
    attributes, aliases."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.alias) and node.asname:
            yield getattr(node, 'lineno', 0), node.asname


def forbidden_names(text):
    return [
        'line %d: %s' % (line, name)
        for line, name in defined_names(ast.parse(text))
        if FORBIDDEN & set(words(name))
    ]


def notes(text):
    """Comments and strings that mark unfinished work."""
    found = []
    if not UNDONE.search(text):
        return found
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING) and UNDONE.search(token.string):
            found.append('line %d: %s' % (token.start[0], UNDONE.search(token.string).group()))
    return found


def test_no_forbidden_word_in_a_name():
    assert complaints(FILES, lambda path: forbidden_names(read(path))) == []
    assert [path for path in FILES if FORBIDDEN & set(words(os.path.basename(path)[:-3]))] == []


def test_no_comment_marks_unfinished_work():
    others = [path for path in FILES if os.path.abspath(path) != THIS]
    assert complaints(others, lambda path: notes(read(path))) == []


def test_no_two_test_modules_have_the_same_name():
    """Without __init__.py two test modules of one name would hide each other."""
    names = [
        os.path.basename(path)
        for path in python_files('tests')
        if os.path.basename(path) != 'conftest.py'
        and not os.path.exists(os.path.join(os.path.dirname(path), '__init__.py'))
    ]
    assert sorted(names) == sorted(set(names))


def test_no_module_has_a_generic_name():
    assert not [
        path
        for path in python_files('targetd')
        if os.path.basename(path) in ('common.py', 'utils.py', 'tools.py')
    ]
    assert os.path.exists(os.path.join(ROOT, 'ARCHITECTURE.md'))


#: Modules of one base name that mean the same thing in two places: base name -> why
SAME_MEANING = {
    '__init__': 'packages',
    '__main__': 'entry points',
    'errors': 'the exceptions of a layer',
    'cli': 'the command line of a program: targetd, targetdctl',
    'render': 'what is rendered from a table: settings, commands',
    'rod_tokens': 'ROD tokens as values (scsi), as the master keeps them, as a worker asks for them',
}


def test_no_two_modules_of_different_meaning_share_a_base_name():
    bases = [os.path.basename(path)[:-3] for path in python_files('targetd')]
    assert {base for base in bases if bases.count(base) > 1} - set(SAME_MEANING) == set()


@pytest.mark.parametrize(
    'text, count',
    [
        ('class SessionUtility: pass', 1),
        ('def misc(): pass', 1),
        ('buffer_util = 1', 1),
        ('def f(utils): pass', 1),
        ('import os as utils', 1),
        ('class CopyManager: pass', 0),
        ('managed = utilise = 1', 0),
        ('import distutils', 0),
    ],
)
def test_a_forbidden_word_is_found(text, count):
    assert len(forbidden_names(text)) == count


def test_a_note_is_found():
    assert notes('x = 1  # TO' + 'DO later\n') == ['line 1: TO' + 'DO']
    assert notes('todo = 1\n') == []
