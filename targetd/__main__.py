"""`python3 -m targetd` is the `targetd` command."""

import sys

from targetd.cli import main

if __name__ == '__main__':
    sys.exit(main())
