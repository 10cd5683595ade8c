"""Loads a Configuration from files: reads them, follows includes and parses sections.

May import base and config; the only importer of configobj. configobj parses sections, nesting and
`name = value` lines. config.words parses the values, because secrets may contain any character.
configobj neither reports the line of a setting nor accepts a repeated setting or heading. Therefore
each name is passed to it with its line number in front (`[target x]` on line 7 as `[7 target x]`):
this makes every name unique and returns the line number. config.check, which knows both places,
decides whether a repetition is an error.
"""

import glob
import os
import re
from collections import namedtuple

import configobj

from targetd.config import check, live_difference, live_files, pasted, settings
from targetd.config.kinds import nearest
from targetd.config.live import lasting, merge
from targetd.config.sections import Entry, Section, flattened
from targetd.config.words import Unusable, shown_name, split
from targetd.errors import Complaint, ConfigError

TRIPLE = re.compile(r'''[^=]*=\s*("{3}|'{3})''')
HEADING = re.compile(r'\s*((?:\[\s*)+)(.*?)((?:\s*\])+)\s*(?:#.*)?$', re.DOTALL)
NUMBERED = re.compile(r'([0-9]+)(?:\s+(.*))?$', re.DOTALL)


#: What was loaded. configuration: the Configuration; sections: [Section] after the merge of live changes;
#: live: the text of live.conf, with an edit the new one; is_edited: True if the edit changes it.
Loaded = namedtuple('Loaded', 'configuration sections live is_edited')


def load(path):
    """The Configuration of this file, of the files that it includes, and of its live changes. Raises
    ConfigError with all complaints."""
    return load_all(path).configuration


def load_all(path, edit=None, comment=''):
    """The Loaded of this file. edit: function of the [Section] in force that returns those that are
    wanted; what it changes is in the text of live.conf that is returned, with this comment, and not yet
    in the file. With a comment, changes of transient sections that are gone are taken out in the same way.
    Raises ConfigError, TargetdError."""
    path = os.path.abspath(path)
    reading = Reading()
    reading.include(path, None)
    base, live = _live_files(reading, path)
    before = live.text
    if edit is None and comment and lasting(base, live.sections) != live.sections:
        edit = list
    if edit is not None:
        live = _edited(reading, base, live, edit, comment)
    merged, clashes = base, []
    if live.sections:
        merged, clashes = merge(base, live.sections, live.said)
    if live.path not in reading.files and live.sections:
        reading.files.append(live.path)
    configuration, complaints = check.build(merged, reading.files)
    _require_valid(reading, clashes + complaints)
    return Loaded(configuration, merged, live.text, live.text != before)


def _edited(reading, base, live, edit, comment):
    """The _LiveFile after an edit. base: [Section] without those of live.conf; live: its _LiveFile now."""
    merged, clashes = merge(base, live.sections, live.said)
    _require_valid(reading, clashes)
    wanted = edit(flattened(merged))
    sections = live_difference.difference(flattened(base), wanted)
    text = live_difference.live_text(sections, comment, live.sections, live.comments)
    new = _LiveFile(live.path, text)
    reading.complaints += new.complaints
    return new


def _require_valid(reading, complaints):
    if reading.complaints or complaints:
        raise ConfigError(_in_file_order(reading.complaints + complaints, reading.files))


def _live_files(reading, path):
    """([Section] without those of live.conf, the _LiveFile of live.conf)."""
    paths, complaints = live_files.paths_of(path)
    reading.complaints += complaints
    base, present = reading.sections, _LiveFile(live_files.live_file_of(path), '')
    for each in paths:
        try:
            with open(each, 'rb') as f:
                content = f.read()
        except OSError as e:
            reading.complaints.append(
                Complaint(each, None, 'cannot be read: %s' % e.strerror, 'correct its permissions')
            )
            continue
        reading.files.append(each)
        one = _LiveFile(each, content)
        reading.complaints += one.complaints
        if os.path.basename(each) == live_files.LIVE_FILE:
            present = one
        else:
            base, clashes = merge(base, one.sections, one.said)
            reading.complaints += clashes
    return base, present


class _LiveFile(object):
    """A file of targetdctl.d, as it was read, or as it is going to be written."""

    def __init__(self, path, content):
        reading = Reading()
        self.path = path
        is_read = isinstance(content, bytes)
        lines = reading.lines_of(path, content) if is_read else content.split('\n')
        self.text = '\n'.join(lines)
        reading.parse(path, lines)
        self.sections, self.complaints = reading.sections, reading.complaints
        self.comments = live_difference.comments_of(lines)
        self.said = {(path, number): text for number, text in self.comments.items()}


