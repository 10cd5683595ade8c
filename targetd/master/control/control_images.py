"""The answers to the requests of admin.image_commands: the client is about to change the file of a LUN, or
has changed or copied it.

     image begin (restore) --> the undo journal of the medium is interrupted --> the client writes the file
     image end --> a note in the history; after a restore, the journal begins anew

A client that dies in between leaves the journal interrupted, until the LUN is opened again.
"""

import time

from targetd import log
from targetd.admin import commands
from targetd.config.words import counted
from targetd.errors import TargetdError
from targetd.master.fault_report import when

SNAPSHOT, RESTORE = 'snapshot', 'restore'
ACTIONS = (SNAPSHOT, RESTORE)


class ImageAnswers(object):
    """answers: ControlAnswers, whose parts this uses; history: History."""

    def __init__(self, answers, history):
        self.answers = answers
        self.history = history

    def _answer_image_begin(self, client, unit, name):
        found = self.answers.unit(unit)
        for each in [found] + self.answers.units.by_id.same_medium(found):
            _require_quiet(each)
        log.warning('unit %s: %s restores the snapshot %s', found.id, client.who, name)
        why = 'the snapshot %s was restored at %s by %s' % (name, when(time.time()), client.who)

        def begin_and_reply(reply):
            def done(error):
                if error:
                    reply(commands.reply_error('unit %s is not restored: %s' % (found.id, error)))
                else:
                    reply(commands.reply_message('unit %s may be restored' % found.id))

            self.answers.units.guards.interrupt_journal(found, why, done)

        return begin_and_reply

    def _answer_image_end(self, client, action, unit, name, outcome):
        if action not in ACTIONS:
            raise TargetdError('%r is not an action' % action)
        found = self.answers.unit(unit)
        log.info('unit %s: %s, %s of %s: %s', found.id, client.who, action, name, outcome)

        def end_and_reply(reply):
            def noted(error):
                if error:
                    text = '%s is not in the history: %s' % (action, error)
                    reply(commands.reply_error(text))
                else:
                    reply(commands.reply_message('the history has it'))

            def note(error=''):
                words = '%s %s %s' % (action, unit, name)
                steps = [outcome] + ([error] if error else [])
                self.history.note(time.time(), client.who, words, steps, noted)

            if action == RESTORE:
                self.answers.units.guards.begin_journal_anew(found, note)
            else:
                note()

        return end_and_reply


def _require_quiet(unit):
    """Raises TargetdError unless no session can access the unit."""
    if unit.is_restoring:
        raise TargetdError('unit %s cannot be restored: a restore is running' % unit.id)
    if (unit.workers or unit.guests) and unit.lun.state != 'offline':
        raise TargetdError(
            'unit %s cannot be restored: it is in use by %s; run "targetdctl lun offline %s/%d" first'
            % (
                unit.id,
                counted(len(unit.workers) or len(unit.guests), 'session'),
                unit.target_name,
                unit.lun.number,
            )
        )


#: Words of a request -> method of ImageAnswers.
ANSWERS = {
    'image begin': ImageAnswers._answer_image_begin,
    'image end': ImageAnswers._answer_image_end,
}
