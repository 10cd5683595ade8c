"""The descriptors that this process has open, for tests of leaks."""

import gc
import os


def count_open(generation=2):
    """Their number, after those that earlier tests have left to the garbage collector were closed. What lives
    now is not examined by the next call, which would take a second beside thousands of tests. Between
    gc.disable() and gc.enable(), generation 0 is enough: nothing older is collected meanwhile."""
    gc.collect(generation)
    if generation == 2 and hasattr(gc, 'freeze'):  # Python 3.7
        gc.freeze()
    return len(os.listdir('/proc/self/fd')) - 1  # without that of the listing
