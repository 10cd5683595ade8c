"""Log page 19h of a unit (General Statistics and Performance): what all sessions have read and written.

     a worker asks --> Counting.collect --> sum of all sessions, also of ended ones --> the page

LOG SELECT sets the counters to zero: the sums at that moment are subtracted from then on.
"""

from targetd.master.units.transitions import Malformed, Refusal
from targetd.scsi import counters, sam

CUMULATIVE, DEFAULT_CUMULATIVE = 1, 3  # PAGE CONTROL
MOST = (1 << 64) - 1  # a threshold that is never reached: there is none
COUNTED = ('reads', 'writes', 'bytes_written', 'bytes_read')
#: The words of the request and their greatest values.
LIMITS = {'control': 3, 'pointer': counters.LAST_PARAMETER, 'length': 0xFFFF}


class Statistics(object):
    """counting: master.counting.Counting; subtracted: {unit id: sums at the last LOG SELECT that set the
    counters to zero}."""

    def __init__(self, counting):
        self._counting = counting
        self.subtracted = {}

    def on_request(self, unit, message, answer):
        """A worker's `ask statistics`; answer(decision). Raises Malformed."""
        words = {name: message.get(name) for name in LIMITS}
        for name, value in words.items():
            if not isinstance(value, int) or not 0 <= value <= LIMITS[name]:
                raise Malformed('statistics with %s %r' % (name, value))

        def collected(_rows, _silent):
            if words['control'] == CUMULATIVE:
                counts = self._counts(unit)
            else:
                counts = [0 if words['control'] == DEFAULT_CUMULATIVE else MOST] * len(COUNTED)
            page = counters.statistics_page(counts, words['pointer'])
            answer(Refusal(sam.GOOD, None, page[: words['length']]))

        self._counting.collect(collected)

    def reset(self, unit):
        """Count from zero."""
        self._counting.collect(lambda _rows, _silent: self._subtract(unit))

    def _subtract(self, unit):
        self.subtracted[unit.id] = self._counting.sums(unit.id)

    def _counts(self, unit):
        sums, less = self._counting.sums(unit.id), self.subtracted.get(unit.id, {})
        counts = [max(0, sums.get(name, 0) - less.get(name, 0)) for name in COUNTED]
        block_size = unit.facts.get('block_size', 512)
        return counts[:2] + [count // block_size for count in counts[2:]]
