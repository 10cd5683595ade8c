"""The answers to the commands that change the configuration, and of its history: a method for each row of
admin.change_commands.

     arguments --> an edit (config.edits) --> Reload.start_reload: loaded, checked, tried, written, applied

The edit runs in the child process that loads the configuration; secrets arrive in a pipe that only that
process reads (ARCHITECTURE D20).
"""

import os
import time

from targetd.admin import commands
from targetd.config import edits, explain, kinds
from targetd.config.words import Unusable
from targetd.errors import TargetdError
from targetd.master.control import control_media
from targetd.master.fault_report import when
from targetd.master.live_changes import Cause
from targetd.master.state import history as histories

LONGEST_SECRET = 1024  # bytes
ROTATION_SECONDS = 7 * 86400.0
#: A change that would outlive what the cluster stops.
TRANSIENT = '%s is written by a resource agent (transient = yes); change it by the parameters of its resource'


class ChangeAnswers(object):
    """answers: ControlAnswers, whose parts this uses; history: History."""

    def __init__(self, answers, history):
        self.answers = answers
        self.history = history

    def _change(self, client, edit, dry_run, message='', now=False, planned=''):
        """The function that makes a change and sends the reply. edit: function of sections; message: of
        the reply, or a function that returns it; planned: message of a dry run."""

        def change_and_reply(reply):
            def done(rows, error):
                text = '' if not rows else planned if dry_run else message
                if callable(text) and error is None:
                    text = text()
                reply(self.answers.reload_reply(rows, error, text))

            cause = Cause(client.who, client.what, edit)
            self.answers.reload.start_reload(done, dry_run, now, cause)

        return change_and_reply

    def _target(self, name):
        """The Target in force. Raises TargetdError."""
        found = self.answers.state.configuration.targets.get(name.lower())
        if found is None:
            raise TargetdError('there is no target %s; targetdctl show targets lists them' % name)
        return found

    def _require_no_session(self, name, now, what):
        number = len(self.answers.sessions.of_target(self._target(name).name))
        if number and not now:
            raise TargetdError(
                'target %s has %d session%s: %s asks them to log out, and ends them after stop-timeout; '
                'write --now if that is intended' % (name, number, '' if number == 1 else 's', what)
            )

    # -- targets -----------------------------------------------------------------------------------

    def _answer_target_add(self, client, target, set, dry_run):
        return self._change(
            client,
            lambda sections: edits.add_target(sections, target, set or ()),
            dry_run,
            'target %s is added; admit initiators with targetdctl acl add, add disks with targetdctl lun '
            'add' % target,
        )

    def _answer_target_remove(self, client, target, now, dry_run):
        if not dry_run:
            self._require_no_session(target, now, 'its removal')
        return self._change(
            client,
            lambda sections: edits.remove_target(sections, target),
            dry_run,
            'target %s is removed; its files and disks remain' % target,
        )

    def _set_state(self, client, target, state, dry_run, message):
        return self._change(
            client,
            lambda sections: edits.set_target(sections, target, 'state', state),
            dry_run,
            message,
        )

    def _answer_target_offline(self, client, target, dry_run):
        number = len(self.answers.sessions.of_target(self._target(target).name))
        return self._set_state(
            client,
            target,
            'offline',
            dry_run,
            'target %s refuses logins; it has %d sessions, which continue' % (target, number),
        )

    def _answer_target_online(self, client, target, dry_run):
        text = 'target %s admits logins again' % target
        return self._set_state(client, target, 'ready', dry_run, text)

    def _answer_target_rename(self, client, target, name, now, dry_run):
        require_lasting(self._target(target))
        if not dry_run:
            self._require_no_session(target, now, 'another name')
        identities = {
            number: identity_of(unit)
            for number, unit in self.answers.units.of_target(target.lower()).items()
        }
        return self._change(
            client,
            lambda sections: edits.rename_target(sections, target, name, identities),
            dry_run,
            'target %s has the name %s now; initiators log in to it by that name' % (target, name),
        )

    # -- LUNs --------------------------------------------------------------------------------------

    def _lun(self, text):
        """(target name, number) of TARGET/LUN, or of the id of a unit. Raises TargetdError."""
        unit = self.answers.units.find(text)
        return (unit.target_name, unit.lun.number) if unit is not None else named_lun(text)

    def _answer_lun_add(self, client, target, store, lun, size, set, dry_run):
        before = frozenset(self._target(target).luns)

        def message():
            new = sorted(frozenset(self._target(target).luns) - before)
            return 'lun %s of target %s is served' % (', '.join(map(str, new)), target)

        return self._change(
            client,
            lambda sections: edits.add_lun(sections, target, lun, store, size, set or ()),
            dry_run,
            message,
        )

    def _answer_lun_remove(self, client, unit, dry_run):
        target, number = self._lun(unit)
        return self._change(
            client,
            lambda sections: edits.remove_lun(sections, target, number),
            dry_run,
            'lun %d of target %s is removed; its file or disk remains' % (number, target),
        )

    def _answer_lun_resize(self, client, unit, size, dry_run):
        target, number = self._lun(unit)
        served = self.answers.units.find(unit)
        text, had = size, ''
        if size.startswith('+'):
            text = kinds.Size().write(self.answers.unit(unit).store.size + _size(size[1:]))
        if served is not None:
            had = ', instead of %s' % kinds.Size().write(served.store.size)
        return self._change(
            client,
            lambda sections: edits.set_lun(sections, target, number, 'size', text),
            dry_run,
            'lun %d of target %s has %s now%s' % (number, target, text, had),
            planned='lun %d of target %s would have %s%s' % (number, target, text, had),
        )

    def _answer_medium(self, client, unit, file, force, dry_run):
        target, number = self._lun(unit)
        drive = control_media.drive_of(self.answers.units.of_target(target).get(number), unit)

        if file.lower() == 'none':
            change = control_media.ejection(self.answers.units, drive, dry_run)
        elif os.path.abspath(file) == drive.lun.backing_store:
            change = control_media.loading(self.answers.units, drive, dry_run)
        else:
            path = os.path.abspath(file)
            change = self._change(
                client,
                lambda sections: edits.set_lun(sections, target, number, 'backing-store', path),
                dry_run,
                control_media.loaded_text(drive, path),
            )
        if force or dry_run:
            return change
        return control_media.when_released(self.answers.loop, self.answers.units, drive, change)

    def _order(self, client, unit, state, dry_run, message):
        target, number = self._lun(unit)
        return self._change(
            client,
            lambda sections: edits.set_lun(sections, target, number, 'state', state),
            dry_run,
            'lun %d of target %s %s' % (number, target, message),
        )

    def _answer_lun_readonly(self, client, unit, dry_run):
        return self._order(client, unit, 'read-only', dry_run, 'refuses writes')

    def _answer_lun_offline(self, client, unit, dry_run):
        return self._order(client, unit, 'offline', dry_run, 'is offline')

    def _answer_lun_online(self, client, unit, dry_run):
        return self._order(client, unit, 'ready', dry_run, 'is used again')

    def _answer_lun_limit(self, client, unit, iops, bandwidth, latency_target, dry_run):
        target, number = self._lun(unit)
        values = _limits({'iops': iops, 'bandwidth': bandwidth, 'latency-target': latency_target})

        def edit(sections):
            for setting, text in values:
                sections = edits.set_lun(sections, target, number, setting, text)
            return sections

        return self._change(client, edit, dry_run)

    def _answer_target_limit(
        self,
        client,
        target,
        iops,
        bandwidth,
        latency_target,
        initiator_iops,
        initiator_bandwidth,
        initiator_latency_target,
        dry_run,
    ):
        values = _limits(
            {
                'iops': iops,
                'bandwidth': bandwidth,
                'latency-target': latency_target,
                'initiator-iops': initiator_iops,
                'initiator-bandwidth': initiator_bandwidth,
                'initiator-latency-target': initiator_latency_target,
            }
        )

        def edit(sections):
            for setting, text in values:
                sections = edits.set_target(sections, target, setting, text)
            return sections

        return self._change(client, edit, dry_run)

    def _answer_lun_move(self, client, unit, to, dry_run):
        (target, number), (new_target, new_number) = self._lun(unit), named_lun(to)
        require_lasting(self._target(target), number)
        served = self.answers.units.find(unit)
        identity = identity_of(served) if served is not None else {}
        return self._change(
            client,
            lambda sections: edits.move_lun(
                sections, target, number, new_target, new_number, identity
            ),
            dry_run,
            'lun %d of target %s is lun %d of target %s now'
            % (number, target, new_number, new_target),
        )

    # -- accounts, rules, portals, server ----------------------------------------------------------

    def _with_secret(self, client, edit):
        """The edit with the secret that the client has sent, read in the child process."""
        descriptor = client.secret
        if descriptor is None:
            raise TargetdError('the secret was not sent; targetdctl may be of another version')
        os.set_blocking(descriptor, False)
        return lambda sections: edit(sections, secret_from(descriptor))

    def _answer_account_add(self, client, target, user, dry_run):
        return self._change(
            client,
            self._with_secret(
                client, lambda sections, secret: edits.add_account(sections, target, user, secret)
            ),
            dry_run,
            'account %s is added to target %s' % (user, target),
        )

    def _answer_account_remove(self, client, target, user, without_chap, dry_run):
        return self._change(
            client,
            lambda sections: edits.remove_account(sections, target, user, without_chap),
            dry_run,
            'account %s is removed from target %s' % (user, target),
        )

    def _answer_account_rotate(self, client, target, user, until, dry_run):
        date = _date(until)
        return self._change(
            client,
            self._with_secret(
                client,
                lambda sections, secret: edits.rotate_account(sections, target, user, secret, date),
            ),
            dry_run,
            'account %s has a new secret; the old one %s'
            % (
                user,
                'is valid until %s' % date.replace('T', ' ') if date else 'is not valid any more',
            ),
        )

    def _admission(self, target):
        """What the rules of a target mean now."""
        return lambda: 'target %s now %s' % (target, explain.admission(self._target(target)))

    def _answer_acl_add(self, client, target, rule, dry_run):
        return self._change(
            client,
            lambda sections: edits.add_rule(sections, target, rule),
            dry_run,
            self._admission(target),
        )

    def _answer_acl_remove(self, client, target, rule, dry_run):
        return self._change(
            client,
            lambda sections: edits.remove_rule(sections, target, rule),
            dry_run,
            self._admission(target),
        )

    def _maps(self, target):
        """What the maps of LUNs of a target mean now."""
        return lambda: (
            'target %s now %s'
            % (
                target,
                '; '.join(explain.maps(self._target(target)))
                or 'shows all LUNs to all its initiators',
            )
        )

    def _answer_map_set(self, client, target, who, luns, dry_run):
        return self._change(
            client,
            lambda sections: edits.set_map(sections, target, who, luns),
            dry_run,
            self._maps(target),
        )

    def _answer_map_remove(self, client, target, who, all_luns, dry_run):
        return self._change(
            client,
            lambda sections: edits.remove_map(sections, target, who, all_luns),
            dry_run,
            self._maps(target),
        )

    def _answer_portal_add(self, client, group, portal, dry_run):
        return self._change(
            client, lambda sections: edits.add_portal(sections, group, portal), dry_run
        )

    def _answer_portal_remove(self, client, group, portal, dry_run):
        return self._change(
            client, lambda sections: edits.remove_portal(sections, group, portal), dry_run
        )

    def _answer_log_level(self, client, level, dry_run):
        return self._change(
            client, lambda sections: edits.set_server(sections, 'log-level', level), dry_run
        )

    # -- history -----------------------------------------------------------------------------------

    def _answer_rollback(self, client, number, dry_run):
        directory = self.history.directory
        return self._change(
            client,
            lambda sections: histories.sections_of(directory, number),
            dry_run,
            'the configuration is that of number %d again' % number,
        )

    def _ask_history(self, work):
        def ask_and_reply(reply):
            def done(rows, error):
                if error is not None:
                    reply(commands.reply_error(str(error)))
                else:
                    reply(commands.reply_rows([_with_time(row) for row in rows]))

            self.history.ask(work, done)

        return ask_and_reply

    def _answer_history(self, client):
        return self._ask_history(histories.rows)

    def _answer_diff(self, client, number, to):
        return self._ask_history(lambda directory: histories.difference_rows(directory, number, to))


