"""The counters of a logical unit for one nexus: commands, blocks, errors, and a histogram of latencies.
Pure.

The admission functions of READ and WRITE count in `reads` and `writes`, which they know as locals: two
additions of integers for each command. Everything else is counted outside the hot path. The latency of
one batch of commands in many is measured by the worker (worker.latency), which also reads the counters.
"""

import struct
from typing import Any, Dict, List

from targetd.scsi.sense import (
    ABORTED_COMMAND,
    DATA_PROTECT,
    HARDWARE_ERROR,
    MEDIUM_ERROR,
    NOT_READY,
)

#: A bucket of the histogram is a quarter of a power of two microseconds: the error of a percentile is at
#: most a fifth.
STEPS = 4

#: The sense keys of `errors`. Initiators cause ILLEGAL REQUEST and UNIT ATTENTION in normal operation.
ERROR_KEYS = (NOT_READY, MEDIUM_ERROR, HARDWARE_ERROR, DATA_PROTECT, ABORTED_COMMAND)

#: Log page 19h, General Statistics and Performance (SPC-4 7.3.6). The times are not measured, because a
#: clock in each command would cost more than the command: they are 0, as in disks that do not either.
STATISTICS_PAGE = 0x19
_HEADER, _PARAMETER = struct.Struct('>BBH'), struct.Struct('>HBB')
_DS, _COUNTER, _BINARY_LIST = 0x80, 0x02, 0x03
_STATISTICS, _IDLE_TIME, _TIME_INTERVAL = 0x0001, 0x0002, 0x0003
LAST_PARAMETER = _TIME_INTERVAL
_TIMES = 4  # fields of parameter 0001h, after as many counts
_MOST = (1 << 64) - 1
_MILLISECOND = struct.pack('>II', 3, 1)  # 1 * 10 ** -3 s

#: Functions of scsi.opcodes that count as a READ or a WRITE of task.length bytes.
_READS = ('sbc.read', 'ssc.read', 'passthrough.read')
_WRITES = ('sbc.write', 'ssc.write', 'passthrough.write')


class Counters(object):
    """reads, writes: [commands, blocks]; others: all other commands; errors: commands that ended with an
    error of the medium or the target; latencies: {bucket: samples} of commands that read data, and of
    all others."""

    __slots__ = ('reads', 'writes', 'others', 'errors', 'latencies')

    def __init__(self) -> None:
        self.reads: List[int] = [0, 0]
        self.writes: List[int] = [0, 0]
        self.others = 0
        self.errors = 0
        self.latencies: List[Dict[int, int]] = [{}, {}]

    def count_admitted(self, function: str, task: Any, block_size: int) -> None:
        """A command was admitted by the general admission. function: of its row in scsi.opcodes."""
        if function in _READS:
            self.reads[0] += 1
            self.reads[1] += task.length // block_size
        elif function in _WRITES:
            self.writes[0] += 1
            self.writes[1] += task.length // block_size
        else:
            self.others += 1

    def note_latency(self, is_read: bool, microseconds: int) -> None:
        """Add a sample. The caller prevents that two threads do it at the same time."""
        histogram, bucket = self.latencies[not is_read], bucket_of(microseconds)
        histogram[bucket] = histogram.get(bucket, 0) + 1

    def are_used(self) -> bool:
        """True if the unit has received any command."""
        return bool(self.reads[0] or self.writes[0] or self.others or self.errors)


def statistics_page(counts: List[int], pointer: int) -> bytes:
    """Log page 19h without the parameters below `pointer`. counts: READs, WRITEs, blocks received, blocks
    transmitted, of all nexuses."""
    values = [min(count, _MOST) for count in counts] + [0] * _TIMES
    parameters = [
        (_STATISTICS, _COUNTER, struct.pack('>8Q', *values)),
        (_IDLE_TIME, _COUNTER, bytes(8)),
        (_TIME_INTERVAL, _BINARY_LIST, _MILLISECOND),
    ]
    body = b''.join(
        _PARAMETER.pack(code, control, len(value)) + value
        for code, control, value in parameters
        if code >= pointer
    )
    return _HEADER.pack(_DS | STATISTICS_PAGE, 0, len(body)) + body


def bucket_of(microseconds: int) -> int:
    """The bucket of a latency; those of less than STEPS microseconds have one each."""
    if microseconds < STEPS:
        return max(microseconds, 0)
    octave = microseconds.bit_length() - 3  # STEPS is 1 << 2
    return STEPS * (octave + 1) + (microseconds >> octave) - STEPS


def upper_bound(bucket: int) -> int:
    """The first number of microseconds that is above the bucket."""
    if bucket < STEPS:
        return bucket + 1
    octave = bucket // STEPS - 1
    return (bucket % STEPS + STEPS + 1) << octave


def percentile(histogram: Dict[int, int], share: float) -> int:
    """The microseconds within which this share (0..1) of the samples was answered: the upper bound of a
    bucket; 0 without samples."""
    left = share * sum(histogram.values())
    for bucket in sorted(histogram):
        left -= histogram[bucket]
        if left <= 0:
            return upper_bound(bucket)
    return 0
