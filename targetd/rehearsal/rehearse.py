"""`targetdctl rehearse`: discovery, login on every path, arrival of the disks, and the report.

May import base, config.words and rehearsal.
"""

import re
import textwrap
from collections import OrderedDict, namedtuple

from targetd.config.words import counted
from targetd.errors import EXIT_FAILURE, EXIT_OK, TargetdError
from targetd.rehearsal import scratch, verdicts, walk
from targetd.rehearsal.verdicts import note, trouble
from targetd.rehearsal.windows_session import LoginRefused, Lost, Session

MICROSOFT = 'iqn.1991-05.com.microsoft:'
MOST_PATHS = 4
SCRATCH = re.compile(r'(\d+):(\d+)\+(\d+)\Z')

#: What to rehearse. target, name: iSCSI names; portals: [(address, port)] for the discovery; discovery,
#: account: (user, secret) or None; mutual: (user, secret) of the target, or None; others: {serial number or
#: naa: 'TARGET/LUN'} of disks of other targets; units: {LUN: row of `show units`} of the target; area: (lun,
#: first block, count) or None; reservations: True to test those of the cluster validation; message(class,
#: detail), advice(class, detail): what Windows shows for a login status.
Request = namedtuple(
    'Request',
    'target name portals discovery account mutual others units area reservations message advice',
)


