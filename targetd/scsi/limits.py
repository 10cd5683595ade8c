"""Limits on the commands and bytes per second of logical units: the arithmetic, and how a command waits
for them. Pure; worker.throttling has the clock and the memory that sessions share.

     admit --> task.run = run_limited --+-- the limits admit the command --> its usual run
                                        +-- they do not --> DELAYED --> its run_blocking, later

A limit is a token bucket that holds BURST of its rate. It is kept as one number, the time at which the
bucket will be full: a command moves it forward by what the command costs. All times are in nanoseconds of
one monotonic clock, all costs too: a command costs 1 / iops-limit, its bytes cost bytes / bandwidth-limit.

The store of a unit with a latency-target is timed in the same place (worker.throttling), with or without
limits. A unit without either has its usual admission functions (ARCHITECTURE D10).
"""

import struct
from collections import namedtuple
from typing import TYPE_CHECKING, Any, Callable, Dict, Tuple

from targetd.scsi import sam

if TYPE_CHECKING:
    from targetd.scsi.lu import LogicalUnit

#: A bucket holds what its rate allows in this time, unless its row has another one. A command that costs
#: more needs a full bucket.
BURST = SECOND = 1000000000
#: A session counts at most this part of what a bucket holds ahead.
AHEAD_PART = 32
#: The memory of limits is written by unprivileged processes: no bucket is believed to be full only later
#: than this.
LONGEST_DEBT = 600 * SECOND

#: What sessions share of one place: the times at which the buckets of commands and of bytes will be full,
#: the number of delayed commands, and their delays.
STATE = struct.Struct('<qqQQ')

#: Functions of scsi.opcodes that are limited -> do they count task.length bytes? The others count the
#: Data-Out of the command. Copies on the server are not limited.
LIMITED = {
    'sbc.read': True,
    'sbc.write': True,
    'ssc.read': True,
    'ssc.write': True,
    'passthrough.read': True,
    'passthrough.write': True,
    'sbc.write_and_verify': True,
    'sbc.verify': True,
    'atomic_commands.compare_and_write': True,
    'atomic_commands.orwrite': True,
    'atomic_commands.write_atomic': True,
    'provisioning.write_same': False,
    'provisioning.unmap': False,
}


class Limit(namedtuple('Limit', 'place commands bytes burst')):
    """The limits of one place. place: number of its STATE; commands, bytes: per second, 0: unlimited;
    burst: nanoseconds, what the buckets hold."""

    __slots__ = ()

    def __new__(cls, place: int, commands: int, bytes: int, burst: int = BURST) -> 'Limit':
        return super(Limit, cls).__new__(cls, place, commands, bytes, burst)

    def costs(self, length: int) -> Tuple[int, int]:
        """What a command with so many bytes costs in the two buckets."""
        return (
            SECOND // self.commands if self.commands else 0,
            length * SECOND // self.bytes if self.bytes else 0,
        )

    def due(self, state: Tuple[int, ...], now: int, length: int) -> int:
        """The earliest time at which the limits admit a command with so many bytes."""
        found = now
        for full_at, cost in zip(state, self.costs(length)):
            if cost:
                full_at = min(full_at, now + LONGEST_DEBT)
                found = max(found, full_at + cost - max(cost, self.burst))
        return found

    def ahead(self, state: Tuple[int, ...], now: int, length: int, wanted: int) -> int:
        """How many further commands of this kind, at most `wanted`, a session may count ahead: as many as
        leave half of the buckets full, and only a small part of what they hold."""
        for full_at, cost in zip(state, self.costs(length)):
            if cost:
                room = now + self.burst // 2 - max(full_at, now)
                wanted = min(wanted, room // cost - 1, self.burst // (AHEAD_PART * cost))
        return max(wanted, 0)

    def taken(
        self,
        state: Tuple[int, ...],
        now: int,
        length: int,
        delayed: int = 0,
        delay: int = 0,
        count: int = 1,
    ) -> Tuple[int, ...]:
        """The state after `count` such commands. delayed, delay: what is added to the last two numbers."""
        times = [
            max(min(full_at, now + LONGEST_DEBT), now) + count * cost if cost else full_at
            for full_at, cost in zip(state, self.costs(length))
        ]
        return tuple(times) + (state[2] + delayed, state[3] + delay)


def bound(
    unit: 'LogicalUnit', normal: Dict[int, Callable[[sam.Task], None]]
) -> Dict[int, Callable[[sam.Task], None]]:
    """{opcode: admission function} of the limited commands of the unit. normal: its functions without
    limits."""
    found = {}
    for opcode, rows in unit.commands.items():
        counts = {LIMITED[row.function] for row in rows.values() if row.function in LIMITED}
        if counts:
            found[opcode] = _limited(normal[opcode], counts.pop())
    return found


def _limited(admit: Callable[[sam.Task], None], counts_length: bool) -> Callable[[sam.Task], None]:
    def admit_limited(task):
        task.length = 0  # the Task may be of an earlier command
        admit(task)
        task.charged = task.length if counts_length else task.data_out_length
        if task.run_blocking is None:
            task.run_blocking = task.run
        task.unlimited_run, task.run = task.run, run_limited

    return admit_limited


def run_limited(task: sam.Task) -> Any:
    """run() of a command of a unit with limits, or whose store is timed. [connection, or any with
    `working` held]"""
    if has_to_wait(task):
        return sam.DELAYED
    throttle = task.unit.throttle
    if throttle is None or not throttle.is_timed:
        return task.unlimited_run(task)
    return throttle.timed_run(task)


def has_to_wait(task: sam.Task) -> bool:
    """True if the command is limited, and must wait: the caller returns DELAYED. Otherwise it counts as
    executed. A command that has waited, whose `charged` is None, is not limited again, should its
    run_blocking call this function (rod_commands.revoke_tokens_before)."""
    if task.run is not run_limited or task.charged is None:
        return False
    throttle = task.unit.throttle
    return throttle is not None and not throttle.admits(task)