def _with_time(row):
    return dict(row, time=when(row['when'])) if 'when' in row else row


def _size(text):
    try:
        return kinds.Size().parse(text)
    except Unusable as e:
        raise TargetdError(str(e))


def _limits(options):
    """[(setting, text)] of the options {name: text} that were written. Raises TargetdError."""
    found = [
        (name if name.endswith('-target') else name + '-limit', text)
        for name, text in sorted(options.items())
        if text is not None
    ]
    if not found:
        raise TargetdError('no limit is named; write %s' % ' or '.join('--' + n for n in options))
    return found


def _date(until):
    """The date until which a former secret is valid, as it is written; '' for `now`."""
    if until is not None and until.lower() == 'now':
        return ''
    if until is None:
        return time.strftime('%Y-%m-%dT%H:%M', time.localtime(time.time() + ROTATION_SECONDS))
    try:
        return kinds.FormerAccounts().date(until)
    except Unusable as e:
        raise TargetdError('--until: %s' % e)


def secret_from(descriptor):
    """The secret in this pipe. Call it in a child process only. Raises TargetdError."""
    try:
        data = os.read(descriptor, LONGEST_SECRET + 1)
        text = data.decode('utf-8')
    except (OSError, UnicodeDecodeError):
        raise TargetdError('the secret was not sent as UTF-8 text')
    if not 0 < len(data) <= LONGEST_SECRET or any(character in text for character in '\n\r\0'):
        raise TargetdError('the secret is empty or too long, or contains the end of a line')
    return text