def load_text(path, text):
    """The Configuration that a file of this path with this text would be. Raises ConfigError."""
    reading = Reading()
    reading.read_text(path, text)
    configuration, complaints = check.build(reading.sections, reading.files)
    _require_valid(reading, complaints)
    return configuration


def sections_of_text(path, text):
    """The [Section] of a text without includes. Raises ConfigError."""
    reading = Reading()
    reading.read_text(path, text)
    _require_valid(reading, [])
    return reading.sections


def server_paths(path):
    """(pid-file, control-socket) of this configuration, which may contain errors: the defaults where a
    value cannot be used."""
    reading = Reading()
    reading.include(os.path.abspath(path), None)
    sections = [section for section in reading.sections if section.kind == 'server']
    server = check.build(sections, reading.files)[0].server
    return server.pid_file, server.control_socket


def _in_file_order(complaints, files):
    order = dict((name, number) for number, name in enumerate(files))
    unique = []
    for complaint in complaints:
        if complaint not in unique:
            unique.append(complaint)
    return sorted(unique, key=lambda c: (order.get(c.file, len(order)), c.line or 0))


class Reading(object):
    """The result of reading files: `sections` ([Section]), `files` (paths in the order of reading)
    and `complaints`."""

    def __init__(self):
        self.sections = []
        self.files = []
        self.complaints = []
        self._open = []  # real paths of the files that are being read, outermost first
        self._seen = {}  # real path: Entry that included it, or None

    def include(self, path, entry):
        """Read one file. entry: the Entry of the include, or None for the main file."""
        real = os.path.realpath(path)
        if real in self._open:
            return self._complain(
                entry, 'includes %s, which includes this file' % path, 'remove one of the includes'
            )
        if real in self._seen:
            first = self._seen[real]
            if first is None:
                return self._complain(
                    entry, '%s is the main configuration file' % path, 'remove the include'
                )
            return self._complain(
                entry,
                '%s is already included at %s:%d' % (path, first.file, first.line),
                'remove one of the two',
            )
        try:
            with open(path, 'rb') as f:
                content = f.read()
        except OSError as e:
            return self._unreadable(path, entry, e)
        self._seen[real] = entry
        self._open.append(real)
        self.files.append(path)
        lines = self.lines_of(path, content)
        if pasted.is_of_other_targetd('\n'.join(lines)):
            complaint = Complaint(path, None, pasted.OTHER_TARGETD, pasted.OTHER_REMEDY)
            self.complaints.append(complaint)
        else:
            self.parse(path, lines)
        self._open.pop()

    def read_text(self, path, text):
        """Read a main file that is not on a disk yet."""
        self.files.append(path)
        self.parse(path, text.split('\n'))

    def _complain(self, entry, text, remedy=''):
        self.complaints.append(Complaint(entry.file, entry.line, text, remedy))

    def _unreadable(self, path, entry, error):
        text = '%s cannot be read: %s' % (path, error.strerror)
        if entry:
            self._complain(
                entry, text, 'correct the path; only wildcards (*.conf) may match no file'
            )
        else:
            self.complaints.append(
                Complaint(
                    path,
                    None,
                    'cannot be read: %s' % error.strerror,
                    'pass the path of the configuration with -c, or try targetd --demo',
                )
            )

    def lines_of(self, path, content):
        """The lines of a file; complains if it is not UTF-8 text."""
        try:
            text = content.decode('utf-8')
        except UnicodeDecodeError as e:
            line = content.count(b'\n', 0, e.start) + 1
            self.complaints.append(
                Complaint(path, line, 'this line is not UTF-8', 'save the file as UTF-8')
            )
            text = content.decode('utf-8', 'replace')
        if '\0' in text:
            self.complaints.append(
                Complaint(
                    path,
                    text.count('\n', 0, text.index('\0')) + 1,
                    'this line contains a NUL character',
                    'the configuration is a text file',
                )
            )
        lines = text[text.startswith('\ufeff') :].split('\n')
        return [line[:-1] if line.endswith('\r') else line for line in lines]

    # -- configobj ---------------------------------------------------------------------------------

    def parse(self, path, lines):
        """Add the sections of these lines."""
        try:
            root = configobj.ConfigObj(
                self._numbered(path, lines), interpolation=False, list_values=False, _inspec=True
            )
        except (configobj.ConfigObjError, SyntaxError) as e:
            root = e.config
            for error in e.errors:
                self.complaints.append(_structural(path, error, lines))
        for entry in self._entries(path, root):
            if entry.name.lower() == 'include':
                self._include_all(entry)
            else:
                self._complain(
                    entry,
                    '%s is before the first section' % shown_name(entry.name),
                    _home_of(entry.name),
                )
        for section in self._sections(path, root):
            for entry in [e for e in section.entries if e.name.lower() == 'include']:
                self._complain(
                    entry,
                    'there is an include in a section',
                    'move it before the first section of the file',
                )
                section.entries.remove(entry)
            self.sections.append(section)

    def _numbered(self, path, lines):
        """The lines for configobj, with their number before the name.

        Comments, and lines below a heading that cannot be used, are replaced by empty lines.
        """
        # skipped: nesting depth of the unusable heading above this line, or None
        numbered, depth, skipped = [], 0, None
        for number, line in enumerate(lines, 1):
            stripped, result = line.strip(), ''
            if stripped.startswith('['):
                opened, name, flaw = _heading(line, depth)
                if skipped is not None and opened > skipped:
                    pass
                elif flaw:
                    self.complaints.append(
                        Complaint(path, number, 'this line %s' % flaw[0], flaw[1])
                    )
                    skipped = opened
                else:
                    skipped, depth, result = (
                        None,
                        opened,
                        '[' * opened + '%d %s' % (number, name) + ']' * opened,
                    )
            elif TRIPLE.match(line) and skipped is None:
                self.complaints.append(
                    Complaint(
                        path,
                        number,
                        'a value begins with three quotes',
                        'a value is one line; enclose a word that begins with one kind of quote in '
                        'the other kind',
                    )
                )
            elif stripped and not stripped.startswith('#') and skipped is None:
                result = '%d %s' % (number, line.lstrip())
            numbered.append(result)
        return numbered

    def _entries(self, path, section):
        entries = []
        for key in section.scalars:
            number, name = _take_number(key)
            if not name:
                self.complaints.append(
                    Complaint(path, number, 'the name before the equals sign is missing', '')
                )
            else:
                entries.append(Entry(name, section[key], path, number))
        return entries

    def _sections(self, path, parent):
        sections = []
        for key in parent.sections:
            number, heading = _take_number(key)
            try:
                words = [word for item in split(heading) for word in item] or ['']
            except Unusable as e:
                self.complaints.append(Complaint(path, number, e.text, e.remedy))
                continue
            sections.append(
                Section(
                    words[0].lower().replace('_', '-'),
                    ' '.join(words[1:]),
                    path,
                    number,
                    self._entries(path, parent[key]),
                    self._sections(path, parent[key]),
                )
            )
        return sections

    # -- include -----------------------------------------------------------------------------------

    def _include_all(self, entry):
        try:
            patterns = [word for item in split(entry.text) for word in item]
        except Unusable as e:
            return self._complain(entry, e.text, e.remedy)
        if not patterns:
            self._complain(entry, 'include has no path', 'write a path; wildcards are allowed')
        for pattern in patterns:
            absolute = os.path.join(os.path.dirname(entry.file), pattern)
            found = sorted(glob.glob(absolute)) if glob.has_magic(absolute) else [absolute]
            for path in found:
                self.include(path, entry)


