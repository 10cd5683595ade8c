"""Helpers of the tests that check the source itself: the Python files, their imports, and the
import tables of ARCHITECTURE.md."""

import ast
import os
import re

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PACKAGE = os.path.join(ROOT, 'targetd')
PACKAGES = (
    'iscsi isns nbd ceph scsi store host config migration rehearsal master worker admin web'.split()
)
ENTRY_POINTS = ('cli', 'demo', '__main__')


def read(path):
    with open(path, encoding='utf-8') as f:
        return f.read()


def python_files(*tops):
    """Paths of the Python files in the given directories of the tree, sorted, without
    the results of builds."""
    found = []
    for top in tops:
        for directory, names, files in os.walk(os.path.join(ROOT, top)):
            names[:] = sorted(
                n for n in names if n not in ('__pycache__', 'build') and not n.startswith('.')
            )
            found += [
                os.path.join(directory, name) for name in sorted(files) if name.endswith('.py')
            ]
    return found


def relative(path):
    return os.path.relpath(path, ROOT)


def complaints(paths, found_in):
    """['targetd/log.py: line 3', …]: what found_in(path) returns for each of the paths. A rule has one
    test for all files: a test for each file would take pytest longer than the check."""
    return ['%s: %s' % (relative(path), found) for path in paths for found in found_in(path)]


def module_name(path):
    """'/…/targetd/scsi/sam.py' -> 'targetd.scsi.sam'; a package's __init__ is the package."""
    name = relative(path)[:-3].replace(os.sep, '.')
    return name[: -len('.__init__')] if name.endswith('.__init__') else name


def imports(tree, module, is_package):
    """(line, imported dotted name) of every import anywhere in a module, relative ones resolved.

    `from a import b` yields 'a.b', because b may be a module; the caller knows which modules exist.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                anchor = module.split('.')
                anchor = anchor[: len(anchor) - node.level + (1 if is_package else 0)]
                base = '.'.join(anchor + ([node.module] if node.module else []))
            for alias in node.names:
                yield node.lineno, base + '.' + alias.name


def folder_table():
    """The second table of ARCHITECTURE.md: {folder within a folder: the folders and modules that it
    may import}."""
    lines = read(os.path.join(ROOT, 'ARCHITECTURE.md')).splitlines()
    table = {}
    for line in lines[lines.index('| folder | may import |') + 2 :]:
        if not line.startswith('|'):
            break
        folder, allowed = (cell.strip() for cell in line.strip('|').split('|'))
        table['targetd.' + folder] = {
            'targetd.' + each for each in re.split(r',\s*', allowed) if each
        }
    return table


def import_table():
    """The matrix of ARCHITECTURE.md: {package: {column: True or the set of modules that may be
    imported}}."""
    rows = [
        line
        for line in read(os.path.join(ROOT, 'ARCHITECTURE.md')).splitlines()
        if line.startswith('|')
    ]
    start = next(i for i, line in enumerate(rows) if line.startswith('| from \\ to'))
    columns = [cell.strip() for cell in rows[start].strip('|').split('|')][1:]
    table = {}
    for line in rows[start + 2 :]:
        cells = [cell.strip() for cell in re.sub(r'^\||\|$', '', line).split('|')]
        if len(cells) != len(columns) + 1:
            break
        table[cells[0]] = {
            column: True if cell == 'y' else set(re.split(r',\s*', cell)) if cell else set()
            for column, cell in zip(columns, cells[1:])
        }
    return table
