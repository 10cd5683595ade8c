"""The descriptors that this process has open, for tests of leaks."""

import gc
import os


def count_open():
    """Their number, after those that earlier tests have left to the garbage collector were closed."""
    gc.collect()
    return len(os.listdir('/proc/self/fd')) - 1  # without that of the listing
