"""What an importer found: the configuration in targetd's terms, and what the administrator must know.

Pure; imports config.words and config.acl's words only. The texts of settings are those that stand
behind the equals sign in targetd.conf.
"""

import ipaddress
from collections import OrderedDict, namedtuple

from targetd.config.words import join

#: How serious a note is. NOTE: the meaning changes, or something should be checked. LEFT_OUT: a line
#: has no counterpart and was left out. WRONG: the file is damaged or contradicts itself, so that
#: nothing is written without --force.
NOTE, LEFT_OUT, WRONG = 'note', 'left out', 'error'

#: Where something was found. line: None if the format has no lines.
Place = namedtuple('Place', 'file line')

#: level: NOTE, LEFT_OUT or WRONG; remedy: what to do, or ''.
Note = namedtuple('Note', 'level place text remedy')


class Section(object):
    """Settings in the order in which they are written. place: where the original stands."""

    def __init__(self, place):
        self.place = place
        self.settings = []  # [(setting, text)]

    def add(self, setting, text):
        """Add a setting with its text; None: nothing."""
        if text is not None:
            self.settings.append((setting, text))

    def add_words(self, setting, *words):
        """Add a setting whose value is these words, quoted where necessary."""
        self.add(setting, join([[str(word) for word in words]]))

    def add_flag(self, setting, value):
        """Add a setting that is yes or no."""
        self.add(setting, 'yes' if value else 'no')

    def replace(self, setting, text):
        """Set a setting that may be there already."""
        self.settings = [each for each in self.settings if each[0] != setting]
        self.add(setting, text)

    def get(self, setting):
        """The texts of a setting."""
        return [text for name, text in self.settings if name == setting]


class Lun(Section):
    """One LUN. number: its LUN."""

    def __init__(self, number, place):
        super(Lun, self).__init__(place)
        self.number = number


class Target(Section):
    """One target with its LUNs."""

    def __init__(self, name, place):
        super(Target, self).__init__(place)
        self.name = name
        self.luns = []


class Imported(object):
    """All that was found in the files of one source."""

    def __init__(self, source):
        self.source = source  # 'tgt', 'LIO', ...
        self.files = []
        self.server = Section(None)
        self.groups = OrderedDict()  # tag: [portal]
        self.group_settings = {}  # tag: Section with the settings of the group besides its portals
        self.targets = []
        self.notes = []

    def note(self, place, text, remedy='', level=NOTE):
        """Record a note, once."""
        note = Note(level, place, text, remedy)
        if note not in self.notes:
            self.notes.append(note)

    def left_out(self, place, text, remedy=''):
        """Record a line that has no counterpart."""
        self.note(place, text, remedy, LEFT_OUT)

    def wrong(self, place, text, remedy=''):
        """Record an error of the source."""
        self.note(place, text, remedy, WRONG)

    def worst(self):
        """The most serious level of the notes."""
        levels = [note.level for note in self.notes]
        return WRONG if WRONG in levels else LEFT_OUT if LEFT_OUT in levels else NOTE

    def add_portal_group(self, portals):
        """The tag of the portal group with these portals, a new one if there is none yet."""
        for tag, known in self.groups.items():
            if known == portals:
                return tag
        tag = max(self.groups or [0]) + 1
        self.groups[tag] = portals
        return tag


class Unreadable(Exception):
    """A source that cannot be read at all. place, text, remedy: as in Note."""

    def __init__(self, place, text, remedy=''):
        super(Unreadable, self).__init__(text)
        self.note = Note(WRONG, place, text, remedy)


def from_object(importer, path, text, program, remedy):
    """The Imported of importer(path, text), which reads an object that `program` has written. Raises
    Unreadable with this remedy if the object has another form."""
    try:
        return importer(path, text).imported
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        raise Unreadable(
            Place(path, None),
            'an object has not the form that %s writes: %s' % (program, e),
            remedy,
        )


# -- rules that several sources need ---------------------------------------------------------------


def admit(imported, target, addresses, names, either=False):
    """Write who may log in. addresses: [(text, Place)]; names: [(text, Place)]. either: in the source
    one match was enough."""
    for setting, rules in (('initiator-address', addresses), ('initiator-name', names)):
        if rules:
            target.add(setting, join([[text] for text, _ in rules]))
    if either and addresses and names:
        imported.note(
            target.place,
            'target %s: %s admits an initiator whose address or name matches; in targetd both must match, '
            'so an initiator that only one of them admits is refused now'
            % (target.name, imported.source),
            'remove initiator-address or initiator-name, whichever should not count',
        )


def admit_all(imported, target, why):
    """Write that everyone may log in, as in the source."""
    target.add('initiator-address', 'ALL')
    imported.note(
        target.place,
        'target %s: %s, so initiator-address = ALL is written' % (target.name, why),
        'write the addresses or names of the initiators instead',
    )


def network_of(text):
    """The text of an address or network as targetd writes it, or None if it is not one. A network with
    host bits set is not one."""
    try:
        return (
            str(ipaddress.ip_network(text.strip('[]')))
            if '/' in text
            else str(ipaddress.ip_address(text.strip('[]')))
        )
    except ValueError:
        return None


def account_without_secret(imported, section, setting, user, place, why):
    """Write an account whose secret is not known, without a secret: targetd does not load the file
    before the administrator has written one. Leaving the account out would admit everyone without
    CHAP."""
    section.add_words(setting, user)
    imported.wrong(place, '%s %s: %s' % (setting, user, why), 'write the secret behind the name')


def admit_nobody(imported, target, place, why, remedy=''):
    """Remove the rules of admission, because in the source nobody could log in."""
    target.replace('initiator-address', None)
    target.replace('initiator-name', None)
    imported.wrong(place, 'target %s admits nobody: %s' % (target.name, why), remedy)


def name_default_group(imported, portals=('0.0.0.0:3260', '[::]:3260')):
    """Give the targets without a portal group one of their own, if others have one."""
    if imported.groups:
        for target in imported.targets:
            if not target.get('portal-group'):
                target.add('portal-group', str(imported.add_portal_group(list(portals))))


def add_identity(lun, settings):
    """Write the settings of one of config.identities."""
    for setting, text in settings.items():
        lun.add(setting, text)


def add_passthrough(imported, lun, path, is_readonly):
    """Make the Lun the real SCSI device `path`, with a note that its other settings are the device's."""
    lun.add('type', 'passthrough')
    if is_readonly:
        lun.add('readonly', 'yes')
    imported.note(
        lun.place,
        'LUN %d is the SCSI device %s with its own commands: type = passthrough is written, and block size, '
        'write cache, identity and mode pages are those of the device' % (lun.number, path),
        'name the device by a link that stays its own, such as one of /dev/disk/by-id or /dev/tape/by-id',
    )
