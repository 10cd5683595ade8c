"""The file of targetdctl.d that makes wanted sections of the hand-written ones: what config.live merges.

     hand-written sections, wanted sections --difference--> sections --live_text--> text of live.conf

    # 2026-11-28 23:10:02 root: lun resize iqn.2026-11.com.example:erp/0 20G
    [target iqn.2026-11.com.example:erp]
    live-change = change
      [[lun 0]]
      live-change = change
      size = 20G
      was-size = 10G

Every line keeps the comment of the change that made it. A change back leaves nothing, whether the former
value was written by hand or is the default. May import config.live, config.sections, config.settings,
config.model and config.words.
"""

import re

from targetd.config import model, settings
from targetd.config.live import ADD, CHANGE, REMOVE, identity, is_transient, items_of, same_value
from targetd.config.sections import (
    Entry,
    Section,
    combined,
    effective_entries,
    folded,
    heading,
    key_of,
    row_of,
    shown_entries,
    value_of,
    with_lun_sections,
)
from targetd.config.words import Unusable, join

COMMENT = re.compile(r'\s*# ([0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2} [^:]+: .*)$')
HEAD = (
    '# Written by targetdctl: the changes of the running server. targetd reads this file after the main\n'
    '# file, and "targetdctl history" lists the changes. To make them part of the files written by hand:\n'
    '# targetdctl export. See LIVE CHANGES in targetd.conf(5).\n'
)
#: Lists whose items are added and removed one by one, so that the rest stays as it is written by hand.
ITEMWISE = ('initiator-address', 'initiator-name', 'incominguser', 'portal')


def difference(hand, wanted):
    """The sections of targetdctl.d, [Section], that make `wanted` of `hand` (both [Section])."""
    old, new = combined(hand), combined(wanted)
    found = []
    for key, section in new.items():
        if key in old:
            is_same = old[key] == section  # of a thousand sections most are
            changed = None if is_same else _changed(old[key], section, None, None)
            found += [changed] if changed else []
        elif section.kind == 'server':
            # it need not be written by hand, and may be written later
            changed = _changed(section._replace(entries=[], sections=[]), section, None, None)
            found += [changed] if changed else []
        elif not _is_default_group(section, set(old) | set(new)):
            found.append(_added(section))
    return found + [_removed(old[key], None) for key in old if key not in new]


def _is_default_group(section, others):
    """True if this is the portal group that is there without any section of a portal group. others: keys of
    all sections."""
    if section.kind != 'portal-group' or sum(key[0] == 'portal-group' for key in others) != 1:
        return False
    if {folded(entry.name) for entry in section.entries} != {'portal'}:
        return False
    try:
        portals = value_of(section.kind, section.of('portal'))
    except Unusable:
        return False
    return model.PortalGroup(key_of(section)[1], portals) == model.DEFAULT_PORTAL_GROUP


def _made(section, change, pairs, sections=()):
    entries = [Entry('live-change', change, None, None)]
    entries += [Entry(name, text, None, None) for name, text in pairs]
    return Section(section.kind, section.argument, None, None, entries, list(sections))


def _added(section):
    if section.kind == 'target':
        section = with_lun_sections(section)
    luns = [_added(lun) for lun in section.sections]
    return _made(section, ADD, shown_entries(section.kind, section.entries), luns)


def _removed(section, target):
    """The removal of a section, with the store of a LUN: another LUN of that number is a clash."""
    pairs = []
    if section.kind == 'lun':
        for name in ('backing-store', 'direct-store'):
            now = effective_entries(section, target, name)
            pairs += [('was-' + name, text) for name, text in shown_entries('lun', now)]
    return _made(section, REMOVE, pairs + _mark(section))


def _mark(section):
    """[(name, text)] by which config.live knows that the changed section may go."""
    return shown_entries(section.kind, section.of('transient')) if is_transient(section) else []


def _changed(old, new, old_target, new_target):
    """The Section of a change; None if nothing differs."""
    luns = []
    if new.kind == 'target' and _luns_differ(old, new):
        old, new = with_lun_sections(old), with_lun_sections(new)
        before, after = combined(old.sections), combined(new.sections)
        for key, lun in after.items():
            change = _changed(before[key], lun, old, new) if key in before else _added(lun)
            luns += [change] if change else []
        luns += [_removed(before[key], old) for key in before if key not in after]
    pairs = []
    for name in _names(old, new):
        pairs += _setting(old, new, name, old_target, new_target)
    if not (pairs or luns):
        return None
    if not any(name == 'transient' for name, _ in pairs):
        pairs = pairs + _mark(old)
    return _made(new, CHANGE, pairs, luns)


