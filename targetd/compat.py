"""Every difference between Python 3.6 and 3.13, and between old and new kernels, that the rest of targetd would notice.

May be imported by anyone; version checks stand here and nowhere else.
"""

import gc
import sys

assert sys.version_info >= (3, 6), 'targetd needs Python 3.6 or newer'


def freeze_collector():
    """Keep what was loaded before a fork out of the collector's sight, so that its pages stay shared (gc.freeze, 3.7)."""
    gc.collect()
    if hasattr(gc, 'freeze'):
        gc.freeze()
