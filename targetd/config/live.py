"""Merges the changes that targetdctl has made (targetdctl.d) into the sections that were written by hand.

     hand-written sections --+
                             +--merge--> sections for config.check, and complaints about clashes
     sections of live.conf --+

A section of targetdctl.d says with `live-change` what it is: `add` (the section is not in the files
written by hand), `remove`, or `change`. A section that changes another one has

     NAME = VALUE            the value in force; was-NAME: the one that was written by hand at that time
     add-NAME, remove-NAME   items of a list that are in force too, or are not
     unset-NAME = yes        the setting has its default; was-NAME as above

A clash is a hand-written file that has changed since, so that its author may not know of the live
change: neither side is chosen, both places are named. If both say the same there is no clash. A
change of a section with `transient = yes` has this line too, and is dropped without a clash when the section
is removed (the resource agent of Pacemaker writes and removes such sections).

May import base, config.sections, config.check (rows) and config.words.
"""

from targetd.config.sections import (
    Entry,
    combined,
    copied,
    effective_entries,
    folded,
    key_of,
    row_of,
    value_of,
    with_lun_sections,
)
from targetd.config.words import Unusable, split
from targetd.errors import Complaint

ADD, CHANGE, REMOVE = 'add', 'change', 'remove'
PREFIXES = ('add-', 'remove-', 'was-', 'unset-')
#: Settings of a target of which an empty list admits more than a list with one item.
GUARDED = ('incominguser', 'initiator-address', 'initiator-name')


def merge(hand, live, said=None):
    """Returns ([Section], [Complaint]). hand, live: [Section]; said: {(file, line): who made the change,
    and when}."""
    merger = Merger(said or {})
    return list(merger.merged(hand, lasting(hand, live)).values()), merger.complaints


def lasting(hand, live):
    """The [Section] of `live` without the changes of transient sections that are not in `hand` any more."""
    bases, found = combined(hand), []
    for section in live:
        base = bases.get(key_of(section))
        if base is not None and section.sections:
            luns = lasting(with_lun_sections(base).sections, section.sections)
            section = section._replace(sections=luns)
        is_over = base is None and kind_of_change(section) in (CHANGE, REMOVE)
        if not (is_over and is_transient(section)):
            found.append(section)
    return found


def is_transient(section):
    """True if `transient = yes` is written in this section of a target or LUN."""
    try:
        return value_of(section.kind, section.of('transient')) is True
    except Unusable:
        return False


def kind_of_change(section):
    """'add', 'change' or 'remove'; None if it is not written, '' if it is none of them."""
    found = section.of('live-change')
    if not found:
        return None
    word = (found[0].text or '').strip().lower()
    return word if word in (ADD, CHANGE, REMOVE) and len(found) == 1 else ''


