"""The history: every configuration that was accepted, and what was done to the contents of LUNs (snapshots),
as files in state-dir/history.

    000012.conf    first line: # {"when": …, "who": "root", "what": "lun add …", "steps": […]}
                   then the whole configuration, with includes, accounts and live changes
    000003.note    {"when": …, "who": "root", "what": "restore …", "steps": […]}: no configuration

The files contain secrets and are readable by their owner only. At most ENTRIES configurations are kept, and
at most BYTES of them, and NOTES notes, so that daily snapshots do not displace configurations. All functions
but those of History run in a child process (processes.jobs), because state-dir may not answer.
"""

import json
import os
import re

from targetd import log
from targetd.config import loader, model
from targetd.config.edits import ACCOUNTS
from targetd.config.words import join, split
from targetd.errors import TargetdError
from targetd.master.state.state_directory import require_known_format, write_durably

VERSION = 1
ENTRIES = 100
BYTES = 32 << 20
MOST_STEPS = 50  # of one entry
NOTES = 100
NAME = re.compile('([0-9]{6,})\\.conf$')
NOTE = re.compile('([0-9]{6,})\\.note$')


class History(object):
    """directory: of the history; jobs: Jobs."""

    def __init__(self, directory, jobs):
        self.directory = directory
        self.jobs = jobs

    def record(self, whole, when, who, what):
        """Keep a configuration. whole: Vault with its text, which is closed. A failure is only logged."""
        directory = self.directory

        def recorded(result):
            if result.why:
                log.warning('the history of the configuration is not written: %s', result.why)

        self.jobs.submit_job(
            ('history', directory),
            lambda: (
                add_entry(directory, whole.content().decode('utf-8', 'replace'), when, who, what),
                (),
            ),
            recorded,
            [whole.descriptor],
            forked=whole.close,
        )

    def note(self, when, who, what, steps, done):
        """Keep a note; done('' or why it is not kept)."""
        directory = self.directory
        self.jobs.submit_job(
            ('history', directory),
            lambda: (add_note(directory, when, who, what, steps), ()),
            lambda result: done(result.why),
        )

    def ask(self, work, done):
        """Run work(directory), which returns rows, in a child process; done([row …], None) or
        done(None, TargetdError)."""
        directory = self.directory

        def in_child():
            try:
                return {'rows': work(directory)}, ()
            except TargetdError as e:
                return {'failed': str(e)}, ()
            except OSError as e:
                return {'failed': '%s: %s' % (directory, e.strerror)}, ()

        def answered(result):
            error = TargetdError(result.why) if result.why else None
            done(None if error else result.values['rows'], error)

        self.jobs.submit_job(('history', directory), in_child, answered)


def numbers(directory, pattern=NAME):
    """The numbers of the entries, or with NOTE of the notes, ascending."""
    try:
        found = [pattern.match(name) for name in os.listdir(directory)]
    except FileNotFoundError:
        return []
    return sorted(int(match.group(1)) for match in found if match)


def path_of(directory, number):
    """The file of an entry."""
    return os.path.join(directory, '%06d.conf' % number)


def read_entry(directory, number):
    """(description of an entry, text of its configuration). Raises TargetdError."""
    try:
        with open(path_of(directory, number), encoding='utf-8') as f:
            first, text = f.readline(), f.read()
        words = json.loads(first[2:])
        require_known_format(path_of(directory, number), words.get('version', VERSION), VERSION)
        return words, text
    except FileNotFoundError:
        raise TargetdError('the history has no entry %d; targetdctl history lists them' % number)
    except (OSError, ValueError) as e:
        raise TargetdError('entry %d of the history cannot be read: %s' % (number, e))


def add_entry(directory, text, when, who, what):
    """Keep a configuration, unless the newest entry is the same. Returns a dict for the job."""
    known = numbers(directory)
    steps = []
    if known:
        try:
            before = read_entry(directory, known[-1])[1]
        except TargetdError:
            before = None
        if before == text:
            return {}
        steps = steps_between(before, text)
    number = known[-1] + 1 if known else 1
    words = {'version': VERSION, 'when': when, 'who': who, 'what': what, 'steps': steps}
    try:
        write_durably(
            path_of(directory, number), '# %s\n%s' % (json.dumps(words, sort_keys=True), text)
        )
        _remove_oldest(directory)
    except OSError as e:
        return {'failed': '%s: %s' % (directory, e.strerror)}
    return {'number': number}


