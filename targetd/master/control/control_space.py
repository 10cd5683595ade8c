"""The answers to `targetdctl show space` and `trim`: the space that units occupy."""

import time

from targetd import log
from targetd.admin import commands
from targetd.errors import TargetdError
from targetd.host import file_space
from targetd.store.usage import usage

SECONDS = 20.0
#: Time for the extents of one file, and of all.
SECONDS_OF_A_FILE, SECONDS_OF_ALL = 2.0, 10.0


#: What the rows of files have of usage(), and of _usages().
OF_A_FILE = ('mapped', 'reserved', 'shared', 'available', 'mount')
#: What file_space.grouped() needs of them.
OF_A_FILE_SYSTEM = ('device', 'inode', 'mount', 'size', 'allocated', 'available')


class SpaceAnswers(object):
    """answers: ControlAnswers, whose parts this uses."""

    def __init__(self, answers):
        self.answers = answers

    def _answer_trim(self, client, unit, stop=False):
        found = self.answers.unit(unit)
        trims = self.answers.units.trims
        if stop:
            if not trims.stop(found, 'the administrator has ended it'):
                raise TargetdError('unit %s is not being trimmed' % found.id)
            return commands.reply_message('the trim of unit %s ends' % found.id)
        trims.start(found)
        log.info('unit %s: %s trims it', found.id, client.who)
        return commands.reply_message(
            'unit %s is being trimmed; "targetdctl show space" shows how far it is, and '
            '"targetdctl trim --stop" ends it' % found.id
        )

    def _answer_show_space(self, client, unit=None):
        named = [self.answers.unit(unit)] if unit is not None else None
        units = [u for u in self.answers.units.by_id.values() if u.store.kind in ('file', 'block')]
        files = [(u.id, u.store.path, u.store.descriptor) for u in units if u.store.kind == 'file']

        def look_and_reply(reply):
            def done(result):
                if result.why:
                    reply(commands.reply_error('the file systems do not answer: %s' % result.why))
                    return
                known = result.values['units']
                systems = file_space.grouped(
                    [words[name] for name in OF_A_FILE_SYSTEM] for words in known.values()
                )
                rows = [
                    self._row(each, known.get(each.id), systems)
                    for each in units
                    if named is None or each in named
                ]
                rows.sort(key=lambda row: (row['target_name'], row['lun']))
                short = [str(each) for each in systems.values() if each.missing]
                text = 'OVER-COMMITTED: ' + '; '.join(sorted(short)) if short else None
                reply(commands.reply_rows(rows, text))

            self.answers.exports.jobs.submit_job(
                ('space',), lambda: _usages(files), done, [each[2] for each in files], SECONDS
            )

        return look_and_reply

    def _row(self, unit, known, systems):
        row = {
            'unit': unit.id,
            'target_name': unit.target_name,
            'lun': unit.lun.number,
            'path': unit.store.path,
            'size': unit.store.size,
            'allocated': unit.store.size,
            'trim': self.answers.units.trims.described(unit),
        }
        row.update((name, (known or {}).get(name)) for name in OF_A_FILE)
        if known is not None:
            row.update(size=known['size'], allocated=known['allocated'])
            row['overcommitted'] = systems[known['device']].missing
        return row


def _usages(files):
    """The job: ({'units': {id: usage}}, descriptors)."""
    found, left = {}, SECONDS_OF_ALL
    for unit_id, path, descriptor in files:
        seconds = min(SECONDS_OF_A_FILE, left)
        began = time.monotonic()
        words = usage(descriptor, seconds)
        left = max(0.0, left - (time.monotonic() - began))
        found[unit_id] = dict(words, mount=file_space.mount_point(path))
    return {'units': found}, ()


#: Words of a command -> method of SpaceAnswers.
ANSWERS = {'trim': SpaceAnswers._answer_trim, 'show space': SpaceAnswers._answer_show_space}
