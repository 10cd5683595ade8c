"""From a row of the opcode table to the admission function of its command. Pure.

An admission function takes (unit, task). Its caller has checked the CDB for bits that the row does
not allow. The function checks the fields, and sets task.run, and run_blocking and data_out_length
if they are needed. It raises CheckCondition or StatusReturned.
"""

from typing import Dict, Optional

from targetd.scsi import (
    atomic_commands,
    buffers,
    diagnostics,
    identifying,
    logs,
    mmc,
    mmc_opcodes,
    opcodes,
    passthrough,
    passthrough_opcodes,
    provisioning,
    sanitize,
    sbc,
    sense,
    spc,
    ssc,
    ssc_opcodes,
)
from targetd.scsi.copy import copy_manager, extended_copy, rod_commands
from targetd.scsi.facts import UnitFacts

_MODULES = (
    atomic_commands,
    buffers,
    copy_manager,
    diagnostics,
    extended_copy,
    identifying,
    logs,
    mmc,
    passthrough,
    provisioning,
    rod_commands,
    sanitize,
    sbc,
    spc,
    ssc,
)
_BY_NAME = dict((module.__name__.rpartition('.')[2], module) for module in _MODULES)

#: {'module.name' of a row: admission function}
FUNCTIONS = dict(
    (row.function, getattr(_BY_NAME[row.function.split('.')[0]], row.function.split('.')[1]))
    for row in opcodes.TABLE + mmc_opcodes.TABLE + ssc_opcodes.TABLE + passthrough_opcodes.TABLE
)


def commands_of(facts: UnitFacts) -> Dict[int, Dict[Optional[int], opcodes.Row]]:
    """{opcode: {service action or None: Row}} of the commands that a unit with these facts offers."""
    if facts.passthrough:
        return passthrough_opcodes.commands_of(facts).rows
    if facts.optical:
        return mmc_opcodes.by_opcode(facts)
    return ssc_opcodes.by_opcode(facts) if facts.tape else opcodes.by_opcode(facts)


def refuse_unused_bits(row: opcodes.Row, cdb: bytes) -> None:
    """Raise CheckCondition 05/24/00 with field pointer if a bit is set that is not in the mask of
    the row."""
    refused = row.first_refused_bit(cdb)
    if refused:
        raise sense.invalid_field_in_cdb(*refused)
