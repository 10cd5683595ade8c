"""The errors outside the protocols, and the exit codes that init scripts rely on.

Base: any module may import it; it imports no other module of targetd.
"""

import sys
from collections import namedtuple

EXIT_OK = 0
EXIT_FAILURE = 1  # an unexpected failure; see the log
EXIT_USAGE = 2  # wrong command line
EXIT_CONFIG = 3  # the configuration is not valid; nothing was started or changed
EXIT_PORTAL = 4  # no portal could be opened (port busy, address not on this host)
EXIT_STORE = 5  # a backing store is missing, busy or unusable
EXIT_RUNNING = 6  # another targetd holds the pid file
EXIT_NOT_RUNNING = 7  # targetdctl: no targetd answers on the control socket
EXIT_NOT_DURABLE = 8  # it stopped, but data or state may be lost; the log names the units


class TargetdError(Exception):
    """Base class of the errors that are shown to the administrator as one plain sentence."""

    exit_code = EXIT_FAILURE


class Complaint(namedtuple('Complaint', 'file line text remedy')):
    """One error in the configuration: its place, what is wrong, and the remedy.

    file: path or None; line: 1-based or None; text: what is wrong, with the offending word in
    quotes; remedy: what to write instead, may be ''.
    """

    __slots__ = ()

    def __str__(self):
        where = (
            '%s:%s: ' % (self.file, self.line)
            if self.line
            else ('%s: ' % self.file if self.file else '')
        )
        return where + self.text + ('; ' + self.remedy if self.remedy else '')


class ConfigError(TargetdError):
    """The configuration is not valid. `complaints`: every Complaint, in file order."""

    exit_code = EXIT_CONFIG

    def __init__(self, complaints):
        self.complaints = list(complaints)
        super(ConfigError, self).__init__('\n'.join(str(c) for c in self.complaints))

    def __reduce__(self):  # the configuration is loaded in a child process
        return type(self), (self.complaints,)


class PortalError(TargetdError):
    """A portal cannot be opened; the message names address, port, cause and remedy.
    is_family_absent: this host has no IPv6; is_address_absent: it does not have the address or interface,
    perhaps not yet."""

    exit_code = EXIT_PORTAL
    is_family_absent = is_address_absent = is_port_in_use = False


class StoreError(TargetdError):
    """A backing store cannot be exported; the message names path, cause and remedy."""

    exit_code = EXIT_STORE


class Standby(StoreError):
    """This server must not serve the LUN: another one does, or none does by order. It is no fault. shown:
    what initiators may see of the LUN meanwhile (master.state.unit_state), or None."""

    shown = None


class AlreadyRunning(TargetdError):
    """Another targetd holds the pid file."""

    exit_code = EXIT_RUNNING


def missing_package(error):
    """The sentence about an ImportError of a package that targetd needs."""
    return '%s; install what targetd needs for this Python: %s -m pip install configobj' % (
        error,
        sys.executable or 'python3',
    )