class Merger(object):
    """One merge; complaints: what was found."""

    def __init__(self, said):
        self.said = said
        self.complaints = []

    def complain(self, place, text, remedy):
        """A complaint about a line of targetdctl.d."""
        self.complaints.append(Complaint(place.file, place.line, text, remedy))

    def merged(self, hand, live):
        """{key: Section} in their order."""
        result = combined(hand)
        for section in live:
            key = key_of(section)
            if section.kind == 'lun' or section.kind not in ('server', 'portal-group', 'target'):
                result[key + (len(result),)] = section  # config.check complains
            else:
                self._apply(result, key, section, None)
        return result

    # -- sections ----------------------------------------------------------------------------------

    def _apply(self, result, key, section, target):
        """Apply a section of targetdctl.d to {key: Section}. target: the hand-written target that
        contains them, for LUNs."""
        change, base = kind_of_change(section), result.get(key)
        if change == '':
            self.complain(
                section.of('live-change')[0],
                'live-change is not add, change or remove',
                'remove the section and make the change with targetdctl again',
            )
            return
        if change is None:
            change = CHANGE if base is not None else ADD
        if change == ADD:
            self._add(result, key, section, base)
        elif change == REMOVE:
            self._remove(result, key, section, base, target)
        elif base is not None:
            result[key] = self._changed(base, section, target)
        elif section.kind == 'server':
            result[key] = self._changed(section._replace(entries=[], sections=[]), section, None)
        else:
            self.complain(
                section,
                '%s is changed here%s, but no longer written in another file'
                % (described(section), self._said(section)),
                'remove this section, or write the %s again' % section.kind,
            )

    def _said(self, place):
        text = self.said.get((place.file, place.line))
        return ' (%s)' % text if text else ''

    def _add(self, result, key, section, base):
        if base is None:
            plain = [e for e in section.entries if folded(e.name) != 'live-change']
            luns = [
                lun._replace(entries=[e for e in lun.entries if folded(e.name) != 'live-change'])
                for lun in section.sections
            ]
            result[key] = section._replace(entries=plain, sections=luns)
        elif not self._is_same(base, section):
            self.complain(
                section,
                '%s was added here%s, and is written at %s:%s too'
                % (described(section), self._said(section), base.file, base.line),
                'remove one of the two sections',
            )

    def _is_same(self, base, section):
        """True if both sections have the same settings, and the same LUNs."""
        if section.kind == 'target':
            base, section = with_lun_sections(base), with_lun_sections(section)
        names = {folded(e.name) for e in base.entries + section.entries} - {'live-change'}
        if any(not same_value(section.kind, base.of(n), section.of(n)) for n in names):
            return False
        own, other = combined(base.sections), combined(section.sections)
        return set(own) == set(other) and all(self._is_same(own[k], other[k]) for k in own)

    def _remove(self, result, key, section, base, target):
        if base is None:
            return  # it was removed by hand, too
        for name in sorted({folded(entry.name) for entry in section.entries}):
            if name.startswith('was-'):
                self._require_unchanged(base, target, name[4:], [], section, section.of(name))
        del result[key]

    def _changed(self, base, section, target):
        """The Section `base` with the changes of a section of targetdctl.d."""
        result = copied(base)
        if section.kind == 'target' and section.sections:
            result = copied(with_lun_sections(result))
        for name in sorted({own_name(entry) for entry in section.entries} - {'live-change'}):
            result = self._change_setting(base, result, section, target, name)
        if section.kind == 'target':
            luns = combined(result.sections)
            for lun in section.sections:
                self._apply(luns, key_of(lun), lun, base)
            result = result._replace(sections=list(luns.values()))
        elif section.sections:
            result.sections.extend(section.sections)  # config.check complains
        return result

    # -- settings ----------------------------------------------------------------------------------

    def _change_setting(self, base, result, section, target, name):
        written = section.of(name)
        unset, was = section.of('unset-' + name), section.of('was-' + name)
        added, removed = section.of('add-' + name), section.of('remove-' + name)
        row = row_of(section.kind, name)
        if row is None or ((added or removed) and not row.kind.repeatable):
            # config.check complains about them
            result.entries.extend(e for e in section.entries if own_name(e) == name)
            return result
        if written or unset:
            place = (written or unset)[0]
            self._require_unchanged(base, target, name, written, section, was, place)
            new = written or [Entry(name, None, place.file, place.line)]
            rest = [e for e in result.entries if folded(e.name) != name]
            result = result._replace(entries=rest + new)
        if added or removed:
            result = self._change_items(base, result, name, added, removed)
        return result

    def _require_unchanged(self, base, target, name, written, section, was, place=None):
        """Complain if the hand-written value differs from the one that the live change replaced. was: its
        lines, of which a list has one for each item."""
        now = effective_entries(base, target, name)
        before = [each._replace(name=name) for each in was]
        if same_value(section.kind, now, before) or (
            written and same_value(section.kind, now, written)
        ):
            return
        place = place or was[0]
        where = now[0] if now else base
        self.complain(
            place,
            '%s of %s was changed here%s, and has been changed since then at %s:%s too'
            % (name, described(section), self._said(place), where.file, where.line),
            'decide which counts: remove the section here, or restore the other line',
        )

    def _change_items(self, base, result, name, added, removed):
        """Add and remove items of a list."""
        kind = base.kind
        gone, without = self._removed_items(kind, name, removed)
        entries, left = [], []
        for entry in result.entries:
            if folded(entry.name) != name or entry.text is None:
                entries.append(entry)
                continue
            items = [item for item in items_of(kind, entry) if identity(name, item) not in gone]
            left += items
            if items:
                text = row_of(kind, name).kind.show(tuple(items))
                entries.append(entry._replace(text=text))
        had = bool(result.of(name)) or (name == 'incominguser' and result.of('incominguser-file'))
        for entry in added:
            new = [item for item in items_of(kind, entry._replace(name=name)) if item not in left]
            left += new
            if new:
                text = row_of(kind, name).kind.show(tuple(new))
                entries.append(Entry(name, text, entry.file, entry.line))
        result = result._replace(entries=entries, without=tuple(result.without) + without)
        if had and removed and not left and name in GUARDED and not has_others(result, name):
            self.complain(
                removed[0],
                'nothing is left of %s of %s, which would admit more initiators than before%s'
                % (name, described(base), self._said(removed[0])),
                'remove this line, or write the %s that shall be admitted' % name,
            )
        return result

    def _removed_items(self, kind, name, removed):
        """(identities of items, users) that these lines remove."""
        gone = set()
        for entry in removed:
            if name == 'incominguser':
                gone.update(words_of(entry))
            else:
                gone.update(identity(name, i) for i in items_of(kind, entry._replace(name=name)))
        return gone, tuple(sorted(gone)) if name == 'incominguser' else ()


def has_others(section, name):
    """True if an empty list `name` admits nobody, or other accounts are left."""
    if name == 'incominguser':
        return bool(section.of('incominguser-file'))
    other = {'initiator-address': 'initiator-name', 'initiator-name': 'initiator-address'}[name]
    return not section.of(other)


def own_name(entry):
    """The setting that a line of a section of targetdctl.d is about."""
    name = folded(entry.name)
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


def words_of(entry):
    """All words of a value; [] if it cannot be read."""
    try:
        return [word for item in split(entry.text) for word in item]
    except Unusable:
        return []


def identity(name, item):
    """What makes two items of a list the same: of an account its user."""
    return item[0] if name == 'incominguser' else item


def items_of(kind, entry):
    """The items of a list; [] if the value cannot be used (config.check complains about it)."""
    try:
        return list(value_of(kind, [entry]) or ())
    except Unusable:
        return []


def same_value(kind, one, other):
    """True if both lists of entries of one setting have the same value."""
    try:
        return value_of(kind, one) == value_of(kind, other)
    except Unusable:
        return [e.text for e in one] == [e.text for e in other]


def described(section):
    """'target iqn…', 'lun 0', 'portal group 1', '[server]'."""
    if section.kind == 'server':
        return '[server]'
    return '%s %s' % (section.kind.replace('-', ' '), section.argument)