class Rehearsal(object):
    """One run. facts: [(what, text)]; disks: [dict of verdicts.shown]; findings: [Finding]."""

    def __init__(self, request):
        self.request = request
        self.facts = []
        self.disks = []
        self.findings = []
        self._sessions = []  # [((address, port), Session)], logged in to the target

    def run(self):
        """Do everything; what cannot be done is a finding."""
        request = self.request
        self.findings += verdicts.of_secret(request.account, 'secret')
        self.findings += verdicts.of_secret(request.mutual, 'secret (of the target)')
        if request.account and request.mutual and request.account[1] == request.mutual[1]:
            text = 'both directions have the same secret: Windows refuses the login'
            self.findings.append(trouble('CHAP', text, 'write another secret for outgoinguser'))
        try:
            self._log_in(self._discover())
            if self._sessions:
                self._meet_disks()
        except TargetdError as e:
            self.findings.append(trouble('session', str(e), 'see the log of targetd'))
        finally:
            for _, session in self._sessions:
                self.findings += [trouble('session', text) for text in session.complaints]
                session.logout()

    # -- login -------------------------------------------------------------------------------------

    def _discover(self):
        """[(address, port)] of the target by SendTargets, or those of the request if that fails."""
        for address, port in self.request.portals:
            session = None
            try:
                session = Session(address, port, self.request.name, 0)
                session.login(None, self.request.discovery)
                found = addresses_of(session.send_targets(), self.request.target)
                self.findings += [trouble('discovery', text) for text in session.complaints]
                session.logout()
            except (LoginRefused, Lost) as e:
                if session is not None:
                    session.close()
                self._refused('discovery at %s' % _shown(address, port), e)
                continue
            if found is None:
                text = 'the target is not listed for %s' % self.request.name
                self.findings.append(
                    trouble(
                        'discovery',
                        text,
                        'check initiator-name and initiator-address of the target',
                    )
                )
                return self.request.portals[:1]
            self.facts.append(
                (
                    'discovery',
                    '%s: %s'
                    % (
                        _shown(address, port),
                        ', '.join(_shown(*each) for each in found) or 'no address',
                    ),
                )
            )
            return found[:MOST_PATHS] or self.request.portals[:1]
        return self.request.portals[:1]

    def _refused(self, about, error):
        if not isinstance(error, LoginRefused):
            self.findings.append(trouble(about, str(error), 'check portal, firewall and route'))
            return
        advice = self.request.advice(*error.status)
        text = '%s; Windows shows %s' % (error, self.request.message(*error.status))
        remedy = 'check ' + advice if advice else ''
        if error.status == (2, 1) and self.request.account is None:
            remedy = 'enable CHAP in Windows: Targets, Connect, Advanced; then --user and --secret-file here'
        self.findings.append(trouble(about, text, remedy))

    def _log_in(self, portals):
        for number, (address, port) in enumerate(portals):
            session = None
            try:
                session = Session(address, port, self.request.name, 1 + number)
                session.login(self.request.target, self.request.account, self.request.mutual)
            except (LoginRefused, Lost) as e:
                if session is not None:
                    session.close()
                self._refused('login at %s' % _shown(address, port), e)
                continue
            self._sessions.append(((address, port), session))
            self.facts.append(
                (
                    'login',
                    '%s: portal group %s, %s'
                    % (
                        _shown(address, port),
                        session.first_keys.get('TargetPortalGroupTag', 'unknown'),
                        'CHAP%s' % (', mutual' if self.request.mutual else '')
                        if self.request.account and session.keys.get('AuthMethod') == 'CHAP'
                        else 'without CHAP',
                    ),
                )
            )

    # -- disks -------------------------------------------------------------------------------------

    def _meet_disks(self):
        main = self._sessions[0][1]
        fields = walk.list_luns(main)
        if not fields:
            self.findings.append(trouble('disks', 'the target has no LUN for this initiator'))
        elif 0 not in [walk.lun_number(field) for field in fields]:
            text = 'there is no LUN 0: diskless boot, and Windows 2003 and older, need one'
            self.findings.append(note('disks', text))
        met = [walk.walk_disk(main, field) for field in fields[: walk.WALKED_LUNS]]
        if len(fields) > walk.WALKED_LUNS:
            text = '%d LUNs: Windows uses at most %d of a target' % (len(fields), walk.WALKED_LUNS)
            self.findings.append(trouble('disks', text, 'make several targets of it'))
        self._find_hidden({disk.lun for disk in met})
        for disk in met:
            self.findings += verdicts.of_disk(disk)
            if disk.inquiry[:1] == b'\0' and 0 <= disk.lun <= 255 and not disk.ready:
                self.disks.append(verdicts.shown(disk, len(self.disks)))
        self.findings += verdicts.of_clashes(met)
        self._compare_with_others(met)
        self._compare_paths(met)
        self._test(met)

    def _find_hidden(self, seen):
        """LUNs of the target that this initiator does not see (sharing)."""
        for number, row in sorted(self.request.units.items()):
            holders = [name for name in row.get('holders') or () if name != self.request.name]
            if number not in seen and holders:
                text = 'Windows does not see it, because %s uses it' % ', '.join(holders)
                remedy = (
                    'log in again when its sessions have ended, or write sharing = cluster if both hosts '
                    'run cluster software'
                )
                self.findings.append(trouble('LUN %d' % number, text, remedy))
            elif self.request.reservations and row.get('sharing') not in (None, 'cluster'):
                text = 'the other nodes of a cluster do not see it'
                self.findings.append(
                    trouble('LUN %d' % number, text, 'write sharing = cluster for a cluster disk')
                )

    def _compare_with_others(self, met):
        for disk in met:
            unique = verdicts.identity(disk)
            for value in (verdicts.serial(disk), unique[1].hex() if unique else ''):
                if value in self.request.others:
                    text = 'has the identity of %s: Windows takes them for two paths to one disk'
                    self.findings.append(
                        trouble(
                            verdicts.name_of(disk),
                            text % self.request.others[value],
                            'right for one disk in two targets; else give it another naa and scsi-sn',
                        )
                    )
                    break

    def _compare_paths(self, met):
        if len(self._sessions) < 2:
            return
        for (address, port), session in self._sessions[1:]:
            for disk in met:
                again = walk.walk_disk(session, disk.field)
                for page in (0x80, 0x83):
                    mine, theirs = _of_unit(disk, page), _of_unit(again, page)
                    if mine != theirs:
                        text = 'has another page %02Xh at %s: MPIO does not join the paths'
                        self.findings.append(
                            trouble(verdicts.name_of(disk), text % (page, _shown(address, port)))
                        )
        text = 'Windows shows each disk once for each session without MPIO'
        remedy = 'install MPIO, and run Enable-MSDSMAutomaticClaim -BusType iSCSI'
        self.findings.append(note('paths', text, remedy))
        self.facts.append(('MPIO', '%d paths' % len(self._sessions)))

    def _test(self, met):
        if self.request.area:
            number, first, count = self.request.area
            for disk in [each for each in met if each.lun == number]:
                if not count or first + count > disk.blocks:
                    raise TargetdError('--scratch: LUN %d has %d blocks' % (number, disk.blocks))
                self._add_failures(
                    disk, scratch.write_area(self._sessions[0][1], disk, first, count)
                )
                self.facts.append(('scratch', 'LUN %d, %s' % (number, counted(count, 'block'))))
        if self.request.reservations:
            self._validate(met)

    def _validate(self, met):
        (address, port), one = self._sessions[0]
        node = Session(address, port, self.request.name, 0x80)
        try:
            node.login(self.request.target, self.request.account, self.request.mutual)
            for disk in [each for each in met if each.keys is not None]:
                self._add_failures(disk, scratch.validate_reservations(one, node, disk))
        finally:
            node.logout()
        self.facts.append(('reservations', 'tested as the cluster validation does'))

    def _add_failures(self, disk, failures):
        for what, why in failures:
            self.findings.append(trouble(verdicts.name_of(disk), '%s: %s' % (what, why)))

    # -- report ------------------------------------------------------------------------------------

    def exit_code(self):
        """0 if there is no reason to expect trouble."""
        return EXIT_FAILURE if any(each.is_trouble for each in self.findings) else EXIT_OK

    def report(self):
        """The outcome as a value for JSON."""
        return {
            'initiator_name': self.request.name,
            'target_name': self.request.target,
            'facts': [{'what': what, 'text': text} for what, text in self.facts],
            'disks': [dict(disk) for disk in self.disks],
            'findings': [dict(each._asdict()) for each in self.findings],
        }

    def text(self, width=79):
        """The outcome for the terminal."""
        lines = ['Windows host %s' % self.request.name, 'Target       %s' % self.request.target, '']
        for what, text in self.facts:
            lines += _folded('%-13s' % what, text, width)
        for disk in self.disks:
            lines += [''] + _disk_lines(disk, width)
        for is_trouble, heading in ((True, 'Expect trouble:'), (False, 'Worth knowing:')):
            chosen = [each for each in self.findings if each.is_trouble == is_trouble]
            lines += ['', heading] if chosen else []
            for about, text, remedy in _grouped(chosen):
                lines += _folded('  ', '%s: %s' % (about, text), width)
                if remedy:
                    lines += _folded('    -> ', remedy, width)
        if not any(each.is_trouble for each in self.findings):
            lines += ['', 'No reason to expect trouble was found.']
        return '\n'.join(lines) + '\n'


