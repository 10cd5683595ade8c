"""The rows of the commands that change the configuration of the running server: see commands. Pure.

Each change is written to targetdctl.d/live.conf before it is answered (master.control.control_changes).
"""

from targetd.admin.command_rows import Argument, columns, command

_DRY = Argument('dry-run', 'flag', False, 'only show what would change')
_TARGET = Argument('target', 'text', True, 'the name of the target')
_UNIT = Argument('unit', 'text', True, 'TARGET/LUN, or the first column of "show units --wide"')
_SET = Argument(
    'set', 'options', False, 'NAME=VALUE: a setting, as in targetd.conf(5); can be repeated'
)
_NOW = Argument('now', 'flag', False, 'ask the sessions of the target to log out, then end them')
_USER = Argument('user', 'text', True, 'the name of the account')
_SECRET = Argument('secret', 'secret', True, 'the secret')
_GROUP = Argument('group', 'number', True, 'the tag of the portal group')
_PORTAL = Argument('portal', 'text', True, 'ADDRESS:PORT, or an address for port 3260')
_RULE = Argument(
    'rule', 'text', True, 'an iSCSI name (* and ? are wildcards), an address, a network, or ALL'
)
_WHO = Argument(
    'who',
    'text',
    True,
    'an iSCSI name (* and ? are wildcards), an address, a network, account:NAME, or ALL',
)
_IOPS = Argument('iops', 'option', False, 'commands per second, such as 1000')
_BANDWIDTH = Argument('bandwidth', 'option', False, 'bytes per second, such as 100M')
_LATENCY = Argument(
    'latency-target',
    'option',
    False,
    'the time in which the disk is to answer, such as 20ms; others are slowed down for it',
)
_STEPS = columns(('step', 'STEP'), ('effect', 'EFFECT'))
_SECRET_TEXT = (
    'The secret is read from the terminal, or from standard input, and never from the command line; '
    '--generate makes one of 16 characters and prints it.'
)


def _change(words, help, text, arguments):
    return command(
        words, help, text, list(arguments) + [_DRY], _STEPS, 'nothing changed', seconds=120
    )


