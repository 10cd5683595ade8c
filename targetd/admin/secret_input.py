"""The secret of a CHAP account: typed at the terminal, read from standard input or a file, or generated.
It is never a word of the command line, which every user of the host can see.

Pure but for the terminal and files. May import base.
"""

import getpass
import os
import string
import sys

from targetd.errors import TargetdError

LENGTH = 16  # the most that Windows accepts
LETTERS = string.ascii_letters + string.digits


def generated():
    """A random secret."""
    found = ''
    # equally likely letters: bytes beyond the last whole multiple are dropped
    while len(found) < LENGTH:
        for byte in os.urandom(LENGTH):
            if byte < 256 - 256 % len(LETTERS) and len(found) < LENGTH:
                found += LETTERS[byte % len(LETTERS)]
    return found


def read_secret(path=None):
    """The first line of a file, of the terminal (typed twice), or of standard input. Raises
    TargetdError."""
    try:
        if path is not None:
            with open(path, encoding='utf-8') as f:
                found = f.readline()
        elif sys.stdin.isatty():
            found = getpass.getpass('Secret (12 to 16 characters for Windows): ')
            if getpass.getpass('Once more: ') != found:
                raise TargetdError('the two secrets differ; nothing was changed')
        else:
            found = sys.stdin.readline()
    except OSError as e:
        raise TargetdError('the secret cannot be read from %s: %s' % (path, e.strerror))
    except UnicodeDecodeError:
        raise TargetdError('the secret is not UTF-8 text')
    found = found.rstrip('\r\n')
    if not found:
        raise TargetdError('the secret is empty; nothing was changed')
    return found