def _grouped(findings):
    """[(about, text, remedy)]; findings with the same text are one."""
    found = OrderedDict()
    for each in findings:
        found.setdefault((each.text, each.remedy), []).append(each.about)
    return [(', '.join(about), text, remedy) for (text, remedy), about in found.items()]


def _disk_lines(disk, width):
    lines = ['Disk %d  "%s SCSI Disk Device", LUN %d' % (disk['disk'], disk['model'], disk['lun'])]
    state = 'Read-only' if disk['read_only'] else 'Online'
    for what, text in (
        (
            'Size',
            '%s, %s, %s (%s)' % (disk['size_shown'], disk['partitions'], state, disk['limit']),
        ),
        ('Sectors', '%s, %s' % (disk['sectors'], disk['medium'])),
        ('Space', disk['provisioning'] + (', trim' if disk['trim'] else ', no trim')),
        ('Write cache', disk['write_cache']),
        ('ODX', 'yes' if disk['offloaded_copies'] else 'no'),
        ('Reservation', disk['reservation']),
        ('Serial', disk['serial']),
        ('Unique ID', disk['unique_id']),
    ):
        lines += _folded('  %-13s' % what, text, width)
    return lines


def _folded(head, text, width):
    return textwrap.wrap(
        text, width, initial_indent=head, subsequent_indent=' ' * len(head), break_on_hyphens=False
    ) or [head.rstrip()]


def _shown(address, port):
    return ('[%s]:%d' if ':' in address else '%s:%d') % (address, port)


def _of_unit(disk, page):
    """What a path must not change of VPD page 80h or 83h."""
    if page == 0x80:
        return verdicts.serial(disk)
    return [each for each in verdicts.designators(disk) if each[0] == 0]


def addresses_of(pairs, target):
    """[(address, port)] of a target in the answer to SendTargets; None if it is not listed."""
    found, is_mine = None, False
    for key, value in pairs:
        if key == 'TargetName':
            is_mine = value == target
            found = [] if is_mine and found is None else found
        elif key == 'TargetAddress' and is_mine:
            place = value.rpartition(',')[0] or value
            address, _, port = place.rpartition(':')
            found.append((address.strip('[]'), int(port)))
    return found


def parse_area(text):
    """(lun, first block, count) of '0:2048+1024'. Raises TargetdError."""
    match = SCRATCH.match(text)
    if match is None:
        raise TargetdError(
            '--scratch %s is not LUN:FIRST+COUNT in blocks, such as 0:2048+1024' % text
        )
    return tuple(int(each) for each in match.groups())