def _heading(line, depth):
    """(number of opening brackets, name, None or (flaw, remedy)) of a heading line.

    depth: the depth of the heading above it.
    """
    match = HEADING.match(line)
    if not match:
        opened = len(line) - len(line.lstrip(' \t['))
        return (
            line[:opened].count('['),
            '',
            ('is a heading that is not closed', 'write as many ] as ['),
        )
    opened, closed = match.group(1).count('['), match.group(3).count(']')
    if opened != closed:
        return (
            opened,
            '',
            ('is a heading with %d [ and %d ]' % (opened, closed), 'write as many ] as ['),
        )
    if opened > depth + 1:
        return (
            opened,
            '',
            ('is nested too deeply here', 'write [target NAME], and below it [[lun N]]'),
        )
    return opened, match.group(2), None


def _take_number(key):
    number, name = NUMBERED.match(key).groups()
    return int(number), (name or '').strip()


def _home_of(name):
    """The remedy for a setting before the first section: the section in which to write it."""
    homes = []
    for row in settings.TABLE:
        if row.name.lower() == name.lower().replace('_', '-'):
            homes.append(settings.HEADINGS[row.section])
    if homes:
        return 'write it in a section %s' % ' or '.join(homes)
    near = nearest(name, ['include'])
    if not near and pasted.remedy_of(name):
        return pasted.remedy_of(name)
    return 'did you mean %s?' % near if near else 'only include is allowed there'


def _structural(path, error, lines):
    """The Complaint about an error that configobj reported."""
    line = lines[error.line_number - 1].strip()
    if line.startswith(';'):
        text, remedy = None, 'write comments with #'
    else:
        text, remedy = pasted.without_equals(line)
    text = text or 'this line is neither a [section] nor a setting with an equals sign'
    return Complaint(path, error.line_number, text, remedy)
