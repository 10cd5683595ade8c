"""Makes the fakes of each folder (fake_store.py, master_fakes.py, …) importable from its
sub-folders, too."""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
for _name in ('.', 'scsi', 'master'):
    sys.path.insert(0, os.path.normpath(os.path.join(HERE, _name)))
