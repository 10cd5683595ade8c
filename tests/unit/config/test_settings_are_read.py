"""The settings table is closed: something reads every setting, and the texts name no other setting.

A reader is an attribute access such as `server.login_timeout`, `target.alias` or `lun.thin` outside
targetd/config: the name before the dot says which class of the model is meant. config.acl and
config.sharing_rules count as readers, because they apply rules. Modules that only display values do not.
"""

import ast
import os
import re

import pytest
from source_tree import PACKAGE, ROOT, python_files, read

from targetd.admin import commands
from targetd.config import acl, model, settings, tgt_settings

pytestmark = pytest.mark.source

APPLYING = ('config/acl.py', 'config/lun_maps.py', 'config/sharing_rules.py')
DISPLAYING = (
    'master/control/control.py',
    'master/control/control_answers.py',
    'master/reload.py',
    'admin/',
    'demo.py',
)
#: the negotiation treats all text keys alike; a reader uses the negotiated value
NEGOTIATING = ('iscsi/keys.py', 'iscsi/login.py')

#: section: names of the variables and attributes that refer to the model's object
OBJECTS = {
    'server': {'server'},
    'portal-group': {'group'},
    'target': {'target', '_target'},
    'lun': {'lun'},
}
#: settings whose attribute in the model has another name
ATTRIBUTES = dict({name: field for field, name in model.SETTING_OF.items()}, portal='portals')
ATTRIBUTES['incominguser-file'] = 'accounts'
#: replaced by the settings for which it stands
ATTRIBUTES['identity'] = 'naa'


def reading_modules():
    """(path relative to the package, syntax tree) of every module whose reads count."""
    for path in python_files('targetd'):
        name = os.path.relpath(path, PACKAGE)
        if name in APPLYING or not name.startswith(('config/',) + DISPLAYING):
            yield name, ast.parse(read(path))


def reads_of(tree):
    """{(name before the dot, attribute)} and {string constant} of a module."""
    attributes, strings = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            base = getattr(node.value, 'attr', getattr(node.value, 'id', None))
            attributes.add((base, node.attr))
        elif isinstance(getattr(node, 'slice', None), ast.AST):
            strings |= strings_in(node.slice)
        elif isinstance(node, ast.Call):
            strings |= {text for each in node.args for text in strings_in(each)}
    return attributes, strings


def string_of(node):
    """The value of a string constant, else None. Before Python 3.8 its node is an ast.Str."""
    kind = type(node).__name__
    value = node.s if kind == 'Str' else node.value if kind == 'Constant' else None
    return value if isinstance(value, str) else None


def strings_in(node):
    """The string constant that is an index or argument. Before Python 3.9 an ast.Index holds it."""
    text = string_of(node.value if type(node).__name__ == 'Index' else node)
    return set() if text is None else {text}


READS, KEYS_READ = set(), set()
for module_name, module_tree in reading_modules():
    module_attributes, module_strings = reads_of(module_tree)
    READS |= module_attributes
    if module_name not in NEGOTIATING:
        KEYS_READ |= module_strings


def is_read(row):
    if row.is_text_key:
        return row.name in KEYS_READ
    field = ATTRIBUTES.get(row.name, row.field)
    return any((base, field) in READS for base in OBJECTS[row.section])


@pytest.mark.parametrize('row', settings.TABLE, ids=lambda row: '%s/%s' % (row.section, row.name))
def test_something_reads_the_setting(row):
    assert is_read(row), '%s of %s: nothing outside config reads it' % (row.name, row.section)


def test_a_setting_without_a_reader_is_found():
    assert not is_read(settings.of('server')[0]._replace(name='no-such-setting'))
    assert not is_read(settings.TEXT_KEYS[0]._replace(name='NoSuchKey'))


def test_the_rules_of_admission_are_applied():
    """config.acl is a reader of settings only if the worker calls it."""
    assert {('acl', acl.refusal.__name__), ('acl', acl.discovery_refusal.__name__)} <= READS


# -- texts -----------------------------------------------------------------------------------------

NAMES = {row.name for row in settings.TABLE} | {'include'}
ASSIGNED = re.compile(r'(?<![\w.=-])([A-Za-z]+(?:[-_][A-Za-z]+)*) = ')
HYPHENATED = re.compile(r'(?<![\w./:-])[a-z]+(?:-[a-z]+)+(?![\w/:.*-]*[/:])')
#: hyphenated words and names that are not settings
OTHER_WORDS = set(
    'aes-xts-plain apt-get copy-on-write dm-crypt erp-back grub-mkstandalone iscsi-ls log-structured '
    'ceph-iscsi power-cuts tgt-admin read-only reverse-password reverse-username secret-of mon-fri '
    'first-write-snapshot solid-state live-change was-size open-iscsi targetd-iscsi targetd-web '
    'targetd-networks targetd-rbd get-or-create exclusive-lock when-active qemu-nbd qemu-img qemu-utils '
    'targetd-nbd undo-journal distance-line'.split()
)
#: placeholders, lines of live.conf, and a setting of open-iscsi
OTHER_ASSIGNMENTS = {'FILE', 's', 'live-change', 'was-size', 'window_size'}


def texts():
    """(where, text) of the tables' texts, the frames of the manual pages and the code of README."""
    for row in settings.TABLE:
        yield row.name, ' '.join((row.help, row.more))
    for row in commands.TABLE:
        yield row.words, ' '.join((row.help, row.text))
    for name, remedy in tgt_settings.FORMER.items():
        yield name, remedy
    for name in ('targetd.8.in', 'targetd.conf.5.in'):
        yield name, read(os.path.join(ROOT, 'man', name)).replace('\\-', '-')
    for code in re.findall('`[^`\n]+`', read(os.path.join(ROOT, 'README.md'))):
        yield 'README.md', code


def remedies():
    """(where, text) of the string constants that tell the administrator what to write."""
    for path in python_files('targetd'):
        for node in ast.walk(ast.parse(read(path))):
            value = string_of(node)
            if value and 'write ' in value:
                yield os.path.relpath(path, PACKAGE), value


def unknown_names(where, text):
    return [
        '%s: %s' % (where, name)
        for pattern, others in ((HYPHENATED, OTHER_WORDS), (ASSIGNED, OTHER_ASSIGNMENTS))
        for name in pattern.findall(text)
        if name not in NAMES | others
    ]


def test_every_setting_that_a_text_names_exists():
    assert [each for where, text in texts() for each in unknown_names(where, text)] == []


def test_every_setting_that_a_remedy_names_exists():
    names = [
        '%s: %s' % (where, name)
        for where, text in remedies()
        for name in ASSIGNED.findall(text)
        if name not in NAMES | OTHER_ASSIGNMENTS
    ]
    assert names == []


def test_an_unknown_name_is_found():
    assert unknown_names('x', 'see stop-time, or write alua-mode = on') == [
        'x: stop-time',
        'x: alua-mode',
        'x: alua-mode',
    ]
