"""The commands targetd and targetdctl of the program of one file: the name of the file, or the first word,
says which one is meant."""

import sys

from targetd import entry

if sys.argv[1:2] == ['targetdctl']:
    del sys.argv[1]
    sys.exit(entry.targetdctl())
sys.exit(entry.by_name(sys.argv[0]))
