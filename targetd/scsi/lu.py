"""The target as one nexus sees it: Device, LogicalUnit, AbsentUnit (first step: the facts only). Pure."""

from targetd.scsi.facts import UnitFacts

__all__ = ('UnitFacts',)
