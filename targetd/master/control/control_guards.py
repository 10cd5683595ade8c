"""The answers to the commands of admin.guard_commands: what the setting guard has kept."""

import time

from targetd import log
from targetd.admin import commands
from targetd.config.words import counted
from targetd.errors import TargetdError
from targetd.master.fault_report import when


class GuardAnswers(object):
    """answers: ControlAnswers, whose parts this uses."""

    def __init__(self, answers):
        self.answers = answers

    def _answer_guard_list(self, client, unit=None):
        def list_and_reply(reply):
            def done(result):
                if result.why:
                    reply(commands.reply_error(result.why))
                    return
                rows = [
                    dict(row, time=when(row['when']) if row['when'] else '')
                    for row in result.values['rows']
                    if unit is None or _named(unit) == row['unit'].lower()
                ]
                reply(commands.reply_rows(rows))

            self.answers.units.guards.list_files(self.answers.units.by_id.values(), done)

        return list_and_reply

    def _answer_guard_restore(self, client, unit, point):
        found = self.answers.unit(unit)
        number, since = read_point(point, time.time())
        same_medium = self.answers.units.by_id.same_medium(found)
        for each in [found] + same_medium:
            _require_unused(each)
        what = 'number %s' % number if number is not None else 'the content of %s' % when(since)
        log.warning('unit %s: %s restores %s', found.id, client.who, what)

        def restore_and_reply(reply):
            def done(result):
                if result.why:
                    text = 'unit %s is not restored: %s'
                    reply(commands.reply_error(text % (found.id, result.why)))
                    return
                reply(commands.reply_message(_restored(found, began, result.values)))

            began, guards = int(time.time()), self.answers.units.guards
            if number is not None:
                guards.restore(found, same_medium, number, client.who, done)
            else:
                guards.go_back(found, same_medium, since, client.who, done)

        return restore_and_reply

    def _answer_guard_remove(self, client, unit, number=None, all=False):
        if (number is None) != all:
            raise TargetdError('write the number that "targetdctl guard list" shows, or --all')

        def remove_and_reply(reply):
            def removed(result):
                count = result.values.get('removed', 0)
                if result.why or not count:
                    reply(commands.reply_error(result.why or 'there is no such number'))
                    return
                log.info('%s removed %s of %s', client.who, counted(count, 'kept file'), unit)
                reply(commands.reply_message('%s removed' % counted(count, 'kept file')))

            def listed(result):
                names = {
                    row['name']
                    for row in result.values.get('rows', ())
                    if row['unit'].lower() == _named(unit)
                }
                if not names:
                    reply(commands.reply_error(result.why or 'nothing is kept of %s' % unit))
                    return
                self.answers.units.guards.remove_files(names, number, removed)

            self.answers.units.guards.list_files(self.answers.units.by_id.values(), listed)

        return remove_and_reply


def _restored(unit, began, values):
    """The message after a restore that began at this time."""
    undone = (
        'what was there before is number %d' % values['number']
        if 'number' in values
        else 'to undo this, restore the time %s' % when(began)
    )
    return 'unit %s: %s differed and were restored; %s' % (
        unit.id,
        counted(values['changed'], 'byte'),
        undone,
    )


def read_point(text, now):
    """(number, None) or (None, seconds since 1970) of the argument of `guard restore`. now: the time.
    Raises TargetdError."""
    if text.isdigit():
        return int(text), None
    today = time.strftime('%Y-%m-%d ', time.localtime(now))
    for form, prefix in (
        ('%Y-%m-%d %H:%M:%S', ''),
        ('%Y-%m-%d %H:%M', ''),
        ('%Y-%m-%d', ''),
    ) + tuple(('%Y-%m-%d ' + each, today) for each in ('%H:%M:%S', '%H:%M')):
        try:
            parsed = time.strptime(prefix + text.replace('T', ' '), form)
        except ValueError:
            continue
        since = int(time.mktime(parsed[:8] + (-1,)))
        if since > now:
            raise TargetdError('%s is in the future' % text)
        return None, since
    raise TargetdError(
        '%r is neither a number nor a time; write the number that "targetdctl guard list" shows, or a time '
        'like "2026-11-28 17:20:11" or 17:20' % text
    )


def _named(unit):
    return unit.lower()


def _require_unused(unit):
    """Raises TargetdError if a session or an operation uses the unit, or a restore."""
    why = ''
    if unit.workers or unit.guests:
        why = (
            'it is in use by %s; log out its initiators first (targetdctl drain, targetdctl end)'
            % (counted(len(unit.workers) or len(unit.guests), 'session'))
        )
    elif unit.is_restoring:
        why = 'a restore is running'
    elif unit.trim_window is not None:
        why = 'it is being trimmed; end that with targetdctl trim --stop'
    elif unit.shared.operation is not None and not unit.shared.operation['failed']:
        why = 'FORMAT UNIT or SANITIZE is running'
    elif unit.lun.readonly:
        why = 'it is readonly'
    elif unit.hanging or unit.store.descriptor is None:
        why = 'its disk does not respond, or it has none'
    if why:
        raise TargetdError('unit %s cannot be restored: %s' % (unit.id, why))


#: Words of a command -> method of GuardAnswers.
ANSWERS = {
    'guard list': GuardAnswers._answer_guard_list,
    'guard restore': GuardAnswers._answer_guard_restore,
    'guard remove': GuardAnswers._answer_guard_remove,
}