def add_note(directory, when, who, what, steps):
    """Keep a note. steps: [sentence]. Returns a dict for the job."""
    known = numbers(directory, NOTE)
    number = known[-1] + 1 if known else 1
    words = {'version': VERSION, 'when': when, 'who': who, 'what': what, 'steps': steps}
    try:
        write_durably(_path_of_note(directory, number), json.dumps(words, sort_keys=True) + '\n')
        for each in known[: max(0, len(known) + 1 - NOTES)]:
            os.unlink(_path_of_note(directory, each))
    except OSError as e:
        return {'failed': '%s: %s' % (directory, e.strerror)}
    return {}


def _path_of_note(directory, number):
    return os.path.join(directory, '%06d.note' % number)


def _read_note(directory, number):
    path = _path_of_note(directory, number)
    try:
        with open(path, encoding='utf-8') as f:
            words = json.load(f)
        require_known_format(path, words.get('version', VERSION), VERSION)
        return dict(words, number=None)
    except (OSError, ValueError, AttributeError, TargetdError) as e:
        return _unreadable(None, 'note %d of the history cannot be read: %s' % (number, e))


def _unreadable(number, text):
    return {'number': number, 'when': 0, 'who': '', 'what': text, 'steps': []}


def steps_between(before, text):
    """What differs between two texts of configurations, in words and without secrets."""
    try:
        old, new = (loader.load_text('/history', each or '') for each in (before, text))
    except TargetdError:
        return ['an entry was written by another version of targetd']
    steps = [step.text for step in model.diff(old, new)]
    if len(steps) > MOST_STEPS:
        steps[MOST_STEPS:] = ['and %d more' % (len(steps) - MOST_STEPS)]
    return steps


def _remove_oldest(directory):
    known, total = numbers(directory), 0
    for position, number in enumerate(reversed(known)):
        total += os.path.getsize(path_of(directory, number))
        if position and (position >= ENTRIES or total > BYTES):
            os.unlink(path_of(directory, number))


def rows(directory):
    """The rows of `targetdctl history`, the newest first; `number` is None for a note."""
    found = [_read_note(directory, number) for number in numbers(directory, NOTE)]
    for number in numbers(directory):
        try:
            words, _ = read_entry(directory, number)
            found.append(dict(words, number=number))
        except TargetdError as e:
            found.append(_unreadable(number, str(e)))
    # an entry that cannot be read has no time: the order of the configurations is that of their numbers
    last = float('inf')
    for row in reversed(found):
        if row['number'] is not None:
            last = row['order'] = min(last, row['when'] or last)
        else:
            row['order'] = row['when']
    found.sort(key=lambda row: (row.pop('order'), row['number'] or 0), reverse=True)
    return found


def present_text(directory):
    """[{'text': the newest configuration, without secrets}]. Raises TargetdError."""
    known = numbers(directory)
    if not known:
        raise TargetdError('the history is not written yet; try again in a moment')
    _, text = read_entry(directory, known[-1])
    return [{'text': '\n'.join(without_secret(line) for line in text.split('\n'))}]


def without_secret(line):
    """A line of a configuration, with *** in place of a secret."""
    name, equals, text = line.partition(' = ')
    if name.strip() not in ACCOUNTS or name.strip() == 'incominguser-file':
        return line
    words = split(text)[0]
    return name + equals + ' '.join([join([words[:1]]), '***'] + words[2:])


def difference_rows(directory, number, other):
    """The rows of `targetdctl diff`: the steps from one entry to another one (None: the newest)."""
    known = numbers(directory)
    other = known[-1] if other is None and known else other
    before, after = (read_entry(directory, each)[1] for each in (number, other or 0))
    return [{'step': step} for step in steps_between(before, after)]


def sections_of(directory, number):
    """The sections of an entry, for a rollback. Raises TargetdError."""
    _, text = read_entry(directory, number)
    return loader.sections_of_text(path_of(directory, number), text)
