"""The answers to the commands of admin.takeover_commands."""

from targetd.admin import commands
from targetd.errors import TargetdError


class TakeoverAnswers(object):
    """answers: ControlAnswers, whose parts this uses; takeovers: Takeovers."""

    def __init__(self, answers, takeovers):
        self.answers = answers
        self.takeovers = takeovers

    def _movable_target(self, name):
        target = self.answers.state.configuration.targets.get(name.lower())
        if target is None:
            raise TargetdError('there is no target %s; targetdctl show targets lists them' % name)
        self.takeovers.require_movable(target)
        if target.name in self.answers.state.changing:
            raise TargetdError(
                'target %s is being changed; its sessions have not logged out yet' % name
            )
        return target

    def _answer_takeover(self, client, target):
        found = self._movable_target(target)

        def take_over_and_reply(reply):
            def done(served, failures):
                text = 'target %s: %s' % (found.name, served_text(served))
                if failures:
                    reply(commands.reply_error('; '.join([text] + failures)))
                else:
                    reply(commands.reply_message(text))

            self.takeovers.take_over(found, done)

        return take_over_and_reply

    def _answer_standby(self, client, target):
        found = self._movable_target(target)

        def stand_by_and_reply(reply):
            def done(failures):
                if failures:
                    text = 'target %s is in standby, but data may be lost: %s'
                    reply(commands.reply_error(text % (found.name, '; '.join(failures))))
                else:
                    reply(
                        commands.reply_message(
                            'target %s is in standby: everything is flushed, and another server can take it '
                            'over' % found.name
                        )
                    )

            self.takeovers.stand_by(found, done)

        return stand_by_and_reply


def served_text(served):
    """What is said of a takeover. served: {LUN: its Unit}."""
    if not served:
        return 'no LUN is served'
    parts = ['LUN %s is served' % ', '.join(str(number) for number in sorted(served))]
    fences = {}
    for number, unit in sorted(served.items()):
        fences.setdefault(unit.store.fenced_by, []).append(str(number))
    parts += [
        'LUN %s has %s as its fence' % (', '.join(numbers), fence)
        for fence, numbers in fences.items()
        if fence
    ]
    if '' in fences:
        parts.append(
            'nothing keeps the other server from writing to LUN %s, if it still runs'
            % ', '.join(fences[''])
        )
    return '; '.join(parts)


#: Words of a command -> method of TakeoverAnswers.
ANSWERS = {'takeover': TakeoverAnswers._answer_takeover, 'standby': TakeoverAnswers._answer_standby}
