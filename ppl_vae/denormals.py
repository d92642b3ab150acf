"""Flush denormal numbers to zero on every thread that computes.

Normalised importance weights underflow to denormals, on which x86 processors are many times slower.
"""

import ctypes
import threading
import warnings
from functools import cache
from pathlib import Path

import torch

__all__ = ["flush_denormals", "set_on_pool"]

GRAIN = 1 << 15
"""Elements from which torch splits an operation among threads, for each thread."""


def flush_denormals() -> None:
    """From here on, in this process: denormal numbers are zero, on threads that have started before as well.

    `torch.set_flush_denormal` sets the calling thread, whose settings new threads inherit. A pool that has already
    computed something keeps its own: it is visited. Where that fails, one warning says what to do.
    """
    if torch.set_flush_denormal(True):  # False: a processor without the setting, and without the trouble
        _pool_too(threading.get_ident(), torch.get_num_threads())


@cache
def _pool_too(_caller: int, _threads: int) -> None:
    """Once for each thread that computes (each has a pool of its own) and each size of its pool."""
    if not _all_flush():
        set_on_pool(True)
        if not _all_flush():
            warnings.warn(
                "ppl_vae: some threads keep denormal numbers, which makes training several times slower; call "
                "torch.set_flush_denormal(True) before the first tensor operation of the process",
                stacklevel=4,
            )


def _all_flush() -> bool:
    """Multiply denormal numbers, made from their bits, on all threads."""
    smallest = torch.ones(GRAIN * torch.get_num_threads(), dtype=torch.int32).view(torch.float32)
    return not smallest.mul_(1.0).view(torch.int32).any().item()


def set_on_pool(flush: bool) -> None:
    """Call `torch.set_flush_denormal` on this thread and each of its OpenMP pool, where torch brought the library."""
    visit = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: _set(flush))
    for path in Path(torch.__file__).parent.glob("lib/libgomp*"):
        parallel = ctypes.CDLL(str(path)).GOMP_parallel
        parallel.argtypes = [type(visit), ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel(visit, None, torch.get_num_threads(), 0)


def _set(flush: bool) -> None:
    torch.set_flush_denormal(flush)
