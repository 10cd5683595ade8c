"""Reads files in the grammar of Perl's Config::General, which tgt-admin uses: comments, joined lines,
here-documents, includes and merged blocks.

May import migration.files and migration.imported.
"""

import os
import re
from collections import namedtuple

from targetd.migration import files
from targetd.migration.imported import Place, Unreadable

#: One `key value` line, or one block. block: [Entry] of a block, else None.
Entry = namedtuple('Entry', 'key value place block')


class Reading(object):
    """Reads a file and what it includes into `entries`, a tree of Entry."""

    def __init__(self):
        self.entries = []
        self.paths = []
        self.missing = []  # [(pattern, Place)]
        self._stack = [(None, None, self.entries)]  # (block, Place, its entries)

    def read(self, path, text=None):
        """Read one file, and what it includes, in place."""
        if path in self.paths and text is None:
            return
        self.paths.append(path)
        lines = (files.read_file(path) if text is None else text).split('\n')
        for number, line in _logical_lines(lines):
            self._line(line, Place(path, number))

    def finish(self):
        """Check that every block is closed."""
        block, place, _ = self._stack[-1]
        if block is not None:
            raise Unreadable(
                place,
                'the block <%s> is never closed' % block,
                'copy the whole file, or write </...>',
            )

    def _line(self, line, place):
        include = re.match(r'(?:<<\s*)?include(?:optional)?\s+(.+?)(?:>>)?$', line, re.IGNORECASE)
        if include and self._stack[-1][0] is None:
            return self._include(include.group(1).strip().strip('"\''), place)
        if line.startswith('</'):
            block, _, _ = self._stack[-1]
            name = line[2:].rstrip('> ')
            if block is None or block.split()[0].strip('"') != name.split()[0]:
                raise Unreadable(
                    place, '%s has no start' % line, 'write <%s ...> before it, or remove it' % name
                )
            self._stack.pop()
        elif line.startswith('<') and line.endswith('>'):
            self._open(line[1:-1].strip(), place)
        else:
            key, value = (re.split(r'\s*=\s*|\s+', line, maxsplit=1) + [''])[:2]
            if value[:1] == value[-1:] == '"' and len(value) > 1:
                value = value[1:-1]
            self._stack[-1][2].append(Entry(key, value, place, None))

    def _open(self, inner, place):
        match = re.match(r'(?:"([^"]+)"|(\S+))(?:\s+(?:"([^"]+)"|(.*)))?$', inner)
        key, name = match.group(1) or match.group(2), match.group(3) or match.group(4) or ''
        siblings = self._stack[-1][2]
        same = [each for each in siblings if each.block is not None and each[:2] == (key, name)]
        entry = same[0] if same else Entry(key, name, place, [])
        if not same:
            siblings.append(entry)
        self._stack.append((inner, place, entry.block))

    def _include(self, pattern, place):
        found = files.included(pattern, os.path.dirname(place.file))
        if not found and not any(character in pattern for character in '*?['):
            self.missing.append((pattern, place))
        for path in found:
            self.read(path)


def _logical_lines(lines):
    """[(number, text)] of the lines that say something: without comments, joined at backslashes, and
    with a here-document as the value of its key."""
    found, joined, start, comment, document = [], '', 0, False, None
    for number, line in enumerate(lines, 1):
        if document is not None:
            key, end, parts, at = document
            if line.strip() == end:
                found.append((at, '%s = %s' % (key, ' '.join(parts))))
                document = None
            else:
                parts.append(line)
            continue
        line, comment = _without_c_comment(line, comment)
        line = re.sub(r'(?<!\\)#.*$', '', line).replace('\\#', '#')
        if re.search(r'(?<!\\)\\$', line):
            joined, start = joined + line[:-1].lstrip(), start or number
            continue
        here = re.match(r'\s*(\S+?)\s*(?:=|\s)\s*<<\s*(\S+)\s*$', line)
        if here and here.group(1).lower() != 'include':
            document = (here.group(1), here.group(2), [], number)
            continue
        text = (joined + line.lstrip() if joined else line).strip()
        if text:
            found.append((start or number, text))
        joined, start = '', 0
    return found


def _without_c_comment(line, inside):
    """(the line without its /* comment */, True if a comment continues on the next line)."""
    if inside:
        before, mark, behind = line.partition('*/')
        return (behind, False) if mark else ('', True)
    line = re.sub(r'\s*/\*.*\*/\s*', '', line)
    return ('', True) if re.match(r'\s*/\*', line) else (line, False)
