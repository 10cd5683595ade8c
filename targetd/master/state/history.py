"""The history: every configuration that was accepted, as one file in state-dir/history.

    000012.conf    first line: # {"when": …, "who": "root", "what": "lun add …", "steps": […]}
                   then the whole configuration, with includes, accounts and live changes

The files contain secrets and are readable by their owner only. At most ENTRIES are kept, and at most
BYTES of them. All functions but those of History run in a child process (processes.jobs), because
state-dir may not answer.
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
NAME = re.compile('([0-9]{6,})\\.conf$')


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


def numbers(directory):
    """The numbers of the entries, ascending."""
    try:
        found = [NAME.match(name) for name in os.listdir(directory)]
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
    """The rows of `targetdctl history`, the newest first."""
    found = []
    for number in reversed(numbers(directory)):
        try:
            words, _ = read_entry(directory, number)
        except TargetdError as e:
            words = {'when': 0, 'who': '', 'what': str(e), 'steps': []}
        found.append(dict(words, number=number))
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
