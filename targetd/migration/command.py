"""The import and the export as commands: reads the files, writes the configuration, and says what to check.

May import base and migration. What is on the disks is looked at here (contents).
"""

import os
from collections import namedtuple

from targetd.errors import EXIT_FAILURE, EXIT_OK
from targetd.migration import contents, own, running_state, running_tgtd, sources, writer
from targetd.migration.imported import NOTE, WRONG, Unreadable

#: The outcome. text: the configuration for standard output, or ''; messages: lines for standard error.
Outcome = namedtuple('Outcome', 'text messages exit_code')


def run_import(paths, kind='', output=None, force=False, compare=False):
    """Import files; returns an Outcome. kind: word of sources.FORMATS, or ''; output: path of the new
    configuration, or None for standard output; force: write it in spite of errors; compare: with the
    running tgtd.

    Nothing is written if there is an error, except with force. The exit code is 0 only if nothing was
    left out.
    """
    try:
        imported = sources.import_files(list(paths), kind or '')
        if compare:
            running_tgtd.compare(imported, running_tgtd.show())
        if imported.source != own.SOURCE:
            contents.confirm(imported)
    except Unreadable as e:
        return Outcome('', [writer.note_text(e.note)], EXIT_FAILURE)
    return _finish(imported, output, force)


def _finish(imported, output, force):
    """Check and write what was imported or exported; returns an Outcome."""
    text = writer.configuration_text(imported)
    writer.check(imported, text, os.path.abspath(output or 'targetd.conf'))
    messages = [writer.note_text(note) for note in imported.notes]
    worst = imported.worst()
    code = EXIT_OK if worst == NOTE else EXIT_FAILURE
    if worst == WRONG and not force:
        messages.append(
            'nothing was written, because of the errors above; correct them, or write the rest with --force'
        )
        return Outcome('', messages, code)
    text = writer.configuration_text(imported)
    if output is None:
        return Outcome(text, messages, code)
    try:
        _write(output, text, force)
    except OSError as e:
        exists = isinstance(e, FileExistsError)
        remedy = 'write another --output, or overwrite it with --force' if exists else e.strerror
        return Outcome('', messages + ['%s cannot be written: %s' % (output, remedy)], EXIT_FAILURE)
    messages.append('%s was written; check it with: targetd -t -c %s' % (output, output))
    return Outcome('', messages, code)


def run_export(path, output=None, force=False, plan=(), alua=(), units=None):
    """Write the configuration in the file `path`, and what it includes, as one file; returns an
    Outcome. plan, alua, units: rows of the running server's replies to `reload --plan`, `show alua` and,
    if the derived identities are wanted, `show units`; none if no server is asked."""
    try:
        exported = own.parse(path)
    except Unreadable as e:
        return Outcome('', [writer.note_text(e.note)], EXIT_FAILURE)
    running_state.add_plan(exported, plan)
    running_state.add_alua(exported, alua)
    running_state.add_identities(exported, units or ())
    return _finish(exported, output, force)


def _write(path, text, overwrite):
    """Write the configuration, which contains secrets, readable by its owner only. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if overwrite else os.O_EXCL)
    descriptor = os.open(path, flags, 0o600)
    with open(descriptor, 'w', encoding='utf-8') as f:
        f.write(text)
