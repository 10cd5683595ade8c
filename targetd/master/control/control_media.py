"""The answer to `targetdctl medium`: another image in an optical drive or tape in a tape drive, or none.

     prevented --unit attention and event: removal requested--> the initiator allows it, or ejects --> changed
         +----- 10 seconds later: refused

A drive has an eject button, and a host that has locked the tray is told that it was pressed: udev of Linux
locks each medium that it finds, and ejects it when it is asked to, unless it is mounted.
"""

from targetd.admin import commands
from targetd.errors import TargetdError
from targetd.master.units import transitions
from targetd.scsi.medium_state import EJECTED

INTERVAL = 0.2  # seconds
LOOKS = 50  # so 10 seconds; hosts ask for events every 2 seconds or so


def drive_of(unit, name):
    """The Unit if it is a drive for CDs or tapes. Raises TargetdError. unit: Unit or None."""
    if unit is None or not (unit.facts.get('optical') or unit.facts.get('tape')):
        raise TargetdError('%s is not a drive that is served (type = cd or type = tape)' % name)
    return unit


def ejection(units, drive, dry_run):
    """A function that ejects the medium and sends the reply. units: logical_units.Units."""

    def eject_and_reply(reply):
        def ejected(error=None):
            reply(commands.reply_message('the drive %s has no medium' % drive.id))

        if dry_run or drive.shared.medium == EJECTED:
            ejected()
        else:
            units.apply_and_flush(drive, transitions.medium_ejected(drive.shared), ejected)

    return eject_and_reply


def loaded_text(drive, path):
    """The reply after this image was loaded."""
    return '%s is in the drive %s' % (path, drive.id)


def loading(units, drive, dry_run):
    """A function that loads the configured image, which may have been ejected, and sends the reply."""

    def load_and_reply(reply):
        def loaded(error=None):
            reply(commands.reply_message(loaded_text(drive, drive.lun.backing_store)))

        if dry_run or drive.shared.medium != EJECTED:
            loaded()
        else:
            units.apply_and_flush(drive, transitions.medium_loaded(drive.shared), loaded)

    return load_and_reply


def when_released(loop, units, drive, change):
    """A function that asks the initiators which prevent the removal to allow it, and calls change(reply)
    as soon as they do."""

    def ask_and_change(reply):
        if not drive.shared.prevented_by:
            change(reply)
            return
        units.apply_and_flush(drive, transitions.removal_requested(drive.shared))

        def look(left):
            if not drive.shared.prevented_by:
                change(reply)
            elif left:
                loop.call_later(INTERVAL, lambda: look(left - 1))
            else:
                holders = sorted({port.split(',')[0] for port, _ in drive.shared.prevented_by})
                text = '%s uses the medium and does not allow its removal; unmount it there, or write --force'
                reply(commands.reply_error(text % ' and '.join(holders)))

        look(LOOKS)

    return ask_and_change
