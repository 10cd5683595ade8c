"""Sections of a configuration as they are written: values in, values and text out.

May import config.check (its table of settings), config.words and iscsi.names. The loader makes them of
files, config.check makes a Configuration of them, and config.live changes them in between.
"""

import os
from collections import OrderedDict, namedtuple

from targetd.config import account_files
from targetd.config.check import KNOWN, STORES
from targetd.config.words import Unusable, join, split
from targetd.iscsi import names

#: One `name = text`. name: as written; text None: the default, whatever the target says for its LUNs.
Entry = namedtuple('Entry', 'name text file line')


class Section(namedtuple('Section', 'kind argument file line entries sections without')):
    """One section. kind, argument: of '[kind argument]'; entries: [Entry]; sections: the nested
    [Section]; without: users of incominguser-file that are not accounts of this target."""

    __slots__ = ()

    def __new__(cls, kind, argument, file, line, entries, sections, without=()):
        return super(Section, cls).__new__(
            cls, kind, argument, file, line, entries, sections, without
        )

    def of(self, name):
        """The entries of this setting."""
        return [entry for entry in self.entries if folded(entry.name) == folded(name)]


ROWS = {kind: {row.name.lower(): row for row in rows} for kind, rows in KNOWN.items()}


def folded(name):
    """The name of a setting as it is compared."""
    return name.lower().replace('_', '-')


def row_of(kind, name):
    """The row of a setting in this kind of section, or None."""
    return ROWS.get(kind, {}).get(folded(name))


def key_of(section):
    """What makes two sections the same: (kind, argument in its canonical form)."""
    argument = section.argument
    if section.kind == 'target':
        argument = names.fold(argument)
    elif section.kind == 'server':
        argument = ''
    elif argument.isdigit():
        argument = int(argument)
    return section.kind, argument


def value_of(kind, entries):
    """The value of the entries of one setting, as config.check reads it; None if there is no entry, or
    only the default is meant. Raises Unusable."""
    row, value = None, None
    for entry in entries:
        if entry.text is None:
            continue
        row = row or row_of(kind, entry.name)
        if row is None:
            raise Unusable('not a setting')
        new = row.kind.resolve(row.kind.read(split(entry.text)), os.path.dirname(entry.file))
        value = value + new if value is not None and row.kind.repeatable else new
    return value


def effective_entries(section, target, name):
    """The entries of a setting of a section; a LUN has those of its target as defaults."""
    own = section.of(name)
    if own or target is None or not getattr(row_of('lun', name), 'shared', False):
        return own
    return target.of(name)


def shown_entries(kind, entries):
    """[(name, text)] of these entries, with absolute paths; lists as one line for each item."""
    shown = []
    for entry in entries:
        row = row_of(kind, entry.name)
        try:
            value = value_of(kind, [entry])
        except Unusable:
            value = None
        if row is None or value is None:
            shown.append((entry.name, entry.text))
        elif row.kind.repeatable and not isinstance(value, str) and hasattr(row.kind, 'written'):
            shown += [(row.name, row.kind.show((item,))) for item in value]
        else:
            shown.append((row.name, row.kind.show(value)))
    return [each for each in shown if each[1] is not None]


def with_lun_sections(target):
    """The target with a section [[lun N]] for each LUN of the short form `backing-store = A, B`."""
    short = [entry for name in STORES for entry in target.of(name)]
    if not short or len({folded(entry.name) for entry in short}) > 1:
        return target
    luns = []
    for entry in short:
        try:
            items = split(entry.text)
        except Unusable:
            return target
        for item in items:
            luns.append(
                Section(
                    'lun',
                    str(len(luns)),
                    entry.file,
                    entry.line,
                    [entry._replace(text=join([item]))],
                    [],
                )
            )
    rest = [entry for entry in target.entries if entry not in short]
    return target._replace(entries=rest, sections=luns + list(target.sections))


def combined(sections):
    """{key: Section} in their order, with copies of the lists: all [server] sections as one. A section
    that is defined twice has a further key, so that config.check sees both."""
    found = OrderedDict()
    for section in sections:
        section = section._replace(
            entries=list(section.entries), sections=[copied(each) for each in section.sections]
        )
        key = key_of(section)
        if key in found and section.kind == 'server':
            found[key].entries.extend(section.entries)
            found[key].sections.extend(section.sections)
        elif key in found:
            found[key + (len(found),)] = section
        else:
            found[key] = section
    return found


def copied(section):
    """A copy whose lists can be changed."""
    return section._replace(
        entries=list(section.entries), sections=[copied(each) for each in section.sections]
    )


def flattened(sections):
    """The [Section] with the accounts of files as incominguser, so that each can be changed."""
    return [_flat(section) for section in sections]


def _flat(section):
    if section.kind != 'target' or not section.of('incominguser-file'):
        return section._replace(without=())
    entries, kind = [], row_of('target', 'incominguser').kind
    for entry in section.entries:
        if entry not in section.of('incominguser-file') or entry.text is None:
            entries.append(entry)
            continue
        try:
            paths = value_of('target', [entry])
        except Unusable:
            paths = ()
        for path in paths:
            for account, here in account_files.read_file(path, entry)[0] or ():
                if account[0] not in section.without:
                    text = kind.show((account,))
                    entries.append(here._replace(name='incominguser', text=text))
    return section._replace(entries=entries, without=())


def heading(section, depth=0):
    """'[target iqn…]' or '[[lun 0]]'."""
    text = ('%s %s' % (section.kind, section.argument)).strip()
    return '[' * (depth + 1) + text + ']' * (depth + 1)


def text_of(sections):
    """The sections as one file, with absolute paths."""
    lines = []
    for section in sections:
        lines += ['', heading(section)]
        lines += ['%s = %s' % pair for pair in shown_entries(section.kind, section.entries)]
        for lun in section.sections:
            lines.append('  ' + heading(lun, 1))
            lines += ['  %s = %s' % pair for pair in shown_entries(lun.kind, lun.entries)]
    return '\n'.join(lines[1:]) + '\n'
