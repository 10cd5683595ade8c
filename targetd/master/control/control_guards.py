"""The answers to the commands of admin.guard_commands: what the setting guard has kept."""

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
                    dict(row, time=when(row['when']))
                    for row in result.values['rows']
                    if unit is None or _named(unit) == row['unit'].lower()
                ]
                reply(commands.reply_rows(rows))

            self.answers.units.guards.list_files(self.answers.units.by_id.values(), done)

        return list_and_reply

    def _answer_guard_restore(self, client, unit, number):
        found = self.answers.unit(unit)
        same_medium = self.answers.units.by_id.same_medium(found)
        for each in [found] + same_medium:
            _require_unused(each)
        log.warning('unit %s: %s restores number %d', found.id, client.who, number)

        def restore_and_reply(reply):
            def done(result):
                if result.why:
                    text = 'unit %s is not restored: %s'
                    reply(commands.reply_error(text % (found.id, result.why)))
                    return
                reply(
                    commands.reply_message(
                        'unit %s: %s differed and were restored; what was there before is number %d'
                        % (
                            found.id,
                            counted(result.values['changed'], 'byte'),
                            result.values['number'],
                        )
                    )
                )

            self.answers.units.guards.restore(found, same_medium, number, client.who, done)

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
                if len(names) != 1:
                    reply(commands.reply_error(result.why or 'nothing is kept of %s' % unit))
                    return
                self.answers.units.guards.remove_files(names.pop(), number, removed)

            self.answers.units.guards.list_files(self.answers.units.by_id.values(), listed)

        return remove_and_reply


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