def identity_of(unit):
    """{setting: text} of the identifiers of a unit that are derived and not written."""
    found, lun = {}, unit.lun
    if not lun.scsi_sn and not lun.direct and unit.facts.get('serial'):
        found['scsi-sn'] = edits.quoted(unit.facts['serial'])
    if not lun.naa and unit.facts.get('naa'):
        found['naa'] = ', '.join(str(unit.facts['naa']).replace(',', ' ').split())
    return found


def require_lasting(target, number=None):
    """Raise TargetdError if this target, or its LUN of this number, is transient."""
    lun = target.luns.get(number)
    if lun is not None and lun.transient:
        raise TargetdError(TRANSIENT % ('lun %d of target %s' % (number, target.name)))
    if number is None and target.transient:
        raise TargetdError(TRANSIENT % ('target %s' % target.name))


def named_lun(text):
    """('iqn…', 0) of 'iqn…/0'. Raises TargetdError."""
    target_name, _, number = text.lower().rpartition('/')
    if not (target_name and number.isdigit()):
        raise TargetdError('%s is not TARGET/LUN, such as iqn.2026-11.com.example:erp/0' % text)
    return target_name, int(number)


#: Words of a command -> the method that executes it; it also gets the control.Client.
ANSWERS = {
    'target add': ChangeAnswers._answer_target_add,
    'target remove': ChangeAnswers._answer_target_remove,
    'target offline': ChangeAnswers._answer_target_offline,
    'target online': ChangeAnswers._answer_target_online,
    'target rename': ChangeAnswers._answer_target_rename,
    'lun add': ChangeAnswers._answer_lun_add,
    'lun remove': ChangeAnswers._answer_lun_remove,
    'lun resize': ChangeAnswers._answer_lun_resize,
    'medium': ChangeAnswers._answer_medium,
    'lun readonly': ChangeAnswers._answer_lun_readonly,
    'lun offline': ChangeAnswers._answer_lun_offline,
    'lun online': ChangeAnswers._answer_lun_online,
    'lun limit': ChangeAnswers._answer_lun_limit,
    'target limit': ChangeAnswers._answer_target_limit,
    'lun move': ChangeAnswers._answer_lun_move,
    'account add': ChangeAnswers._answer_account_add,
    'account remove': ChangeAnswers._answer_account_remove,
    'account rotate': ChangeAnswers._answer_account_rotate,
    'acl add': ChangeAnswers._answer_acl_add,
    'acl remove': ChangeAnswers._answer_acl_remove,
    'map set': ChangeAnswers._answer_map_set,
    'map remove': ChangeAnswers._answer_map_remove,
    'portal add': ChangeAnswers._answer_portal_add,
    'portal remove': ChangeAnswers._answer_portal_remove,
    'log-level': ChangeAnswers._answer_log_level,
    'rollback': ChangeAnswers._answer_rollback,
    'history': ChangeAnswers._answer_history,
    'diff': ChangeAnswers._answer_diff,
}