# fmt: off
TABLE = (
    _change('target add', 'add a target without LUNs',
            'Nobody may log in until "acl add" has admitted an initiator.',
            [Argument('target', 'text', True, 'the name, such as iqn.2026-11.com.example:erp'), _SET]),
    _change('target remove', 'remove a target and its LUNs',
            'Its files and disks remain. Sessions are asked to log out, which needs --now.',
            [_TARGET, _NOW]),
    _change('target offline', 'refuse new logins to a target',
            'Its sessions continue; "drain" also asks them to log out. It is offline after a restart too.',
            [_TARGET]),
    _change('target online', 'admit logins to a target again', 'Ends "target offline" and "drain".',
            [_TARGET]),
    _change('target rename', 'give a target another name',
            'Sessions are asked to log out, which needs --now. The serial numbers and identifiers of its '
            'LUNs, which are derived from the name, are kept as settings.',
            [_TARGET, Argument('name', 'text', True, 'the new name'), _NOW]),
    _change('lun add', 'serve a further file or disk',
            'The initiators that are logged in are notified. A file that does not exist is created with '
            'the size of --size.',
            [_TARGET,
             Argument('store', 'path', True,
                      'a file or disk as in backing-store: a path, serial:NUMBER, wwn:NUMBER; or ram'),
             Argument('lun', 'number', False, 'its LUN; without it, the first free one'),
             Argument('size', 'option', False, 'the size of a file, such as 20G'), _SET]),
    _change('lun remove', 'stop serving a LUN',
            'Its file or disk remains. Initiators are notified; their commands for it end with LOGICAL '
            'UNIT NOT SUPPORTED.', [_UNIT]),
    _change('lun resize', 'make the file or qcow2 image of a LUN larger',
            'Initiators are notified and see the new size without a new login. A file is never made '
            'shorter. Commands wait while an image is made larger; images in other formats cannot be '
            'resized.',
            [_UNIT, Argument('size', 'text', True, 'the new size, such as 20G; +5G: so much more')]),
    _change('lun readonly', 'refuse writes to a LUN from now on',
            'Sessions stay logged in; "lun online" ends it. It lasts after a restart too.', [_UNIT]),
    _change('lun offline', 'refuse every access to a LUN',
            'Sessions stay logged in; commands end with NOT READY. It lasts after a restart too.',
            [_UNIT]),
    _change('lun online', 'use a LUN again', 'Ends "lun offline" and "lun readonly".', [_UNIT]),
    _change('medium', 'put another image or tape into a drive',
            'For a LUN with type = cd or type = tape. Initiators that are logged in see the new medium at '
            'once; it is loaded after a restart too.',
            [_UNIT,
             Argument('file', 'path', True,
                      'the image or the file of the tape; none: eject the medium until it is loaded again '
                      'or targetd restarts'),
             Argument('force', 'flag', False, 'also while an initiator prevents its removal')]),
    _change('lun limit', 'limit the commands and bytes per second of a LUN, or protect its latency',
            'Of all its initiators together, from now on: iops-limit, bandwidth-limit and latency-target of '
            'targetd.conf(5). Commands that wait because of a former limit wait no longer than with the new '
            'one. 0: no limit. "show limits" shows what is delayed.',
            [_UNIT, _IOPS, _BANDWIDTH, _LATENCY]),
    _change('target limit', 'limit the commands and bytes per second of a target, or protect its latency',
            'Of all its LUNs and initiators together, or of each initiator: iops-limit, bandwidth-limit, '
            'initiator-iops-limit and initiator-bandwidth-limit of targetd.conf(5). 0: no limit. '
            'latency-target is that of each LUN, initiator-latency-target that of each initiator.',
            [_TARGET, _IOPS, _BANDWIDTH, _LATENCY,
             Argument('initiator-iops', 'option', False, 'commands per second of each initiator'),
             Argument('initiator-bandwidth', 'option', False, 'bytes per second of each initiator'),
             Argument('initiator-latency-target', 'option', False, 'as latency-target, of each initiator')]),
    _change('lun move', 'give a LUN another number, or another target',
            'Initiators lose the LUN and see it again at the new place, with the same serial number and '
            'identifiers.',
            [_UNIT, Argument('to', 'text', True, 'TARGET/LUN')]),
    _change('account add', 'add a CHAP account to a target',
            'From the first account on, initiators must authenticate at the next login. ' + _SECRET_TEXT,
            [_TARGET, _USER, _SECRET]),
    _change('account remove', 'remove a CHAP account from a target',
            'Sessions continue.',
            [_TARGET, _USER,
             Argument('without-chap', 'flag', False, 'also if it is the last account of the target')]),
    _change('account rotate', 'give a CHAP account another secret',
            'The old secret and the new one are valid until the date of --until, 7 days from now if it is '
            'not written, so that the initiators can be changed one after the other. ' + _SECRET_TEXT,
            [_TARGET, _USER, _SECRET,
             Argument('until', 'option', False,
                      'date like 2026-12-31 or 2026-12-31T18:00; now: the old secret ends now')]),
    _change('acl add', 'admit an initiator to a target',
            'Names are added to initiator-name, addresses to initiator-address. If a target has rules of '
            'both kinds, both must match.', [_TARGET, _RULE]),
    _change('acl remove', 'do not admit an initiator any more',
            'Sessions that no rule admits any more are ended.', [_TARGET, _RULE]),
    _change('map set', 'decide which LUNs of a target an initiator sees',
            'Writes lun-map: in place of the former map of that initiator. Sessions see the change at once. '
            'The first map of a target must be that for ALL, so that nobody is refused by surprise.',
            [_TARGET, _WHO,
             Argument('luns', 'text', True,
                      'numbers with commas in between, such as 0,1=4,2=5:read-only (LUN 4 as LUN 1; LUN 5 as '
                      'LUN 2, only for reading); or all, or none')]),
    _change('map remove', 'remove the map of an initiator',
            'It then has the next map that matches it; sessions for which there is none are ended.',
            [_TARGET, _WHO,
             Argument('all-luns', 'flag', False,
                      'remove the last map too: all initiators then see all LUNs')]),
    _change('portal add', 'listen on a further address',
            'A portal group that does not exist is created.', [_GROUP, _PORTAL]),
    _change('portal remove', 'no longer listen on an address', 'Sessions continue.',
            [_GROUP, _PORTAL]),
    _change('log-level', 'set the least severe level that is logged',
            'The levels are error, warning, info and debug.', [Argument('level', 'text', True, 'the level')]),
    _change('rollback', 'return to an earlier configuration',
            'What differs from the files written by hand is written to targetdctl.d; the files written by '
            'hand are not changed. Use --dry-run first.',
            [Argument('number', 'number', True, 'the first column of "history"')]),
    command('history', 'list the configurations that were accepted, and the snapshots',
            'The newest first: when, by whom, by which command, and what changed. At most 100 are kept in '
            'state-dir. What "snapshot" and "restore" did is listed too, without a number, and the last 100 '
            'of these are kept.',
            columns=columns(('number', 'NUMBER'), ('time', 'TIME'), ('who', 'WHO'),
                            ('what', 'COMMAND'), ('steps', 'CHANGES')),
            empty='the history is empty', seconds=60, records=True),
    command('diff', 'show what has changed since an earlier configuration',
            'From the configuration with this number to the present one, or to another one. Secrets are '
            'not shown.',
            arguments=[
                Argument('number', 'number', True, 'the first column of "history"'),
                Argument('to', 'number', False, 'another number, instead of the present one')],
            columns=columns(('step', 'CHANGE')),
            empty='nothing differs', seconds=60),
)
# fmt: on
