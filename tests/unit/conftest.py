"""Makes the fakes of each folder (fake_store.py, master_fakes.py, …) importable from its
sub-folders, too; and has no example of Hypothesis fail because the machine was slow."""

import os
import sys

import hypothesis

hypothesis.settings.register_profile('targetd', deadline=None)
hypothesis.settings.load_profile('targetd')

HERE = os.path.dirname(os.path.abspath(__file__))
for _name in ('.', 'scsi', 'master'):
    sys.path.insert(0, os.path.normpath(os.path.join(HERE, _name)))
