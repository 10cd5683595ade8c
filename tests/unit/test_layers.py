"""Which module may import which: the source follows the table in ARCHITECTURE.md and the rules
below it."""

import ast
import os

import pytest
from source_tree import (
    ENTRY_POINTS,
    PACKAGE,
    PACKAGES,
    ROOT,
    complaints,
    folder_table,
    import_table,
    imports,
    module_name,
    python_files,
    read,
)

pytestmark = pytest.mark.source

FILES = python_files('targetd')

#: Standard and third-party modules that only some modules may import: module -> the packages, base
#: files and single modules that may import it.
ONLY_IN = {
    'socket': {
        'master',
        'worker',
        'channel',
        'admin',
        'rehearsal',
        'web',
        'ceph',
        'pcapng',
        'kernel_crc32c',
        'store.nbd_connection',
        'store.nbd_line',
        'store.nbd_pipeline',
        'store.nbd_replies',
        'store.nbd_store',
    },
    'threading': {
        'worker',
        'channel',
        'ceph',
        'web',
        'store.nbd_connection',
        'store.nbd_log',
        'store.nbd_store',
    },
    '_thread': set(),
    'concurrent': set(),
    'multiprocessing': set(),
    'asyncio': set(),
    'configobj': {'config.loader'},
    'validate': {'config.loader'},
    'psutil': {'host.network', 'host.process_usage'},
    'cryptography': {'xts'},
    'bottle': {'web'},
    'rados': {'ceph'},
    'rbd': {'ceph'},
}

#: Functions that only some modules may call.
CALLED_ONLY_IN = {
    'os.fork': {'master'},
    'os.forkpty': set(),
    'pty.fork': set(),
    'sys.version_info': {'compat'},
    'sys.hexversion': {'compat'},
    'platform.python_version': {'compat', 'cli'},
}

#: What a pure package may import from outside targetd: it takes and returns values, and uses no
#: clock, file, socket, thread, random number or log.
PURE = ('iscsi', 'isns', 'nbd', 'scsi')
PURE_MAY_IMPORT = {
    'abc',
    'array',
    'base64',
    'binascii',
    'bisect',
    'collections',
    'copy',
    'enum',
    'errno',
    'functools',
    'hashlib',
    'hmac',
    'ipaddress',
    'itertools',
    'json',
    'math',
    'operator',
    're',
    'string',
    'stringprep',
    'struct',
    'types',
    'typing',
    'unicodedata',
    'zlib',
}
PURE_MAY_NOT_CALL = {'open', 'input', 'print', 'exec', 'eval', '__import__'}


def layer_of(module):
    """'targetd.scsi.sam' -> 'scsi'; a file at the top of the package is 'base', 'channel' or
    'entry point'."""
    parts = module.split('.')
    if len(parts) > 1 and parts[1] in PACKAGES:
        return parts[1]
    if len(parts) > 1 and parts[1] in ENTRY_POINTS:
        return 'entry point'
    return 'channel' if module == 'targetd.channel' else 'base'


def may_import(table, source, target):
    """True if the table allows module `source` to import module `target` (dotted names within targetd)."""
    here, there = layer_of(source), layer_of(target)
    if here == there:
        return True
    if here == 'entry point':
        return there in ('base', 'config', 'master', 'admin')
    if here == 'base' or there == 'entry point':
        return False
    row = table[here]
    if target == 'targetd.scsi.sam' and row['scsi.sam'] is True:
        return True
    allowed = row[there]
    return allowed is True or '.'.join(target.split('.')[2:]) in allowed


def resolved(name, modules):
    """The module of targetd that an imported dotted name means: 'targetd.scsi.sam.Task' is
    'targetd.scsi.sam'."""
    while name not in modules and '.' in name:
        name = name.rsplit('.', 1)[0]
    return name


def forbidden_imports(table, source, text, modules, is_package=False):
    """['line 3: targetd.scsi.cdb', …]: the imports of targetd in `text` that the table does not
    allow."""
    wrong = []
    for line, name in imports(ast.parse(text), source, is_package):
        if name.split('.')[0] == 'targetd':
            target = resolved(name, modules)
            if (
                target not in ('targetd', source)
                and target in modules
                and not may_import(table, source, target)
            ):
                # `from targetd import scsi` imports no content
                if not any(target == 'targetd.' + package for package in PACKAGES):
                    wrong.append('line %d: %s' % (line, target))
                elif layer_of(source) != layer_of(target) and imports_whole_package(
                    table, source, target
                ):
                    wrong.append('line %d: all of %s' % (line, target))
    return wrong


def imports_whole_package(table, source, target):
    """True if importing a whole package goes beyond the table (its modules would be
    reached as attributes)."""
    row = table.get(layer_of(source))
    return row is None or row[layer_of(target)] is not True


