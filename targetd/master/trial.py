"""`targetd -t`: what a start with a configuration would do, by the functions of the start, without a change.

     try_start --> feasible ([server]) --> portals --> media (exports.examination) --> Trial

If a server runs with the same pid file, what it holds counts as free.
"""

from collections import namedtuple

from targetd.config import acl
from targetd.config.network_kinds import DNS
from targetd.config.words import counted
from targetd.errors import EXIT_OK, EXIT_STORE, Complaint, PortalError, StoreError
from targetd.host import disks, network
from targetd.master import feasible, named_paths
from targetd.master.exports.examination import Examined, examine_media
from targetd.master.logins import host_names, neighbours
from targetd.master.logins.portals import open_portal
from targetd.master.processes.jobs import Jobs
from targetd.master.processes.loop import Loop
from targetd.master.running import UNKNOWN, running_process
from targetd.master.units import spin_down

#: fatal: [Complaint] of what keeps the server from starting; waiting: [Complaint] of what would not be
#: served now; notes: [Complaint] of what this user cannot check, or what may fail
#: later; facts: as in Examined; origins: {rule dns: or mac:: what it admits now}; exit_code: of the
#: start, or EXIT_STORE if only LUNs are missing.
Trial = namedtuple('Trial', 'fatal waiting notes facts origins exit_code')


def try_start(configuration):
    """Returns the Trial of a configuration."""
    server = configuration.server
    fatal = [
        (_complaint(configuration, ('server',), text), code)
        for text, code in feasible.problems(server)
    ]
    if fatal and fatal[0][0].text == feasible.NO_PROC:
        return Trial([fatal[0][0]], [], [], {}, {}, fatal[0][1])
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
    notes += _luns(configuration, _sleepless(configuration), 'does not sleep (spin-down): ')
    origins, unresolved = _origins(configuration)
    notes += unresolved
    return Trial([each for each, _ in fatal], absent + missing, notes, found.facts, origins, code)


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


def _origins(configuration):
    """({rule: addresses that it admits now}, [Complaint] of host names that do not resolve)."""
    rules = acl.rules_that_need_evidence(configuration)
    found, complaints = neighbours.seen(rules), []
    for name, answer in _resolved([rule[len(DNS) :] for rule in rules if rule.startswith(DNS)]):
        if answer.get('addresses'):
            found[DNS + name] = host_names.described(answer['addresses'])
            continue
        text = 'dns:%s admits no initiator now: %s'
        complaints += [
            _complaint(configuration, place, text % (name, answer['why']))
            for place in _users_of(configuration, DNS + name)
        ]
    return found, complaints


def _resolved(names):
    """[(name, answer of host_names.resolve as a dict)]; a name for which the resolver takes too long has only
    `why`."""
    found, loop = [], Loop()
    jobs = Jobs(loop)
    try:
        for name in names:
            jobs.submit_job(
                name,
                lambda name=name: (dict(host_names.resolve(name)._asdict()), ()),
                lambda result, name=name: found.append(
                    (name, result.values or {'why': 'the resolver: %s' % result.why})
                ),
                seconds=host_names.RESOLVE_SECONDS,
            )
        jobs.wait()
    finally:
        jobs.close()
        loop.close()
    return sorted(found, key=lambda row: row[0])


def _users_of(configuration, rule):
    """The places in the configuration of those who have this rule."""
    places = [
        ('target', target.name)
        for target in configuration.targets.values()
        if rule in target.initiator_addresses
    ]
    return places + ([('server',)] if rule in configuration.server.discovery_address else [])


def _sleepless(configuration):
    """{(target name, number): why the disk cannot be spun down} of the LUNs that have spin-down."""
    paths = {}
    for target in configuration.targets.values():
        for number, lun in target.luns.items():
            try:
                paths[target.name, number] = disks.resolve_backing_store(lun.backing_store or '')
            except StoreError:
                continue  # it is absent, which is another complaint
    wanted = [key for key in paths if configuration.targets[key[0]].luns[key[1]].spin_down]
    if not wanted:
        return {}
    answer, _ = spin_down.examine([(key, paths[key]) for key in wanted], list(paths.items()))
    return {key: why for key, (_, why) in answer['found'].items() if why}


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
