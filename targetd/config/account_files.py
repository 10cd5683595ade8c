"""Files with CHAP accounts (incominguser-file): one account per line.

May import config.kinds and config.words. A complaint contains the user and never the
secret.
"""

from targetd.config import kinds
from targetd.config.words import Unusable, split


def read_file(path, entry):
    """([((user, secret), entry at its line)], [(entry, text, remedy)] of what is wrong) of a file. entry:
    the Entry of the setting."""
    try:
        with open(path, encoding='utf-8') as f:
            lines = f.read().split('\n')
    except (OSError, UnicodeDecodeError) as e:
        why = getattr(e, 'strerror', None) or 'not UTF-8'
        text = 'incominguser-file: %s cannot be read: %s' % (path, why)
        return None, [(entry, text, 'correct the path or the file')]
    accounts, wrong, kind = [], [], kinds.Account()
    for number, line in enumerate(lines, 1):
        here = entry._replace(file=path, line=number)
        try:
            items = split(line.rstrip('\r'))
            if items:
                accounts.append((kind.read(items), here))
        except Unusable as e:
            wrong.append((here, e.text, e.remedy))
    return accounts, wrong
