"""One reload, from the configuration that was loaded to the answer: what it holds until it is applied."""

from targetd.errors import Standby, StoreError


class Prepared(object):
    """The units that were opened for a reload, before anything has changed. units: {(target name,
    number): Unit}; standby: {(target name, number): Standby} of LUNs that another server serves;
    discard_unit(unit) releases one; resizes: Resizes, as soon as there are some."""

    def __init__(self, units, standby, discard_unit):
        self.units = units
        self.standby = standby
        self.resizes = None
        self._discard_unit = discard_unit
        self._left = 1  # steps that are not in force in every session yet, and when_in_force()
        self._in_force = None

    def hold(self):
        """A step is not in force in every session yet; returns the function to call when it is."""
        self._left += 1
        return self._one_less

    def when_in_force(self, done):
        """Call done() when every step is in force: now or later."""
        self._in_force = done
        self._one_less()

    def _one_less(self):
        self._left -= 1
        if not self._left:
            self._in_force()

    def close(self):
        """The reload failed, or was only planned: release the units, undo the new sizes."""
        for unit in self.units.values():
            self._discard_unit(unit)
        if self.resizes is not None:
            self.resizes.undo()


def prepare(outcomes, discard_unit, is_stopping):
    """Returns the Prepared of the outcomes of Exports.open_media(). Raises StoreError, which names every
    store that cannot be opened; then none stays open. is_stopping: nothing is reloaded any more."""
    prepared = Prepared(
        {key: unit for key, unit in outcomes.items() if not isinstance(unit, StoreError)},
        {key: error for key, error in outcomes.items() if isinstance(error, Standby)},
        discard_unit,
    )
    failures = [
        'lun %d of %s: %s' % (number, target_name, outcome)
        for (target_name, number), outcome in outcomes.items()
        if isinstance(outcome, StoreError) and not isinstance(outcome, Standby)
    ]
    if is_stopping:
        failures = ['targetd is being stopped']
    if failures:
        prepared.close()
        raise StoreError('\n'.join(failures))
    return prepared


class Attempt(object):
    """One reload or plan. loaded: vault.Loaded; new: its Configuration; vault: of its secrets; cause:
    Cause; steps, rows: what changes, and how it is shown; now: do not wait for sessions; done: as in
    Reload.start_reload()."""

    def __init__(self, loaded, cause, steps, rows, plan_only, now, done):
        self.loaded = loaded
        self.new = loaded.configuration
        self.vault = loaded.vault
        self.cause = cause
        self.steps = steps
        self.rows = rows
        self.plan_only = plan_only
        self.now = now
        self.done = done
