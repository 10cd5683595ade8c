"""Helpers of the tests of the importers: an import as targetd would load it."""

import os

from source_tree import ROOT

from targetd.config import check, loader
from targetd.master.exports import unit_identity
from targetd.migration import writer
from targetd.scsi import designators
from targetd.scsi.facts import UnitFacts

#: Samples of other programs' files with expected results, where the checkout has them beside it.
SAMPLES = os.path.join(os.path.dirname(ROOT), 'shared', 'reference', 'migration')


def loaded(imported):
    """(Configuration, [Complaint]) of what was imported; the Configuration is there even if targetd
    would refuse it."""
    reading = loader.Reading()
    reading.read_text('/etc/targetd.conf', writer.configuration_text(imported))
    configuration, complaints = check.build(reading.sections, reading.files)
    return configuration, reading.complaints + complaints


def facts_of(lun):
    return UnitFacts.from_message(unit_identity.names_of(lun, None, 'key', 'server'))


def linux_name(lun):
    return designators.linux_name(facts_of(lun))


def notes(imported, level=None):
    """The notes of a level as text."""
    return [
        writer.note_text(note) for note in imported.notes if level is None or note.level == level
    ]
