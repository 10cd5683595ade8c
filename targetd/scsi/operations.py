"""Long operations on a medium, FORMAT UNIT and SANITIZE, as values: what is to be done, how far it
is, how it ended. Pure.

One operation is a JSON-able dict, never changed in place. The master owns it, keeps it in stable
storage and has it done by a process of its own (worker.erasing); the sessions only see the word for
the medium and the progress.

  kind        'format' | 'sanitize'
  method      'pattern': write `pattern` to every block, `passes` times | 'zeroes': make every block read as zeroes, by
              whatever way the medium has | 'erase': give all space back and make every block read as zeroes | 'key': put
              another key in the place of the one that the medium is encrypted with; the master does that itself
  pattern     hex digits, at most a block; it begins anew in every block
  passes      1..31; invert: bool, every other pass writes the complement
  ause        ALLOW UNRESTRICTED SANITIZE EXIT, SBC-3 5.24
  by          [initiator_port, target_port] that asked; it knows without a unit attention
  position    bytes done, of passes * size, all of them durable
  size        bytes of the medium that position counts in; 0 before it is known
  failed      '' while it runs, else why it failed

       ready --asked--> formatting, sanitizing ---done--> ready
                              |              |---error, process died--> format-failed, sanitize-failed
                              +-- targetd ends: goes on from `position` after its next start
"""

import re

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
#: how the command itself ends whose operation failed
COMMAND_FAILED = {'format': (MEDIUM_ERROR, 0x31, 0x01), 'sanitize': (MEDIUM_ERROR, 0x31, 0x03)}

_HEX = re.compile('(?:[0-9a-f]{2})*$')


def begun(message, by):
    """The operation that an ask (of a worker, so it may be anything) means. Raises KeyError,
    ValueError, TypeError."""
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
        raise ValueError('no pattern')
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


def restored(kept):
    """The operation that stable storage held, or None. Raises ValueError if it is damaged."""
    if kept is None:
        return None
    try:
        operation = begun(kept, kept['by'])
        position, size, failed = kept['position'], kept['size'], kept['failed']
        if not all(
            isinstance(number, int) and number >= 0 for number in (position, size)
        ) or not isinstance(failed, str):
            raise ValueError('position %r of %r' % (position, size))
    except (KeyError, TypeError, AttributeError) as e:
        raise ValueError('not an operation: %s' % e)
    return dict(operation, position=position, size=size, failed=failed)


def sized(operation, size):
    """The operation for a medium of so many bytes: one of another size than before is begun anew."""
    return operation if operation['size'] == size else dict(operation, size=size, position=0)


def medium(operation):
    """The word for a medium with this operation, or None where there is none."""
    if operation is None:
        return None
    return (FAILED if operation['failed'] else RUNNING)[operation['kind']]


def progress(operation, size):
    """PROGRESS INDICATION, 0..65535 of 65536 (SPC-4); size: bytes of the medium."""
    if operation is None or not size:
        return 0
    return min(
        MAXIMUM_PROGRESS,
        max(0, operation['position']) * (MAXIMUM_PROGRESS + 1) // (operation['passes'] * size),
    )


def is_running(word):
    """Is this the word for a medium that is being formatted or sanitized?"""
    return word in RUNNING.values()


def is_failed(word):
    """Is this the word for a medium whose formatting or sanitizing failed?"""
    return word in FAILED.values()


def block_content(operation, block_size, number):
    """What one block holds after pass `number` (from 0), SBC-3 5.24."""
    pattern = bytes.fromhex(operation['pattern'])
    block = (pattern * (block_size // len(pattern) + 1))[:block_size]
    return block.translate(COMPLEMENT) if operation['invert'] and number % 2 else block


COMPLEMENT = bytes(255 - n for n in range(256))
