"""Writes what was imported as a configuration of targetd, and its notes as text.

May import config.loader and migration.imported.
"""

from targetd.config import loader
from targetd.errors import ConfigError
from targetd.migration.imported import NOTE, Place


def configuration_text(imported):
    """The text of targetd.conf for an Imported."""
    lines = ['# Written by targetdctl from %s (%s).' % (', '.join(imported.files), imported.source)]
    if imported.notes:
        lines.append('# Check before you serve it:')
        lines += ['#   ' + note_text(note) for note in imported.notes]
    if imported.server.settings:
        lines += ['', '[server]'] + _settings(imported.server, '')
    for tag, portals in imported.groups.items():
        lines += ['', '[portal-group %d]' % tag, 'portal = ' + ', '.join(portals)]
        if tag in imported.group_settings:
            lines += _settings(imported.group_settings[tag], '')
    for target in imported.targets:
        lines += ['', '[target %s]' % target.name] + _settings(target, '')
        for lun in sorted(target.luns, key=lambda lun: lun.number):
            lines += ['  [[lun %d]]' % lun.number] + _settings(lun, '  ')
    return '\n'.join(lines) + '\n'


def _settings(section, indent):
    return ['%s%s = %s' % (indent, setting, text) for setting, text in section.settings]


def note_text(note):
    """A note in one line: place, level, text and remedy."""
    place = ''
    if note.place is not None:
        place = note.place.file + (':%d' % note.place.line if note.place.line else '') + ': '
    level = '' if note.level == NOTE else note.level + ': '
    text = ' '.join((note.text + ('; ' + note.remedy if note.remedy else '')).split())
    return place + level + text


def check(imported, text, path):
    """Record what targetd would refuse in the text, as errors. path: where the text will be, for
    relative paths."""
    try:
        loader.load_text(path, text)
    except ConfigError as e:
        lines = text.split('\n')
        for complaint in e.complaints:
            line = lines[complaint.line - 1].strip() if complaint.line else ''
            if 'user' in line.partition('=')[0]:
                line = line.partition('=')[0].strip()
            imported.wrong(
                Place(path, complaint.line),
                'targetd would refuse "%s": %s' % (line, complaint.text),
                complaint.remedy,
            )
