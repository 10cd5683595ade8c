"""`python3 -m targetd` is the `targetd` command."""

import sys

from targetd.entry import targetd

if __name__ == '__main__':
    sys.exit(targetd())
