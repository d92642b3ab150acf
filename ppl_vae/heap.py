"""Memory that a step frees stays with the process, for the next step."""

import ctypes
from functools import cache

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt

LARGEST, KEPT = 256 << 20, 512 << 20
"""Bytes: tensors up to the first are taken from memory freed before, of which so much is kept."""


@cache
def keep_freed_memory() -> bool:
    """From here on, in this process: keep up to 512 MiB of freed memory; whether the C library can.

    glibc hands the large tensors of a step back to the system as soon as they are freed, and each of their pages
    costs a fault when the next step touches it: up to half of the time of a step with convolutions. Other C libraries
    are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc; Windows has no library without a name
        return False
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST) and mallopt(_TRIM_THRESHOLD, KEPT))
