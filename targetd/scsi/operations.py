"""Long operations on a medium, FORMAT UNIT and SANITIZE, as values: what is to be done, the
progress, and the result. Pure.

One operation is a JSON-able dict that is never changed in place. The master owns it, keeps it in
stable storage and starts a separate process for it (worker.erasing); the sessions only see the
state of the medium and the progress.

  kind        'format' | 'sanitize'
  method      'pattern': write `pattern` to every block, `passes` times
              'zeroes': make every block read as zeroes, in the way that suits the medium
              'erase': free all space and make every block read as zeroes
              'key': replace the encryption key of the medium, which the master itself does
  pattern     hex digits, at most one block; it starts again in every block
  passes      1..31; invert: bool, every other pass writes the complement
  ause        ALLOW UNRESTRICTED SANITIZE EXIT, SBC-3 5.24
  by          [initiator_port, target_port] of the nexus that started it, which gets no unit attention
  position    bytes done, of passes * size, all of them durable
  size        bytes of the medium that position refers to; 0 before it is known
  failed      '' while it runs, otherwise the reason of the failure

       ready --started--> formatting, sanitizing ---done--> ready
                              |              |---error, process died--> format-failed, sanitize-failed
                              +-- targetd ends: continues from `position` after the next start
"""

import re
from typing import Any, Dict, Iterable, Optional

from targetd.scsi.sense import MEDIUM_ERROR, NOT_READY

RUNNING = {'format': 'formatting', 'sanitize': 'sanitizing'}
FAILED = {'format': 'format-failed', 'sanitize': 'sanitize-failed'}
NEW_KEY = 'key'
METHODS = {'format': ('pattern', 'zeroes'), 'sanitize': ('pattern', 'erase', NEW_KEY)}
MAXIMUM_PASSES = 31
MAXIMUM_PATTERN = 65536
MAXIMUM_PROGRESS = 0xFFFF

#: medium -> sense of a command that needs it
SENSE = {
    'formatting': (NOT_READY, 0x04, 0x04),
    'sanitizing': (NOT_READY, 0x04, 0x1B),
    'format-failed': (MEDIUM_ERROR, 0x31, 0x00),  # MEDIUM FORMAT CORRUPTED
    'sanitize-failed': (MEDIUM_ERROR, 0x31, 0x03),  # SANITIZE COMMAND FAILED
}
#: sense of the command itself if its operation failed
COMMAND_FAILED = {'format': (MEDIUM_ERROR, 0x31, 0x01), 'sanitize': (MEDIUM_ERROR, 0x31, 0x03)}

_HEX = re.compile('(?:[0-9a-f]{2})*$')


def new_operation(message: Dict[str, Any], by: Iterable[str]) -> Dict[str, Any]:
    """Returns the operation that a worker asks for. The message is checked, because a worker is not
    trusted. Raises KeyError, ValueError, TypeError."""
    kind, method, pattern, passes = (
        message['kind'],
        message['method'],
        message['pattern'],
        message['passes'],
    )
    if kind not in RUNNING or method not in METHODS[kind]:
        raise ValueError('operation %r, %r' % (kind, method))
    if (
        not isinstance(pattern, str)
        or not _HEX.match(pattern)
        or len(pattern) > 2 * MAXIMUM_PATTERN
    ):
        raise ValueError('the pattern is not valid')
    if bool(pattern) != (method == 'pattern'):
        raise ValueError('a pattern with %s' % method)
    if not isinstance(passes, int) or not 1 <= passes <= MAXIMUM_PASSES:
        raise ValueError('passes %r' % (passes,))
    return {
        'kind': kind,
        'method': method,
        'pattern': pattern,
        'passes': int(passes),
        'invert': bool(message.get('invert')),
        'ause': bool(message.get('ause')),
        'by': list(by),
        'position': 0,
        'size': 0,
        'failed': '',
    }


def operation_from_storage(kept: Any) -> Optional[Dict[str, Any]]:
    """Returns the operation from stable storage, or None. Raises ValueError if it is damaged."""
    if kept is None:
        return None
    try:
        operation = new_operation(kept, kept['by'])
        position, size, failed = kept['position'], kept['size'], kept['failed']
        if not all(
            isinstance(number, int) and number >= 0 for number in (position, size)
        ) or not isinstance(failed, str):
            raise ValueError('position %r of %r' % (position, size))
    except (KeyError, TypeError, AttributeError) as e:
        raise ValueError('not an operation: %s' % e)
    return dict(operation, position=position, size=size, failed=failed)


def for_medium_size(operation: Dict[str, Any], size: int) -> Dict[str, Any]:
    """Returns the operation for a medium of this size in bytes. If the size differs from before,
    the operation starts again."""
    return operation if operation['size'] == size else dict(operation, size=size, position=0)


def medium_state_of(operation: Optional[Dict[str, Any]]) -> Optional[str]:
    """Returns the state of a medium with this operation, or None if there is no operation."""
    if operation is None:
        return None
    return (FAILED if operation['failed'] else RUNNING)[operation['kind']]


def progress(operation: Optional[Dict[str, Any]], size: int) -> int:
    """Returns PROGRESS INDICATION, 0..65535 of 65536 (SPC-4). size: bytes of the medium."""
    if operation is None or not size:
        return 0
    return min(
        MAXIMUM_PROGRESS,
        max(0, operation['position']) * (MAXIMUM_PROGRESS + 1) // (operation['passes'] * size),
    )


def is_running(state: str) -> bool:
    """Returns True for the state of a medium that is being formatted or sanitized."""
    return state in RUNNING.values()


def is_failed(state: str) -> bool:
    """Returns True for the state of a medium whose formatting or sanitizing failed."""
    return state in FAILED.values()


def block_content(operation: Dict[str, Any], block_size: int, number: int) -> bytes:
    """Returns the content of one block after pass `number` (from 0), SBC-3 5.24."""
    pattern = bytes.fromhex(operation['pattern'])
    block = (pattern * (block_size // len(pattern) + 1))[:block_size]
    return block.translate(COMPLEMENT) if operation['invert'] and number % 2 else block


COMPLEMENT = bytes(255 - n for n in range(256))