def owners(module):
    """Every name by which a rule may allow a module: its package, its path within targetd, its base
    file."""
    inner = module.split('.')[1:]
    return {layer_of(module), '.'.join(inner), inner[0] if inner else ''}


def dotted(node):
    """'os.fork' for the expression os.fork; '' for anything else."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.value.id + '.' + node.attr
    return node.id if isinstance(node, ast.Name) else ''


def forbidden_modules(source, text):
    """The imports of foreign modules in `text` that ONLY_IN or the purity of the package forbids."""
    wrong = []
    for line, name in imports(ast.parse(text), source, False):
        top = name.split('.')[0]
        if top == 'targetd':
            continue
        if top in ONLY_IN and not owners(source) & ONLY_IN[top]:
            wrong.append('line %d: %s' % (line, top))
        if layer_of(source) in PURE and top not in PURE_MAY_IMPORT:
            wrong.append('line %d: %s in a pure package' % (line, top))
    return wrong


def forbidden_calls(source, text):
    """The names used in `text` that CALLED_ONLY_IN or the purity of the package forbids."""
    wrong = []
    tree = ast.parse(text)
    froms = {name for _, name in imports(tree, source, False)}
    for node in ast.walk(tree):
        name = dotted(node)
        if name in CALLED_ONLY_IN and not owners(source) & CALLED_ONLY_IN[name]:
            wrong.append('line %d: %s' % (node.lineno, name))
        if (
            isinstance(node, ast.Call)
            and layer_of(source) in PURE
            and dotted(node.func) in PURE_MAY_NOT_CALL
        ):
            wrong.append('line %d: %s() in a pure package' % (node.lineno, dotted(node.func)))
    for name in froms & set(CALLED_ONLY_IN):
        if not owners(source) & CALLED_ONLY_IN[name]:
            wrong.append('import of %s' % name)
    return wrong


@pytest.fixture(scope='module')
def table():
    return import_table()


@pytest.fixture(scope='module')
def modules():
    return {module_name(path) for path in FILES}


def test_the_table_has_a_row_for_every_package(table):
    assert set(table) == set(PACKAGES) | {'channel'}
    there = {'base', 'scsi.sam', 'channel'} | set(PACKAGES)
    assert all(set(row) == there for row in table.values())


def test_every_directory_is_in_the_table():
    directories = {
        name
        for name in os.listdir(PACKAGE)
        if os.path.isdir(os.path.join(PACKAGE, name)) and name != '__pycache__'
    }
    assert directories == set(PACKAGES)


def test_imports_follow_the_table(table, modules):
    def forbidden(path):
        is_package = path.endswith('__init__.py')
        return forbidden_imports(table, module_name(path), read(path), modules, is_package)

    assert complaints(FILES, forbidden) == []


def test_foreign_modules_are_imported_only_where_allowed():
    assert complaints(FILES, lambda path: forbidden_modules(module_name(path), read(path))) == []


def test_forks_and_version_checks_are_only_where_allowed():
    assert complaints(FILES, lambda path: forbidden_calls(module_name(path), read(path))) == []


def test_architecture_has_the_rules_that_are_checked_here():
    text = read(os.path.join(ROOT, 'ARCHITECTURE.md'))
    for rule in (
        '`socket` only in master, worker, channel, ceph, admin, rehearsal',
        '`threading` only in worker and ceph',
        'locks in channel and the NBD store',
        '`os.fork` only in master',
        'no `logging` in iscsi, scsi',
        '`configobj` only in config.loader',
        'version checks only in compat',
    ):
        assert rule in text


def test_the_channel_starts_no_thread():
    tree = ast.parse(read(os.path.join(PACKAGE, 'channel.py')))
    used = {dotted(node) for node in ast.walk(tree) if dotted(node).startswith('threading.')}
    assert used <= {'threading.Lock'}


def folder_of(module):
    """'targetd.master.units.replication' -> 'targetd.master.units'; '' for a module that is in no
    inner folder."""
    return module.rpartition('.')[0] if module.count('.') > 2 else ''


def may_import_within_package(folders, source, target):
    """True if the table of inner folders allows module `source` to import module `target` of the same
    package."""
    here = folder_of(source)
    if not here or here == folder_of(target):
        return True
    allowed = folders[here]
    return target in allowed or target.rpartition('.')[0] in allowed


def forbidden_inner_imports(folders, source, text, modules):
    """['line 3: targetd.master.reload', …]: the imports within the source's package that the inner
    table does not allow."""
    wrong = []
    for line, name in imports(ast.parse(text), source, False):
        target = resolved(name, modules)
        if (
            target in modules
            and target.split('.')[:2] == source.split('.')[:2]
            and target.count('.') > 1
        ):
            if target + '.__init__' != source and not may_import_within_package(
                folders, source, target
            ):
                wrong.append('line %d: %s' % (line, target))
    return wrong


def test_every_inner_folder_has_a_row():
    folders = {folder_of(module_name(path)) for path in FILES} - {''}
    assert set(folder_table()) == folders


def test_imports_between_inner_folders_follow_the_table(modules):
    folders = folder_table()

    def forbidden(path):
        return forbidden_inner_imports(folders, module_name(path), read(path), modules)

    assert complaints(FILES, forbidden) == []


@pytest.mark.parametrize(
    'source, text, count',
    [
        ('targetd.master.units.replication', 'from targetd.master.master import Master', 1),
        (
            'targetd.master.units.replication',
            'from targetd.master.units.transitions import Refusal',
            0,
        ),
        ('targetd.master.units.replication', 'from targetd.master.exports import exports', 1),
        ('targetd.master.exports.exports', 'from targetd.master.units import transitions', 0),
        ('targetd.master.master', 'from targetd.master.units.logical_units import Units', 0),
        ('targetd.scsi.copy.rod_tokens', 'from targetd.scsi.sense import CheckCondition', 0),
        ('targetd.worker.copy.guest_units', 'from targetd.worker.main import Worker', 1),
    ],
)
def test_a_forbidden_inner_import_is_found(source, text, count, modules):
    assert len(forbidden_inner_imports(folder_table(), source, text, modules)) == count


KNOWN = {
    'targetd.scsi.sam',
    'targetd.scsi.cdb',
    'targetd.iscsi.keys',
    'targetd.iscsi.login',
    'targetd.errors',
    'targetd.scsi',
    'targetd.master.master',
    'targetd.cli',
    'targetd.iscsi.const',
    'targetd.worker.main',
    'targetd.worker.replica',
    'targetd',
}


@pytest.mark.parametrize(
    'source, text, count',
    [
        ('targetd.iscsi.session', 'from targetd.scsi.sam import Task', 0),
        ('targetd.iscsi.session', 'from targetd.scsi import sam', 0),
        ('targetd.iscsi.session', 'from targetd.scsi import cdb', 1),
        ('targetd.iscsi.session', 'import targetd.scsi.cdb', 1),
        ('targetd.iscsi.session', 'from ..scsi import cdb', 1),
        ('targetd.iscsi.session', 'def f():\n    from targetd.scsi.cdb import READ_10', 1),
        ('targetd.iscsi.session', 'from targetd import scsi', 1),
        ('targetd.iscsi.session', 'from targetd.errors import TargetdError', 1),
        ('targetd.config.loader', 'from targetd.iscsi.keys import KEYS', 0),
        ('targetd.config.loader', 'from targetd.iscsi.login import LoginNegotiation', 1),
        ('targetd.master.processes.workers', 'from targetd.worker.main import run', 0),
        ('targetd.master.processes.workers', 'from targetd.worker.replica import Replica', 1),
        ('targetd.errors', 'from targetd.scsi.sam import Task', 1),
        ('targetd.admin.cli', 'from targetd.master.master import Master', 1),
        ('targetd.master.master', 'from targetd.cli import main', 1),
        ('targetd.cli', 'from targetd.master.master import Master', 0),
        ('targetd.cli', 'from targetd.worker.main import run', 1),
    ],
)
def test_a_forbidden_import_is_found(table, source, text, count):
    assert len(forbidden_imports(table, source, text, KNOWN)) == count


@pytest.mark.parametrize(
    'source, text, count',
    [
        ('targetd.store.file', 'import socket', 1),
        ('targetd.store.file', 'from socket import socketpair', 1),
        ('targetd.master.logins.portals', 'import socket', 0),
        ('targetd.channel', 'import threading', 0),
        ('targetd.master.master', 'import threading', 1),
        ('targetd.config.model', 'import configobj', 1),
        ('targetd.config.loader', 'from configobj import ConfigObj', 0),
        ('targetd.scsi.sbc', 'import logging', 1),
        ('targetd.iscsi.chap', 'import random', 1),
        ('targetd.iscsi.chap', 'import hashlib', 0),
        ('targetd.iscsi.session', 'import time', 1),
    ],
)
def test_a_forbidden_module_is_found(source, text, count):
    assert len(forbidden_modules(source, text)) == count


@pytest.mark.parametrize(
    'source, text, count',
    [
        ('targetd.worker.main', 'import os\nos.fork()', 1),
        ('targetd.worker.main', 'from os import fork', 1),
        ('targetd.master.processes.workers', 'import os\nos.fork()', 0),
        ('targetd.store.posix', 'import sys\nold = sys.version_info < (3, 7)', 1),
        ('targetd.compat', 'import sys\nold = sys.version_info < (3, 7)', 0),
        ('targetd.scsi.sbc', 'open("/etc/passwd")', 1),
    ],
)
def test_a_forbidden_call_is_found(source, text, count):
    assert len(forbidden_calls(source, text)) == count