def _luns_differ(old, new):
    return old.sections != new.sections or any(
        not same_value('target', old.of(name), new.of(name))
        for name in ('backing-store', 'direct-store')
    )


def _names(old, new):
    """The settings that one of the two sections has, in the order of the new one."""
    found = []
    for entry in new.entries + old.entries:
        if folded(entry.name) not in found:
            found.append(folded(entry.name))
    return found


def _setting(old, new, name, old_target, new_target):
    """[(name, text)] of the change of one setting."""
    kind, row = new.kind, row_of(new.kind, name)
    before = effective_entries(old, old_target, name)
    after = effective_entries(new, new_target, name)
    if row is None or same_value(kind, before, after):
        return []
    if not before or not after:
        # what is not written has its default, unless `identity` has another one
        of_identity = old.of('identity') or new.of('identity')
        if not of_identity and _is_default(row, kind, before or after):
            return []
    if name in ITEMWISE and not any(entry.text is None for entry in new.of(name)):
        return _items(kind, name, before, after)
    was = [('was-' + key, text) for key, text in shown_entries(kind, before)]
    if any(entry.text is not None for entry in new.of(name)):
        return shown_entries(kind, new.of(name)) + was
    return [('unset-' + name, 'yes')] + was


def _is_default(row, kind, entries):
    """True if these entries have the same meaning as none. Of a list, and of a parameter of the login, none
    may have another meaning than its default."""
    if row.default is None or row.kind.repeatable or row in settings.TEXT_KEYS:
        return False
    try:
        return value_of(kind, entries) == row.default
    except Unusable:
        return False


def _items(kind, name, before, after):
    """The added and removed items of a list."""
    row = row_of(kind, name)
    old = [item for entry in before for item in items_of(kind, entry)]
    new = [item for entry in after for item in items_of(kind, entry)]
    pairs = []
    for item in old:
        if item not in new:
            text = (
                join([[identity(name, item)]]) if name == 'incominguser' else row.kind.show((item,))
            )
            pairs.append(('remove-' + name, text))
    return pairs + [('add-' + name, row.kind.show((item,))) for item in new if item not in old]


# -- text ------------------------------------------------------------------------------------------


def comments_of(lines):
    """{line number: comment that is valid there} of the lines of live.conf."""
    found, comment = {}, None
    for number, line in enumerate(lines, 1):
        match = COMMENT.match(line)
        comment = match.group(1) if match else comment
        if comment is not None:
            found[number] = comment
    return found


def live_text(sections, comment, old=(), comments=None):
    """The text of live.conf. comment: of the change that is made now; old, comments: the sections of the
    present file, and comments_of() it."""
    known = {}
    for section in old:
        _note_lines(known, (), section, comments or {})
    lines, state = [], [None]
    for section in sections:
        lines.append('')
        _write(lines, (), section, known, comment, state, 0)
    return HEAD + '\n'.join(lines) + ('\n' if lines else '')


def _path(path, section):
    return path + ((section.kind, str(section.argument).lower()),)


def _note_lines(known, path, section, comments):
    path = _path(path, section)
    for entry in section.entries:
        known[path, folded(entry.name), entry.text] = comments.get(entry.line)
    for nested in section.sections:
        _note_lines(known, path, nested, comments)


def _write(lines, path, section, known, comment, state, depth):
    path, indent = _path(path, section), '  ' * depth
    said = [
        known.get((path, folded(entry.name), entry.text)) or comment for entry in section.entries
    ]

    def say(text):
        if text != state[0]:
            lines.append('%s# %s' % (indent, text))
            state[0] = text

    say(said[0])
    lines.append(indent + heading(section, depth))
    for entry, text in zip(section.entries, said):
        say(text)
        lines.append('%s%s = %s' % (indent, entry.name, entry.text))
    for nested in section.sections:
        _write(lines, path, nested, known, comment, state, depth + 1)
