"""`targetd -t`: what a start with a configuration would do, by the functions of the start, without a change.

     try_start --> feasible ([server]) --> portals --> media (exports.examination) --> Trial

If a server runs with the same pid file, what it holds counts as free.
"""

from collections import namedtuple

from targetd.config.words import counted
from targetd.errors import EXIT_OK, EXIT_STORE, Complaint, PortalError
from targetd.host import network
from targetd.master import feasible, named_paths
from targetd.master.exports.examination import Examined, examine_media
from targetd.master.logins.portals import open_portal
from targetd.master.running import UNKNOWN, running_process

#: fatal: [Complaint] of what keeps the server from starting; waiting: [Complaint] of what would not be
#: served now; notes: [Complaint] of what this user cannot check, or what may fail
#: later; facts: as in Examined; exit_code: of the
#: start, or EXIT_STORE if only LUNs are missing.
Trial = namedtuple('Trial', 'fatal waiting notes facts exit_code')


def try_start(configuration):
    """Returns the Trial of a configuration."""
    server = configuration.server
    fatal = [
        (_complaint(configuration, ('server',), text), code)
        for text, code in feasible.problems(server)
    ]
    if fatal and fatal[0][0].text == feasible.NO_PROC:
        return Trial([fatal[0][0]], [], [], {}, fatal[0][1])
    running = running_process(server.pid_file, server.control_socket)
    refused, absent = _portals(configuration, running)
    fatal += refused
    found = examine_media(configuration, running) if configuration.targets else Examined({}, {}, {})
    missing = _luns(configuration, found.refused, 'would not be served: ')
    code = fatal[0][1] if fatal else EXIT_STORE if missing else EXIT_OK
    notes = _luns(
        configuration, found.unseen, 'was not examined; run targetd -t as root to check it: '
    )
    notes += [
        _complaint(configuration, ('server',), text) for text in named_paths.complaints(server)
    ]
    return Trial([each for each, _ in fatal], absent + missing, notes, found.facts, code)


def summary(trial, configuration):
    """One line about the outcome of a trial that found something, or ''."""
    if trial.fatal:
        return 'the server would not start'
    luns = sum(len(target.luns) for target in configuration.targets.values())
    missing = trial.exit_code == EXIT_STORE
    return '%d of %s would be served' % (len(trial.facts), counted(luns, 'LUN')) if missing else ''


def _complaint(configuration, key, text):
    file, line = configuration.places.get(
        key, (configuration.files and configuration.files[0], None)
    )
    return Complaint(file or None, line, text, '')


def _luns(configuration, why_by_lun, words):
    return [
        _complaint(
            configuration, ('lun', name, number), 'lun %d of %s %s%s' % (number, name, words, why)
        )
        for (name, number), why in sorted(why_by_lun.items())
    ]


def _portals(configuration, running):
    """([(Complaint, exit code)] of portals that keep the server from starting, [Complaint] of those that
    wait for their address). A port of the running server counts as free; without psutil the program that has
    a port is not known, so that every port in use counts as that of the running server."""
    fatal, waiting, opened = [], [], []
    for tag, group in configuration.portal_groups.items():
        for address, port in group.portals:
            try:
                opened.append(open_portal(address, port, group))
            except PortalError as e:
                is_unknown = running == UNKNOWN or e.is_port_in_use and network.psutil is None
                if running and (is_unknown or '(process %d)' % running in str(e)):
                    continue
                complaint = _complaint(configuration, ('portal-group', tag), str(e))
                if configuration.server.portal_required or not e.is_address_absent:
                    fatal.append((e, complaint))
                else:
                    waiting.append(complaint)
    for sock in opened:
        sock.close()
    is_any = bool(opened or waiting)
    fatal = [
        (complaint, e.exit_code) for e, complaint in fatal if not (is_any and e.is_family_absent)
    ]
    return fatal, waiting
