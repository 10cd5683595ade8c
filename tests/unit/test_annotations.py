"""The public functions and methods of some folders have type hints for every argument and for the
result."""

import ast
import os

import pytest
from source_tree import PACKAGE, complaints, python_files, read

pytestmark = pytest.mark.source

ROOMS_WITH_ANNOTATIONS = ('iscsi', 'scsi', 'store')

FILES = [
    path
    for path in python_files('targetd')
    if os.path.relpath(path, PACKAGE).split(os.sep)[0] in ROOMS_WITH_ANNOTATIONS
]


def public_functions(body, prefix='', is_class=False):
    """Yields (qualified name, node, True if the first argument is self or cls) for every function
    without a leading underscore, and for the methods of public classes."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
            for each in public_functions(node.body, prefix + node.name + '.', True):
                yield each
        elif isinstance(node, ast.FunctionDef):
            if node.name == '__init__' or not node.name.startswith('_'):
                decorators = [getattr(each, 'id', None) for each in node.decorator_list]
                yield prefix + node.name, node, is_class and 'staticmethod' not in decorators


def missing_annotations(text):
    """Returns ['Class.method: argument', ...] of a module's source text."""
    missing = []
    for name, node, has_self in public_functions(ast.parse(text).body):
        arguments = node.args.args[1:] if has_self else list(node.args.args)
        arguments += node.args.kwonlyargs
        arguments += [each for each in (node.args.vararg, node.args.kwarg) if each is not None]
        missing += ['%s: %s' % (name, each.arg) for each in arguments if each.annotation is None]
        if node.returns is None:
            missing.append('%s: its result' % name)
    return missing


def test_public_functions_are_annotated():
    assert complaints(FILES, lambda path: missing_annotations(read(path))) == []


@pytest.mark.parametrize(
    'text, count',
    [
        ('def f(a: int) -> int: ...', 0),
        ('def f(a) -> int: ...', 1),
        ('def f(a: int): ...', 1),
        ('def _f(a): ...', 0),
        ('def f(*a, **b): ...', 3),
        ('class A:\n    def __init__(self, a): ...', 2),
        ('class A:\n    @staticmethod\n    def f(a) -> None: ...', 1),
        ('class _A:\n    def f(self, a): ...', 0),
    ],
)
def test_a_missing_annotation_is_found(text, count):
    assert len(missing_annotations(text)) == count
